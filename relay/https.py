"""One request over HTTPS: to that address alone, for a bounded time, and a bounded answer.

No redirect is followed, no proxy of the environment used, no cookie kept. An answer of any status is an answer.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay import __version__
from relay.reply import clean

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver


class Unanswered(Exception):
    """No answer that can be read; the text says why, and quotes nothing of what was sent."""


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
    resolver: AbstractResolver | None = None,
) -> Answer:
    """GET, or POST of a `form`. `seconds` for all of it; `most`: bytes of a body; `resolver`: whom to ask for addresses, if not
    the system. Raises Unanswered."""
    import aiohttp  # for those alone who ask

    try:
        async with (
            asyncio.timeout(seconds),
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, force_close=True, use_dns_cache=False, resolver=resolver),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            ) as session,
            session.request(
                "GET" if form is None else "POST",
                url,
                data=None if form is None else dict(form),
                allow_redirects=False,
                headers={"Accept": accept, "Accept-Encoding": "identity", "User-Agent": f"relay/{__version__}"},
            ) as response,
        ):
            return Answer(response.status, response.headers, await _read(response, most))
    except TimeoutError:
        raise Unanswered(f"no answer within {seconds:.0f} s") from None
    except aiohttp.ClientConnectorCertificateError as error:
        raise Unanswered(f"its certificate is not accepted: {_words(error.certificate_error)}") from None
    except aiohttp.ClientConnectorError as error:
        raise Unanswered(f"it cannot be reached: {_words(error.os_error)}") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        # Its text may hold what was sent or came; its name is enough.
        raise Unanswered(f"the connection failed: {type(error).__name__}") from None


async def _read(response: Any, most: int) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_chunked(16384):
        size += len(part)
        if size > most:
            raise Unanswered(f"its answer, of status {response.status}, is longer than {most} bytes")
        parts.append(part)
    return b"".join(parts)


def _words(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    return clean(getattr(error, "strerror", None) or str(error) or type(error).__name__)
