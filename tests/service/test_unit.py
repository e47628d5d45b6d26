"""The systemd units: how much the service may do, what `relay init` writes, and the first files of an installation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relay.config import template
from relay.config.load import load

from .support import ENV, ROOT, run

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze")
UNIT = ROOT / "systemd/relay.service"


@needs_systemd
def test_exposure_is_at_most_two() -> None:
    found = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    score = re.search(r"Overall exposure level.*?: ([0-9.]+)", found.stdout)
    assert score and float(score[1]) <= 2.0


@needs_systemd
def test_units_are_valid(tmp_path: Path) -> None:
    """As systemd reads them; a unit of `relay init` names the program that wrote it."""
    program = tmp_path / "bin dir" / "relay"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for name, text in (
        ("relay.service", template.unit(f"'{program}'", tmp_path / "100% of it.yaml")),
        ("relay.socket", (ROOT / "systemd/relay.socket").read_text()),
    ):
        (tmp_path / name).write_text(text.replace("User=relay\nGroup=relay\n", ""))
    found = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "relay.service"), str(tmp_path / "relay.socket")],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    told = [line for line in found.stderr.splitlines() if "relay." in line]
    assert not told, found.stderr


def test_init_writes_configuration_secret_and_unit(tmp_path: Path) -> None:
    file, unit = tmp_path / "etc" / "relay.yaml", tmp_path / "relay.service"
    old = os.umask(0)
    try:
        done = subprocess.run(
            [*relay_command(), "init", "--host", "mail.example.net", "--username", "app", "--unit", str(unit), str(file)],
            input="correct horse\n", capture_output=True, text=True, timeout=120, env=ENV, check=False,
        )  # fmt: skip
    finally:
        os.umask(old)
    assert done.returncode == 0, done.stderr
    assert "correct horse" not in done.stdout + done.stderr + file.read_text() + unit.read_text()
    secret = file.parent / "secrets" / "main"
    assert secret.read_text() == "correct horse\n"
    assert [oct(p.stat().st_mode & 0o777) for p in (file, secret, secret.parent)] == ["0o640", "0o640", "0o750"]
    assert f"serve --config {file}" in unit.read_text()
    assert "good: 1 account" in run(*relay_command(), "check", file).stdout
    again = subprocess.run(
        [*relay_command(), "init", "--username", "app", str(file)],
        input="other\n", capture_output=True, text=True, timeout=120, env=ENV, check=False,
    )  # fmt: skip
    assert again.returncode == 73
    assert "--force" in again.stderr
    assert secret.read_text() == "correct horse\n"


@pytest.mark.parametrize("name", ["CORP\\name", "CORP\\user", "jürgen@müller.example", 'a"b', r"\1 \g<0>"])
def test_init_writes_the_login_as_it_was_said(tmp_path: Path, name: str) -> None:
    file = tmp_path / "relay.yaml"
    done = subprocess.run(
        [*relay_command(), "init", "--username", name, "--no-unit", str(file)],
        input="sesame\n", capture_output=True, text=True, timeout=120, env=ENV, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    username = load(file).accounts["main"].username
    assert username is not None
    assert username.resolve() == name


def test_password_hash_is_one_that_the_configuration_takes(tmp_path: Path) -> None:
    done = subprocess.run(
        [*relay_command(), "password", "hash"],
        input="sesame\n",
        capture_output=True,
        text=True,
        timeout=60,
        env=ENV,
        check=True,
    )
    assert done.stdout.startswith('"$argon2id$') and "sesame" not in done.stdout
    file = tmp_path / "relay.yaml"
    file.write_text(
        "routes: [{via: main}]\naccounts: {main: {host: 127.0.0.1}}\n"
        f"users: {{shop: {{password_hash: {done.stdout.strip()}}}}}\nlisten: [{{address: '127.0.0.1:0', auth: required}}]\n"
    )
    run(*relay_command(), "check", file)


def relay_command() -> list[str]:
    return [sys.executable, "-m", "relay"]
