"""Destinations that an egress may not send to for now: by their own words, or by a rule of `shaping`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from relay import clock
from relay.envelope import domain_of
from relay.maillog import MailLog
from relay.reply import Reply, Result, Stage, Trouble
from relay.scheduler.journal import Journal
from relay.settle import Outcome
from relay.spool import Claimed

DESTINATION_REST = 900.0  # seconds, where nobody says for how long
MOST_DESTINATIONS = 10_000  # that rest at once; of more the one that began first is forgotten


@dataclass(slots=True)
class Rest:
    """Of one destination at one egress."""

    until: float
    why: str
    passes: bool = False  # the route's next egress takes over
    told: bool = False  # its beginning is an event, so its end is one

    def outcome(self, now: float) -> Outcome:
        """Its mail waits for the end, which is no attempt."""
        return Outcome(Result.LATER, "", Stage.CONNECT, Reply(0, self.why), wait=self.until - now)


class Resting:
    """What waits for such a destination waits until then; what is under way may go."""

    def __init__(self, journal: Journal, log: MailLog) -> None:
        self.journal, self.log = journal, log
        self._first = inf  # before it none of `rests` ends
        self.rests: dict[tuple[str, str], Rest] = {}  # (egress, domain), in the order of their beginning

    def begin(self, egress: str, domain: str, until: float, why: str, passes: bool = False) -> bool:
        """Whether that is news. The later end of two is the one that counts."""
        rest = Rest(until, f"{domain} rests at {egress}: {why}", passes)
        before = self.rests.pop((egress, domain), None)
        while len(self.rests) >= MOST_DESTINATIONS:
            self.rests.pop(next(iter(self.rests)))
        if before is not None:
            rest.until, rest.passes = max(until, before.until), passes or before.passes
            rest.told = before.told
        self.rests[egress, domain] = rest
        self._first = min(self._first, rest.until)
        return before is None or before.until <= clock.now()

    def heard(self, egress: str, domain: str, trouble: Trouble, reply: Reply) -> None:
        """One said so itself; that is told once."""
        seconds = DESTINATION_REST if trouble.wait is None else trouble.wait
        if self.begin(egress, domain, clock.now() + seconds, f"{reply} ({trouble.means})"):
            self.log.warning(
                "destination_rests",
                egress=egress,
                domain=domain,
                reply=str(reply),
                means=trouble.means,
                seconds=round(seconds, 1),
            )
            self.journal.note(
                "paused", egress, reply.code, what="destination", destination=domain, until=clock.now() + seconds,
                last_reply=str(reply), why=trouble.means,
            )  # fmt: skip
            self.rests[egress, domain].told = True

    def over(self, now: float) -> None:
        """Forgets those that have come to their end."""
        if now < self._first:
            return
        for key in [key for key, rest in self.rests.items() if rest.until <= now]:
            self._end(key)
        self._first = min((rest.until for rest in self.rests.values()), default=inf)

    def clear(self) -> None:
        for key in list(self.rests):
            self._end(key)

    def _end(self, key: tuple[str, str]) -> None:
        if self.rests.pop(key).told:
            self.journal.note("resumed", key[0], what="destination", destination=key[1])

    def among(self, egress: str, recipients: Sequence[Claimed], now: float) -> list[tuple[Claimed, Rest]]:
        """Those whose destination rests there."""
        found = []
        for recipient in recipients:
            key = (egress, domain_of(recipient.address))
            rest = self.rests.get(key)
            if rest is not None and rest.until <= now:
                self._end(key)
            elif rest is not None:
                found.append((recipient, rest))
        return found
