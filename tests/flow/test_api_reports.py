"""Reports by pull: at least once and in order, whoever dies between; each owner's own, with a cursor for each consumer."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from apart import Apart, apart, configured
from conftest import ROOT
from rig import ENV

from relay.api import reports
from relay.spool import stream


@pytest.fixture
async def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Apart]:
    async with apart(configured(tmp_path, monkeypatch)) as made:
        yield made


async def fetch(at: Apart, who: str = "red", name: str = "crm", **query: Any) -> dict[str, Any]:
    found: dict[str, Any] = await at.good(who, f"/v1/reports/{name}", query=query)
    return found


async def acknowledge(at: Apart, upto: int, who: str = "red", name: str = "crm") -> dict[str, Any]:
    found: dict[str, Any] = await at.good(who, f"/v1/reports/{name}", {"acknowledged": upto})
    return found


async def test_what_is_not_acknowledged_comes_again_over_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer that dies after each fetch, and between dealing with it and saying so; the relay restarts as well."""
    file = configured(tmp_path, monkeypatch)
    dealt: list[int] = []
    sent: list[str] = []
    for turn in range(4):
        async with apart(file) as at:
            sent += [await at.send("ann") for _ in range(2)]
            await at.send("bob")
            page = await fetch(at, limit=3)
            assert page == await fetch(at, limit=3) and len(page["reports"]) == 3
            dealt += [event["id"] for event in page["reports"]]
            if turn % 2:
                await acknowledge(at, page["cursor"])
    async with apart(file) as at:
        while (page := await fetch(at, limit=3))["reports"]:
            dealt += [event["id"] for event in page["reports"]]
            await acknowledge(at, page["cursor"])
        every = (await at.good("red", "/v1/events"))["events"]
        assert list(dict.fromkeys(dealt)) == [event["id"] for event in every] and len(every) == 2 * len(sent)
        assert len(dealt) == len(every) + 6  # the two turns that were not acknowledged
        (row,) = (await at.good("red", "/v1/reports"))["consumers"]
        assert row["name"] == "crm" and row["behind"] == 0


async def test_each_owner_has_its_own(at: Apart) -> None:
    ids = {user: await at.send(user) for user in ("ann", "bob", "eve", "")}
    for who, user in (("red", "ann"), ("ann", "ann"), ("blue", "bob"), ("eve", "eve")):
        page = await fetch(at, who)
        assert {event["queue_id"] for event in page["reports"]} == {ids[user]}
    await acknowledge(at, (await fetch(at))["cursor"])
    rows = {who: (await at.good(who, "/v1/reports"))["consumers"] for who in ("red", "blue", "ann", "all")}
    assert rows["red"][0]["behind"] == 0 and rows["all"] == []
    assert [rows[who][0]["cursor"] for who in ("blue", "ann")] == [0, 0]
    await at.good("blue", "/v1/reports/crm", method="DELETE")
    assert len((await at.good("red", "/v1/reports"))["consumers"]) == 1
    # Of the whole relay: all mail, and nothing that is about none.
    page = await fetch(at, "all", "every")
    assert {event["queue_id"] for event in page["reports"]} == set(ids.values())
    assert {event["event"] for event in page["reports"]} == {"accepted", "discarded"}


async def test_a_filter_loses_nothing_that_was_not_looked_at(at: Apart) -> None:
    for tag in ("a", "b", "a", "b"):
        await at.send("ann", tag=tag)
    first = await fetch(at, tag="b", kind="discarded", limit=1)
    assert len(first["reports"]) == 1 and first["cursor"] == first["reports"][-1]["id"]
    await acknowledge(at, first["cursor"])
    second = await fetch(at, tag="b", kind="discarded")
    assert len(second["reports"]) == 1 and second["reports"][0]["id"] > first["cursor"]
    await acknowledge(at, second["cursor"])
    assert (await fetch(at, tag="b"))["reports"] == []
    number = await at.send("ann", tag="b")
    assert [event["queue_id"] for event in (await fetch(at, tag="b"))["reports"]] == [number] * 2


async def test_a_new_one_begins_with_the_oldest_or_now(at: Apart) -> None:
    await at.send("ann")
    assert len((await fetch(at, name="old"))["reports"]) == 2
    assert (await fetch(at, name="new", **{"from": "now"}))["reports"] == []
    number = await at.send("ann")
    # It is where it began, though nothing was acknowledged and nothing was there to tell.
    page = await fetch(at, name="new", **{"from": "now"})
    assert [event["queue_id"] for event in page["reports"]] == [number] * 2


async def test_who_waits_is_answered_when_it_happens(at: Apart) -> None:
    await fetch(at)
    waiting = asyncio.create_task(fetch(at, wait=50, kind="discarded"))
    await at.send("bob")
    number = await at.send("ann")
    (event,) = (await waiting)["reports"]
    assert event["queue_id"] == number


