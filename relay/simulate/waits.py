"""Which rule held mail back, and for how long.

A lane leaves one after the other: what passes between two that leave is waited by all that are due in it, for the rule that
held the next one. So a lane's time is one line of spans, each of one rule, and what a message waited for is a piece of it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

_PASSING = re.compile(r", until .*|: day \d.*|; next at .*")
_NUMBERS = re.compile(r"about [\d.]+/(?:s|min)")


def rule_of(why: str) -> str:
    """A reason without what changes while it lasts, so that the same rule is the same text each time."""
    return _NUMBERS.sub("less", _PASSING.sub("", why))


@dataclass(slots=True)
class Waits:
    """Of one lane. Times in epoch seconds; memory: a number of each rule for each change from one rule to another."""

    _ends: list[float] = field(default_factory=list)  # of spans, in order
    _sums: list[dict[str, float]] = field(default_factory=list)  # what was waited by each rule up to there
    _rules: list[str] = field(default_factory=list)

    def add(self, since: float, until: float, rule: str) -> None:
        """From `since`, or the end of the last span if that is later, it was held by this rule."""
        before = self._sums[-1] if self._sums else {}
        since = max(since, self._ends[-1]) if self._ends else since
        if until <= since:
            return
        held = before.get(rule, 0.0) + until - since
        if self._rules and self._rules[-1] == rule and self._ends[-1] == since:
            self._ends[-1] = until
            before[rule] = held
            return
        if not self._ends or since > self._ends[-1]:
            self._ends.append(since)
            self._sums.append(before)
            self._rules.append("")
        self._ends.append(until)
        self._sums.append({**before, rule: held})
        self._rules.append(rule)

    def between(self, since: float, until: float) -> Mapping[str, float]:
        """Seconds by rule of who was due at `since` and left at `until`, the last moment that was added."""
        if not self._ends or self._ends[-1] <= since:
            return {}
        total = self._sums[-1]
        i = bisect_right(self._ends, since)
        before = dict(self._sums[i - 1]) if i else {}
        if i and self._rules[i]:
            rule = self._rules[i]
            before[rule] = before.get(rule, 0.0) + since - self._ends[i - 1]
        return {rule: held for rule, s in total.items() if (held := s - before.get(rule, 0.0)) > 1e-6}
