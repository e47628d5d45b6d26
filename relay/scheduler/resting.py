"""Destinations that an egress may not send to for now: by their own words, or by a rule of `shaping`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay import clock
from relay.envelope import domain_of
from relay.maillog import MailLog
from relay.reply import Reply, Result, Stage, Trouble
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

    def outcome(self, now: float) -> Outcome:
        """Its mail waits for the end, which is no attempt."""
        return Outcome(Result.LATER, "", Stage.CONNECT, Reply(0, self.why), wait=self.until - now)


class Resting:
    """What waits for such a destination waits until then; what is under way may go."""

    def __init__(self, log: MailLog) -> None:
        self.log = log
        self.rests: dict[tuple[str, str], Rest] = {}  # (egress, domain), in the order of their beginning

    def begin(self, egress: str, domain: str, until: float, why: str, passes: bool = False) -> bool:
        """Whether that is news. The later end of two is the one that counts."""
        rest = Rest(until, f"{domain} rests at {egress}: {why}", passes)
        before = self.rests.pop((egress, domain), None)
        while len(self.rests) >= MOST_DESTINATIONS:
            self.rests.pop(next(iter(self.rests)))
        if before is not None:
            rest.until, rest.passes = max(until, before.until), passes or before.passes
        self.rests[egress, domain] = rest
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

    def among(self, egress: str, recipients: Sequence[Claimed], now: float) -> list[tuple[Claimed, Rest]]:
        """Those whose destination rests there."""
        found = []
        for recipient in recipients:
            key = (egress, domain_of(recipient.address))
            rest = self.rests.get(key)
            if rest is not None and rest.until <= now:
                del self.rests[key]
            elif rest is not None:
                found.append((recipient, rest))
        return found
