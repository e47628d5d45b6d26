"""Submits what was committed, until the relay has said for each row what became of it.

A turn takes rows, marks them as attempted (committed before anything leaves), submits them under their keys, and settles them in
one transaction. Wherever a crash falls, the next turn submits the same rows under the same keys, and the relay answers with
the first message. It forgets keys, though, some time after it forgot the message: rows whose first attempt has stayed without
an answer for longer than `doubt` are not submitted again, but left to a person.

Idle, it goes on as soon as the database tells of a commit, and looks each `poll` seconds all the same.

After a failure of the whole it asks with one row, then with twice as many each time: so one row that brings requests down
is found, and holds up nobody.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relay import clock
from relay.outbox.store import OutboxError, Outcome, Row, Store, open_store
from relay.outbox.submit import Refused, Submit, Submitter, Waits
from relay.policy.backoff import DAY, Retry

DOUBT = 5 * DAY  # less than the 7 days that a relay remembers by default (`spool.keep`)
SPARE = 300.0  # seconds by which it is less at least: a request takes its time
ASK = 3600.0  # how often the relay is asked for how long it remembers
POLL = 1.0
SLICE = 0.2  # seconds of listening, after which it is looked whether this is to end
MOST = 1000  # messages that the relay takes at once
WHOLE = Retry(first=1.0, cap=60.0)  # the relay or the database is away
ONE = Retry(first=5.0, cap=300.0)  # one row is told to come later
PURGE = 3600.0
MAX_WHY = 1000  # characters that are kept


@dataclass(frozen=True, slots=True)
class Turn:
    """What a turn did. `pause`: seconds until the next one. `why`: what the whole waits for."""

    sent: int = 0
    repeated: int = 0  # of those: the relay had them already
    refused: int = 0
    waiting: int = 0
    in_doubt: int = 0
    pause: float = 0.0
    why: str = ""


class Reader:
    """`database`: a URL or a Store. `keep`: seconds that what was sent stays in the table, 0 for none."""

    def __init__(
        self,
        database: str | Store,
        submit: Submit,
        batch: int = 500,
        *,
        poll: float = POLL,
        doubt: float = DOUBT,
        keep: float = 0.0,
    ) -> None:
        if not 1 <= batch <= MOST:
            raise ValueError(f"a batch is of 1 to {MOST} rows")
        self.store = open_store(database) if isinstance(database, str) else database
        self._submit, self._batch = submit, batch
        self._poll, self._doubt, self._keep = poll, doubt, keep
        self._kept = submit.keys_kept if isinstance(submit, Submitter) else None
        self._asked: float | None = None
        self._size = batch
        self._failures = 0
        self._purged = 0.0

    def run(self, wait: Callable[[float], object], told: Callable[[Turn], object] = lambda _: None) -> None:
        """Until `wait`, which is given seconds, returns something true: `threading.Event().wait` will do."""
        while True:
            turn = self.turn(clock.now(), random.random())
            told(turn)
            if self._ends(turn, wait):
                return

    def _ends(self, turn: Turn, wait: Callable[[float], object]) -> bool:
        """Waits as long as the turn says; where it found nothing, until there may be something."""
        if turn.why or not turn.pause:
            return bool(wait(turn.pause))
        end = clock.monotonic() + turn.pause
        while not wait(0.0):
            left = end - clock.monotonic()
            try:
                if left <= 0 or self.store.stirs(min(left, SLICE)):
                    return False
            except OutboxError:
                return False  # the next turn meets it too, and tells
        return True

    def turn(self, now: float, chance: float) -> Turn:
        """One batch. `chance`, uniform in [0, 1), is for the jitter. Raises nothing for a database or a relay that is away."""
        try:
            if self._keep and now - self._purged >= PURGE:
                self.store.forget(now - self._keep)
                self._purged = now
            rows, doubtful = self.store.take(now, self._size, now - self._doubt)
            if not rows:
                return Turn(in_doubt=doubtful, pause=0.0 if doubtful else self._poll)
            turn, outcomes = self._hand_over(rows, now, chance)
            self.store.settle(outcomes, now, self._keep)
        except OutboxError as error:
            self.store.close()
            return Turn(pause=self._away(chance), why=str(error))
        return _with(turn, doubtful)

    def close(self) -> None:
        self.store.close()

    def _hand_over(self, rows: Sequence[Row], now: float, chance: float) -> tuple[Turn, list[Outcome]]:
        good, outcomes = _readable(rows)
        try:
            if good:
                self._check(now)
            results = self._submit([message for _, message in good]) if good else []
        except Waits as wait:
            pause = max(self._away(chance), min(wait.after, WHOLE.cap))
            # By itself it may be the cause: the others go first then.
            alone = len(good) == 1 and not wait.certain
            for row, _ in good:
                next_at = now + ONE.delay(row.attempts, chance) if alone else 0.0
                outcomes.append(_waits(row, str(wait), next_at, wait.certain))
            return Turn(waiting=len(good), refused=len(rows) - len(good), pause=pause, why=str(wait)), outcomes
        except Refused as refusal:
            if len(good) > 1:
                self._size = 1
                outcomes += [_waits(row, str(refusal), 0.0, True) for row, _ in good]
            else:
                outcomes += [Outcome(row.id, "refused", _kept(str(refusal))) for row, _ in good]
            return _turn(outcomes, 0), outcomes
        outcomes += [_outcome(row, result, now, chance) for (row, _), result in zip(good, results, strict=True)]
        repeated = sum(r.get("repeated") is True for r in results)
        made = _turn(outcomes, repeated)
        if outcomes and made.waiting == len(outcomes):
            return Turn(waiting=made.waiting, pause=self._away(chance), why=outcomes[-1].why), outcomes
        self._failures = 0
        self._size = min(self._size * 2, self._batch)
        return made, outcomes

    def _check(self, now: float) -> None:
        """Raises Waits where the relay may have forgotten a key that is not in doubt yet: it would take the row twice."""
        if self._kept is None or (self._asked is not None and 0 <= now - self._asked < ASK):
            return
        kept = self._kept()
        if not self._doubt + SPARE <= kept:  # NaN is no answer either
            most = f"start the reader with --doubt {kept - SPARE:.0f}s or less, or " if kept > SPARE else ""
            raise Waits(
                f"the relay knows keys for {kept:.0f}s after a message's end (its spool.keep), and the reader's --doubt is "
                f"{self._doubt:.0f}s: rows could be sent twice; {most}give the relay a longer spool.keep",
                certain=True,
            )
        self._asked = now

    def _away(self, chance: float) -> float:
        """Seconds to wait after one more failure of the whole."""
        self._asked = None  # it may come back with another configuration
        self._failures += 1
        self._size = 1
        return WHOLE.delay(self._failures, chance)


def _readable(rows: Sequence[Row]) -> tuple[list[tuple[Row, Mapping[str, Any]]], list[Outcome]]:
    """Rows with what is submitted of each; and those that somebody wrote by hand, and not as JSON."""
    good, bad = list[tuple[Row, Mapping[str, Any]]](), list[Outcome]()
    for row in rows:
        try:
            message = json.loads(row.message)
        except (ValueError, RecursionError):
            message = None
        if isinstance(message, dict):
            good.append((row, message | {"idempotency_key": row.key}))
        else:
            bad.append(Outcome(row.id, "refused", "the column message is no JSON object"))
    return good, bad


def _outcome(row: Row, result: Mapping[str, Any], now: float, chance: float) -> Outcome:
    status = result["status"]
    if status in (200, 202):
        return Outcome(row.id, "sent", queue_id=_kept(str(result.get("queue_id", "")))[:100])
    why = f"{status}: {result.get('detail') or 'the relay did not say why'}"
    if status in (400, 413, 422):
        return Outcome(row.id, "refused", _kept(why))
    return _waits(row, why, now + ONE.delay(row.attempts, chance), status == 503)


def _waits(row: Row, why: str, next_at: float, certain: bool) -> Outcome:
    return Outcome(row.id, "waits", _kept(why), next_at=next_at, certain=certain)


def _kept(text: str) -> str:
    """What any database takes: neither half a character nor a NUL."""
    return text[:MAX_WHY].encode("utf-8", "replace").decode().replace("\0", "?")


def _turn(outcomes: Sequence[Outcome], repeated: int) -> Turn:
    kinds = [o.kind for o in outcomes]
    return Turn(kinds.count("sent"), repeated, kinds.count("refused"), kinds.count("waits"))


def _with(turn: Turn, doubtful: int) -> Turn:
    return Turn(turn.sent, turn.repeated, turn.refused, turn.waiting, doubtful, turn.pause, turn.why)
