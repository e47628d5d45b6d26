"""What an operator has stopped by hand, and until when. Pure: time is an argument.

A suspension stops mail from leaving; it is accepted, counted and told on. It binds an egress, or lanes by their class,
user, destination, tag, sender or number. A lane knows its class and its user; what else is asked of it must be among the
questions of the routing table (`Suspensions.questions`), which its recipients then answer.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from math import inf
from typing import Literal, cast, get_args

from relay.envelope import ascii_domain
from relay.policy.access import yields
from relay.policy.lanefacts import LaneFacts
from relay.policy.routing import Question, glob

Kind = Literal["egress", "destination", "class", "tag", "sender", "user", "lane"]
KINDS: tuple[str, ...] = get_args(Kind)
MOST = 200  # in force at once: each may be a question to every lane
MAX_VALUE, MAX_REASON = 320, 200  # characters
_HALF_A_DAY, _TEN_YEARS = 43200.0, 10 * 366 * 86400.0


@dataclass(frozen=True)
class Suspension:
    """Times in epoch seconds."""

    kind: Kind
    value: str  # a case-insensitive glob; of a lane its number
    until: float | None = None  # None: until it is resumed
    reason: str = ""
    at: float = 0.0
    owner: str = ""  # whose token did it (policy.access); empty: somebody of the whole relay

    @classmethod
    def of(cls, kind: str, value: str, until: float | None, reason: str, at: float, owner: str = "") -> Suspension:
        """From what an operator said. Raises ValueError in words."""
        if kind not in KINDS:
            raise ValueError(f"unknown selector {kind!r}; there are {', '.join(KINDS)}")
        if not value and kind != "sender":  # the null sender is one
            raise ValueError(f"{kind} wants a name or a pattern")
        if len(value) > MAX_VALUE or not (value.isprintable() or not value):
            raise ValueError(f"{kind} wants printable text of at most {MAX_VALUE} characters")
        if kind == "lane" and not (value.isascii() and value.isdecimal()):
            raise ValueError(f"lane wants a number, lane_id in `relay queue list --json`; found {value!r}")
        if until is not None and not 0 < until - at <= _TEN_YEARS:
            raise ValueError("it is suspended for some time of at most ten years, or until it is resumed")
        said = "".join(c if c.isprintable() else "?" for c in " ".join(reason.split()))
        return cls(cast(Kind, kind), value, until, said[:MAX_REASON], at, owner)

    def yields_to(self, owner: str) -> bool:
        """Whether that one may change it: an operator any, a tenant its users' too, a user his own."""
        return yields(self.owner, owner)

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.value.lower()

    @property
    def selector(self) -> str:
        """As the command line has it: `--class marketing`."""
        return f"--{self.kind} {shlex.quote(self.value)}"

    @cached_property
    def why(self) -> str:
        """`suspended until 14:30 by hand: REASON, `relay resume --class marketing``."""
        end = f" until {_told(self.until, self.at)}" if self.until is not None else ""
        return f"suspended{end} by hand{f': {self.reason}' if self.reason else ''}, `relay resume {self.selector}`"

    @cached_property
    def question(self) -> Question | None:
        """What lanes must answer for it; None: they know it by value."""
        if self.kind in ("tag", "sender"):
            return Question(self.kind, (self.value,))
        if self.kind == "destination":  # a lane has its domain as a value only where it leaves by MX
            return Question("recipient", tuple(dict.fromkeys(f"*@{d}" for d in (self.value, ascii_domain(self.value)))))
        return None

    def left(self, now: float) -> float:
        """Seconds; 0: its time is over. inf: it has no end."""
        return inf if self.until is None else max(0.0, self.until - now)

    def binds(self, value: str) -> bool:
        return glob(self.value)(value) or (self.kind == "destination" and glob(ascii_domain(self.value))(value))


