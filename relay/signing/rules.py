"""Which keys sign a message: the entries of `signing` for its From domain, who sends it and by which route. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
        if (self.users and user not in self.users) or (self.routes and route not in self.routes):
            return None
        conditions = bool(self.users) + bool(self.routes)
        if self.domain == domain:
            return 1000, conditions
        base = self.domain.removeprefix("*").removeprefix(".")
        if (self.subdomains or self.domain.startswith("*")) and (not base or domain.endswith("." + base)):
            return base.count(".") + bool(base), conditions
        return None

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
            waiting.append((rule, "its time has not come (not_before)"))
        elif rule.not_after is not None and now >= rule.not_after:
            over.append(rule)
        elif rule.when_published and (published := seen(rule, rule.signs_as(domain))) is not True:
            if published is None:
                unknown.append(rule)
            waiting.append((rule, "its record has not been seen (when_published)"))
        else:
            live.append(rule)
    awaited = {r.key.algorithm for r, _ in waiting if r.not_before is None or now >= r.not_before}
    for rule in sorted(
        over, key=lambda r: r.not_after or 0.0, reverse=True
    ):  # the latest: older records are gone by now
        if rule.key.algorithm in awaited and not any(r.key.algorithm == rule.key.algorithm for r in live):
            live.append(rule)
        else:
            waiting.append((rule, "its time is over (not_after)"))
    return Choice(tuple(live), tuple(waiting), tuple(unknown))
