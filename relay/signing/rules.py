"""Which keys sign a message: the entries of `signing` for its From domain, who sends it and by which route. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache

from relay.signing.canonical import Form
from relay.signing.key import SigningKey

# RFC 6376 §5.4.1, with RFC 8058 §4 and what large receivers ask for: what people see, and what is done with the message.
SIGNED = [
    "from",
    "sender",
    "reply-to",
    "subject",
    "date",
    "message-id",
    "to",
    "cc",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "content-id",
    "content-description",
    "resent-date",
    "resent-from",
    "resent-sender",
    "resent-to",
    "resent-cc",
    "resent-message-id",
    "in-reply-to",
    "references",
    "list-id",
    "list-help",
    "list-unsubscribe",
    "list-unsubscribe-post",
    "list-subscribe",
    "list-post",
    "list-owner",
    "list-archive",
    "feedback-id",
    "auto-submitted",
    "autocrypt",
]
# None of these may be added on the way: two of one kind are shown differently by different readers (RFC 6376 §8.15).
OVERSIGNED = ["from", "to", "cc", "subject", "date", "reply-to"]
# Nor a second one of these.
ONCE = [
    "sender",
    "message-id",
    "mime-version",
    "content-type",
    "content-transfer-encoding",
    "in-reply-to",
    "references",
    "list-unsubscribe",
    "list-unsubscribe-post",
]
MAX_REMEMBERED = 10_000

_Names = frozenset[bytes]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one signature is made."""

    domain: str  # d=
    selector: str  # s=
    key: SigningKey
    signed_at: int  # t=, epoch seconds
    expires_at: int | None = None  # x=
    header_form: Form = "relaxed"
    body_form: Form = "relaxed"
    sign: frozenset[bytes] = frozenset()  # names, lower case: each such field that is there
    once_more: frozenset[bytes] = frozenset()  # of these, one more than there are, where there is any
    always: Sequence[bytes] = ()  # and of these in any case: none can be added later


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `signing`. Times are epoch seconds."""

    domain: str  # of From: one domain, `*.example.com`, or `*`
    selector: str
    key: SigningKey
    subdomains: bool = False  # of `domain` too
    sign_as: str = ""  # d=, where it is neither `domain` nor, under a wildcard, From's
    users: tuple[str, ...] = ()  # only what one of these sent; none: anybody
    routes: tuple[str, ...] = ()  # only by one of these
    header_form: Form = "relaxed"
    body_form: Form = "relaxed"
    sign: tuple[str, ...] = tuple(SIGNED)
    oversign: tuple[str, ...] = tuple(OVERSIGNED)
    expires: float | None = None  # seconds; x= is so long after t=
    not_before: float | None = None
    not_after: float | None = None
    when_published: bool = False
    origin: str = ""  # file:line
    source: str = ""  # where the key is, for people

    def rank(self, domain: str, user: str, route: str) -> tuple[int, int] | None:
        """How closely it fits, larger is closer: (labels of the domain, conditions); None: not at all."""
        labels = self.closeness(domain)
        if labels is None or self.bound_away(user, route):
            return None
        return labels, bool(self.users) + bool(self.routes)

    def bound_away(self, user: str, route: str) -> str:
        """To whom or what it is bound, where that is not this user or this route; empty: it may sign."""
        if self.users and user not in self.users:
            return f"user {' or '.join(self.users)}"
        if self.routes and route not in self.routes:
            return f"route {' or '.join(self.routes)}"
        return ""

    def closeness(self, domain: str) -> int | None:
        """How closely its domain fits, larger is closer; None: not at all."""
        if self.domain == domain:
            return 1000
        if self.subdomains or self.domain.startswith("*"):
            base = self.base
            if not base or domain.endswith("." + base):
                return base.count(".") + bool(base)
        return None

    @property
    def base(self) -> str:
        """Its domain, or what a wildcard stands in front of."""
        return self.domain.removeprefix("*").removeprefix(".")

    @property
    def place(self) -> str:
        """Where it stands, short enough for a sentence: relay.yaml:24."""
        return self.origin.rpartition("/")[2]

    def record_name(self, domain: str) -> str:
        """Where its record is in the DNS, for a From domain."""
        return f"{self.selector}._domainkey.{self.signs_as(domain)}"

    def signs_as(self, domain: str) -> str:
        """d= for a From domain."""
        return self.sign_as or (domain if self.domain.startswith("*") else self.domain)

    def recipe(self, domain: str, signed_at: float) -> Recipe:
        sign, once, always = _covered(self.sign, self.oversign)
        return Recipe(
            self.signs_as(domain),
            self.selector,
            self.key,
            int(signed_at),
            None if self.expires is None else int(signed_at + self.expires),
            self.header_form,
            self.body_form,
            sign,
            once,
            always,
        )


@lru_cache
def _covered(sign: tuple[str, ...], oversign: tuple[str, ...]) -> tuple[_Names, _Names, tuple[bytes, ...]]:
    """Of a rule what its recipes have in common: `sign`, `once_more` and `always`."""
    once = frozenset(name.encode() for name in ONCE if name in sign)
    return frozenset(name.encode() for name in sign), once, tuple(name.encode() for name in oversign)


# Why a key with `when_published` waits.
UNSEEN = "waits: its record has not been seen (when_published)"
UNKNOWN = "waits: the DNS has not answered yet (when_published)"

Seen = Callable[[Rule, str], bool | None]  # (rule, d=) -> is its record published? None: nobody knows yet


@dataclass(frozen=True)
class Choice:
    """What signs a message. `waiting`: entries that would, and why they don't; `unknown`: whose record nobody asked for yet."""

    rules: tuple[Rule, ...] = ()
    waiting: tuple[tuple[Rule, str], ...] = ()
    unknown: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Rules:
    """`signing`, whole."""

    rules: tuple[Rule, ...] = ()

    @cached_property
    def _fitting(self) -> dict[tuple[str, str, str], tuple[Rule, ...]]:
        return {}

    @cached_property
    def _users(self) -> frozenset[str]:
        return frozenset(user for rule in self.rules for user in rule.users)

    @cached_property
    def _routes(self) -> frozenset[str]:
        return frozenset(route for rule in self.rules for route in rule.routes)

    def fitting(self, domain: str, user: str, route: str) -> tuple[Rule, ...]:
        """The entries of the most specific domain; of them those that name the user or the route, where there are any."""
        key = domain, user if user in self._users else "", route if route in self._routes else ""
        found = self._fitting.get(key)
        if found is None:
            ranked = [(rank, rule) for rule in self.rules if (rank := rule.rank(*key)) is not None]
            best = max((rank for rank, _ in ranked), default=None)
            found = tuple(rule for rank, rule in ranked if rank == best)
            if len(self._fitting) >= MAX_REMEMBERED:
                self._fitting.clear()
            self._fitting[key] = found
        return found

    def choose(self, domain: str, user: str, route: str, now: float, seen: Seen) -> Choice:
        """Who signs now. One whose time is over goes on until its successor's record is seen."""
        fitting = self.fitting(domain, user, route) if domain else ()
        if not any(r.when_published or r.not_before is not None or r.not_after is not None for r in fitting):
            return Choice(fitting)
        return _in_time(fitting, domain, now, seen)


