"""A thousand users who log in, each held to its own sender and limits, towards an upstream that is a round trip away and asks
for STARTTLS.

The relay knows its users by argon2 hashes; these are weak ones, so that the warm-up, in which each logs in once, is short: a
login that was right is remembered, and what is measured is what comes after. Postfix has no users: it asks a login server,
which here is the load itself and knows all passwords by heart; it has no limits by user either.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import argon2
import trustme

from benchmarks import peers
from benchmarks.loads import LIMIT, RECIPIENT, Sink, Stuck
from benchmarks.peers import Running
from benchmarks.smtp import Client, Refused, message

USERS = 1000
AT_ONCE = 50  # connections
FIRST = 20  # … while each logs in for the first time: the relay checks one at a time and lets 32 wait
SIZE = 4096
ROUNDTRIP = 0.02  # seconds to the upstream and back
PASSWORD = "correct horse battery staple"


def sender(user: str) -> str:
    return f"app@{user}.example.org"


def users() -> list[str]:
    return [f"user{n:04}" for n in range(USERS)]


@dataclass(frozen=True)
class Site:
    """What the servers need for this load."""

    folder: Path
    certificate: Path  # with its key
    authority: Path

    @classmethod
    def make(cls, folder: Path) -> Site:
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost")
        site = cls(folder, folder / "upstream.pem", folder / "authority.pem")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(site.certificate))
        authority.cert_pem.write_to_path(str(site.authority))
        site.authority.chmod(0o644)
        return site

    def sink(self) -> Sink:
        command = [sys.executable, "-m", "benchmarks.slow_sink", "{port}", str(self.certificate), str(ROUNDTRIP)]
        return Sink(*command)

    @property
    def login_socket(self) -> Path:
        return self.folder / "login.sock"


@contextmanager
def relay(site: Site, sink: int) -> Iterator[Running]:
    weak = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
    lines = [
        f'  {u}: {{password_hash: "{weak.hash(PASSWORD)}", senders: ["{sender(u)}"], '
        "limits: [{rate: 6000/min, when_full: reject}, {rate: 1000000 messages/d, when_full: reject}]}"
        for u in users()
    ]
    text = peers.CONFIG.format(
        folder=site.folder / "relay",
        door=", auth: required",
        users="users:\n" + "\n".join(lines) + "\n",
        host="localhost",
        port=sink,
        tls=f"{{mode: starttls, ca: {site.authority}}}",
    )
    with peers.relay_with(site.folder / "relay", text) as running:
        yield running


@contextmanager
def postfix(site: Site, sink: int) -> Iterator[Running]:
    logins = site.folder / "logins"
    logins.write_text("".join(f"{sender(u)} {u}\n" for u in users()))
    settings = {
        "relayhost": f"[localhost]:{sink}",
        "smtpd_sasl_auth_enable": "yes",
        "smtpd_sasl_type": "dovecot",
        "smtpd_sasl_path": str(site.login_socket),
        "smtpd_relay_restrictions": "permit_sasl_authenticated, reject",
        "smtpd_sender_login_maps": f"texthash:{logins}",
        "smtpd_sender_restrictions": "reject_sender_login_mismatch",
        "smtp_tls_security_level": "secure",
        "smtp_tls_secure_cert_match": "nexthop",
        "smtp_tls_CAfile": str(site.authority),
    }
    with peers.postfix(site.folder / "postfix", sink, **settings) as running:
        yield running


STARTERS = {"relay": relay, "postfix": postfix}


async def _login_session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Dovecot's authentication protocol, as much as Postfix speaks of it: PLAIN, one password for all."""
    writer.write(b"VERSION\t1\t1\nMECH\tPLAIN\tplaintext\nSPID\t1\nCUID\t1\nCOOKIE\t0\nDONE\n")
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            verb, number, *rest = line.decode().rstrip("\n").split("\t")
            if verb != "AUTH":
                continue
            response = next(r for r in rest if r.startswith("resp=")).removeprefix("resp=")
            _, user, password = base64.b64decode(response).decode().split("\0")
            result = "OK" if password == PASSWORD else "FAIL"
            writer.write(f"{result}\t{number}\tuser={user}\n".encode())
    writer.close()


@contextlib.asynccontextmanager
async def _login_server(path: Path) -> AsyncIterator[None]:
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(_login_session, path)
    os.chmod(path, 0o666)
    try:
        yield
    finally:
        server.close()


async def _connections(port: int, names: list[str], each: int, at_once: int = AT_ONCE) -> None:
    """Each user in turn connects, logs in, and sends `each` messages. Raises Stuck."""
    waiting = iter(names)

    async def work() -> None:
        for user in waiting:
            async with Client(port) as client:
                await client.login(user, PASSWORD)
                for _ in range(each):
                    await client.send(sender(user), RECIPIENT, message(sender(user), SIZE))

    try:
        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except* (Refused, OSError, TimeoutError) as errors:
        raise Stuck(f"logins: {errors.exceptions[0]!r}") from None


async def _until(sink: Sink, count: int) -> None:
    end = time.monotonic() + LIMIT
    while sink.poll() < count:
        if time.monotonic() > end:
            raise Stuck(f"only {sink.count} of {count} messages came through within {LIMIT:g} s")
        await asyncio.sleep(0.005)


async def _drive(port: int, sink: Sink, count: int) -> tuple[float, float]:
    """(accepted, relayed) a second of at least `count` messages, as many from each user. Raises Stuck."""
    each = -(-count // USERS)
    await _connections(port, users(), 0, FIRST)
    await _connections(port, users()[:100], 1)
    await _until(sink, had := 100)
    begin = time.monotonic()
    await _connections(port, users(), each)
    accepted = time.monotonic() - begin
    await _until(sink, had + each * USERS)
    relayed = time.monotonic() - begin
    return each * USERS / accepted, each * USERS / relayed


async def _measure(site: Site, peer: str, count: int) -> tuple[float, float]:
    # The server is started and ended in a thread: Postfix speaks to the login server before it greets.
    with site.sink() as sink:
        async with _login_server(site.login_socket):
            stack = contextlib.ExitStack()
            try:
                running = await asyncio.to_thread(stack.enter_context, STARTERS[peer](site, sink.port))
                return await _drive(running.port, sink, count)
            finally:
                await asyncio.to_thread(stack.close)


def measure(folder: Path, peer: str, count: int) -> dict[str, float]:
    """{accepted, relayed} in messages a second. `folder` is new, and a daemon may enter it. Raises Stuck."""
    folder.mkdir()
    accepted, relayed = asyncio.run(_measure(Site.make(folder), peer, count))
    return {"accepted": accepted, "relayed": relayed}
