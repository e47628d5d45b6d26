"""The spool: what is in it survives a power cut. Protocol and values; `sqlite` is one implementation.

Promises: a message is durable when `accept` returns; a claim is durable before `claim` returns; `record` is one
transaction for one batch of settlements. Refuses: a second process (SpoolBusy), a newer schema (SpoolNewer), mail beyond
its limits (SpoolFull). One conformance suite, tests/spool, runs over every implementation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, Protocol

from relay.events import Kind
from relay.policy.classes import InDoubt
from relay.policy.suppression import Softly, Suppression
from relay.recipient import News, State, Verb
from relay.spool.access import Access
from relay.spool.errors import SpoolBusy, SpoolCorrupt, SpoolError, SpoolFull, SpoolNewer
from relay.spool.feed import Feed
from relay.spool.filter import Filter

__all__ = [
    "Filter",
    "SpoolBusy",
    "SpoolCorrupt",
    "SpoolError",
    "SpoolFull",
    "SpoolNewer",
]  # beside what is defined here

SIBLINGS = 1000  # recipients of one message that are claimed beyond what was asked for
INLINE_LIMIT = 256 * 1024  # bytes; a larger body is a file: 100 × 10 MB in the table took small commits to seconds


class Notify(IntFlag):
    """What a recipient's NOTIFY asked for (RFC 3461 §4.1); no bit: nothing was said. TOLD: its delay has been told."""

    SUCCESS = 1
    FAILURE = 2
    DELAY = 4
    NEVER = 8
    TOLD = 16

    def wants(self, news: News) -> bool:
        """Whether the sender is to be told. Where nothing was said: of failures, and of a delay once."""
        if self & Notify.NEVER:
            return False
        asked = self & ~Notify.TOLD
        match news:
            case News.FAILED:
                return not asked or Notify.FAILURE in asked
            case News.DELAYED:
                return Notify.TOLD not in self and (not asked or Notify.DELAY in asked)
            case News.RELAYED:
                return Notify.SUCCESS in asked

    @property
    def words(self) -> str:
        """As NOTIFY has it: `SUCCESS,DELAY`; empty where nothing was said."""
        return ",".join(str(bit.name) for bit in Notify if bit in self and bit is not Notify.TOLD)

    @classmethod
    def parse(cls, words: str) -> Notify:
        """Of `words`."""
        found = cls(0)
        for word in words.split(",") if words else ():  # `filter` is a module of this room
            found |= cls[word]
        return found


class Place(IntEnum):
    TABLE = 0
    FILE = 1
    DROPPED = 2


@dataclass(slots=True)
class NewRecipient:
    address: str
    facts: str  # policy.lanefacts.lane_facts
    state: State
    due_at: float
    expires_at: float
    egress: str = ""
    why: str = ""
    notify: int = 0  # Notify
    orcpt: str = ""  # ORCPT as it was written
    kind: Kind | None = None  # of the event that ends it at once; None: as its state and egress say


@dataclass(slots=True)
class NewMessage:
    id: int
    sender: str
    header_from: str
    user: str
    class_: str
    tag: str
    listener: str
    client: str
    priority: int
    accepted_at: float
    head: bytes
    body: bytes | Path  # a Path: staged by `Content`, durable already
    body_size: int
    smtp: int
    recipients: list[NewRecipient]
    idempotency_key: str = ""
    digest: str = ""  # of what was submitted with that key; empty: not asked
    metadata: str = ""  # JSON, what the application says of it
    send_at: float = 0.0  # not before this; 0: at once
    envid: str = ""  # RFC 3461 §4.4, decoded
    ret: str = ""  # FULL, HDRS, or not said
    report: int = 0  # 1: a report that we wrote, 2: one about a report
    lane: int = 0  # where a Taker granted it: its recipients are claimed from the start
    spent: Sequence[tuple[str, float, int]] = ()  # written with it, as `spend` would


