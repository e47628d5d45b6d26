"""Handing a batch to the relay: POST /v1/messages/batch, over its UNIX socket or TCP.

Tells apart what the relay took nothing of for certain, and what it may have taken. What comes back is bounded and checked.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

TIMEOUT = 60.0  # seconds for one step; the relay answers once the batch is on its disk
MAX_ANSWER = 32 << 20
PATH = "/v1/messages/batch"

Submit = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]  # raises Waits, Refused


class Waits(Exception):
    """Not now. `certain`: nothing of the batch was taken. `after`: seconds that the relay asked for."""

    def __init__(self, why: str, *, certain: bool, after: float = 0.0) -> None:
        super().__init__(why)
        self.certain, self.after = certain, after


class Refused(Exception):
    """Not like this, ever: the request as a whole is no good."""


class Submitter:
    """`Submit` for one relay. Either `path`, of its socket, or `url`, such as http://127.0.0.1:2580, and `token`.

    Raises ValueError for a URL that is none.
    """

    def __init__(self, *, path: str = "", url: str = "", token: str = "") -> None:
        parts = urlsplit(url)
        if not path and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("the relay's URL is such as http://127.0.0.1:2580")
        if parts.username or parts.password:
            raise ValueError("the relay's URL has no user in it; the token says who asks")
        self._path, self._parts, self._prefix = path, parts, parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.where = path or f"{parts.scheme}://{parts.netloc}"

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        connection = self._connection()
        try:
            try:
                connection.connect()
            except OSError as error:
                raise Waits(f"{self.where}: {_said(error)}", certain=True) from None
            body = json.dumps({"messages": messages}, separators=(",", ":")).encode()
            try:
                connection.request("POST", self._prefix + PATH, body, self._headers)
                answer = connection.getresponse()
                content = answer.read(MAX_ANSWER + 1)
            except (OSError, http.client.HTTPException) as error:
                raise Waits(f"{self.where}: {_said(error)}", certain=False) from None
        finally:
            connection.close()
        return self._results(answer, content, len(messages))

    def _connection(self) -> http.client.HTTPConnection:
        if self._path:
            return _Unix(self._path)
        host, port = str(self._parts.hostname), self._parts.port
        if self._parts.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=context)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT)

    def _results(self, answer: http.client.HTTPResponse, content: bytes, count: int) -> Sequence[Mapping[str, Any]]:
        try:
            found = json.loads(content) if len(content) <= MAX_ANSWER else None
        except ValueError:
            found = None
        told = found if isinstance(found, dict) else {}
        if answer.status in (200, 202):
            results = told.get("results")
            if isinstance(results, list) and len(results) == count and all(_is_result(r) for r in results):
                return results
            raise Waits(f"{self.where} answered {answer.status}, and not with a result for each", certain=False)
        why = f"{self.where} answered {answer.status}: {str(told.get('detail') or answer.reason)[:500]}"
        if answer.status in (400, 413, 422):
            raise Refused(why)
        # The relay's own word, by its request id: someone between may say 503 of a request that went through.
        certain = answer.status in (401, 403, 404, 405, 429) or (answer.status == 503 and "request_id" in told)
        raise Waits(why, certain=certain, after=_seconds(answer.headers.get("Retry-After", "")))


class _Unix(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def _is_result(result: object) -> bool:
    return isinstance(result, dict) and type(result.get("status")) is int


def _said(error: Exception) -> str:
    return str(getattr(error, "strerror", "") or error or "no answer")


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
