"""`webhooks`: where events go, which of them, and for how long an endpoint that does not take them is asked again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PlainValidator

from relay import guard
from relay.config.problems import Keys, nearest, shorten
from relay.config.types import (
    Count,
    Duration,
    FilePath,
    Given,
    HeaderName,
    ListOf,
    OneOrMany,
    Pattern,
    Secret,
    Section,
    Username,
    Written,
    text_schema,
)
from relay.config.values import describe, print_duration
from relay.events import KINDS, Wanted
from relay.secrets import Reference, SecretError
from relay.settings import Endpoint

if TYPE_CHECKING:
    from relay.config.shape import File
    from relay.config.site import Site

SHORTEST = 16  # characters of a secret
_SECRET_HEADER = re.compile("authorization|cookie|token|secret|key", re.IGNORECASE)
_OURS = re.compile(
    "content-.*|x-relay-.*|host|connection|transfer-encoding|expect|te|trailer|upgrade|user-agent|accept-encoding",
    re.IGNORECASE,
)


def parse_kind(value: object) -> str:
    if isinstance(value, str) and value in KINDS:
        return value
    if not isinstance(value, str):
        raise ValueError(f"expected the kind of an event such as delivered, found {describe(value)}")
    near = nearest(value, KINDS)
    meant = f"did you mean '{near}'?" if near else f"there are {', '.join(KINDS)}"
    raise ValueError(f"no event is of the kind '{shorten(value)}'; {meant}")


EventKind = Annotated[str, PlainValidator(parse_kind), text_schema(), Written("kind of event")]
Url = Annotated[Username, Written("URL or reference")]
Value = Annotated[Username, Written("text or reference")]


class WebhookMatch(Section):
    """All keys must hold; of a list, any."""

    tag: OneOrMany[Pattern] = Field((), description="What X-Relay-Tag said.")
    class_: OneOrMany[Pattern] = Field((), alias="class", description="The traffic class.")
    user: OneOrMany[Pattern] = Field((), description="Who submitted it; empty without a login.")
    tenant: OneOrMany[Pattern] = Field((), description="The user's tenant.")
    sender: OneOrMany[Pattern] = Field((), description="MAIL FROM.")
    recipient: OneOrMany[Pattern] = Field((), description="The recipient; an event of all of a message has none.")
    domain: OneOrMany[Pattern] = Field((), description="The recipient's domain.")
    egress: OneOrMany[Pattern] = Field((), description="The account or direct entry that it is about.")


class WebhookEntry(Section):
    url: Given[Url] = Field(None, description="`https://…`; one of `url`, `file` and `command`.")
    file: Given[FilePath] = Field(None, description="A file that JSON lines are appended to.")
    command: ListOf[str] = Field(
        (), description="A program and its arguments; it reads JSON lines. Exit code 0: taken."
    )
    secret: Given[Secret] = Field(
        None, description="What requests to `url` are signed with, 16 characters at least; of several lines each signs."
    )
    headers: dict[HeaderName, Value] = Field(
        {}, description="More header fields of the request, such as Authorization."
    )
    events: ListOf[EventKind] = Field((), description="Which kinds of events; without: all.")
    match: WebhookMatch = Field(WebhookMatch(), description="Which of them.")
    allow_private: bool = Field(
        False, description="`url` may lead to this machine and to private networks, and there by `http://` too."
    )
    ca: Given[FilePath] = Field(None, description="PEM file of a CA that `url` is trusted by, beside the system's.")
    batch: Annotated[Count, Field(le=1000)] = Field(100, description="Events of one request at most.")
    wait: Duration = Field(0.0, description="How long an event waits for others to go with.")
    timeout: Duration = Field(10.0, description="How long a request, or a run of `command`, may take.")
    give_up: Duration = Field(3 * 86400.0, description="An event that was not taken for so long is a dead letter.")
    cap: Duration = Field(
        3600.0, description="No wait between two tries is longer; the first is 1s, each next one doubled."
    )


def build_webhooks(file: File, site: Site) -> dict[str, Endpoint]:
    return {name: _endpoint(name, entry, file, site) for name, entry in file.webhooks.items()}


def _endpoint(name: str, entry: WebhookEntry, file: File, site: Site) -> Endpoint:
    path: Keys = ("webhooks", name)
    given = [key for key in ("url", "file", "command") if getattr(entry, key)]
    if len(given) != 1:
        found = f"found {' and '.join(given)}" if given else "found none"
        site.wrong(path, f"a webhook has exactly one of url, file, command; {found}")
    if entry.url is None:
        for key in ("secret", "headers", "allow_private", "ca"):
            if key in entry.model_fields_set:
                site.wrong((*path, key), f"`{key}` is about `url`, and there is none")
    for key in ("timeout", "give_up", "cap"):
        if getattr(entry, key) <= 0:
            site.wrong((*path, key), f"`{key}` must be longer than nothing")
    if entry.give_up > file.spool.keep:
        text = (
            f"events are kept for {print_duration(file.spool.keep)} (`spool.keep`), and are lost after that: "
            f"`give_up` ({print_duration(entry.give_up)}) is longer"
        )
        site.warn((*path, "give_up"), text)
    return Endpoint(
        name,
        url=_url(entry, path, site),
        file=_file(entry, path, site),
        command=_command(entry, path, site),
        secret=_secret(entry, path, site),
        wanted=_wanted(entry, path, site),
        allow_private=entry.allow_private,
        ca=site.existing(entry.ca, (*path, "ca")),
        headers=_headers(entry, path, site),
        batch=entry.batch,
        wait=entry.wait,
        timeout=entry.timeout,
        give_up=entry.give_up,
        cap=entry.cap,
    )


def _url(entry: WebhookEntry, path: Keys, site: Site) -> Reference | None:
    reference = site.reference(entry.url, (*path, "url"))
    if reference is None or reference.kind == "command" or reference.problem():
        return reference
    try:
        guard.check(reference.resolve(), allow_private=entry.allow_private)
    except (ValueError, SecretError) as error:
        site.wrong((*path, "url"), str(error))
    return reference


def _secret(entry: WebhookEntry, path: Keys, site: Site) -> Reference | None:
    if entry.url is not None and entry.secret is None:
        site.warn((*path, "url"), "without `secret` whoever receives them can't know that events are ours")
    reference = site.reference(entry.secret if entry.url else None, (*path, "secret"))
    if reference is None or reference.kind == "command" or reference.problem():
        return reference
    lines = [line.strip() for line in reference.resolve().splitlines() if line.strip()]
    if not lines or min(map(len, lines)) < SHORTEST:
        text = f"each line must have {SHORTEST} characters at least; `openssl rand -hex 32` makes a good one"
        site.wrong((*path, "secret", reference.kind), text)
    return reference


def _file(entry: WebhookEntry, path: Keys, site: Site) -> Path | None:
    file = site.path(entry.file)
    if file is not None and not file.parent.is_dir():
        site.wrong((*path, "file"), f"{file.parent}: no such folder")
    return file


def _command(entry: WebhookEntry, path: Keys, site: Site) -> tuple[str, ...]:
    if not entry.command:
        return ()
    first, *rest = entry.command
    if not first or any("\0" in part for part in entry.command):
        site.wrong((*path, "command"), "`command` must be a list of strings, the program first")
        return ()
    reference = Reference("command", str(site.path(first)) if "/" in first else first, tuple(rest))
    if problem := reference.problem():
        site.wrong((*path, "command"), problem)
    return (reference.target, *rest)


def _headers(entry: WebhookEntry, path: Keys, site: Site) -> dict[str, Reference]:
    made: dict[str, Any] = {}
    for header, value in entry.headers.items():
        where: Keys = (*path, "headers", header)
        if _OURS.fullmatch(header):
            site.wrong(where, "this field is ours to set; remove it")
        if value.kind == "plain" and _SECRET_HEADER.search(header):
            site.wrong(
                where, "it sounds like a secret, which must be a reference: {file: …}, {env: …}, {credential: …}"
            )
        made[header] = site.reference(value, where)
    return made


def _wanted(entry: WebhookEntry, path: Keys, site: Site) -> Wanted:
    match = entry.match
    known = {
        "user": site.names("users", also=("",)),
        "tenant": site.names("tenants", also=("",)),
        "class": site.names("classes", also=("default",)),
        "egress": site.names("accounts", "direct", also=("", "direct")),
    }
    for key, names in known.items():
        for number, pattern in enumerate(getattr(match, "class_" if key == "class" else key)):
            site.known((*path, "match", key, number), "account" if key == "egress" else key, pattern, names)
    return Wanted(
        kinds=frozenset(entry.events),
        tag=match.tag,
        class_=match.class_,
        user=match.user,
        tenant=match.tenant,
        sender=match.sender,
        recipient=match.recipient,
        domain=match.domain,
        egress=match.egress,
    )
