"""A message made of fields: sender, recipients, subject, texts, attachments. Pure; the stdlib writes it.

Promises: what is composed reads back as what was asked; it is ASCII with lines that every server takes, but for the addresses
that need SMTPUTF8; it names nobody who is not to be seen. Refuses: whatever would begin a field of its own, and fields
that are made here or by the relay. Date and Message-ID are not made here: `trace` adds them, as to all mail.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.header import Header
from email.message import EmailMessage, MIMEPart
from email.policy import EmailPolicy
from email.utils import quote, unquote
from functools import lru_cache
from typing import Any, NamedTuple

from relay.envelope import LINE, UNSENDABLE, ascii_domain
from relay.outgoing.mailboxes import Unreadable, read
from relay.repair import OPTION_PREFIX

WIDTH = 76  # of a line of a header, where it can be folded (RFC 5322 §2.1.1)
MAX_KNOWN = 500  # characters of addresses that are remembered: long lists would fill the memory, and come once
MAX_NAMED = 100 * 1024  # octets of one field of addresses
# Made of the other fields, or by who carries the message; an application that wants its own hands in a whole one.
OURS = frozenset(
    {
        *("from", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "mime-version"),
        *("received", "return-path", "delivered-to", "authentication-results", "dkim-signature"),
    }
)
_OURS_BEGIN = ("content-", "resent-", "arc-", OPTION_PREFIX.decode())
_FIELD = re.compile(r"[!-9;-~]{1,70}")
_ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~ -]*")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*+"|\[[^\[\]]*+\]|\((?:[^()\\]|\\.)*+\)', re.DOTALL)
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")
# Without `*`: RFC 2231 is for who writes the field, and the stdlib stumbles over what is not quite that.
_PARAMETERS = re.compile(r'(\s*;\s*([A-Za-z0-9!#$&^_.+-]{1,64}=([A-Za-z0-9!#$&^_.+-]+|"[^"\\]*+"))?)*+\s*')
_CONTENT_ID = re.compile(r"[!-;=?-~]{1,200}")


class Uncomposable(ValueError):
    """What cannot stand in a message; the text says why, and what to do."""


class Mailbox(NamedTuple):
    name: str
    address: str

    def written(self) -> str:
        """As a field has it (RFC 5322 §3.4); a name that is not ASCII in encoded words (RFC 2047)."""
        if not self.name:
            return self.address
        if not self.name.isascii() or "=?" in self.name:
            name = Header(self.name, "utf-8", maxlinelen=WIDTH).encode()
        else:
            name = self.name if _ATOMS.fullmatch(self.name) else f'"{quote(self.name)}"'
        return f"{name} <{self.address}>"


@dataclass(frozen=True, slots=True)
class Attachment:
    filename: str
    content: bytes
    content_type: str = ""  # empty: as the filename's ending says
    inline: bool = False  # shown within the HTML, by its content_id
    content_id: str = ""


@dataclass(frozen=True, slots=True)
class Draft:
    """What a message is to say. Who gets it is the envelope's."""

    from_: Mailbox
    to: Sequence[Mailbox] = ()
    cc: Sequence[Mailbox] = ()
    reply_to: Sequence[Mailbox] = ()
    subject: str = ""
    text: str | None = None
    html: str | None = None
    headers: Sequence[tuple[str, str]] = ()
    attachments: Sequence[Attachment] = ()


class _AsWritten(EmailPolicy):
    """Fields as they are given: each is folded and encoded before. The stdlib's parser would take 0.2 ms for each."""

    def header_store_parse(self, name: str, value: Any) -> tuple[str, Any]:
        return name, value

    def header_fetch_parse(self, name: str, value: Any) -> Any:
        return value

    def header_max_count(self, name: str) -> None:
        """There is one of each: nobody may write `OURS` beside us."""


_MAKE = _AsWritten(linesep="\r\n", cte_type="7bit", utf8=True)
_WRITE = _MAKE.clone(max_line_length=LINE)  # a URL is never broken, nor encoded, for being longer than WIDTH


# -- what is asked


