"""Who is suppressed: which entry stays, soft bounces that come to one, pages, and that the index in memory hears of all."""

from __future__ import annotations

import asyncio
import gc
from itertools import product

import pytest
from conftest import Spools
from making import DAY, NOW, claim, put, settled

from relay.policy.suppression import Index, Softly, Suppression, Why, outweighs
from relay.recipient import State
from relay.spool.feed import Learnt, SuppressionFilter
from relay.spool.sqlite import SqliteSpool

Key = tuple[str, str]


def entry(
    address: str = "a@example.net",
    scope: str = "",
    why: Why = Why.HARD_BOUNCE,
    until: float = 0.0,
    at: float = NOW,
    message: int = 0,
    source: str = "bounce",
) -> Suppression:
    return Suppression(address, scope, why, f"evidence at {at}", source, at, until, message)


def soft(day: float, message: int, count: int = 3, within: float = 7 * DAY, address: str = "a@example.net") -> Softly:
    at = NOW + day * DAY
    return Softly(entry(address, "tenant:shop", Why.SOFT_BOUNCES, at + 30 * DAY, at, message), count, within)


class Follower:
    """What the index in memory hears."""

    def __init__(self, spool: SqliteSpool) -> None:
        self.spool = spool
        self.known: dict[Key, Why] = {}
        self.calls: list[tuple[list[Key], list[Key]]] = []
        spool.on_suppressed = self

    def __call__(self, added: object, removed: object) -> None:
        assert isinstance(added, list | tuple)
        assert isinstance(removed, list | tuple)
        self.calls.append(([s.key for s in added], list(removed)))
        for key in removed:
            del self.known[key]
        self.known |= {s.key: s.why for s in added}

    async def agrees(self) -> None:
        assert self.known == {(scope, address): why for scope, address, why in await self.spool.suppression_index()}


async def learn(spool: SqliteSpool, *entries: Suppression, **more: object) -> list[Suppression]:
    found = await spool.learn(Learnt(suppressions=entries, **more))  # type: ignore[arg-type]
    assert found is not None
    return found


async def kinds(spool: SqliteSpool) -> list[tuple[str, str]]:
    return [(r.kind, str((r.data or {}).get("why"))) for r in await spool.events(0, 10_000)]


# (what is there, what comes, whether that takes its place)
LONG, SHORT = NOW + 180 * DAY, NOW + DAY
OUTWEIGHS = [
    ((Why.HARD_BOUNCE, LONG), (Why.HARD_BOUNCE, LONG), False),
    ((Why.HARD_BOUNCE, LONG), (Why.HARD_BOUNCE, LONG + 1), True),
    ((Why.HARD_BOUNCE, LONG), (Why.HARD_BOUNCE, SHORT), False),
    ((Why.HARD_BOUNCE, LONG), (Why.COMPLAINT, 0.0), True),
    ((Why.COMPLAINT, 0.0), (Why.HARD_BOUNCE, LONG), False),
    ((Why.UNSUBSCRIBE, 0.0), (Why.HARD_BOUNCE, LONG), False),
    ((Why.MANUAL, 0.0), (Why.SOFT_BOUNCES, LONG), False),
    ((Why.HARD_BOUNCE, 0.0), (Why.COMPLAINT, 0.0), True),
    ((Why.COMPLAINT, 0.0), (Why.HARD_BOUNCE, 0.0), False),
    ((Why.UNSUBSCRIBE, 0.0), (Why.COMPLAINT, 0.0), True),
    ((Why.COMPLAINT, 0.0), (Why.MANUAL, 0.0), True),
    ((Why.MANUAL, 0.0), (Why.COMPLAINT, 0.0), False),
    ((Why.MANUAL, SHORT), (Why.SOFT_BOUNCES, LONG), True),
    ((Why.SHAPING, LONG), (Why.SOFT_BOUNCES, LONG), True),
    ((Why.SOFT_BOUNCES, LONG), (Why.SHAPING, LONG), False),
]


@pytest.mark.parametrize(("there", "comes", "takes"), OUTWEIGHS)
async def test_which_of_two_stays(
    spools: Spools, there: tuple[Why, float], comes: tuple[Why, float], takes: bool
) -> None:
    spool = await spools.open()
    follower = Follower(spool)
    old, new = entry(why=there[0], until=there[1]), entry(why=comes[0], until=comes[1], at=NOW + 1)
    assert await learn(spool, old) == [old]
    assert await learn(spool, new) == ([new] if takes else [])
    assert await spool.suppressed("a@example.net") == [new if takes else old]
    assert await kinds(spool) == [("suppression_added", old.why.word)]  # it was suppressed, and is
    await follower.agrees()
    for name, both in (("in order", (old, new)), ("the other way", (new, old))):
        stays = new if takes else old
        at_once = await learn(await spools.open(name), *both)
        assert at_once == [stays if outweighs(new, old) or outweighs(old, new) else both[0]]


def test_the_order_is_one() -> None:
    every = [entry(why=why, until=until) for why, until in product(Why, (0.0, SHORT, LONG))]
    for a, b in product(every, every):
        assert outweighs(a, b) + outweighs(b, a) == (a != b)
    for a, b, c in product(every, every, every):
        assert not (outweighs(a, b) and outweighs(b, c)) or outweighs(a, c)


