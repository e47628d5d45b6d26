"""What `make` installs: for `make run` the relay alone, for the rest its tools too; each once, and again when
pyproject.toml changes; and pip is heard only when it fails."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from .support import ENV, ROOT, needs, run

pytestmark = needs("make")

# Stands for the environment's Python, so that nothing is fetched: notes what pip is asked for, and warns as pip does.
PYTHON = """#!/bin/bash
[ "$2" = pip ] || exit 0
echo "${@: -1}" >>asked
echo "WARNING: Location is ignored" >&2
[ ! -e broken ] || { echo "ERROR: no matching distribution" >&2; exit 1; }
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The Makefile beside a pyproject.toml of an hour ago, and an environment with nothing in it."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    age(tmp_path / "pyproject.toml", 3600)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name, text in (("python", PYTHON), ("relay", "#!/bin/bash\necho it runs\n")):
        program = tmp_path / ".venv/bin" / name
        program.write_text(text)
        program.chmod(0o755)
    return tmp_path


def age(file: Path, seconds: float) -> None:
    then = file.stat().st_mtime - seconds
    os.utime(file, (then, then))


def make(clone: Path, goal: str, *, ends: int = 0) -> tuple[str, list[str]]:
    """What is shown, and what pip was asked to install."""
    asked = clone / "asked"
    asked.write_text("")
    env = {k: v for k, v in ENV.items() if not k.startswith("MAKE") and k != "MFLAGS"}
    done = run("make", goal, f"PYTHON={sys.executable}", cwd=clone, env=env, check=False)
    assert done.returncode == ends, done.stderr
    return done.stdout + done.stderr, asked.read_text().split()


def test_the_relay_first_and_its_tools_later(clone: Path) -> None:
    assert make(clone, "run") == ("installing the relay into .venv\nit runs\n", [".[imap]"])
    assert make(clone, "run") == ("it runs\n", [])
    assert make(clone, "install") == ("installing the relay and its tools into .venv\n", [".[dev]"])
    assert make(clone, "install")[1] == []
    assert make(clone, "run") == ("it runs\n", [])


def test_the_tools_bring_the_relay(clone: Path) -> None:
    assert make(clone, "install")[1] == [".[dev]"]
    assert make(clone, "run") == ("it runs\n", [])


def test_again_when_the_project_changes(clone: Path) -> None:
    make(clone, "install")
    for stamp in ("installed", "runtime"):
        age(clone / ".venv" / stamp, 7200)
    assert make(clone, "run")[1] == [".[imap]"]
    assert make(clone, "install")[1] == [".[dev]"]
    assert make(clone, "run")[1] == []


@pytest.mark.parametrize("goal", ["run", "install"])
def test_pip_is_heard_when_it_fails(clone: Path, goal: str) -> None:
    (clone / "broken").touch()
    shown, _ = make(clone, goal, ends=2)
    assert "ERROR: no matching distribution" in shown
    assert "it runs" not in shown
    (clone / "broken").unlink()
    shown, asked = make(clone, goal)
    assert len(asked) == 1
    assert "WARNING" not in shown
