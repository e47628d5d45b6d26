"""One POST to a token endpoint: over verified TLS, to that address alone, for a bounded time, and a bounded answer."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from relay import __version__
from relay.reply import clean

TIMEOUT = 30.0  # seconds, for all of it
MAX_ANSWER = 64 * 1024
MAX_RETRY_AFTER = 3600.0


class EndpointError(Exception):
    """No answer that can be read; the text says why. `lasting`: asking again does not mend it."""

    def __init__(self, text: str, *, retry_after: float = 0.0, lasting: bool = False) -> None:
        super().__init__(text)
        self.retry_after, self.lasting = retry_after, lasting


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: Mapping[str, Any]
    date: float | None  # what time it is there, epoch seconds
    retry_after: float  # seconds, 0: it did not say


async def post(url: str, fields: Mapping[str, str], ca: Path | None = None) -> Answer:
    """The answer, which is a JSON object. No redirect is followed, and no proxy of the environment used. Raises EndpointError."""
    import aiohttp  # for those alone who ask

    try:
        context = await asyncio.to_thread(ssl.create_default_context, cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise EndpointError(f"{ca}: {error}", lasting=True) from None
    try:
        async with (
            asyncio.timeout(TIMEOUT),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            ) as session,
            session.post(
                url,
                data=dict(fields),
                allow_redirects=False,
                headers={
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                    "User-Agent": f"relay/{__version__}",
                },
            ) as response,
        ):
            raw = await _read(response)
            return _answer(response.status, response.headers, raw)
    except TimeoutError:
        raise EndpointError(f"no answer within {TIMEOUT:.0f} s") from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise EndpointError(f"its certificate is not accepted: {_words(error.certificate_error)}") from None
    except aiohttp.ClientConnectorError as error:
        raise EndpointError(f"it cannot be reached: {_words(error.os_error)}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Its text may hold what was sent or came; its name is enough.
        raise EndpointError(f"the connection failed: {type(error).__name__}") from None


async def _read(response: Any) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_chunked(16384):
        size += len(part)
        if size > MAX_ANSWER:
            raise EndpointError(f"its answer is longer than {MAX_ANSWER} bytes")
        parts.append(part)
    return b"".join(parts)


def _answer(status: int, headers: Mapping[str, str], raw: bytes) -> Answer:
    date = _date(headers.get("Date", ""))
    wait = _retry_after(headers.get("Retry-After", ""), date)
    if 300 <= status < 400:
        raise EndpointError(
            f"it answered {status}, a redirect, which is not followed: is `token_url` right?", lasting=True
        )
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, dict):
        return Answer(status, body, date, wait)
    text = f"it answered {status} and no JSON object"
    raise EndpointError(text, retry_after=wait, lasting=400 <= status < 500 and status not in (408, 429))


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp() if text else None
    except (ValueError, OverflowError):
        return None


def _retry_after(text: str, date: float | None) -> float:
    """Seconds, or a date (RFC 9110 §10.2.3), which is by the clock of who wrote it."""
    if text.isascii() and text.isdigit():
        return min(MAX_RETRY_AFTER, float(text[:9]))
    until = _date(text)
    return min(MAX_RETRY_AFTER, max(0.0, until - date)) if until is not None and date is not None else 0.0


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return clean(getattr(error, "strerror", None) or str(error) or type(error).__name__)
