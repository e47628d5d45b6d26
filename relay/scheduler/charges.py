"""What a transaction is counted against: limits of what its mail is, and the pace of its egress. On the disk before it is said.

Counted when it is claimed, or gets its turn; moved to when it is said; given back where nothing was said.
"""

from __future__ import annotations

from relay import clock
from relay.deliver.pool import Egress
from relay.deliver.smtp import TooSoon
from relay.policy.held import Held
from relay.scheduler.bounds import Bounds
from relay.scheduler.ledger import Ledger
from relay.scheduler.work import Work


class Charges:
    def __init__(self, bounds: Bounds, ledger: Ledger) -> None:
        self.bounds, self.ledger = bounds, ledger

    def charge(self, egress: Egress[Work], work: Work) -> Held:
        """Counts it against the limits that bind it on this way, or says how long they hold it."""
        assert work.lane is not None
        return self.bounds.charge(work.lane, egress.key, work, clock.now(), self.ledger.note)

    def turn(self, egress: Egress[Work], work: Work, now: float) -> None:
        """The pace of its egress lets it go."""
        work.turn, work.paced = now, True
        egress.pace.take(now, len(work.recipients), work.claim.size)
        self._note(egress)

    async def saved(self, egress: Egress[Work], work: Work) -> None:
        """What it is counted against is durable, and counts from now on, when it is said. Raises TooSoon, SpoolError.

        Who waited for longer than a period for his connection is counted no more, and others took his place.
        """
        if self.ledger.unsaved:
            await self.ledger.save()
        now, count, size = clock.now(), len(work.recipients), work.claim.size
        for meter, when in work.charged.items():
            if now - when >= meter.limit.rate.period and (held := meter.wait(now, count, size)).seconds > 0:
                raise TooSoon(held.why)
        for meter in work.move(now):
            self.ledger.note(meter)
        if work.paced:
            egress.pace.move(work.turn, now, count, size)
            work.turn = now
            self._note(egress)

    def unsaid(self, egress: Egress[Work], work: Work) -> None:
        """Nothing of it was said upstream."""
        if work.paced:
            egress.pace.untake(work.turn, len(work.recipients), work.claim.size)
            self._note(egress)
        self.refund(work)

    def refund(self, work: Work) -> None:
        """It goes back, and what its mail is counted against has it again."""
        for meter in work.refund():
            self.ledger.note(meter)

    def _note(self, egress: Egress[Work]) -> None:
        for pace in (egress.pace, *egress.pace.also):
            if pace.limits or pace.ramp is not None:
                self.ledger.note(pace)
