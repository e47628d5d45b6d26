"""How a sink behaves: the language of its scripts, and the values that it plays. Pure.

A profile is a frozen value. Times are seconds, rates tokens a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from relay.config.types import (
    Duration,
    Given,
    Hostname,
    ListOf,
    MessageRate,
    Name,
    OneOrMany,
    Pattern,
    Section,
    Size,
    Written,
)
from relay.config.values import describe
from relay.policy.rate import Rate

PLACEHOLDERS = ("id", "seconds", "client", "account", "sender", "recipient")
# In the order of a session. `content`: its first bytes; `dot`: its end.
STAGES = ("connect", "ehlo", "auth", "mail", "rcpt", "data", "content", "dot")

Stage = Literal["connect", "ehlo", "auth", "mail", "rcpt", "data", "content", "dot"]
Mechanism = Literal["PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"]
MECHANISMS: tuple[Mechanism, ...] = ("PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER")
Extension = Literal["PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN"]
Whose = Literal["client", "account", "all"]
Fact = Literal["client", "account", "sender", "recipient"]
Then = Literal["reply", "close", "drop", "stall"]

_REPLY = re.compile(r"([245][0-9]{2}) (?:([245]\.[0-9]{1,3}\.[0-9]{1,3})(?: |$))?(.*)", re.DOTALL)
_LINE = re.compile(r"[ -~]{1,400}")
_HELD = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True, slots=True)
class Reply:
    """What is said; `text` may have several lines and placeholders."""

    code: int
    enhanced: str
    text: str

    def __str__(self) -> str:
        """As it was written: with its placeholders, on one line."""
        return " ".join(part for part in (str(self.code), self.enhanced, self.text.replace("\n", " ")) if part)

    def filled(self, values: dict[str, str]) -> str:
        return _HELD.sub(lambda found: values.get(found[1], ""), self.text)


def parse_text(value: object) -> str:
    """One line or several of ASCII, with placeholders."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a text, found {describe(value)}")
    text = value.rstrip("\n")
    if not all(_LINE.fullmatch(line) for line in text.split("\n")):
        raise ValueError("a reply has lines of printable ASCII, each of 1 to 400 characters")
    for name in _HELD.findall(text):
        if name not in PLACEHOLDERS:
            raise ValueError(f"no placeholder {{{name}}}; known are {', '.join(f'{{{p}}}' for p in PLACEHOLDERS)}")
    return text


def parse_reply(value: object) -> Reply:
    """`450 4.2.0 Greylisted, try again in {seconds} seconds`."""
    text = parse_text(value)
    found = _REPLY.fullmatch(text)
    if not found or (found[2] and found[2][0] != found[1][0]):
        raise ValueError(f"expected a reply such as 450 4.2.0 Try again later, found {describe(value)}")
    return Reply(int(found[1]), found[2] or "", found[3])


def parse_refusal(value: object) -> Reply:
    reply = parse_reply(value)
    if reply.code < 400:
        raise ValueError(f"a refusal has a code of 400 to 599, found {reply.code}")
    return reply


def parse_share(value: object) -> float:
    found = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,4})?) ?%", value) if isinstance(value, str) else None
    if not found or not 0 < float(found[1]) <= 100:
        raise ValueError(f"expected a share such as 2%, above 0 and up to 100, found {describe(value)}")
    return float(found[1]) / 100


Text = Annotated[str, PlainValidator(parse_text), WithJsonSchema({"type": "string"}), Written("text with placeholders")]
AnyReply = Annotated[Reply, PlainValidator(parse_reply), WithJsonSchema({"type": "string"}), Written("reply")]
Refusal = Annotated[
    Reply,
    PlainValidator(parse_refusal),
    WithJsonSchema({"type": "string"}),
    Written("refusal"),
]
Share = Annotated[float, PlainValidator(parse_share), WithJsonSchema({"type": "string"}), Written("share (`2%`)")]
Count = Annotated[int, Field(ge=1)]


class Login(Section):
    """Whom it lets in. Any name and password, or token, unless the command line says otherwise."""

    mechanisms: ListOf[Mechanism] = Field(MECHANISMS, description="What AUTH offers, in that order; none: no AUTH.")
    required: Given[Refusal] = Field(None, description="MAIL without a login is refused with this.")
    accepted: AnyReply = Field(Reply(235, "2.7.0", "logged in"), description="To a login that is right.")
    refused: Refusal = Field(
        Reply(535, "5.7.8", "user name or password is wrong"), description="To a login that is wrong."
    )
    scope: str = Field(
        "https://mail.google.com/", description="What the challenge of a refused token names (RFC 7628)."
    )


