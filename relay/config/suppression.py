"""`suppression`: what makes that an address gets nothing more, for whose mail, and for how long."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from relay.config.types import Count, Duration, Given, ListOf, Section
from relay.policy.suppression import SuppressionRule

if TYPE_CHECKING:
    from relay.config.site import Site

Spread = Literal["all", "tenant", "class"]


class SoftSection(Section):
    count: Count = Field(5, description="The bounce that suppresses: so many of one address, each of another message.")
    within: Duration = Field(7 * 86400.0, description="All of them within this time.")


class SuppressionSection(Section):
    on: ListOf[Literal["hard_bounce", "complaint", "unsubscribe"]] = Field(
        ("hard_bounce", "complaint", "unsubscribe"), description="What suppresses at once."
    )
    soft: Given[SoftSection] = Field(None, description="Soft bounces suppress too, once they are many; without: never.")
    expire: Duration | None = Field(
        180 * 86400.0,
        description="How long a bounce suppresses; `null`: for ever, as complaints and unsubscriptions do.",
    )
    scope: Spread = Field("tenant", description="Whose mail it stops; who has no tenant stops all mail.")
    unsubscribe_scope: Spread = Field("class", description="And of an unsubscription.")
    at_rcpt: Literal["reject", "accept"] = Field(
        "reject", description="A suppressed recipient is refused (550); or is accepted, and fails at once."
    )


def build_suppression(section: SuppressionSection | None, site: Site) -> SuppressionRule:
    """Without a section: what somebody unsubscribed from, and nothing else."""
    if section is None:
        return SuppressionRule()
    if section.expire is not None and section.expire <= 0:
        site.wrong(("suppression", "expire"), "`expire` must be longer than nothing")
    soft = section.soft
    if soft is not None and soft.within <= 0:
        site.wrong(("suppression", "soft", "within"), "`within` must be longer than nothing")
    for key in ("scope", "unsubscribe_scope"):
        if key in section.model_fields_set and getattr(section, key) == "tenant" and not site.names("tenants"):
            site.warn(("suppression", key), "there are no `tenants`, so it stops all mail")
    default = SuppressionRule()
    return SuppressionRule(
        on=frozenset(section.on),
        soft_count=soft.count if soft is not None else 0,
        soft_within=soft.within if soft is not None else default.soft_within,
        expire=section.expire,
        scope=section.scope,
        unsubscribe_scope=section.unsubscribe_scope,
        at_rcpt=section.at_rcpt,
    )
