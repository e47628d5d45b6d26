"""Webhooks of the real process: mail in, events out, a receiver that fails half the time, kill -9 between; and the verbs."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fakes import Upstream
from receiver import Events, Receiver, signed
from rig import Process, process, running, submit, until, write_config

SECRET = "0123456789abcdef0123456789abcdef"
TEXT = b"From: app@example.com\r\nX-Relay-Tag: order-1\r\nSubject: t\r\n\r\nhello\r\n"


def config(folder: Path, up: Upstream, receiver: Receiver, port: int = 0, more: str = "") -> Path:
    (folder / "secret").write_text(SECRET)
    hook = f"""webhooks:
  crm:
    url: {receiver.url}
    secret: {{file: secret}}
    allow_private: true
    cap: 200ms
    timeout: 20s
    batch: 5
    events: [accepted, delivered]
    {more}
"""
    return write_config(folder, {"main": f"port: {up.port}, tls: none"}, extra=hook, port=port)


async def ended(condition: Callable[[], Any], deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def test_nothing_is_lost_over_kills(tmp_path: Path) -> None:
    dice = random.Random(3)

    async def behave(events: Events) -> int:
        await asyncio.sleep(0.02)
        said = dice.choice([200, 200, 200, 500, 503, 0])
        if not said and dice.random() < 0.5:
            receiver.taken += events  # taken, and it does not come to know that
        return said

    sent: list[str] = []
    async with Upstream() as up, Receiver(behave) as receiver:
        file = config(tmp_path, up, receiver)
        for _ in range(3):
            relay = Process(file)
            await asyncio.to_thread(relay.ready)
            sent += await submit(relay.port, [("app@example.com", ("you@example.net",), TEXT)] * 25)
            await asyncio.sleep(dice.random() / 2)
            relay.popen.kill()
            await asyncio.to_thread(relay.popen.wait)
            relay.close()
        with process(file) as relay:
            wanted = {(number, kind) for number in sent for kind in ("accepted", "delivered")}
            await ended(lambda: wanted <= {(e["queue_id"], e["event"]) for e in receiver.taken}, 120)
            await asyncio.to_thread(relay.cli, "webhooks", "list")
    for call in receiver.calls:
        stamp = call.headers["X-Relay-Timestamp"]
        assert call.headers["X-Relay-Signature"] == signed(SECRET, stamp, call.body)
    told: dict[int, Any] = {}
    for event in receiver.taken:
        assert told.setdefault(event["id"], event) == event  # what comes twice is the same
    for number in sent:
        kinds = [told[id_]["event"] for id_ in receiver.of(number)]
        assert kinds[0] == "accepted" and "delivered" in kinds


async def test_the_verbs(tmp_path: Path) -> None:
    async with Upstream() as up, Receiver() as receiver:
        file = config(tmp_path, up, receiver, more="give_up: 500ms\n    match: {tag: order-*}")
        with process(file) as relay:

            async def cli(*arguments: str, code: int = 0) -> str:
                return await asyncio.to_thread(lambda: relay.cli("webhooks", *arguments, code=code))

            assert "crm took it" in await cli("test", "crm")
            receiver.taken.clear()
            receiver.behave = lambda events: 503
            failed = await asyncio.to_thread(relay.call, "webhooks", "test", "crm")
            assert failed.returncode == 69 and "crm did not take it: it answered 503" in failed.stderr
            (number,) = await submit(relay.port, [("app@example.com", ("you@example.net",), TEXT)])

            async def row() -> Any:
                return json.loads(await cli("list", "--json"))[0]

            while (await row())["dead"] < 2:  # noqa: ASYNC110 - of another process
                await asyncio.sleep(0.2)
            found = await row()
            assert found["state"] == "failing" and found["error"] == "it answered 503" and found["endpoint"] == "crm"
            letters = json.loads(await cli("dead", "crm", "--json"))
            assert [one["event"]["event"] for one in letters] == ["accepted", "delivered"]
            assert {one["event"]["queue_id"] for one in letters} == {number}
            status = await asyncio.to_thread(relay.cli, "status")
            assert "webhook      crm: failing, 2 dead (relay webhooks list): it answered 503\n" in status
            assert (await asyncio.to_thread(relay.json, "status"))["webhooks"][0]["state"] == "failing"
            assert len((await cli("dead", "crm", "--limit", "1")).splitlines()) == 1
            receiver.behave = lambda events: None
            asked = await asyncio.to_thread(relay.call, "webhooks", "replay", "crm", "--dead")
            assert asked.returncode == 64 and "replay would hand over once more 2 events; say --yes" in asked.stderr
            assert await cli("replay", "crm", "--dead", "--yes") == "replay: 2 events\n"
            await ended(lambda: len(receiver.ids) == 2)
            assert "up to" in await cli("replay", "crm", "--since", "1h", "--yes")
            await ended(lambda: len(receiver.taken) == 4)
            assert await cli("drop", "crm", "--yes") == "drop: 0 events\n"
            await cli("replay", "crm", "--dead", "--after", "3", code=64)
            await cli("replay", "crm", "--since", "yesterday", code=64)
            await cli("dead", "crn", code=65)
            # A reload: what is meant is told, and the others go on.
            file.write_text(file.read_text().replace("delivered]", "deliverd]"))
            refused = await asyncio.to_thread(relay.call, "reload")
            assert refused.returncode == 78 and "did you mean 'delivered'?" in refused.stderr + refused.stdout
    assert SECRET not in relay.log


async def test_a_webhook_comes_and_goes_by_a_reload(tmp_path: Path) -> None:
    async with Upstream() as up, Receiver() as receiver:
        file = config(tmp_path, up, receiver)
        text = file.read_text()
        file.write_text(text[: text.index("webhooks:")])
        async with running(file) as rig:
            await rig.reaches(await rig.send(), "delivered")
            file.write_text(text)
            assert rig.app.reload()[0]
            await until(lambda: rig.app.webhooks.lines)
            number = await rig.send()
            await until(lambda: len(receiver.of(number)) == 2)
            assert {event["queue_id"] for event in receiver.taken} == {number}
            file.write_text(text[: text.index("webhooks:")])
            assert rig.app.reload()[0]
            await rig.reaches(await rig.send(), "delivered")
            await until(lambda: not rig.app.webhooks.lines)
        assert len(receiver.taken) == 2
