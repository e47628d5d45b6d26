"""Suspensions over the API: a tenant stops its own users, and learns nothing of what else is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from apart import Apart, apart, configured


@pytest.fixture
async def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Apart]:
    async with apart(configured(tmp_path, monkeypatch)) as made:
        yield made


async def listed(at: Apart, who: str) -> list[tuple[str, str]]:
    return [(row["kind"], row["value"]) for row in (await at.good(who, "/v1/suspensions"))["suspensions"]]


async def test_a_tenant_suspends_its_users_alone(at: Apart) -> None:
    for kind, value in (("user", "bob"), ("class", "default"), ("user", "a*")):
        await at.good("all", "/v1/suspend", {"kind": kind, "value": value, "reason": "by the operator"})
    found = await at.good("red", "/v1/suspend", {"kind": "user", "value": "Ann", "for": 3600})
    assert found["notes"] == ["it stops no lanes with mail waiting"] and found["until"]
    assert await listed(at, "red") == await listed(at, "ann") == [("user", "Ann")]
    assert await listed(at, "blue") == [("user", "bob")] and await listed(at, "eve") == []
    assert len(await listed(at, "all")) == 4
    assert await at.good("red", "/v1/resume", {"all": True}) == {"resumed": 1, "asked_again": []}
    assert await listed(at, "red") == [] and len(await listed(at, "all")) == 3


@pytest.mark.parametrize("verb", ["suspend", "resume"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"kind": "user", "value": "bob"}, 404),
        ({"kind": "user", "value": "nobody"}, 404),
        ({"kind": "user", "value": "*"}, 404),
        ({"kind": "user", "value": "an?"}, 404),
        ({"kind": "class", "value": "default"}, 403),
        ({"kind": "egress", "value": "main"}, 403),
        ({"kind": "sender", "value": ""}, 403),
    ],
    ids=lambda v: str(v.get("kind")) + " " + str(v.get("value")) if isinstance(v, dict) else str(v),
)
async def test_what_is_not_its_own_is_not_there(at: Apart, verb: str, body: dict[str, Any], status: int) -> None:
    await at.good("all", "/v1/suspend", {"kind": "user", "value": "bob"})
    got, told = await at.ask("red", f"/v1/{verb}", body)
    assert got == status and told["request_id"]
    if status == 404:
        _, other = await at.ask("red", f"/v1/{verb}", {"kind": "user", "value": "zoe"})
        assert other["detail"].replace("zoe", body["value"]) == told["detail"] and "class" not in told["detail"]
    assert len(await listed(at, "all")) == 1


async def test_what_an_operator_stopped_no_tenant_lets_go(at: Apart) -> None:
    await at.good("all", "/v1/suspend", {"kind": "user", "value": "ann", "reason": "abuse"})
    for verb in ("resume", "suspend"):
        status, told = await at.ask("red", f"/v1/{verb}", {"kind": "user", "value": "Ann"})
        assert status == 403 and "operator" in told["detail"]
    assert await at.good("red", "/v1/resume", {"all": True}) == {"resumed": 0, "asked_again": []}
    assert await listed(at, "red") == [("user", "ann")]
    await at.good("all", "/v1/resume", {"kind": "user", "value": "ann"})
    await at.good("red", "/v1/suspend", {"kind": "user", "value": "ann"})
    assert (await at.good("all", "/v1/resume", {"all": True}))["resumed"] == 1  # the other way round it may


async def test_to_resume_what_is_not_suspended_tells_nothing_else(at: Apart) -> None:
    await at.good("all", "/v1/suspend", {"kind": "class", "value": "default", "reason": "secret"})
    status, told = await at.ask("red", "/v1/resume", {"kind": "user", "value": "ann"})
    assert status == 404 and told["detail"] == "no suspension of user ann is in force"
    ann = {"kind": "user", "value": "ann"}
    for body in (ann, {"all": True}):  # many at once: who comes second finds it gone
        await at.good("red", "/v1/suspend", ann)
        found = await asyncio.gather(*(at.ask("red", "/v1/resume", body) for _ in range(8)))
        assert all("default" not in str(told) for _, told in found)
        assert sum(told["resumed"] for status, told in found if status == 200) == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "clas", "value": "x"}, "kind"),
        ({"kind": "class"}, "value"),
        ({"kind": "class", "value": "default", "for": "2h"}, "for"),
        ({"kind": "class", "value": "default", "for": True}, "for"),
        ({"kind": "class", "value": "default", "until": 5}, "until"),
    ],
    ids=["kind", "no-value", "for", "for-bool", "unknown"],
)
async def test_fields_that_are_wrong_are_named(at: Apart, body: dict[str, Any], field: str) -> None:
    status, told = await at.ask("all", "/v1/suspend", body)
    assert status == 400 and [error["field"] for error in told["errors"]] == [field]


async def test_it_is_on_record(at: Apart) -> None:
    await at.good("red", "/v1/suspend", {"kind": "user", "value": "ann", "reason": "holiday"})
    await at.token("admin", "admin")
    (entry,) = (await at.good("admin", "/v1/audit", query={"act": "POST /v1/suspend"}))["audit"]
    assert entry["tenant"] == "red" and entry["status"] == 200
    assert entry["asked"] == {"kind": "user", "value": "ann", "reason": "holiday"}
