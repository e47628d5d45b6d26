"""policy/presets/*.yaml -> Preset. Checked as strictly as what users write; a mistake there is ours, and raises."""

from __future__ import annotations

from datetime import date
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from relay import policy
from relay.config import shaping
from relay.config.problems import nearest, shorten
from relay.config.replies import ReplyEntry, problem, rule
from relay.config.shaping import ShapingEntry
from relay.config.types import AnyRate, ListOf, Section
from relay.config.values import parse_size
from relay.policy.preset import Fact, Preset, Source
from relay.policy.rate import Rate
from relay.policy.replies import ReplyRule
from relay.policy.shaping import ShapingRule

FOLDER = Path(policy.__file__).parent / "presets"
RECEIVERS = FOLDER.parent / "shaping.yaml"
GENERIC = "generic"  # of every upstream, after its own preset's

_Day = Annotated[str, BeforeValidator(lambda value: value.isoformat() if isinstance(value, date) else value)]


def no_such_preset(text: str) -> str:
    """What to say of a name that is none: whose it nearly is, or whose title or host holds it (office365, amazon)."""
    word = text.lower().replace(" ", "")
    near = nearest(word, names())
    known = [load_preset(name) for name in names()]
    held = [p.name for p in known if len(word) > 2 and word in f"{p.name} {p.title} {p.host}".lower().replace(" ", "")]
    meant = [near] if near else held if len(held) <= 3 else []
    what = f"did you mean {' or '.join(repr(name) for name in meant)}?" if meant else "`relay presets` lists them"
    return f"no preset '{shorten(text)}'; {what}"


class _Source(Section):
    url: Annotated[str, Field(pattern=r"^(https?://|corpora )")]
    seen: _Day
    published: _Day = ""


class _Fact(Section):
    value: Any
    source: str
    note: str = ""


class _Reply(ReplyEntry):
    source: str
    note: str = ""

    @model_validator(mode="after")
    def whole(self) -> _Reply:
        key, wrong = problem(self)
        if wrong or not self.means:
            raise ValueError(f"{key}: {wrong}" if wrong else "`means` is missing")
        return self


class _Shaping(ShapingEntry):
    source: str
    note: str = ""

    @model_validator(mode="after")
    def whole(self) -> _Shaping:
        key, wrong = shaping.problem(self)
        if wrong or self.match.egress or self.match.class_:
            raise ValueError(f"{key}: {wrong}" if wrong else "a preset knows no `egress` and no `class`")
        return self


class _File(Section):
    title: str
    about: str
    sources: dict[str, _Source]
    facts: dict[str, _Fact] = Field(default_factory=dict)
    replies: ListOf[_Reply] = ()
    shaping: ListOf[_Shaping] = ()


class _Receivers(Section):
    sources: dict[str, _Source]
    shaping: ListOf[_Shaping]


# What each fact must be; those that end in `Text` are for people only.
_Text = str
_KINDS: dict[str, Any] = {
    "host": str, "regions": dict[str, str] | list[str], "region": str, "port": int, "tls": Literal["starttls", "implicit"],
    "ports": _Text, "username": str, "login": _Text, "auth": list[Literal["plain", "login", "cram-md5", "xoauth2", "oauthbearer"]],
    "connections": int, "messages_per_connection": int, "recipients_per_message": int,
    "max_message_size": Annotated[int, BeforeValidator(parse_size)], "limits": list[AnyRate], "quota": _Text, "signs": bool,
    "rewrites_message_id": bool, "senders": _Text, "null_sender": bool, "oauth2": dict[str, Any],
}  # fmt: skip


@cache
def names() -> tuple[str, ...]:
    """All presets that an account may name."""
    return tuple(sorted(p.stem for p in FOLDER.glob("*.yaml") if p.stem != GENERIC))


@cache
def load_preset(name: str) -> Preset:
    """Of a name in `names`, or GENERIC."""
    path = FOLDER / f"{name}.yaml"
    file = _File.model_validate(yaml.load(path.read_text(), yaml.CSafeLoader))
    sources = {key: Source(s.url, s.seen, s.published) for key, s in file.sources.items()}
    facts = {}
    for key, fact in file.facts.items():
        TypeAdapter(_KINDS[key]).validate_python(fact.value)
        facts[key] = Fact(fact.value, sources[fact.source], fact.note)
    known = {key: fact.value for key, fact in facts.items()}
    host = known.get("host", "")
    regions = known.get("regions", {})
    if isinstance(regions, list):
        regions = {region: host.format(region=region) for region in regions}
    return Preset(
        name,
        file.title,
        file.about,
        facts,
        replies=tuple(rule(entry, f"preset {name}") for entry in file.replies),
        sources=tuple(sources[entry.source] for entry in file.replies),
        shaping=tuple(
            shaping.rule(entry, f"{name}-{number}", f"preset {name}") for number, entry in enumerate(file.shaping, 1)
        ),
        shaping_sources=tuple(sources[entry.source] for entry in file.shaping),
        host=host,
        regions=regions,
        region=known.get("region", ""),
        port=known.get("port"),
        tls=known.get("tls"),
        username=known.get("username", ""),
        connections=known.get("connections"),
        messages_per_connection=known.get("messages_per_connection"),
        recipients_per_message=known.get("recipients_per_message"),
        limits=tuple(Rate.parse(rate) for rate in known.get("limits", ())),
        signs=known.get("signs"),
        rewrites_message_id=known.get("rewrites_message_id"),
        null_sender=known.get("null_sender"),
        oauth2=known.get("oauth2", {}),
    )


def of_host(host: str) -> Preset | None:
    """Whose host it is; None: nobody's that we know."""
    host = host.rstrip(".").lower()
    for preset in map(load_preset, names()):
        if host == preset.host or host in preset.regions.values():
            return preset
    return None


@cache
def receivers() -> tuple[ShapingRule, ...]:
    """What the large receivers say of the address that mail by MX leaves from, and what is done about it."""
    file = _Receivers.model_validate(yaml.load(RECEIVERS.read_text(), yaml.CSafeLoader))
    unknown = {entry.source for entry in file.shaping} - set(file.sources)
    if unknown:
        raise ValueError(f"no such source: {', '.join(sorted(unknown))}")
    return tuple(shaping.rule(entry, f"receiver-{number}", "receivers") for number, entry in enumerate(file.shaping, 1))


def generic() -> tuple[ReplyRule, ...]:
    """The dictionary of every upstream."""
    return load_preset(GENERIC).replies
