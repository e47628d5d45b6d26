"""The annotated types of the shape: a parser each, and how the value is written, for docs/config.md and JSON Schema."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    PlainValidator,
    WithJsonSchema,
)

from relay.config.mailvalues import (
    parse_domain,
    parse_hop_pattern,
    parse_instant,
    parse_reverse_path,
    parse_rewritten,
    parse_selector,
    parse_server,
    parse_signing_domain,
    parse_source_address,
    parse_template,
)
from relay.config.pacevalues import (
    parse_burst,
    parse_clock_hours,
    parse_daily,
    parse_date,
    parse_days,
    parse_growth,
    parse_part,
    parse_reputation,
    parse_sessions,
    parse_slower,
    parse_table_day,
    parse_timezone,
)
from relay.config.values import (
    describe,
    given,
    only_true,
    parse_address_and_port,
    parse_address_pattern,
    parse_duration,
    parse_header_name,
    parse_host,
    parse_hostname,
    parse_listen_address,
    parse_mail_rate,
    parse_message_rate,
    parse_name,
    parse_network,
    parse_password_hash,
    parse_path,
    parse_pattern,
    parse_pin,
    parse_public_key,
    parse_recipient,
    parse_reply_text,
    parse_report_to,
    parse_scope,
    parse_secret,
    parse_size,
    parse_size_bound,
    parse_tenant,
    parse_token_url,
    parse_username,
)
from relay.policy.rate import Rate
from relay.secrets import Reference
from relay.settings import Activated, Address


class Section(BaseModel):
    """A map with fixed keys. `planned`: those of the whole design that are not built yet."""

    # Built at first use: each is part of the whole shape, which is built once.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True, defer_build=True)
    planned: ClassVar[frozenset[str]] = frozenset()


def _one_or_many(value: object) -> object:
    if isinstance(value, list):
        if not value:
            raise ValueError("an empty list; name at least one or remove the key")
        return tuple(value)
    if isinstance(value, dict):
        raise ValueError("expected a value or a list of them, found a map")
    return (given(value),)


def _many(value: object) -> object:
    if isinstance(value, list):
        return tuple(value)
    raise ValueError(f"expected a list, found {describe(value)}")


@dataclass(frozen=True, slots=True)
class Written:
    """How a user writes a value, for docs/config.md."""

    text: str


class NotNull:
    """Marks a key whose None means that it is not there: `null` cannot be written."""

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}


class OrAlone:
    """Marks a list that may be written as its only element; `alone` is that element's schema."""

    def __init__(self, alone: dict[str, Any] | None = None) -> None:
        self.alone = alone

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        return {"anyOf": [self.alone or schema["items"], schema]}


def text_schema(pattern: str = "") -> WithJsonSchema:
    return WithJsonSchema({"type": "string"} | ({"pattern": pattern} if pattern else {}))


_REFERENCE = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
    "properties": {
        "file": {"type": "string"},
        "env": {"type": "string"},
        "credential": {"type": "string"},
        "command": {"type": "array", "items": {"type": "string"}, "minItems": 1},
    },
}
_REFERENCE_OR_TEXT = {"anyOf": [{"type": "string"}, _REFERENCE]}

T = TypeVar("T")
Given = Annotated[T | None, BeforeValidator(given), NotNull()]
ListOf = Annotated[tuple[T, ...], BeforeValidator(_many)]
OneOrMany = Annotated[tuple[T, ...], BeforeValidator(_one_or_many), OrAlone()]

