"""Opening a session with an upstream: name, address, banner, EHLO, TLS, login.

Promises: credentials are never sent in clear (but to loopback); a failed TLS negotiation never falls back where TLS is
wanted; a secret is read anew for each session and quoted in no error. Every failure is a `Failure` with its stage.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import aiosmtplib
from aiosmtplib.errors import (
    SMTPException,
    SMTPHeloError,
    SMTPResponseException,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)
from aiosmtplib.response import SMTPResponse

from relay.deliver import bearer
from relay.deliver.dialogue import LOST, SILENT, TOO_MANY, Dialogue
from relay.deliver.smtp import TIMEOUTS, Failure, Upstream
from relay.deliver.tls import PinMismatch, check_pin, context_for, verifies
from relay.reply import Reply, Stage, clean
from relay.secrets import SecretError, hidden
from relay.settings import Account, Tls

if TYPE_CHECKING:
    from relay.oauth.tokens import Tokens


_BIND_ADDRESS_NO_PORT = 24  # ip(7); Python has no name for it before 3.12


class Client(aiosmtplib.SMTP):
    """aiosmtplib's, kept in step with its upstream, and ended at once."""

    async def execute_command(self, *args: bytes, **limit: Any) -> SMTPResponse:
        self.in_step()
        return await super().execute_command(*args, **limit)

    def in_step(self) -> None:
        """What was said beyond the last reply would be taken for the answer to what we say next: then we don't."""
        if self.protocol is not None and self.protocol._buffer:
            self.close()
            raise SMTPServerDisconnected("upstream said more than one reply")

    def close(self) -> None:
        """A transport that is merely closed would still send what it has buffered, the final dot with it; over TLS it would
        wait half a minute for the peer's goodbye, as one session more than `connections` allows."""
        if self.transport is not None:
            cast(asyncio.WriteTransport, self.transport).abort()
        super().close()


async def connect(account: Account, hostname: str, tokens: Tokens | None = None) -> Upstream:
    """A session, greeted, encrypted and logged in as the account says. Raises Failure.

    With `tokens` that is the only way to log in. One that is refused because it ended before its time is renewed, and another
    session tries the new one, once: after a refusal some servers hang up.
    """
    if tokens is None:
        return await _reached(account, hostname, None)
    await bearer.token(tokens)  # without one nobody need be dialled
    try:
        return await _reached(account, hostname, tokens)
    except bearer.Refused as refused:
        if not await bearer.renewed(tokens, refused):
            raise
    try:
        return await _reached(account, hostname, tokens)
    except bearer.Refused as refused:
        tokens.refused(refused.token)
        raise


async def _reached(account: Account, hostname: str, tokens: Tokens | None) -> Upstream:
    try:
        return await _connect(account, hostname, account.tls, tokens)
    except NoTls as error:
        # Opportunistic and only that: RFC 3207 §4.1 lets the client go on without.
        if account.tls.mode != "opportunistic" or account.tls.pin:
            raise Failure(Stage.STARTTLS, error.reply) from None
        return await _connect(account, hostname, Tls("none"), tokens)


