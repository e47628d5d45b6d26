"""`retry` -> a retry profile that makes sense. Pure."""

from __future__ import annotations

import math

from relay.config.problems import Keys
from relay.config.shape import RetrySection
from relay.config.site import Site
from relay.config.values import print_duration
from relay.policy.backoff import Retry

DEFAULT = Retry()


def build_retry(section: RetrySection, path: Keys, site: Site) -> Retry:
    """Keys that are not given have the defaults of policy/backoff.py."""
    first = DEFAULT.first if section.first is None else section.first
    factor = DEFAULT.factor if section.factor is None else section.factor
    cap = DEFAULT.cap if section.cap is None else section.cap
    give_up = DEFAULT.give_up if section.give_up is None else section.give_up
    schedule = section.schedule or ()
    sound = True
    for key, value in (("first", first), ("cap", cap), ("give_up", give_up)):
        if value <= 0:
            site.wrong((*path, key), f"`{key}` must be longer than nothing")
            sound = False
    for number, wait in enumerate(schedule):
        if wait <= 0:
            site.wrong((*path, "schedule", number), "a wait of the schedule must be longer than nothing")
    if section.schedule is not None:
        if not schedule:
            site.wrong((*path, "schedule"), "an empty schedule; name at least one wait, or remove the key")
        for key in ("first", "factor", "cap"):
            if getattr(section, key) is not None:
                site.wrong((*path, key), f"`schedule` says the waits already; remove it or `{key}`")
    if not math.isfinite(factor) or factor < 1:
        site.wrong((*path, "factor"), "`factor` must be a number from 1 up: waits do not shrink")
    if section.schedule is None and sound:
        _exponential(section, path, site, first, cap)
    wait = schedule[0] if schedule else first
    if sound and give_up < wait:
        named = "give_up" if section.give_up is not None else "schedule" if schedule else "first"
        text = f"gives up after {print_duration(give_up)}, before the first retry after {print_duration(wait)}"
        site.wrong((*path, named), text)
    return Retry(first, factor, cap, give_up, section.attempts or 0, schedule)


def _exponential(section: RetrySection, path: Keys, site: Site, first: float, cap: float) -> None:
    if first > cap:
        named = "first" if section.first is not None else "cap"
        site.wrong((*path, named), f"`first` ({print_duration(first)}) is longer than `cap` ({print_duration(cap)})")
