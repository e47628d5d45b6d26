"""No secret comes out anywhere: not in logs, metrics, status, explain, what is shown of a message, nor in the spool."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest
from fakes import Upstream
from rig import process, submit, write_config

SECRET = "canary-Pa55word"  # a made-up one
USER = "account@example.com"


def forms(secret: str) -> list[bytes]:
    """The secret as it is, and as SMTP's mechanisms write it."""
    raw = secret.encode()
    plain = b"\0" + USER.encode() + b"\0" + raw
    return [raw, base64.b64encode(raw), base64.b64encode(plain), repr(secret).encode()]


@pytest.mark.parametrize("format_", ["logfmt", "json"])
async def test_a_canary_is_found_nowhere(tmp_path: Path, format_: str) -> None:
    """The upstream quotes the password at the login, as it is and as it was sent."""
    quoted = b" ".join(forms(SECRET)[:3]).decode()
    script = {"AUTH": [f"535 5.7.8 <{quoted}> is wrong", f"454 4.7.0 {quoted}", f"535-{quoted}\r\n535 {quoted}"]}
    (tmp_path / "pw").write_text(SECRET + "\n")
    async with Upstream(script, login=(USER, "x")) as up:
        account = f"port: {up.port}, tls: none, username: {USER}, password: {{file: {tmp_path}/pw}}"
        file = write_config(tmp_path, {"main": account}, extra=f"log: {{format: {format_}}}")
        with process(file) as relay:
            (number,) = await submit(relay.port, [("a@example.com", ("b@example.net",), b"Subject: t\r\n\r\nx\r\n")])
            await asyncio.to_thread(relay.wait_for, lambda: "account_paused" in relay.log)
            said = [
                await asyncio.to_thread(relay.cli, *arguments)
                for arguments in (
                    ("status",), ("status", "--json"), ("queue", "show", number), ("queue", "show", number, "--json"),
                    ("queue", "list"), ("queue", "list", "--json"), ("queue", "stats"), ("queue", "stats", "--json"),
                    ("explain", "--from", "a@example.com", "--to", "b@example.net"), ("reload",),
                    ("explain", "--from", "a@example.com", "--to", "b@example.net", "--json"),
                    ("check", "--config", str(file), "--json"),
                )
            ]  # fmt: skip
            found = await asyncio.to_thread(_metrics, relay.socket)
            assert b"relay_account_login_failed" in found
            relay.signal()
            assert await asyncio.to_thread(relay.wait, 8) == 0
            everything = {"verbs": "\n".join(said).encode(), "log": relay.log.encode(), "metrics": found}
        for path in (tmp_path / "spool").rglob("*"):
            if path.is_file():
                everything[path.name] = path.read_bytes()
        assert up.logins and b"5.7.8" in everything["verbs"] and b"5.7.8" in everything["spool.db"]
        for where, text in everything.items():
            for form in forms(SECRET):
                assert form not in text, (where, form)


def _metrics(socket: Path) -> bytes:
    import http.client
    import socket as sockets

    connection = http.client.HTTPConnection("localhost")
    connection.sock = sockets.socket(sockets.AF_UNIX)
    connection.sock.connect(str(socket))
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read()
    finally:
        connection.close()
