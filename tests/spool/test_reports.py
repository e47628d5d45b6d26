"""Reports to senders in the transaction that makes the news: both are kept, or neither is."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import front
import pytest
from conftest import NOW, Spools
from making import DAY, assert_counts, claim, keys, message, put, rows, settled, states

from relay.envelope import parse_queue_id, queue_id
from relay.maillog import MailLog
from relay.notices import Reports
from relay.policy.classes import InDoubt
from relay.recipient import News, State, Verb
from relay.settings import Dsn
from relay.spool import INLINE_LIMIT, Claim, Notify, Settlement, SpoolError, Tell
from relay.spool.sqlite import SqliteSpool


async def opened(spools: Spools, dsn: Dsn | None = None) -> SqliteSpool:
    spool = await spools.open()
    spool.reporter = reporter(spool, dsn)
    return spool


def reporter(spool: SqliteSpool, dsn: Dsn | None = None) -> Reports:
    config = replace(front.config(spool.path.parent), dsn=dsn or Dsn())
    return Reports(lambda: config, spool.next_id, lambda: secrets.token_hex(16), MailLog(None))


def failing(claims: Iterable[Claim], news: News = News.FAILED) -> list[Settlement]:
    """Settlements that tell of every recipient."""
    state = {News.FAILED: State.FAILED, News.DELAYED: State.DEFERRED, News.RELAYED: State.DELIVERED}[news]
    claims = list(claims)
    made = settled(claims, state)
    for settlement, one in zip(made, claims, strict=True):
        settlement.tells = [Tell(one.message, r.n, news, NOW, True) for r in one.recipients]
    return made


async def told(spool: SqliteSpool) -> list[dict[str, Any]]:
    """The rows of reports."""
    return [row for row in await rows(spool) if row["report"]]


async def content(spool: SqliteSpool, row: dict[str, Any]) -> bytes:
    found = await spool.message(row["message"])
    assert found is not None
    body = await spool.read(row["message"], found["place"])
    assert isinstance(body, bytes)
    return bytes(found["head"]) + body


async def test_a_report_is_mail_like_other_mail(spools: Spools) -> None:
    spool = await opened(spools)
    number = await put(spool, "a@x.example", "b@x.example")
    await spool.record(failing(await claim(spool)))
    (row,) = await told(spool)
    assert (row["recipient"], row["sender"], row["state"], row["report"]) == ("app@example.com", "", "queued", 1)
    assert await states(spool) == ["failed", "failed", "queued"]
    await assert_counts(spool)
    assert spool.queued == 1
    # Announced, claimable, its body at hand.
    (found,) = await claim(spool)
    assert (found.sender, found.report, found.message) == ("", 1, row["message"])
    assert found.body is not None and b"a@x.example" in found.body and b"b@x.example" in found.body
    # Each story names the other.
    original, report = await spool.message(number), await spool.message(row["message"])
    assert original is not None and report is not None
    assert [e["report"] for e in original["events"] if e["kind"] == "reported"] == [row["queue_id"]]
    assert [e["message"] for e in report["events"] if e["kind"] == "report_on"] == [queue_id(number)]


async def test_the_scheduler_hears_of_its_lane(spools: Spools) -> None:
    spool = await opened(spools)
    await put(spool)
    claims = await claim(spool)
    await spool.wait(0)
    await spool.record(failing(claims))
    (head,) = await spool.wait(1)
    assert head.due_at == NOW and '"class"' in head.facts


async def test_a_report_that_cannot_be_stored_undoes_the_settlement(spools: Spools) -> None:
    spool = await opened(spools)
    await put(spool)
    settlements = failing(await claim(spool))
    await on_writer(
        spool, "CREATE TRIGGER no BEFORE INSERT ON message WHEN NEW.report BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    with pytest.raises(SpoolError):
        await spool.record(settlements)
    assert await states(spool) == ["active"]
    assert spool.counts[State.ACTIVE] == 1
    await on_writer(spool, "DROP TRIGGER no")
    await spool.record(settlements)  # as the recorder does it
    assert await states(spool) == ["failed", "queued"]
    await assert_counts(spool)


async def test_a_spool_that_takes_no_mail_takes_its_own_reports(spools: Spools) -> None:
    spool = await opened(spools)
    await put(spool)
    spool.max_queued = 1
    spool.check_room()
    assert spool.refusal
    await spool.record(failing(await claim(spool)))
    assert len(await told(spool)) == 1


async def test_one_report_a_message_for_a_whole_batch(spools: Spools) -> None:
    spool = await opened(spools)
    for n in range(300):
        await put(spool, f"r{n}@x.example", f"s{n}@x.example")
    await spool.record(failing(await claim(spool, 1000)))
    found = await told(spool)
    assert len(found) == 300
    assert len({row["message"] for row in found}) == 300
    await assert_counts(spool)


@pytest.mark.parametrize("notify", [Notify.NEVER, Notify.SUCCESS, Notify.DELAY])
async def test_who_wants_none_gets_none(spools: Spools, notify: Notify) -> None:
    spool = await opened(spools)
    await accept(spool, notify=notify)
    await spool.record(failing(await claim(spool)))
    assert await told(spool) == []


async def test_what_was_given_up_is_told_and_what_was_cancelled_is_not(spools: Spools) -> None:
    spool = await opened(spools)
    expired, cancelled = await put(spool, "a@x.example"), await put(spool, "b@x.example")
    assert await spool.change([(expired, 0)], Verb.EXPIRE, NOW, "expired") == 1
    assert await spool.change([(cancelled, 0)], Verb.CANCEL, NOW, "cancelled") == 1
    assert await spool.change([(expired, 0)], Verb.EXPIRE, NOW, "expired") == 0  # once
    (row,) = await told(spool)
    text = await content(spool, row)
    assert b"a@x.example" in text and b"Status: 4.4.7" in text and b"Last-Attempt-Date" not in text
    await assert_counts(spool)


@pytest.mark.parametrize(("rule", "count"), [(InDoubt.FAIL, 1), (InDoubt.HOLD, 0), (InDoubt.RETRY, 0)])
async def test_in_flight_at_a_crash(spools: Spools, rule: InDoubt, count: int) -> None:
    spool = await opened(spools)
    await put(spool)
    await claim(spool)
    await spools.close(spool)
    spool = await opened(spools)
    assert (await spool.recover({"default": rule}, NOW, 0.5))[0] == 1
    found = await told(spool)
    assert len(found) == count
    if found:
        text = await content(spool, found[0])
        assert b"may have been delivered all the same" in text and b"Status: 4.4.2" in text
    await assert_counts(spool)


async def test_refused_after_data_while_others_passed(spools: Spools) -> None:
    spool = await opened(spools)
    made = message(spool, "no@x.example", "yes@x.example")
    made.recipients[0].state, made.recipients[0].why = State.FAILED, "rejected: use the API"
    await spool.accept(made)
    (row,) = await told(spool)
    text = await content(spool, row)
    assert b"no@x.example" in text and b"yes@x.example" not in text
    assert b"use the API" in text and b"Status: 5.7.1" in text
    assert parse_queue_id(row["queue_id"]) != made.id
    await assert_counts(spool)


# -- delays


async def accept(
    spool: SqliteSpool,
    notify: int = 0,
    ret: str = "",
    body: bytes | Path = b"Hello\r\n",
    send_at: float = 0.0,
    **more: Any,
) -> int:
    made = message(spool, **more)
    made.body, made.ret, made.send_at = body, ret, send_at
    made.body_size = len(body) if isinstance(body, bytes) else body.stat().st_size
    for r in made.recipients:
        r.notify = notify
    await spool.accept(made)
    return made.id


async def test_a_delay_is_told_once(spools: Spools) -> None:
    spool = await opened(spools)
    number = await put(spool, "a@x.example", "b@x.example", due=NOW + DAY)
    assert await delays(spool, NOW - 1, NOW) == 0  # not old enough
    later = NOW + 4 * 3600
    assert await delays(spool, NOW, later) == 1
    assert await delays(spool, NOW, later) == 0
    (row,) = await told(spool)
    text = await content(spool, row)
    assert b"Action: delayed" in text and b"Will-Retry-Until" in text
    # Nor by an attempt that ends later, but of its failure.
    claims = [c for c in await claim(spool, now=NOW + DAY) if c.message == number]
    assert all(r.notify & Notify.TOLD for r in claims[0].recipients)
    await spool.record(failing(claims, News.DELAYED))
    assert len(await told(spool)) == 1
    await spool.record(failing([c for c in await claim(spool, now=NOW + DAY) if c.message == number]))
    assert len(await told(spool)) == 2


async def test_an_attempt_that_is_deferred_tells_of_the_delay(spools: Spools) -> None:
    spool = await opened(spools)
    await put(spool, at=NOW - DAY, due=NOW)
    await spool.record(failing(await claim(spool), News.DELAYED))
    assert len(await told(spool)) == 1
    assert await delays(spool, NOW, NOW) == 0


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ({}, 1),
        ({"notify": Notify.DELAY}, 1),
        ({"notify": Notify.FAILURE}, 0),
        ({"notify": Notify.NEVER}, 0),
        ({"state": State.HELD}, 0),
        ({"sender": ""}, 0),
        ({"send_at": NOW + 1}, 0),
        ({"at": NOW - 3 * 3600}, 0),
    ],
)
async def test_whose_delay_is_told(spools: Spools, more: dict[str, Any], count: int) -> None:
    spool = await opened(spools)
    await accept(spool, **({"at": NOW - DAY} | more))
    assert await delays(spool, NOW - 4 * 3600, NOW) == count
    assert await delays(spool, NOW - 4 * 3600, NOW) == 0


async def test_delays_in_slices(spools: Spools) -> None:
    spool = await opened(spools)
    for n in range(5):
        await put(spool, *(f"r{n}.{i}@x.example" for i in range(90)), at=NOW - DAY)
    # A message that a slice ends in may be told of in two reports; nobody is told twice.
    assert 5 <= await delays(spool, NOW, NOW) <= 8
    addresses = [line for row in await told(spool) for line in (await content(spool, row)).split(b"\r\n")]
    named = [line for line in addresses if line.startswith(b"Final-Recipient")]
    assert len(named) == len(set(named)) == 450


async def test_nobody_to_tell_ends(spools: Spools) -> None:
    spool = await opened(spools, Dsn(to="none"))
    await put(spool, at=NOW - DAY)
    assert await delays(spool, NOW, NOW) == 0
    spool.reporter = None
    await put(spool, at=NOW - DAY)
    assert await delays(spool, NOW, NOW) == 0


# -- what is quoted


@pytest.mark.parametrize("keep", ["none", "failed", "all"])
async def test_the_body_is_quoted_before_it_is_dropped(spools: Spools, keep: str) -> None:
    spool = await opened(spools)
    spool.keep_bodies = keep
    await accept(spool, ret="FULL", body=b"the whole text\r\n")
    await spool.record(failing(await claim(spool)))
    (row,) = await told(spool)
    assert b"the whole text" in await content(spool, row)


async def test_a_large_body_is_not(spools: Spools) -> None:
    spool = await opened(spools)
    number = spool.next_id()
    staged = spool.stage(number)
    await staged.write(b"large" * (INLINE_LIMIT // 4))
    await staged.finish()
    await accept(spool, ret="FULL", body=staged.path)
    await accept(spool, ret="FULL", body=b"large" * 10_001)
    await spool.record(failing(await claim(spool)))
    for row in await told(spool):
        text = await content(spool, row)
        assert b"it is too large" in text and b"largelarge" not in text


async def test_expired_ones_are_told_in_full_too(spools: Spools) -> None:
    spool = await opened(spools)
    await accept(spool, ret="FULL", body=b"the whole text\r\n")
    await spool.change(keys(await rows(spool)), Verb.EXPIRE, NOW, "expired")
    (row,) = await told(spool)
    assert b"the whole text" in await content(spool, row)


# -- no loop


async def test_a_message_without_a_sender_makes_none(spools: Spools) -> None:
    spool = await opened(spools)
    number = await put(spool, sender="")
    await spool.record(failing(await claim(spool)))
    assert await told(spool) == []
    found = await spool.message(number)
    assert found is not None
    assert [e["why"] for e in found["events"] if e["kind"] == "not_reported"] == [
        "no report: the message has no sender"
    ]


async def test_reports_that_fail_end_at_the_postmaster(spools: Spools) -> None:
    spool = await opened(spools, Dsn(postmaster="pm@example.com"))
    await put(spool)
    for count in (1, 2, 2, 2):
        await spool.record(failing(await claim(spool)))
        found = await told(spool)
        assert len(found) == count
    assert [(r["report"], r["recipient"]) for r in found] == [(1, "app@example.com"), (2, "pm@example.com")]
    assert spool.queued == 0


async def delays(spool: SqliteSpool, before: float, now: float) -> int:
    """All slices; how many reports came of them."""
    count, after = len(await told(spool)), await spool.tell_delays(before, now)
    while after is not None:
        after = await spool.tell_delays(before, now, after)
    return len(await told(spool)) - count


async def on_writer(spool: SqliteSpool, sql: str) -> None:
    def run(connection: sqlite3.Connection) -> None:
        connection.execute(sql)

    await spool._writer._connection.call(run)
