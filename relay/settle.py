"""What an attempt came to: claim + outcomes + retry profile + now -> Settlement. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relay.events import Kind, absorbed
from relay.policy import poison
from relay.policy.bounces import Reason, classify
from relay.policy.classes import InDoubt, TrafficClass
from relay.policy.suppression import Cause, Suppression, SuppressionRule, Why, learnt, plain, scope_of
from relay.recipient import News, State, Verb, move
from relay.reply import Reply, Result, Scope, Stage, clean, remote_id
from relay.spool import Change, Claim, Claimed, Event, Notify, Place, Settlement, Tell

NULL_SENDER_REFUSED = (
    "this account takes no mail from the null sender, which reports have; name one that does in dsn.via, "
    "or switch reports off with dsn: {to: none}"
)

# Of the time that an upstream asks to wait: what was refused together does not come back together.
HINT_SPREAD = 0.01
TRUSTED = 5  # attempts
# Said for now of the mailbox itself; what is said of its host or of the way says nothing about him.
_MAILBOX = frozenset({Reason.MAILBOX_FULL, Reason.MAILBOX_DISABLED, Reason.USER_UNKNOWN, Reason.MOVED})
_CONTENT = (Stage.DATA, Stage.DOT)
SUPPRESSED = "suppressed"  # the `rule` of an outcome that no next hop made: its recipient gets nothing


@dataclass(slots=True)
class Outcome:
    """What happened to one recipient by one egress."""

    result: Result
    egress: str
    stage: Stage
    reply: Reply
    seconds: float = 0.0
    tried: tuple[tuple[str, str], ...] = ()  # (egress, why) of those that were tried before in the same attempt
    rule: str = ""  # the route that ended it, for operators
    passed_on: bool = False  # what RFC 3461 asks for went to the next hop with it
    crashed: bool = False  # our own code failed over it
    prepared: tuple[str, ...] = ()  # what was done to the message before it left
    wait: float | None = None  # seconds that the reply, or what it means, asks for
    remote: str = ""  # by MX: the host, with its address and port
    security: str = ""  # and the TLS that the session had
    site: str = ""  # and which site that was
    scope: Scope | None = None  # of a failure: whom the reply is about; None: nobody replied
    suppress: float = 0.0  # seconds for which a rule of `shaping` wants the recipient to get nothing more


def settle(
    claim: Claim,
    outcomes: Sequence[tuple[Claimed, Outcome]],
    class_: TrafficClass,
    now: float,
    chance: float,
    delay_after: float | None = None,
) -> Settlement:
    """`chance` in [0, 1) is the jitter of the retry: one for the message, so that its recipients travel together again.

    `delay_after`: senders hear of what has waited so long; None: they don't.
    """
    changes, events, tells = [], [], []
    for recipient, outcome in outcomes:
        change, kind, data = _one(claim, recipient, outcome, class_, now, chance)
        changes.append(change)
        # Of most there is nothing to tell: delivered, and nobody asked.
        asked = recipient.notify or change.state is not State.DELIVERED
        if asked and (news := _news(claim, recipient, outcome, change.state, now, delay_after)):
            tells.append(Tell(claim.message, recipient.n, news, now, bool(outcome.egress), kind == "expired"))
        if kind is not None:
            for egress, why in outcome.tried:
                events.append(Event(now, claim.message, recipient.n, "failed_over", egress, 0, {"why": why}))
            events.append(Event(now, claim.message, recipient.n, kind, outcome.egress, outcome.reply.code, data))
            if kind == "failed" and claim.report and not claim.sender and _for_its_sender(outcome):
                refused = {"why": NULL_SENDER_REFUSED}
                events.append(
                    Event(now, claim.message, recipient.n, "dsn_refused", outcome.egress, outcome.reply.code, refused)
                )
    return Settlement(changes, events, tells, claim.place == Place.TABLE)


def learn(
    settlement: Settlement,
    claim: Claim,
    outcomes: Sequence[tuple[Claimed, Outcome]],
    rule: SuppressionRule,
    tenant: str,
    now: float,
) -> None:
    """Adds to the settlement of these outcomes what they teach of their recipients, by `rule`. `tenant`: of the message's user."""
    for recipient, outcome in outcomes:
        if outcome.suppress:
            evidence = clean(f"{outcome.reply} ({outcome.rule.removeprefix('suppressed by ')})")
            scope, until = scope_of(rule.scope, claim.class_, tenant), now + outcome.suppress
            settlement.suppressions.append(
                Suppression(
                    plain(recipient.address), scope, Why.SHAPING, evidence, "shaping", now, until, claim.message
                )
            )
        elif rule.learns and (cause := _cause(claim, outcome, outcomes)) is not None:
            hard, soft = learnt(
                rule, cause, recipient.address, claim.class_, tenant, str(outcome.reply), "smtp", now, claim.message
            )
            settlement.suppressions += hard
            settlement.softly += soft