@dataclass(slots=True)
class Claimed:
    """One recipient in flight. `attempts`: before this one."""

    n: int
    address: str
    was: State
    attempts: int
    expires_at: float
    lane: int
    in_doubt: bool
    crashes: int = 0  # in a row, in which the process died with it in flight
    notify: int = 0  # Notify
    orcpt: str = ""
    due_at: float = 0.0  # since when it was due: its place in its lane


@dataclass(slots=True)
class Claim:
    """One message and those of its recipients that were claimed together."""

    message: int
    sender: str
    class_: str
    user: str
    tag: str
    accepted_at: float
    size: int
    smtp: int
    head: bytes
    place: int  # a Place
    recipients: list[Claimed]
    body: bytes | None = None  # where it was at hand
    envid: str = ""
    ret: str = ""
    report: int = 0


@dataclass(slots=True)
class Head:
    """A lane and when its next recipient is due; None: nothing waits in it."""

    lane: int
    facts: str
    due_at: float | None


@dataclass(slots=True)
class Ask:
    """A wish to claim up to `limit` recipients of a lane that are due at `now`.

    `siblings`: so many more of the last message, which travels once for all its recipients.
    """

    lane: int
    limit: int
    now: float
    siblings: int = SIBLINGS


Position = tuple[int, int, float, int]  # lane, priority, due_at, message: where a recipient waits


@dataclass(slots=True)
class Event:
    at: float
    message: int
    n: int | None
    kind: Kind
    egress: str = ""
    code: int = 0
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Change:
    """A recipient's new state after an attempt."""

    message: int
    n: int
    lane: int
    state: State
    due_at: float
    attempts: int
    in_doubt: bool
    egress: str
    note: str  # JSON
    crashes: int = 0


@dataclass(slots=True)
class Tell:
    """A recipient of whom its sender may have to be told, once the change to its row is written."""

    message: int
    n: int
    news: News
    at: float
    tried: bool = False  # then
    expired: bool = False  # given up, not refused


@dataclass(slots=True)
class Settlement:
    """What one delivery came to: made by settle, made durable by record."""

    changes: list[Change]
    events: list[Event]
    tells: list[Tell] = field(default_factory=list)
    inline: bool = False  # the message's body lies in the table
    suppressions: list[Suppression] = field(default_factory=list)
    softly: list[Softly] = field(default_factory=list)


@dataclass(slots=True)
class End:
    """A recipient in a report: what its row says, and what `tell` adds."""

    tell: Tell
    address: str
    notify: int
    orcpt: str
    egress: str
    why: str
    last_reply: str
    in_doubt: bool
    expires_at: float
    remote: str = ""  # which of its domain's hosts said that, where it left by MX


@dataclass(slots=True)
class Original:
    """The message that a report is about."""

    id: int
    sender: str
    accepted_at: float
    send_at: float
    size: int
    smtp: int
    head: bytes
    envid: str
    ret: str
    report: int
    body: bytes | None = None  # where `ret` asks for it and it is small


@dataclass(slots=True)
class Report:
    """What came of telling a sender: a new message, or `result` says why there is none."""

    original: int
    news: News
    result: str  # made, double_bounce; unwanted, early, off, null_sender, dropped, no_route, error
    message: NewMessage | None = None
    why: str = ""  # for the story and the log
    hint: str = ""  # what an operator could do


class Taker(Protocol):
    """Who may take a message on as it is accepted, so that one transaction stores and claims it."""

    def grant(self, message: int, lane: int, recipients: int) -> bool:
        """Whether its recipients, all of this lane, may go at once; a place is kept for them."""
        ...

    def take(self, claim: Claim) -> None:
        """It is durable, and claimed."""
        ...

    def give_up(self, message: int) -> None:
        """It was not stored: the place is free."""
        ...


class Reporter(Protocol):
    """Who writes the reports. The spool asks in the transaction that makes the news, and tells it once that is durable."""

    def make(self, original: Original, ends: Sequence[End], now: float) -> Report:
        """On the spool's thread; never raises."""
        ...

    def tell(self, reports: Sequence[Report]) -> None:
        """On the loop."""
        ...


