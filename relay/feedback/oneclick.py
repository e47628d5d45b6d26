"""One-click unsubscription (RFC 8058), and the same for people. A link that is followed changes nothing: programs follow links."""

from __future__ import annotations

from email import message_from_bytes
from email.message import Message
from itertools import islice
from urllib.parse import parse_qsl

from aiohttp import web

from relay import clock
from relay.envelope import domain_of
from relay.feedback import page
from relay.feedback.heard import Heard, Source
from relay.feedback.web import Answer, body_of
from relay.policy.suppression import scopes
from relay.returned import Finding, Kind
from relay.spool import Spool
from relay.spool.feed import Known

MOST = 8 << 10  # bytes of a body
FIELD, VALUE = "list-unsubscribe", "one-click"


class OneClick:
    """Answers for a token. Raises Cut, SpoolError."""

    def __init__(self, heard: Heard, spool: Spool) -> None:
        self._heard, self._spool = heard, spool

    async def look(self, token: str) -> Answer:
        known = await self._known(token)
        return known if isinstance(known, Answer) else _shown(200, page.asking(_whose(known)), "looked")

    async def post(self, request: web.BaseRequest, token: str) -> Answer:
        """It is said as often as one likes: it is done once, and again only where an operator had undone it."""
        known = await self._known(token)
        body = await body_of(request, MOST)
        if isinstance(known, Answer):
            return known
        if not meant(request.headers.get("Content-Type", ""), body):
            return _shown(400, page.asking(_whose(known)), "unreadable")
        source = Source("unsubscribe", token=token)
        new = await self._heard.unsubscribe(source)
        if new is None:
            return _shown(410, page.forgotten(), "forgotten")
        if not new and not await self._stopped(known):
            again = f"unsubscribe {known.message} {known.n} {clock.now():.0f}"
            new = await self._heard.take(Finding(Kind.UNSUBSCRIBE), source, again)
        return _shown(200, page.done(_whose(known)), "learnt" if new else "known")

    async def _known(self, token: str) -> Known | Answer:
        found = self._heard.genuine(token)
        if found is None:
            return _shown(404, page.unknown(), "unknown")
        return await self._spool.known(*found) or _shown(410, page.forgotten(), "forgotten")

    async def _stopped(self, known: Known) -> bool:
        """Whether mail of this kind is suppressed, or no rule wants an unsubscription to suppress."""
        config = self._heard.config()
        if "unsubscribe" not in config.suppression.on:
            return True
        tenant = config.tenant_of.get(known.user, "")
        return bool(await self._spool.suppressed(known.address, scopes(known.class_ or "default", tenant)))


def meant(content_type: str, body: bytes) -> bool:
    """Whether a body holds `List-Unsubscribe=One-Click`: as a form in either of its ways (RFC 8058 §3.2)."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        head = b"Content-Type: " + content_type.encode("ascii", "replace").replace(b"\n", b" ") + b"\r\n\r\n"
        try:
            whole = message_from_bytes(head + body)
            parts = islice(whole.walk(), 1, 11) if body.count(b"\n--") < 20 else ()
            return any(_pair(_name(part), part.get_payload(decode=True)) for part in parts)
        except (ValueError, LookupError, AttributeError, TypeError):
            return False  # parameters that RFC 2231 knows, and the parser does not
    try:
        pairs = parse_qsl(body.decode("ascii").strip(), max_num_fields=10)
    except ValueError:
        return False
    return any(_pair(name, value.encode()) for name, value in pairs)


def _name(part: Message) -> str:
    found = part.get_param("name", "", "Content-Disposition")
    return found if isinstance(found, str) else ""


def _pair(name: str, value: object) -> bool:
    return name.lower() == FIELD and isinstance(value, bytes) and value.strip().lower() == VALUE.encode()


def _whose(known: Known) -> str:
    return domain_of(known.header_from or known.sender)[:255]


def _shown(status: int, body: bytes, result: str) -> Answer:
    return Answer(status, body, page.HEADERS, result)
