"""The shims, compiled here; a test that needs one is skipped with a word where there is no compiler."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`compiled("shim")`: the shared object of shim.c."""
    made: dict[str, Path] = {}

    def compile_(name: str) -> Path:
        if name not in made:
            if not (compiler := shutil.which("gcc") or shutil.which("cc")):
                pytest.skip("no C compiler: apt-get install gcc libc6-dev")
            target = tmp_path_factory.mktemp("shim") / f"{name}.so"
            command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-o", target, HERE / f"{name}.c", "-ldl"]
            subprocess.run(command, check=True)
            made[name] = target
        return made[name]

    return compile_


@pytest.fixture(scope="session")
def shim(compiled: Callable[[str], Path]) -> Path:
    return compiled("shim")