class NoTls(Exception):
    """TLS could not be had on this session."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


async def _connect(account: Account, hostname: str, tls: Tls, tokens: Tokens | None) -> Upstream:
    host = await _resolved(account)
    try:
        context = await asyncio.to_thread(context_for, tls) if tls.mode != "none" else None
    except (OSError, ssl.SSLError, SecretError) as error:
        raise Failure(Stage.STARTTLS, Reply(0, f"TLS set-up of account {account.name}: {error}")) from None
    sock = await _dial(host, account.port)

    async def log_in(client: Client) -> None:
        if account.username is not None:
            await _login(client, account, host, tokens)

    return await converse(account, hostname, sock, host, tls, context, log_in)


async def converse(
    account: Account,
    hostname: str,
    sock: socket.socket,
    host: str,
    tls: Tls,
    context: ssl.SSLContext | None,
    then: Callable[[Client], Awaitable[None]],
) -> Upstream:
    """A session on a connected socket: greeted, encrypted as `tls` says, and `then` what else is due before mail.

    `host`: whom the certificate must name. Raises Failure, NoTls. The socket is its own from here on.
    """
    client = Client(
        hostname=host,
        port=None,
        sock=sock,
        local_hostname=hostname,
        use_tls=tls.mode == "implicit",
        start_tls=False,
        tls_context=context,
    )
    try:
        await _greet(client, tls)
        if tls.mode in ("starttls", "opportunistic"):
            await _start_tls(client, tls)
        if tls.pin and tls.mode != "none":
            _check_pin(client, tls)
        await then(client)
    except BaseException:
        client.close()
        # Its transport closes it, unless it came to none; closed beneath a transport, its number could be another
        # connection's by the time that the transport lets go of it.
        asyncio.get_running_loop().call_later(1.0, sock.close)
        raise
    return Upstream(account, *_handed_over(client))


def _handed_over(client: Client) -> tuple[Dialogue, dict[str, str]]:
    """The wire in our hands, and what EHLO offered; aiosmtplib knows nothing of it any more."""
    extensions, transport = client.esmtp_extensions, client.transport
    if transport is None:
        raise Failure(Stage.EHLO, LOST)
    ahead = client.protocol is not None and client.protocol._buffer
    # uvloop's transports are no subclass of asyncio's.
    talk = Dialogue(cast(asyncio.Transport, transport))
    client.transport = client.protocol = None
    if ahead:
        talk.end(TOO_MANY)
    return talk, extensions


async def _resolved(account: Account) -> str:
    try:
        return await asyncio.to_thread(account.host.resolve) if account.host.kind != "plain" else account.host.target
    except SecretError as error:
        raise Failure(Stage.RESOLVE, Reply(0, str(error))) from None


async def _dial(host: str, port: int) -> socket.socket:
    """A connected socket to the first address that answers."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(TIMEOUTS[Stage.RESOLVE]):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise Failure(Stage.RESOLVE, Reply(0, f"no answer from DNS for {host}")) from None
    except (OSError, UnicodeError) as error:
        raise Failure(Stage.RESOLVE, Reply(0, f"{host}: {error}")) from None
    last = "no address"
    for family, *_, address in found:
        try:
            return await dialled(family, address)
        except OSError as error:
            last = words(error)
    raise Failure(Stage.CONNECT, Reply(0, f"{host}:{port}: {last}")) from None


async def dialled(family: socket.AddressFamily, address: tuple[Any, ...], source: str = "") -> socket.socket:
    """A connected socket. `source`: the address it leaves from. Raises OSError; `words` tells it."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if source:
            sock.setsockopt(socket.SOL_IP, _BIND_ADDRESS_NO_PORT, 1)  # else ports run out at 28,000 connections in all
            _bind(sock, source)
        async with asyncio.timeout(TIMEOUTS[Stage.CONNECT]):
            await asyncio.get_running_loop().sock_connect(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _bind(sock: socket.socket, source: str) -> None:
    """Raises OSError. Its text alone would not tell whether it is about our address or theirs."""
    try:
        sock.bind((source, 0))
    except OSError as error:
        told = OSError(f"it can't leave from {source}: {os.strerror(error.errno or 0)}")
        told.errno = error.errno
        raise told from None


def words(error: OSError) -> str:
    """Of a dial that failed. asyncio's own text names the address a second time."""
    if isinstance(error, TimeoutError) and not error.errno:
        return "connection timed out"
    return os.strerror(error.errno) if error.errno and len(error.args) > 1 else str(error)


async def _greet(client: Client, tls: Tls) -> None:
    stage = Stage.BANNER
    try:
        await client.connect(timeout=TIMEOUTS[Stage.BANNER])
        stage = Stage.EHLO
        try:
            await client.ehlo(timeout=TIMEOUTS[Stage.EHLO])
        except SMTPHeloError:
            if not client.is_connected:
                raise
            await client.helo(timeout=TIMEOUTS[Stage.EHLO])  # RFC 5321 §3.2
    except (SMTPException, OSError, ssl.SSLError) as error:
        if tls.mode == "implicit" and isinstance(error.__cause__, ssl.SSLError):
            raise Failure(Stage.STARTTLS, Reply(0, _tls_words(error.__cause__))) from None
        raise Failure(stage, of_error(error)) from None


