"""A mail as its header and parts, by the standard library's parser and within bounds. Pure.

What goes beyond a bound is cut or taken as text, never refused: a report that is odd is still one. `email` takes 39 s for 100,000
parts and breaks its stack on 1,000 nested ones, so how many there could be is counted before it is asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email import policy
from email.header import decode_header
from email.message import Message
from email.parser import BytesParser

MOST_BYTES = 2 << 20
MOST_HEAD = 256 << 10  # bytes of a header block
MOST_FIELDS = 1000
MOST_PARTS = 200
MOST_DEPTH = 12
MOST_TEXT = 512 << 10  # bytes of one part that are decoded

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_BOUNDARIES = re.compile(rb"^--", re.MULTILINE)
_NESTS = re.compile(rb"(?:multipart/|message/(?:rfc822|global|partial|external-body))", re.IGNORECASE)
_ENCODED = re.compile(r"=\?[^?\s]{1,40}\?[bq]\?[^?\s]{0,2000}\?=", re.IGNORECASE)


@dataclass(slots=True)
class Part:
    type: str  # text/plain, lower case
    depth: int
    content: bytes  # decoded from its transfer encoding; of a message/… part as it stands
    charset: str = ""
    filename: str = ""
    parameters: dict[str, str] = field(default_factory=dict)  # of Content-Type, lower case names

    @property
    def text(self) -> str:
        """In its charset, or whatever can be read; line ends are \\n."""
        try:
            found = self.content.decode(self.charset or "utf-8", "replace")
        except LookupError:
            found = self.content.decode("utf-8", "replace")
        return found.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(slots=True)
class Mail:
    """Header fields in their order, and the leaves of the MIME tree in theirs; message/… parts are leaves."""

    fields: list[tuple[str, str]]  # (name in lower case, value unfolded and decoded)
    type: str
    parameters: dict[str, str]
    parts: list[Part]

    def first(self, name: str) -> str:
        """The value of the first field of this name; empty: there is none."""
        return next((value for key, value in self.fields if key == name.lower()), "")

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key == name.lower()]

    def of_type(self, *types: str) -> Iterator[Part]:
        """Parts of any of these types; `text/` stands for all that begin so."""
        return (
            part
            for part in self.parts
            if any(part.type == t or (t.endswith("/") and part.type.startswith(t)) for t in types)
        )

    @property
    def text(self) -> str:
        """All that is plain text, else the text of all that is HTML."""
        plain = [part.text for part in self.of_type("text/plain")]
        return "\n".join(plain or [_unmarked(part.text) for part in self.of_type("text/html")])


def read(raw: bytes) -> Mail:
    """Never raises."""
    raw = raw[:MOST_BYTES]
    if raw.startswith(b"From "):  # of an mbox
        raw = raw.partition(b"\n")[2]
    head, body = split(raw)
    fields = header_fields(head)
    if len(_BOUNDARIES.findall(body)) > 4 * MOST_PARTS or len(_NESTS.findall(raw)) > 4 * MOST_DEPTH:
        return Mail(fields, "text/plain", {}, [Part("text/plain", 0, body[:MOST_TEXT])])
    try:
        message = BytesParser(policy=policy.compat32).parsebytes(head[:MOST_HEAD] + b"\n\n" + body)
        parts = list(_leaves(message))[:MOST_PARTS]
        return Mail(fields, message.get_content_type(), _parameters(message), parts)
    except (RecursionError, ValueError, LookupError, AttributeError, TypeError, IndexError, KeyError):
        # What the parser stumbles over differs by version; the text is there all the same.
        return Mail(fields, "text/plain", {}, [Part("text/plain", 0, body[:MOST_TEXT])])


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Header block and body, without the empty line between them."""
    found = _HEAD_END.search(raw)
    return (raw[: found.start()], raw[found.end() :]) if found else (raw, b"")


def header_fields(head: bytes) -> list[tuple[str, str]]:
    """Names in lower case, values unfolded, encoded words decoded."""
    text = head[:MOST_HEAD].decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    found: list[tuple[str, str]] = []
    for line in text.split("\n"):
        if line[:1] in (" ", "\t") and found:
            name, value = found[-1]
            found[-1] = name, f"{value} {line.strip()}"
        elif ":" in line and len(found) < MOST_FIELDS:
            name, _, value = line.partition(":")
            if name.strip() and " " not in name.strip():
                found.append((name.strip().lower(), value.strip()))
    return [(name, _decoded(value)) for name, value in found]


def _decoded(value: str) -> str:
    if "=?" not in value or len(value) > 10_000 or not _ENCODED.search(value):
        return value
    try:
        return "".join(
            part if isinstance(part, str) else part.decode(charset or "utf-8", "replace")
            for part, charset in decode_header(value)
        )
    except (ValueError, LookupError):
        return value


def _leaves(message: Message, depth: int = 0) -> Iterator[Part]:
    kind = message.get_content_type().lower()
    if message.is_multipart() and depth < MOST_DEPTH and not kind.startswith("message/"):
        for child in message.get_payload():
            if isinstance(child, Message):
                yield from _leaves(child, depth + 1)
        return
    yield Part(
        kind,
        depth,
        _content(message, kind),
        message.get_content_charset() or "",
        _filename(message),
        _parameters(message),
    )


def _content(message: Message, kind: str) -> bytes:
    if kind.startswith("message/") and message.is_multipart():
        children = [child for child in message.get_payload() if isinstance(child, Message)]
        return b"\n".join(child.as_bytes() for child in children)[:MOST_BYTES]
    found = message.get_payload(decode=True)
    limit = MOST_TEXT if kind.startswith("text/") else MOST_BYTES
    return found[:limit] if isinstance(found, bytes) else b""


def _parameters(message: Message) -> dict[str, str]:
    given = message.get_params(failobj=[], unquote=True)
    return {str(key).lower(): str(value) for key, value in given[1:21]}


def _filename(message: Message) -> str:
    return (message.get_filename() or "")[:300]


def _unmarked(text: str) -> str:
    """HTML without its marks: enough to find addresses and words in."""
    text = re.sub(r"(?is)<(script|style)\b.{0,100000}?</\1>", " ", text)
    text = re.sub(r"(?i)<(?:br|/p|/div|/tr|/li)\b[^<>]{0,200}>", "\n", text)
    text = re.sub(r"<[^<>]{0,2000}>", " ", text)
    for name, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#64;", "@"), ("&nbsp;", " "), ("&amp;", "&")):
        text = text.replace(name, char)
    return text