def _in_time(fitting: Sequence[Rule], domain: str, now: float, seen: Seen) -> Choice:
    live: list[Rule] = []
    over: list[Rule] = []
    unknown: list[Rule] = []
    waiting: list[tuple[Rule, str]] = []
    for rule in fitting:
        if rule.not_before is not None and now < rule.not_before:
            waiting.append((rule, f"its time has not come: not_before {_day(rule.not_before)}"))
        elif rule.not_after is not None and now >= rule.not_after:
            over.append(rule)
        elif rule.when_published and (published := seen(rule, rule.signs_as(domain))) is not True:
            if published is None:
                unknown.append(rule)
            waiting.append((rule, UNKNOWN if published is None else UNSEEN))
        else:
            live.append(rule)
    awaited = {r.key.algorithm for r, _ in waiting if r.not_before is None or now >= r.not_before}
    for rule in sorted(
        over, key=lambda r: r.not_after or 0.0, reverse=True
    ):  # the latest: older records are gone by now
        if rule.key.algorithm in awaited and not any(r.key.algorithm == rule.key.algorithm for r in live):
            live.append(rule)
        else:
            waiting.append((rule, f"its time is over: not_after {_day(rule.not_after or 0.0)}"))
    return Choice(tuple(live), tuple(waiting), tuple(unknown))