def mailboxes(text: str) -> tuple[Mailbox, ...]:
    """`ann@example.com`, `Ann <ann@example.com>`, or several with commas between them. Raises Uncomposable.

    A domain is in ASCII (RFC 5890) where that saves the message from needing SMTPUTF8.
    """
    return _seldom(text) if len(text) > MAX_KNOWN else _often(text)


def _seldom(text: str) -> tuple[Mailbox, ...]:
    one_line("an address", text)
    if re.search("[:;]", _QUOTED.sub("", text)):
        raise Uncomposable("a group is no address; name its members one by one")
    value = text.encode()
    try:
        found = read(value)
    except Unreadable as error:
        raise Uncomposable(f"not an address: {error}") from None
    made = []
    for box in found:
        if not box.address:
            written = value[box.start : box.end].decode()[:80]
            raise Uncomposable(f"'{written}' is no address; write name@domain, and a name that has a comma in quotes")
        name = value[box.start : box.at].decode().strip() if box.angled else ""
        made.append(
            Mailbox(unquote(name) if name.startswith('"') and name.endswith('"') else name, _ascii(box.address))
        )
    if not made:
        raise Uncomposable("no address; write name@domain")
    return tuple(made)


_often = lru_cache(maxsize=8192)(_seldom)  # an application has few senders, and writes to the same people


def _ascii(address: str) -> str:
    local, _, domain = address.rpartition("@")
    return f"{local}@{ascii_domain(domain)}" if local.isascii() else address


def one_line(what: str, text: str) -> str:
    """Raises Uncomposable: what has a line end could go on with a field of its own."""
    if UNSENDABLE.search(text):
        raise Uncomposable(f"{what} is one line of text, without control characters")
    return text


def check_field(name: str) -> str:
    """Of a field beside those that have a place of their own. Raises Uncomposable."""
    lower = name.lower()
    if not _FIELD.fullmatch(name):
        raise Uncomposable("the name of a field has 1 to 70 letters, digits and hyphens (RFC 5322 section 2.2)")
    if lower.startswith(OPTION_PREFIX.decode()):
        raise Uncomposable("X-Relay-* is said beside the message: class, priority, send_at, tag, idempotency_key")
    if lower in OURS or lower.startswith(_OURS_BEGIN):
        raise Uncomposable(f"{name} is made of the other fields, or by the relay; a message of your own goes in `raw`")
    return name


def check_type(text: str) -> str:
    """`type/subtype`, perhaps with parameters. Raises Uncomposable."""
    one_line("a content type", text)
    kind, mark, rest = text.partition(";")
    kind = kind.strip()
    if not (_TYPE.fullmatch(kind) and text.isascii() and _PARAMETERS.fullmatch(mark + rest)):
        raise Uncomposable("a content type is written as application/pdf, or text/csv; charset=utf-8")
    if kind.lower().startswith("multipart/"):
        raise Uncomposable("a part of several parts goes in `raw`; attach them one by one")
    return text


def check_content_id(text: str) -> str:
    """Without its angle brackets. Raises Uncomposable."""
    text = text.removeprefix("<").removesuffix(">")
    if not _CONTENT_ID.fullmatch(text):
        raise Uncomposable("a content_id has up to 200 printable ASCII characters, such as logo@example.com")
    return text


# -- what is written


def compose(draft: Draft) -> bytes:
    """The message, its lines ended by CRLF. Takes long where attachments are large."""
    fields = fields_of(draft)
    return _plain(fields, draft) or _made(fields, draft)


def fields_of(draft: Draft) -> list[tuple[str, str]]:
    """All but those that tell what the content is, folded and encoded."""
    fields = [("From", draft.from_.written())]
    for name, boxes in (("To", draft.to), ("Cc", draft.cc), ("Reply-To", draft.reply_to)):
        if boxes:
            fields.append((name, _listed(name, boxes)))
    fields.append(("Subject", _folded("Subject", draft.subject)))
    return [*fields, *((name, _folded(name, value)) for name, value in draft.headers)]


