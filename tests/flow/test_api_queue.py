"""Acts on mail over HTTP: on a selection and on one message, looked at first, and never on another tenant's."""

from __future__ import annotations

from pathlib import Path

import pytest
from tenancy import Tenancy, tenancy

from relay.api.queue import Acted


async def state(at: Tenancy, number: str) -> str:
    return str((await at.get("all", f"/v1/messages/{number}"))["recipients"][0]["state"])


async def test_a_selection_touches_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        mine, others = await at.send("ann"), await at.send("bob")
        everything = {"filter": {"sender": "*"}}
        status, told = await at.ask("red", "/v1/queue/cancel", "POST", everything | {"dry_run": True})
        assert status == 200 and told["recipients"] == 1 and told["dry_run"] and await state(at, mine) == "held"
        Acted.model_validate(told)
        status, told = await at.ask("red", "/v1/queue/cancel", "POST", everything)
        assert told["recipients"] == 1 and told["sample"] == [f"{mine} you@example.net"]
        assert await state(at, mine) == "failed" and await state(at, others) == "held"
        named = {"filter": {"id": f"{mine},{others},00000000001"}}
        _, told = await at.ask("red", "/v1/queue/cancel", "POST", named)
        assert told["recipients"] == 0
        assert told["skipped"] == [
            f"{mine}: failed, which cancel does not change", f"{others}: no such message", "00000000001: no such message",
        ]  # fmt: skip


async def test_an_empty_selection_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        number = await at.send("ann")
        for who in ("all", "red"):
            for body in ({"filter": {}}, {"filter": {"sender": ""}}, {}):
                assert (await at.ask(who, "/v1/queue/cancel", "POST", body))[0] == 400
        assert await state(at, number) == "held"


GOING = {"queued", "deferred", "active"}


@pytest.mark.parametrize(("verb", "after"), [("release", GOING), ("cancel", {"failed"}), ("reroute", GOING)])
async def test_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, after: set[str]) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        number, other = await at.send("ann"), await at.send("ann")
        body = {"to": "all"} if verb == "reroute" else {}
        if verb != "cancel":  # a rule holds it
            status, told = await at.ask("ann", f"/v1/messages/{number}/{verb}", "POST", body)
            assert (status, told["recipients"], await state(at, number)) == (200, 0, "held")
            assert told["skipped"] == [f"{number}: a rule or an operator of the relay holds it, who alone lets it go"]
        who = "ann" if verb == "cancel" else "all"
        status, told = await at.ask(who, f"/v1/messages/{number}/{verb}", "POST", body)
        assert status == 200 and told["recipients"] == 1 and told["verb"] == verb
        assert await state(at, number) in after and await state(at, other) == "held"


LET_GO = [
    ("ann", {"ann", "red", "all"}), ("red", {"red", "all"}), ("all", {"all"}),
]  # fmt: skip


@pytest.mark.parametrize(("holder", "may"), LET_GO, ids=[holder for holder, _ in LET_GO])
async def test_who_held_it_and_who_stands_above_lets_it_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holder: str, may: set[str]
) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        assert (await at.ask("all", "/v1/suspend", "POST", {"kind": "user", "value": "ann"}))[0] == 200  # it waits
        number = await at.send("ann", sender="later@example.com")
        selection = {"filter": {"sender": "later@*"}}
        for who in ("ann", "red", "all"):
            assert (await at.ask(holder, "/v1/queue/hold", "POST", selection))[1]["recipients"] == 1
            (row,) = (await at.get("ann", "/v1/queue"))["recipients"]
            assert row["held_by"] == {"ann": "user:ann", "red": "red", "all": ""}[holder]
            for verb, more in (("release", {}), ("reroute", {"to": "all"})):
                _, told = await at.ask(who, f"/v1/queue/{verb}", "POST", selection | more | {"dry_run": True})
                assert (told["recipients"] == 1) is (who in may), (verb, who)
            if who not in may:
                status, told = await at.ask(who, f"/v1/messages/{number}/resend", "POST", {})
                assert status == 403 and "who alone lets it go" in told["detail"]
            await at.ask(who, "/v1/queue/release", "POST", selection)
            assert (await state(at, number) == "held") is (who not in may)
            await at.ask("all", "/v1/queue/release", "POST", selection)
        (row,) = (await at.get("ann", "/v1/queue"))["recipients"]
        assert row["held_by"] == "" and row["state"] in GOING


async def test_no_copy_leaves_of_what_another_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        assert (await at.ask("all", "/v1/suspend", "POST", {"kind": "user", "value": "ann"}))[0] == 200
        number = await at.send("ann", "you@example.net", "me@example.net", sender="later@example.com")
        path, mine = f"/v1/messages/{number}/resend", {"recipients": ["me@example.net"]}
        selection = {"filter": {"id": number, "recipient": "you@example.net"}}
        assert (await at.ask("all", "/v1/queue/hold", "POST", selection))[1]["recipients"] == 1
        for body in ({}, {"recipients": ["you@example.net"]}):
            for who in ("ann", "red"):
                assert (await at.ask(who, path, "POST", body))[0] == 403
        assert len((await at.get("ann", "/v1/messages"))["messages"]) == 1
        assert (await at.ask("ann", path, "POST", mine))[1]["recipients"] == 1
        assert (await at.ask("all", path, "POST", {}))[1]["recipients"] == 2
        # What he holds himself is his.
        assert (await at.ask("ann", f"/v1/messages/{number}/hold", "POST", {}))[1]["recipients"] == 1
        assert (await at.ask("ann", path, "POST", mine))[1]["recipients"] == 1


async def test_only_the_whole_relay_names_an_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        number = await at.send("ann")
        for path, body in ((f"/v1/messages/{number}/reroute", {}), ("/v1/queue/reroute", {"filter": {"id": number}})):
            status, told = await at.ask("red", path, "POST", body | {"to": "other"})
            assert (
                status == 400 and told["detail"] == "reroute: 'other' is no route of yours; there are kept, spare, all"
            )
        status, told = await at.ask("all", f"/v1/messages/{number}/reroute", "POST", {"to": "other", "dry_run": True})
        assert status == 200 and told["recipients"] == 1


async def test_who_may_only_read_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        number = await at.send("ann")
        await at.token("reader", "read", tenant="red")
        assert (await at.ask("reader", f"/v1/messages/{number}"))[0] == 200
        for path, body in (
            (f"/v1/messages/{number}/cancel", {}), ("/v1/queue/cancel", {"filter": {"id": number}}),
            (f"/v1/messages/{number}/resend", {}),
        ):  # fmt: skip
            assert (await at.ask("reader", path, "POST", body))[0] == 403
        assert await state(at, number) == "held"
