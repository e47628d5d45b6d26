"""`limits`, and those of users, tenants and classes: which mail each binds, and what it counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from relay.config.matches import MatchSection
from relay.config.pacing import LimitEntry
from relay.config.problems import Keys
from relay.config.shape import File, LimitRule
from relay.config.site import Site
from relay.config.values import describe
from relay.policy.limits import Limit
from relay.policy.rate import Rate
from relay.policy.routing import Match, Question


def build_rate(entry: LimitEntry, path: Keys, site: Site) -> Rate:
    rate = entry.rate
    burst, is_size = entry.burst or (0, rate.unit == "bytes")
    if is_size is not (rate.unit == "bytes"):
        wanted = "a size such as 10MB: its rate counts bytes" if rate.unit == "bytes" else f"a number of {rate.unit}"
        site.wrong((*path, "burst"), f"expected {wanted}")
    elif burst > rate.count:
        node = site.root.find((*path, "burst"))
        text = f"more at once than {rate.text} allows at all; found {describe(node.plain() if node else burst)}"
        site.wrong((*path, "burst"), text)
    if entry.window != "calendar" and entry.timezone != "UTC":
        site.warn((*path, "timezone"), "a sliding window has no clock; with `window: calendar` its days begin there")
    return replace(
        rate,
        calendar=entry.window == "calendar",
        timezone=entry.timezone,
        burst=burst,
        when_full=entry.when_full,
    )


@dataclass(frozen=True)
class LimitsBuilder:
    site: Site
    match: Callable[[Keys, MatchSection], Match]  # builds a `match`, and tells what it names that is not there

    def build(self, file: File, numbers: Sequence[int], tenants: Mapping[str, frozenset[str]]) -> tuple[Limit, ...]:
        """All that bind mail by what it is. `numbers`: which elements of the tree's `limits` those of `file` are."""
        self.site.names_once("limits", "limit")
        made = [self.rule(n, entry) for n, entry in zip(numbers, file.limits, strict=True)]
        for name, user in file.users.items():
            made += self.of("users", name, Question("user", (name,)), user.limits)
        for name, tenant in file.tenants.items():
            users = tenants.get(name, frozenset())
            if not users:
                self.site.warn(("tenants", name), "no user belongs to it: say `tenant` of one", on_key=True)
            limits = self.of("tenants", name, Question("user", tuple(sorted(users))), tenant.limits)
            made += limits if users else []
        for name, class_ in file.classes.items():
            made += self.of("classes", name, Question("class", (name,)), class_.limits)
        return tuple(made)

    def rule(self, number: int, entry: LimitRule) -> Limit:
        path: Keys = ("limits", number)
        for place, what in enumerate(entry.per):
            if what in entry.per[:place]:
                self.site.wrong((*path, "per", place), f"'{what}' is named twice")
        if "egress" in entry.per and entry.when_full == "reject":
            text = "nobody knows yet by what it will leave when mail is handed in; with `per: egress` use defer or next"
            self.site.wrong((*path, "when_full"), text)
        if "tenant" in entry.per and not self.site.names("tenants"):
            self.site.warn((*path, "per"), "there are no `tenants`")
        match = Match() if entry.match is None else self.match((*path, "match"), entry.match)
        return Limit(
            entry.name or f"limit-{number + 1}",
            build_rate(entry, path, self.site),
            match,
            entry.per,
            origin=self.origin(path),
        )

    def of(self, section: str, name: str, question: Question, entries: Iterable[LimitEntry]) -> list[Limit]:
        """Those that stand with a user, a tenant or a class. Their names say period and unit but not the count, so that
        what is spent outlives another count."""
        whose = f"{_ONE[section]} {name}"
        made: dict[str, Limit] = {}
        for number, entry in enumerate(entries):
            path: Keys = (section, name, "limits", number)
            rate = build_rate(entry, path, self.site)
            period = rate.text.rpartition("/")[2]
            named = f"{whose} {rate.unit}/{period}" + (" by the calendar" if rate.calendar else "")
            same = sum(limit.name.startswith(named) and limit.rate.calendar == rate.calendar for limit in made.values())
            named += f" {same + 1}" if same else ""
            made[named] = Limit(named, rate, Match((question,)), whose=whose, origin=self.origin(path))
        return list(made.values())

    def origin(self, path: Keys) -> str:
        mark = self.site.mark(path)
        return f"{mark.file}:{mark.line}"


_ONE = {"users": "user", "tenants": "tenant", "classes": "class"}