async def test_one_that_is_over_makes_room_for_any(spools: Spools) -> None:
    spool = await spools.open()
    await learn(spool, entry(until=SHORT, why=Why.MANUAL))
    again = entry(until=LONG, why=Why.SHAPING, at=SHORT + 1)
    assert await learn(spool, again) == [again]
    assert await kinds(spool) == [("suppression_added", "manual"), ("suppression_added", "shaping")]


async def test_what_is_removed_and_listed_at_once_is_listed(spools: Spools) -> None:
    spool = await spools.open()
    follower = Follower(spool)
    await learn(spool, entry(why=Why.COMPLAINT))
    weaker = entry(why=Why.MANUAL, until=SHORT, at=NOW + 1)
    assert await learn(spool, weaker, removed=[weaker.key, ("", "nobody@example.net"), weaker.key]) == [weaker]
    assert await kinds(spool) == [
        ("suppression_added", "complaint"), ("suppression_removed", "complaint"), ("suppression_added", "manual"),
    ]  # fmt: skip
    assert follower.calls[-1] == ([weaker.key], [weaker.key])
    await follower.agrees()
    assert await learn(spool, removed=[weaker.key]) == []
    assert await learn(spool, removed=[weaker.key]) == []
    assert len(follower.calls) == 3
    assert await spool.suppressed("a@example.net") == []


async def test_an_event_tells_all_of_it(spools: Spools) -> None:
    spool = await spools.open()
    number = await put(spool, "A@example.net")
    await learn(spool, entry(scope="class:bulk", until=LONG, message=number))
    row = (await spool.events(0))[-1]
    assert (row.kind, row.message, row.recipient, row.at) == ("suppression_added", number, "A@example.net", NOW)
    assert row.data == {
        "address": "a@example.net", "scope": "class:bulk", "why": "hard_bounce", "evidence": f"evidence at {NOW}",
        "source": "bounce", "until": LONG,
    }  # fmt: skip


# -- soft bounces


async def test_so_many_soft_bounces_in_so_many_days_suppress(spools: Spools) -> None:
    spool = await spools.open()
    follower = Follower(spool)
    assert await learn(spool, softly=[soft(0, 1), soft(1, 2)]) == []
    await spools.close(spool)
    spool = await spools.open()
    Follower(spool)
    assert await learn(spool, softly=[soft(2, 2)]) == []  # the same message once more
    last = soft(6.9, 3)
    assert await learn(spool, softly=[last]) == [last.entry]
    assert await spool.suppressed("a@example.net") == [last.entry]
    assert not follower.known
    assert await learn(spool, removed=[last.entry.key]) == []
    assert await learn(spool, softly=[soft(7, 4), soft(7, 5)]) == []  # it is counted anew


async def test_what_lies_further_apart_does_not(spools: Spools) -> None:
    spool = await spools.open()
    for day in range(0, 100, 4):
        assert await learn(spool, softly=[soft(day, day + 1)]) == []
    assert await learn(spool, softly=[soft(80, 1000)]) == []  # a report of a time that is over
    assert await learn(spool, softly=[soft(97, 1001, address="other@example.net")]) == []
    assert len(await learn(spool, softly=[soft(98, 1002)])) == 1


async def test_without_a_message_each_counts_and_a_rule_of_none_never_does(spools: Spools) -> None:
    spool = await spools.open()
    assert await learn(spool, softly=[soft(0, 0), soft(0, 0), soft(0.1, 0)]) == []
    assert len(await learn(spool, softly=[soft(0.2, 0)])) == 1
    assert await learn(spool, softly=[soft(0, i, count=0, address="b@example.net") for i in range(50)]) == []


async def test_soft_bounces_are_forgotten(spools: Spools) -> None:
    spool = await spools.open()
    await learn(spool, softly=[soft(0, i, address=f"a{i}@example.net") for i in range(2500)])
    count = "SELECT count(*) FROM softly"
    await spool.forget_feed(NOW + 6 * DAY)
    assert await spool._reader.call(lambda c: c.execute(count).fetchone()) == (2500,)
    await spool.forget_feed(NOW + 8 * DAY)
    assert await spool._reader.call(lambda c: c.execute(count).fetchone()) == (0,)


# -- with the settlement that they follow from


async def test_a_settlement_brings_its_suppressions_with_it(spools: Spools) -> None:
    spool = await spools.open()
    follower = Follower(spool)
    for i in range(3):
        await put(spool, f"a{i}@example.net")
    work = settled(await claim(spool), State.FAILED)
    work[0].suppressions = [entry("a0@example.net", message=work[0].changes[0].message)]
    work[1].softly = [soft(0, 1, 1)]
    await asyncio.gather(*(spool.record([one]) for one in work))
    assert set(follower.known) == {("", "a0@example.net"), ("tenant:shop", "a@example.net")}
    await follower.agrees()
    assert [k for k, _ in await kinds(spool)] == ["accepted"] * 3 + ["failed"] * 3 + ["suppression_added"] * 2


