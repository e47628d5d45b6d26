"""What an application or an operator relies on without saying so: later is later, keys are apart, staging decides alike."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from conftest import free_port
from fakes import Upstream
from rig import Rig, running, write_config

from relay import metrics

TEXT = b"Subject: t\r\n\r\nhello\r\n"


def one(up: Upstream) -> dict[str, str]:
    return {"main": f"port: {up.port}, tls: none"}


async def act(rig: Rig, verb: str, number: str, to: str = "") -> None:
    service = rig.app.admin.service
    await service.act(verb, service.parse_filter({"id": number}), to, dry_run=False)


async def test_no_verb_sends_sooner_what_is_to_be_sent_later(tmp_path: Path) -> None:
    at = datetime.now(UTC) + timedelta(days=2)
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send(message=b"X-Relay-Send-At: " + at.isoformat().encode() + b"\r\n" + TEXT)
        for verb, to in (("retry", ""), ("hold", ""), ("release", ""), ("reroute", "main")):
            await act(rig, verb, number, to)
            assert (await rig.row(number))["due_at"] == pytest.approx(at.timestamp(), abs=1), verb
        other = await rig.send()
        await rig.reaches(other, "delivered")
        assert (await rig.row(number))["state"] == "queued"
        assert rig.app.housekeeper.oldest_age(time.time()) < 60


async def test_a_key_is_its_senders(tmp_path: Path) -> None:
    said = b"X-Relay-Idempotency-Key: 1\r\n" + TEXT
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        first, again, other = await rig.send_many(
            [(sender, ("you@example.net",), said) for sender in ("a@shop.example", "A@shop.example", "b@blog.example")]
        )
        assert first == again != other
        await rig.settled()
        assert len(up.done) == 2
        assert rig.said("repeated")[0]["recipient"] == "you@example.net"


async def test_staging_rejects_and_holds_as_production_does(tmp_path: Path) -> None:
    routes = (
        '  - {name: no, match: {from: "*", recipient: "*@no.example"}, reject: "not there"}\n'
        '  - {name: keep, match: {recipient: "*@keep.example"}, hold: true}\n'
        '  - {name: gone, match: {recipient: "*@gone.example"}, discard: true}\n'
        "  - {name: all, via: main}"
    )
    extra = 'capture: {allow: ["*@example.com"]}'
    async with Upstream() as up, running(write_config(tmp_path, one(up), routes=routes, extra=extra)) as rig:
        number = await rig.send("a@no.example", "b@keep.example", "c@gone.example", "d@out.example", "e@example.com")
        await rig.reaches(number, "failed")
        rows = {r["recipient"][0]: (r["state"], r["egress"]) for r in await rig.rows(number)}
        assert (rows["a"], rows["b"]) == (("failed", ""), ("held", ""))
        assert (rows["c"], rows["d"]) == (("delivered", "discard"), ("delivered", "capture"))
        for kind, recipient in (("failed", "a@no"), ("held", "b@keep"), ("discarded", "c@gone"), ("captured", "d@out")):
            assert [e["recipient"] for e in rig.said(kind)] == [f"{recipient}.example"]
        await act(rig, "release", number)
        await rig.settled()
        assert up.delivered() == ["e@example.com"]
        assert "relay_recipients_ended_at_intake_total" in metrics.exposition().decode()


async def test_held_mail_is_no_old_mail(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, one(up), routes="  - {name: k, hold: true}")) as rig:
        await rig.send()
        assert await rig.app.spool.oldest() is None
        assert rig.app.spool.queued == 1


async def test_an_account_that_works_again_says_so(tmp_path: Path) -> None:
    port = free_port()
    short = "breaker: {failures: 1, cool_down: 200ms}"
    async with running(write_config(tmp_path, {"main": f"port: {port}, tls: none"}, extra=short)) as rig:
        number = await rig.send()
        await rig.tried(number)
        async with Upstream(port=port):
            await rig.reaches(number, "delivered")
        assert rig.said("egress_resting") and rig.said("egress_back")[0]["egress"] == "main"


async def test_a_class_that_is_not_there_is_told(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        await rig.send(message=b"X-Relay-Class: marketting\r\n" + TEXT)
        assert "marketting" in rig.said("option_ignored")[0]["option"]
