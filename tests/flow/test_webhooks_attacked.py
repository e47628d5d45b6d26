"""Endpoints that misbehave in ways that nobody thinks of: nothing is passed over, nothing hangs, nothing is sent unsigned."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from conftest import Spools, until
from hooked import crm, hooked, note
from receiver import Receiver

from relay import clock
from relay.spool.sqlite import SqliteSpool
from relay.webhooks import line, words


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
