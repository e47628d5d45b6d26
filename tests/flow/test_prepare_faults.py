"""What goes wrong while a message is made ready to leave: nothing is left behind, and nobody else suffers from it."""

from __future__ import annotations

from pathlib import Path

from fakes import Upstream
from rig import running, write_config
from signatures import signed

from relay.signing.keys import generate

BODY = b"x" * 2000 + b"\r\n" + b"y\r\n" * 200_000
ARC = "arc: {domain: example.com, selector: s, key: {file: arc.pem}, routes: all}\n"


async def test_a_large_message_that_waits_for_the_dns_leaves_no_file(tmp_path: Path) -> None:
    """It was re-encoded into a file, and then could not be sealed."""
    key = generate("rsa")
    (tmp_path / "arc.pem").write_text(key.pem())
    (tmp_path / "arc.pem").chmod(0o600)
    dns = "dns: {servers: ['127.0.0.1:1'], timeout: 200ms}\n"
    later = "  default: {retry: {schedule: [1h], give_up: 1d}}"
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, extra=ARC + dns, classes=later)
        async with running(file) as rig:
            number = await rig.send(message=signed(key, body=BODY) + b"\r\n" + BODY)
            row = await rig.tried(number)
            assert row["state"] == "deferred" and "DNS" in row["last_reply"], row
            assert [p.name for p in (tmp_path / "spool" / "content").iterdir()] == [number]
            assert not up.transactions
