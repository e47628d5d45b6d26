"""`shaping`, of users and of presets: what is done for a time when an upstream says certain words."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from relay.config.replies import ReplyPattern
from relay.config.types import Duration, Given, ListOf, Name, OneOrMany, OnlyTrue, Pattern, Section, Sessions, Slower
from relay.policy.shaping import ShapingRule
from relay.reply import Stage

ACTIONS = ("slow", "connections", "pause", "drop", "suppress", "next", "alarm")


class ShapingMatch(Section):
    reply: ReplyPattern = Field(description="Searched in the reply as one line (code, enhanced code, text).")
    destination: Given[OneOrMany[Pattern]] = Field(
        None,
        description="The recipient's domain; or by MX the name of its entry in `destinations`, or of its provider (`google`).",
    )
    egress: Given[OneOrMany[Pattern]] = Field(None, description="The account or direct entry that it was said to.")
    class_: Given[OneOrMany[Pattern]] = Field(None, alias="class", description="The traffic class.")
    at: ListOf[Literal["banner", "ehlo", "starttls", "auth", "mail", "rcpt", "data", "dot"]] = Field(
        (), description="The stages at which it counts; without: all."
    )


class ShapingEntry(Section):
    name: Given[Name] = Field(None, description="Its name in logs and commands; default `shaping-N`.")
    match: ShapingMatch = Field(description="What was said, and where; all of it must fit.")
    slow: Given[Slower] = Field(None, description="It sends there no faster than this share of what it did.")
    connections: Given[Sessions] = Field(None, description="So many sessions at most, or this share of them.")
    pause: Given[OnlyTrue] = Field(None, description="Nothing leaves there.")
    drop: Given[OnlyTrue] = Field(None, description="The session is ended; the next one may be another server's.")
    suppress: Given[OnlyTrue] = Field(None, description="The recipient gets nothing more.")
    next: Given[OnlyTrue] = Field(None, description="What was to leave there goes by the route's next egress.")
    alarm: Given[OnlyTrue] = Field(None, description="An operator is told.")
    for_: Duration = Field(1800.0, alias="for", description="For how long.")


def problem(entry: ShapingEntry) -> tuple[str, str]:
    """(key, what is wrong between keys), without a key of the entry as a whole; two empty strings: nothing."""
    if all(getattr(entry, key) is None for key in ACTIONS):
        return "", f"a rule that does nothing; name at least one of {', '.join(ACTIONS)}"
    for key in ("slow", "connections"):
        if entry.pause and getattr(entry, key) is not None:
            return key, f"while it pauses nothing leaves there; remove `{key}` or `pause`"
    return ("for", "`for` must be longer than nothing") if entry.for_ <= 0 else ("", "")


def rule(entry: ShapingEntry, name: str, origin: str) -> ShapingRule:
    """`name`: where the entry has none."""
    match = entry.match
    return ShapingRule(
        entry.name or name,
        match.reply,
        egress=match.egress or (),
        destination=match.destination or (),
        class_=match.class_ or (),
        at=frozenset(Stage(stage) for stage in match.at),
        seconds=entry.for_,
        slow=entry.slow,
        connections=entry.connections,
        pause=bool(entry.pause),
        drop=bool(entry.drop),
        suppress=bool(entry.suppress),
        next=bool(entry.next),
        alarm=bool(entry.alarm),
        origin=origin,
    )
