"""Messages over HTTP: pages, filters, one of them, and that nobody sees what is another tenant's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tenancy import Tenancy, tenancy

from relay.api.lanes import LaneRows
from relay.api.messages import MessageRows, Resent, Story
from relay.api.overview import Explained, Stats
from relay.api.queue import RecipientRows
from relay.api.rows import OneMessage


async def ids(at: Tenancy, who: str, **query: Any) -> list[str]:
    return [row["queue_id"] for row in (await at.get(who, "/v1/messages", **query))["messages"]]


async def test_one_row_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        number = await at.send("ann", "a@example.net", "b@example.net", tag="spring", class_="news")
        found = await at.get("all", "/v1/messages")
        MessageRows.model_validate(found)
        (row,) = found["messages"]
        assert row["queue_id"] == number and row["recipients"] == 2 and row["states"] == {"held": 2}
        assert (row["user"], row["tenant"], row["tag"], row["class"]) == ("ann", "red", "spring", "news")
        assert row["sender"] == row["from"] == "held@example.com" and row["metadata"] == {} and row["key"] == ""
        whole = await at.get("all", f"/v1/messages/{number}")
        OneMessage.model_validate(whole)
        assert whole["tenant"] == "red" and [r["recipient"] for r in whole["recipients"]] == [
            "a@example.net",
            "b@example.net",
        ]
        Story.model_validate(await at.get("all", f"/v1/messages/{number}/trace"))
        assert "hello" in await at.get("all", f"/v1/messages/{number}/raw")


async def test_pages_go_both_ways_and_meet_everything_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        sent = [await at.send("", f"u{i}@example.net", f"v{i}@example.net") for i in range(7)]
        for order, wanted in (("oldest", sent), ("newest", sent[::-1])):
            met, after = list[str](), ""
            while True:
                page = await at.get("all", "/v1/messages", order=order, limit=3, after=after)
                met += [row["queue_id"] for row in page["messages"]]
                after = page["next"]
                if not after:
                    break
            assert met == wanted
        assert len((await at.get("all", "/v1/messages", limit=10**9))["messages"]) == 7  # clamped, not refused
        assert (await at.ask("all", "/v1/messages", limit=0))[0] == 400


FILTERS = [
    ({"sender": "HELD@*"}, "abc"), ({"sender": "nobody@*"}, ""), ({"recipient": "you@example.*"}, "ac"),
    ({"domain": "example.org"}, "b"), ({"tag": "spring"}, "a"), ({"tag": "SPRING"}, "a"), ({"tag": "spr*"}, "ab"),
    ({"tag": "none"}, ""), ({"class": "news"}, "b"), ({"user": "a*"}, "ab"), ({"user": "bob"}, "c"), ({"state": "held"}, "abc"),
    ({"state": "queued,failed"}, ""), ({"route": "kept"}, "abc"), ({"route": "all"}, ""), ({"error": "rule"}, "abc"),
    ({"error": "no such words"}, ""), ({"older_than": "1000"}, ""), ({"older_than": "-60"}, "abc"), ({"key": "x"}, ""),
    ({"egress": "main"}, ""), ({"tag": "spr*", "domain": "example.org"}, "b"), ({"tag": "spring", "domain": "example.org"}, ""),
    ({"sender": "held@*", "class": "news", "user": "abe"}, "b"), ({"tag": "s[pring"}, ""),
]  # fmt: skip


async def test_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        named = {
            "a": await at.send("ann", tag="spring"),
            "b": await at.send("abe", "me@example.org", tag="Sprout", class_="news"),
            "c": await at.send("bob"),
        }
        for query, wanted in FILTERS:
            if query == {"error": "rule"}:
                query = {"error": (await at.get("all", "/v1/queue"))["recipients"][0]["why"].split()[0]}
            expected = [named[name] for name in wanted]
            assert await ids(at, "all", **query) == expected, query
            assert await ids(at, "all", order="newest", **query) == expected[::-1], query
            page = await at.get("all", "/v1/queue", **query)
            RecipientRows.model_validate(page)
            assert [row["queue_id"] for row in page["recipients"]] == expected, query
            for who, mine in (("red", "ab"), ("blue", "c"), ("ann", "a")):
                own = [named[name] for name in wanted if name in mine]
                assert await ids(at, who, **query) == own, (who, query)
                rows = (await at.get(who, "/v1/queue", **query))["recipients"]
                assert [row["queue_id"] for row in rows] == own, (who, query)
        assert await ids(at, "all", id=f"{named['c']},{named['a']}") == [named["a"], named["c"]]
        assert await ids(at, "red", id=f"{named['c']},{named['a']}") == [named["a"]]


async def test_what_is_anothers_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same words as for an id that never was."""
    async with tenancy(tmp_path, monkeypatch) as at:
        number, nobodys = await at.send("bob"), await at.send("")
        for what in (number, nobodys, "00000000001"):
            for rest in ("", "/raw", "/trace"):
                status, told = await at.ask("red", f"/v1/messages/{what}{rest}")
                assert status == 404 and told["detail"] == (
                    f"no message {what}: it was never here, or `spool.keep` is over"
                )
            for verb in ("resend", "retry", "hold", "release", "cancel", "reroute"):
                status, told = await at.ask("red", f"/v1/messages/{what}/{verb}", "POST", {})
                assert status == 404, told
        assert (await at.get("blue", f"/v1/messages/{number}"))["recipients"][0]["state"] == "held"
        assert await ids(at, "red") == [] and (await at.get("red", "/v1/queue"))["recipients"] == []


