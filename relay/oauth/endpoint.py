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

from relay import https

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
    """The answer, which is a JSON object. Raises EndpointError."""
    try:
        context = await asyncio.to_thread(ssl.create_default_context, cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise EndpointError(f"{ca}: {error}", lasting=True) from None
    try:
        said = await https.ask(url, context, accept="application/json", seconds=TIMEOUT, most=MAX_ANSWER, form=fields)
    except https.Unanswered as error:
        raise EndpointError(str(error)) from None
    return _answer(said.status, said.headers, said.body)


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
