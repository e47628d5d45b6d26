"""docs/config.md and the JSON Schema, made of the shape. `python -m relay.config.document` prints the page.

Promises: every key that shape.py knows is in both; a test holds docs/config.md to what this prints.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from relay.config.leaving import RewriteSection, SigningEntry
from relay.config.matches import NotSection
from relay.config.mx import DestinationEntry, DirectEntry, HopNot, HopTlsSection
from relay.config.pacing import BreakerSection, EgressLimitEntry, HoursSection, LimitEntry, WarmUpSection
from relay.config.replies import ReplyEntry
from relay.config.reword import bare
from relay.config.shape import ClassEntry, File, LimitRule, TenantEntry
from relay.config.shaping import ShapingEntry
from relay.config.suppression import SuppressionSection
from relay.config.types import NotNull, OrAlone, Section, Written
from relay.config.upstream import OAuth2Section, TlsSection
from relay.config.values import print_duration, print_size
from relay.config.webhooks import WebhookEntry
from relay.settings import Address

_HEAD = """\
<!-- Made by `python -m relay.config.document`; change relay/config/shape.py instead. -->
# Configuration

One YAML file, `/etc/relay/relay.yaml` unless `--config` or `$RELAY_CONFIG` names another (or only
`~/.config/relay/relay.yaml` exists). The smallest useful one:

```yaml
accounts:
  main: {host: smtp.example.com, username: app, password: {file: secrets/main}}
routes:
  - via: main
```

- Maps hold named things, lists hold rules in order. Of `routes` and `destinations` the first match wins; mail that no
  route matches is refused (550).
- YAML has its 1.2 meaning: only `true` and `false` are booleans; `no`, `on` and `22:22` are strings.
- Durations carry a unit (`500ms`, `25s`, `5m`, `2h`, `7d`, `1w`), and so do sizes (`100B`, `25MB`, `256KiB`, `1GB`).
- A pattern (glob) has `*` and `?`, ignores case, and stands in quotes where it begins with `*`.
- A secret is never in this file but a reference to it: `{file: PATH}`, `{env: NAME}`, `{credential: NAME}` (systemd),
  `{command: [PROGRAM, ARGUMENT, …]}`. It is read when it is needed, so a new secret counts without a reload.
- A relative path begins at the folder of the main file, in included files too.
- A name has up to 64 letters, digits, `_`, `.`, `-`, and begins with a letter or a digit.
- A mistake is told as `FILE:LINE:COLUMN: path.to.key: what is wrong`; all of them at once.
"""
_TLS = """
`none`: never. `opportunistic`: if the server offers it, any certificate. `starttls`: by STARTTLS or not at all.
`implicit`: from the first byte. Left out, the mode is `implicit` on port 465; `starttls` with a login or on port 587;
else `none` to loopback and `opportunistic` to other hosts. Left out, the port is 465 for `implicit`, else 587 with a
login, else 25. Credentials are never sent in clear: with a login, `none` and `opportunistic` are refused beyond
loopback.
"""
_OAUTH2 = """
What each grant needs: `refresh_token`: `client_id` and `refresh_token`; `client_credentials`: `client_id` and
`client_secret`; `service_account`: `key`. Google wants `client_secret` with a refresh token too; Microsoft wants `tenant`.
There is never a fall-back to a password, and a token is sent only over a connection whose certificate is verified or
pinned. URLs are https, to this machine http too. How to set each up: [oauth2.md](oauth2.md).
"""


_REWRITE = """
Done in this order: `remove`, From, Reply-To, Sender, List-Unsubscribe, `add`; so a field that is removed and added is
replaced. A text may name `{id}` (the queue id), `{sender}`, `{recipient}`, `{recipient_domain}`, `{from}`,
`{from_domain}` (both as they came), `{user}`, `{class}`, `{tag}` and `{token}`, which only we can make and which
tells message and recipient; in a URL each is percent-encoded. What differs by recipient is sent to each alone.
`reply_to` and `sender` replace what the message has. A rule that can't be obeyed fails the message (554 5.6.0): no
From leaves that was to be hidden. It holds for our reports by this route too, but for their `<>`. A signature of the
application's own breaks by it: `remove: DKIM-Signature`.
"""
_SIGNING = """
Of the entries whose `domain` fits From most closely all sign; of those, the ones that name this user or route come
before those that name none. An entry past its `not_after` goes on while another one of its domain and algorithm waits
for its record. Two in one message, such as RSA and Ed25519, are two entries.
"""
_REPLIES = """
The first entry that fits decides; then the preset's dictionary, then that of every upstream, then the code. A time that
the reply itself names wins over `wait`. What is said before MAIL, such as to a login, concerns an account or nobody.
`relay presets NAME --reply TEXT` tries a preset's; [flow.md](flow.md) (5) tells what follows from each.
"""
_DIRECT = """
`via: direct` delivers by MX (RFC 5321 §5.1) without any of these: from the address that the kernel chooses, with the
relay's `hostname`. With one address, only its family is used. Accounts, direct entries and pools share one namespace.
"""
_DESTINATION = """
It is about mail that leaves by MX alone. The first destination that matches decides; who matches none has `per: mx` and
the defaults above. With `per: relay`, `connections` and `limits` hold for all egresses together.
"""
_HOP_TLS = """
Without `tls` the receiver's own word counts: DANE (RFC 7672; where `dns.trust_ad` is set), else MTA-STS (RFC 8461), else
`opportunistic`: TLS where it is offered, with any certificate. With it, only what is said here: `none`: never.
`opportunistic`: as above. `starttls`: by STARTTLS or not at all.
"""
_EGRESS_LIMIT = """
Limits of what leaves here, whatever it is; all of them bind, and so do those of the mail itself (`limits`, users, tenants,
classes). What counts is what was said to the server: a recipient or a message counts at each try, a message's bytes as
many as were accepted, a connection when it is dialled. By `window: sliding` no span of that length ever has more; by
`calendar` none by the clock of `timezone` does.

