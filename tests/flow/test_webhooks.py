"""Events reach their endpoints: at least once, in order for each message, whatever the endpoints do."""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import ROOT, Spools, until
from hooked import SECRET, Hooks, crm, hooked, in_order, lines_of, note
from receiver import Events, Receiver, signed

from relay import clock
from relay.events import Wanted
from relay.secrets import Reference
from relay.settings import Endpoint
from relay.spool.sqlite import SqliteSpool
from relay.webhooks import line, words
from relay.webhooks.dispatch import Unknown


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first wait is a second, which is long for a test."""
    monkeypatch.setattr(words, "FIRST", 0.02)
    monkeypatch.setattr(line, "LOOK", 0.02)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


@pytest.fixture
async def spool(spools: Spools) -> SqliteSpool:
    return await spools.open(now=clock.now())


async def test_events_are_told_signed_and_in_order(spool: SqliteSpool, receiver: Receiver) -> None:
    await note(spool, 9)  # what was before it does not concern a new endpoint
    async with hooked(spool, crm(receiver, batch=10)) as hooks:
        ids = await note(spool, *range(1, 26))
        await until(lambda: receiver.ids == ids)
        await until(lambda: hooks.row()["cursor"] == ids[-1])
    assert max(len(call.events) for call in receiver.calls) <= 10
    for call in receiver.calls:
        stamp = call.headers["X-Relay-Timestamp"]
        assert call.headers["X-Relay-Signature"] == signed(SECRET, stamp, call.body)
        assert call.headers["User-Agent"].startswith("relay/") and call.headers["Content-Type"] == "application/json"
    assert len({call.headers["X-Relay-Delivery"] for call in receiver.calls}) == len(receiver.calls)
    assert receiver.taken[0].keys() == {"id", "at", "event", "queue_id", "k"}


async def test_a_new_endpoint_hears_of_the_first_message(spool: SqliteSpool, receiver: Receiver) -> None:
    """Mail is let in before the endpoints are at work."""
    await note(spool, 9)
    made = Hooks(spool, {"crm": crm(receiver)})
    await made.webhooks.begin()
    ids = await note(spool, 1)
    await made.start()
    await until(lambda: receiver.ids == ids)
    await made.stop()


async def test_two_secrets_sign_both(spool: SqliteSpool, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f"{SECRET}\n{SECRET[::-1]}\n")
    async with hooked(spool, crm(receiver, secret=Reference("file", str(file)))):
        await note(spool, 1)
        await until(lambda: receiver.taken)
    call = receiver.calls[0]
    stamp = call.headers["X-Relay-Timestamp"]
    both = [signed(secret, stamp, call.body) for secret in (SECRET, SECRET[::-1])]
    assert call.headers["X-Relay-Signature"] == ",".join(both)


async def test_only_what_is_wanted(spool: SqliteSpool, receiver: Receiver) -> None:
    async with hooked(spool, crm(receiver, wanted=Wanted(kinds=frozenset({"failed"})))) as hooks:
        await note(spool, 1, 2)
        failed = await note(spool, 3, kind="failed")
        after = await note(spool, 4)
        await until(lambda: receiver.ids == failed)
        await until(lambda: hooks.webhooks.lines["crm"].cursor == after[-1])


async def test_nothing_is_lost_on_a_receiver_that_fails_half_the_time(spool: SqliteSpool, receiver: Receiver) -> None:
    dice = random.Random(7)

    async def behave(events: Events) -> int:
        match dice.randrange(8):
            case 0:
                return 500
            case 1:
                return 503
            case 2:
                return 0  # cut off
            case 3:
                await asyncio.sleep(0.02)
                receiver.taken += events  # it took them, and nobody hears of it
                return 502
        return 200

    receiver.behave = behave
    async with hooked(spool, crm(receiver, batch=7)) as hooks:
        ids: list[int] = []
        for _ in range(20):
            ids += await note(spool, *(dice.randrange(1, 12) for _ in range(10)))
            await asyncio.sleep(0.01)
        await until(lambda: sorted(receiver.ids) == ids, 30)
        await until(lambda: hooks.row()["cursor"] == ids[-1] and not hooks.row()["waiting"])
    in_order(receiver.taken)  # one that failed alone by chance may come after those of other messages
    assert not hooks.said("webhook_dead")


async def test_a_batch_has_its_id_at_each_try(spool: SqliteSpool, receiver: Receiver) -> None:
    receiver.behave = lambda events: 503 if len(receiver.calls) < 3 else None
    async with hooked(spool, crm(receiver)):
        await note(spool, 1)
        await until(lambda: receiver.taken)
    assert len(receiver.calls) == 3 and len({call.headers["X-Relay-Delivery"] for call in receiver.calls}) == 1


async def test_who_is_down_is_told_of_once_and_gets_everything_later(spool: SqliteSpool, receiver: Receiver) -> None:
    await receiver.stop()
    async with hooked(spool, crm(receiver)) as hooks:
        ids = await note(spool, *range(1, 300))
        await until(lambda: hooks.row()["failures"] >= 4)
        assert hooks.row()["state"] == "failing" and hooks.row()["error"] == "it cannot be reached: Connection refused"
        await receiver.start()
        await until(lambda: receiver.ids == ids)
    assert len(hooks.said("webhook_failing")) == len(hooks.said("webhook_well")) == 1


async def test_a_slow_one_delays_nobody(spool: SqliteSpool, receiver: Receiver) -> None:
    async def hang(events: Events) -> int:
        await asyncio.sleep(30)
        return 200

    async with Receiver(behave=hang) as slow, hooked(spool, crm(receiver), crm(slow, name="slow")):
        ids = await note(spool, 1, 2, 3)
        await until(lambda: receiver.ids == ids, 20.0)


async def test_one_poison_event_waits_alone_and_its_message_behind_it(spool: SqliteSpool, receiver: Receiver) -> None:
    bad: set[int] = set()
    receiver.behave = lambda events: 422 if any(e["id"] in bad for e in events) else None
    async with hooked(spool, crm(receiver, batch=32, wait=0.2)) as hooks:
        ids = await note(spool, *[1, 2, 3, 2, 4, 5, 2, 6] * 4)
        poison = ids[9]  # of message 2
        bad.add(poison)
        later = [i for i, m in zip(ids, [1, 2, 3, 2, 4, 5, 2, 6] * 4, strict=True) if m == 2 and i >= poison]
        await until(lambda: set(receiver.ids) == set(ids) - set(later))
        await until(lambda: hooks.row()["waiting"] == 0 or hooks.webhooks.lines["crm"].waiting == len(later))
        more = await note(spool, 2, 9)
        await until(lambda: more[1] in receiver.ids)
        assert more[0] not in receiver.ids  # it goes behind
        assert hooks.row()["state"] == "well"
        bad.clear()
        await until(lambda: sorted(receiver.ids) == ids + more)
    in_order(receiver.taken)
    assert [fields["event_id"] for fields in hooks.said("webhook_refused")] == [poison]


@pytest.mark.parametrize("status", [500, 0, "hang", 400])
async def test_an_event_that_breaks_the_receiver_is_found(spool: SqliteSpool, receiver: Receiver, status: Any) -> None:
    """It answers 500, or nothing, to any batch with it in; all others get through, and it becomes a dead letter."""
    bad: set[int] = set()

    async def behave(events: Events) -> int:
        if any(e["id"] in bad for e in events):
            if status == "hang":
                await asyncio.sleep(5)
            return 500 if status == "hang" else status
        return 200

    receiver.behave = behave
    async with hooked(spool, crm(receiver, batch=16, wait=0.1, timeout=0.2, give_up=5.0)) as hooks:
        ids = await note(spool, *range(1, 41))
        bad.add(ids[21])
        await until(lambda: sorted(receiver.ids) == [i for i in ids if i not in bad], 20)
        await until(lambda: hooks.row()["dead"] == 1, 20)
        (letter,) = await hooks.webhooks.dead("crm", 0, 10)
        assert letter.event == ids[21] and letter.attempts >= 2 and json.loads(letter.body)["id"] == ids[21]
        # It is mended, and the dead letter goes out once more.
        bad.clear()
        assert await hooks.webhooks.replay("crm", dead=True, dry_run=True) == 1
        assert await hooks.webhooks.replay("crm", dead=True, dry_run=False) == 1
        await until(lambda: sorted(receiver.ids) == ids)
        await until(lambda: hooks.row()["dead"] == hooks.row()["waiting"] == 0)


async def test_who_refuses_everything_loses_nothing(spool: SqliteSpool, receiver: Receiver) -> None:
    """A receiver that was deployed broken answers 400 to all: its events are not parked one by one, they wait."""
    async with hooked(spool, crm(receiver, batch=8)) as hooks:
        await note(spool, 1)
        await until(lambda: receiver.taken)
        receiver.behave = lambda events: 400
        ids = await note(spool, *range(1, 50))
        await until(lambda: hooks.row()["failures"] >= 4, 20)
        assert hooks.webhooks.lines["crm"].waiting <= line.CREDIT
        receiver.behave = lambda events: None
        await until(lambda: sorted(receiver.ids)[1:] == ids, 20)
    in_order(receiver.taken)
    assert not hooks.said("webhook_dead")


async def test_what_is_not_taken_for_too_long_is_a_dead_letter(spool: SqliteSpool, receiver: Receiver) -> None:
    receiver.behave = lambda events: 503
    async with hooked(spool, crm(receiver, give_up=60.0)) as hooks:
        old = await note(spool, *range(1, 1200), at=clock.now() - 120)
        fresh = await note(spool, 5000)
        await until(lambda: hooks.row()["dead"] == len(old), 20)
        await until(lambda: hooks.webhooks.lines["crm"].cursor == old[-1])
        receiver.behave = lambda events: None
        await until(lambda: receiver.ids == fresh)
        assert await hooks.webhooks.replay("crm", dead=True, dry_run=False) == len(old)
        await until(lambda: sorted(receiver.ids) == old + fresh, 20)


async def test_dead_letters_are_bounded(
    spool: SqliteSpool, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "MOST_DEAD", 100)
    receiver.behave = lambda events: 503
    async with hooked(spool, crm(receiver, give_up=60.0)) as hooks:
        old = await note(spool, *range(1, 251), at=clock.now() - 120)
        await until(lambda: hooks.webhooks.lines["crm"].cursor == old[-1] and hooks.said("webhook_dropped"))
        kept = await hooks.webhooks.dead("crm", 0, 1000)
        assert [one.event for one in kept] == old[-100:]
        assert await hooks.webhooks.drop("crm", dry_run=False) == 100
        assert await hooks.webhooks.dead("crm", 0, 1000) == []


async def test_gone_is_gone(spool: SqliteSpool, receiver: Receiver) -> None:
    receiver.behave = lambda events: 410
    async with hooked(spool, crm(receiver)) as hooks:
        ids = await note(spool, 1, 2)
        ids += await note(spool, 3)
        await until(lambda: hooks.row()["state"] == "gone")
        await until(lambda: hooks.webhooks.lines["crm"].dead == 3)
        calls = len(receiver.calls)
        ids += await note(spool, 4)
        await until(lambda: hooks.webhooks.lines["crm"].dead == 4)
        assert len(receiver.calls) == calls  # nobody asks again
        assert len(hooks.said("webhook_gone")) == 1
        receiver.behave = lambda events: None
        assert await hooks.webhooks.replay("crm", dead=True, dry_run=False) == 4
        await until(lambda: sorted(receiver.ids) == ids)


async def test_retry_after_is_heard(spool: SqliteSpool, receiver: Receiver) -> None:
    receiver.behave = lambda events: web.Response(status=429, headers={"Retry-After": "3600"})
    async with hooked(spool, crm(receiver, cap=7200.0)) as hooks:
        await note(spool, 1)
        await until(lambda: hooks.row()["failures"] == 1)
        assert 3590 < hooks.webhooks.lines["crm"].until - clock.now() <= 3600
        receiver.behave = lambda events: None
        hooks.apply(crm=crm(receiver, cap=7200.0))  # a reload tries at once
        await until(lambda: receiver.taken)


async def test_an_answer_of_any_size_is_an_answer(spool: SqliteSpool, receiver: Receiver) -> None:
    receiver.behave = lambda events: web.Response(status=200, body=b"x" * 3_000_000)
    async with hooked(spool, crm(receiver)):
        ids = await note(spool, 1)
        await until(lambda: receiver.ids == ids)
        await asyncio.sleep(0.1)
    assert len(receiver.calls) == 1


async def test_it_goes_on_where_it_was(spool: SqliteSpool, receiver: Receiver) -> None:
    async with hooked(spool, crm(receiver)):
        ids = await note(spool, 1)
        await until(lambda: receiver.ids == ids)
    ids += await note(spool, 2, 3)  # while it is stopped
    async with hooked(spool, crm(receiver)):
        await until(lambda: receiver.ids == ids)
    assert len(receiver.taken) == 3


async def test_a_stop_waits_for_what_is_under_way(spool: SqliteSpool, receiver: Receiver) -> None:
    async def slowly(events: Events) -> int:
        await asyncio.sleep(0.5)
        return 200

    receiver.behave = slowly
    async with hooked(spool, crm(receiver)):
        ids = await note(spool, 1)
        await until(lambda: receiver.calls)
    assert receiver.ids == ids
    assert (await spool.cursors())["crm"] == ids[-1]


async def test_a_reload_changes_it_without_loss_or_double(spool: SqliteSpool, receiver: Receiver) -> None:
    async with Receiver() as other, hooked(spool, crm(receiver, batch=3)) as hooks:
        ids = await note(spool, *range(1, 30))
        await until(lambda: len(receiver.taken) >= 6)
        hooks.apply(crm=crm(other, batch=3))
        await until(lambda: len(receiver.taken) + len(other.taken) == len(ids))
        assert receiver.ids + other.ids == ids
        # One that is away for a while finds its place again.
        hooks.apply()
        await until(lambda: not hooks.webhooks.lines)
        ids += await note(spool, 77)
        hooks.apply(crm=crm(other))
        await until(lambda: receiver.ids + other.ids == ids)


async def test_who_left_is_forgotten_once_the_stream_has_lost_its_place(spool: SqliteSpool, receiver: Receiver) -> None:
    await note(spool, 0, at=1.0)
    async with hooked(spool, crm(receiver)):
        assert (await spool.cursors())["crm"] == 1
    await note(spool, 0, 0, at=1.0)
    async with hooked(spool) as hooks:
        await asyncio.sleep(0.05)
        assert "crm" in await spool.cursors() and not hooks.said("webhook_forgotten")
    await note(spool, 0)
    await spool.forget_feed(clock.now())
    async with hooked(spool) as hooks:
        await until(lambda: hooks.said("webhook_forgotten"))
        assert "crm" not in await spool.cursors()


async def test_the_stream_once_more(spool: SqliteSpool, receiver: Receiver) -> None:
    async with hooked(spool, crm(receiver)) as hooks:
        ids = await note(spool, *range(1, 20))
        await until(lambda: receiver.ids == ids)
        assert await hooks.webhooks.replay("crm", after=ids[9], dry_run=True) == 9
        assert len(receiver.taken) == 19
        assert await hooks.webhooks.replay("crm", after=ids[9], dry_run=False) == 9
        await until(lambda: [e["id"] for e in receiver.taken] == ids + ids[10:])
        assert await hooks.webhooks.replay("crm", since=0.0, dry_run=True) >= 19
        with pytest.raises(Unknown, match="there is crm"):
            await hooks.webhooks.replay("crn", dead=True, dry_run=False)


async def test_a_test_event(spool: SqliteSpool, receiver: Receiver) -> None:
    async with hooked(spool, crm(receiver)) as hooks:
        assert (await hooks.webhooks.test("crm"))["taken"]
        assert receiver.taken[0]["event"] == "test" and receiver.taken[0]["endpoint"] == "crm"
        receiver.behave = lambda events: web.Response(status=403, text=f"no, {SECRET}\nno")
        found = await hooks.webhooks.test("crm")
        assert not found["taken"] and found["why"] == "it answered 403: no, *** no"


async def test_the_address_is_guarded(spool: SqliteSpool, receiver: Receiver) -> None:
    url = Reference("plain", receiver.url.replace("http:", "https:"))
    async with hooked(spool, crm(receiver, url=url, allow_private=False)) as hooks:
        await note(spool, 1)
        await until(lambda: hooks.row()["failures"])
        assert "127.0.0.1, no address of the public network" in hooks.row()["error"]
    assert not receiver.calls


# -- files and commands


async def test_a_file_gets_lines_and_may_be_moved_away(spool: SqliteSpool, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    async with hooked(spool, Endpoint("log", file=file, cap=0.1)) as hooks:
        first = await note(spool, 1, 2)
        await until(lambda: lines_of(file) == first)
        file.rename(tmp_path / "old")
        second = await note(spool, 3)
        await until(lambda: lines_of(file) == second)
        with file.open("a") as out:
            out.write('{"torn": tr')  # what a crash left
        third = await note(spool, 4)
        await until(lambda: file.read_text().count("\n") == 3)
        assert json.loads(file.read_text().splitlines()[-1])["id"] == third[0]
        file.unlink()
        file.mkdir()
        fourth = await note(spool, 5)
        await until(lambda: hooks.row("log")["failures"])
        file.rmdir()
        await until(lambda: lines_of(file) == fourth)


COMMAND = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
(folder / "environment").write_text(json.dumps(dict(os.environ)))
lines = sys.stdin.read().splitlines()
mode = (folder / "mode").read_text()
if mode == "hang":
    os.system("sleep 100 &")
    time.sleep(100)
if mode != "0":
    print("no such thing\\nand more", file=sys.stderr)
    sys.exit(int(mode))
with (folder / "taken").open("a") as out:
    out.writelines(line + "\\n" for line in lines)
"""


