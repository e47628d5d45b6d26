"""What a provider means by a reply, beyond its code: who suffers, for how long, and what helps. Pure.

A dictionary is a list of rules; the first that fits decides, and where none fits `reply.classify` does. A hint in the
reply's own text ("try again in 5 minutes") wins over a rule's `wait`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from zoneinfo import ZoneInfo

from relay.reply import Remedy, Reply, Result, Scope, Stage, Trouble, classify

# Seconds: a stranger's word holds mail up for no longer, and makes nobody ask again without a pause.
LONGEST_HINT, SHORTEST_HINT = 86400.0, 1.0

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_UNIT = r"(?:(s|sec|secs|seconds?)|(m|min|mins|minutes?)|(h|hrs?|hours?)|(d|days?))\b"
_LEAD = (
    r"(?:(?:try(?:ing)?|come|retry|resend|send|retried|connect)\w*\s+(?:\w+\s+){0,4}?(?:again\s+|back\s+|later\s+)?"
    r"(?:in|after|for|within)|wait(?:\s+(?:for|at\s+least|another))*|retry[- ]?after[:=]?|retry[- ]in|greylisted\s+for|"
    r"(?:reset|enabled|unblocked|lifted|available)(?:\s+again)?\s+in|"
    r"(?:blocked|limited|suspended|deferred|delayed|rejected|throttled)\s+for)"
)
_NUMBER = r"(\d{1,6}(?:\.\d{1,6})?)"
_HINT = re.compile(rf"\b{_LEAD}\s*:?\s*(?:at\s+least\s+|about\s+|another\s+)?{_NUMBER}\s*{_UNIT}", re.IGNORECASE)
_MORE = re.compile(rf"\s*(?:,|and)?\s*{_NUMBER}\s*{_UNIT}", re.IGNORECASE)
_CLOCK = re.compile(rf"\b{_LEAD}\s*:?\s*(\d{{1,2}}):(\d{{2}}):(\d{{2}})\b", re.IGNORECASE)
_BARE = re.compile(r"\b(?:retry[- ]?after|try again in|wait)\s*[:=]?\s*(\d{1,6})(?![\w.:]|\s*[a-z])", re.IGNORECASE)
_DATE = re.compile(
    r"\b(?:after|until|till)\s+((?:\w{3}, )?\d{1,2} \w{3} \d{4} \d{2}:\d{2}(?::\d{2})? (?:[+-]\d{4}|UTC|GMT))",
    re.IGNORECASE,
)
# Where an upstream quotes another server, who must not speak for it: Postfix, Exim, Exchange, or any reply in the reply.
_QUOTES = re.compile(
    r"\b(?:said|says|replied|responded|answered|returned|response|was): |\bcallout\b|\bLED=|"
    r"\bremote (?:mail )?(?:server|host)\b|(?<!^)\b[45]\d\d[ -][45]\.\d{1,3}\.\d{1,3}\b",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r'<[^<>]*@[^<>]*(?:>|$)|"[^"]*"@\S*')  # anybody may have made it up


@dataclass(frozen=True, slots=True)
class Turn:
    """A time of the day at which a quota begins anew, by the clock of a zone."""

    hour: int
    minute: int
    zone: str

    @classmethod
    def parse(cls, text: object) -> Turn:
        """`00:00 America/Los_Angeles`. Raises ValueError."""
        found = re.fullmatch(
            r"([01][0-9]|2[0-3]):([0-5][0-9]) ([A-Za-z_+/0-9-]{1,40})", text if isinstance(text, str) else ""
        )
        try:
            if found and ZoneInfo(found[3]):
                return cls(int(found[1]), int(found[2]), found[3])
        except (KeyError, ValueError, OSError):
            found = None
        raise ValueError("expected a time of the day and a zone, such as 00:00 America/Los_Angeles")

    def __str__(self) -> str:
        return f"{self.hour:02}:{self.minute:02} {self.zone}"

    def after(self, now: float) -> float:
        """Epoch seconds of the next one."""
        today = datetime.fromtimestamp(now, ZoneInfo(self.zone)).replace(
            hour=self.hour, minute=self.minute, second=0, microsecond=0
        )
        # Where the clocks go back it may come twice (`fold`), and both have the same time of the day.
        turns = [(today + timedelta(days=d)).replace(fold=fold).timestamp() for d in (0, 1) for fold in (0, 1)]
        return min(turn for turn in turns if turn > now)


@dataclass(frozen=True, slots=True)
class ReplyRule:
    """One entry of a dictionary. `at` empty: at any stage. Only a recipient and a message may suffer for good (`hard`)."""

    pattern: re.Pattern[str]  # searched in the reply as one line: code, enhanced code, text
    scope: Scope
    hard: bool = False
    at: frozenset[Stage] = frozenset()
    remedy: Remedy = Remedy.REST
    wait: float | None = None  # seconds
    until: Turn | None = None
    fail_over: bool = True
    means: str = ""
    origin: str = ""  # whose rule it is, for operators

    def fits(self, stage: Stage, line: str, own: str) -> bool:
        """`own`: of the line what the upstream says itself. Nobody else's words make an account or a destination suffer."""
        if self.at and stage not in self.at:
            return False
        return self.pattern.search(line if self.scope in (Scope.RECIPIENT, Scope.MESSAGE) else own) is not None

    def trouble(self, now: float) -> Trouble:
        wait = self.until.after(now) - now if self.until else self.wait
        result = Result.HARD if self.hard else Result.SOFT
        return Trouble(self.scope, result, wait, self.means, self.remedy, self.fail_over)