def _cause(claim: Claim, outcome: Outcome, outcomes: Sequence[tuple[Claimed, Outcome]]) -> Cause | None:
    """What an answer says of its recipient's mailbox; None: nothing. To the content it does only if nobody else's was answered
    with it: see `outcomes`.

    A report's sender is the null one, which some refuse in words that are about it.
    """
    if not claim.sender or outcome.result not in (Result.HARD, Result.SOFT) or outcome.reply.code < 400:
        return None
    about_him = outcome.stage is Stage.RCPT and outcome.scope is Scope.RECIPIENT
    if not about_him:
        after_rcpt = sum(other.stage in _CONTENT for _, other in outcomes)
        if outcome.stage not in _CONTENT or outcome.scope is not Scope.MESSAGE or after_rcpt > 1:
            return None
    reply = outcome.reply
    verdict = classify(reply.enhanced, reply.code, reply.text, stage=outcome.stage)
    if verdict.suppresses and outcome.result is Result.HARD:
        return "hard_bounce"
    return "soft_bounce" if verdict.counts and verdict.reason in _MAILBOX else None


def _for_its_sender(outcome: Outcome) -> bool:
    """Refused at MAIL, but for its size or for an address beyond ASCII; or later, by who may send as whom."""
    enhanced = outcome.reply.enhanced
    if outcome.stage is Stage.MAIL:
        return enhanced not in ("5.3.4", "5.6.7")
    # Exchange Online says SendAsDenied only to the final dot.
    return outcome.stage in (Stage.DATA, Stage.DOT) and (enhanced.startswith("5.7.") or enhanced == "5.2.252")


def _news(
    claim: Claim, r: Claimed, outcome: Outcome, state: State, now: float, delay_after: float | None
) -> News | None:
    """What the sender may have to be told. The reporter has the last word; this keeps what is certain off its way."""
    match state:
        case State.FAILED:
            news = News.FAILED
        case State.DELIVERED if outcome.result is Result.DELIVERED and outcome.stage is Stage.DOT:
            # RFC 3461 §5.2.1: a next hop that was asked to report does; §5.2.2: for any other we say where it went.
            if outcome.passed_on:
                return None
            news = News.RELAYED
        case State.DEFERRED if delay_after is not None and now >= claim.accepted_at + delay_after and claim.sender:
            news = News.DELAYED
        case _:
            return None
    return news if Notify(r.notify).wants(news) else None


def _one(
    claim: Claim, r: Claimed, outcome: Outcome, class_: TrafficClass, now: float, chance: float
) -> tuple[Change, Kind | None, Mapping[str, Any]]:
    attempts = r.attempts + 1
    if outcome.result is Result.DELIVERED:
        return _delivered(claim, r, outcome, now, attempts)
    if outcome.result is Result.RETURNED:
        state, back = move(State.ACTIVE, Verb.RETURN), {"why": str(outcome.reply)}
        # Nothing was learnt about it: neither that it is poison nor that it is not.
        # It keeps its place: at the end of its lane it would wait for all that came after it.
        return (
            _change(claim, r, state, min(now, r.due_at or now), r.attempts, r.in_doubt, "", back, r.crashes),
            None,
            {},
        )
    if outcome.result is Result.LATER:
        state, due_at = move(State.ACTIVE, Verb.SOFT), _due(r, class_, now, max(1, r.attempts), chance, outcome.wait)
        waits = {"why": outcome.reply.text}
        return _change(claim, r, state, due_at, r.attempts, r.in_doubt, outcome.egress, waits, r.crashes), None, {}
    if outcome.result is Result.HELD:
        held = {"why": outcome.reply.text}
        return _change(claim, r, move(State.ACTIVE, Verb.PARK), now, r.attempts, r.in_doubt, "", held), "held", held
    if outcome.rule == SUPPRESSED:
        told = {"why": f"suppressed: {outcome.reply.text}"}
        after, done = move(State.ACTIVE, Verb.SUPPRESS), told | {"settled_at": now}
        return _change(claim, r, after, now, r.attempts, r.in_doubt, "", done, r.crashes), "suppressed", told
    crashes = r.crashes + 1 if outcome.crashed else 0
    verb, kind, why, doubt = _verdict(r, outcome, class_, now, attempts)
    if crashes >= poison.MOST and verb is Verb.SOFT:
        verb, kind, why = Verb.PARK, "held", poison.why_held(outcome.reply.text)
    state = move(State.ACTIVE, verb)
    due_at = now
    if state is State.DEFERRED:
        due_at = _due(r, class_, now, attempts, chance, outcome.wait)
    data: dict[str, Any] = {"last_reply": str(outcome.reply)}
    if why:
        data["why"] = why
    if outcome.remote:
        data["remote"] = outcome.remote
    note: dict[str, Any] = dict(data)
    if state is State.FAILED:
        note["settled_at"] = now
    data |= {"stage": outcome.stage.value, "seconds": round(outcome.seconds, 3), "attempt": attempts}
    if outcome.prepared:
        data["prepared"] = outcome.prepared
    if state is State.DEFERRED:
        data["due_at"] = due_at
    if kind == "in_doubt":
        data["state"] = state.label  # whether it is tried again, waits for an operator, or has failed
    return _change(claim, r, state, due_at, attempts, doubt, outcome.egress, note, crashes), kind, data