class Bodies(Protocol):
    """What happens to bodies in files, beside the rows."""

    async def copy(self, source: Path, message: int) -> Path: ...
    def drop(self, messages: Iterable[int]) -> None: ...


class Staging(Protocol):
    """A large body while it arrives."""

    path: Path
    size: int

    async def write(self, *parts: bytes) -> None: ...
    async def finish(self) -> None: ...
    def abandon(self) -> None: ...


class Spool(Feed, Access, Protocol):
    """What the rooms ask of a spool: the hot path, and below it what operators and housekeeping ask."""

    counts: dict[State, int]
    reporter: Reporter | None  # None: nobody is told anything
    taker: Taker | None  # None: what is accepted waits to be claimed
    refusal: str  # why no mail is accepted at the moment; empty: it is
    max_message_size: int
    keep: float
    path: Path

    def next_id(self) -> int: ...
    def stage(self, message: int) -> Staging: ...
    async def accept(self, message: NewMessage) -> tuple[int, bool]: ...
    async def heads(self) -> list[Head]: ...
    async def claim(self, asks: Sequence[Ask]) -> tuple[list[Claim], dict[int, float | None]]: ...
    async def read(self, message: int, place: int) -> bytes | Path: ...
    def record(self, settlements: Sequence[Settlement]) -> Awaitable[object]: ...
    async def spend(self, rows: Sequence[tuple[str, float, int]]) -> None: ...
    async def recover(self, in_doubt: Mapping[str, InDoubt], now: float, chance: float) -> tuple[int, list[int]]: ...
    async def sweep(self) -> list[int]: ...
    async def wait(self, timeout: float | None) -> list[Head]: ...
    def wake(self) -> None: ...

    @property
    def content(self) -> Bodies: ...
    @property
    def queued(self) -> int: ...
    @property
    def alive_at(self) -> float: ...
    def check_room(self) -> None: ...
    async def probe(self, now: float) -> None: ...
    def find(
        self, wanted: Filter, after: tuple[int, int] | None = None, limit: int = 500
    ) -> AsyncIterator[dict[str, Any]]: ...
    async def message(self, number: int) -> dict[str, Any] | None: ...
    async def messages(
        self, wanted: Filter, after: int | None = None, limit: int = 100, *, newest: bool = False
    ) -> list[dict[str, Any]]: ...
    async def stats(self, users: frozenset[str] | None = None) -> list[dict[str, Any]]: ...
    async def change(
        self,
        keys: Sequence[tuple[int, int]],
        verb: Verb,
        now: float,
        why: str,
        facts: Mapping[int, str] | None = None,
        kind: Kind | None = None,
        owner: str = "",
    ) -> int: ...
    async def relane(self, moves: Sequence[tuple[int, int, int, str]]) -> None: ...
    async def stale(self, lane: int, limit: int) -> list[dict[str, Any]]: ...
    async def stale_held(
        self, lanes: Sequence[int], after: tuple[int, int] | None, limit: int
    ) -> list[dict[str, Any]]: ...
    async def due(self, lane: int) -> float | None: ...
    async def before(self, place: Position, lanes: Sequence[int], now: float) -> tuple[int, dict[int, int]]: ...
    async def oldest(self) -> float | None: ...
    async def tell_delays(
        self, before: float, now: float, after: tuple[int, int] | None = None
    ) -> tuple[int, int] | None: ...
    async def expired(
        self, now: float, after: tuple[int, int] | None = None, limit: int = 1000
    ) -> list[tuple[int, int]]: ...
    async def purge(self, before: float) -> int: ...
    async def forget_lanes(self) -> list[int]: ...
    async def spent(self) -> dict[str, list[tuple[float, int]]]: ...
    async def forget_spent(self, before: float) -> None: ...
    async def remember(self, documents: Mapping[str, str | None]) -> None: ...
    async def remembered(self) -> dict[str, str]: ...
    async def check(self) -> list[str]: ...
    async def backup(self, folder: Path) -> dict[str, Any]: ...
