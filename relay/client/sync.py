"""`Relay`: the client for programs without an event loop. Safe to share between threads, and usable after a fork."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar, Unpack

from relay import clock
from relay.client import calls
from relay.client.calls import Bulk, Changed, EventFilters, Filters, Outcome, Receipt, Row
from relay.client.errors import RelayError, Unavailable
from relay.client.message import Addresses, Message
from relay.client.pool import Pool
from relay.client.where import where
from relay.client.wire import Call, Page, Tries

T = TypeVar("T")


class Relay:
    """`Relay("http://127.0.0.1:2580", token=…)`, `Relay("unix:/run/relay/admin.sock")`, or from RELAY_URL and RELAY_TOKEN.

    What fails for now is tried again, with growing pauses, where twice does no harm: what only reads, and mail, which has an
    idempotency key always. Every method raises `RelayError`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        token: str | None = None,
        ca: str | None = None,
        allow_http: bool | None = None,
        timeout: float = 30.0,
        attempts: int = 4,
        patience: float = 30.0,
    ) -> None:
        """`allow_http`: a token may go by http to another machine, where all between can read it; default: RELAY_ALLOW_HTTP.
        `timeout`: seconds for one try; `attempts`: tries of one call; `patience`: seconds until the last of them begins."""
        self._pool = Pool(where(url, token, ca, allow_http=allow_http))
        self.timeout, self.attempts, self.patience = timeout, attempts, patience

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Relay({str(self._pool.where)!r})"

    def close(self) -> None:
        """Closes what is idle; it may be used again all the same."""
        self._pool.close()

    def _do(self, call: Call[T]) -> T:
        tries = Tries(call, self.attempts, self.patience, clock.monotonic())
        while True:
            try:
                return call.result(self._pool.exchange(call.request, self.timeout + call.wait))
            except Unavailable as error:
                pause = tries.pause(error, clock.monotonic(), random.random())
            except RelayError as error:
                error.key = call.key
                raise
            time.sleep(pause)

    def _pages(self, call: Call[Page[T]] | None) -> Iterator[T]:
        while call is not None:
            page = self._do(call)
            yield from page.items
            call = page.following

    # -- submit

    def send(self, message: Message) -> Receipt:
        """Returns when the relay has it on its disk."""
        return self._do(calls.submit(message))

    def send_raw(self, raw: bytes, *, sender: str = "", recipients: Addresses = (), **given: Any) -> Receipt:
        """A whole message (RFC 5322). Without `sender` and `recipients` its header says them. `given`: fields of `Message`."""
        return self.send(Message(raw=raw, from_=sender, to=recipients, **given))

    def send_each(self, messages: Iterable[Message]) -> Iterator[Outcome]:
        """As `send_many`, of as many messages as come: a batch at a time lies in memory."""
        bulk = Bulk(messages)
        for keys, call in bulk.batches():
            try:
                found = bulk.lost(keys) or self._do(call)
            except RelayError as error:
                found = bulk.failed(keys, error)
            else:
                bulk.taken()
            yield from found

    def send_many(self, messages: Iterable[Message]) -> list[Outcome]:
        """A `Receipt` or an error for each, in their order; a bad one keeps no other back.

        Raises only where the first batch is refused as a whole, such as for its token: then nothing was accepted.
        """
        return list(self.send_each(messages))

    # -- look

    def message(self, queue_id: str) -> Row:
        """One message with its recipients, attempts and story."""
        return self._do(calls.message(queue_id))

    def find(self, **filters: Unpack[Filters]) -> Iterator[Row]:
        """Messages, page by page."""
        return self._pages(calls.find(filters))

    def events(
        self,
        after: int | str | None = None,
        *,
        since: datetime | float | None = None,
        follow: bool = False,
        **filters: Unpack[EventFilters],
    ) -> Iterator[Row]:
        """Behind `after`, the `id` of an event (`"end"`: from now on), or since a time. `follow`: it waits for what comes."""
        return self._pages(calls.events(filters, after, since, follow=follow))

    def stats(self) -> Row:
        return self._do(calls.stats())

    def explain(self, to: str, **asked: Any) -> Row:
        """What would become of a message to this recipient; `from_`, `headers`, `class_` and so on as `relay explain` has them."""
        return self._do(calls.explain({"to": to} | {name.rstrip("_"): value for name, value in asked.items()}))

    def reports(self, consumer: str, *, wait: float = 0.0, **filters: Unpack[EventFilters]) -> Reports:
        """Delivery reports that this consumer has not acknowledged, the oldest first; the same again until it does.

        `wait`: seconds until there is one. `filters` select, as of `events`.
        """
        call = calls.reports(consumer, filters, wait)
        rows, cursor, more = self._do(call)
        while more and not rows:  # of so many, none was for this consumer
            self.acknowledge(consumer, cursor)
            rows, cursor, more = self._do(call)
        return Reports(rows, cursor, more, consumer, self)

    def acknowledge(self, consumer: str, cursor: int) -> None:
        self._do(calls.acknowledge(consumer, cursor))

    # -- act

    def retry(self, *ids: str, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return self._do(calls.act("retry", ids, filters, dry_run=dry_run))

    def hold(self, *ids: str, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return self._do(calls.act("hold", ids, filters, dry_run=dry_run))

    def release(self, *ids: str, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return self._do(calls.act("release", ids, filters, dry_run=dry_run))

    def cancel(self, *ids: str, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return self._do(calls.act("cancel", ids, filters, dry_run=dry_run))

    def reroute(self, *ids: str, to: str = "", dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        """`to`: an account, a pool or a route; without it the routes decide anew."""
        return self._do(calls.act("reroute", ids, filters, dry_run=dry_run, to=to))

    # -- suppressions

    def suppress(
        self, *addresses: str, scope: str = "", evidence: str = "", until: datetime | None = None
    ) -> Sequence[Row]:
        """Sends them nothing any more. `scope`: `all`, `tenant:NAME` or `class:NAME`."""
        return self._do(calls.suppress(addresses, scope, evidence, until))

    def unsuppress(self, *addresses: str, scope: str = "") -> int:
        """How many entries were taken from the list."""
        return self._do(calls.unsuppress(addresses, scope))

    def suppressions(self, address: str = "", *, scope: str = "", why: str = "", source: str = "") -> Iterator[Row]:
        """The list, page by page. `address`: a glob."""
        asked: Mapping[str, str] = {"address": address, "scope": scope, "why": why, "source": source}
        return self._pages(calls.suppressions(asked))


@dataclass(frozen=True)
class Reports(Sequence[Row]):
    """Some reports. Empty: there are none now."""

    rows: Sequence[Row]
    cursor: int
    more: bool  # there are more already
    consumer: str
    relay: Relay

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def ack(self) -> None:
        """All of these are done with: they are not given again."""
        self.relay.acknowledge(self.consumer, self.cursor)
