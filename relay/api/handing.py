"""From what a program said to a message that is durable: who submits it, what it is made of, and the intake, as for SMTP.

Promises: the rules that bind a user over SMTP bind him here; what is answered is on the disk; the same key with the same
content is one message, and has one answer. Memory is bounded: what is large is worked on by few at a time, off the loop.
"""

from __future__ import annotations

import asyncio
import binascii
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from typing import Any

from relay import clock, compose
from relay.api.problem import RETRY_AFTER, FieldError, Problem
from relay.api.rooms import Rooms
from relay.api.submission import Part, Submission
from relay.attachments import NotAttached, must_be
from relay.envelope import queue_id
from relay.incoming import Incoming
from relay.intake import Envelope
from relay.listener.data import DataReader
from relay.outgoing.mailboxes import Unreadable, read
from relay.policy.access import Principal
from relay.policy.routing import matches_any
from relay.settings import API, Config, User
from relay.spool import NewMessage, Notify, SpoolError
from relay.spool.access import owner_of_key
from relay.submission import MAX_HEAD, BadMessage, split

AT_ONCE = 4  # messages that are large, or whose attachments are fetched
LARGE = 64 * 1024  # bytes of content, from where it is made off the loop
PIECE = 1 << 18
TRIES = 4  # while the message that has the key is forgotten, each time between two steps
BREATH = 50  # recipients between two turns of the loop
FURTHEST = 366 * 86400.0  # seconds
_MESSAGE_ID = re.compile(rb"^Message-ID:\s*(<[^<>\r\n]{1,996}>)", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class From:
    """Who hands it in: by which token, whose mail he sees, from where."""

    principal: Principal
    users: frozenset[str] | None
    client: str
    at: float  # monotonic: what an attachment's URL had since then is what it had now


class Handing:
    def __init__(self, rooms: Rooms) -> None:
        self.rooms, self.intake, self.spool = rooms, rooms.intake, rooms.spool
        self._large = asyncio.Semaphore(AT_ONCE)

    async def take(self, asked: Submission, source: From) -> dict[str, Any]:
        """The answer, once it is durable. Raises Problem, BadMessage, SpoolError."""
        config = self.rooms.config
        user = submitter(config, source, asked.user)
        _must_make_sense(config, user, asked)
        envelope = Envelope(API, source.client, API.name, "HTTP", user=user, options=asked.options)
        envelope.metadata = json.dumps(asked.metadata) if asked.metadata else ""
        if _is_large(asked):
            async with self._large:
                return await self._keyed(envelope, asked, source.at)
        return await self._keyed(envelope, asked, source.at)

    async def _keyed(self, envelope: Envelope, asked: Submission, at: float) -> dict[str, Any]:
        """What was accepted once is so again, though it would be refused by now: its limit is used up, its file is gone."""
        if not asked.idempotency_key:
            return await self._accepted(envelope, asked, at)
        envelope.digest = await asyncio.to_thread(asked.digest) if _is_large(asked) else asked.digest()
        try:
            return await self._accepted(envelope, asked, at)
        except (BadMessage, Problem, SpoolError):
            if (known := await self._known(envelope, asked)) is None:
                raise
            return known

    async def _accepted(self, envelope: Envelope, asked: Submission, at: float) -> dict[str, Any]:
        """Raises Problem, BadMessage, SpoolError."""
        for _ in range(TRIES):
            if (told := await self._take(envelope, asked, at)) is not None:
                return told
        text = "what had this key is forgotten again and again while this is stored; say it again"
        raise Problem(503, text, headers={"Retry-After": RETRY_AFTER})

    async def _take(self, envelope: Envelope, asked: Submission, at: float) -> dict[str, Any] | None:
        """None: the spool knew its key, and what had it was forgotten before it could be told."""
        envelope.asked, envelope.wanted, envelope.charge = {}, [], None  # of a try before
        if why := self.intake.refuse_now():
            raise Problem(503, f"the spool takes no mail now: {why}", headers={"Retry-After": RETRY_AFTER})
        reader = DataReader()
        content = reader.whole(await self._content(asked, at))
        head = content[: split(content)] if asked.raw is not None else b""
        envelope.sender = _sender(asked, head)
        envelope.recipients = asked.recipients or _named(head, "to", "cc", "bcc")
        envelope.smtputf8 = not "".join((envelope.sender, *envelope.recipients)).isascii()
        incoming = Incoming(self.spool, self.intake.budget)
        try:
            await self._check(envelope)
            for start in range(0, len(content), PIECE):
                if incoming.feed(content[start : start + PIECE]):
                    await incoming.spill()
            del content
            message, _, fresh = await self.intake.take(envelope, incoming, needs=reader.needs)
        except BadMessage as error:
            self._tell_refused(envelope, error)
            raise
        except OSError as error:
            raise Problem(
                503, f"the spool cannot store this now: {error.strerror}", headers={"Retry-After": RETRY_AFTER}
            ) from None
        finally:
            incoming.release()
        if not fresh:
            return await self._known(envelope, asked)
        return _answer(message, envelope)

    # -- what it is made of

    async def _content(self, asked: Submission, at: float) -> bytes:
        """Raises Problem."""
        large = _is_large(asked)
        if asked.raw is not None:
            if isinstance(asked.raw, bytes):
                return asked.raw
            return await asyncio.to_thread(_decoded, asked.raw, "raw") if large else _decoded(asked.raw, "raw")
        if asked.length > MAX_HEAD:
            raise BadMessage(552, "5.3.4", f"header block is larger than {MAX_HEAD // 1024} KiB")
        attached = await self._attached(asked.attachments, at)
        draft = asked.draft(attached)
        return await asyncio.to_thread(compose.compose, draft) if large else compose.compose(draft)

    async def _attached(self, parts: list[Part], at: float) -> list[compose.Attachment]:
        """With their contents; together no more than a message may have. Raises Problem."""
        made, left = [], self.spool.max_message_size
        for number, part in enumerate(parts):
            content = await self._one(part, f"attachments[{number}]", left, at)
            left -= len(content)
            if left < 0:
                raise BadMessage(552, "5.3.4", f"message is larger than {self.spool.max_message_size} bytes")
            made.append(
                compose.Attachment(part.filename, content, part.content_type or "", part.inline, part.content_id or "")
            )
        return made

    async def _one(self, part: Part, where: str, left: int, at: float) -> bytes:
        attaching, sha256 = self.rooms.attaching, part.sha256 or ""
        try:
            if part.path is not None:
                where += ".path"
                return await attaching.from_folder(part.path, left, sha256)
            if part.url is not None:
                where += ".url"
                return await attaching.from_url(part.url, left, sha256, at)
            where += ".content"
            text = part.content or ""
            content = await asyncio.to_thread(_decoded, text, where) if len(text) > LARGE else _decoded(text, where)
            must_be(content, sha256)
            return content
        except NotAttached as error:
            wrong = [FieldError(field=where, message=str(error))]
            headers = {"Retry-After": RETRY_AFTER} if error.later else {}
            raise Problem(503 if error.later else 422, f"{where}: {error}", wrong, headers) from None

    # -- who may

    async def _check(self, envelope: Envelope) -> None:
        """What SMTP would say at MAIL and RCPT. Raises BadMessage, Problem.

        Who is refused for good is one recipient that failed, and told so in the answer; nobody needs a report of that.
        """
        if (no := self.intake.refuse_sender(envelope)) is not None:
            raise no
        if len(envelope.recipients) > API.max_recipients:
            text = f"{len(envelope.recipients)} recipients, {API.max_recipients} are allowed; send several messages"
            raise Problem(400, text, [FieldError(field="to", message=text)])
        user, refused = envelope.user, list[BadMessage]()
        for number, recipient in enumerate(envelope.recipients):
            if number % BREATH == BREATH - 1:
                await asyncio.sleep(0)
            if (no := self.intake.refuse_recipient(envelope, recipient)) is None:
                continue
            if no.code < 500 or (user is not None and not matches_any(user.recipients, recipient)):
                raise no
            envelope.asked[recipient] = (int(Notify.NEVER), "")
            refused.append(no)
        if len(refused) == len(envelope.recipients):
            raise refused[0]

    def _tell_refused(self, envelope: Envelope, error: BadMessage) -> None:
        self.rooms.log.event(
            "refused",
            client=envelope.client,
            user=envelope.user.name if envelope.user else "",
            sender=envelope.sender,
            listener=API.name,
            code=error.code,
            why=error.text,
        )

    # -- what was said before

    async def _known(self, envelope: Envelope, asked: Submission) -> dict[str, Any] | None:
        """The answer to what was accepted by this key before; None: nothing was. Raises Problem for another message."""
        owner = owner_of_key(envelope.user.name if envelope.user else "", envelope.sender or asked.sender or "")
        found = await self.spool.key_of(owner, asked.idempotency_key or "")
        row = await self.spool.message(found[0]) if found else None
        if found is None or row is None:
            return None
        if found[1] not in ("", envelope.digest):
            text = f"another message had this key ({queue_id(found[0])}); a new message wants a key of its own"
            raise Problem(422, text, [FieldError(field="idempotency_key", message=text)])
        return {
            "status": 202,
            "queue_id": row["queue_id"],
            "message_id": _message_id(row["head"]),
            "repeated": True,
            "recipients": [
                {"recipient": r["recipient"], "state": r["state"], "why": r["why"]}
                for r in row["recipients"]
                if r["recipient"] in (asked.recipients or envelope.recipients)
            ],
        }


def submitter(config: Config, source: From, named: str) -> User | None:
    """As whom it is submitted; None: as nobody, for the whole relay. Raises Problem."""
    principal = source.principal
    if principal.user:
        if named not in ("", principal.user):
            raise _wrong("user", f"this token is of user {principal.user}, who submits as himself alone")
        named = principal.user
    elif source.users is not None:
        there = ", ".join(sorted(source.users)) or "none"
        if not named and len(source.users) != 1:
            raise _wrong("user", f"say as which user of the tenant; there are: {there}")
        named = named or next(iter(source.users))
        if named not in source.users:
            raise _wrong("user", f"no such user of this tenant; there are: {there}")
    if named and named not in config.users:
        raise _wrong(
            "user", f"no such user in the configuration; there are: {', '.join(sorted(config.users)) or 'none'}"
        )
    return config.users[named] if named else None


def _must_make_sense(config: Config, user: User | None, asked: Submission) -> None:
    """What SMTP would log and pass over, here can be told. Raises Problem."""
    may = user.classes if user and user.classes else tuple(config.classes)
    if asked.class_ and asked.class_ not in may:
        text = f"no class that may be used; there are: {', '.join(may)}"
        raise Problem(422, f"class: {text}", [FieldError(field="class", message=text)])
    if asked.send_at is not None and asked.send_at > clock.now() + FURTHEST:
        raise _wrong("send_at", "more than a year ahead")


def _wrong(field: str, text: str) -> Problem:
    return Problem(400, f"{field}: {text}", [FieldError(field=field, message=text)])


def _is_large(asked: Submission) -> bool:
    if asked.raw is not None:
        return len(asked.raw) > LARGE
    if any(part.content is None for part in asked.attachments):
        return True  # it is fetched, and nobody knows yet
    sizes = [len(part.content or "") for part in asked.attachments]
    return asked.length + len(asked.text or "") + len(asked.html or "") + sum(sizes) > LARGE


def _decoded(text: str, where: str) -> bytes:
    """In pieces, between which others have their turn. Raises Problem."""
    made = []
    try:
        for piece in _pieces("".join(text.split()) if any(c in text for c in "\r\n ") else text):
            made.append(binascii.a2b_base64(piece, strict_mode=True))
    except ValueError:
        raise _wrong(where, "is no base64 (RFC 4648 section 4)") from None
    return b"".join(made)


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE] for start in range(0, len(text), PIECE))