async def test_resend_is_of_the_same_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        number = await at.send("ann", "a@example.net", "b@example.net", sender="later@example.com", tag="spring")
        status, made = await at.ask("red", f"/v1/messages/{number}/resend", "POST", {"recipients": ["b@example.net"]})
        assert status == 200 and Resent.model_validate(made).recipients == 1
        again = await at.get("ann", f"/v1/messages/{made['queue_id']}")
        assert again["user"] == "ann" and again["tag"] == "spring" and len(again["recipients"]) == 1
        assert (await at.ask("blue", f"/v1/messages/{made['queue_id']}"))[0] == 404
        status, told = await at.ask("red", f"/v1/messages/{number}/resend", "POST", {"recipients": ["c@example.net"]})
        assert status == 400 and "is no recipient" in told["detail"]


async def test_lanes_and_figures_are_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        await at.send("ann", "a@example.net", "b@example.net")
        await at.send("bob")
        await at.send("bob", sender="later@example.com")
        for who, lanes, held in (
            ("all", {"ann", "bob"}, 3),
            ("red", {"ann"}, 2),
            ("blue", {"bob"}, 1),
            ("ann", {"ann"}, 2),
        ):
            found, figures = await at.get(who, "/v1/lanes"), await at.get(who, "/v1/stats")
            LaneRows.model_validate(found)
            Stats.model_validate(figures)
            assert {row["user"] for row in found["lanes"]} == lanes
            assert sum(row["recipients"].get("held", 0) for row in found["lanes"]) == held == figures["states"]["held"]
            assert bool(figures["egresses"]) == (who == "all")
        first = await at.get("all", "/v1/lanes", limit=1)
        met = [first["lanes"][0]["lane_id"]]
        while first["next"]:
            first = await at.get("all", "/v1/lanes", limit=1, after=first["next"])
            met += [row["lane_id"] for row in first["lanes"]]
        assert met == sorted(set(met)) and len(met) == len((await at.get("all", "/v1/lanes"))["lanes"])


async def test_a_cursor_that_there_is_not_is_null_and_may_be_asked_for_as_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        await at.send("ann")
        await at.token("chief", "admin")
        pages = ["messages", "queue", "lanes", "suppressions", "simulation"]
        for path, cursor in [*((one, "after") for one in pages), ("audit", "before")]:
            assert (await at.get("chief", f"/v1/{path}", **{cursor: ""}))["next"] is None, path
        (lane,) = (await at.get("all", "/v1/stats"))["lanes"]
        assert (lane["facts"]["class"], lane["facts"]["user"]) == ("default", "ann")


async def test_explain_is_for_ones_own_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"from": "spare@example.com", "to": "you@example.net"}
    async with tenancy(tmp_path, monkeypatch) as at:
        for user in ({}, {"user": "bob"}, {"user": "nobody"}):
            status, told = await at.ask("red", "/v1/explain", "POST", asked | user)
            assert status == 400 and "abe, ann" in told["detail"] and "bob" not in told["detail"]
        status, found = await at.ask("red", "/v1/explain", "POST", asked | {"user": "ann"})
        assert status == 200 and found["route"] == "spare"
        Explained.model_validate(found)
        assert [rule["name"] for rule in found["rules"]] == ["user ann", "spare"]
        assert set(found["egresses"][0]) == {"egress", "when", "wait", "skipped"}
        status, found = await at.ask("all", "/v1/explain", "POST", asked)
        assert status == 200 and [rule["name"] for rule in found["rules"]] == ["kept", "spare"]
        assert (await at.ask("red", "/v1/simulation"))[0] == 403
        assert (await at.get("all", "/v1/simulation"))["next"] is None
