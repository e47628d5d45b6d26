"""Who suffers from what an upstream said: the mail, a destination, the account; for how long; and who takes over.

`policy.replies` says what a reply means; here it is done. What concerns an account costs its mail no attempt: it goes by the
route's next account, or waits for this one. Only the message that heard of a pause counts it, and tells why in its story.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from relay import clock, metrics
from relay.deliver.direct import NoSource, OfDomain
from relay.deliver.pool import Egress
from relay.deliver.smtp import Answer, Failure, Upstream
from relay.envelope import domain_of, queue_id
from relay.maillog import MailLog
from relay.policy.replies import judge
from relay.policy.suppression import Why
from relay.reply import Remedy, Reply, Result, Scope, Stage, Trouble
from relay.scheduler.alarms import Alarms
from relay.scheduler.journal import Journal
from relay.scheduler.outcomes import REST, outcome_of, strains
from relay.scheduler.record import Recorder
from relay.scheduler.resting import Rest, Resting
from relay.scheduler.shape import Shaping
from relay.scheduler.work import Work
from relay.settle import SUPPRESSED, Outcome
from relay.spool import Claimed
from relay.suppressions import SUPPRESSED as FOUND
from relay.suppressions import Suppressions

UNSAFE = 300.0  # of a destination whose TLS policy none of its hosts meets

COMPLAINTS = metrics.Counter(
    "relay_upstream_complaints_total",
    "Replies that say that an account is too fast (slow), has too many sessions (fewer), or must pause (rest)",
    ["egress", "remedy"],
)


class Ways(Protocol):
    """Where work goes that can't stay: the carriers."""

    def egress(self, key: str) -> Egress[Work] | None:
        """None: its account is gone, or its site."""

    def push(self, work: Work) -> None:
        """To the first of its egresses."""

    def put_back(self, work: Work, why: str) -> None:
        """Into the queue; no attempt is counted."""