class Suspensions:
    """Those in force, in the order in which they were made. Falsy where there are none."""

    def __init__(self, kept: Iterable[Suspension] = ()) -> None:
        self._by_key: dict[tuple[str, str], Suspension] = {}
        self._by_kind: dict[str, list[Suspension]] = {}
        for suspension in kept:
            self.add(suspension)

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, suspension: Suspension) -> None:
        """In place of one of the same kind and value. Raises ValueError where there are too many."""
        self._by_key.pop(suspension.key, None)
        if len(self) >= MOST:
            raise ValueError(
                f"{MOST} suspensions are in force, which is the most; resume one of them, or use a pattern"
            )
        self._by_key[suspension.key] = suspension
        self._sort()

    def remove(self, kind: str, value: str) -> Suspension | None:
        """The one that there was."""
        gone = self._by_key.pop((kind, value.lower()), None)
        self._sort()
        return gone

    def _sort(self) -> None:
        self._by_kind = {kind: [s for s in self.all() if s.kind == kind] for kind in KINDS}

    def find(self, kind: str, value: str) -> Suspension | None:
        """The one of these words."""
        return self._by_key.get((kind, value.lower()))

    def all(self) -> list[Suspension]:
        return list(self._by_key.values())

    def over(self, now: float) -> list[Suspension]:
        """Those whose time is over; they stop nothing any more."""
        return [s for s in self._by_key.values() if s.left(now) <= 0]

    def next_end(self) -> float:
        """When the first of them is over, epoch seconds; inf: none ends by itself."""
        return min((s.until for s in self._by_key.values() if s.until is not None), default=inf)

    # -- asked by whoever lets mail go

    def blocks(self, kind: str, value: str, now: float) -> tuple[float, str] | None:
        """(seconds left, inf if no end; why) of the one of this kind that stops `value` the longest. None: it may go.

        Of an egress that delivers by MX, `mx-1 to google`, its name alone is asked for as well.
        """
        kept = self._by_kind.get(kind)
        if not kept:
            return None
        name = value.partition(" to ")[0] if kind == "egress" else value
        return _longest((s for s in kept if s.binds(value) or s.binds(name)), now)

    def lane(self, facts: LaneFacts, number: int, now: float, places: Iterable[str] = ()) -> tuple[float, str] | None:
        """As `blocks`, of a lane by all that it is. `places`: its site, and the name of the rule in `destinations`."""
        if not self._by_key:
            return None
        values: dict[str, tuple[str, ...]] = {
            "class": (facts.class_,),
            "user": (facts.user,) if facts.user else (),
            "lane": (str(number),),
            "destination": tuple(filter(None, (facts.destination, *places))),
        }
        return _longest((s for s in self._by_key.values() if _stops(s, facts, values)), now)

    def questions(self) -> tuple[Question, ...]:
        """Those that lanes must answer, beside the routes', each once."""
        asked = (s.question for s in self._by_key.values())
        return tuple({q.key: q for q in asked if q is not None}.values())

    # -- over a restart

    def state(self) -> str:
        rows = [
            {"kind": s.kind, "value": s.value, "until": s.until, "reason": s.reason, "at": s.at, "owner": s.owner}
            for s in self.all()
        ]
        return json.dumps(rows, ensure_ascii=False)

    @classmethod
    def load(cls, text: str) -> Suspensions:
        """What `state` wrote. Raises ValueError."""
        found = json.loads(text)
        try:
            rows = [(r["kind"], r["value"], r["until"], r["reason"], r["at"], r.get("owner", "")) for r in found]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"no list of suspensions: {error!r}") from None
        return cls(
            Suspension(kind, value, until, reason, at, owner)
            for kind, value, until, reason, at, owner in rows
            if kind in KINDS
        )


def _stops(suspension: Suspension, facts: LaneFacts, values: dict[str, tuple[str, ...]]) -> bool:
    ask: Callable[[Question], bool | None] = facts.ask
    question = suspension.question
    if question is not None and ask(question):
        return True
    return any(suspension.binds(value) for value in values.get(suspension.kind, ()))


def _longest(found: Iterable[Suspension], now: float) -> tuple[float, str] | None:
    last = max(found, key=lambda s: s.left(now), default=None)
    return (last.left(now), last.why) if last is not None and last.left(now) > 0 else None


def _told(until: float, at: float) -> str:
    """Local time, with the date where that is not soon."""
    local = datetime.fromtimestamp(until).astimezone()
    return f"{local:%H:%M}" if until - at < _HALF_A_DAY else f"{local:%Y-%m-%d %H:%M}"
