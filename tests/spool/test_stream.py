"""The stream of events: in order, whole, and with ids that are never given twice. What a report teaches is all or nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from conftest import Spools
from making import DAY, NOW, claim, put, settled

from relay import clock
from relay.events import Row
from relay.policy.suppression import Suppression, Why
from relay.recipient import State
from relay.spool import Event, SpoolError, opening, stream
from relay.spool.feed import Learnt, SuppressionFilter
from relay.spool.salvage import salvage
from relay.spool.sqlite import SqliteSpool
from relay.spool.writer import COMMITS


def told(at: float = NOW, kind: str = "paused", message: int = 0, **data: object) -> Event:
    return Event(at, message, None, kind, data=data)


def listed(address: str = "a@example.net", **more: object) -> Suppression:
    known = {"scope": "", "why": Why.HARD_BOUNCE, "evidence": "550 5.1.1", "source": "bounce", "at": NOW, "until": 0.0}
    return Suppression(address=address, **(known | more))  # type: ignore[arg-type]


async def everything(spool: SqliteSpool, limit: int = 500, after: int = 0) -> list[Row]:
    found: list[Row] = []
    while rows := await spool.events(after, limit):
        found += rows
        after = rows[-1].id
    return found


async def test_an_event_comes_with_what_is_known_of_its_message(spools: Spools) -> None:
    spool = await spools.open()
    one = await put(spool, "One@example.net", user="shop", tag="spring", class_="bulk")
    two = await put(spool, "b@example.net", "c@example.net")
    await spool.record(settled(await claim(spool), State.DELIVERED))
    await spool.note(
        [told(state="x"), told(NOW, "bounced", 77), told(NOW, "reported", one), told(NOW, "reported", two)]
    )
    rows = await everything(spool)
    assert [(r.kind, r.message, r.n, r.recipient, r.recipients) for r in rows] == [
        ("accepted", one, None, "One@example.net", ("One@example.net",)),
        ("accepted", two, None, "", ("b@example.net", "c@example.net")),
        ("delivered", one, 0, "One@example.net", ()),
        ("delivered", two, 0, "b@example.net", ()),
        ("delivered", two, 1, "c@example.net", ()),
        ("paused", 0, None, "", ()),
        ("bounced", 77, None, "", ()),
        ("reported", one, None, "One@example.net", ()),
        ("reported", two, None, "", ()),
    ]
    assert (rows[0].sender, rows[0].header_from, rows[0].user, rows[0].tag, rows[0].class_, rows[0].code) == (
        *("app@example.com", "app@example.com"), "shop", "spring", "bulk", 250,
    )  # fmt: skip
    assert (rows[2].egress, rows[2].code, rows[2].data) == ("up", 250, {"why": "said so"})
    assert (rows[5].data, rows[5].sender) == ({"state": "x"}, "")
    assert rows[0].data == {}
    assert [r.kind for r in await spool.story(one)] == ["accepted", "delivered", "reported"]
    assert (await spool.story(one))[0].recipients == ("One@example.net",)


async def test_pages_leave_nothing_out_and_stop_where_they_are_told_to(spools: Spools) -> None:
    spool = await spools.open()
    await spool.note([told(NOW + i, number=i) for i in range(1234)])
    rows = await everything(spool, 100)
    assert [r.data for r in rows] == [{"number": i} for i in range(1234)]
    assert [r.id for r in rows] == sorted({r.id for r in rows})
    assert await spool.last_event() == rows[-1].id
    assert [r.id for r in await spool.events(rows[9].id, 500, rows[19].id)] == [r.id for r in rows[10:20]]
    assert await spool.events(rows[-1].id) == []


async def test_a_hundred_thousand_events(spools: Spools) -> None:
    spool = await spools.open()
    for start in range(0, 100_000, 5000):
        await spool.note([told(NOW + i, number=i) for i in range(start, start + 5000)])
    numbers = [r.data["number"] for r in await everything(spool, 1000) if r.data]
    assert numbers == list(range(100_000))


async def test_an_answer_of_very_many_recipients_is_cut_and_the_next_goes_on(
    spools: Spools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "ADDRESSES", 50)
    monkeypatch.setattr(stream, "MOST_TOLD", 20)
    spool = await spools.open()
    sizes = (1, 20, 25, 3, 20, 7, 1)
    for size in sizes:
        await put(spool, *(f"r{i}@example.net" for i in range(size)))
        await spool.note([told()])
    first = await spool.events(0)
    assert 0 < len(first) < 2 * len(sizes)
    rows = await everything(spool)
    assert [r.kind for r in rows] == ["accepted", "paused"] * len(sizes)
    assert [len(r.recipients) for r in rows if r.kind == "accepted"] == [min(size, 20) for size in sizes]


async def test_a_cursor_by_time(spools: Spools) -> None:
    spool = await spools.open()
    assert await spool.event_at(NOW) == 0
    await spool.note([told(NOW + i // 3) for i in range(300)])
    rows = await everything(spool)
    for at in (0.0, NOW, NOW + 0.5, NOW + 50, NOW + 99, NOW + 99.5):
        after = await spool.event_at(at)
        assert [r.id for r in await everything(spool, after=after)] == [r.id for r in rows if r.at >= at]


async def test_a_cursor_by_time_where_ids_are_far_apart(spools: Spools) -> None:
    spool = await spools.open()
    await spool.note([told(NOW), told(NOW + 1)])
    await spool.backup(spools.folder / "backup")
    restored = await spools.open("backup", now=NOW + 10)
    await restored.note([told(NOW + 20), told(NOW + 30)])
    assert [r.at for r in await everything(restored, after=await restored.event_at(NOW + 15))] == [NOW + 20, NOW + 30]
    assert (await everything(restored, after=await restored.event_at(NOW + 1)))[0].at == NOW + 1


# -- ids


async def test_ids_are_never_given_twice_though_everything_is_forgotten(spools: Spools) -> None:
    spool = await spools.open()
    given = -1
    for turn in range(4):
        at = NOW + turn * 20 * DAY
        await put(spool, at=at)
        await spool.note([told(at)] * (turn % 2))  # a message's event is the newest, or one of none is
        rows = await everything(spool, after=given)
        await spool.record(settled(await claim(spool, now=at), State.DELIVERED, at))
        rows = await everything(spool, after=given)
        assert len(rows) == 2 + turn % 2
        assert rows[0].id > given
        given = rows[-1].id
        await spool.purge(at + 10 * DAY)
        await spool.forget_feed(at + 10 * DAY + spool.keep)
        assert [r.id for r in await everything(spool)] == [given]  # the newest alone
        await spools.close(spool)
        spool = await spools.open(now=at + 10 * DAY)


async def test_a_restored_backup_starts_above_what_anybody_may_know(spools: Spools) -> None:
    spool = await spools.open()
    await put(spool)
    await spool.backup(spools.folder / "backup")
    await spool.note([told()] * 100)
    known = await spool.last_event()
    restored = await spools.open("backup", now=NOW + 60)
    await restored.note([told(NOW + 60)])
    rows = await everything(restored)
    assert [r.kind for r in rows] == ["accepted", "held", "paused"]
    assert rows[1].id > known
    assert rows[-1].id < 1 << 53  # JSON's numbers are exact up to there
    await restored.backup(spools.folder / "again")
    later = await spools.open("again", now=NOW - DAY)  # and a clock that was set back
    await later.note([told(NOW)])
    assert (await everything(later))[-1].id > rows[-1].id + 1000


@pytest.mark.parametrize(
    "reader", ["endpoint VALUES ('crm', 10)", "consumer VALUES ('red', 'crm', 10, 0)"], ids=["push", "pull"]
)
async def test_a_cursor_that_is_ahead_is_never_caught_up_with(spools: Spools, reader: str) -> None:
    """Somebody made room by hand."""
    spool = await spools.open()
    await spool.note([told()] * 10)
    await spools.close(spool)
    with sqlite3.connect(spools.path()) as by_hand:
        by_hand.execute(f"INSERT INTO {reader}")
        by_hand.execute("DELETE FROM event")
    by_hand.close()
    spool = await spools.open()
    assert await everything(spool) == []
    await spool.note([told()])
    assert [r.id for r in await everything(spool)] == [11]


async def test_what_goes_with_no_message_is_forgotten_by_age(spools: Spools) -> None:
    spool = await spools.open()
    gone, stays = await put(spool), await put(spool, due=NOW + 8 * DAY)
    await spool.record(settled(await claim(spool), State.DELIVERED))
    await spool.purge(NOW + 1)
    await spool.note([told(NOW + i % 2, number=i) for i in range(300)])
    await spool.note([told(NOW + 2, "bounced", gone), told(NOW + 2, "reported", stays), told(NOW + 3 * DAY, number=-1)])
    await spool.note([told(NOW + 2 * DAY)])
    await spool.forget_feed(NOW + 2 * DAY + spool.keep)
    left = await everything(spool)
    assert [(r.kind, r.message) for r in left] == [
        ("accepted", stays),
        ("reported", stays),
        ("paused", 0),
        ("paused", 0),
    ]
    before = COMMITS.values[()]
    await spool.forget_feed(NOW + 2 * DAY + spool.keep)
    assert COMMITS.values[()] == before
    # What was passed over goes with its message, and what is written of it afterwards by its age again.
    await spool.record(settled(await claim(spool, now=NOW + 9 * DAY), State.DELIVERED, NOW + 9 * DAY))
    await spool.purge(NOW + 10 * DAY)
    await spool.note([told(NOW + 9 * DAY, "complained", stays), told(NOW + 20 * DAY)])
    await spool.forget_feed(NOW + 11 * DAY + spool.keep)
    assert [r.at for r in await everything(spool)] == [NOW + 20 * DAY]


# -- waiting


async def test_many_wait_and_each_hears_of_the_next_commit(spools: Spools) -> None:
    spool = await spools.open()
    after = await spool.last_event()
    waiting = [asyncio.create_task(spool.stirred(60, after)) for _ in range(500)]
    waiting += [asyncio.create_task(spool.stirred(None, after)) for _ in range(500)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    await spool.probe(NOW)  # a commit, but no event
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    await spool.note([told()])
    assert all(await asyncio.gather(*waiting))


async def test_what_is_there_already_is_told_at_once_to_everybody(spools: Spools) -> None:
    spool = await spools.open()
    after = await spool.last_event()
    await spool.note([told()])
    assert await asyncio.gather(*(spool.stirred(0, after) for _ in range(100))) == [True] * 100
    assert not await spool.stirred(0.01, after + 1)


async def test_without_a_cursor_it_is_the_next_commit(spools: Spools) -> None:
    spool = await spools.open()
    await spool.probe(NOW)
    assert await spool.stirred(0)
    assert not await spool.stirred(0.01)
    waiting = [asyncio.create_task(spool.stirred(60)) for _ in range(100)]
    await asyncio.sleep(0)
    await spool.probe(NOW)
    assert all(await asyncio.gather(*waiting))


async def test_readers_that_follow_miss_nothing(spools: Spools) -> None:
    spool = await spools.open()

    async def follow() -> list[int]:
        after, found = 0, list[int]()
        while len(found) < 300:
            assert await spool.stirred(60, after)
            rows = await spool.events(after, 50)
            found += [int(r.data["number"]) for r in rows if r.data]
            after = rows[-1].id
        return found

    readers = [asyncio.create_task(follow()) for _ in range(20)]
    for i in range(300):
        await spool.note([told(number=i)])
        if i % 7 == 0:
            await asyncio.sleep(0.001)
    assert await asyncio.gather(*readers) == [list(range(300))] * 20


# -- what a report teaches


async def test_what_is_learnt_is_there_for_another_process(spools: Spools) -> None:
    """Durable when it returns: a second connection sees all of it, whatever becomes of this one."""
    spool = await spools.open()
    number = await put(spool)
    entry = listed(message=number)
    learnt = Learnt([told(NOW, "bounced", number)], [entry], documents={"doc": "{}"}, once="report 1")
    assert await spool.learn(learnt) == [entry]
    other = sqlite3.connect(f"file:{spool.path}?mode=ro", uri=True)
    assert other.execute("SELECT kind FROM event WHERE message = ? ORDER BY id", (number,)).fetchall() == [
        ("accepted",), ("bounced",), ("suppression_added",),
    ]  # fmt: skip
    assert other.execute("SELECT count(*) FROM suppression").fetchone() == (1,)
    assert other.execute("SELECT key FROM heard").fetchall() == [("report 1",)]
    assert other.execute("SELECT * FROM kept").fetchall() == [("doc", "{}")]
    other.close()


async def test_a_report_teaches_once(spools: Spools) -> None:
    spool = await spools.open()
    heard: list[int] = []
    spool.on_suppressed = lambda added, removed: heard.append(len(added))
    made = [Learnt([told(i=i)], [listed(f"a{i % 3}@example.net")], once=f"key {i % 3}") for i in range(30)]
    answers = await asyncio.gather(*(spool.learn(one) for one in made))
    assert [a is None for a in answers] == [False] * 3 + [True] * 27
    await spools.close(spool)
    spool = await spools.open()
    assert await spool.learn(made[0]) is None
    assert await spool.learn(Learnt([told()])) == []  # without a key: whenever it is said
    assert [r.kind for r in await everything(spool)] == ["paused", "suppression_added"] * 3 + ["paused"]
    assert heard == [1, 1, 1]


async def test_what_cannot_be_written_teaches_nothing_and_harms_nobody_beside_it(spools: Spools) -> None:
    spool = await spools.open()
    heard: list[Suppression] = []
    spool.on_suppressed = lambda added, removed: heard.extend(added)
    bad = Learnt([told()], [listed("bad@example.net", at=float("nan"))], documents={"bad": "1"}, once="bad")
    good = Learnt([told()], [listed("good@example.net")], once="good")
    answers = await asyncio.gather(spool.learn(bad), spool.learn(good), return_exceptions=True)
    assert isinstance(answers[0], SpoolError)
    assert answers[1] == good.suppressions == heard
    assert [r.kind for r in await everything(spool)] == ["paused", "suppression_added"]
    assert await spool.remembered() == {}
    bad.suppressions = [listed("bad@example.net")]
    assert await spool.learn(bad) == bad.suppressions  # its key was not taken for heard


async def test_keys_are_forgotten_after_thirty_days_or_after_what_is_kept(spools: Spools) -> None:
    for keep, days in ((7 * DAY, 30), (90 * DAY, 90)):
        spool = await spools.open(str(days))
        spool.keep, now = keep, clock.now()
        await asyncio.gather(*(spool.learn(Learnt(once=f"key {i}")) for i in range(2500)))
        await spool.forget_feed(now + (days - 1) * DAY)
        assert await spool.learn(Learnt(once="key 7")) is None
        await spool.forget_feed(now + (days + 1) * DAY)
        assert await spool.learn(Learnt(once="key 7")) == []
        assert await spool.learn(Learnt(once="key 2499")) == []


async def test_what_is_known_of_a_recipient(spools: Spools) -> None:
    spool = await spools.open()
    one = await put(spool, "One@Bücher.example", user="shop", tag="spring")
    two = await put(spool, "b@example.net", "C@example.net")
    await spool.record(settled(await claim(spool), State.DELIVERED))
    found = await spool.known(one)
    assert found is not None
    assert (found.message, found.n, found.address, found.state, found.egress) == (
        *(one, 0, "One@Bücher.example"), State.DELIVERED, "up",
    )  # fmt: skip
    assert (found.sender, found.user, found.class_, found.tag, found.accepted_at) == (
        *("app@example.com", "shop", "default", "spring"), NOW,
    )  # fmt: skip
    assert found.head.startswith(b"Subject: hello")
    assert await spool.known(one, address="elsewhere@example.org") == found  # it was forwarded: there is only one
    assert await spool.known(one, address="ONE@xn--bcher-kva.example") == found
    assert await spool.known(one, n=1) is None
    assert await spool.known(two) is None
    assert [(await spool.known(two, address=a) or found).n for a in ("B@EXAMPLE.NET", "c@example.net")] == [0, 1]
    assert (await spool.known(two, n=1)) == await spool.known(two, address="c@example.net")
    assert await spool.known(two, address="d@example.net") is None
    assert await spool.known(12345) is None


# -- beside mail, and yet as safe


async def filled(spools: Spools) -> tuple[SqliteSpool, int]:
    from relay.spool.feed import Parcel, Progress

    spool = await spools.open()
    number = await put(spool)
    await spool.learn(Learnt([told(NOW, "bounced", number)], [listed()], once="key", documents={"doc": "{}"}))
    last = await spool.last_event()
    await spool.progress(Progress("crm", last, [Parcel("crm", last - 1, number, "{}", 3, NOW, NOW - 1, "503", True)]))
    return spool, last


async def assert_filled(spool: SqliteSpool, last: int) -> None:
    assert [s.address for s in await spool.suppressions(SuppressionFilter())] == ["a@example.net"]
    assert await spool.learn(Learnt(once="key")) is None
    assert await spool.cursors() == {"crm": last}
    (parcel,) = await spool.parcels("crm", dead=True)
    assert (parcel.event, parcel.body, parcel.attempts, parcel.why, parcel.dead) == (last - 1, "{}", 3, "503", True)
    assert await spool.check() == []
    await spool.note([told()])
    assert [r.kind for r in await spool.events(last)][-1] == "paused"


async def test_a_backup_has_all_of_it(spools: Spools) -> None:
    spool, last = await filled(spools)
    await spool.backup(spools.folder / "backup")
    await assert_filled(await spools.open("backup"), last)


async def test_salvage_keeps_it_and_the_ids(spools: Spools, tmp_path: Path) -> None:
    spool, last = await filled(spools)
    await spool.note([told()])
    before = await everything(spool)
    await spools.close(spool)
    done = salvage(spools.path().parent, tmp_path / "saved", lambda *_: None)
    assert (done.errors, done.lost, done.events_lost) == (set(), [], 0)
    saved = await spools.open("saved")
    assert (await everything(saved))[: len(before)] == before
    await assert_filled(saved, last)


async def test_salvage_passes_over_what_cannot_be(spools: Spools, tmp_path: Path) -> None:
    spool, last = await filled(spools)
    await spools.close(spool)
    with sqlite3.connect(spools.path()) as damaged:
        damaged.execute(
            "INSERT INTO suppression VALUES ('', x'ff', 1, '', '', 1, 0, 0), ('', 'b', 'why', '', '', 1, 0, 0)"
        )
        damaged.execute(
            "INSERT INTO parcel VALUES ('lost', 7, 0, 1, 0, 0, 0, '', '{}'), ('crm', 'x', 0, 1, 0, 0, 0, '', '{}')"
        )
        damaged.execute("INSERT INTO event VALUES (-5, 1, 0, NULL, 'paused', '', 0, '{}')")
        damaged.execute("INSERT INTO event VALUES (9223372036854775807, 1, 0, NULL, 'paused', '', 0, '{}')")
    damaged.close()
    spool = await spools.open()
    assert any("endpoint" in text for text in await spool.check())
    assert any("suppression" in text for text in await spool.check())
    await spools.close(spool)
    done = salvage(spools.path().parent, tmp_path / "saved", lambda *_: None)
    assert done.events_lost == 2
    saved = await spools.open("saved")
    assert await saved.cursors() == {"crm": last, "lost": 7}
    await saved.forget_endpoint("lost")
    await assert_filled(saved, last)


async def test_a_spool_of_schema_4_learns_it(spools: Spools, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = opening.migrations()[:4]
    with monkeypatch.context() as older:
        older.setattr(opening, "migrations", lambda: steps)
        older.setattr(stream, "lift", lambda *_: None)  # it asks what the later schema has
        spool = await spools.open()
        await put(spool)
        await spools.close(spool)
    spool = await spools.open()
    assert spool.opened.migrated_from == 4
    assert [r.kind for r in await everything(spool)] == ["accepted"]
    assert await spool.learn(Learnt(suppressions=[listed()], once="x")) == [listed()]
    assert await spool.check() == []


async def test_a_clock_that_was_set_back_leaves_no_event_in_the_future(spools: Spools) -> None:
    spool = await spools.open()
    await spool.note([told(NOW), told(NOW + 300 * DAY)])
    await spool.probe(NOW + 300 * DAY)
    await spools.close(spool)
    spool = await spools.open(now=NOW + DAY)
    assert [r.at for r in await everything(spool)] == [NOW, NOW + DAY]
