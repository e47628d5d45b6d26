"""`AsyncRelay`: the client for programs with an event loop. The methods of `Relay`, to be awaited; of one loop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar, Unpack

import aiohttp
from yarl import URL

from relay import clock
from relay.client import calls
from relay.client.calls import Bulk, Changed, EventFilters, Filters, Outcome, Receipt, Row
from relay.client.errors import RelayError, Unavailable
from relay.client.message import Addresses, Message
from relay.client.pool import NO_HTTP, unreachable
from relay.client.where import Where, where
from relay.client.wire import LARGEST, Answer, Call, Page, Request, Tries

T = TypeVar("T")


class AsyncRelay:
    """As `Relay`. `async with`, or `close` at the end; connections open when they are first needed."""

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
        self._where: Where = where(url, token, ca, allow_http=allow_http)
        self._context = self._where.context()
        self._session: aiohttp.ClientSession | None = None
        self.timeout, self.attempts, self.patience = timeout, attempts, patience

    async def __aenter__(self) -> AsyncRelay:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncRelay({str(self._where)!r})"

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _exchange(self, request: Request, timeout: float) -> Answer:
        """Raises Unavailable; RelayError where a later try will not do."""
        where, session = self._where, self._opened()
        base = "http://localhost" if where.socket else str(where)
        try:
            async with session.request(
                request.method, URL(base + request.path, encoded=True), data=request.body,
                headers=request.headers(where.token), allow_redirects=False, timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:  # fmt: skip
                parts, size = list[bytes](), 0
                async for part in response.content.iter_any():
                    parts.append(part)
                    size += len(part)
                    if size > LARGEST:
                        raise RelayError(f"{where}: the answer is larger than {LARGEST} bytes")
                told = response.headers
                return Answer(
                    response.status, b"".join(parts), told.get("Retry-After", ""), told.get("X-Request-Id", "")
                )
        except aiohttp.ClientConnectorCertificateError as error:
            raise unreachable(where, error.certificate_error) from error  # type: ignore[arg-type]
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise unreachable(where, getattr(error, "os_error", None) or OSError(str(error))) from error
        except aiohttp.ClientResponseError as error:  # of its form: no status makes one
            raise Unavailable(f"{where}: {NO_HTTP}") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{where}: {str(error) or 'timed out'}") from error

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            path = self._where.socket
            connector = aiohttp.UnixConnector(path) if path else aiohttp.TCPConnector(ssl=self._context or True)
            self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
        return self._session

    async def _do(self, call: Call[T]) -> T:
        tries = Tries(call, self.attempts, self.patience, clock.monotonic())
        while True:
            try:
                return call.result(await self._exchange(call.request, self.timeout + call.wait))
            except Unavailable as error:
                pause = tries.pause(error, clock.monotonic(), random.random())
            except RelayError as error:
                error.key = call.key
                raise
            await asyncio.sleep(pause)

    async def _pages(self, call: Call[Page[T]] | None) -> AsyncIterator[T]:
        while call is not None:
            page = await self._do(call)
            for item in page.items:
                yield item
            call = page.following

    # -- submit

    async def send(self, message: Message) -> Receipt:
        return await self._do(calls.submit(message))

    async def send_raw(self, raw: bytes, *, sender: str = "", recipients: Addresses = (), **given: Any) -> Receipt:
        return await self.send(Message(raw=raw, from_=sender, to=recipients, **given))

    async def send_each(self, messages: Iterable[Message]) -> AsyncIterator[Outcome]:
        bulk = Bulk(messages)
        for keys, call in bulk.batches():
            try:
                found = bulk.lost(keys) or await self._do(call)
            except RelayError as error:
                found = bulk.failed(keys, error)
            else:
                bulk.taken()
            for one in found:
                yield one

    async def send_many(self, messages: Iterable[Message]) -> list[Outcome]:
        return [one async for one in self.send_each(messages)]

    # -- look

    async def message(self, queue_id: str) -> Row:
        return await self._do(calls.message(queue_id))

    def find(self, **filters: Unpack[Filters]) -> AsyncIterator[Row]:
        return self._pages(calls.find(filters))

    def events(
        self,
        after: int | str | None = None,
        *,
        since: datetime | float | None = None,
        follow: bool = False,
        **filters: Unpack[EventFilters],
    ) -> AsyncIterator[Row]:
        return self._pages(calls.events(filters, after, since, follow=follow))

    async def stats(self) -> Row:
        return await self._do(calls.stats())

    async def explain(self, to: str, **asked: Any) -> Row:
        return await self._do(calls.explain({"to": to} | {name.rstrip("_"): value for name, value in asked.items()}))

    async def reports(self, consumer: str, *, wait: float = 0.0, **filters: Unpack[EventFilters]) -> AsyncReports:
        call = calls.reports(consumer, filters, wait)
        rows, cursor, more = await self._do(call)
        while more and not rows:  # of so many, none was for this consumer
            await self.acknowledge(consumer, cursor)
            rows, cursor, more = await self._do(call)
        return AsyncReports(rows, cursor, more, consumer, self)

    async def acknowledge(self, consumer: str, cursor: int) -> None:
        await self._do(calls.acknowledge(consumer, cursor))

    # -- act

    async def retry(self, *ids: str, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return await self._do(calls.act("retry", ids, filters, dry_run=dry_run))

    async def hold(self, *ids: str, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return await self._do(calls.act("hold", ids, filters, dry_run=dry_run))

    async def release(self, *ids: str, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return await self._do(calls.act("release", ids, filters, dry_run=dry_run))

    async def cancel(self, *ids: str, dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return await self._do(calls.act("cancel", ids, filters, dry_run=dry_run))

    async def reroute(self, *ids: str, to: str = "", dry_run: bool = False, **filters: Unpack[Filters]) -> Changed:
        return await self._do(calls.act("reroute", ids, filters, dry_run=dry_run, to=to))

    # -- suppressions

    async def suppress(
        self, *addresses: str, scope: str = "", evidence: str = "", until: datetime | None = None
    ) -> Sequence[Row]:
        return await self._do(calls.suppress(addresses, scope, evidence, until))

    async def unsuppress(self, *addresses: str, scope: str = "") -> int:
        return await self._do(calls.unsuppress(addresses, scope))

    def suppressions(
        self, address: str = "", *, scope: str = "", why: str = "", source: str = ""
    ) -> AsyncIterator[Row]:
        asked: Mapping[str, str] = {"address": address, "scope": scope, "why": why, "source": source}
        return self._pages(calls.suppressions(asked))


@dataclass(frozen=True)
class AsyncReports(Sequence[Row]):
    rows: Sequence[Row]
    cursor: int
    more: bool
    consumer: str
    relay: AsyncRelay

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    async def ack(self) -> None:
        await self.relay.acknowledge(self.consumer, self.cursor)
