"""Plays a profile: what happens at each stage of each session. Time is an argument, lots are drawn from a seed.

Promises: of the limits of a stage all have room, or none is taken from; what a rule refused takes nothing of a limit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from relay.policy.routing import matches_any
from relay.sink.bucket import Bucket, Places
from relay.sink.profile import Limit, Profile, Reply, Rule, Stage

Kind = Literal["delayed", "refused", "throttled", "greylisted", "dropped", "stalled"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known at a stage. `recipients`: at `rcpt`, the one that is asked for is the last."""

    client: str = ""
    account: str = ""
    sender: str = ""
    recipients: tuple[str, ...] = ()
    header: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, whose: str) -> str:
        match whose:
            case "client":
                return self.client
            case "account":
                return self.account or self.client
            case "sender":
                return self.sender
            case "recipient":
                return self.recipients[-1].lower() if self.recipients else ""
        return "all"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to happen, after `delay` seconds. `go`: as if nothing had been asked."""

    kind: Kind
    then: Literal["go", "reply", "close", "drop", "stall"] = "go"
    reply: Reply | None = None
    delay: float = 0.0
    kept: bool = False
    wait: float = 0.0  # seconds until another try has a chance, where that is known

    @property
    def seconds(self) -> str:
        """`{seconds}` of the reply."""
        return str(max(1, math.ceil(self.wait))) if math.isfinite(self.wait) else "86400"


class Player:
    """One profile at work: its buckets, its greylist, how often each rule fired."""

    def __init__(self, profile: Profile, seed: int = 0) -> None:
        self.profile = profile
        self._limits: list[dict[str, Bucket | Places]] = [{} for _ in profile.limits]
        self._seen: dict[tuple[str, ...], float] = {}
        self._matched = [0] * len(profile.rules)
        self._fired = [0] * len(profile.rules)
        # One for each rule: what another one draws must not change what this one does.
        self._lots = [random.Random(f"{seed}/{number}") for number in range(len(profile.rules))]
        self.stages = {limit.at for limit in profile.limits} | {rule.at for rule in profile.rules}
        self.asks_header = any(rule.match.header for rule in profile.rules)
        if profile.greylist:
            self.stages.add("rcpt")
        if profile.recipients:
            self.stages.add(profile.recipients.at)

    def ask(self, stage: Stage, who: object, facts: Facts, now: float) -> Verdict | None:
        """What happens to session `who`; None: nothing. Takes from the limits where nothing is refused."""
        if stage not in self.stages:
            return None
        delay = 0.0
        for number, rule in enumerate(self.profile.rules):
            if rule.at == stage and self._fires(number, rule, facts):
                delay += rule.delay
                if (verdict := _of_rule(rule, delay)) is not None:
                    return verdict
        verdict = (
            self._too_many(stage, facts, delay)
            or self._greylisted(stage, facts, delay, now)
            or self._throttled(stage, who, facts, delay, now)
        )
        return verdict or (Verdict("delayed", delay=delay) if delay else None)

    def leave(self, who: object) -> None:
        """Its session has ended."""
        for found in self._limits:
            for places in found.values():
                if isinstance(places, Places):
                    places.leave(who)

    def buckets(self) -> Iterator[tuple[str, str, Bucket]]:
        """(limit, whose, bucket) of all that were asked."""
        for limit, found in zip(self.profile.limits, self._limits, strict=True):
            yield from ((_label(limit), whose, one) for whose, one in found.items() if isinstance(one, Bucket))

    def places(self) -> Iterator[tuple[str, str, Places]]:
        for limit, found in zip(self.profile.limits, self._limits, strict=True):
            yield from ((_label(limit), whose, one) for whose, one in found.items() if isinstance(one, Places))

    def _fires(self, number: int, rule: Rule, facts: Facts) -> bool:
        if not _matches(rule, facts):
            return False
        self._matched[number] += 1
        if self._matched[number] <= rule.after or (rule.times and self._fired[number] >= rule.times):
            return False
        if rule.share is not None and self._lots[number].random() >= rule.share:
            return False
        self._fired[number] += 1
        return True

    def _too_many(self, stage: Stage, facts: Facts, delay: float) -> Verdict | None:
        rule = self.profile.recipients
        if rule is None or rule.at != stage or len(facts.recipients) <= rule.most:
            return None
        return _refusal("refused", rule.reply, None, delay, 0.0, stage)

    def _greylisted(self, stage: Stage, facts: Facts, delay: float, now: float) -> Verdict | None:
        rule = self.profile.greylist
        if rule is None or stage != "rcpt":
            return None
        wait = self._seen.setdefault(tuple(facts.of(fact) for fact in rule.per), now) + rule.wait - now
        return _refusal("greylisted", rule.reply, None, delay, wait, stage) if wait > 0 else None

    def _throttled(self, stage: Stage, who: object, facts: Facts, delay: float, now: float) -> Verdict | None:
        asked: list[tuple[Bucket | Places, int]] = []
        for limit, found in zip(self.profile.limits, self._limits, strict=True):
            if limit.at != stage:
                continue
            one = _of(limit, found, facts.of(limit.per))
            count = len(facts.recipients) if limit.counts == "recipients" else 1
            full, wait = not one.room(who) if isinstance(one, Places) else False, 0.0
            if isinstance(one, Bucket):
                wait = one.wait(count, now)
            if full or wait:
                one.refused += 1
                return _refusal("throttled", limit.reply, limit.then, delay, wait, stage)
            asked.append((one, count))
        for one, count in asked:
            if isinstance(one, Bucket):
                one.take(count, now)
            else:
                one.take(who)
        return None


def _of(limit: Limit, found: dict[str, Bucket | Places], whose: str) -> Bucket | Places:
    if whose not in found:
        found[whose] = Bucket(*limit.tokens) if limit.at_once is None else Places(limit.at_once)
    return found[whose]


def _label(limit: Limit) -> str:
    what = f"{limit.rate.text}" if limit.rate else f"{limit.at_once} at once"
    counted = "recipients" if limit.counts == "recipients" else f"at {limit.at}"
    return " ".join(part for part in (limit.name, f"({what} {counted})") if part)


def _of_rule(rule: Rule, delay: float) -> Verdict | None:
    if rule.reply is not None:
        return _refusal("refused", rule.reply, rule.then, delay, 0.0, rule.at, rule.kept)  # type: ignore[arg-type]
    if rule.then in ("drop", "stall"):
        return Verdict("dropped" if rule.then == "drop" else "stalled", rule.then, None, delay, rule.kept)
    return None


def _refusal(
    kind: Kind,
    reply: Reply,
    then: Literal["reply", "close"] | None,
    delay: float,
    wait: float,
    stage: Stage,
    kept: bool = False,
) -> Verdict:
    # RFC 5321 §3.8 and §3.1: after a 421, or another greeting than 220, there is nothing more to say.
    closes = stage == "connect" or (then or ("close" if reply.code == 421 else "reply")) == "close"
    return Verdict(kind, "close" if closes else "reply", reply, delay, kept, wait)


def _matches(rule: Rule, facts: Facts) -> bool:
    match = rule.match
    asked = (
        (match.client, (facts.client,)),
        (match.account, (facts.account,)),
        (match.sender, (facts.sender,)),
        (match.recipient, facts.recipients[-1:] if rule.at == "rcpt" else facts.recipients),
        *((patterns, facts.header.get(name.lower(), ())) for name, patterns in (match.header or {}).items()),
    )
    return all(any(matches_any(patterns, v) for v in values) for patterns, values in asked if patterns is not None)
