"""`accounts.NAME.replies` and the dictionaries of presets: what a provider means by its words."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PlainValidator

from relay.config.types import Duration, Given, ListOf, Section, Written, text_schema
from relay.config.values import describe
from relay.policy.replies import ReplyRule, Turn
from relay.reply import Remedy, Scope, Stage

LONGEST = 400
_SCOPES = {
    "recipient": Scope.RECIPIENT,
    "message": Scope.MESSAGE,
    "account": Scope.EGRESS,
    "destination": Scope.DESTINATION,
}


def parse_reply_pattern(value: object) -> re.Pattern[str]:
    """A regular expression, searched in `CODE ENHANCED TEXT` whatever its case."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a regular expression such as '^550 5\\.4\\.5 ', found {describe(value)}")
    if len(value) > LONGEST:
        raise ValueError(f"longer than {LONGEST} characters; name the words that tell it apart")
    try:
        return re.compile(value, re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"not a regular expression: {error}") from None


ReplyPattern = Annotated[
    re.Pattern[str],
    PlainValidator(parse_reply_pattern),
    text_schema(),
    Written('regular expression (`"^550 5\\.4\\.5"`)'),
]
ClockTurn = Annotated[
    Turn, PlainValidator(Turn.parse), text_schema(), Written("time and zone (`00:00 America/Los_Angeles`)")
]


class ReplyEntry(Section):
    reply: ReplyPattern = Field(description="Searched in the reply as one line (code, enhanced code, text).")
    at: ListOf[Literal["banner", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot"]] = Field(
        (), description="The stages at which it counts; without: all."
    )
    scope: Literal["recipient", "message", "account", "destination"] = Field(description="Who suffers.")
    verdict: Literal["temporary", "permanent"] = Field(
        "temporary", description="`permanent` only for a recipient or a message."
    )
    then: Literal["rest", "slow", "fewer"] = Field(
        "rest", description="An account rests, is asked less often, or on fewer connections."
    )
    wait: Given[Duration] = Field(
        None, description="For how long, unless the reply says so itself; default by backoff, for an account `1h`."
    )
    until: Given[ClockTurn] = Field(None, description="Or until the next such time, when a quota begins anew.")
    fail_over: Given[bool] = Field(
        None, description="The route's next account takes over from one that rests; default true."
    )
    means: Given[str] = Field(None, description="In short, for operators.")


def problem(entry: ReplyEntry) -> tuple[str, str]:
    """(key, what is wrong between keys); two empty strings: nothing."""
    if entry.verdict == "permanent" and entry.scope in ("account", "destination"):
        return "verdict", f"only a recipient or a message fails for good; {entry.scope} is always temporary"
    if entry.scope != "account" and entry.then != "rest":
        return "then", f"`{entry.then}` helps an account; {entry.scope} has no pace and no connections"
    if entry.scope != "account" and entry.fail_over is not None:
        return "fail_over", "only an account's mail goes to the route's next account"
    if entry.then != "rest" and entry.fail_over:
        return (
            "fail_over",
            f"an account that is well (`then: {entry.then}`) keeps its mail; only one that rests passes it on",
        )
    if entry.wait is not None and entry.until is not None:
        return "until", "say either `wait` or `until`"
    if entry.verdict == "permanent" and (entry.wait is not None or entry.until is not None):
        return "verdict", "what is permanent has nothing to wait for"
    return "", ""


def rule(entry: ReplyEntry, origin: str) -> ReplyRule:
    return ReplyRule(
        entry.reply,
        _SCOPES[entry.scope],
        entry.verdict == "permanent",
        frozenset(Stage(stage) for stage in entry.at),
        Remedy(entry.then),
        entry.wait,
        entry.until,
        entry.then == "rest" if entry.fail_over is None else entry.fail_over,
        entry.means or "by a rule of " + origin,
        origin,
    )
