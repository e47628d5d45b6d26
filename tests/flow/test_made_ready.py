"""Mail is made ready while it waits for a session: for the egress and by the configuration that it then leaves by."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dkim
from fakes import Later, Upstream
from rig import Rig, running, until, write_config

from relay.deliver.smtp import Failure
from relay.reply import Reply, Stage, classify
from relay.signing.keys import generate

OLD, NEW = generate("rsa", 1024), generate("rsa", 1024)
MAIL = b"From: app@example.com\r\nTo: you@example.net\r\nSubject: hello\r\n\r\nhello\r\n"
UNCONVERTIBLE = (
    b"From: app@example.com\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n--b\r\n\r\n\xc3\xa4\r\n--b\r\n"
)
SIGNING = "signing:\n  - {domain: example.com, selector: %s, key: {file: %s.pem}}\n"


def config(folder: Path, up: Upstream, selector: str = "old", *, other: str = "") -> Path:
    for name, key in (("old", OLD), ("new", NEW)):
        (folder / f"{name}.pem").write_text(key.pem())
        (folder / f"{name}.pem").chmod(0o600)
    accounts = {"main": f"port: {up.port}, tls: none, connections: 1"} | ({"other": other} if other else {})
    return write_config(folder, accounts, extra=SIGNING % (selector, selector))


def signed_by(message: bytes) -> list[bytes]:
    """Selectors of the signatures that are good."""
    records = {b"old._domainkey.example.com.": OLD.record, b"new._domainkey.example.com.": NEW.record}
    made = dkim.DKIM(message)
    good = [
        made.verify(n, dnsfunc=lambda name, timeout=5: records[name].encode()) for n in range(message.count(b"DKIM-S"))
    ]
    return [made.signature_fields[b"s"]] if good and all(good) else []


@asynccontextmanager
async def one_waits(file: Path, up: Upstream, gate: asyncio.Event) -> AsyncIterator[tuple[Rig, Any]]:
    """The only session is at a dot that is not answered before `gate`; a message waits, and is ready."""
    async with running(file) as rig:
        await rig.send(message=MAIL)
        await until(lambda: any(t.wire for t in up.transactions))
        await rig.send(message=MAIL)
        await until(lambda: [w for w in rig.egress().backlog if w.begun and w.begun.done()])
        yield rig, rig.egress().backlog[0]
        gate.set()
        await rig.settled()


async def test_a_session_waits_for_no_signature(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with Upstream({"DOT": [Later(0, "250 ok", gate), "250 ok"]}) as up:
        async with one_waits(config(tmp_path, up), up, gate) as (_, work):
            ready = work.begun.result()
            assert ready.signed == ("old._domainkey.example.com",)
        assert [signed_by(t.message) for t in up.done] == [[b"old"], [b"old"]]
        assert up.done[1].message.startswith(ready.head)


async def test_a_reload_holds_for_what_is_ready_already(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with Upstream({"DOT": [Later(0, "250 ok", gate), "250 ok"]}) as up:
        async with one_waits(config(tmp_path, up), up, gate) as (rig, _):
            config(tmp_path, up, "new")
            assert rig.app.reload()[0]
        assert [signed_by(t.message) for t in up.done] == [[b"old"], [b"new"]]


async def test_what_is_ready_for_one_account_does_not_leave_by_another(tmp_path: Path) -> None:
    """The next hop is lost while it waits; the other account's server signs itself."""
    gate = asyncio.Event()
    async with Upstream({"DOT": Later(0, "250 ok", gate)}) as up, Upstream() as second:
        file = config(tmp_path, up, other=f"port: {second.port}, tls: none, signs: true")
        async with one_waits(file, up, gate) as (rig, work):
            refused = Failure(Stage.AUTH, Reply(535, "no"))
            trouble = classify(refused.stage, refused.reply.code)
            rig.app.scheduler.carriers.blame._next_hop(rig.egress(), refused, trouble, auth=True)
            assert work.begun is None
            await until(lambda: second.done)
        assert b"DKIM-Signature" not in second.done[0].message


async def test_what_cant_be_made_for_seven_bits_waits_for_what_the_next_hop_says(tmp_path: Path) -> None:
    """While it waits another session's EHLO says that eight are taken."""
    gate = asyncio.Event()
    async with Upstream({"DOT": [Later(0, "250 ok", gate), "250 ok"]}) as up, running(config(tmp_path, up)) as rig:
        await rig.send(message=MAIL)
        await until(lambda: any(t.wire for t in up.transactions))
        rig.egress().seven_bit = True
        number = await rig.send(message=UNCONVERTIBLE)
        await until(lambda: [w for w in rig.egress().backlog if w.begun and w.begun.done()])
        rig.egress().seven_bit = False
        gate.set()
        row = await rig.reaches(number, "delivered", "failed")
        assert row["state"] == "delivered", row


async def test_what_is_ready_for_nobody_leaves_nothing_behind(tmp_path: Path) -> None:
    """It waits for a session, can't leave as it is, and the relay stops."""
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    gate = asyncio.Event()
    async with Upstream({"DOT": Later(0, "250 ok", gate)}) as up, running(config(tmp_path, up)) as rig:
        await rig.send(message=MAIL)
        await until(lambda: any(t.wire for t in up.transactions))
        rig.egress().seven_bit = True
        await rig.send(message=UNCONVERTIBLE)
        await until(lambda: [w for w in rig.egress().backlog if w.begun and w.begun.done()])
        assert "CannotLeave" in repr(rig.egress().backlog[0].begun)  # to ask it would be to have looked
        stopped = asyncio.create_task(rig.app.stop())
        await until(lambda: not rig.egress().backlog)
        gate.set()
        await stopped
    gc.collect()
    assert errors == []
