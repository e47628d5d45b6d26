"""A disk that is full: 452 and never a false 250, deliveries go on, and mail is taken again once there is room."""

from __future__ import annotations

import asyncio
import contextlib
import json
import smtplib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import Upstream
from service.storm import CLASSES
from service.support import ENV, Relay, config_text, find, until

SIZE, RESERVE = "64m", "16MB"
HOLD = 'routes:\n  - {name: kept, match: {recipient: "*@kept.example"}, hold: true}\n'


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[tuple[tuple[str, ...], Path]]:
    """A tmpfs in a mount namespace of its own: (the command that enters it, the disk as seen from here)."""
    folder.mkdir()
    if not (find("unshare") and find("nsenter")):
        pytest.skip("unshare or nsenter is missing: apt-get install util-linux")
    script = f"mount -t tmpfs -o size={SIZE},mode=700 tmpfs {folder} && echo mounted && exec cat"
    holder = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None and holder.stderr is not None
        if holder.stdout.readline() != b"mounted\n":
            pytest.skip(f"no small disk can be mounted here: {holder.stderr.read().decode().strip()}")
        enter = ("nsenter", "--preserve-credentials", "-U", "-m", "-t", str(holder.pid))
        try:
            yield enter, Path(f"/proc/{holder.pid}/root{folder}")
        finally:
            holder.kill()


def send(port: int, to: str, size: int = 150_000) -> str:
    """ "" where it was taken, else what was said."""
    line = b"x" * 70 + b"\r\n"
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=60) as smtp:
            smtp.sendmail("app@example.com", [to], b"Subject: x\r\n\r\n" + line * (size // len(line)))
    except smtplib.SMTPSenderRefused as error:
        return f"{error.smtp_code} {error.smtp_error!r}"
    except smtplib.SMTPDataError as error:
        return f"{error.smtp_code} {error.smtp_error!r}"
    return ""


def fill(port: int) -> int:
    """Held mail of both kinds, in rows and in files, until it is refused; how many were taken."""
    for taken in range(1000):
        if said := send(port, "user@kept.example", (150_000, 400_000)[taken % 2]):
            assert said.startswith("452 ")
            return taken
    raise AssertionError("never refused")


async def test_a_full_disk(tmp_path: Path) -> None:
    well = False
    wait = asyncio.to_thread
    async with Upstream({"DOT": lambda _: "250 2.0.0 kept" if well else "451 4.3.0 not now"}) as upstream:
        with small_disk(tmp_path / "disk") as (enter, disk):
            text = config_text(tmp_path, upstream.port, spool=tmp_path / "disk/spool", extra=CLASSES)
            text = text.replace("reserve: 1MB", f"reserve: {RESERVE}").replace("routes:\n", HOLD)
            (tmp_path / "relay.yaml").write_text(text)
            with Relay(tmp_path / "relay.yaml", env=ENV, prefix=enter) as relay:
                (disk / "first").write_bytes(b"x" * (24 << 20))
                for _ in range(20):
                    assert await wait(send, relay.port, "user@example.com", 1000) == ""
                kept = await wait(fill, relay.port)
                assert kept > 20
                # Below the reserve: what is to leave leaves, and is recorded.
                well = True
                await wait(until, lambda: len(relay.lines("delivered")) == 20, 60, "deliveries go on")
                assert await wait(send, relay.port, "user@example.com", 1000)

                # And to the last byte: nothing is taken, nothing breaks.
                with pytest.raises(OSError, match="space"):
                    (disk / "ballast").write_bytes(b"x" * (64 << 20))
                for _ in range(20):
                    assert (await wait(send, relay.port, "user@example.com", 1000)).startswith("452 ")
                await wait(until, lambda: relay.lines("not_accepting"))  # told once a second

                (disk / "ballast").unlink()
                (disk / "first").unlink()
                await wait(until, lambda: not send(relay.port, "user@example.com", 1000), 30, "mail is taken again")
                await wait(until, lambda: relay.lines("accepting_again"))

                # All that was answered 250 is there, and nothing else.
                await wait(relay.kill)
                await wait(relay.start)
                await wait(until, lambda: len(upstream.done) >= 21, 60, "what was taken last is delivered")
                assert json.loads(await wait(relay.cli, "status", "--json"))["held"] == kept
                assert json.loads(await wait(relay.cli, "spool", "check", "--json"))["ok"]
                assert "Traceback" not in relay.log_file.read_text()
                assert await wait(relay.stop) == 0
