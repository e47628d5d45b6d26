"""Rules of `shaping` at work: which ones a reply fires, what that puts in force, and what it changes for the mail that heard it.

The rate and the number of sessions are put on the egress here. A pause, the next egress and a suppressed recipient become a
`Trouble`, with which `scheduler.blame` does as with any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from relay import clock, metrics
from relay.deliver.pool import Egress, name_of
from relay.envelope import ascii_domain, domain_of
from relay.maillog import MailLog
from relay.policy.shaping import InForce, Shaped, ShapingRule, fitting
from relay.reply import Remedy, Reply, Result, Scope, Stage, Trouble
from relay.scheduler.alarms import Alarms
from relay.scheduler.journal import Journal
from relay.scheduler.memory import Memory
from relay.scheduler.sites import Sites
from relay.scheduler.work import Work
from relay.settings import Config
from relay.spool import Claimed

AGAIN = 60.0  # seconds after which a message that heard of a domain's pause is looked at again
_OF_MAIL = (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY, Stage.DOT)
_OF_RECIPIENTS = (Stage.RCPT, Stage.DATA, Stage.DOT)

FIRED = metrics.Counter("relay_shaping_total", "Rules of `shaping` that began to act", ["egress", "rule"])


@dataclass(slots=True)
class Heard:
    """What a reply comes to by the rules that fit it."""

    trouble: Trouble | None = None  # in the place of what the reply means otherwise
    rests: list[InForce] = field(default_factory=list)  # of an account: domains that it sends nothing to


class Shaping:
    """All rules, and what is in force by them."""

    def __init__(self, sites: Sites, log: MailLog, memory: Memory, alarms: Alarms, journal: Journal) -> None:
        self.sites, self.log, self.alarms, self.journal = sites, log, alarms, journal
        self.rules: tuple[ShapingRule, ...] = ()  # the user's; those of presets are their accounts'
        self.shaped = Shaped()
        memory.recall("shaping", lambda found: self.shaped.load(found["rows"]))
        memory.sources.append(self._learnt)
        self.measures = False  # some rule slows: how much leaves has to be known before one fires
        self._last: tuple[object, list[ShapingRule]] = (None, [])

    def _learnt(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        if (rows := self.shaped.state()) != "[]":
            yield "shaping", {"rows": rows}

    def apply(self, config: Config) -> None:
        """A new configuration: what a rule put in force ends with it, and goes on where the rule is the same."""
        self.rules, self._last = config.shaping, (None, [])
        every = (*config.shaping, *(rule for account in config.accounts.values() for rule in account.shaping))
        self.measures = any(rule.slow is not None for rule in every)

        def rules(key: str) -> Iterable[ShapingRule]:
            account = config.accounts.get(name_of(key))
            return () if account is None else self.rules + account.shaping

        for gone in self.shaped.keep(rules):
            self._ended(gone)

    def resume(self, egress: Egress[Work]) -> None:
        """All that is in force is put on an egress: it is new, or the configuration is."""
        now = clock.now()
        self._impose(egress, now)
        (paused, why), (aside, because) = (does(egress.key, "", now) for does in (self.shaped.paused, self.shaped.next))
        if max(paused, aside) > now:
            why = because if aside > now else why
            egress.breaker.rest(now, max(paused, aside) - now, why, passes=aside > now)

    def resting(self) -> list[InForce]:
        """Of accounts: domains that are paused, or whose mail goes by the next egress."""
        return [f for f in self.shaped.all() if f.destination and (f.pause or f.next) and f.until > clock.now()]

    def sweep(self) -> None:
        """Forgets what has come to its end."""
        now = clock.now()
        if self.shaped:
            for gone in self.shaped.over(now):
                self._ended(gone)

    def _ended(self, gone: InForce) -> None:
        for what in ("shaped", "failed_over"):
            self.alarms.end(what, _about(gone))
        self.log.event(
            "shaping_over", egress=gone.egress, domain=gone.destination or None, what=gone.what, after=gone.why
        )
        if _kind(gone) is not None:
            self.journal.note(
                "resumed", gone.egress, what=gone.what, destination=gone.destination, why=f"after {gone.why}"
            )

    # -- a reply

    def fitting(
        self, egress: Egress[Work], work: Work, about: Sequence[Claimed], stage: Stage, reply: Reply
    ) -> list[ShapingRule]:
        """The rules that fit. `about`: the recipients that the reply is about."""
        rules = self.rules + egress.account.shaping
        if not rules or reply.code < 400:
            return []
        # Before MAIL no account has heard a word of any domain; by MX the host is the domain's.
        said = egress.direct is not None or stage in _OF_MAIL
        domains = frozenset(ascii_domain(domain_of(r.address)) for r in about) if said else frozenset()
        line = str(reply)
        asked = (egress.account, egress.key, domains, work.claim.class_, stage, line)
        if self._last[0] != asked:  # one reply to the final dot is the answer to all its recipients
            found = fitting(rules, egress.name, domains, self._sites(egress), work.claim.class_, stage, line)
            self._last = asked, found
        return self._last[1]

    def _sites(self, egress: Egress[Work]) -> tuple[str, ...]:
        """What the destination of a lane is called: by its rule, and by whose hosts they are. Neither comes from the DNS."""
        if egress.direct is None:
            return ()
        known = self.sites.by_name.get(egress.site)
        return tuple(filter(None, (egress.direct.rule.name, known.provider if known else "")))

    def heard(
        self, egress: Egress[Work], work: Work, about: Sequence[Claimed], stage: Stage, reply: Reply
    ) -> Heard | None:
        """What the rules that fit say is done, all of it. None: none fits."""
        rules = self.fitting(egress, work, about, stage, reply)
        if not rules:
            return None
        now, heard = clock.now(), Heard()
        for rule in rules:
            domains = {""}
            if rule.destination and egress.direct is None and (rule.pause or rule.next):
                domains = {domain_of(r.address) for r in about}
            for domain in domains:
                self._fire(rule, egress, domain, reply, now)
                heard.rests += [f for f in self.shaped.of(egress.key, domain, now) if domain and (f.pause or f.next)]
        self._impose(egress, now)
        work.ends |= any(rule.drop for rule in rules)
        heard.trouble = self._trouble(egress, rules, stage)
        if suppresses := [r for r in rules if r.suppress and stage in _OF_RECIPIENTS and len(about) == 1]:
            rule = suppresses[0]
            FIRED.inc(1, "", rule.shown)
            means = f"suppressed by {rule.shown}"
            heard.trouble = Trouble(Scope.RECIPIENT, Result.HARD, None, means, suppress=rule.seconds)
            self.resume(egress)  # he fails, and the others wait
        return heard

    def _fire(self, rule: ShapingRule, egress: Egress[Work], domain: str, reply: Reply, now: float) -> None:
        made = self.shaped.apply(rule, egress.key, domain, str(reply), now, egress.pace.throttle.measured(now))
        if made is None:
            return
        FIRED.inc(1, egress.name, rule.shown)
        if rule.alarm:
            self.alarms.begin("shaped", _about(made), f"{reply} ({rule.shown})")
        self.log.warning(
            "shaped",
            egress=egress.key,
            domain=domain or None,
            what=made.what,
            seconds=round(rule.seconds, 1),
            reply=str(reply),
            rule=rule.shown,
        )
        if (kind := _kind(made)) is not None:
            self.journal.note(
                kind, egress.key, reply.code, what=made.what, destination=domain, until=made.until, last_reply=str(reply),
                why=rule.shown,
            )  # fmt: skip

    def _impose(self, egress: Egress[Work], now: float) -> None:
        """The rate and the sessions that are in force; where a rule is gone, no more."""
        throttle, slowed = egress.pace.throttle, self.shaped.rate(egress.key, now)
        if slowed is not None:
            throttle.slow(*slowed, now)
        else:
            throttle.until = 0.0
        most, until, why = self.shaped.sessions(egress.key, egress.account.connections, now)
        egress.shaped = (most, until, why) if until else None

    def _trouble(self, egress: Egress[Work], rules: Sequence[ShapingRule], stage: Stage) -> Trouble | None:
        """Who says a word that makes us pause says nothing about the message: it waits as all others do, even after a 5xx."""
        pauses = [rule for rule in rules if rule.pause or rule.next]
        whole = [rule for rule in pauses if egress.direct is not None or not rule.destination]
        if whole:
            seconds, passes = max(rule.seconds for rule in whole), any(rule.next for rule in whole)
            return Trouble(Scope.EGRESS, Result.SOFT, seconds, whole[0].shown, Remedy.REST, passes)
        if pauses:
            scope = Scope.RECIPIENT if stage is Stage.RCPT else Scope.MESSAGE
            return Trouble(scope, Result.SOFT, min(AGAIN, *(r.seconds for r in pauses)), pauses[0].shown)
        return None


def _kind(force: InForce) -> Literal["paused", "throttled"] | None:
    """Of the event that tells of it. Where all of an egress rests, its breaker tells."""
    if force.destination and (force.pause or force.next):
        return "paused"
    return "throttled" if force.share is not None or force.connections is not None else None


def _about(force: InForce) -> str:
    return f"{force.egress} to {force.destination}" if force.destination else force.egress
