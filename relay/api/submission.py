"""What a program hands in: the models of a message, and what they mean.

Promises: a `Submission` that exists can be composed; nothing in it begins a header field of its own. Recipients are the
envelope's: who is in `bcc` is in no header.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from relay import compose
from relay.api.grammar import Forgiving
from relay.api.route import Answer, Model
from relay.compose import Draft, Mailbox, Uncomposable
from relay.envelope import AddressError, parse_address
from relay.settings import API
from relay.submission import PRIORITIES, SAFE_OPTION, Options

MOST = 1000  # messages of a batch
MAX_METADATA = 4096  # bytes of JSON
MAX_KEYS = 20
MAX_ATTACHMENTS = 100
MAX_FIELDS = 100
FURTHEST = 253402300799.0  # the year 9999
LONGEST_KEY = 200
LONGEST_BATCH_KEY = LONGEST_KEY - len(f"/{MOST - 1}")  # so that that of its last message is one
_KEY = re.compile(r"[!-~]([ -~]*[!-~])?")
_FORMS = {"type": "string", "minLength": 1, "maxLength": 2000}
Boxes = tuple[Mailbox, ...]


def _said(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Its words as pydantic's, without the value."""

    def checked(value: Any) -> Any:
        try:
            return check(value)
        except (Uncomposable, AddressError) as error:
            raise PydanticCustomError("mail", "{text}", {"text": str(error)}) from None

    return checked


def _boxes(value: Any) -> Boxes:
    texts = [value] if isinstance(value, str) else value
    too_many = Uncomposable(f"too many addresses: {API.max_recipients} are allowed; send several messages")
    if isinstance(texts, list) and len(texts) > API.max_recipients:
        raise too_many
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise Uncomposable("an address such as `Ann <ann@example.com>`, or a list of them")
    if sum(map(len, texts)) > compose.MAX_NAMED:
        raise Uncomposable(f"more than {compose.MAX_NAMED // 1024} KiB of addresses; send several messages")
    found = tuple(islice((box for one in texts for box in compose.mailboxes(one)), API.max_recipients + 1))
    if len(found) > API.max_recipients:
        raise too_many
    return found


def _author(value: Any) -> Mailbox:
    found = compose.mailboxes(value) if isinstance(value, str) else ()
    if len(found) != 1:
        raise Uncomposable("one address, such as `Shop <shop@example.com>`")
    return found[0]


def _reverse_path(value: Any) -> str:
    if not isinstance(value, str):
        raise Uncomposable("an address, or an empty text for the null reverse-path")
    return compose.mailboxes(parse_address(value))[0].address if value else ""


def _line(value: str) -> str:
    return compose.one_line("this", value)


def _text(value: str) -> str:
    if "\0" in value or not _encodable(value):
        raise Uncomposable("a NUL or half a character cannot be mailed as text; attach it")
    return value


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _fields(value: dict[str, Any]) -> dict[str, str | list[str]]:
    if sum(len(values) if isinstance(values, list) else 1 for values in value.values()) > MAX_FIELDS:
        raise Uncomposable(f"{MAX_FIELDS} fields are the most, each value of a list counted")
    for name, values in value.items():
        compose.check_field(name)
        for one in values if isinstance(values, list) else [values]:
            compose.one_line(name, one)
    return value


def _priority(value: Any) -> int:
    found = PRIORITIES.get(str(value).lower()) if type(value) in (int, str) else None
    if found is None:
        raise Uncomposable("immediate, high, normal, low, or 0 to 3")
    return found


def _instant(value: Any) -> float:
    """Epoch seconds, or RFC 3339 with a zone."""
    if type(value) in (int, float):
        when = float(min(value, FURTHEST + 1))  # an integer may be larger than any float
    else:
        try:
            moment = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise Uncomposable("a time such as 2026-12-01T08:00:00+01:00, or epoch seconds") from None
        if moment.tzinfo is None:
            raise Uncomposable("a time with its zone, such as Z or +01:00")
        when = moment.timestamp()
    if not 0 <= when <= FURTHEST:
        raise Uncomposable("a time between 1970 and 9999")
    return when


def _option(value: str) -> str:
    if value and not SAFE_OPTION.fullmatch(value):
        raise Uncomposable("1 to 200 printable characters")
    return value


def key(value: str, most: int = LONGEST_KEY) -> str:
    """An idempotency key. Raises Uncomposable."""
    if len(value) > most or not _KEY.fullmatch(value):
        raise Uncomposable(f"an idempotency key has 1 to {most} printable characters of ASCII")
    return value


def _metadata(value: dict[str, Any]) -> dict[str, Any]:
    if len(value) > MAX_KEYS or len(json.dumps(value)) > MAX_METADATA:
        raise Uncomposable(f"metadata has at most {MAX_KEYS} keys and {MAX_METADATA} bytes as JSON")
    if not _encodable(json.dumps(value, ensure_ascii=False)):
        raise Uncomposable("half a character comes back to nobody")
    return value


