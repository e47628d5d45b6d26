"""What can be asked of a relay, each as a `Call`. Both clients perform these; paths and shapes are known here alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeAlias, TypedDict
from urllib.parse import quote

from relay.client.errors import Refused, RelayError, Unavailable
from relay.client.message import Message
from relay.client.wire import Call, Page, Request, refusal, request

Row: TypeAlias = dict[str, Any]  # as docs/api.md tells it; a later relay may say more
BATCH = 1000  # messages of a request, and rows of a page
BATCH_BYTES = 8 << 20  # of a batch, where it is of more than one message
WAIT = 25.0  # seconds that a follower waits at the relay until something comes


class Filters(TypedDict, total=False):
    """Which mail. Texts are globs, but for `key` and `id`, which are exact."""

    id: str | Sequence[str]
    key: str
    tag: str
    sender: str
    recipient: str
    domain: str
    egress: str
    route: str
    class_: str
    user: str
    state: str | Sequence[str]
    error: str
    older_than: float | timedelta


class EventFilters(TypedDict, total=False):
    kind: str | Sequence[str]
    message: str
    tag: str
    class_: str
    user: str
    tenant: str
    sender: str
    recipient: str
    domain: str
    egress: str


@dataclass(frozen=True)
class Recipient:
    recipient: str
    state: str
    why: str


@dataclass(frozen=True)
class Receipt:
    """The relay has it, on its disk."""

    queue_id: str
    message_id: str
    repeated: bool  # it had it already, by the same key
    recipients: tuple[Recipient, ...]
    key: str  # the idempotency key


@dataclass(frozen=True)
class Changed:
    """What a verb did, or would do with `dry_run`."""

    verb: str
    recipients: int
    dry_run: bool
    sample: tuple[str, ...]
    skipped: tuple[str, ...]  # why each message that was named was left as it is
    notes: tuple[str, ...]


# -- submission


def submit(message: Message) -> Call[Receipt]:
    message = message.keyed()
    return Call(
        request("POST", "/v1/messages", message.wire()), lambda told: _receipt(told, message.key), key=message.key
    )


def _receipt(told: Mapping[str, Any], key: str) -> Receipt:
    recipients = tuple(Recipient(one["recipient"], one["state"], one["why"]) for one in told["recipients"])
    return Receipt(str(told["queue_id"]), str(told["message_id"]), bool(told["repeated"]), recipients, key)


Outcome: TypeAlias = Receipt | RelayError


class Bulk:
    """Many messages in batches. One result for each, in their order; a message at a time is asked for."""

    def __init__(self, messages: Iterable[Message]) -> None:
        self._messages = iter(messages)
        self._lost: Unavailable | None = None  # why nothing is tried any more
        self._accepted = False

    def batches(self) -> Iterator[tuple[Sequence[str], Call[list[Outcome]]]]:
        """(keys, the call) of each."""
        keys, texts, size = list[str](), list[str](), 0
        for message in map(Message.keyed, self._messages):
            text = json.dumps(message.wire(), allow_nan=False)
            if keys and (len(keys) == BATCH or size + len(text) > BATCH_BYTES):
                yield keys, _batch(keys, texts)
                keys, texts, size = [], [], 0
            keys.append(message.key)
            texts.append(text)
            size += len(text)
        if keys:
            yield keys, _batch(keys, texts)

    def taken(self) -> None:
        self._accepted = True

    def failed(self, keys: Sequence[str], error: RelayError) -> list[Outcome]:
        """The whole batch failed. Raises the error where it is a refusal and nothing was accepted before."""
        if isinstance(error, Unavailable):
            self._lost = error
        elif not self._accepted:
            raise error
        return self.lost(keys) or [error] * len(keys)

    def lost(self, keys: Sequence[str]) -> list[Outcome]:
        """What becomes of messages after the relay went away: each is safe to send again with its key."""
        error = self._lost
        return [_unavailable(error, key) for key in keys] if error is not None else []


def _batch(keys: Sequence[str], texts: Sequence[str]) -> Call[list[Outcome]]:
    def read(told: Mapping[str, Any]) -> list[Outcome]:
        return [_outcome(one, key) for one, key in zip(told["results"], keys, strict=True)]

    body = f'{{"messages": [{", ".join(texts)}]}}'.encode()
    return Call(Request("POST", "/v1/messages/batch", body), read)


def _outcome(told: Mapping[str, Any], key: str) -> Outcome:
    if told["status"] < 300:
        return _receipt(told, key)
    error = refusal(told, told["status"])
    error.key = key
    if isinstance(error, Unavailable):
        error.safe = True
    return error


def _unavailable(error: Unavailable, key: str) -> Unavailable:
    """Each message has its own: its key is what makes it safe."""
    made = Unavailable(
        error.detail, sent=error.sent, status=error.status, retry_after=error.retry_after, request_id=error.request_id
    )
    made.safe, made.key = True, key
    return made


# -- look


def message(number: str) -> Call[Row]:
    return Call(request("GET", f"/v1/messages/{quote(number, safe='')}"), _row)


def find(filters: Filters, after: str = "") -> Call[Page[Row]]:
    def read(told: Mapping[str, Any]) -> Page[Row]:
        return Page(list(told["messages"]), find(filters, told["next"]) if told["next"] else None)

    query = _query(filters) | {"limit": str(BATCH)} | ({"after": after} if after else {})
    return Call(request("GET", "/v1/messages", query=query), read)


def events(
    filters: EventFilters, after: int | str | None, since: datetime | float | None, *, follow: bool
) -> Call[Page[Row]]:
    """Those behind `after`, or since a time; with `follow` there is always a following page, for which the relay waits."""

    def read(told: Mapping[str, Any]) -> Page[Row]:
        more = follow or told["more"]
        return Page(list(told["events"]), events(filters, int(told["next"]), None, follow=follow) if more else None)

    query = _query(filters) | {"limit": "500"}
    if after is not None:
        query["after"] = str(after)
    elif since is not None:
        query["since"] = since.isoformat() if isinstance(since, datetime) else str(since)
    wait = WAIT if follow else 0.0
    return Call(request("GET", "/v1/events", query=query | ({"wait": f"{wait:g}"} if wait else {})), read, wait=wait)


def stats() -> Call[Row]:
    return Call(request("GET", "/v1/stats"), _row)


def explain(asked: Mapping[str, Any]) -> Call[Row]:
    return Call(request("POST", "/v1/explain", dict(asked)), _row)


# -- delivery reports


def reports(consumer: str, filters: EventFilters, wait: float) -> Call[tuple[list[Row], int, bool]]:
    """(reports, the cursor behind them, whether there are more)."""

    def read(told: Mapping[str, Any]) -> tuple[list[Row], int, bool]:
        return list(told["reports"]), int(told["cursor"]), bool(told["more"])

    query = _query(filters) | ({"wait": f"{wait:g}"} if wait else {})
    return Call(request("GET", _consumer(consumer), query=query), read, wait=wait)


def acknowledge(consumer: str, cursor: int) -> Call[None]:
    return Call(request("POST", _consumer(consumer), {"acknowledged": cursor}), lambda told: None)


def _consumer(name: str) -> str:
    return f"/v1/reports/{quote(name, safe='')}"


# -- act


def act(verb: str, ids: Sequence[str], filters: Filters, *, dry_run: bool, to: str = "") -> Call[Changed]:
    """A verb on a selection. Raises ValueError for none: all mail is `sender="*"`, in so many words."""
    if ids and "id" in filters:
        raise ValueError(f"{verb}: ids as arguments or as a filter, not both")
    wanted = _query(filters) | ({"id": ",".join(ids)} if ids else {})
    if not wanted:
        raise ValueError(f"{verb} wants queue ids or a filter; all mail is sender='*'")

    def read(told: Mapping[str, Any]) -> Changed:
        lists = (tuple(map(str, told[name])) for name in ("sample", "skipped", "notes"))
        return Changed(str(told["verb"]), int(told["recipients"]), bool(told["dry_run"]), *lists)

    body = {"filter": wanted, "dry_run": dry_run} | ({"to": to} if to else {})
    return Call(request("POST", f"/v1/queue/{verb}", body), read, safe=dry_run)


# -- suppressions


def suppressions(filters: Mapping[str, str], after: str = "") -> Call[Page[Row]]:
    def read(told: Mapping[str, Any]) -> Page[Row]:
        return Page(list(told["suppressions"]), suppressions(filters, told["next"]) if told["next"] else None)

    query = {k: v for k, v in filters.items() if v} | {"limit": str(BATCH)} | ({"after": after} if after else {})
    return Call(request("GET", "/v1/suppressions", query=query), read)


def suppress(addresses: Sequence[str], scope: str, evidence: str, until: datetime | None) -> Call[list[Row]]:
    """Raises Refused where one of them is no address: none of the others is lost by that, for they are listed."""
    given = {"scope": scope, "evidence": evidence, "until": until.timestamp() if until else None}
    said = {name: value for name, value in given.items() if value}

    def read(told: Mapping[str, Any]) -> list[Row]:
        if told["refused"]:
            first = told["refused"][0]
            raise Refused(f"{addresses[first['number']]}: {first['why']}", 400)
        return [*told["listed"], *told["kept"]]

    return Call(request("POST", "/v1/suppressions", {"entries": [{"address": one} | said for one in addresses]}), read)


def unsuppress(addresses: Sequence[str], scope: str) -> Call[int]:
    """How many entries there were."""
    body = {"addresses": list(addresses)} | ({"scope": scope} if scope else {})
    return Call(request("POST", "/v1/suppressions/remove", body), lambda told: int(told["count"]), safe=False)


def _row(told: Mapping[str, Any]) -> Row:
    return dict(told)


def _query(filters: Mapping[str, Any]) -> dict[str, str]:
    """As the relay names them; what is None is not asked."""
    return {name.rstrip("_"): _word(value) for name, value in filters.items() if value not in (None, "", ())}


def _word(value: Any) -> str:
    if isinstance(value, timedelta):
        return str(value.total_seconds())
    return ",".join(map(str, value)) if isinstance(value, list | tuple | set | frozenset) else str(value)
