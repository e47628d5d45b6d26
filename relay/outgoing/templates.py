"""Texts of the configuration with `{placeholders}`, filled with what is known of a message. Pure.

Whatever a sender, a recipient or an application's tag says stays a part of the one word where the operator put it: in a URL it
is percent-encoded, in an address it is quoted, in a header it can begin no line. Braces that hold no name are plain text, so
that a header may be JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

from relay.envelope import AddressError, domain_of, parse_address


@dataclass(frozen=True, slots=True)
class About:
    """What templates may name of one message, for one recipient where `Rewrite.per_recipient` says so."""

    id: str  # the queue id
    sender: str  # the reverse-path as it came in; empty: the null one
    recipient: str
    from_: str  # the address in From as it came in; empty: none that can be read
    user: str = ""
    class_: str = ""
    tag: str = ""
    token: str = ""  # of this recipient: relay.outgoing.verp


NAMES: dict[str, Callable[[About], str]] = {
    "id": lambda a: a.id,
    "sender": lambda a: a.sender,
    "recipient": lambda a: a.recipient,
    "recipient_domain": lambda a: domain_of(a.recipient),
    "from": lambda a: a.from_,
    "from_domain": lambda a: domain_of(a.from_),
    "user": lambda a: a.user,
    "class": lambda a: a.class_,
    "tag": lambda a: a.tag,
    "token": lambda a: a.token,
}
OF_RECIPIENT = frozenset({"recipient", "recipient_domain", "token"})
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]+)\}")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_DOT_STRING = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+(?:\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]+)*")


def names(template: str) -> list[str]:
    """The placeholders in their order, those too that nobody knows."""
    return _PLACEHOLDER.findall(template)


def _fill(template: str, about: About, written: Callable[[str], str]) -> str:
    """A name that nobody knows stays as it is written."""
    return _PLACEHOLDER.sub(lambda f: written(NAMES[f[1]](about)) if f[1] in NAMES else f[0], template)


def shown(text: str, limit: int = 200) -> str:
    """`text` as one clean line, and not too much of it; what turns writing around is not printable either."""
    clipped = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else "?" for c in clipped)


def text(template: str, about: About) -> str:
    """A header's value; control characters of what was filled in become `?`."""
    return _fill(template, about, lambda value: _CONTROL.sub("?", value))


def uri(template: str, about: About) -> str:
    """A URL, or the part of a mailto: behind its scheme (RFC 6068)."""
    return _fill(template, about, lambda value: quote(value, safe="", errors="replace"))


def address(template: str, about: About) -> str:
    """A mail address of ASCII; the part before the @ is quoted where it must be. Empty where all that it names is empty.

    Raises ValueError where no address comes of it.
    """
    named = names(template)
    if named and not any(NAMES[name](about) for name in named if name in NAMES):
        return ""
    local, at, domain = template.rpartition("@")
    whole = _fill(local, about, str) if at else ""
    if names(local) and not _DOT_STRING.fullmatch(whole):
        whole = '"' + re.sub(r'([\\"])', r"\\\1", whole) + '"'
    whole += at + _fill(domain, about, str)
    try:
        found = parse_address(whole)
    except AddressError as error:
        raise ValueError(f"{shown(template)} gives {shown(whole)}: {error}") from None
    if not found.isascii():
        raise ValueError(f"{shown(template)} gives {shown(whole)}, which is not ASCII")
    return found
