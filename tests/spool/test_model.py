"""Whatever is done to a spool in whatever order, its rows, its counters and what may be claimed are those of a model."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from making import NOW, assert_counts, claim, keys, lane, message, rows, settled

from relay.policy import poison
from relay.policy.suppression import Suppression, Why
from relay.recipient import TRANSITIONS, WAITING, State, Verb
from relay.spool import Claim
from relay.spool.feed import Learnt
from relay.spool.sqlite import SqliteSpool

T = TypeVar("T")


class SpoolMachine(RuleBasedStateMachine):
    """The model: (message, n) -> [state, due, lane]."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.now = NOW
        self.model: dict[tuple[int, int], list[Any]] = {}
        self.flying: list[Claim] = []
        self.by_key: dict[str, int] = {}
        self.crashes: Counter[tuple[int, int]] = Counter()
        self.spent: dict[str, dict[float, int]] = {}
        self.listed: dict[tuple[str, str], Why] = {}  # as the index in memory hears it
        self.newest = 0  # event
        self.spool: SqliteSpool = self.run(self._open())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    async def _open(self) -> SqliteSpool:
        spool = await SqliteSpool.open(Path(self.folder.name) / "spool.db", self.now)
        spool.reserve = 0
        spool.on_suppressed = self._hear
        return spool

    def _hear(self, changed: Sequence[Suppression], removed: Sequence[tuple[str, str]]) -> None:
        for key in removed:
            del self.listed[key]
        self.listed |= {one.key: one.why for one in changed}

    def teardown(self) -> None:
        self.run(self.spool.close())
        self.loop.close()
        self.folder.cleanup()

    @rule(
        count=st.integers(1, 4),
        priority=st.integers(0, 3),
        name=st.sampled_from("abc"),
        wait=st.sampled_from([0, 0, 30]),
        state=st.sampled_from([State.QUEUED, State.QUEUED, State.HELD, State.DELIVERED]),
        key=st.sampled_from(["", "", "k1", "k2"]),
        used=st.sampled_from([None, None, 1, 2]),
    )
    def accept(self, count: int, priority: int, name: str, wait: int, state: State, key: str, used: int | None) -> None:
        to = [f"r{i}@example.net" for i in range(count)]
        due = self.now + wait
        made = message(self.spool, *to, priority=priority, at=self.now, due=due, facts=lane(name), state=state, key=key)
        made.spent = [(name, self.now + wait, used)] if used else ()
        number, fresh = self.run(self.spool.accept(made))
        assert fresh is not (bool(key) and key in self.by_key)
        assert number == (made.id if fresh else self.by_key[key])
        if fresh:
            self.model |= {(number, n): [state, due, lane(name)] for n in range(count)}
            if key:
                self.by_key[key] = number
            if used:
                self.spent.setdefault(name, {})[self.now + wait] = used

    @rule(
        parts=st.lists(
            st.tuples(st.sampled_from("abc"), st.sampled_from([0, 30, 60]), st.integers(0, 3)), min_size=1, max_size=5
        )
    )
    def spend(self, parts: list[tuple[str, int, int]]) -> None:
        self.run(self.spool.spend([(name, self.now + wait, count) for name, wait, count in parts]))
        for name, wait, count in parts:
            self.spent.setdefault(name, {})[self.now + wait] = count

    @rule()
    def forget_spent(self) -> None:
        self.run(self.spool.forget_spent(self.now))
        for parts in self.spent.values():
            for until in [until for until in parts if until <= self.now]:
                del parts[until]

    @rule(
        names=st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(Why), st.sampled_from([0, 30])), max_size=4),
        removed=st.lists(st.sampled_from("abcd"), max_size=2),
    )
    def learn(self, names: list[tuple[str, Why, int]], removed: list[str]) -> None:
        made = [
            Suppression(name, "", why, "", "", self.now, self.now + wait if wait else 0.0) for name, why, wait in names
        ]
        self.run(self.spool.learn(Learnt(suppressions=made, removed=[("", name) for name in removed])))

    @rule()
    def forget_feed(self) -> None:
        self.run(self.spool.suppressions_over(self.now))
        self.run(self.spool.forget_feed(self.now + self.spool.keep))

    @invariant()
    def the_index_in_memory_is_the_list(self) -> None:
        found = self.run(self.spool.suppression_index())
        assert self.listed == {(scope, address): why for scope, address, why in found}

    @invariant()
    def no_event_has_an_id_that_another_had(self) -> None:
        ids = [row.id for row in self.run(self.spool.events(0, 10_000))]
        assert ids == sorted(set(ids))
        newest = self.run(self.spool.last_event())
        assert newest >= self.newest
        self.newest = newest

    @rule(limit=st.integers(1, 5))
    def claim(self, limit: int) -> None:
        claims = self.run(claim(self.spool, limit, self.now))
        taken = Counter((c.message, r.n) for c in claims for r in c.recipients)
        assert not taken or max(taken.values()) == 1
        ready = {k for k, (s, due, _) in self.model.items() if s in (State.QUEUED, State.DEFERRED) and due <= self.now}
        assert set(taken) <= ready
        for name in "abc":
            mine = {k for k in ready if self.model[k][2] == lane(name)}
            assert len(mine & set(taken)) >= min(limit, len(mine))
        for key in taken:
            self.model[key][0] = State.ACTIVE
        self.flying += claims

    @precondition(lambda self: self.flying)
    @rule(state=st.sampled_from([State.DELIVERED, State.FAILED, State.DEFERRED, State.HELD]), some=st.integers(1, 5))
    def record(self, state: State, some: int) -> None:
        done, self.flying = self.flying[:some], self.flying[some:]

        async def recorded() -> None:
            await self.spool.record(settled(done, state, self.now, due=self.now + 20))

        self.run(recorded())
        for c in done:
            for r in c.recipients:
                self.model[c.message, r.n][:2] = [state, self.now + 20]
                assert r.crashes == self.crashes[c.message, r.n]
                self.crashes[c.message, r.n] = 0

    @initialize()
    def begin(self) -> None:
        for name in "abc":
            self.accept(3, 1, name, 0, State.QUEUED, "", None)

    @rule(limit=st.integers(1, 5), ends=st.sampled_from([State.DELIVERED, State.DEFERRED]), some=st.integers(1, 5))
    def attempt(self, limit: int, ends: State, some: int) -> None:
        """Both in one step: of all the orders that there are, few would have one after the other."""
        self.claim(limit)
        if self.flying:
            self.record(ends, some)

    @rule(
        verb=st.sampled_from([Verb.HOLD, Verb.RELEASE, Verb.RETRY, Verb.CANCEL, Verb.EXPIRE]), every=st.integers(1, 3)
    )
    def change(self, verb: Verb, every: int) -> None:
        wanted = sorted(self.model)[::every]
        expected = 0
        for key in wanted:
            state = self.model[key][0]
            if state in WAITING and (state, verb) in TRANSITIONS:
                expected += 1
                after = TRANSITIONS[state, verb]
                self.model[key][0] = after
                if verb is Verb.RELEASE:
                    self.crashes[key] = 0
                if after in (State.QUEUED, State.DEFERRED):
                    self.model[key][1] = self.now
        assert self.run(self.spool.change(wanted, verb, self.now, "a reason")) == expected

    @rule(to=st.sampled_from("abc"))
    def relane(self, to: str) -> None:
        found = [r for r in self.run(rows(self.spool)) if State[r["state"].upper()] in WAITING][:3]
        self.run(self.spool.relane([(r["message"], r["n"], r["lane"], lane(to)) for r in found]))
        for key in keys(found):
            self.model[key][2] = lane(to)

    @rule()
    def forget_lanes(self) -> None:
        self.run(self.spool.forget_lanes())

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def purge(self) -> None:
        self.run(self.spool.purge(self.now))
        left = {r["message"] for r in self.run(rows(self.spool))}
        for number in {m for m, _ in self.model} - left:
            mine = [k for k in self.model if k[0] == number]
            assert all(self.model[k][0] in (State.DELIVERED, State.FAILED) for k in mine)
            for key in mine:
                del self.model[key]
            self.by_key = {k: n for k, n in self.by_key.items() if n != number}

    @rule()
    def crash_and_recover(self) -> None:
        self.run(self.spool.close())
        self.spool = self.run(self._open())
        active = [k for k, v in self.model.items() if v[0] is State.ACTIVE]
        poisoned = []
        for key in active:
            crashes = self.crashes[key] = self.crashes[key] + 1
            self.model[key][:2] = [State.DEFERRED, poison.due_after(crashes, self.now, key[0], 0.5)]
            if crashes >= poison.MOST:
                poisoned.append(key)
                self.model[key][0] = State.HELD
        found = self.run(self.spool.recover({}, self.now, 0.5))
        assert (found[0], sorted(found[1])) == (len(active), sorted({message for message, _ in poisoned}))
        self.flying = []

    @invariant()
    def rows_are_those_of_the_model(self) -> None:
        found = self.run(rows(self.spool))
        facts = {number: text for text, number in self.spool.lanes.items()}
        assert {
            (r["message"], r["n"]): (r["state"], facts[r["lane"]], r["due_at"] if r["state"] in READY else None)
            for r in found
        } == {k: (s.label, f, due if s.label in READY else None) for k, (s, due, f) in self.model.items()}
        self.run(assert_counts(self.spool))

    @invariant()
    def heads_tell_what_is_due(self) -> None:
        due: dict[str, float] = {}
        for state, at, facts in self.model.values():
            if state.label in READY:
                due[facts] = min(at, due.get(facts, at))
        found = {h.facts: h.due_at for h in self.run(self.spool.heads()) if h.due_at is not None}
        assert found == due

    @invariant()
    def what_was_spent_is_the_models(self) -> None:
        left = {
            name: sorted((until, count) for until, count in parts.items() if count)
            for name, parts in self.spent.items()
            if any(parts.values())
        }
        assert self.run(self.spool.spent()) == left

    @invariant()
    def the_file_is_sound(self) -> None:
        assert self.run(self.spool.check()) == []


READY = ("queued", "deferred")
SpoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestModel = SpoolMachine.TestCase
