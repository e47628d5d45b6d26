"""What somebody with a token may send to make the API stumble, stall or lose mail."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from bearers import ask as asked
from bearers import base, token
from fakes import Upstream
from rig import free_port, running, until
from test_api_submit import MAIL, ask, written

from relay.spool import NewMessage

LIGATURES = "%EF%AC%83" * 11  # eleven letters, which are thirty-three in upper case
PAPER = {"filename": "a", "content": "aaaa"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(f"/v1/messages/{LIGATURES}", id="one"),
        pytest.param(f"/v1/messages/{LIGATURES}/trace", id="its story"),
        pytest.param(f"/v1/messages?after={LIGATURES}", id="a cursor"),
        pytest.param(f"/v1/messages?id={LIGATURES}", id="a filter"),
        pytest.param(f"/v1/events?message={LIGATURES}", id="events"),
    ],
)
async def test_a_number_beyond_all_is_no_queue_id(tmp_path: Path, path: str) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        status, _, told = await asked(base(rig) + path, text=await token(rig))
        assert (status, rig.app.spool.refusal) == (400, ""), told


@pytest.mark.parametrize(
    ("change", "status", "said"),
    [
        pytest.param({"send_at": int("9" * 400)}, 400, "between 1970 and 9999", id="a time beyond floats"),
        pytest.param({"to": ["ann@example.net"] * 1001}, 400, "1000 are allowed", id="one address often"),
        pytest.param(
            {"to": ",".join(f"a{n}@b.c" for n in range(999)), "cc": ["x" * 30_000] * 9}, 400, "KiB", id="long"
        ),
        pytest.param({"headers": {"X-A": ["1"] * 60, "X-B": ["2"] * 60}}, 400, "100 fields", id="fields in lists"),
        pytest.param({"subject": "a" * 300_000}, 422, "header block", id="a subject"),
        pytest.param({"headers": {"X-A": ["ü " * 2000] * 90}}, 422, "header block", id="fields"),
        pytest.param(
            {"attachments": [PAPER | {"content_type": "image/png;.*"}]}, 400, "content type", id="a parameter"
        ),
    ],
)
async def test_what_would_take_long_or_break_is_refused_first(
    tmp_path: Path, change: dict[str, Any], status: int, said: str
) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        answer, told = await ask(rig, MAIL | change)
        assert answer == status and said in told["detail"], told
        assert await rig.count() == 0


async def test_a_body_of_millions_of_values_is_not_read(tmp_path: Path) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        body = b'{"messages":[[' + b"[]," * 1_000_000 + b"[]]]}"
        status, _, told = await asked(f"{base(rig)}/v1/messages/batch", "POST", await token(rig), io.BytesIO(body))
        assert status == 413 and "base64" in told["detail"]


async def test_a_token_that_ends_while_a_message_is_stored_takes_no_content_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"From: a@b.c\r\nSubject: large\r\n\r\n" + b"0123456789\r\n" * 50_000
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        store = rig.app.spool.accept

        async def stored(message: NewMessage) -> tuple[int, bool]:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)  # as for a token that is revoked
            return await store(message)

        monkeypatch.setattr(rig.app.spool, "accept", stored)
        with pytest.raises(aiohttp.ClientError):
            await ask(rig, whole(content))
        await until(lambda: upstream.done)
        await rig.settled()
        assert upstream.done[0].message.endswith(b"0123456789\r\n")
        assert len(upstream.done[0].message) > len(content)


async def test_the_name_of_a_token_is_one_line(tmp_path: Path) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        body = {"name": "crm\n\x1b[2Jroot", "scopes": ["read"]}
        assert (await asked(f"{base(rig)}/v1/tokens", "POST", await token(rig), body))[0] == 400


def whole(content: bytes) -> dict[str, Any]:
    return {"raw": base64.b64encode(content).decode(), "to": "ann@example.net"}


async def test_a_field_that_there_is_one_of_is_not_said_twice(tmp_path: Path) -> None:
    async with running(written(tmp_path, free_port())) as rig, aiohttp.ClientSession() as session:
        good = ("Authorization", f"Bearer {await token(rig)}")
        for twice in ((good, ("Authorization", "Bearer x")), (good, *[("Idempotency-Key", k) for k in "ab"])):
            async with session.post(f"{base(rig)}/v1/messages", json=MAIL, headers=twice) as answer:
                assert answer.status == 400 and "twice" in (await answer.json())["detail"]
        assert await rig.count() == 0
