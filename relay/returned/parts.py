"""A mail as its header and parts, by the standard library's parser and within bounds. Pure.

What goes beyond a bound is cut or taken as text, never refused: a report that is odd is still one. `email` takes 39 s for 100,000
parts, breaks its stack on 1,000 nested ones, asks each line whether it ends any of the parts that it is in, and takes quadratic
time for parameters. So what could be in a mail is counted before `email` is asked, and what it reads is cut.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from email.parser import BytesParser

MOST_BYTES = 2 << 20
MOST_HEAD = 256 << 10  # bytes of a header block
MOST_FIELDS = 1000
MOST_PARTS = 200
MOST_DEPTH = 12
MOST_TEXT = 512 << 10  # bytes of one part that are decoded

MOST_LOOKS = 6_000_000  # how often the parser may ask of a line whether it ends a part
MOST_VALUE = 10_000  # characters of a field's value
MOST_CONTENT = 4000  # and of the fields that MIME reads parameters from

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_BOUNDARIES = re.compile(rb"^--", re.MULTILINE)
_NESTS = re.compile(rb"^content-type[ \t]*:\s*multipart/", re.IGNORECASE | re.MULTILINE)
_FIELD = re.compile(rb"[!-9;-~\x80-\xff]+:|[ \t]")
_WORD = r"=\?[^?\s]{1,40}\?[bq]\?[^?]{0,2000}\?="
_WORDS = re.compile(rf"{_WORD}(?:\s{{1,10}}{_WORD})*+", re.IGNORECASE)
# Of Python's codecs these are no charset of any mail, and some take quadratic time.
_NO_CHARSETS = frozenset({"punycode", "idna", "undefined", "unicode-escape", "raw-unicode-escape"})
_HIDDEN = re.compile(r"<(script|style)\b", re.IGNORECASE)


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
        return decode(self.content[:MOST_TEXT], self.charset).replace("\r\n", "\n").replace("\r", "\n")


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


class _Message(Message):
    """For the parser message/… is a leaf: what a report returns is not its own structure, and is looked at as it stands."""

    def kind(self) -> str:
        return super().get_content_type()

    def get_content_type(self) -> str:
        kind = self.kind()
        return "text/message" if kind.startswith("message/") else kind

    def get_content_maintype(self) -> str:
        return self.get_content_type().partition("/")[0]

    def set_raw(self, name: str, value: str) -> None:
        if len(self) < MOST_FIELDS:
            limit = MOST_CONTENT if name.lower().startswith("content-") else MOST_VALUE
            super().set_raw(name, value[:limit])


def read(raw: bytes) -> Mail:
    """Never raises."""
    raw = raw[:MOST_BYTES].lstrip(b"\r\n")
    if raw.startswith(b"From "):  # of an mbox
        raw = raw.partition(b"\n")[2]
    head, body = split(raw)
    fields = header_fields(head)
    nests = len(_NESTS.findall(raw))
    if (
        len(_BOUNDARIES.findall(body)) > 4 * MOST_PARTS
        or nests > 4 * MOST_DEPTH
        or nests * raw.count(b"\n") > MOST_LOOKS
    ):
        return Mail(fields, "text/plain", {}, [Part("text/plain", 0, body[:MOST_TEXT])])
    # The parser takes a line that is no field for the begin of the body.
    lines = b"\n".join(line for line in head[:MOST_HEAD].splitlines() if _FIELD.match(line))
    try:
        parser: BytesParser[_Message] = BytesParser(_Message)
        message = parser.parsebytes(lines + b"\n\n" + body)
        parts = list(_leaves(message))[:MOST_PARTS]
        return Mail(fields, message.kind(), _parameters(message), parts)
    except (RecursionError, ValueError, LookupError, AttributeError, TypeError):
        # What the parser stumbles over differs by version; the text is there all the same.
        return Mail(fields, "text/plain", {}, [Part("text/plain", 0, body[:MOST_TEXT])])


def decode(content: bytes, charset: str) -> str:
    """As text that UTF-8 can write; what cannot be read is U+FFFD, and a charset that is none counts as UTF-8."""
    try:
        name = codecs.lookup(charset or "utf-8").name
        text = content.decode("utf-8" if name in _NO_CHARSETS else name, "replace")
    except (LookupError, ValueError):  # ValueError: a name with NUL, a codec that cannot replace
        text = content.decode("utf-8", "replace")
    return text.encode("utf-8", "replace").decode("utf-8")  # UTF-7 gives halves of characters


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Header block and body, without the empty line between them."""
    found = _HEAD_END.search(raw)
    return (raw[: found.start()], raw[found.end() :]) if found else (raw, b"")


def header_fields(head: bytes) -> list[tuple[str, str]]:
    """Names in lower case, values unfolded, encoded words decoded."""
    text = head[:MOST_HEAD].decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n")
    found: list[tuple[str, list[str]]] = []
    for line in text.split("\n"):
        if line[:1] in (" ", "\t"):
            if found:
                found[-1][1].append(line.strip())
        elif ":" in line:
            name, _, value = line.partition(":")
            if name.strip() and " " not in name.strip():
                if len(found) == MOST_FIELDS:
                    break
                found.append((name.strip().lower(), [value.strip()]))
    return [(name, _decoded(" ".join(value))) for name, value in found]


def _decoded(value: str) -> str:
    if "=?" not in value or len(value) > MOST_VALUE:
        return value
    return _WORDS.sub(lambda words: _spoken(words[0]), value)


def _spoken(words: str) -> str:
    try:
        return "".join(
            part if isinstance(part, str) else decode(part, charset or "") for part, charset in decode_header(words)
        )
    except (ValueError, HeaderParseError):
        return words


def _leaves(message: _Message, depth: int = 0) -> Iterator[Part]:
    if message.is_multipart() and depth < MOST_DEPTH:
        for child in message.get_payload():
            if isinstance(child, _Message):
                yield from _leaves(child, depth + 1)
        return
    kind = message.kind().lower()
    charset = message.get_content_charset() or ""
    yield Part(kind, depth, _content(message, kind), charset, _filename(message), _parameters(message))


def _content(message: Message, kind: str) -> bytes:
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
    text = re.sub(r"(?i)<(?:br|/p|/div|/tr|/li)\b[^<>]{0,200}>", "\n", _shown(text))
    text = re.sub(r"<[^<>]{0,2000}>", " ", text)
    for name, char in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&#64;", "@"), ("&nbsp;", " "), ("&amp;", "&")):
        text = text.replace(name, char)
    return text


def _shown(text: str) -> str:
    """Without scripts and styles; one without an end hides all that follows."""
    kept: list[str] = []
    here = 0
    while found := _HIDDEN.search(text, here):
        kept.append(text[here : found.start()])
        end = re.compile(rf"</{found[1]}\s{{0,20}}>", re.IGNORECASE).search(text, found.end())
        here = end.end() if end else len(text)
    return " ".join([*kept, text[here:]])
