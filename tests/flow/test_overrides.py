"""What an operator or a header overrode holds as long as it makes sense, and never against `capture`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes import Upstream
from rig import running, write_config

from relay.admin.service import BadRequest
from relay.recipient import Verb

HELD = "  - {name: keep, hold: true}"
SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"


def accounts(up: Upstream, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, f"port: {up.port}, tls: none")


async def act(rig: object, verb: str, number: str, to: str = "") -> None:
    service = rig.app.admin.service  # type: ignore[attr-defined]
    await service.act(verb, service.parse_filter({"id": number}), to, dry_run=False)


async def test_an_account_that_a_reload_removed_is_no_longer_waited_for(tmp_path: Path) -> None:
    async with Upstream() as up, Upstream({"MAIL": "451 4.3.0 later"}) as later:
        two = accounts(up, "main") | accounts(later, "other")
        file = write_config(tmp_path, two, routes="  - {name: all, via: main}\n  - {name: x, via: other}", classes=SLOW)
        async with running(file) as rig:
            number = await rig.send()
            await rig.reaches(number, "delivered")
            second = (await rig.send_many([("a@example.com", ("held@example.net",), b"Subject: t\r\n\r\nx\r\n")]))[0]
            await rig.reaches(second, "delivered")
            file_held = write_config(tmp_path, two, routes=HELD, classes=SLOW, path=file)
            assert rig.app.reload()[0] and file_held == file
            third = await rig.send()
            assert (await rig.row(third))["state"] == "held"
            await act(rig, "reroute", third, "other")
            await rig.tried(third)
            write_config(tmp_path, accounts(up, "main"), classes=SLOW, path=file)
            assert rig.app.reload()[0]
            await act(rig, "retry", third)
            assert (await rig.reaches(third, "delivered"))["egress"] == "main"


async def test_released_mail_is_not_held_again(tmp_path: Path) -> None:
    routes = "  - {name: keep, match: {recipient: '*@hold.example'}, hold: true}\n  - {name: rest, via: main}"
    async with Upstream() as up, running(write_config(tmp_path, accounts(up, "main"), routes=routes)) as rig:
        number = await rig.send("a@hold.example")
        assert (await rig.row(number))["state"] == "held"
        await act(rig, "release", number)
        assert (await rig.reaches(number, "delivered"))["route"] == "rest"


async def test_capture_is_above_reroute_and_route_header(tmp_path: Path) -> None:
    routes = "  - {name: all, via: main}"
    honour = "listen: [{name: local, address: '127.0.0.1:0', honour: [route]}]"
    async with Upstream() as up:
        file = write_config(tmp_path, accounts(up, "main"), routes=HELD + "\n" + routes)
        async with running(file) as rig:
            number = await rig.send("out@example.net")
            capture = "capture: {allow: ['*@example.com']}"
            write_config(tmp_path, accounts(up, "main"), routes=routes, extra=capture, path=file)
            assert rig.app.reload()[0]
            await act(rig, "reroute", number, "main")
            assert (await rig.reaches(number, "delivered"))["egress"] == "capture"
        text = file.read_text()
        line = next(li for li in text.splitlines() if li.startswith("listen:"))
        file.write_text(text.replace(line, honour))
        async with running(file) as rig:
            number = await rig.send("out@example.net", message=b"X-Relay-Route: all\r\nSubject: t\r\n\r\nx\r\n")
            assert (await rig.reaches(number, "delivered"))["egress"] == "capture"
            assert up.transactions == []


async def test_act_and_relane_in_one_transaction_agree(tmp_path: Path) -> None:
    """A lane that the same transaction made is known to the scheduler with its facts and its time."""
    async with Upstream() as up, running(write_config(tmp_path, accounts(up, "main"), routes=HELD)) as rig:
        number = await rig.send("a@example.net")
        row = await rig.row(number)
        spool = rig.app.spool
        (stored,) = [r async for r in spool.find(rig.app.admin.service.parse_filter({"id": number}))]
        facts = rig.app.scheduler.outlook.lane_facts_of(row["lane_id"]).with_overrides({"via": "main"})
        await asyncio.gather(
            spool.relane([(stored["message"], stored["n"], stored["lane"], facts)]),
            spool.change([(stored["message"], stored["n"])], Verb.RELEASE, 0.0, "test"),
        )
        assert (await rig.reaches(number, "delivered"))["egress"] == "main"


async def test_an_operator_may_name_a_pool(tmp_path: Path) -> None:
    extra = "pools: {both: {members: [main, other]}}"
    async with Upstream() as up:
        file = write_config(tmp_path, accounts(up, "main", "other"), routes=HELD, extra=extra)
        async with running(file) as rig:
            number = await rig.send()
            service = rig.app.admin.service
            which = service.parse_filter({"id": number})
            assert (await service.act("reroute", which, "both", dry_run=True))["recipients"] == 1
            with pytest.raises(
                BadRequest, match="'none' is no account, direct entry, pool or route; there are main, other, both, keep"
            ):
                await service.act("reroute", which, "none", dry_run=True)