def _meant(text: str) -> WrapValidator:
    """Of a union: what was meant, once, and not what each of its members lacks."""

    def checked(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("mail", "{text}", {"text": text}) from None

    return WrapValidator(checked)


Addresses = Annotated[
    Boxes,
    PlainValidator(_said(_boxes)),
    PlainSerializer(lambda boxes: [box.written() for box in boxes]),
    WithJsonSchema({"anyOf": [_FORMS, {"type": "array", "items": _FORMS}]}),
]
Author = Annotated[Mailbox, PlainValidator(_said(_author)), PlainSerializer(Mailbox.written), WithJsonSchema(_FORMS)]
Line = Annotated[str, AfterValidator(_said(_line))]
Text = Annotated[str, AfterValidator(_said(_text))]
Option = Annotated[str, Field(max_length=200), AfterValidator(_said(_option))]
Key = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_said(key))]
Priority = Annotated[
    int,
    PlainValidator(_said(_priority)),
    WithJsonSchema({"enum": ["immediate", "high", "normal", "low", 0, 1, 2, 3]}),
]
Instant = Annotated[
    float,
    PlainValidator(_said(_instant)),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "number", "minimum": 0, "maximum": FURTHEST}]}
    ),
]
Scalar = Annotated[str | int | float | bool | None, _meant("a text, a number, true, false or null")]
Values = Annotated[str | list[str], _meant("a text, or a list of texts")]


class Part(Model):
    """What is attached: one of `content`, `path` and `url`."""

    model_config = ConfigDict(extra="forbid", str_max_length=None, allow_inf_nan=False)
    filename: Annotated[Line, Field(min_length=1, max_length=255)] = Field(description="As its recipient saves it.")
    content_type: Annotated[str, Field(max_length=255), AfterValidator(_said(compose.check_type))] | None = Field(
        None, description="Without: as the ending of the filename says."
    )
    inline: bool = Field(False, description="Shown within `html`, which names it as `cid:CONTENT_ID`.")
    content_id: Annotated[str, AfterValidator(_said(compose.check_content_id))] | None = Field(
        None, description="Of an inline one: what `html` calls it."
    )
    content: str | None = Field(None, description="Base64.")
    path: Annotated[Line, Field(min_length=1, max_length=4096)] | None = Field(
        None, description="Of a file, below `attachments.folder`."
    )
    url: Annotated[Line, Field(min_length=1, max_length=4096)] | None = Field(
        None, description="One that `attachments.urls.allow` names; it is fetched now."
    )
    sha256: str | None = Field(None, pattern="^[0-9A-Fa-f]{64}$", description="What the content must have.")

    @model_validator(mode="after")
    def _one(self) -> Part:
        if sum(one is not None for one in (self.content, self.path, self.url)) != 1:
            raise PydanticCustomError("mail", "an attachment has one of `content`, `path` and `url`")
        return self


