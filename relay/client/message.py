"""A message and its attachments, as an application has them, and how they are written for the relay. Opens only what
`Attachment.from_path` is given."""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from email.generator import BytesGenerator
from email.message import Message as Parsed
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

Addresses: TypeAlias = str | Sequence[str]
Scalar: TypeAlias = str | int | float | bool | None
Priority: TypeAlias = Literal["immediate", "high", "normal", "low"] | int


@dataclass(frozen=True)
class Attachment:
    """Bytes; or `path`, a file below the folder that the relay is configured to take files from; or `url`, which it fetches."""

    content: bytes | None = field(default=None, repr=False)
    filename: str = ""
    content_type: str = ""  # empty: by the filename
    inline: bool = False  # shown in the text, which names it `cid:CONTENT_ID`
    content_id: str = ""
    path: str = ""
    url: str = ""
    sha256: str = ""  # of the content, hexadecimal: what differs from it is not sent

    def __post_init__(self) -> None:
        if (self.content is not None) + bool(self.path) + bool(self.url) != 1:
            raise ValueError("an attachment wants exactly one of content, path (of the relay's machine) and url")
        if not self.filename and not (named := PurePosixPath(urlsplit(self.url).path or self.path).name):
            raise ValueError("an attachment wants a filename: it is what its recipient saves it as")
        elif not self.filename:
            object.__setattr__(self, "filename", named)

    @classmethod
    def from_path(cls, path: str | os.PathLike[str], *, filename: str = "", content_type: str = "") -> Attachment:
        """A file of this machine, read now. Raises OSError."""
        name = filename or Path(path).name
        return cls(Path(path).read_bytes(), name, content_type or mimetypes.guess_type(name)[0] or "")

    def words(self) -> dict[str, Any]:
        """All but the content."""
        return _given(self, "filename", "content_type", "inline", "content_id", "path", "url", "sha256")

    def wire(self) -> dict[str, Any]:
        content = {} if self.content is None else {"content": base64.b64encode(self.content).decode()}
        return self.words() | content


@dataclass(frozen=True, kw_only=True)
class Message:
    """What is to be sent. Fields that Python has words for are written `from_` and `class_`.

    With `raw` it is a whole message (RFC 5322): then `from_` and `to` are its envelope, and where they are empty the relay reads
    them from its header.
    """

    from_: str = ""
    to: Addresses = ()
    cc: Addresses = ()
    bcc: Addresses = ()
    reply_to: Addresses = ()
    subject: str = ""
    text: str = ""
    html: str = ""
    headers: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    attachments: Sequence[Attachment] = ()
    raw: bytes | None = field(default=None, repr=False)
    class_: str = ""
    priority: Priority | None = None
    send_at: datetime | None = None
    tag: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    envelope_from: str | None = None  # the reverse-path; "" is the empty one, None the address of `from_`
    user: str = ""  # whose mail it is, where the token is of more than one user
    key: str = ""  # its idempotency key: sent again with the same one, it is not sent twice

    def __post_init__(self) -> None:
        if self.send_at is not None and self.send_at.tzinfo is None:
            raise ValueError("send_at wants a time zone: datetime.now(timezone.utc) has one, datetime.now() has none")
        made = [name for name in _MADE if getattr(self, name)]
        if self.raw is not None and made:
            raise ValueError(f"raw is the whole message: it goes without {', '.join(made)}")
        if self.raw is None and not self.from_:
            raise ValueError("a message wants from_, such as 'Shop <shop@example.com>'")
        if self.raw is None and not (self.to or self.cc or self.bcc):
            raise ValueError("a message wants a recipient in to, cc or bcc")
        as_json([self._words(), [one.words() for one in self.attachments]])  # one of a batch must not spoil all of it

    @classmethod
    def of(cls, message: Parsed, **given: Any) -> Message:
        """One that was made by the standard library's `email`. `given`: fields that are of the relay, such as `to` and `tag`."""
        return cls(raw=octets(message), **given)

    def keyed(self) -> Message:
        """With a key of its own where it has none: what an application keeps that wants to send it again itself."""
        return self if self.key else replace(self, key=secrets.token_hex(16))

    def wire(self) -> dict[str, Any]:
        """As JSON, without what is not said."""
        told = self._words()
        if self.attachments:
            told["attachments"] = [one.wire() for one in self.attachments]
        if self.raw is not None:
            told["raw"] = base64.b64encode(self.raw).decode()
        return told

    def _words(self) -> dict[str, Any]:
        """All but what is in octets."""
        told = _given(self, "subject", "text", "html", "tag", "user") | {
            name: value
            for name, value in (
                ("from", self.from_),
                ("class", self.class_),
                ("idempotency_key", self.key),
                *((name, _listed(getattr(self, name))) for name in ("to", "cc", "bcc", "reply_to")),
                ("headers", {k: v if isinstance(v, str) else list(v) for k, v in self.headers.items()}),
                ("metadata", dict(self.metadata)),
            )
            if value
        }
        if self.priority is not None:
            told["priority"] = self.priority
        if self.send_at is not None:
            told["send_at"] = self.send_at.isoformat()
        if self.envelope_from is not None:
            told["envelope_from"] = self.envelope_from
        return told


_MADE = (
    "cc",
    "bcc",
    "reply_to",
    "subject",
    "text",
    "html",
    "headers",
    "attachments",
)  # a whole message has them in itself


def as_json(told: Any) -> str:
    """As JSON. Raises ValueError or TypeError for what no relay could read: NaN, and half of a character (RFC 8259 §8.2)."""
    text = json.dumps(told, allow_nan=False, separators=(",", ":"))
    if "\\ud" in text:  # of a pair, mostly
        try:
            json.dumps(told, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            around = error.object[max(0, error.start - 20) : error.end + 20]
            raise ValueError(f"{around!r} is no Unicode: it was read by another encoding than it has") from None
    return text


def octets(message: Parsed) -> bytes:
    """As it goes over the wire: lines end in CRLF, and no `From ` is marked."""
    written = io.BytesIO()
    BytesGenerator(written, mangle_from_=False).flatten(message, linesep="\r\n")
    return written.getvalue()


def _given(one: object, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(one, name))}


def _listed(addresses: Addresses) -> list[str]:
    return [addresses] if isinstance(addresses, str) and addresses else list(addresses)
