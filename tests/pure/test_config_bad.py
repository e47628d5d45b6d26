"""Every file in bad_configs/ is refused at the place, and in the words, that its first line states."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import relay
from relay.config.load import ConfigError, load

FOLDER = Path(__file__).parent / "bad_configs"
FILES = sorted(FOLDER.glob("*.yaml"))


def problems_of(file: Path) -> list[str]:
    """The problems, without the folder and the file's own name."""
    with pytest.raises(ConfigError) as caught:
        load(file)
    return [str(p).replace(f"{FOLDER}/", "").removeprefix(f"{file.name}:") for p in caught.value.problems]


def expected(file: Path) -> str:
    first = file.read_bytes().splitlines()[0].decode()
    return first.removeprefix("# expect: ").replace("relay VERSION", f"relay {relay.__version__}")


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_refused_where_and_why(file: Path) -> None:
    assert problems_of(file) == [expected(file)]


def test_each_told_apart() -> None:
    assert len(FILES) >= 34
    texts = [re.sub(r"^\S*?\d+:\d+: ", "", problems_of(file)[0]) for file in FILES]
    assert len(set(texts)) == len(FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_no_secret_is_told(file: Path) -> None:
    assert "hunter2" not in "".join(problems_of(file))
    assert "\n" not in "".join(problems_of(file))
