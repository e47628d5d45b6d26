"""`relay sink` as a process: what it shows, how it ends; and the examples of docs/sink.md, run as they stand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority, authority
from conftest import free_port

__all__ = ["authority"]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "sink.md").read_text()
ENV = {k: v for k, v in os.environ.items() if not k.startswith("RELAY_")} | {"PYTHONPATH": str(ROOT)}
TEXT = b"Message-ID: <%d@x.example>\r\nSubject: gr\xc3\xbc\xc3\x9fe\r\n\r\nhello\r\n"


class Running:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.first = process.stdout.readline()
        self.port = int(re.findall(r"127\.0\.0\.1:(\d+)", self.first)[0])

    def send(self, count: int, login: str = "") -> list[int]:
        """The codes that were heard."""
        codes = []
        with smtplib.SMTP("127.0.0.1", self.port) as smtp:
            if login:
                smtp.login(login, "secret")
            for number in range(count):
                try:
                    smtp.sendmail("app@example.com", ["you@example.net"], TEXT % number)
                    codes.append(250)
                except smtplib.SMTPResponseException as error:
                    codes.append(error.smtp_code)
        return codes

    def end(self) -> tuple[int, str]:
        said, _ = self.process.communicate(timeout=120)
        return self.process.returncode, said


@contextlib.contextmanager
def sink(folder: Path, *options: object) -> Iterator[Running]:
    command = [sys.executable, "-m", "relay", "sink", "--listen", "127.0.0.1:0", "--keep", "kept", *map(str, options)]
    with subprocess.Popen(command, cwd=folder, env=ENV, text=True, stdout=subprocess.PIPE) as process:
        try:
            yield Running(process)
        finally:
            process.kill()


def refused(folder: Path, *options: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "relay", "sink", "--listen", "127.0.0.1:0", *map(str, options)]
    done = subprocess.run(command, cwd=folder, env=ENV, text=True, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stderr


def events(said: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in said.splitlines()]


def test_it_ends_with_the_count_and_sums_up(tmp_path: Path) -> None:
    with sink(tmp_path, "--profile", "ses", "--count", 14) as running:
        assert f"keeps mail in {tmp_path}/kept; stop it with Ctrl-C" in running.first
        running.send(14, "AKIA")
        code, said = running.end()
    assert code == 0
    assert len(list((tmp_path / "kept").glob("*.eml"))) == 14
    lines = said.splitlines()
    assert re.fullmatch(r"\w{11}  <app@example.com> -> you@example.net  \d+ bytes  'grüße'  kept/\w{11}\.eml", lines[0])
    assert "kept 14 messages with 14 different Message-IDs" in said
    assert "0 doubled; 1 connection, 1 at once at most, 0 dropped" in said
    assert re.search(r"^rate \(14/s recipients\)\tall\t14/s\t14\t14\t0\t0\.0\t[0-9.]+$", said, re.MULTILINE)


def test_json_has_each_event_and_the_summary(tmp_path: Path) -> None:
    with sink(tmp_path, "--profile", "ses", "--json", "--speed", "0.001") as running:
        assert json.loads(running.first)["event"] == "listening"
        assert running.send(20, "AKIA") == [250] * 14 + [454] * 6
        running.process.terminate()
        code, said = running.end()
    assert code == 0
    *found, summary = events(said)
    assert [e["event"] for e in found] == ["kept"] * 14 + ["throttled"] * 6
    assert {"id", "path", "sender", "recipients", "subject", "size", "message_id", "account"} <= found[0].keys()
    assert (found[-1]["account"], found[-1]["recipients"]) == ("AKIA", ["you@example.net"])
    assert (summary["event"], summary["kept"], summary["message_ids"], summary["doubled"]) == ("summary", 14, 14, [])
    (reply,) = summary["replies"]
    assert reply == {
        "reply": "454 Throttling failure: Maximum sending rate exceeded.",
        "count": 6,
        "share": 0.3,
        "after_minute": 0,
        "share_after_minute": 0.0,
    }
    assert [b["rate"] for b in summary["buckets"]] == [0.014, 0.001]
    assert summary["buckets"][0]["refused"] == 6


def test_a_count_that_is_not_reached(tmp_path: Path) -> None:
    with sink(tmp_path, "--count", 2, "--timeout", 8, "--json") as running:
        running.send(1)
        code, said = running.end()
    assert code == 75
    assert events(said)[-1]["kept"] == 1


def test_a_timeout_alone_is_no_failure(tmp_path: Path) -> None:
    with sink(tmp_path, "--timeout", "0.3") as running:
        assert running.end()[0] == 0


def test_logins_scripts_and_tls_together(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "password").write_text("secret\n")
    (tmp_path / "script.yaml").write_text("profile: gmail\nrules: [{at: mail, times: 1, reply: 451 4.3.0 later}]")
    options = ["--script", "script.yaml", "--user", "shop", "--password-file", "password", "--tls", "starttls"]
    tls = ["--tls-certificate", authority.certificate, "--tls-key", authority.key]
    with sink(tmp_path, *options, *tls, "--json") as running, smtplib.SMTP("127.0.0.1", running.port) as smtp:
        smtp.starttls(context=authority.client())
        with pytest.raises(smtplib.SMTPAuthenticationError):
            smtp.login("books", "secret")
        smtp.login("shop", "secret")
        with pytest.raises(smtplib.SMTPSenderRefused):
            smtp.sendmail("app@example.com", ["you@example.net"], TEXT % 1)
        smtp.sendmail("app@example.com", ["you@example.net"], TEXT % 1)
    assert len(list((tmp_path / "kept").glob("*.eml"))) == 1


def test_mistakes_are_told(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "script.yaml").write_text("rules:\n- {at: noon, reply: 451 no}\n")
    code, said = refused(tmp_path, "--script", "script.yaml")
    assert code == 78
    assert "script.yaml:2:8: rules[1].at: expected one of connect, ehlo" in said
    assert refused(tmp_path, "--script", "script.yaml", "--profile", "ses")[0] == 64
    assert refused(tmp_path, "--profile", "yahoo")[0] == 64
    assert refused(tmp_path, "--tls", "implicit")[0] == 64
    assert refused(tmp_path, "--tls-certificate", authority.certificate)[0] == 64
    code, said = refused(tmp_path, "--tls", "implicit", "--tls-certificate", "script.yaml")
    assert code == 78
    assert "script.yaml can't be used" in said


# -- docs/sink.md


def block(language: str, holds: str = "") -> str:
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holds in text)


def test_the_shell_example(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "relay"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m relay "$@"\n')
    program.chmod(0o755)
    script = block("sh").replace("2526", str(free_port()))
    env = ENV | {"PATH": f"{program.parent}:{ENV['PATH']}"}
    done = subprocess.run(
        ["bash", "-eu", "-o", "pipefail", "-c", script],
        cwd=tmp_path,
        env=env,
        text=True,
        capture_output=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^kept/\w+\.eml$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("holds", ["test_a_burst_is_cut_off", "test_throttled"])
def test_the_python_examples(tmp_path: Path, holds: str) -> None:
    (tmp_path / "test_example.py").write_text(block("python", holds))
    # Each plugin that is installed would be loaded, which takes seconds; and should it hang, it tells where.
    options = ["-q", "-p", "pytest_asyncio.plugin", "-p", "no:cacheprovider", "-o", "asyncio_mode=auto"]
    options += ["-o", "faulthandler_timeout=60", "--rootdir", str(tmp_path)]
    command = [sys.executable, "-m", "pytest", *options, "test_example.py"]
    env = ENV | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_the_script_example(tmp_path: Path) -> None:
    (tmp_path / "script.yaml").write_text(block("yaml"))
    with sink(tmp_path, "--script", "script.yaml", "--json") as running:
        with smtplib.SMTP("127.0.0.1", running.port) as smtp:
            smtp.login("AKIA", "secret")
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                smtp.sendmail("app@example.com", ["nobody@example.net"], TEXT % 1)
        for _ in range(2):
            with contextlib.suppress(smtplib.SMTPServerDisconnected):
                running.send(1, "AKIA")
        running.process.terminate()
        *_, summary = events(running.end()[1])
    assert (summary["kept"], summary["dropped"], len(summary["doubled"])) == (2, 1, 1)
    assert summary["buckets"][0]["rate"] == 1.0