class Submission(Forgiving):
    """A message to be sent."""

    model_config = ConfigDict(
        extra="forbid",
        populate_by_name=True,
        str_max_length=None,
        allow_inf_nan=False,
        json_schema_extra={"anyOf": [{"required": ["from", "to"]}, {"required": ["raw"]}]},
    )
    from_: Author | None = Field(
        None, alias="from", description="Its author, `a@example.com` or `Name <a@example.com>`. Needed, but with `raw`."
    )
    to: Addresses = Field((), description="One or a list, each `a@example.com` or `Name <a@example.com>`.")
    cc: Addresses = Field((), description="One or a list; named in the header.")
    bcc: Addresses = Field((), description="They get it, and nobody sees it.")
    reply_to: Addresses = Field((), description="One or a list: who gets the answers.")
    subject: Line = Field("", description="One line, in any language.")
    text: Text | None = Field(None, description="The plain text. With `html`, its alternative.")
    html: Text | None = Field(None, description="The HTML; images of it are attachments that are `inline`.")
    headers: Annotated[dict[str, Values], Field(max_length=MAX_FIELDS), AfterValidator(_said(_fields))] = Field(
        default_factory=dict, description="More fields, such as `X-Order`; of several values each is a field."
    )
    attachments: Annotated[list[Part], Field(max_length=MAX_ATTACHMENTS)] = Field(
        default_factory=list, description="What is attached."
    )
    class_: Option = Field("", alias="class", description="A traffic class of the configuration.")
    priority: Priority | None = Field(None, description="Before or behind other mail; without: that of its class.")
    send_at: Instant | None = Field(None, description="Not before this: RFC 3339 with a zone, or epoch seconds.")
    tag: Option = Field("", description="What it is told by in events and lists.")
    metadata: Annotated[dict[str, Scalar], AfterValidator(_said(_metadata))] = Field(
        default_factory=dict, description=f"Comes back in events; {MAX_KEYS} keys and {MAX_METADATA} bytes at most."
    )
    envelope_from: Annotated[str, PlainValidator(_said(_reverse_path)), WithJsonSchema({"type": "string"})] | None = (
        Field(None, description="The reverse-path, where bounces go; without: the address of `from`.")
    )
    idempotency_key: Key | None = Field(None, description="The same again is the same message.")
    user: Annotated[str, Field(max_length=100)] = Field(
        "", description="Who submits it; for tokens of a tenant or of the whole relay."
    )
    raw: Annotated[str | bytes, WithJsonSchema({"type": "string", "contentEncoding": "base64"})] | None = Field(
        None,
        description="Base64 of a whole message, instead of `cc` to `attachments`; `from` and `to` are its envelope then.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Submission:
        if self.raw is None:
            if self.from_ is None:
                raise PydanticCustomError("mail", "is missing: who writes the message?", {"field": "from"})
            if not (self.to or self.cc or self.bcc):
                text = "is missing, and `cc` and `bcc`: who gets the message?"
                raise PydanticCustomError("mail", "{text}", {"text": text, "field": "to"})
            return self
        if said := sorted(_INSTEAD & self.model_fields_set):
            raise PydanticCustomError(
                "mail", "cannot stand beside `raw`, which is the whole message", {"field": said[0]}
            )
        return self

    @property
    def recipients(self) -> list[str]:
        """Each once."""
        return list(dict.fromkeys(box.address for box in (*self.to, *self.cc, *self.bcc)))

    @property
    def sender(self) -> str | None:
        """The reverse-path; None: it is to be read from `raw`."""
        if self.envelope_from is not None:
            return self.envelope_from
        return self.from_.address if self.from_ is not None else None

    @property
    def options(self) -> Options:
        return Options(self.class_, self.priority, self.send_at, self.tag, self.idempotency_key or "")

    @property
    def fields(self) -> list[tuple[str, str]]:
        """Those of `headers`, one by one."""
        return [
            (name, one)
            for name, value in self.headers.items()
            for one in (value if isinstance(value, list) else [value])
        ]

    @property
    def length(self) -> int:
        """Characters of subject and fields: to fold them takes longer than anything else that is as long."""
        return len(self.subject) + sum(len(name) + len(value) for name, value in self.fields)

    def draft(self, attachments: Sequence[compose.Attachment]) -> Draft:
        """Of one without `raw`."""
        assert self.from_ is not None
        return Draft(
            *(self.from_, self.to, self.cc, self.reply_to, self.subject, self.text, self.html),
            *(self.fields, attachments),
        )

    def digest(self) -> str:
        """Of all that it says but its key: whether one with the same key is the same."""
        said: dict[str, Any] = self.model_dump(
            by_alias=True, exclude_defaults=True, exclude={"idempotency_key", "user"}
        )
        if isinstance(self.raw, bytes):
            said["raw"] = hashlib.sha256(self.raw).hexdigest()
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


_INSTEAD = frozenset({"cc", "bcc", "reply_to", "subject", "text", "html", "headers", "attachments"})


class Beside(Model):
    """What is said beside a message/rfc822."""

    from_: str = Field("", alias="from", max_length=2000, description="The reverse-path; without: its From.")
    to: str = Field("", max_length=100_000, description="With commas between; without: its To, Cc and Bcc.")
    class_: str = Field("", alias="class", max_length=200, description="A traffic class of the configuration.")
    priority: str = Field("", max_length=10, description="immediate, high, normal, low, or 0 to 3.")
    send_at: str = Field("", max_length=100, description="RFC 3339 with a zone, or epoch seconds.")
    tag: str = Field("", max_length=200, description="What it is told by in events and lists.")
    user: str = Field("", max_length=100, description="Who submits it; not for tokens of a user.")

    def fields(self) -> dict[str, Any]:
        """As a Submission has them."""
        said = {name: value for name, value in self.model_dump(by_alias=True).items() if value}
        if re.fullmatch(r"\d+(\.\d+)?", said.get("send_at", "")):
            said["send_at"] = float(said["send_at"])
        return said


class Unread:
    """Marks an item that is read apart from the others, so that a wrong one is wrong alone; described as what it is."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> Any:
        return handler(Submission.__pydantic_core_schema__)


class Batch(Forgiving):
    """Each is read by itself: one that is wrong is wrong alone."""

    model_config = ConfigDict(extra="forbid", str_max_length=None)
    messages: list[Annotated[Any, BeforeValidator(lambda value: value), Unread()]] = Field(
        min_length=1, max_length=MOST, description="Each as it would be alone."
    )


class Ended(Answer):
    recipient: str = Field(description="The address.")
    state: str = Field(description="`queued`, or for a repeated one what became of it; `failed`: a rule refused it.")
    why: str = Field(description="Why it failed, or waits; for people.")


class Accepted(Answer):
    """It is durable."""

    status: int = Field(description="202, also within a batch.")
    queue_id: str = Field(description="What the relay calls it: `/v1/messages/{id}`, and `queue_id` of events.")
    message_id: str = Field(description="Its Message-ID, as recipients see it.")
    repeated: bool = Field(description="It was accepted before, by the same idempotency key.")
    recipients: list[Ended] = Field(description="Each with what becomes of it.")


class Results(Answer):
    accepted: int = Field(description="How many have a 202.")
    refused: int = Field(description="How many have not.")
    results: list[dict[str, Any]] = Field(
        description="In the order of the request: as one alone is answered, or why not."
    )