def _plain(fields: list[tuple[str, str]], draft: Draft) -> bytes:
    """Most messages: one text of ASCII in short lines. As `_made`, which takes ten times as long; empty: it is none of those."""
    text, subtype = (draft.text or "", "plain") if draft.html is None else (draft.html, "html")
    if draft.attachments or None not in (draft.text, draft.html) or not _is_plain(text):
        return b""
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    lines = head.split("\r\n")
    if not head.isascii() or max(map(len, lines)) > LINE or head.count("\n") >= len(lines):
        return b""  # the last: an encoded name was folded by a bare LF
    said = "".join(f"{name}: {value}\r\n" for name, value in _said_of(subtype))
    body = (text if text.endswith("\n") else text + "\n").replace("\n", "\r\n")
    return f"{head}{said}\r\n{body}".encode()


def _made(fields: list[tuple[str, str]], draft: Draft) -> bytes:
    message = EmailMessage(_MAKE)
    for name, value in fields:
        message[name] = value
    _fill(message, draft)
    return message.as_bytes(policy=_WRITE)


def _listed(name: str, boxes: Sequence[Mailbox]) -> str:
    written = [box.written() for box in boxes]
    plain = ", ".join(written)
    return plain if len(name) + 2 + len(plain) <= WIDTH else ",\r\n ".join(written)


def _folded(name: str, value: str) -> str:
    """Unstructured text (RFC 5322 §2.2.1); what is not ASCII in encoded words (RFC 2047)."""
    value = value.strip()
    if value.isascii() and "=?" not in value:
        if len(name) + 2 + len(value) <= WIDTH:
            return value
        folded = Header(value, "us-ascii", maxlinelen=WIDTH, header_name=name).encode(linesep="\r\n")
        if max(map(len, folded.split("\r\n"))) + len(name) + 2 <= LINE:
            return folded
    return Header(value, "utf-8", maxlinelen=WIDTH, header_name=name).encode(linesep="\r\n")


def _fill(message: EmailMessage, draft: Draft) -> None:
    """What it says, simplest first (RFC 2046 §5.1): one text, two of them, with images, with attachments."""
    if draft.html is None:
        _text(message, draft.text or "", "plain")
        html: MIMEPart = message
    elif draft.text is None:
        _text(message, draft.html, "html")
        html = message
    else:
        message.set_content(draft.text)
        message.add_alternative(draft.html, subtype="html")
        html = message.get_payload(1)  # type: ignore[assignment]
    for one in draft.attachments:
        if one.inline and draft.html is not None:
            _attach(html, one)
    for one in draft.attachments:
        if not (one.inline and draft.html is not None):
            _attach(message, one)


def _text(message: EmailMessage, text: str, subtype: str) -> None:
    """Most are ASCII in short lines, and need nothing of what the stdlib looks for."""
    if _is_plain(text):
        for name, value in _said_of(subtype):
            message[name] = value
        message.set_payload(text if text.endswith("\n") else text + "\n")
    else:
        message.set_content(text, subtype=subtype)


def _is_plain(text: str) -> bool:
    return text.isascii() and "\r" not in text and all(len(line) <= LINE for line in text.split("\n"))


def _said_of(subtype: str) -> tuple[tuple[str, str], ...]:
    """Of a text that is plain."""
    return (
        ("MIME-Version", "1.0"),
        ("Content-Type", f'text/{subtype}; charset="utf-8"'),
        ("Content-Transfer-Encoding", "7bit"),
    )


def _attach(part: MIMEPart, one: Attachment) -> None:
    kind, parameters = _kind(one)
    maintype, _, subtype = kind.partition("/")
    said: dict[str, Any] = {"cid": f"<{one.content_id}>"} if one.content_id else {}
    add = part.add_related if one.inline else part.add_attachment
    add(
        one.content,
        maintype=maintype,
        subtype=subtype,
        disposition="inline" if one.inline else "attachment",
        filename=one.filename,
        params=dict(parameters),
        **said,
    )


def _kind(one: Attachment) -> tuple[str, Mapping[str, str]]:
    given = one.content_type or mimetypes.guess_type(one.filename)[0] or "application/octet-stream"
    read_ = EmailMessage()
    read_["Content-Type"] = given
    kind = read_.get_content_type()
    if kind.startswith(("message/", "multipart/")):
        return "application/octet-stream", {}  # those may not be in base64 (RFC 2046 §5.2.1)
    return kind, read_["Content-Type"].params