def bound(rules: Rules, domain: str, user: str, route: str) -> list[tuple[Rule, str]]:
    """The entries of the closest domain that are bound to others, and to whom; none where entries of a closer one sign."""
    found = [(near, rule) for rule in rules.rules if (near := rule.closeness(domain)) is not None] if domain else []
    best = max((near for near, _ in found), default=None)
    return [(rule, whose) for near, rule in found if near == best and (whose := rule.bound_away(user, route))]


def why_not(rules: Rules, domain: str, user: str, route: str, now: float, seen: Seen) -> str:
    """Why a From domain is left unsigned, or is signed as another only, and what to do; empty: it is signed as its own.

    Looks at every entry: for the one time that somebody is told, not for each message.
    """
    choice = rules.choose(domain, user, route, now, seen)
    if choice.rules or not domain:
        other = next((rule for rule in choice.rules if rule.sign_as), None)
        return f"{other.place} signs it as {other.sign_as}; add `signing` for {domain} without `as`" if other else ""
    if choice.waiting:
        return _why_waiting(choice, domain, now)
    if others := bound(rules, domain, user, route):
        more = f", and {len(others) - 1} more for others" if len(others) > 1 else ""
        return (
            f"{others[0][0].place} signs for {others[0][1]} only{more}; add `signing` for {domain}, or widen that entry"
        )
    free = [rule for rule in rules.rules if not rule.bound_away(user, route)]
    above = [r for r in free if not r.domain.startswith("*") and domain.endswith("." + r.domain)]
    if above:
        closest = max(above, key=lambda r: len(r.domain))
        return f"add `signing` for {domain}, or `subdomains: true` at {closest.place}"
    below = next((r for r in free if r.base == domain), None)
    if below:
        return f"add `signing` for {domain}: {below.place} is for domains below {domain}, not {domain} itself"
    return f"add `signing` for {domain}"


def _why_waiting(choice: Choice, domain: str, now: float) -> str:
    """Of several reasons the one that needs the least to be mended."""
    waiting = [rule for rule, _ in choice.waiting]
    over = [r for r in waiting if r.not_after is not None and now >= r.not_after]
    later = [r for r in waiting if r.not_before is not None and now < r.not_before]
    asked = [r for r in waiting if r not in over and r not in later]
    if unseen := next((r for r in asked if r not in choice.unknown), None):
        return f"publish {unseen.record_name(domain)} (relay dkim dns {domain})"
    if asked:
        return f"whether {asked[0].record_name(domain)} is published is not known yet (relay dkim dns {domain})"
    if later:
        first = min(later, key=lambda r: r.not_before or 0.0)
        return f"its next key signs from {_day(first.not_before or 0.0)} on ({first.place}); set `not_before` earlier"
    last = max(over, key=lambda r: r.not_after or 0.0)
    which = "only key is" if len(over) == 1 else "last key is"
    return f"its {which} over since {_day(last.not_after or 0.0)} ({last.place}); give it a successor"


@lru_cache
def _day(at: float) -> str:
    """As it may stand in the configuration."""
    when = datetime.fromtimestamp(at, UTC)
    return f"{when:%Y-%m-%d}" if at % 86400 == 0 else f"{when:%Y-%m-%dT%H:%M:%SZ}"
