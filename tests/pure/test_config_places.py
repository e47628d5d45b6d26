"""Where things lie when the configuration does not say."""

from __future__ import annotations

from pathlib import Path

from relay.config import places

LOCKED = Path("/dev/null/relay")  # nobody can make a folder there, not even root
ENV = {"HOME": "/home/u"}


def test_config_file(tmp_path: Path) -> None:
    assert places.config_file({}, Path("x.yaml")) == Path("x.yaml")
    assert places.config_file({"RELAY_CONFIG": "/a/b.yaml"}) == Path("/a/b.yaml")
    assert places.config_file(ENV) == places.CONFIG
    own = tmp_path / "relay" / "relay.yaml"
    own.parent.mkdir()
    own.touch()
    usual = tmp_path / "none.yaml"
    assert places.config_file({"XDG_CONFIG_HOME": str(tmp_path)}, usual=usual) == own
    usual.touch()
    assert places.config_file({"XDG_CONFIG_HOME": str(tmp_path)}, usual=usual) == usual


def test_state_folder(tmp_path: Path) -> None:
    usual = tmp_path / "var" / "lib" / "relay"
    assert places.state_folder(ENV, usual) == usual
    assert places.state_folder(ENV | {"STATE_DIRECTORY": "/s"}, usual) == Path("/s")  # what was said explicitly
    assert not usual.exists()
    assert places.state_folder(ENV | {"STATE_DIRECTORY": "/s/a:/s/b"}, LOCKED) == Path("/s/a")
    assert places.state_folder(ENV | {"XDG_STATE_HOME": "/x"}, LOCKED) == Path("/x/relay")
    assert places.state_folder(ENV | {"XDG_STATE_HOME": "relative"}, LOCKED) == Path("/home/u/.local/state/relay")


def test_runtime_folder(tmp_path: Path) -> None:
    assert places.runtime_folder(ENV, tmp_path) == tmp_path
    assert places.runtime_folder(ENV | {"RUNTIME_DIRECTORY": "/r"}, tmp_path) == Path("/r")
    assert places.runtime_folder(ENV | {"XDG_RUNTIME_DIR": "/x"}, LOCKED) == Path("/x/relay")
    assert places.runtime_folder(ENV, LOCKED, LOCKED) == Path("/home/u/.local/state/relay")


def test_writable(tmp_path: Path) -> None:
    assert places.writable(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    assert not places.writable(tmp_path / "file")
    assert not places.writable(tmp_path / "file" / "below")
    assert not places.writable(LOCKED)