async def test_a_command_reads_lines(spool: SqliteSpool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_PASSWORD", "hunter2")
    mode, taken = tmp_path / "mode", tmp_path / "taken"
    mode.write_text("75")
    command = (sys.executable, "-c", COMMAND, str(tmp_path))
    page = Endpoint("page", command=command, cap=0.1, timeout=60.0)
    async with hooked(spool, page) as hooks:
        ids = await note(spool, 1, 2)
        await until(lambda: hooks.row("page")["failures"])
        assert hooks.row("page")["error"] == "it ended with exit code 75: no such thing"
        mode.write_text("0")
        await until(lambda: lines_of(taken) == ids)
        assert "hunter2" not in (tmp_path / "environment").read_text()
        mode.write_text("hang")
        hooks.apply(page=replace(page, timeout=1.0))
        ids += await note(spool, 3)
        await until(lambda: hooks.row("page")["error"] == "it did not end within 1 s")
        hooks.apply(page=page)
        mode.write_text("0")
        await until(lambda: lines_of(taken) == ids)


async def test_a_command_that_is_not_there(spool: SqliteSpool) -> None:
    async with hooked(spool, Endpoint("page", command=("/nonexistent/page",), cap=0.1)) as hooks:
        await note(spool, 1)
        await until(lambda: hooks.row("page")["failures"])
        assert hooks.row("page")["error"] == "/nonexistent/page: No such file or directory"


async def test_the_verifier_of_the_documentation(spool: SqliteSpool, receiver: Receiver) -> None:
    page = (ROOT / "docs" / "webhooks.md").read_text()
    names: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", page, re.S)[0], names)
    async with hooked(spool, crm(receiver)):
        await note(spool, 1)
        await until(lambda: receiver.taken)
    call, genuine = receiver.calls[0], names["genuine"]
    assert genuine(call.headers, call.body, SECRET)
    assert not genuine(call.headers, call.body + b" ", SECRET)
    assert not genuine(call.headers, call.body, SECRET[::-1])
    assert not genuine({**call.headers, "X-Relay-Timestamp": "1700000000"}, call.body, SECRET)
    assert not genuine({**call.headers, "X-Relay-Timestamp": ""}, call.body, SECRET)
    both = f"v1={'0' * 64}, {call.headers['X-Relay-Signature']}"
    assert genuine({**call.headers, "X-Relay-Signature": both}, call.body, SECRET)
    assert not genuine({**call.headers, "X-Relay-Signature": "v1=ä,,"}, call.body, SECRET)
