"""Handing a batch to the relay: POST /v1/messages/batch, by the connections of `relay.client`.

Tells apart what the relay took nothing of for certain, and what it may have taken. What comes back is checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from relay.client.errors import RelayError, Unavailable
from relay.client.pool import Pool
from relay.client.where import where
from relay.client.wire import Answer, Request, request

TIMEOUT = 120.0  # seconds; the relay answers once the batch is on its disk
ASK = 30.0
PATH = "/v1/messages/batch"
KEYS = "/v1/idempotency"

Submit = Callable[[Sequence[Mapping[str, Any]]], Sequence[Mapping[str, Any]]]  # raises Waits, Refused


class Waits(Exception):
    """Not now. `certain`: nothing of the batch was taken. `after`: seconds that the relay asked for."""

    def __init__(self, why: str, *, certain: bool, after: float = 0.0) -> None:
        super().__init__(why)
        self.certain, self.after = certain, after


class Refused(Exception):
    """Not like this, ever: the request as a whole is no good."""


class Submitter:
    """`Submit` for one relay: `url` as http://127.0.0.1:2580 or unix:/run/relay/admin.sock, else RELAY_URL; `token` or RELAY_TOKEN.

    `allow_http` as of `relay.client.Relay`. Raises ValueError for a URL or a token that is none, or is not to go there.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | None = None,
        allow_http: bool | None = None,
    ) -> None:
        self.where = where(url, token, ca, allow_http=allow_http)
        self._pool = Pool(self.where)

    def __call__(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        try:
            asked = request("POST", PATH, {"messages": messages})
        except (ValueError, TypeError, RecursionError) as error:  # in a row that somebody wrote by hand: NaN, for one
            raise Refused(f"it cannot be written as JSON: {error}") from None
        return self._results(self._answer(asked, TIMEOUT), len(messages))

    def keys_kept(self) -> float:
        """Seconds that the relay knows a key after the end of its message. Raises Waits."""
        try:
            answer = self._answer(request("GET", KEYS), ASK)
        except Waits as waits:  # nothing was submitted yet, whatever became of the question
            raise Waits(str(waits), certain=True, after=waits.after) from None
        told = _object(answer)
        kept = told.get("keep")
        if answer.status == 200 and isinstance(kept, int | float) and not isinstance(kept, bool):
            return float(kept)
        if answer.status in (200, 404, 405):
            why = f"{self.where} does not say for how long it knows keys (GET {KEYS}): it is no relay, or older than this reader"
            raise Waits(why, certain=True)
        raise Waits(self._why(answer, told), certain=True, after=_seconds(answer.retry_after))

    def _answer(self, asked: Request, timeout: float) -> Answer:
        try:
            return self._pool.exchange(asked, timeout)
        except RelayError as error:
            # What is no Unavailable came to no connection: no right to the socket, a certificate that is not trusted.
            raise Waits(str(error), certain=not isinstance(error, Unavailable) or not error.sent) from None
        finally:
            self._pool.close()  # one that went stale between two batches would leave the second one in doubt

    def _results(self, answer: Answer, count: int) -> Sequence[Mapping[str, Any]]:
        told = _object(answer)
        if answer.status in (200, 202):
            results = told.get("results")
            if isinstance(results, list) and len(results) == count and all(_is_result(r) for r in results):
                return results
            raise Waits(f"{self.where} answered {answer.status}, and not with a result for each", certain=False)
        why = self._why(answer, told)
        # The relay's own word, by its request id: someone between may say 503 of a request that went through, and a proxy or
        # a wrong port 400 of any request. But 413 is about this one, whoever says it.
        own = "request_id" in told
        if answer.status == 413 or (own and answer.status in (400, 422)):
            raise Refused(why)
        certain = answer.status in (400, 401, 403, 404, 405, 429) or (answer.status == 503 and own)
        raise Waits(why, certain=certain, after=_seconds(answer.retry_after))

    def _why(self, answer: Answer, told: Mapping[str, Any]) -> str:
        return f"{self.where} answered {answer.status}: {str(told.get('detail') or _phrase(answer.status))[:500]}"


def _object(answer: Answer) -> Mapping[str, Any]:
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_result(result: object) -> bool:
    return isinstance(result, dict) and type(result.get("status")) is int


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "no word that we know"


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0