async def test_one_that_is_delivered_may_bring_some_too(spools: Spools) -> None:
    spool = await spools.open()
    follower = Follower(spool)
    await put(spool)
    (work,) = settled(await claim(spool), State.DELIVERED)
    work.inline = True
    work.suppressions = [entry()]
    await spool.record([work])
    assert follower.known == {entry().key: Why.HARD_BOUNCE}


async def test_the_index_hears_in_the_order_of_commits(spools: Spools) -> None:
    """Added by a settlement, removed by hand at once: whoever is told later must not have the last word wrong."""
    spool = await spools.open()
    follower = Follower(spool)
    for turn in range(30):
        await put(spool)
        (work,) = settled(await claim(spool), State.FAILED)
        work.suppressions = [entry()]
        told = spool.record([work])
        if turn % 3:
            await asyncio.gather(told, learn(spool, removed=[entry().key]))
        else:
            await asyncio.gather(learn(spool, removed=[entry().key]), told)
        await follower.agrees()
        await learn(spool, removed=[entry().key])


# -- the list


async def test_of_one_address_in_all_scopes_or_some(spools: Spools) -> None:
    spool = await spools.open()
    made = [entry(scope=scope) for scope in ("", "class:bulk", "tenant:shop")]
    await learn(spool, *made, entry("b@example.net"))
    assert await spool.suppressed("A@Example.NET.") == made
    assert await spool.suppressed("a@example.net", ("", "tenant:shop")) == [made[0], made[2]]
    assert await spool.suppressed("a@example.net", ("tenant:other",)) == []


FILTERS = [
    (SuppressionFilter(), 12),
    (SuppressionFilter(address="A1@EXAMPLE.net"), 2),
    (SuppressionFilter(address="a?@*"), 12),
    (SuppressionFilter(address="*.ORG"), 6),
    (SuppressionFilter(address="a[1]@*"), 0),
    (SuppressionFilter(scope=""), 6),
    (SuppressionFilter(scope="class:bulk", address="*.net"), 3),
    (SuppressionFilter(why=Why.COMPLAINT), 4),
    (SuppressionFilter(why=Why.COMPLAINT, scope="", address="a1@example.org"), 1),
    (SuppressionFilter(source="ses"), 6),
]


@pytest.mark.parametrize(("wanted", "count"), FILTERS)
async def test_pages_of_what_is_wanted(spools: Spools, wanted: SuppressionFilter, count: int) -> None:
    spool = await spools.open()
    await learn(
        spool,
        *(
            entry(f"a{i}@example.{top}", scope, (Why.HARD_BOUNCE, Why.COMPLAINT, Why.MANUAL)[i], source=("ses", "hand")[top == "org"])
            for i in range(3)
            for top in ("net", "org")
            for scope in ("", "class:bulk")
        ),
    )  # fmt: skip
    found = await spool.suppressions(wanted)
    assert len(found) == count
    assert [s.key for s in found] == sorted(s.key for s in found)
    paged: list[Suppression] = []
    while page := await spool.suppressions(wanted, paged[-1].key if paged else None, 2):
        paged += page
    assert paged == found


async def test_a_hundred_thousand(spools: Spools) -> None:
    spool = await spools.open()
    follower = Follower(spool)
    addresses = [f"a{i:06}@example.net" for i in range(100_000)]
    for start in range(0, len(addresses), 1000):
        await learn(spool, *(entry(a, until=NOW + i) for i, a in enumerate(addresses[start : start + 1000], start + 1)))
    await follower.agrees()
    paged: list[str] = []
    while page := await spool.suppressions(SuppressionFilter(), ("", paged[-1]) if paged else None, 5000):
        paged += [s.address for s in page]
    assert paged == addresses
    assert len(Index(await spool.suppression_index())) == 100_000
    gone = await spool.suppressions_over(NOW + 1234)
    assert sorted(gone) == [("", a) for a in addresses[:1234]]
    await follower.agrees()


async def test_an_index_that_is_not_read_to_its_end_holds_nothing_up(spools: Spools) -> None:
    spool = await spools.open()
    await learn(spool, *(entry(f"a{i}@example.net") for i in range(500)))
    started = await spool.suppression_index()
    assert next(started)
    await learn(spool, entry("later@example.net"))
    del started
    gc.collect()
    assert len(list(await spool.suppression_index())) == 501


async def test_those_that_are_over_are_forgotten_and_told(spools: Spools) -> None:
    spool = await spools.open()
    follower = Follower(spool)
    await learn(spool, entry("a@x.net", until=SHORT), entry("b@x.net", until=LONG), entry("c@x.net"))
    assert await spool.suppressions_over(NOW) == []
    assert await spool.suppressions_over(SHORT) == [("", "a@x.net")]
    assert follower.calls[-1] == ([], [("", "a@x.net")])
    assert await spool.suppressions_over(NOW + 10_000 * DAY) == [("", "b@x.net")]
    await follower.agrees()
    assert [k for k, _ in await kinds(spool)][3:] == ["suppression_removed"] * 2
    assert [s.address for s in await spool.suppressions(SuppressionFilter())] == ["c@x.net"]
