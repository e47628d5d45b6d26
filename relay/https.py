"""One request over HTTPS: to that address alone, for a bounded time, and a bounded answer.

No redirect is followed, no proxy of the environment used, no cookie kept. An answer of any status is an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay import __version__
from relay.reply import clean

if TYPE_CHECKING:
    from aiohttp import ClientResponse
    from aiohttp.abc import AbstractResolver


class Unanswered(Exception):
    """No answer that can be read; the text says why, and quotes nothing of what was sent."""


class TooLong(Unanswered):
    """Its answer is longer than what would be read."""


class Unreachable(Unanswered):
    """There was no connection: nothing was sent."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # whatever the case of their names
    body: bytes


async def ask(
    url: str,
    context: ssl.SSLContext,
    *,
    accept: str,
    seconds: float,
    most: int,
    form: Mapping[str, str] | None = None,
    also: Mapping[str, str] | None = None,
    resolver: AbstractResolver | None = None,
    sockets: Callable[..., socket.socket] | None = None,
) -> Answer:
    """GET, or POST of a `form`; `also`: more header fields. `seconds` for all of it; `most`: bytes of a body, a longer one is
    no answer; `resolver`: whom to ask for addresses, if not the system; `sockets`: as of `post`. Raises Unanswered."""
    data = None if form is None else dict(form)
    headers = {"Accept": accept, **(also or {})}
    async with _exchange(url, context, data, headers, seconds, resolver=resolver, sockets=sockets) as response:
        return Answer(response.status, response.headers, await _read(response, most))


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    context: ssl.SSLContext,
    *,
    seconds: float,
    most: int,
    resolver: AbstractResolver | None = None,
    sockets: Callable[..., socket.socket] | None = None,
) -> Answer:
    """POST of bytes. Once the status has come it is the answer: of its body what is there in time, `most` bytes at most.

    `sockets`: makes the socket by which an address is dialled; its OSError keeps it from that. Raises Unanswered.
    """
    async with _exchange(url, context, body, headers, seconds, resolver=resolver, sockets=sockets) as response:
        said = bytearray()
        with contextlib.suppress(TimeoutError, *_broken()):
            async for part in response.content.iter_chunked(16384):
                said += part[: most - len(said)]
                if len(said) == most:
                    break
        return Answer(response.status, response.headers, bytes(said))


def _broken() -> tuple[type[Exception], ...]:
    import aiohttp

    return aiohttp.ClientError, OSError


@contextlib.asynccontextmanager
async def _exchange(
    url: str,
    context: ssl.SSLContext,
    data: Any,
    headers: Mapping[str, str],
    seconds: float,
    *,
    resolver: AbstractResolver | None = None,
    sockets: Callable[..., socket.socket] | None = None,
) -> AsyncIterator[ClientResponse]:
    """The response once its status is there. Raises Unanswered, of what goes wrong in the block too."""
    import aiohttp  # for those alone who ask

    connector = aiohttp.TCPConnector(
        ssl=context, force_close=True, use_dns_cache=False, resolver=resolver, socket_factory=sockets
    )
    given = {"Accept-Encoding": "identity", "User-Agent": f"relay/{__version__}", **headers}
    try:
        async with (
            asyncio.timeout(seconds),
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as session,
            session.request(
                "GET" if data is None else "POST", url, data=data, allow_redirects=False, headers=given
            ) as response,
        ):
            yield response
    except TimeoutError:
        raise Unanswered(f"no answer within {seconds:.0f} s") from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise Unreachable(f"its certificate is not accepted: {_words(error.certificate_error)}") from None
    except aiohttp.InvalidURL:
        raise Unreachable("it cannot be reached: no host is written so") from None
    except aiohttp.ClientConnectorError as error:
        raise Unreachable(f"it cannot be reached: {_words(error.os_error)}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Its text may hold what was sent or came; its name is enough.
        raise Unanswered(f"the connection failed: {type(error).__name__}") from None


async def _read(response: Any, most: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_chunked(16384):
        size += len(part)
        if size > most:
            raise TooLong(f"its answer, of status {response.status}, is longer than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, OSError) and (error.errno or 0) > 0:  # asyncio's own text holds the address
        return os.strerror(error.errno or 0)
    return clean(getattr(error, "strerror", None) or str(error) or type(error).__name__)