class Recipients(Section):
    """How many a message may have."""

    most: Count = Field(description="So many.")
    at: Literal["rcpt", "dot"] = Field("rcpt", description="Where one more is refused.")
    reply: Refusal = Field(Reply(452, "4.5.3", "Too many recipients"), description="The refusal.")


class Limit(Section):
    """A token bucket, or places for so many at once. What is refused takes no token."""

    name: Given[Name] = Field(None, description="To replace it in a script that extends this one; shown.")
    rate: Given[MessageRate] = Field(None, description="Tokens that flow in, continuously: `30/min`.")
    burst: Given[Count] = Field(None, description="What the bucket holds, full at first; default: the count of `rate`.")
    at_once: Given[Count] = Field(None, description="Instead of `rate`: so many sessions at a time, until they end.")
    at: Stage = Field(description="Where it is asked, and taken from.")
    counts: Literal["each", "recipients"] = Field(
        "each", description="A token for each command (so, at `mail` or `dot`, each message), or for each recipient."
    )
    per: Whose = Field("account", description="One bucket for each; `account` without a login: the client's address.")
    reply: Refusal = Field(description="To what does not fit. `{seconds}`: until it would.")
    then: Given[Literal["reply", "close"]] = Field(
        None, description="`close`: and hang up. Default: `close` after a 421 and at `connect`, else `reply`."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Limit:
        if (self.rate is None) is (self.at_once is None):
            raise ValueError("a limit has either `rate` or `at_once`")
        if self.burst is not None and self.rate is None:
            raise ValueError("`burst` belongs to `rate`")
        if self.at == "content":
            raise ValueError("nothing can be refused within the content; use data or dot")
        if self.counts == "recipients" and (self.at not in ("data", "dot") or self.rate is None):
            raise ValueError("recipients are counted by a `rate` at data or dot; at rcpt each command is one")
        if self.per == "account" and self.at in ("connect", "ehlo"):
            raise ValueError("nobody has logged in there yet; write `per: client` or `per: all`")
        return self

    @property
    def tokens(self) -> tuple[float, int]:
        """(tokens a second, burst)."""
        assert self.rate is not None
        return self.rate.count / self.rate.period, self.burst or self.rate.count


class Greylist(Section):
    """Who comes for the first time is told to come again, at `rcpt`."""

    wait: Duration = Field(description="From the first try until one is let through.")
    reply: Refusal = Field(Reply(450, "4.2.0", "Greylisted, try again in {seconds} seconds"), description="Until then.")
    per: ListOf[Fact] = Field(("client", "sender", "recipient"), description="What is new together.")


class RuleMatch(Section):
    """All keys must hold; of a list, any."""

    client: Given[OneOrMany[Pattern]] = Field(None, description="Its address.")
    account: Given[OneOrMany[Pattern]] = Field(None, description="Who logged in; at `auth`, who wants to.")
    sender: Given[OneOrMany[Pattern]] = Field(None, description='MAIL FROM; `""` is the null sender. From `mail` on.')
    recipient: Given[OneOrMany[Pattern]] = Field(
        None, description="At `rcpt` this one, from `data` on any of the message's."
    )
    header: Given[dict[str, OneOrMany[Pattern]]] = Field(None, description="Name to pattern, as it came. At `dot`.")


class Rule(Section):
    """Something that happens. The first one that fires and does more than to wait is the last that is asked."""

    name: Given[Name] = Field(None, description="To replace it in a script that extends this one.")
    at: Stage = Field(description="Where. `content`: once its first bytes have come; `dot`: after its end.")
    match: RuleMatch = Field(RuleMatch(), description="For whom; left out: for all.")
    share: Given[Share] = Field(None, description="How many of those, drawn by `--seed`; default: all.")
    after: int = Field(0, ge=0, description="The first so many that match pass.")
    times: Given[Count] = Field(None, description="It fires so often at most.")
    delay: Duration = Field(0.0, description="Before the reply, or before what `then` says.")
    reply: Given[Refusal] = Field(None, description="Refused with this.")
    then: Given[Then] = Field(
        None,
        description="`close`: hang up after `reply`. `drop`: cut the connection without one. `stall`: never answer. "
        "Default: `close` after a 421 and at `connect`, else `reply`.",
    )
    kept: bool = Field(False, description="At `dot`: the message is kept all the same.")

    @model_validator(mode="after")
    def _makes_sense(self) -> Rule:
        place = STAGES.index(self.at)
        asked = self.match
        if self.reply is None and self.then is None and not self.delay:
            raise ValueError("does nothing; give it `reply`, `then` or `delay`")
        if (self.then in ("reply", "close")) > (self.reply is not None):
            raise ValueError(f"`then: {self.then}` needs a `reply`")
        if self.then in ("drop", "stall") and self.reply is not None:
            raise ValueError(f"`then: {self.then}` says nothing: remove `reply`")
        if self.at == "content" and self.reply is not None:
            raise ValueError("nothing can be said within the content; use data or dot, or `then: drop`")
        if self.kept and self.at != "dot":
            raise ValueError("`kept` belongs to `at: dot`: before that there is no message")
        if asked.header is not None and self.at != "dot":
            raise ValueError("the header is known at dot")
        if asked.sender is not None and place < STAGES.index("mail"):
            raise ValueError("the sender is known from mail on")
        if asked.recipient is not None and place < STAGES.index("rcpt"):
            raise ValueError("recipients are known from rcpt on")
        if asked.account is not None and place < STAGES.index("auth"):
            raise ValueError("nobody has logged in there yet; an account is known from auth on")
        return self


class Profile(Section):
    """A script: how one sink behaves."""

    ordered: ClassVar[tuple[str, ...]] = ("limits", "rules")  # lists that a script adds to

    profile: Given[Name] = Field(None, description="A built-in profile that this script extends.")
    hostname: Hostname = Field("sink.localdomain", description="Its name, in the greeting and the answer to EHLO.")
    greeting: Given[Text] = Field(None, description="What follows 220; default: the host name and `ESMTP relay`.")
    offers: ListOf[Extension] = Field(
        ("PIPELINING", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"),
        description="What EHLO offers beside SIZE, AUTH and STARTTLS.",
    )
    max_message_size: Size = Field(100_000_000, description="SIZE, and what is refused beyond it (552 5.3.4).")
    login: Login = Field(Login(), description="Whom it lets in.")
    recipients: Given[Recipients] = Field(None, description="How many a message may have.")
    limits: ListOf[Limit] = Field(
        (), description="Asked in order; all of a stage must have room, or none is taken from."
    )
    greylist: Given[Greylist] = Field(None, description="Who comes for the first time is told to come again.")
    rules: ListOf[Rule] = Field((), description="What else happens, asked in order and before limits.")

    def extended(self, own: Profile) -> Profile:
        """This profile with what a script says: its rules and limits first, in the place of those of the same name."""
        said: dict[str, Any] = {name: getattr(own, name) for name in own.model_fields_set if name != "profile"}
        for name in self.ordered:
            mine = said.get(name, ())
            replaced = {entry.name for entry in mine if entry.name}
            said[name] = (*mine, *(entry for entry in getattr(self, name) if entry.name not in replaced))
        for name in ("login", "recipients", "greylist"):
            base, new = getattr(self, name), said.get(name)
            if base is not None and new is not None:
                said[name] = base.model_copy(update={key: getattr(new, key) for key in new.model_fields_set})
        return self.model_copy(update=said)

    def faster(self, speed: float) -> Profile:
        """All its times so many times shorter: rates, waits and delays. Bursts stay."""
        if speed == 1:
            return self
        limits = tuple(
            limit.model_copy(update={"rate": _faster(limit.rate, speed), "burst": limit.tokens[1]})
            if limit.rate
            else limit
            for limit in self.limits
        )
        rules = tuple(rule.model_copy(update={"delay": rule.delay / speed}) for rule in self.rules)
        greylist = self.greylist and self.greylist.model_copy(update={"wait": self.greylist.wait / speed})
        return self.model_copy(update={"limits": limits, "rules": rules, "greylist": greylist})


def _faster(rate: Rate, speed: float) -> Rate:
    return Rate(rate.count, rate.period / speed, rate.unit, f"{rate.text} x {speed:g}")