async def _start_tls(client: Client, tls: Tls) -> None:
    if not client.supports_extension("starttls"):
        if tls.mode == "opportunistic":
            return
        raise Failure(Stage.STARTTLS, Reply(0, "upstream does not offer STARTTLS, and `tls` of this account wants it"))
    try:
        client.in_step()
        await client.starttls(timeout=TIMEOUTS[Stage.STARTTLS])
        await client.ehlo(timeout=TIMEOUTS[Stage.EHLO])
    except ssl.SSLError as error:
        raise NoTls(Reply(0, _tls_words(error))) from None
    except (SMTPException, OSError) as error:
        raise NoTls(of_error(error)) from None


def _check_pin(client: Client, tls: Tls) -> None:
    session = client.get_transport_info("ssl_object")
    try:
        check_pin(session.getpeercert(binary_form=True) if session else None, tls.pin)
    except PinMismatch as error:
        raise Failure(Stage.STARTTLS, Reply(0, str(error))) from None


async def _login(client: Client, account: Account, host: str, tokens: Tokens | None) -> None:
    encrypted = client.get_transport_info("sslcontext") is not None
    loopback = _is_loopback(client, host)
    if not encrypted and not loopback:
        raise Failure(Stage.AUTH, Reply(0, "credentials are never sent in clear: set `tls` of this account"))
    if account.oauth2 is not None and not loopback and not verifies(account.tls):
        raise Failure(Stage.AUTH, Reply(0, "a token is never sent to a server that nobody vouches for: set `tls`"))
    try:
        # Read anew for each session, so that a rotated secret counts at the next try.
        username = await asyncio.to_thread(account.username.resolve) if account.username else ""
        password = await asyncio.to_thread(account.password.resolve) if account.password else ""
    except SecretError as error:
        raise Failure(Stage.AUTH, Reply(0, str(error))) from None
    try:
        if account.oauth2 is not None:
            await bearer.login(client, account, host, username, tokens)
        else:
            await _by_password(client, username, password)
    except SMTPResponseException as error:
        if password:
            plain = base64.b64encode(f"\0{username}\0{password}".encode()).decode()
            error.message = hidden(error.message, plain, password)
        reply = of_error(error)
        raise Failure(Stage.AUTH, reply) if reply.code else _lost_at_login(reply) from None
    except (SMTPException, OSError) as error:
        raise _lost_at_login(of_error(error)) from None


async def _by_password(client: Client, username: str, password: str) -> None:
    """One mechanism, once: trying them all would burn three failures against an upstream that counts."""
    offered, timeout = client.server_auth_methods, TIMEOUTS[Stage.AUTH]
    if "plain" in offered:
        await client.auth_plain(username, password, timeout=timeout)
    elif "login" in offered:
        await client.auth_login(username, password, timeout=timeout)
    elif "cram-md5" in offered:
        await client.auth_crammd5(username, password, timeout=timeout)
    else:
        text = f"upstream offers no way to log in that we know ({' '.join(offered) or 'none'})"
        raise Failure(Stage.AUTH, Reply(0, text))


def _lost_at_login(reply: Reply) -> Failure:
    """Nothing was said about the login: it is the next hop's trouble, not the account's."""
    return Failure(Stage.EHLO, Reply(0, clean(f"login: {reply.text}")))


def _is_loopback(client: Client, host: str) -> bool:
    peer = client.get_transport_info("peername")
    with contextlib.suppress(ValueError, TypeError):
        return ipaddress.ip_address(peer[0]).is_loopback
    return False


def _tls_words(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate is not accepted: {error.verify_message}"
    return f"TLS failed: {error.reason or error}"


def _reply(code: int, text: str) -> Reply:
    """RFC 5321 §4.2.1: the first digit is 2 to 5. Anything else is no reply; aiosmtplib says -1 where it could read no code."""
    if 200 <= code < 600:
        return Reply.of(code, text)
    return Reply(0, clean(f"malformed reply: {text if code < 0 else f'{code:03} {text}'}"))


def of_error(error: BaseException) -> Reply:
    if isinstance(error, SMTPResponseException):
        return _reply(error.code, error.message)
    if isinstance(error, SMTPTimeoutError | TimeoutError):
        return SILENT
    text = str(error.__cause__ or error)
    # The library's words for one thing; ours are those of every other stage.
    return LOST if text in ("", "Unexpected EOF received", "Connection lost") else Reply.of(0, text)