def _sender(asked: Submission, head: bytes) -> str:
    """Raises Problem."""
    if (said := asked.sender) is not None:
        return said
    found = _named(head, "from")
    if len(found) != 1:
        raise _wrong("from", "the message has not one From; say the reverse-path in `from`")
    return found[0]


def _named(head: bytes, *names: str) -> list[str]:
    """Whom a header names, each once. Raises Problem."""
    fields = BytesHeaderParser().parsebytes(head)
    found: dict[str, None] = {}
    for name in names:
        for value in fields.get_all(name) or ():
            try:
                boxes = read(str(value).encode("utf-8", "surrogateescape"))
            except Unreadable as error:
                raise _wrong(
                    name, f"this field of the message cannot be read: {error}; say `{name}` beside it"
                ) from None
            if not all(box.address for box in boxes):
                raise _wrong(name, f"this field of the message has what is no address; say `{name}` beside it")
            found |= dict.fromkeys(box.address for box in boxes)
    if not found:
        raise _wrong(names[0], f"the message has no {', '.join(n.title() for n in names)}; say `{names[0]}` beside it")
    return list(found)


def _answer(message: NewMessage, envelope: Envelope) -> dict[str, Any]:
    """Of copies that a route makes its sender knows nothing."""
    asked = set(envelope.recipients)
    return {
        "status": 202,
        "queue_id": queue_id(message.id),
        "message_id": _message_id(message.head),
        "repeated": False,
        "recipients": [
            {"recipient": r.address, "state": r.state.label, "why": r.why}
            for r in message.recipients
            if r.address in asked
        ],
    }


def _message_id(head: bytes) -> str:
    found = _MESSAGE_ID.search(head)
    return found[1].decode("utf-8", "replace") if found else ""