Count = Annotated[int, Field(ge=1, le=2**31)]
Duration = Annotated[
    float, PlainValidator(parse_duration), text_schema(r"^[0-9.]+ ?(ms|s|m|h|d|w)$"), Written("duration (`25s`, `5m`)")
]
Size = Annotated[
    int, PlainValidator(parse_size), text_schema(r"^[0-9.]+ ?[kKMGT]?i?B$"), Written("size (`25MB`, `256KiB`)")
]
HostPort = Annotated[
    Address,
    PlainValidator(parse_address_and_port),
    text_schema(),
    Written("IP address:port, quoted if it begins with `[`"),
]
Name = Annotated[str, AfterValidator(parse_name), Written("name")]
Hostname = Annotated[str, AfterValidator(parse_hostname), Written("host name")]
Secret = Annotated[Reference, PlainValidator(parse_secret), WithJsonSchema(_REFERENCE), Written("reference")]
Host = Annotated[
    Reference, PlainValidator(parse_host), WithJsonSchema(_REFERENCE_OR_TEXT), Written("host name, IP or reference")
]
Username = Annotated[
    Reference, PlainValidator(parse_username), WithJsonSchema(_REFERENCE_OR_TEXT), Written("text or reference")
]
PublicKey = Annotated[
    Reference, PlainValidator(parse_public_key), WithJsonSchema(_REFERENCE_OR_TEXT), Written("text or reference")
]
Pattern = Annotated[str, PlainValidator(parse_pattern), text_schema(), Written("glob")]
AddressPattern = Annotated[str, PlainValidator(parse_address_pattern), text_schema(), Written("glob")]
HopPattern = Annotated[str, PlainValidator(parse_hop_pattern), text_schema(), Written("glob")]
Network = Annotated[str, PlainValidator(parse_network), text_schema(), Written("network (`10.0.0.0/8`)")]
SizeBound = Annotated[
    tuple[str, str, int], PlainValidator(parse_size_bound), text_schema("^[<>]=? ?[0-9]"), Written('bound (`">10MB"`)')
]
HeaderName = Annotated[str, AfterValidator(parse_header_name), Written("header")]
Recipient = Annotated[str, PlainValidator(parse_recipient), text_schema(), Written("mail address")]
ReportTo = Annotated[
    str, PlainValidator(parse_report_to), text_schema(), Written("`sender`, `none`, or a mail address")
]
Pin = Annotated[str, PlainValidator(parse_pin), text_schema(), Written("base64 of a SHA-256")]
ReplyText = Annotated[str, PlainValidator(parse_reply_text), text_schema(), Written("text")]
OnlyTrue = Annotated[bool, PlainValidator(only_true), WithJsonSchema({"const": True}), Written("`true`")]
FilePath = Annotated[str, PlainValidator(parse_path), text_schema(), Written("path")]
ListenAddress = Annotated[
    Address | Activated, PlainValidator(parse_listen_address), text_schema(), Written("address:port, or systemd:NAME")
]
PasswordHash = Annotated[str, PlainValidator(parse_password_hash), text_schema(r"^\$argon2"), Written("argon2 hash")]
AnyRate = Annotated[Rate, PlainValidator(Rate.parse), text_schema(), Written("rate (`100/min`, `5000/d`)")]
MailRate = Annotated[Rate, PlainValidator(parse_mail_rate), text_schema(), Written("rate (`100/min`, `5000/d`)")]
MessageRate = Annotated[Rate, PlainValidator(parse_message_rate), text_schema(), Written("rate (`100/min`, `5000/d`)")]
Domain = Annotated[str, PlainValidator(parse_domain), text_schema(), Written("domain")]
SigningDomain = Annotated[
    str, PlainValidator(parse_signing_domain), text_schema(), Written('domain, `"*.example.com"` or `"*"`')
]
Selector = Annotated[str, PlainValidator(parse_selector), text_schema(), Written("name (labels with dots)")]
Instant = Annotated[
    float, PlainValidator(parse_instant), text_schema(), Written("date (`2026-12-01`), with a time where it matters")
]
Rewritten = Annotated[str, PlainValidator(parse_rewritten), text_schema(), Written('mail address, or `"*@domain"`')]
ReversePath = Annotated[
    str, PlainValidator(parse_reverse_path), text_schema(), Written('`verp`, mail address, or `"*@domain"`')
]
Template = Annotated[str, PlainValidator(parse_template), text_schema(), Written("text with placeholders")]
SourceAddress = Annotated[str, PlainValidator(parse_source_address), text_schema(), Written("IP address")]
Server = Annotated[str, PlainValidator(parse_server), text_schema(), Written("IP address, or IP address:port")]
TokenUrl = Annotated[str, PlainValidator(parse_token_url), text_schema("^https?://"), Written("URL")]
Scope = Annotated[
    str,
    PlainValidator(parse_scope),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    Written("text, or a list"),
]
Tenant = Annotated[str, PlainValidator(parse_tenant), text_schema(), Written("directory id or domain")]
Timezone = Annotated[str, PlainValidator(parse_timezone), text_schema(), Written("time zone (`Europe/Berlin`)")]
Date = Annotated[date, PlainValidator(parse_date), text_schema(), Written("date (`2026-12-01`)")]
Daily = Annotated[Rate, PlainValidator(parse_daily), text_schema(r"/d$"), Written("rate by day (`100/d`)")]
_NUMBER_OR_TEXT: dict[str, Any] = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}
TableDay = Annotated[
    Rate, PlainValidator(parse_table_day), WithJsonSchema(_NUMBER_OR_TEXT), Written("number, or rate by day (`100/d`)")
]
Burst = Annotated[
    tuple[int, bool],
    PlainValidator(parse_burst),
    WithJsonSchema(_NUMBER_OR_TEXT),
    Written("whole number, or of bytes a size"),
]
_SHARE = text_schema(r"^[0-9.]+ ?%$")
Part = Annotated[float, PlainValidator(parse_part), _SHARE, Written("share (`2%`)")]
Growth = Annotated[float, PlainValidator(parse_growth), _SHARE, Written("share (`20%`)")]
Slower = Annotated[float, PlainValidator(parse_slower), _SHARE, Written("share (`50%`)")]
Sessions = Annotated[
    float, PlainValidator(parse_sessions), WithJsonSchema(_NUMBER_OR_TEXT), Written("whole number, or share (`50%`)")
]
ClockHours = Annotated[str, PlainValidator(parse_clock_hours), text_schema(), Written("hours (`08:00-20:00`)")]
Days = Annotated[
    str,
    PlainValidator(parse_days),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
    Written("days (`mon-fri`), or a list"),
]
ReputationBound = Annotated[
    tuple[str, str, float],
    PlainValidator(parse_reputation),
    text_schema("^[<>]=? ?[01.]"),
    Written('bound (`"< 0.7"`)'),
]
