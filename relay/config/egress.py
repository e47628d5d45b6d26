"""What accounts, direct entries and destinations have in common: limits, the meaning of replies, TLS."""

from __future__ import annotations

from collections.abc import Sequence

from relay.config import replies
from relay.config.limits import build_rate
from relay.config.mx import HopTlsSection
from relay.config.pacing import LimitEntry, WarmUpSection
from relay.config.problems import Keys
from relay.config.replies import ReplyEntry
from relay.config.site import Site
from relay.config.upstream import TlsSection
from relay.config.warmup import build_warm_up
from relay.policy.rate import Rate
from relay.policy.replies import ReplyRule
from relay.policy.warmup import WarmUp
from relay.settings import Tls, TlsMode

IN_CLEAR = ("none", "opportunistic")  # opportunistic falls back to clear text


class EgressBuilder:
    def __init__(self, site: Site) -> None:
        self.site = site

    def limits(self, entries: Sequence[LimitEntry], path: Keys) -> tuple[Rate, ...]:
        for number, entry in enumerate(entries):
            if entry.when_full == "reject" and entry.rate.unit == "connections":
                text = "connections are dialled long after mail was handed in; use defer or next"
                self.site.wrong((*path, number, "when_full"), text)
        return tuple(build_rate(entry, (*path, number), self.site) for number, entry in enumerate(entries))

    def warm_up(self, section: WarmUpSection | None, path: Keys) -> WarmUp | None:
        return None if section is None else build_warm_up(section, path, self.site)

    def replies(self, entries: Sequence[ReplyEntry], path: Keys) -> tuple[ReplyRule, ...]:
        made = []
        for number, entry in enumerate(entries):
            key, wrong = replies.problem(entry)
            if wrong:
                self.site.wrong((*path, number, key), wrong)
            made.append(replies.rule(entry, ".".join(str(key) for key in path)))
        return tuple(made)

    def trust(self, section: TlsSection | HopTlsSection, mode: TlsMode, path: Keys) -> Tls:
        """What a server must show us; without what we show it."""
        if mode == "none":
            for key in sorted(section.model_fields_set - {"mode"}):
                self.site.wrong((*path, key), f"`{key}` has no meaning without TLS (mode none); remove it")
        # RFC 7435 §3: opportunistic TLS takes any certificate, since the alternative is none at all.
        verify = mode not in IN_CLEAR if section.verify is None else section.verify
        if mode not in IN_CLEAR and not verify and not section.pin:
            self.site.warn((*path, "verify"), "any server can pose as this one; trust its certificate by `ca` or `pin`")
        ca = self.site.existing(section.ca, (*path, "ca"))
        return Tls(mode, verify, ca, section.pin or (), minimum=section.minimum)


def largest(wanted: int, limits: Sequence[Rate]) -> int:
    """Recipients in one transaction: no more than what a limit lets go at once.

    What is spaced by default is not cut into so small parts: to as many as the limit has they go from rest.
    """
    return min([wanted] + [min(rate.count, rate.burst or rate.count) for rate in limits if rate.unit == "recipients"])