def _delivered(
    claim: Claim, r: Claimed, outcome: Outcome, now: float, attempts: int
) -> tuple[Change, Kind, Mapping[str, Any]]:
    data: dict[str, Any] = {"last_reply": str(outcome.reply)}
    if found := remote_id(outcome.reply.text):
        data["remote_id"] = found
    if outcome.remote:
        data["remote"], data["tls"] = outcome.remote, outcome.security
    note = data | {"settled_at": now}
    data["stage"], data["seconds"], data["attempt"] = outcome.stage.value, round(outcome.seconds, 3), attempts
    if outcome.prepared:
        data["prepared"] = outcome.prepared
    state = move(State.ACTIVE, Verb.ACCEPTED)
    return _change(claim, r, state, now, attempts, r.in_doubt, outcome.egress, note), absorbed(outcome.egress), data


def _verdict(
    r: Claimed, outcome: Outcome, class_: TrafficClass, now: float, attempts: int
) -> tuple[Verb, Kind, str, bool]:
    """(verb, event kind, why, is it in doubt)."""
    who = "not tried" if outcome.stage is Stage.PREPARE else outcome.egress  # nothing was said to it
    said = f"{who}: {outcome.reply}" if who else str(outcome.reply)
    said += f" ({outcome.rule})" if outcome.rule else ""
    match outcome.result:
        case Result.HARD:
            return Verb.HARD, "failed", f"rejected: {said}", r.in_doubt
        case Result.DOUBT:
            why = f"in doubt: the final dot was sent to {outcome.egress} and no reply came ({outcome.reply.text})"
            if class_.in_doubt is InDoubt.HOLD:
                return Verb.PARK, "in_doubt", why, True
            if class_.in_doubt is InDoubt.FAIL:
                return Verb.HARD, "in_doubt", why, True
            if not _over(r, class_, now, attempts):
                return Verb.SOFT, "in_doubt", why, True
            return Verb.EXPIRE, "expired", why, True
    if _over(r, class_, now, attempts):
        return Verb.EXPIRE, "expired", f"expired after {attempts} attempts; the last one: {said}", r.in_doubt
    return Verb.SOFT, "deferred", said, r.in_doubt


def _due(r: Claimed, class_: TrafficClass, now: float, attempts: int, chance: float, wait: float | None) -> float:
    """When it is tried again. What the upstream asks for counts as it is at first; if that does not help, only as the least."""
    delay = class_.retry.delay(attempts, chance)
    if wait is not None:
        asked = wait + min(60.0, wait * HINT_SPREAD) * chance
        delay = asked if attempts <= TRUSTED else max(asked, delay)
    # The last try falls on the end of its time, not after it.
    return min(now + delay, max(r.expires_at, now + 1.0))


def _over(r: Claimed, class_: TrafficClass, now: float, attempts: int) -> bool:
    return now >= r.expires_at or class_.retry.spent(attempts)


def _change(
    claim: Claim,
    r: Claimed,
    state: State,
    due_at: float,
    attempts: int,
    doubt: bool,
    egress: str,
    note: Mapping[str, Any],
    crashes: int = 0,
) -> Change:
    return Change(claim.message, r.n, r.lane, state, due_at, attempts, doubt, egress, json.dumps(note), crashes)
