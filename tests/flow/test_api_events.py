"""Events over the API: each token's own, page by page and as server-sent events; a stream ends whole, and harms nobody."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import aiohttp
import pytest
from apart import Sse, apart, configured, followed
from rig import until

from relay import clock
from relay.api import sse
from relay.spool import Event


async def taken(stream: Sse, count: int) -> list[dict[str, object]]:
    found = [await stream.next() for _ in range(count)]
    assert None not in found
    return [event for event in found if event]


async def ended(stream: Sse) -> str:
    """Its last words."""
    while await stream.next() is not None:
        continue
    return stream.comments[-1]


async def test_a_page_holds_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart(configured(tmp_path, monkeypatch)) as at:
        ids = {user: await at.send(user) for user in ("ann", "bob", "eve", "")}
        for who, users in (("red", ["ann"]), ("ann", ["ann"]), ("blue", ["bob"]), ("eve", ["eve"])):
            page = await at.good(who, "/v1/events")
            assert [(e["event"], e["queue_id"]) for e in page["events"]] == [
                (kind, ids[user]) for user in users for kind in ("accepted", "discarded")
            ]
        assert len((await at.good("all", "/v1/events", query={"kind": "accepted,discarded"}))["events"]) == 8
        assert (await at.good("red", "/v1/events", query={"user": "bob"}))["events"] == []
        assert (await at.good("red", "/v1/events", query={"message": ids["bob"]}))["events"] == []


@pytest.mark.parametrize(
    "query",
    ["after=x", "after=1&since=1", "kind=lost", "limit=0", "limit=many", "wait=-1", "wait=nan", "message=!", "colour=red",
     "after=1&after=2"],
)  # fmt: skip
async def test_what_makes_no_sense_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: str) -> None:
    async with apart(configured(tmp_path, monkeypatch)) as at:
        status, told = await at.ask("red", f"/v1/events?{query}")
        assert status == 400 and told["detail"]


async def test_a_stream_goes_on_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = configured(tmp_path, monkeypatch)
    seen: list[dict[str, object]] = []
    async with apart(file) as at, followed(at, "red", after="0") as stream:
        assert stream.answer.headers["Content-Type"] == "text/event-stream" and stream.answer.headers["X-Request-Id"]
        assert stream.answer.headers["Cache-Control"] == "no-store"
        for user in ("ann", "bob", "ann"):
            await at.send(user)
        seen += await taken(stream, 3)  # the fourth is on its way, and is not read
        last = stream.last
    async with apart(file) as at:
        await at.send("ann")
        async with followed(at, "red", last) as stream:
            seen += await taken(stream, 3)
        whole = (await at.good("red", "/v1/events"))["events"]
        assert seen == whole and len(whole) == 6
        async with followed(at, "red", since="1970-01-01T00:00:00Z") as stream:
            assert await taken(stream, 6) == whole


async def test_without_a_start_it_is_what_comes_and_has_a_cursor_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with apart(configured(tmp_path, monkeypatch)) as at:
        await at.send("ann")
        async with followed(at, "red") as stream:
            number = await at.send("ann")
            assert [e["queue_id"] for e in await taken(stream, 2)] == [number, number]
        async with followed(at, "red", kind="failed") as stream:
            assert (await stream.answer.content.readline()).startswith(b"retry: ")
            assert int((await stream.answer.content.readline()).split()[1]) > 0


async def test_no_cursor_is_ahead_of_what_was_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is cut off between two lines comes back with the last id, and is told the rest."""
    async with apart(configured(tmp_path, monkeypatch)) as at:
        for user in ("bob", "ann", "ann"):
            await at.send(user)
        events = [e["id"] for e in (await at.good("red", "/v1/events"))["events"]]
        async with followed(at, "red", after="0", lasts="1") as stream:
            text = (await stream.answer.content.read()).decode()
        ids = [int(line.removeprefix("id: ")) for line in text.splitlines() if line.startswith("id: ")]
        assert ids[0] < events[0] and ids[1:] == events


