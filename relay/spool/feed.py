"""What the spool keeps beside mail: the stream of events, who is suppressed, and what endpoints have not taken yet.

Values and the protocol; `Spool` has it all. Implemented in `spool/stream.py`, `spool/suppressed.py`, `spool/parcels.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from relay.events import Row
from relay.policy.suppression import Softly, Suppression, Why

if TYPE_CHECKING:
    from relay.spool import Event


@dataclass(slots=True)
class Learnt:
    """What one report, or one act of an operator, comes to: written in one transaction, or not at all.

    `once`: by what it is known again; if that was learnt before, nothing is written. Remembered for `spool.keep`, and for 30
    days at least.
    """

    events: Sequence[Event] = ()
    suppressions: Sequence[Suppression] = ()  # one with the same key is replaced if it ends sooner, or is weaker
    softly: Sequence[Softly] = ()
    removed: Sequence[tuple[str, str]] = ()  # (scope, address) that are suppressed no more
    documents: Mapping[str, str | None] = field(default_factory=dict)  # as `remember` takes them
    once: str = ""


@dataclass(slots=True)
class Known:
    """What the spool knows of one recipient of a message: for reports that come back."""

    message: int
    n: int
    address: str
    state: int  # recipient.State
    egress: str
    sender: str
    header_from: str
    user: str
    class_: str
    tag: str
    accepted_at: float
    head: bytes  # the header block as it was accepted


@dataclass(slots=True)
class SuppressionFilter:
    """Empty fields select all. Globs have no case."""

    address: str = ""  # glob
    scope: str | None = None  # exactly that
    why: Why | None = None
    source: str = ""


@dataclass(slots=True)
class Parcel:
    """An event that an endpoint did not take at once: it waits for its next turn, or is a dead letter."""

    endpoint: str
    event: int
    message: int
    body: str  # JSON, as it was to be sent
    attempts: int = 0
    due_at: float = 0.0
    first_at: float = 0.0
    why: str = ""
    dead: bool = False


@dataclass(slots=True)
class Progress:
    """How far an endpoint has come; written in one transaction."""

    endpoint: str
    cursor: int  # all events up to this one are taken, or are parcels
    parcels: Sequence[Parcel] = ()  # new, or as they are now
    taken: Sequence[int] = ()  # events of parcels that are no more


# What is new or changed on the list, and (scope, address) of what is gone from it.
Heard = Callable[[Sequence[Suppression], Sequence[tuple[str, str]]], None]


class Feed(Protocol):
    on_suppressed: Heard | None  # told on the loop, in the order of commits, whoever suppressed

    # -- events

    async def events(self, after: int, limit: int = 500, until: int | None = None) -> list[Row]:
        """Those with a greater id, in order; at most up to `until`. Fewer than `limit` may come where more are; none: no more."""
        ...

    async def events_of(self, users: Collection[str], after: int, limit: int, until: int) -> tuple[list[Row], int, int]:
        """(those about mail of these users, as `events`; the cursor behind what was looked through; how many that were: of all,
        a few thousand at most, and none only where there are no more)."""
        ...

    async def newest_of(self, users: Collection[str], after: int, most: int) -> list[int]:
        """Ids of those about mail of these users, in order; looked for among the newest `most` of all."""
        ...

    async def story(self, message: int) -> list[Row]:
        """Of one message, in order."""
        ...

    async def last_event(self) -> int:
        """The greatest id that there is; 0: none."""
        ...

    async def event_at(self, at: float) -> int:
        """A cursor: all events after it are of this time or later, but for the moments between an event and its commit."""
        ...

    async def stirred(self, timeout: float | None, after: int | None = None) -> bool:
        """Waits until there is an event after that one; at once where there is. False: not within `timeout` seconds.

        Without `after`: for the next commit since a call returned; what another waiter was told of is not told again. For many
        who wait at once.
        """
        ...

    async def note(self, events: Sequence[Event]) -> None:
        """Events of what has no row of its own. Durable when it returns."""
        ...

    # -- what comes back

    async def learn(self, learnt: Learnt) -> list[Suppression] | None:
        """The suppressions that are new or changed, those of `softly` among them. None: it was learnt before (`once`).

        `removed` comes first. What is new on the list, and what is gone, is an event too. A few hundred entries at once.
        """
        ...

    async def forget_feed(self, now: float) -> None:
        """Forgets by age, in slices: events that go with no message, the keys of reports, soft bounces."""
        ...

    async def known(self, message: int, n: int | None = None, address: str = "") -> Known | None:
        """The recipient by its number or, without regard to case, its address; of a message with one recipient that one."""
        ...

    # -- who is suppressed

    async def suppressed(self, address: str, scopes: Sequence[str] = ()) -> list[Suppression]:
        """Of one address, in these scopes; none given: in all."""
        ...

    async def suppressions(
        self, wanted: SuppressionFilter, after: tuple[str, str] | None = None, limit: int = 500
    ) -> list[Suppression]:
        """A page, in order of (scope, address)."""
        ...

    async def suppression_index(self) -> Iterator[tuple[str, str, Why]]:
        """(scope, address, why) of all. Once at start."""
        ...

    async def suppressions_over(self, now: float) -> list[tuple[str, str]]:
        """Forgets those that have come to their end; returns their keys."""
        ...

    # -- endpoints

    async def cursors(self) -> dict[str, int]:
        """How far each endpoint has come."""
        ...

    async def progress(self, progress: Progress) -> None: ...

    async def forget_endpoint(self, endpoint: str) -> None: ...

    async def parcels(self, endpoint: str, *, dead: bool, after: int = 0, limit: int = 500) -> list[Parcel]:
        """In order of their events."""
        ...

    async def parcels_due(self, endpoint: str, now: float, limit: int) -> list[Parcel]:
        """Those that are due. Of one message none without those before it that wait: they come first in the answer."""
        ...

    async def parcel_counts(self) -> dict[str, tuple[int, int, float | None]]:
        """endpoint -> (waiting, dead, when the next of the waiting is due)."""
        ...

    async def waiting_messages(self, endpoint: str) -> set[int]:
        """Messages of which a parcel waits: what comes after goes behind it."""
        ...
