"""Endpoints that misbehave in ways that nobody thinks of: nothing is passed over, nothing hangs, nothing is sent unsigned."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from certificates import Certs
from conftest import Spools, until
from hooked import SECRET, crm, hooked, note
from receiver import Receiver

from relay import clock
from relay.secrets import Reference
from relay.settings import Endpoint
from relay.spool.sqlite import SqliteSpool
from relay.webhooks import line, words
from relay.webhooks.sinks import CommandSink, UrlSink
from relay.webhooks.words import Batch, Item, Verdict


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "FIRST", 0.02)
    monkeypatch.setattr(line, "LOOK", 0.02)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


@pytest.fixture
async def spool(spools: Spools) -> SqliteSpool:
    return await spools.open(now=clock.now())


async def test_a_time_that_there_cannot_be_is_no_time(spool: SqliteSpool, receiver: Receiver) -> None:
    never = "Mon, 01 Jan 2020 00:00:00 +99999999999999999999"
    async with hooked(spool, crm(receiver)) as hooks:
        receiver.behave = lambda events: web.Response(status=503, headers={"Retry-After": never})
        ids = await note(spool, 1)
        await until(lambda: hooks.row()["failures"] > 1)
        receiver.behave = lambda events: None
        await until(lambda: receiver.ids == ids)
        assert not hooks.said("webhook_died")


async def test_a_replay_passes_nothing_over_that_was_not_taken_yet(spool: SqliteSpool, receiver: Receiver) -> None:
    """Of an endpoint that is behind, "since an hour ago" is not the place where it goes on."""
    async with hooked(spool, crm(receiver)) as hooks:
        receiver.behave = lambda events: 503
        ids = await note(spool, *range(1, 20))
        await until(lambda: hooks.row()["failures"])
        assert await hooks.webhooks.replay("crm", after=ids[9], dry_run=False) == 9
        receiver.behave = lambda events: None
        await until(lambda: receiver.ids == ids)


async def test_without_its_secret_nothing_is_sent(spool: SqliteSpool, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("\n")  # somebody writes it anew
    async with hooked(spool, crm(receiver, secret=Reference("file", str(file)))) as hooks:
        ids = await note(spool, 1)
        await until(lambda: hooks.row()["failures"])
        assert hooks.row()["error"] == f"its secret, file {file}, is empty"
        file.unlink()
        await until(lambda: "No such file" in hooks.row()["error"])
        assert not receiver.calls
        file.write_text(SECRET)
        await until(lambda: receiver.ids == ids)
    assert all("X-Relay-Signature" in call.headers for call in receiver.calls)


async def test_a_token_in_the_url_is_not_told(spool: SqliteSpool, receiver: Receiver) -> None:
    """Whoever answers likes to say what was asked for."""
    receiver.behave = lambda events: web.Response(status=404, text="no /hook?k=zq9&t=a%2Bbcdefgh, nor a+bcdefgh")
    url = Reference("plain", f"{receiver.url}?k=zq9&t=a%2Bbcdefgh")
    async with hooked(spool, crm(receiver, url=url)) as hooks:
        await note(spool, 1)
        await until(lambda: hooks.row()["failures"])
        assert hooks.row()["error"] == "it answered 404: no /hook?***, nor ***"


# -- commands

BATCH = Batch("page", [Item(1, 1, 1.0, '{"id": 1}')])


@pytest.mark.parametrize("start", ["sleep 60 &", "setsid sleep 60 &"])
async def test_the_exit_code_counts_whoever_holds_the_pipes(start: str) -> None:
    """What it left running has its standard error, and would keep that open for a minute."""
    began, files = time.monotonic(), len(os.listdir("/proc/self/fd"))
    sink = CommandSink("page", ("sh", "-c", f"cat > /dev/null; {start} exit 0"), 50.0)
    for _ in range(5):
        assert (await sink.send(BATCH)).verdict is Verdict.TAKEN
    assert time.monotonic() - began < 40
    await until(lambda: len(os.listdir("/proc/self/fd")) <= files + 3)


async def test_who_complains_without_an_end_is_ended() -> None:
    sink = CommandSink("page", ("sh", "-c", "yes no, not this one >&2"), 0.5)
    async with asyncio.timeout(30):
        said = await sink.send(BATCH)
    assert said.verdict is Verdict.TROUBLE and said.why == "it did not end within 0.5 s"


async def test_what_is_not_read_keeps_nobody() -> None:
    """More than a pipe holds, and a process that left its group has the other end."""
    large = Batch("page", [Item(n, n, 1.0, "x" * 1000) for n in range(1, 1000)])
    files = len(os.listdir("/proc/self/fd"))
    sink = CommandSink("page", ("sh", "-c", "setsid sleep 60 & exit 75"), 50.0)
    async with asyncio.timeout(40):
        assert (await sink.send(large)).verdict is Verdict.REST
    await until(lambda: len(os.listdir("/proc/self/fd")) <= files + 3)


# -- TLS

TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"


@asynccontextmanager
async def over_tls(context: ssl.SSLContext) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Its URL, and what was said to it once TLS stood."""
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(TAKEN)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook", heard


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("right", ""),
        ("chained", ""),
        ("untrusted", "its certificate is not accepted: unable to get local issuer certificate"),
        ("expired", "its certificate is not accepted: certificate has expired"),
        ("other", "its certificate is not accepted: IP address mismatch"),
    ],
)
async def test_a_real_one_with_a_ca(tmp_path: Path, kind: str, why: str) -> None:
    certs = Certs(tmp_path / "certs")
    made = certs.right("192.0.2.1") if kind == "other" else getattr(certs, kind)("127.0.0.1")
    async with over_tls(made.context) as (url, heard):
        endpoint = Endpoint("crm", url=Reference("plain", url), allow_private=True, ca=certs.bundle, timeout=30.0)
        said = await UrlSink(endpoint).send(BATCH)
        assert (said.verdict is Verdict.TAKEN) == (not why) and said.why.startswith(why), said
        assert bool(heard) == (not why)
        if not why:
            nobody = await UrlSink(replace(endpoint, ca=None)).send(BATCH)
            assert nobody.verdict is Verdict.REST and len(heard) == 1