async def test_the_end_of_the_relay_is_the_end_of_the_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart(configured(tmp_path, monkeypatch)) as at, followed(at, "red") as stream:
        closing = asyncio.create_task(at.rig.app.admin.close())
        assert await ended(stream) == "the relay stops"
        await closing


async def test_a_token_that_is_over_ends_its_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart(configured(tmp_path, monkeypatch)) as at:
        token = await at.token("once", "read", tenant="red")
        short = await at.token("short", "read", tenant="red", expires=clock.now() + 3600)
        async with followed(at, "once") as stream, followed(at, "short") as other, followed(at, "red") as third:
            await at.rig.app.tokens.revoke(token.id, clock.now())
            at.rig.app.tokens._known[short.id] = type(short)(
                *(short.id, short.digest, short.name, short.scopes, "", "red", 0.0, "", clock.now())
            )
            number = await at.send("ann")
            assert "revoked" in await ended(stream) and "expired" in await ended(other)
            assert [e["queue_id"] for e in await taken(third, 2)] == [number, number]
        assert (await at.ask("once", "/v1/events/stream"))[0] == 401


async def test_it_lasts_as_long_as_was_asked_and_says_that_it_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT", 0.0)
    monkeypatch.setattr(sse, "LOOK", 0.05)
    async with apart(configured(tmp_path, monkeypatch)) as at:
        async with followed(at, "red", lasts="1", kind="failed") as stream:
            assert await ended(stream) == "its time is over"
            assert "still here" in stream.comments
        async with followed(at, "red", lasts="60", kind="failed") as stream:
            await at.send("bob")
            last = await at.rig.app.spool.last_event()
            reading = asyncio.create_task(stream.next(60))
            # A heartbeat moves the cursor over what the filter left out.
            await until(lambda: stream.last == str(last))
            assert not reading.done()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_streams_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MOST", 3)
    monkeypatch.setattr(sse, "EACH", 2)
    monkeypatch.setattr(sse, "LOOK", 0.05)
    async with apart(configured(tmp_path, monkeypatch)) as at, aiohttp.ClientSession() as session:

        async def status(who: str) -> int:
            async with session.get(f"{at.base}/v1/events/stream", headers=at.headers(who)) as answer:
                assert answer.status == 200 or int(answer.headers["Retry-After"]) > 0
                return answer.status

        async with followed(at, "red"), followed(at, "red"):
            assert (await at.ask("red", "/v1/events/stream"))[1]["detail"].startswith("2 streams of yours")
            async with followed(at, "blue"):
                assert await status("all") == 429
        # Who went away leaves his place, though nothing was said to him.
        for _ in range(500):
            if await status("red") == 200:
                return
            await asyncio.sleep(0.02)
        pytest.fail("their places are not free")


async def test_a_bad_cursor_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with apart(configured(tmp_path, monkeypatch)) as at, aiohttp.ClientSession() as session:
        headers = at.headers("red") | {"Last-Event-ID": "12; x"}
        async with session.get(f"{at.base}/v1/events/stream", headers=headers) as answer:
            assert answer.status == 400 and "Last-Event-ID" in json.loads(await answer.text())["detail"]


async def test_who_does_not_read_is_cut_off_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "DRAIN", 6.0)  # who reads must not be late, whatever else the machine has to do
    async with apart(configured(tmp_path, monkeypatch)) as at:
        address = at.rig.app.config.admin.address
        assert address is not None
        lazy = socket.create_connection((address.host, address.port))
        with lazy:
            fields = "".join(f"{name}: {value}\r\n" for name, value in at.headers("all").items())
            lazy.sendall(f"GET /v1/events/stream?after=0 HTTP/1.1\r\nHost: x\r\n{fields}\r\n".encode())
            async with followed(at, "all") as stream:
                reading = asyncio.create_task(taken(stream, 400))
                for _ in range(40):  # 24 MB: more than any kernel keeps for a connection
                    await at.rig.app.spool.note(
                        [Event(clock.now(), 0, None, "paused", data={"why": "x" * 60_000}) for _ in range(10)]
                    )
                assert len({event["id"] for event in await reading}) == 400
                await until(lambda: at.rig.said("stream_cut"))
                assert (await at.ask("red", "/v1/events"))[0] == 200
