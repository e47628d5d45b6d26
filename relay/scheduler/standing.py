"""How mail is received: rolling rates by egress, destination, sender and class, and what follows from them.

Routes may ask for a sender's score; a warm-up holds back where it meets too many bounces. What is tried counts once an
upstream has answered it; who could not be reached at all says nothing about mail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from relay import clock, metrics
from relay.envelope import ascii_domain, domain_of
from relay.maillog import MailLog
from relay.policy.reputation import Kind, Reputation, Share, Tally
from relay.policy.warmup import Ramp
from relay.reply import Result, Stage
from relay.scheduler.journal import Journal
from relay.scheduler.memory import Memory
from relay.settle import Outcome
from relay.spool import Claim, Claimed

DOCUMENT = "reputation"  # its key in the spool
JUDGE_EVERY = 60.0  # seconds
DECAY_EVERY = 3600.0
MOST = 500  # rows that are told
_ANSWERED = frozenset((Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY, Stage.DOT))
_KINDS: Mapping[Result, Kind] = {Result.DELIVERED: "delivered", Result.SOFT: "deferred", Result.HARD: "bounced"}

SCORE = metrics.Gauge(
    "relay_reputation_score", "Score of an egress by what it met in the last 24 hours, 1 at best", ["egress"]
)

Ramps = Callable[[], Iterable[tuple[str, Ramp]]]  # (key of the reputation, its ramp)


class Standing:
    """`ramps`: all that are in force."""

    def __init__(self, memory: Memory, journal: Journal, log: MailLog, ramps: Ramps, now: float) -> None:
        self.journal, self.log, self._ramps = journal, log, ramps
        self.reputation = Reputation()
        memory.recall(DOCUMENT, lambda state: self.reputation.load(state, now))
        self._tally = Tally(self.reputation)
        self._judged = self._decayed = now
        self._document: Mapping[str, Any] = {}  # as of the last look
        memory.sources.append(self._learnt)
        SCORE.source = self._scores

    def _scores(self) -> Iterator[tuple[tuple[str, ...], float]]:
        """Of the egresses by which something was tried; a direct entry's is over all its destinations."""
        now = clock.now()
        self._tally.fold(now)
        for key in self.reputation.of("egress"):
            yield (key.partition(" ")[2],), self.reputation.score(key, now)

    def _learnt(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        self._document = self._document or self.reputation.state()
        yield DOCUMENT, self._document

    def add(self, claim: Claim, outcomes: Sequence[tuple[Claimed, Outcome]]) -> None:
        """On the hot path: one increment for each recipient."""
        sender = ascii_domain(domain_of(claim.sender))
        for recipient, outcome in outcomes:
            kind = _KINDS.get(outcome.result)
            if kind is not None and outcome.egress and outcome.stage in _ANSWERED:
                domain = ascii_domain(domain_of(recipient.address))
                self._tally.add(outcome.egress, domain, sender, claim.class_ or "default", kind, outcome.site)

    def came_back(
        self,
        egress: str,
        recipient_domain: str,
        sender_domain: str,
        class_: str,
        kind: Literal["bounced", "complained"],
        site: str = "",
    ) -> None:
        """A report on what had been delivered: it bounced after all, or its recipient complained. Not for what failed here,
        which was counted when it did. What is not known is empty. `sender_domain`: of its reverse-path."""
        what: Kind = "returned" if kind == "bounced" else kind
        names = (ascii_domain(recipient_domain), ascii_domain(sender_domain))
        self._tally.add(egress, *names, class_ or "default", what, site)

    def score(self, sender: str) -> float:
        """Of the domain of a reverse-path, as of the last look."""
        return self.reputation.score(f"sender {ascii_domain(domain_of(sender))}", self._judged)

    def look(self, now: float) -> None:
        """From time to time: what was counted since then is weighed."""
        if now - self._judged < JUDGE_EVERY:
            return
        self._judged = now
        self.weigh(now)
        if now - self._decayed > DECAY_EVERY:
            self._decayed = now
            self.reputation.decay(now)
        for key, ramp in self._ramps():
            if told := ramp.judge(now, self.reputation.rates(key, now)):
                self.log.warning("warm_up", egress=ramp.name, what=told)
                self.journal.note("throttled" if ramp.held else "resumed", ramp.name, what="warm_up", why=told)

    def weigh(self, now: float) -> None:
        """All that was counted is in the rates, and will be remembered."""
        self._tally.fold(now)
        self._document = {}

    def rows(self, now: float) -> list[dict[str, Any]]:
        """A flat row for each key, for operators; the lowest score first."""
        self.weigh(now)
        found = [(self.reputation.score(key, now), key) for key in list(self.reputation)]
        return [self._row(key, score, now) for score, key in sorted(found)[:MOST]]

    def _row(self, key: str, score: float, now: float) -> dict[str, Any]:
        rates, (what, _, name) = self.reputation.rates(key, now), key.partition(" ")
        row: dict[str, Any] = {"what": what, "name": name, "tried": rates.total, "score": round(score, 3)}
        for kind in ("deferrals", "bounces", "complaints"):
            share: Share = getattr(rates, kind)
            row |= {kind: share.rate, f"{kind}_low": share.low, f"{kind}_high": share.high}
        return row
