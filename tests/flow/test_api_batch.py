"""Batches: a result for each, none of which fails another, in the order of the request, and durable when they are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import Upstream
from rig import free_port, running
from test_api_submit import MAIL, ask, token, written

BATCH = "/v1/messages/batch"


async def test_a_thousand_are_accepted_and_arrive_once(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        messages = [MAIL | {"to": f"user{n}@example.net", "tag": f"t{n}"} for n in range(1000)]
        status, told = await ask(rig, {"messages": messages}, BATCH)
        assert (status, told["accepted"], told["refused"]) == (202, 1000, 0)
        assert [r["recipients"][0]["recipient"] for r in told["results"]] == [m["to"] for m in messages]
        assert len({r["queue_id"] for r in told["results"]}) == 1000
        await rig.settled()
        assert sorted(upstream.delivered()) == sorted(m["to"] for m in messages)


async def test_one_bad_message_fails_alone(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        secret = await token(rig, user="shop")
        bad: list[Any] = [
            {**MAIL, "to": "nobody"},
            7,
            None,
            {**MAIL, "from": "me@elsewhere.example"},
            {**MAIL, "attachments": [{"filename": "a", "path": "a"}]},
            {**MAIL, "raw": "AA=="},
        ]
        status, told = await ask(rig, {"messages": [MAIL, *bad, MAIL]}, BATCH, secret)
        assert status == 202
        assert [r["status"] for r in told["results"]] == [202, 400, 400, 400, 422, 422, 400, 202]
        assert told["results"][1]["errors"][0]["field"] == "to"
        assert told["results"][2]["detail"] == "the message: is to be an object"
        assert told["results"][4]["code"] == 553 and told["results"][4]["enhanced"] == "5.7.1"
        assert (told["accepted"], told["refused"]) == (2, 6)
        await rig.settled()
        assert len(upstream.done) == 2


HALF = "\ud800"  # of a surrogate pair: JSON by its grammar, and no text


@pytest.mark.parametrize(
    ("item", "field"),
    [
        pytest.param(json.dumps(MAIL | {"subject": HALF}), "subject", id="half a character"),
        pytest.param(json.dumps(MAIL | {"tag": HALF}), "tag", id="half a character as an option"),
        pytest.param(json.dumps(MAIL | {"to": [HALF + "@b.example"]}), "to", id="half a character as an address"),
        pytest.param(json.dumps(MAIL | {"metadata": {"a": HALF}}), "metadata", id="half a character of metadata"),
        pytest.param(json.dumps(MAIL | {"metadata": {HALF: 1}}), "metadata", id="half a character of a key"),
        pytest.param(json.dumps(MAIL | {HALF: 1}), "", id="half a character as a field"),
        pytest.param(
            json.dumps(MAIL | {"attachments": [{"filename": "a", "content": HALF}]}),
            "attachments[0].content",
            id="half a character as base64",
        ),
        pytest.param(json.dumps(MAIL | {"priority": 0})[:-2] + "9" * 5000 + "}", "priority", id="a long number"),
        pytest.param(json.dumps(MAIL | {"send_at": 0})[:-2] + "1e999}", "send_at", id="a number beyond all"),
        pytest.param(json.dumps(MAIL | {"text": 0})[:-2] + "[" * 900 + "]" * 900 + "}", "text", id="nested deeply"),
        pytest.param(json.dumps(MAIL | {"text": 7}), "text", id="a number as a text"),
        pytest.param(json.dumps(MAIL | {"nonsense": 7}), "nonsense", id="an unknown field"),
        pytest.param("[7]", "", id="no object"),
    ],
)
async def test_what_is_json_is_wrong_where_it_stands(tmp_path: Path, item: str, field: str) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        good = json.dumps(MAIL)
        status, told = await ask(rig, f'{{"messages": [{good}, {item}, {good}]}}', BATCH)
        assert status == 202, told
        assert [r["status"] for r in told["results"]] == [202, 400, 202], told
        assert told["results"][1]["errors"][0]["field"] == field
        status, alone = await ask(rig, item)
        assert (status, alone["detail"]) == (400, told["results"][1]["detail"].replace("the message", "the body"))
        assert await rig.count() == 2


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b'{"messages": [7}', id="brackets"),
        pytest.param(b'{"messages": ["\xff"]}', id="no utf-8"),
        pytest.param(b'{"messages": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", id="without end"),
    ],
)
async def test_what_is_no_json_is_wrong_as_a_whole(tmp_path: Path, body: bytes) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        status, told = await ask(rig, body, BATCH, headers={"Content-Type": "application/json"})
        assert status in (400, 413) and "results" not in told
        assert await rig.count() == 0


async def test_the_key_of_a_batch_is_that_of_each_with_its_number(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        messages = [MAIL, MAIL | {"idempotency_key": "mine"}, MAIL]
        key = {"Idempotency-Key": "b1"}
        first = (await ask(rig, {"messages": messages}, BATCH, headers=key))[1]
        again = (await ask(rig, {"messages": messages}, BATCH, headers=key))[1]
        assert [r["queue_id"] for r in first["results"]] == [r["queue_id"] for r in again["results"]]
        assert all(r["repeated"] for r in again["results"])
        assert (await ask(rig, MAIL | {"idempotency_key": "b1/2"}))[1]["queue_id"] == first["results"][2]["queue_id"]
        # Twice the same in one batch.
        twice = (await ask(rig, {"messages": [MAIL | {"idempotency_key": "x"}] * 2}, BATCH))[1]
        assert [r["repeated"] for r in twice["results"]].count(False) == 1
        await rig.settled()
        assert len(upstream.done) == 4


async def test_the_key_of_a_batch_leaves_room_for_the_number(tmp_path: Path) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        batch = {"messages": [MAIL] * 1000}
        status, told = await ask(rig, batch, BATCH, headers={"Idempotency-Key": "k" * 197})
        assert status == 400 and told["errors"][0]["field"] == "Idempotency-Key" and "1 to 196" in told["detail"]
        assert await rig.count() == 0
        key = {"Idempotency-Key": "k" * 196}
        status, told = await ask(rig, batch, BATCH, headers=key)
        assert (status, told["accepted"]) == (202, 1000)
        # Each can be asked for alone by what it has.
        status, alone = await ask(rig, MAIL, headers={"Idempotency-Key": "k" * 196 + "/999"})
        assert (status, alone["repeated"], alone["queue_id"]) == (202, True, told["results"][999]["queue_id"])


async def test_neither_none_nor_more_than_a_thousand(tmp_path: Path) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        for messages in ([], [MAIL] * 1001):
            status, told = await ask(rig, {"messages": messages}, BATCH)
            assert status == 400 and told["errors"][0]["field"] == "messages", json.dumps(told)
        assert await rig.count() == 0
