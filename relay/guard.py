"""A request to a URL that others may have a say in: it leads to no address that its configuration does not allow.

The guard stands where the connection is made: each socket is made for one address, and for none that may not be dialled.
Whatever form a host is written in, and whatever a name server answers the second time, that address is the one that counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import idna

from relay import https
from relay.certificate import trusted
from relay.policy.networks import may_dial, parse

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

MOST = 64 * 1024  # bytes of an answer that are read
MOST_LOOKUPS = 64  # threads that wait for the system's resolver
_WRITTEN = re.compile(r"[!-~]+")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,253}", re.ASCII)


class NotAllowed(https.Unreachable):
    """It leads to where it must not; no connection was made."""


def check(url: str, *, allow_private: bool) -> str:
    """The URL as it is requested, its host in ASCII (RFC 5891, with the mapping of UTS 46). Raises ValueError in words.

    `http://` only with `allow_private`, and then to addresses of local networks alone: nothing goes to the Internet in clear.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("expected a URL such as https://crm.example.com/mail") from None
    if parts.scheme not in ("https", "http") or not host:
        raise ValueError("expected a URL such as https://crm.example.com/mail")
    if "@" in parts.netloc:
        raise ValueError("a login in a URL would be seen by everybody on the way to it; use `headers`, or `secret`")
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode()
        except idna.IDNAError:
            raise ValueError("its host is no name that there can be") from None
    if "%" in host:
        raise ValueError("the zone of an address leads to one link of this machine; name a host, or an address without")
    if not (parse(host) if ":" in host or "[" in parts.netloc else _NAME.fullmatch(host)):
        raise ValueError("its host is no name that there can be")
    literal = f"[{host}]" if ":" in host else host
    bound = literal if port is None else f"{literal}:{port}"
    made = f"{parts.scheme}://{bound}{parts.path or '/'}{f'?{parts.query}' if parts.query else ''}"
    # urlsplit drops tabs and line ends without a word, as browsers do; here they are refused.
    as_written = url.replace(parts.netloc, "", 1) if parts.netloc in url else url
    if not _WRITTEN.fullmatch(made) or not _WRITTEN.fullmatch(as_written) or set("\\#") & set(url):
        raise ValueError("a URL has no spaces, control characters, backslashes or fragments; percent-encode them")
    if parts.scheme == "http" and not allow_private:
        raise ValueError(
            "nothing goes in clear: use https; `http` is for a private network, with `allow_private: true`"
        )
    clear = parts.scheme == "http"
    if parse(host) and not may_dial(host, allow_private=allow_private, clear=clear):
        raise ValueError(_astray([host], allow_private=allow_private, clear=clear))
    return made


def _astray(where: Iterable[str], *, allow_private: bool, clear: bool) -> str:
    hint = "" if allow_private else "; `allow_private: true` lets it lead to private ones"
    why = "no address of a private network, which http is for" if clear else "no address of the public network"
    return f"it leads to {', '.join(sorted(where))}, {why}{hint}"


async def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    seconds: float = 10.0,
    most: int = MOST,
    allow_private: bool = False,
    ca: Path | None = None,
    resolver: AbstractResolver | None = None,
) -> https.Answer:
    """`seconds` for all of it. Any status is an answer, a redirect too; the body is cut at `most` bytes.

    `allow_private`: addresses of this machine and of private networks too. `ca`: whom it trusts beside the system's.
    `resolver`: whom to ask for addresses, if not the system. Raises Unanswered, Unreachable, NotAllowed.
    """
    async with _guarded(url, allow_private, ca) as (url, context, sockets):
        return await https.post(
            url, body, headers, context, seconds=seconds, most=most, resolver=resolver or _names(), sockets=sockets
        )


async def get(
    url: str,
    headers: Mapping[str, str],
    *,
    seconds: float,
    most: int,
    allow_private: bool = False,
    ca: Path | None = None,
    resolver: AbstractResolver | None = None,
) -> https.Answer:
    """As `post`; but an answer of more than `most` bytes is none (TooLong)."""
    async with _guarded(url, allow_private, ca) as (url, context, sockets):
        return await https.ask(
            url, context, accept="*/*", seconds=seconds, most=most, also=headers,
            resolver=resolver or _names(), sockets=sockets,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def _guarded(
    url: str, allow_private: bool, ca: Path | None
) -> AsyncIterator[tuple[str, ssl.SSLContext, Callable[..., socket.socket]]]:
    """The URL as it is requested, whom it trusts, and what makes its sockets: for no address that may not be dialled."""
    try:
        url = check(url, allow_private=allow_private)
    except ValueError as error:
        raise NotAllowed(str(error)) from None
    try:
        context = await asyncio.to_thread(trusted, ca)
    except OSError as error:
        raise https.Unreachable(f"its certificates can't be read: {error.strerror or error}") from None
    clear = url.startswith("http:")
    refused: list[str] = []

    def sockets(found: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, where = found
        zone = where[3] if len(where) > 3 else 0
        if zone or not may_dial(where[0], allow_private=allow_private, clear=clear):
            refused.append(where[0])
            raise OSError("not an address that may be dialled")
        return socket.socket(family, kind, protocol)

    try:
        yield url, context, sockets
    except https.Unreachable:
        if not refused:
            raise
        raise NotAllowed(_astray(set(refused), allow_private=allow_private, clear=clear)) from None


def _names() -> AbstractResolver:
    """The system's resolver, each question on a thread of its own: a name server that is dead holds up nobody else's work."""
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Names(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            """Those without a zone. Raises OSError."""
            found = [
                ResolveResult(
                    hostname=host, host=where[0], port=port, family=kind, proto=protocol, flags=socket.AI_NUMERICHOST
                )
                for kind, _, protocol, _, where in await _lookup(host, family)
                if len(where) < 4 or not where[3]
            ]
            if not found:
                raise OSError("it has no address that could be dialled")
            return found

        async def close(self) -> None:
            """There is nothing to close."""

    return Names()


_asking: set[Thread] = set()


async def _lookup(host: str, family: socket.AddressFamily) -> list[Any]:
    """As getaddrinfo(3) has it. Raises OSError."""
    if len(_asking) >= MOST_LOOKUPS:
        raise OSError("the system's resolver does not answer")
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[list[Any]] = loop.create_future()

    def tell(found: list[Any] | OSError) -> None:
        if answered.done():
            return  # nobody waits any more
        if isinstance(found, OSError):
            answered.set_exception(found)
        else:
            answered.set_result(found)

    def ask() -> None:
        found: list[Any] | OSError
        try:
            found = socket.getaddrinfo(host, 0, family=family, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        except OSError as error:
            found = error
        except UnicodeError:
            found = OSError("its host is no name that there can be")
        _asking.discard(thread)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, found)

    thread = Thread(target=ask, name="names", daemon=True)
    _asking.add(thread)
    thread.start()
    return await answered