Recipients and messages by the second go evenly: `14/s` lets one go every 71 ms; of a larger rate an eighth may go at once. What
is counted by `min`, `h` or `d`, and bytes and connections, may go at once and then waits, unless `burst` says how many may: the
others follow at even distances. `{rate: 2000/d, burst: 50}` lets 50 go and then one every 43 s. The counts outlive a restart, a
crash and a reload. [limits.md](limits.md) tells all of it with examples.
"""
_LIMIT = """
As of an account, but it counts mail by who sends it. `when_full`: `defer`: it is accepted and waits, and hides no other
mail. `reject`: 452 4.7.1 when it is handed in; such a limit counts what is accepted, so the program that sends can wait itself.
`next`: it goes by the route's next egress where there is one, and waits where there is none. See [limits.md](limits.md).
"""
_LIMIT_RULE = """
Every limit that matches binds. Without `per` all that match share one count; with it each `sender` (the reverse-path), `from`
(the domain of the From header), `user`, `tenant`, `class`, `destination` (the recipient's domain) or `egress` has its own;
`[user, destination]`: each user to each domain. `[{per: sender, rate: 500/d}]` is what many providers ask for a mailbox.
"""
_TENANT = """
Users name theirs by `tenant`; its limits bind them together, beside their own.
"""
_CLASS = """
`immediate` goes strictly before all others. Of the rest `high`, `normal` and `low` share as 16 : 4 : 1 where they wait for the same
egress, so that none starves. Within a level each user of each class has the same share. What its `window` or `quiet` keeps
waiting is nobody's obstacle.
"""
_HOURS = """
`hours` that end at or before they begin end on the next day, and belong to the day on which they begin: `days: fri, hours:
"22:00-06:00"` ends on Saturday morning.
"""
_WARM_UP = """
On the first day as much as `first`; on each later one `growth` more, but by no more than `max_step`, up to `until`. After a day of
that it limits nothing.
`table: [100, 200, 400]` says it of each day instead, and a bare number there counts recipients. All say the same unit:
recipients, or `100 messages/d`. Nothing leaves before `start`. A day is earned: the plan moves on after a day on which at least
half of what it allowed left, and stays where it is after any other. It binds beside `limits`. What is in excess waits for the
next hour or day, or goes by `overflow`, which stands in each route right behind the egress that it helps, unless the route
names it elsewhere. Shares of `hold_above` are of what was answered in the last 24 hours, 20 recipients at least, and
count once they are higher beyond doubt (95 %): then it does not grow; above twice as much it is halved, once a day. It goes on
after a whole day without. See [limits.md](limits.md#warm-up).
"""
_BREAKER = """
Failures of the egress or of a next hop open it, such as a refused connection or login; what is said about one recipient or
message does not. One probe after the rest closes it, or opens it for twice as long; up to a fifth less, so that not all come at once.
"""
_SHAPING = """
All rules that fit act, the user's and those of presets, each for its time, beside what `replies` says of the same words. For a reply
to mail by MX "there" is the lane of that destination at that egress; else it is the account. `relay presets NAME` shows a
preset's rules.
"""
_SUPPRESSION = """
Only what is said about a mailbox counts: that it does not exist, is full, or is closed. What is said about content, reputation, a
policy, a quota, a login or the way never suppresses. `relay suppress` lists, adds and removes by hand; an operator's word counts
without this section too. `scope: class`: mail of that traffic class alone. With `at_rcpt: accept` the event `suppressed` and a
report tell of it. See [suppression.md](suppression.md).
"""
_WEBHOOK = """
Events arrive at least once, and those of one message in order; `id` is what to know a repeated one by. A new endpoint begins with
what happens from then on. [webhooks.md](webhooks.md) tells the format, how to verify a signature, and what happens while an endpoint fails.
"""
_NOTES: dict[type[Section], str] = {
    BreakerSection: _BREAKER,
    ClassEntry: _CLASS,
    EgressLimitEntry: _EGRESS_LIMIT,
    HoursSection: _HOURS,
    LimitEntry: _LIMIT,
    LimitRule: _LIMIT_RULE,
    ReplyEntry: _REPLIES,
    ShapingEntry: _SHAPING,
    SuppressionSection: _SUPPRESSION,
    TenantEntry: _TENANT,
    WarmUpSection: _WARM_UP,
    TlsSection: _TLS,
    DirectEntry: _DIRECT,
    DestinationEntry: _DESTINATION,
    HopTlsSection: _HOP_TLS,
    OAuth2Section: _OAUTH2,
    RewriteSection: _REWRITE,
    SigningEntry: _SIGNING,
    WebhookEntry: _WEBHOOK,
}
NOT: tuple[type[Section], ...] = (NotSection, HopNot)


def page() -> str:
    """docs/config.md."""
    parts = [_HEAD]
    for title, section in sections():
        parts.append(f"\n## {title}\n\n" if title else "\n## Top level\n\n")
        parts.append("| key | value | default | meaning |\n|---|---|---|---|\n")
        for name, field in keys(section):
            cells = (f"`{name}`", written(field.annotation, field.metadata), default(field), field.description or "")
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
        parts.append(_NOTES.get(section, ""))
    return "".join(parts)


def keys(section: type[Section]) -> Iterator[tuple[str, FieldInfo]]:
    """The keys of a section as users write them."""
    for name, field in section.model_fields.items():
        yield field.alias or name, field


def sections(section: type[Section] = File, title: str = "") -> Iterator[tuple[str, type[Section]]]:
    """Every section below `section` once, with the path that leads to it."""
    seen: set[type[Section]] = {*NOT}  # shown as the keys of `match`
    waiting = [(title, section)]
    while waiting:
        title, section = waiting.pop(0)
        if section in seen:
            continue
        seen.add(section)
        yield title, section
        inner = []
        for name, field in keys(section):
            below, suffix = _element(field.annotation)
            if isinstance(below, type) and issubclass(below, Section):
                inner.append((f"{title}.{name}{suffix}".lstrip("."), below))
        waiting = inner + waiting


def _element(annotation: Any) -> tuple[Any, str]:
    annotation = bare(annotation)
    if get_origin(annotation) is dict:
        return bare(get_args(annotation)[1]), ".NAME"
    if get_origin(annotation) is tuple:
        return bare(get_args(annotation)[0]), "[]"
    return annotation, ""


def written(annotation: Any, metadata: Iterable[object] = ()) -> str:
    """How a user writes a value of that type."""
    metadata = tuple(metadata)
    for item in metadata:
        if isinstance(item, Written):
            return item.text
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return written(arguments[0], arguments[1:])
    if origin is Union or origin is types.UnionType:
        null = not any(isinstance(item, NotNull) for item in metadata)
        kinds = [written(a) for a in arguments if a is not type(None)]
        return " or ".join([*kinds, "`null`"] if null else kinds)
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin is tuple:
        alone = any(isinstance(item, OrAlone) for item in metadata)
        return f"{written(arguments[0])}, or a list" if alone else f"list of {written(arguments[0])}"
    if origin is dict:
        return f"map: {written(arguments[0])} to {written(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return "map"
    return {bool: "`true`, `false`", int: "whole number", float: "number", str: "string"}[annotation]


def default(field: FieldInfo) -> str:
    """A default as a user would write it; empty where there is none, or where the description says it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    kind = written(field.annotation, field.metadata)
    if value is None or isinstance(value, Section) or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`[{', '.join(_quoted(v) for v in value)}]`"
    if kind.startswith("duration"):
        return f"`{print_duration(value)}`"
    if kind.startswith("size"):
        return f"`{print_size(value)}`"
    return f"`{value}`" if isinstance(value, str | int | float | Address) else ""


def _quoted(text: str) -> str:
    return f'"{text}"' if text.startswith("*") else text


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the configuration, for editors. It knows shapes, not the rules between keys."""
    made = File.model_json_schema(by_alias=True)
    cleaned = _without_defaults(made)
    assert isinstance(cleaned, dict)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | cleaned | {"title": "relay.yaml", "required": ["routes"]}


def _without_defaults(schema: Any) -> Any:
    """Pydantic's defaults are what a value becomes, not what a user writes."""
    if isinstance(schema, dict):
        return {
            key: _properties(value) if key in ("properties", "$defs") else _without_defaults(value)
            for key, value in schema.items()
            if key != "default"
        }
    return [_without_defaults(item) for item in schema] if isinstance(schema, list) else schema


def _properties(named: dict[str, Any]) -> dict[str, Any]:
    return {name: _without_defaults(value) for name, value in named.items()}


if __name__ == "__main__":
    print(page(), end="")
