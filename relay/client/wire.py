"""Requests and answers without a connection: what both clients send, how they read what comes, when they try again.

A `Call` is one request, how its answer is read, and whether it may be repeated. Nothing here opens or waits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import urlencode

from relay.client.errors import FieldError, Forbidden, NotFound, Refused, RelayError, Unauthorized, Unavailable

T = TypeVar("T")
LARGEST = 256 << 20  # bytes of an answer: what says more is no relay
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds before a call is tried again
MAX_TEXT = 1000  # characters of what a stranger says that an error repeats
_KINDS = {401: Unauthorized, 403: Forbidden, 404: NotFound}


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # with its query
    body: bytes | None = field(default=None, repr=False)

    def headers(self, token: str) -> dict[str, str]:
        said = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "relay-client"}
        if self.body is not None:
            said["Content-Type"] = "application/json"
        return said | ({"Authorization": f"Bearer {token}"} if token else {})


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = field(repr=False)
    retry_after: str = ""
    request_id: str = ""


@dataclass(frozen=True)
class Call(Generic[T]):
    request: Request
    read: Callable[[Any], T]  # what the answer says, from its JSON
    safe: bool = True  # twice is as once
    key: str = ""  # the idempotency key, where a message is submitted
    wait: float = 0.0  # seconds that the relay may take its time, by our own wish

    def result(self, answer: Answer) -> T:
        """Raises RelayError."""
        if not 200 <= answer.status < 300:
            raise _error(answer)
        try:
            return self.read(json.loads(answer.body) if answer.body else None)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise RelayError(f"what answered {self.request.path} is no relay, or one of another version") from None


@dataclass(frozen=True)
class Page(Generic[T]):
    items: Sequence[T]
    following: Call[Page[T]] | None


def request(method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Request:
    payload = None if body is None else json.dumps(body, allow_nan=False).encode()
    return Request(method, f"{path}?{urlencode(query)}" if query else path, payload)


def _error(answer: Answer) -> RelayError:
    told = _object(answer.body)
    if not told and not 500 <= answer.status < 600:
        return RelayError(f"no relay answers there: HTTP {answer.status} without a word that we know")
    return refusal(told, answer.status, _seconds(answer.retry_after), answer.request_id)


def refusal(told: Mapping[str, Any], status: int, retry_after: float | None = None, request_id: str = "") -> RelayError:
    """What a problem (RFC 9457) says, or the part of a batch that was not taken."""
    detail = str(told.get("detail") or "; ".join(map(str, _list(told, "notes"))) or f"the relay answered {status}")[
        :MAX_TEXT
    ]
    code = told.get("code") if isinstance(told.get("code"), int) else None
    enhanced, number = str(told.get("enhanced") or ""), request_id or str(told.get("request_id") or "")
    if status >= 500 or status in (408, 429):
        return Unavailable(
            detail, status=status, retry_after=retry_after, code=code, enhanced=enhanced, request_id=number
        )  # fmt: skip
    errors = tuple(
        FieldError(str(one.get("field") or ""), str(one.get("message") or ""))
        for one in _list(told, "errors")
        if isinstance(one, dict)
    )
    return _KINDS.get(status, Refused)(detail, status, errors, code, enhanced, number)


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _list(told: Mapping[str, Any], name: str) -> list[Any]:
    found = told.get(name)
    return found if isinstance(found, list) else []


def _seconds(text: str) -> float | None:
    """Of Retry-After; its other form, a date, no relay writes (RFC 9110 §10.2.3)."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 9 else None


@dataclass
class Tries:
    """How often one call is tried, and with which pauses. `patience`: seconds over all of them."""

    call: Call[Any]
    attempts: int
    patience: float
    began: float
    made: int = 0

    def pause(self, error: Unavailable, now: float, lot: float) -> float:
        """Seconds until the next try. `lot`: 0 … 1. Raises the error where there is none."""
        self.made += 1
        error.safe = self.call.safe or not error.sent
        error.key = self.call.key
        grown = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (self.made - 1)) * (0.5 + lot / 2)
        pause: float = max(grown, error.retry_after or 0.0)
        if not error.safe or self.made >= self.attempts or now + pause - self.began > self.patience:
            raise error
        return pause