async def test_a_cursor_goes_forward_and_never_beyond(at: Apart) -> None:
    await at.send("ann")
    last = (await fetch(at))["cursor"]
    assert (await acknowledge(at, last))["cursor"] == last
    assert (await acknowledge(at, 0))["cursor"] == last
    end = await at.rig.app.spool.last_event()
    status, told = await at.ask("red", "/v1/reports/crm", {"acknowledged": end + 1})
    assert status == 400 and "beyond the last event" in told["detail"]
    assert (await acknowledge(at, end))["behind"] == 0


async def test_forgotten_and_never_there(at: Apart) -> None:
    for method, body in (("POST", {"acknowledged": 0}), ("DELETE", None)):
        status, told = await at.ask("red", "/v1/reports/none", body, method)
        assert status == 404 and "no consumer 'none'" in told["detail"]
    await fetch(at)
    assert await at.ask("red", "/v1/reports/crm", method="DELETE") == (204, None)
    assert (await at.good("red", "/v1/reports"))["consumers"] == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/reports/a%20b", None),
        ("/v1/reports/a%2Fb", None),
        (f"/v1/reports/{'x' * 65}", None),
        ("/v1/reports/crm?from=yesterday", None),
        ("/v1/reports/crm?after=5", None),
        ("/v1/reports/crm?limit=0", None),
        ("/v1/reports/crm?kind=lost", None),
        ("/v1/reports/crm", {"acknowledged": -1}),
        ("/v1/reports/crm", {"acknowledged": True}),
        ("/v1/reports/crm", {"acknowledged": 1 << 63}),
        ("/v1/reports/crm", {"acknowledged": "5"}),
        ("/v1/reports/crm", {}),
    ],
    ids=lambda v: str(v)[:40],
)
async def test_slips_of_the_pen(at: Apart, path: str, body: Any) -> None:
    status, told = await at.ask("red", path, body)
    assert status == 400 and told["detail"]
    assert (await at.good("red", "/v1/reports"))["consumers"] == []


async def test_consumers_are_few(at: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "CONSUMERS", 3)
    answers = await asyncio.gather(*(at.ask("red", f"/v1/reports/c{number}") for number in range(6)))
    assert sorted(status for status, _ in answers) == [200] * 3 + [409] * 3
    assert (await at.ask("blue", "/v1/reports/c9"))[0] == 200


async def test_to_acknowledge_is_to_read(at: Apart) -> None:
    await at.token("reader", "read", tenant="red")
    await at.token("admin", "admin")
    await acknowledge(at, (await fetch(at, "reader"))["cursor"], "reader")
    assert [e for e in (await at.good("admin", "/v1/audit"))["audit"] if "/reports" in e["act"]] == []


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="no curl, or no jq")
async def test_the_examples_of_the_document_run(at: Apart) -> None:
    """Each block as it is written, against this relay."""
    number = await at.send("ann")
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs/reports.md").read_text(), re.DOTALL)
    assert len(blocks) == 5
    told = []
    for block in blocks:
        script = f"set -e\n{block}".replace("http://127.0.0.1:2580", at.base)
        made = await asyncio.create_subprocess_exec(
            "sh", "-c", script, stdout=PIPE, stderr=PIPE, env=ENV | {"TOKEN": at.tokens["red"]}
        )
        out, err = await asyncio.wait_for(made.communicate(), 30)
        assert made.returncode == 0, (block, err)
        told.append(out.decode())
    assert f"discarded\t{number}" in told[2] and json.loads(told[3].splitlines()[0])["consumers"][0]["behind"] == 0
    assert f'"queue_id":"{number}"' in told[4] and "event: discarded" in told[4]


async def test_behind_counts_what_its_owner_sees(at: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much mail others have is none of a tenant's business."""
    for user in ("ann", "bob", "bob", "bob", "ann", ""):
        await at.send(user)
    await fetch(at, limit=1)
    first = (await fetch(at, limit=1))["reports"][0]["id"]
    assert (await acknowledge(at, first))["behind"] == 3  # of two messages two events each
    assert (await at.good("red", "/v1/reports"))["consumers"][0]["behind"] == 3
    await fetch(at, "all", "every")
    assert (await at.good("all", "/v1/reports"))["consumers"][0]["behind"] >= 12
    monkeypatch.setattr(reports, "COUNTED", 4)  # "" and ann came last
    assert (await at.good("red", "/v1/reports"))["consumers"][0]["behind"] == 2


@pytest.mark.parametrize("swept", [1, 3, 5000])
async def test_what_others_do_is_passed_over_in_slices(at: Apart, monkeypatch: pytest.MonkeyPatch, swept: int) -> None:
    monkeypatch.setattr(stream, "SWEPT", swept)
    sent = [await at.send(user) for user in ("bob", "ann", "bob", "bob", "", "ann", "bob")]
    seen, cursor = list[dict[str, Any]](), 0
    while (page := await fetch(at, limit=3))["reports"] or page["more"]:
        assert page["cursor"] > cursor
        cursor, seen = page["cursor"], [*seen, *page["reports"]]
        await acknowledge(at, cursor)
    assert [event["queue_id"] for event in seen] == [sent[1], sent[1], sent[5], sent[5]]
    whole = (await at.good("all", "/v1/events"))["events"]
    assert seen == [event for event in whole if event.get("queue_id") in (sent[1], sent[5])]