class Blame:
    """What becomes of a transaction's recipients, of its account and of its destinations."""

    def __init__(
        self,
        ways: Ways,
        recorder: Recorder,
        shaping: Shaping,
        alarms: Alarms,
        journal: Journal,
        log: MailLog,
        suppressions: Suppressions,
    ) -> None:
        self.ways, self.recorder, self.shaping, self.alarms, self.log = ways, recorder, shaping, alarms, log
        self.journal, self.resting, self.suppressions = journal, Resting(journal, log), suppressions

    def judge(self, egress: Egress[Work], work: Work, stage: Stage, reply: Reply) -> Trouble:
        logged_in = egress.account.username is not None
        null_sender = logged_in and not work.claim.sender
        found = judge(egress.account.replies, stage, reply, clock.now(), null_sender=null_sender)
        if egress.direct is not None and found.scope is Scope.EGRESS and not found.means:
            return replace(
                found, scope=Scope.NEXT_HOP
            )  # 530: a host of the domain's wants a login, which is no account's fault
        return found

    def understood(self, egress: Egress[Work], work: Work, stage: Stage, reply: Reply) -> bool:
        """Whether it says more than that this session is over."""
        if self.judge(egress, work, stage, reply).scope is not Scope.NEXT_HOP:
            return True
        return bool(self.shaping.fitting(egress, work, work.recipients, stage, reply))

    def _heard(self, egress: Egress[Work], work: Work, about: Sequence[Claimed], stage: Stage, reply: Reply) -> Trouble:
        """As `judge`; and what rules of `shaping` say about it is done."""
        heard = self.shaping.heard(egress, work, about, stage, reply)
        for rest in heard.rests if heard is not None else ():
            self.resting.begin(egress.name, rest.destination, rest.until, rest.why, rest.next)
        return heard.trouble if heard is not None and heard.trouble else self.judge(egress, work, stage, reply)

    def resume(self, egresses: Iterable[Egress[Work]]) -> None:
        """After a start or a reload: nothing rests but what a rule of `shaping` says."""
        self.resting.clear()
        for egress in egresses:
            self.shaping.resume(egress)
        for rest in self.shaping.resting():
            self.resting.begin(rest.egress, rest.destination, rest.until, rest.why, rest.next)

    # -- a transaction's end

    def answered(
        self, egress: Egress[Work], work: Work, answers: list[Answer], seconds: float, passed_on: bool
    ) -> None:
        """It came to its end, with an answer for each recipient."""
        measures = self.shaping.measures
        if (measures or egress.pace.rate is not None or egress.window) and any(answer.accepted for answer in answers):
            now = clock.now()
            if measures:
                egress.pace.throttle.taken(now)
            slow = egress.pace.rate is not None
            egress.pace.accepted(now)
            if slow and egress.pace.rate is None:
                self.journal.note("resumed", egress.key, what="rate", why="it takes mail as fast as it comes again")
            egress.well(now)
        if self._judged(egress, work, zip(work.recipients, answers, strict=True), seconds, passed_on):
            self._well(egress)

    def apart(self, egress: Egress[Work], work: Work, session: Upstream | None, seconds: float) -> None:
        """It broke off. Who was refused at RCPT has had an answer of his own: what becomes of the others is not about him."""
        if session is None or not any(session.answers):
            return
        answered = [(r, a) for r, a in zip(work.recipients, session.answers, strict=False) if a]
        done = {recipient.n for recipient, _ in answered}
        self._judged(egress, work, answered, seconds)
        work.recipients = [r for r in work.recipients if r.n not in done]

    def failed(
        self, egress: Egress[Work], work: Work, session: Upstream | None, failure: Failure, seconds: float
    ) -> None:
        """It failed as a whole."""
        asked = len(session.answers) if session is not None and failure.stage is Stage.RCPT else None
        spoken_of = work.recipients[asked] if asked is not None and asked < len(work.recipients) else None
        self.apart(egress, work, session, seconds)
        if not work.recipients:
            return
        stage, reply = failure.stage, failure.reply
        if isinstance(failure, OfDomain):
            return self._of_domain(egress, work, failure, seconds)
        trouble = self._heard(egress, work, [spoken_of] if spoken_of else work.recipients, stage, reply)
        if strains(trouble, reply) and stage is not Stage.PREPARE:
            egress.strained(clock.now(), work.began, str(reply))
            if session is None and reply.code == 421 and egress.window and egress.sessions:
                # It takes no session more, and has some of ours: those go on, and this message was not asked about.
                egress.breaker.returned()
                return self.ways.put_back(work, f"{egress.key}: {reply}")
        if spoken_of is not None and trouble.scope in (Scope.RECIPIENT, Scope.DESTINATION):
            self._well(egress)
            return self._one_alone(egress, work, spoken_of, Answer(stage, reply), seconds)
        outcome = outcome_of(egress, work, stage, reply, trouble, seconds)
        outcome.prepared = work.prepared
        login = stage is Stage.AUTH and trouble.remedy is Remedy.REST and trouble.wait is None
        if trouble.scope is Scope.EGRESS and trouble.means and not login:
            self._account(egress, trouble, reply, work.began, dialled=session is None)
            if stage is Stage.AUTH:
                egress.refused()
                egress.breaker.auth_failed |= trouble.remedy is Remedy.REST
            if self._gone(egress, work, trouble, reply):
                return
        elif trouble.scope in (Scope.NEXT_HOP, Scope.EGRESS):
            self._next_hop(egress, failure, trouble, auth=trouble.scope is Scope.EGRESS)
            patience = egress.direct is not None and 400 <= reply.code < 500
            if (
                stage is not Stage.DOT
                and egress.breaker.passes
                and self._fail_over(egress, work, str(failure), patience)
            ):
                return  # never after the dot: it may have been kept
        elif stage is Stage.PREPARE:
            egress.breaker.returned()  # nothing was said to the next hop
        elif stage is Stage.DOT and reply.code == 0:
            egress.breaker.failed(clock.now(), f"{stage.value}: {reply}", random.random())
        else:
            self._well(egress)  # it is this message that it does not want
        self.recorder.settle(work.claim, [(r, outcome) for r in work.recipients])

    def _of_domain(self, egress: Egress[Work], work: Work, failure: OfDomain, seconds: float) -> None:
        """Its DNS or its TLS policy: the hosts that it shares with others are none the worse."""
        egress.breaker.returned()
        if isinstance(failure, NoSource) and self._fail_over(egress, work, str(failure)):
            return
        hard = failure.reply.code >= 500
        wait = None
        if failure.stage is Stage.STARTTLS:
            # Each try would dial all its hosts again, for each of its messages.
            wait = UNSAFE
            means = "no host of it offers the TLS that its policy wants"
            rest = Trouble(Scope.DESTINATION, Result.SOFT, UNSAFE, means)
            self.resting.heard(egress.name, domain_of(work.recipients[0].address), rest, failure.reply)
        result = Result.HARD if hard else Result.SOFT
        outcome = Outcome(result, egress.name, failure.stage, failure.reply, seconds, tuple(work.tried), wait=wait)
        outcome.prepared = work.prepared
        self.recorder.settle(work.claim, [(r, outcome) for r in work.recipients])

    def _one_alone(self, egress: Egress[Work], work: Work, recipient: Claimed, answer: Answer, seconds: float) -> None:
        """The session ended with a word about one recipient. Nothing is known of the others, taken already or not asked."""
        others = [r for r in work.recipients if r is not recipient]
        self._judged(egress, work, [(recipient, answer)], seconds)
        if others:
            self.ways.put_back(work.share(others), f"{egress.key} ended the session: {answer.reply}")

    def _judged(
        self,
        egress: Egress[Work],
        work: Work,
        answers: Iterable[tuple[Claimed, Answer]],
        seconds: float,
        passed_on: bool = False,
    ) -> bool:
        """Settles each by its answer; those whom the account's trouble held up go another way, or back.

        Whether nothing was said against the account.
        """
        outcomes: list[tuple[Claimed, Outcome]] = []
        against: list[tuple[Claimed, Answer, Trouble]] = []
        for recipient, answer in answers:
            if answer.accepted:
                outcome = Outcome(Result.DELIVERED, egress.name, answer.stage, answer.reply, seconds, tuple(work.tried))
                outcome.remote, outcome.security, outcome.site = work.remote, work.security, egress.site
            else:
                about = [recipient] if answer.stage is Stage.RCPT else work.recipients
                trouble = self._heard(egress, work, about, answer.stage, answer.reply)
                if strains(trouble, answer.reply):
                    egress.strained(clock.now(), work.began, str(answer.reply))
                if trouble.scope is Scope.EGRESS:
                    against.append((recipient, answer, trouble))
                    continue
                if trouble.scope is Scope.DESTINATION and answer.stage is Stage.RCPT:
                    self.resting.heard(egress.name, domain_of(recipient.address), trouble, answer.reply)
                outcome = outcome_of(egress, work, answer.stage, answer.reply, trouble, seconds)
            if answer.stage is Stage.DOT:
                outcome.passed_on, outcome.prepared = passed_on, work.prepared
            outcomes.append((recipient, outcome))
        if against:
            _, answer, trouble = against[-1]
            self._account(egress, trouble, answer.reply, work.began)
            if not self._gone(egress, work.share([r for r, _, _ in against]), trouble, answer.reply):
                outcome = outcome_of(egress, work, answer.stage, answer.reply, trouble, seconds)
                outcomes += [(recipient, outcome) for recipient, _, _ in against]
        self.recorder.settle(work.claim, outcomes)
        return not against

    def _well(self, egress: Egress[Work]) -> None:
        rested = egress.breaker.why if egress.breaker.is_open else ""
        egress.breaker.succeeded()
        if rested and not egress.breaker.is_open:
            self.log.event("egress_back", egress=egress.key, after=rested)
            self.journal.note("resumed", egress.key, what="egress", why=f"it is well again, after {rested}")
        if self.alarms.open and not egress.breaker.is_open:
            self.alarms.end("failed_over", egress.key)

    # -- the account

    def _account(
        self, egress: Egress[Work], trouble: Trouble, reply: Reply, began: float, *, dialled: bool = False
    ) -> None:
        """It is over a quota, too fast, or has too many sessions open. `began`: of the transaction that heard of it.

        `dialled`: there is no session, for that is how it was greeted.
        """
        now, who = clock.now(), "account" if egress.direct is None else "destination"  # by MX its hosts said it
        why = f"{reply} ({trouble.means})"
        COMPLAINTS.inc(1, egress.name, trouble.remedy.value)
        if trouble.remedy is Remedy.REST:
            seconds = REST if trouble.wait is None else trouble.wait
            rested = egress.breaker.is_open
            if egress.breaker.rest(now, seconds, why, passes=trouble.fail_over):
                self.log.error(
                    f"{who}_rests",
                    egress=egress.key,
                    reply=str(reply),
                    means=trouble.means,
                    seconds=round(seconds, 1),
                    takes_over=trouble.fail_over,
                )
                if not rested:
                    until = egress.breaker.until
                    self.journal.note(
                        "paused", egress.key, reply.code, what=who, until=until, last_reply=str(reply), why=why
                    )
                self._clear(egress, why, passes=trouble.fail_over)
            return
        egress.breaker.returned()  # it is well enough to complain
        fast = egress.pace.rate is None
        if trouble.remedy is Remedy.SLOW and egress.pace.complained(now, began, trouble.wait, why):
            self.log.warning(f"{who}_slowed", egress=egress.key, rate=egress.pace.shown, reply=why)
            if fast:
                self.journal.note("throttled", egress.key, reply.code, what="rate", rate=egress.pace.shown, why=why)
        if trouble.remedy is Remedy.FEWER and egress.crowded(now, trouble.wait, why, dialled=dialled):
            self.log.warning(f"{who}_crowded", egress=egress.key, connections=egress.connections, reply=why)
            self.journal.note(
                "throttled", egress.key, reply.code, what="connections", connections=egress.connections, why=why
            )

    def _gone(self, egress: Egress[Work], work: Work, trouble: Trouble, reply: Reply) -> bool:
        """Whether the mail that heard it has gone its way: by another account, or back to be claimed again."""
        why = f"{egress.key}: {reply} ({trouble.means})"
        if trouble.remedy is Remedy.REST:
            return trouble.fail_over and self._fail_over(egress, work, why)
        self.ways.put_back(work, why)
        return True

    def _clear(self, egress: Egress[Work], why: str, *, passes: bool) -> None:
        """What has not begun waits for the probe, or goes another way; it has not been tried."""
        while egress.backlog:
            work = egress.backlog.popleft()
            if not (passes and self._fail_over(egress, work, why)):
                self.ways.put_back(work, f"{egress.key} rests: {why}")

    def _fail_over(self, egress: Egress[Work], work: Work, why: str, patience: bool = False, about: str = "") -> bool:
        """To the route's next egress, if there is one that may be dialled. `patience`: the host was reached and asks for it; to
        dial it again from another address of ours would be a way round that. `about`: of what the alarm is, if not of all
        that leaves by the egress."""
        now = clock.now()
        work.tried.append((egress.name, why))
        for i, name in enumerate(work.egresses[1:], 1):
            other = self.ways.egress(name)
            if other is not None and (other.stopped is not None or (patience and other.direct is not None)):
                continue
            if other is not None and other.breaker.wait(now) <= 0 and not (other.breaker.is_open and other.busy):
                work.egresses = work.egresses[i:]
                self.log.warning("failed_over", id=queue_id(work.claim.message), egress=egress.key, to=name, why=why)
                self.alarms.begin("failed_over", about or egress.key, why, to=name)
                self.ways.push(work)
                return True
        work.tried.pop()
        return False

    def _next_hop(self, egress: Egress[Work], failure: Failure, trouble: Trouble, *, auth: bool) -> None:
        """It could not be reached, or refused the login."""
        breaker, before = egress.breaker, egress.breaker.opened
        breaker.failed(clock.now(), str(failure), random.random(), auth=auth)
        if auth:
            egress.refused()
        if breaker.opened > before:
            self.log.error(
                "account_paused" if auth else "egress_resting",
                egress=egress.key,
                stage=failure.stage.value,
                reply=str(failure.reply),
                means=trouble.means or None,
                seconds=round(breaker.until - clock.now(), 1),
            )
            if not before:
                what, said = "login" if auth else "egress", str(failure.reply)
                self.journal.note(
                    "paused",
                    egress.key,
                    failure.reply.code,
                    what=what,
                    until=breaker.until,
                    last_reply=said,
                    why=str(failure),
                )
            self._clear(egress, str(failure), passes=True)

    # -- a destination

    def wanted(self, work: Work) -> bool:
        """Whether any of its recipients may get it; those who are suppressed since it was accepted fail."""
        find, claim = self.suppressions.find, work.claim
        asked = ((r, find(r.address, claim.class_, claim.user, claim.sender)) for r in work.recipients)
        if found := [(r, why) for r, why in asked if why is not None]:
            gone = {recipient.n for recipient, _ in found}
            work.recipients = [r for r in work.recipients if r.n not in gone]
            FOUND.inc(len(found), "claim")
            self.recorder.settle(claim, [(r, _suppressed(why)) for r, why in found])
        return bool(work.recipients)

    def awake(self, egress: Egress[Work], work: Work) -> bool:
        """Whether any of its recipients may go. Those whose destination rests go by the next egress where a rule of shaping
        says so; else they wait for its end."""
        now = clock.now()
        resting = self.resting.among(egress.name, work.recipients, now)
        if resting:
            waiting = {recipient.n for recipient, _ in resting}
            work.recipients = [r for r in work.recipients if r.n not in waiting]
            aside = [(r, rest) for r, rest in resting if rest.passes]
            if aside and self._pass_on(egress, work, aside):
                resting = [(r, rest) for r, rest in resting if not rest.passes]
            self.recorder.settle(work.claim, [(r, rest.outcome(now)) for r, rest in resting])
        return bool(work.recipients)

    def _pass_on(self, egress: Egress[Work], work: Work, aside: list[tuple[Claimed, Rest]]) -> bool:
        """The mail of a destination for which a rule of shaping wants the next egress."""
        (first, rest), *_ = aside
        about = f"{egress.key} to {domain_of(first.address)}"
        return self._fail_over(egress, work.share([r for r, _ in aside]), rest.why, about=about)


def _suppressed(why: Why) -> Outcome:
    return Outcome(Result.HARD, "", Stage.RESOLVE, Reply(0, why.words), rule=SUPPRESSED)
