"""Mail handed in over HTTP: what is accepted, as whom, what leaves, and what is refused in which words."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import Upstream
from rig import Rig, free_port, running, until, write_config

from relay import clock
from relay.policy.access import Scope, Token

USERS = """tenants: {retail: {}, other: {}}
users:
  shop: {password_hash: "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", tenant: retail, senders: ["*@shop.example"],
    recipients: ["*@example.net"], classes: [bulk]}
  crm: {password_hash: "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", tenant: retail}
  lone: {password_hash: "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", tenant: other}
"""
CLASSES = "  default: {retry: {schedule: [200ms], give_up: 1d}}\n  bulk: {priority: low}"
MAIL = {"from": "Shop <shop@shop.example>", "to": "ann@example.net", "subject": "Your order", "text": "On its way.\n"}


def written(folder: Path, port: int, extra: str = USERS, spool: str = "") -> Path:
    """A relay in front of an upstream at that port, its API on TCP."""
    file = write_config(folder, {"main": f"port: {port}, tls: none"}, extra=extra, classes=CLASSES, spool=spool)
    file.write_text(file.read_text().replace("address: null", f'address: "127.0.0.1:{free_port()}"'))
    return file


async def token(rig: Rig, *scopes: Scope, **of: str) -> str:
    return (await rig.app.tokens.add(Token("", "", "test", scopes or ("submit",), **of)))[1]


async def ask(
    rig: Rig, body: Any, path: str = "/v1/messages", secret: str = "", headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """By the socket, or with a token over TCP."""
    address = rig.app.config.admin.address
    connector = None if secret else aiohttp.UnixConnector(str(rig.app.config.admin.socket))
    base = f"http://{address}" if secret else "http://localhost"
    given = {"Authorization": f"Bearer {secret}"} if secret else {}
    kind = {"Content-Type": "message/rfc822" if isinstance(body, bytes) else "application/json"}
    data = io.BytesIO(
        body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    )
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(base + path, data=data, headers=kind | given | (headers or {})) as answer,
    ):
        return answer.status, await answer.json()


async def test_what_was_asked_arrives(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        status, told = await ask(
            rig,
            MAIL
            | {
                "to": ["Ann Müller <ann@example.net>"],
                "cc": "bob@example.net",
                "bcc": ["eve@example.net"],
                "html": "<p>On its way.</p>",
                "headers": {"X-Order": ["17", "18"]},
                "attachments": [{"filename": "a.pdf", "content": base64.b64encode(b"%PDF").decode()}],
                "tag": "order-17",
                "metadata": {"order": 17},
                "class": "bulk",
                "priority": "high",
            },
        )
        assert status == 202, told
        assert told["message_id"].startswith("<") and told["repeated"] is False
        assert {r["recipient"] for r in told["recipients"]} == {"ann@example.net", "bob@example.net", "eve@example.net"}
        await until(lambda: upstream.done)
        await rig.settled()
        kept = await rig.message(told["queue_id"])
        assert (kept["class"], kept["tag"], kept["listener"], kept["priority"]) == ("bulk", "order-17", "api", 1)
        assert (await rig.app.spool.metadata([kept["id"]])) == {kept["id"]: {"order": 17}}
        arrived = message_from_bytes(upstream.done[0].message, policy=policy.SMTP)
        assert " with HTTP id " in arrived["Received"]
        assert arrived["To"].addresses[0].display_name == "Ann Müller"
        assert arrived["Message-ID"] == told["message_id"] and arrived["Date"]
        assert b"eve@" not in upstream.done[0].message
        assert arrived.get_all("X-Order") == ["17", "18"]
        assert [part.get_content_type() for part in arrived.walk() if not part.is_multipart()] == [
            "text/plain", "text/html", "application/pdf",
        ]  # fmt: skip


async def test_a_whole_message_is_sent_as_it_is(tmp_path: Path) -> None:
    raw = b"From: a@shop.example\nTo: ann@example.net, Bob <bob@example.net>\nBcc: eve@example.net\nSubject: x\n\nhello\n.\n"
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        status, told = await ask(rig, raw)
        assert status == 202, told
        assert [r["recipient"] for r in told["recipients"]] == ["ann@example.net", "bob@example.net", "eve@example.net"]
        status, again = await ask(
            rig, {"raw": base64.b64encode(raw).decode(), "to": "zoe@example.net", "from": "b@c.example"}
        )
        assert status == 202 and [r["recipient"] for r in again["recipients"]] == ["zoe@example.net"]
        status, third = await ask(rig, raw, "/v1/messages?from=b@c.example&to=x@example.net,y@example.net&tag=t")
        assert status == 202 and len(third["recipients"]) == 2
        await rig.settled()
        await until(lambda: len(upstream.done) >= 3)
        assert all(m.message.endswith(b"\r\n\r\nhello\r\n.\r\n") and b"Bcc" not in m.message for m in upstream.done)
        assert (await rig.message(again["queue_id"]))["sender"] == "b@c.example"


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        pytest.param({"from": "a@b.c, d@e.f"}, "from", "one address", id="two authors"),
        pytest.param({"to": "all: a@b.c;"}, "to", "group", id="a group"),
        pytest.param({"to": ["x"]}, "to", "no address", id="no address"),
        pytest.param({"subject": "a\r\nBcc: x@y.z"}, "subject", "one line", id="injected subject"),
        pytest.param({"headers": {"X-A": "1\nX-B: 2"}}, "headers", "one line", id="injected field"),
        pytest.param({"headers": {"X-Relay-Class": "a"}}, "headers", "beside", id="option as a field"),
        pytest.param({"headers": {"from": "a@b.c"}}, "headers", "made of the other", id="second author"),
        pytest.param({"send_at": "2026-12-01T08:00:00"}, "send_at", "zone", id="no zone"),
        pytest.param({"priority": 7}, "priority", "immediate", id="priority"),
        pytest.param({"metadata": {str(n): n for n in range(21)}}, "metadata", "20 keys", id="metadata"),
        pytest.param({"idempotency_key": " "}, "idempotency_key", "printable", id="key"),
        pytest.param(
            {"attachments": [{"filename": "a", "content": "&"}]}, "attachments[0].content", "base64", id="base64"
        ),
        pytest.param({"attachments": [{"filename": "a"}]}, "attachments[0]", "one of", id="no content"),
        pytest.param({"user": "nobody"}, "user", "there are: crm, lone, shop", id="no such user"),
        pytest.param({"metadata": {"a": {"b": 1}}}, "metadata.a", "a text, a number", id="nested metadata"),
        pytest.param({"headers": {"X-A": 1}}, "headers.X-A", "a list of texts", id="a number as a field"),
        pytest.param({"nonsense": 1}, "nonsense", "no field", id="unknown"),
        pytest.param({"subjct": "a"}, "subjct", "did you mean `subject`?", id="misspelt"),
        pytest.param({"from": None}, "from", "who writes", id="no author"),
        pytest.param({"to": []}, "to", "who gets", id="no recipient"),
        pytest.param({"raw": "YQ=="}, "subject", "beside `raw`", id="raw and a subject"),
        pytest.param({"to": [f"a{n}@b.c" for n in range(1001)]}, "to", "1000 are allowed", id="too many"),
    ],
)
async def test_nonsense_is_told_by_its_field(tmp_path: Path, change: Any, field: str, said: str) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        status, told = await ask(rig, MAIL | change)
        assert status == 400, told
        assert told["errors"][0]["field"].split(".")[0] == field.split(".")[0]
        assert said in told["errors"][0]["message"]
        assert await rig.count() == 0


async def test_the_rules_of_a_user_bind_him_here_too(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        secret = await token(rig, user="shop")
        assert (await ask(rig, MAIL, secret=secret))[0] == 202
        for change, code in (
            ({"from": "me@elsewhere.example"}, 553),
            ({"envelope_from": "me@elsewhere.example"}, 553),
            ({"from": "me@elsewhere.example", "envelope_from": "a@shop.example"}, 550),
            ({"to": "ann@example.org"}, 550),
        ):
            status, told = await ask(rig, MAIL | change, secret=secret)
            assert (status, told["code"]) == (422, code)
        status, told = await ask(rig, MAIL | {"class": "default"}, secret=secret)
        assert status == 422 and told["errors"][0]["field"] == "class"
        status, told = await ask(rig, MAIL | {"user": "crm"}, secret=secret)
        assert status == 400 and "himself" in told["detail"]
        assert (await rig.rows())[0]["class"] == "bulk"  # his default


async def test_a_token_of_a_tenant_names_one_of_its_users(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        retail, other = await token(rig, tenant="retail"), await token(rig, tenant="other")
        status, told = await ask(rig, MAIL, secret=retail)
        assert status == 400 and "crm, shop" in told["detail"]
        status, told = await ask(rig, MAIL | {"user": "lone"}, secret=retail)
        assert status == 400 and "crm, shop" in told["detail"]
        assert (await ask(rig, MAIL | {"user": "shop"}, secret=retail))[0] == 202
        status, told = await ask(rig, MAIL, secret=other)
        assert status == 202 and (await rig.message(told["queue_id"]))["user"] == "lone"
        assert (await ask(rig, MAIL, secret=await token(rig, "read")))[0] == 403


async def test_the_same_key_is_the_same_message(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        key = {"Idempotency-Key": "order-17"}
        answers = await asyncio.gather(*(ask(rig, MAIL, headers=key) for _ in range(50)))
        assert {status for status, _ in answers} == {202}
        assert len({(told["queue_id"], told["message_id"]) for _, told in answers}) == 1
        assert sum(not told["repeated"] for _, told in answers) == 1
        status, told = await ask(rig, MAIL | {"text": "other"}, headers=key)
        assert status == 422 and answers[0][1]["queue_id"] in told["detail"]
        status, told = await ask(rig, MAIL | {"idempotency_key": "x"}, headers=key)
        assert status == 400
        # Another user's key is another key.
        assert (await ask(rig, MAIL, headers=key, secret=await token(rig, user="shop")))[1]["repeated"] is False
        await rig.settled()
        assert len(upstream.done) == 2


async def test_a_repetition_is_answered_though_it_would_be_refused_by_now(tmp_path: Path) -> None:
    limits = USERS + "limits: [{per: sender, rate: 1/d, when_full: reject}]\n"
    async with Upstream() as upstream, running(written(tmp_path, upstream.port, limits)) as rig:
        first = (await ask(rig, MAIL | {"idempotency_key": "1"}))[1]
        status, told = await ask(rig, MAIL | {"idempotency_key": "2"})
        assert status == 503 and told["code"] == 452
        status, again = await ask(rig, MAIL | {"idempotency_key": "1"})
        assert (status, again["queue_id"], again["repeated"]) == (202, first["queue_id"], True)


async def test_a_suppressed_recipient_is_told_and_stops_nobody_else(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        assert (await ask(rig, {"entries": [{"address": "eve@example.net"}]}, "/v1/suppressions"))[0] == 200
        status, told = await ask(rig, MAIL | {"to": "eve@example.net"})
        assert status == 422 and "suppressed" in told["detail"]
        status, told = await ask(rig, MAIL | {"to": ["eve@example.net", "ann@example.net"]})
        assert status == 202
        assert {r["recipient"]: r["state"] for r in told["recipients"]} == {
            "eve@example.net": "failed", "ann@example.net": "queued",
        }  # fmt: skip
        await rig.settled()
        assert [m.accepted for m in upstream.done] == [["ann@example.net"]]


async def test_what_is_too_large_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, free_port(), spool=", max_message_size: 1MB")
    async with running(file) as rig:
        large = base64.b64encode(b"x" * 900_000).decode()
        status, told = await ask(rig, MAIL | {"attachments": [{"filename": "a", "content": large}]})
        assert (status, told["code"]) == (422, 552)
        assert (await ask(rig, MAIL | {"text": "x" * 3_000_000}))[0] == 413
        assert await rig.count() == 0 and rig.app.intake.budget.used == 0


async def test_a_large_one_arrives_whole(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000
    async with Upstream() as upstream, running(written(tmp_path, upstream.port)) as rig:
        attached = [{"filename": "a.bin", "content": base64.b64encode(content).decode()}]
        status, told = await ask(rig, MAIL | {"attachments": attached})
        assert status == 202, told
        await until(lambda: upstream.done)
        arrived = message_from_bytes(upstream.done[0].message, policy=policy.SMTP)
        assert next(arrived.iter_attachments()).get_content() == content
        await rig.settled()
        assert rig.app.intake.budget.used == 0


async def test_full_is_told_with_when_to_come_back(tmp_path: Path) -> None:
    async with running(written(tmp_path, free_port())) as rig:
        rig.app.spool.reserve = 1 << 62
        rig.app.spool.check_room()
        status, told = await ask(rig, MAIL)
        assert status == 503 and "reserve" in told["detail"]


async def test_who_submits_may_ask_for_how_long_keys_are_known(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port, spool=", keep: 36h")) as rig:
        for scope, status in (("submit", 200), ("read", 403)):
            given = {"Authorization": f"Bearer {await token(rig, scope, user='shop')}"}  # type: ignore[arg-type]
            url = f"http://{rig.app.config.admin.address}/v1/idempotency"
            async with aiohttp.ClientSession() as session, session.get(url, headers=given) as answer:
                assert answer.status == status
                assert status != 200 or await answer.json() == {"keep": 36 * 3600.0}


async def test_a_key_whose_message_is_forgotten_meanwhile_is_that_of_a_new_one(tmp_path: Path) -> None:
    """Fifty clients with one key, before a queue that forgets as fast as it can."""
    async with running(discarding(tmp_path)) as rig:
        asked = asyncio.gather(*[ask(rig, MAIL | {"idempotency_key": "one"}) for _ in range(50)])
        while not asked.done():
            await rig.app.spool.purge(clock.now() + 1)
        answers = await asked
        assert {status for status, _ in answers} <= {202, 503}, answers
        assert any(status == 202 and not told["repeated"] for status, told in answers)


@pytest.mark.parametrize(("times", "status"), [pytest.param(1, 202, id="once"), pytest.param(9, 503, id="each time")])
async def test_what_is_forgotten_between_two_steps_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, status: int
) -> None:
    mail, left = MAIL | {"idempotency_key": "one"}, times
    async with running(discarding(tmp_path)) as rig:
        spool, asks = rig.app.spool, rig.app.spool.key_of
        first = (await ask(rig, mail))[1]["queue_id"]

        async def forgotten(owner: str, key: str) -> tuple[int, str] | None:
            nonlocal left
            left -= 1
            await spool.purge(clock.now() + 1)
            found = await asks(owner, key)
            if left > 0:  # another client is as fast as the queue forgets
                assert (await ask(rig, mail))[1]["repeated"] is False
            return found

        monkeypatch.setattr(spool, "key_of", forgotten)
        found, told = await ask(rig, mail)
        assert found == status, told
        if status == 202:
            assert told["queue_id"] != first and told["repeated"] is False
        else:
            assert "say it again" in told["detail"]


def discarding(folder: Path) -> Path:
    """What is accepted is done at once, and may be forgotten."""
    file = written(folder, free_port())
    file.write_text(file.read_text().replace("{name: all, via: [main]}", "{name: all, discard: true}"))
    return file
