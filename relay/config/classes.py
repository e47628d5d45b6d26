"""`classes` -> traffic classes: how urgent, how patient, and when they leave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from relay.config.matches import MatchSection
from relay.config.pacing import HoursSection
from relay.config.problems import Keys
from relay.config.retry import build_retry
from relay.config.shape import ClassEntry
from relay.config.site import Site
from relay.policy.classes import InDoubt, Priority, TrafficClass
from relay.policy.hours import Hours
from relay.policy.routing import Match

_DAY, _WEEK = 1440, 7 * 1440  # minutes


@dataclass(frozen=True)
class ClassBuilder:
    site: Site
    match: Callable[[Keys, MatchSection], Match]  # builds a `match`, and tells what it names that is not there

    def build(self, name: str, entry: ClassEntry) -> TrafficClass:
        path: Keys = ("classes", name)
        match: Match | None = None
        if entry.match is not None:
            for section, where in ((entry.match, ("match",)), (entry.match.not_, ("match", "not"))):
                if section is not None and section.class_ is not None:
                    text = "a class cannot ask for the class: it is what the match decides"
                    self.site.wrong((*path, *where, "class"), text)
                if section is not None and section.recipient is not None:
                    text = "a class is chosen once for a message, whoever its recipients are; match sender, from, user or header"
                    self.site.wrong((*path, *where, "recipient"), text)
            match = self.match((*path, "match"), entry.match)
        priority = Priority(int(entry.priority)) if entry.priority.isdigit() else Priority[entry.priority.upper()]
        window = self.hours((*path, "window"), entry.window)
        quiet = self.hours((*path, "quiet"), entry.quiet)
        if quiet is not None and _never(window, quiet):
            within = "the whole of `window`" if window else "always"
            self.site.wrong((*path, "quiet"), f"quiet {within}: nothing of this class could ever leave")
        retry = build_retry(entry.retry, (*path, "retry"), self.site)
        return TrafficClass(name, match, priority, InDoubt(entry.in_doubt), retry, window, quiet)

    def hours(self, path: Keys, section: HoursSection | None) -> Hours | None:
        if section is None:
            return None
        if section.days is None and section.hours is None:
            self.site.wrong(path, "says neither `days` nor `hours`; say one, or remove the key")
            return None
        return Hours.parse(section.hours or "", section.days or "", section.timezone)


def _never(window: Hours | None, quiet: Hours) -> bool:
    """Whether nothing is left; not asked of two zones, whose clocks change at different times."""
    if window is not None and window.timezone != quiet.timezone:
        return False
    return not _minutes(window or Hours("")) - _minutes(quiet)


def _minutes(hours: Hours) -> set[int]:
    """Of the week."""
    length = (hours.end - hours.start) % _DAY or _DAY
    return {(day * _DAY + hours.start + minute) % _WEEK for day in hours.days for minute in range(length)}
