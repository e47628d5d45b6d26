"""`relay explain` tells what would be done to a message before it leaves, and does nothing."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from fakes import Upstream
from rig import Rig, running, write_config
from test_signed_mail import FEEDBACK, MAIL, SIGNING, keys

ROUTES = (
    "  - {name: news, match: {header: {List-Id: '*'}}, via: [own, main], rewrite: {reverse_path: verp, remove: [X-Mailer]}}\n"
    "  - {name: rest, via: main}"
)


def config(folder: Path, up: Upstream) -> Path:
    keys(folder)
    accounts = {"main": f"port: {up.port}, tls: none", "own": f"port: {up.port}, tls: none, signs: true"}
    later = (
        "  - {domain: example.com, subdomains: true, selector: later, key: {file: s1.pem}, not_before: 2099-01-01}\n"
    )
    return write_config(folder, accounts, routes=ROUTES, extra=FEEDBACK + SIGNING + later)


async def explained(rig: Rig, *arguments: str, stdin: bytes = b"") -> str:
    command = [sys.executable, "-m", "relay", "explain", *arguments]
    env = {**os.environ, "RELAY_CONFIG": str(rig.app.config.source)}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=-1, stdout=-1, stderr=-1, env=env
    )  # fmt: skip
    out, err = await process.communicate(stdin)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_a_file_with_all_that_is_done_to_it(tmp_path: Path) -> None:
    mail = tmp_path / "mail.eml"
    mail.write_bytes((b"X-Mailer: x\nList-Id: <l.example.com>\n" + MAIL.replace(b"\r\n", b"\n")) + b"y" * 1200 + b"\n")
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        found: dict[str, Any] = json.loads(
            await explained(rig, "--file", str(mail), "--to", "you@example.net", "--json")
        )
        assert (found["route"], found["from"]) == ("news", "app@example.com")
        own, main = found["egresses"]
        assert own["upstream_signs"] and own["signatures"] == [] and own["alignment"] == "unknown"
        assert main["reverse_path"].endswith("@bounces.example.com")
        assert any("X-Mailer: removed" in c for c in main["changes"]) and any("->" in c for c in main["changes"])
        assert [(s["selector"], s["algorithm"], bool(s["waits"])) for s in main["signatures"]] == [
            ("s1", "rsa-sha256", False), ("e1", "ed25519-sha256", False), ("later", "rsa-sha256", True),
        ]  # fmt: skip
        assert main["alignment"] == "aligned_dkim" and main["error"] is None
        text = await explained(rig, "--file", "-", "--to", "you@example.net", stdin=mail.read_bytes())
        for line in (
            "signed by s1._domainkey.example.com",
            "does not sign: later._domainkey",
            "X-Mailer: removed",
            "DMARC: ",
        ):
            assert line in text
        assert "the account signs itself" in text
        assert not up.sessions and await rig.count() == 0 and rig.said("unaligned") == []


async def test_one_that_cannot_leave_and_one_that_nobody_signs(tmp_path: Path) -> None:
    signed = (
        b"From: app@example.com\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n"
        b"--b\r\n\r\n" + b"x" * 1200 + b"\r\n--b\r\n\r\nsig\r\n--b--\r\n"
    )
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        text = await explained(rig, "--file", "-", "--to", "you@example.net", stdin=signed)
        assert "it can't leave: 554 5.6.3" in text
        text = await explained(rig, "--from", "a@other.example", "--to", "you@example.net")
        assert "From other.example is signed by nobody" in text


async def test_a_message_that_would_be_refused(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        two = b"From: a@example.com\r\nFrom: b@example.com\r\n\r\nx\r\n"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "relay", "explain", "--file", "-", "--to", "x@example.net", stdin=-1, stdout=-1, stderr=-1,
            env={**os.environ, "RELAY_CONFIG": str(rig.app.config.source)},
        )  # fmt: skip
        _, err = await process.communicate(two)
        assert process.returncode != 0 and b"554 5.6.0" in err