def judge(rules: Sequence[ReplyRule], stage: Stage, reply: Reply, now: float, *, null_sender: bool = False) -> Trouble:
    """Who suffers from `reply` at `stage`. Without a code there is nothing to understand: `classify` alone decides.

    A login that is refused, and what is said before it, is no word about a message or a recipient, whatever a rule says.
    """
    base = classify(stage, reply.code, null_sender=null_sender)
    if reply.code < 400:
        return base
    line = str(reply)
    own = own_words(line)
    before_mail = stage not in (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.BODY, Stage.DOT)
    for rule in rules:
        if rule.fits(stage, line, own) and not (before_mail and rule.scope is not Scope.EGRESS):
            found = rule.trouble(now)
            told = hint(line if found.scope in (Scope.RECIPIENT, Scope.MESSAGE) else own, now)
            return found if told is None or found.result is Result.HARD else replace(found, wait=told)
    if base.result is Result.SOFT and base.scope in (Scope.RECIPIENT, Scope.MESSAGE):
        return replace(base, wait=hint(line, now))
    return base


def own_words(line: str) -> str:
    """A reply without the addresses that it names, up to where it begins to quote another server."""
    plain = _ADDRESS.sub("<@>", line)
    quote = _QUOTES.search(plain)
    return plain[: quote.start()] if quote else plain


def hint(text: str, now: float) -> float | None:
    """Seconds for which a reply asks to wait; None: it does not say. At most LONGEST_HINT."""
    if date := _DATE.search(text):
        return _until(date[1], now)
    if clock := _CLOCK.search(text):
        return _bounded(int(clock[1]) * 3600 + int(clock[2]) * 60 + int(clock[3]))
    found = _HINT.search(text)
    if found is None:
        bare = _BARE.search(text)
        return _bounded(int(bare[1])) if bare else None
    seconds = _seconds(found)
    while more := _MORE.match(text, found.end()):  # "4 minutes and 30 seconds"
        seconds += _seconds(more)
        found = more
    return _bounded(seconds)


def _seconds(found: re.Match[str]) -> float:
    unit = next(u for u, group in zip(_UNITS, found.groups()[1:], strict=True) if group)
    return float(found[1]) * _UNITS[unit]


def _until(date: str, now: float) -> float | None:
    """RFC 5322 §3.3: what mail servers write."""
    try:
        return _bounded(parsedate_to_datetime(date).timestamp() - now)
    except ValueError:
        return None


def _bounded(seconds: float) -> float | None:
    return min(max(seconds, SHORTEST_HINT), LONGEST_HINT) if seconds > 0 else None
