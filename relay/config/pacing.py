"""The shape of pace: limits, warm-up, hours, the breaker. What users write below these keys. See shape.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from relay.config.types import (
    AnyRate,
    Burst,
    ClockHours,
    Count,
    Daily,
    Date,
    Days,
    Duration,
    Given,
    Growth,
    ListOf,
    MailRate,
    Name,
    OrAlone,
    Part,
    Section,
    TableDay,
    Timezone,
    Written,
)


def rate_alone(value: object) -> object:
    return value if isinstance(value, dict) else {"rate": value}


class LimitEntry(Section):
    rate: MailRate = Field(
        description="How many recipients (or `N messages/min`, or bytes, `500MB/h`) in each s, min, h or d."
    )
    window: Literal["sliding", "calendar"] = Field("sliding", description="Any span of that length, or by the clock.")
    timezone: Timezone = Field("UTC", description="Whose clock.")
    burst: Given[Burst] = Field(
        None, description="So many may go at once, the others at even distances; up to the rate's own number."
    )
    when_full: Literal["defer", "reject", "next"] = Field(
        "defer", description="It waits; is refused when it is handed in (452); or goes by the route's next egress."
    )


class EgressLimitEntry(LimitEntry):
    """Of an account, a direct entry or a destination."""

    rate: AnyRate = Field(
        description="How many recipients (or `N messages/min`, `N connections/min`, or bytes, `500MB/h`) in each s, min, h "
        "or d."
    )
    when_full: Literal["defer", "reject", "next"] = Field(
        "defer",
        description="It waits; new mail is refused when it is handed in (452), not for a destination or of connections; or it "
        "goes by the route's next egress.",
    )


Limit = Annotated[
    LimitEntry, BeforeValidator(rate_alone), OrAlone({"type": "string"}), Written("rate (`5000/d`), or a map")
]
EgressLimit = Annotated[
    EgressLimitEntry, BeforeValidator(rate_alone), OrAlone({"type": "string"}), Written("rate (`14/s`), or a map")
]


class HoldAboveSection(Section):
    bounces: Given[Part] = Field(None, description="Recipients who were refused for good.")
    complaints: Given[Part] = Field(None, description="Recipients who complained.")
    deferrals: Given[Part] = Field(None, description="Recipients who were put off.")


class WarmUpSection(Section):
    start: Date = Field(description="The first day.")
    first: Given[Daily] = Field(None, description="How much on the first day; or `table`.")
    growth: Given[Growth] = Field(None, description="How much more on each day after it; default `20%`.")
    max_step: Given[Daily] = Field(None, description="But not more than so much more; default: as `growth` gives.")
    until: Given[Daily] = Field(
        None, description="Where it ends: after a day of that this limits nothing. Needed with `first`."
    )
    table: Given[ListOf[TableDay]] = Field(
        None, description="Instead of these four: how much on each day, the first first; after the last this ends."
    )
    spread: Literal["hourly", "none"] = Field(
        "hourly", description="Each hour its share of the day, or as soon as there is mail."
    )
    timezone: Timezone = Field("UTC", description="By whose clock a day begins.")
    overflow: Given[Name] = Field(
        None, description="The account or direct entry that takes what is in excess; without, it waits."
    )
    hold_above: HoldAboveSection = Field(
        HoldAboveSection(), description="With a larger share of these it does not grow, see below."
    )


class HoursSection(Section):
    days: Given[Days] = Field(None, description="On which days it begins; default all.")
    hours: Given[ClockHours] = Field(None, description="From when to when; may end on the next day. Default all.")
    timezone: Timezone = Field("UTC", description="By whose clock.")


class BreakerSection(Section):
    failures: Count = Field(5, description="So many failures in a row open it.")
    cool_down: Duration = Field(60.0, description="How long it rests then; doubled each time that the probe fails.")
    max: Duration = Field(1800.0, description="But no longer than this.")
