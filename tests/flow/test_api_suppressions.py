"""Suppressions over the API: a tenant sees and changes its own scope, without naming it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from apart import Apart, apart, configured

ALL = ("all", "tenant:red", "tenant:blue", "class:default")


@pytest.fixture
async def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Apart]:
    async with apart(configured(tmp_path, monkeypatch)) as made:
        entries = [{"address": "gone@x.example", "scope": scope} for scope in ALL]
        assert len((await made.good("all", "/v1/suppressions", {"entries": entries}))["listed"]) == 4
        yield made


async def listed(at: Apart, who: str, **query: Any) -> set[tuple[str, str]]:
    rows = (await at.good(who, "/v1/suppressions", query=query))["suppressions"]
    return {(row["address"], row["scope"]) for row in rows}


async def test_a_tenant_sees_its_own(at: Apart) -> None:
    assert len(await listed(at, "all")) == 4
    for who in ("red", "ann"):
        assert await listed(at, who) == await listed(at, who, scope="tenant:red") == {("gone@x.example", "tenant:red")}
    assert await listed(at, "red", address="*@X.example", why="manual") == {("gone@x.example", "tenant:red")}
    assert await listed(at, "red", address="*@y.example") == set()
    # Nor by a cursor that somebody else was given.
    assert await listed(at, "red", after="class:default zzz", limit="1") == {("gone@x.example", "tenant:red")}


@pytest.mark.parametrize("who", ["red", "ann"])
async def test_what_it_adds_is_of_its_scope(at: Apart, who: str) -> None:
    found = await at.good(who, "/v1/suppressions", {"entries": [{"address": "New@x.example"}, {"address": "nobody"}]})
    assert [(row["address"], row["scope"]) for row in found["listed"]] == [("new@x.example", "tenant:red")]
    assert found["refused"] == [{"number": 1, "why": "address has no @domain"}]
    assert ("new@x.example", "tenant:red") in await listed(at, "all")


@pytest.mark.parametrize("scope", ["all", "tenant:blue", "class:default", "tenant:none"])
async def test_another_scope_is_not_there(at: Apart, scope: str) -> None:
    asked: list[tuple[str, Any, dict[str, str]]] = [
        ("/v1/suppressions", None, {"scope": scope}),
        ("/v1/suppressions", {"entries": [{"address": "a@x.example", "scope": scope}]}, {}),
        ("/v1/suppressions/remove", {"addresses": ["gone@x.example"], "scope": scope}, {}),
        ("/v1/suppressions/remove", {"filter": {"scope": scope}}, {}),
    ]
    for path, body, query in asked:
        status, told = await at.ask("red", path, body, query=query)
        assert status == 404 and "it has tenant:red" in told["detail"]
    assert len(await listed(at, "all")) == 4


async def test_what_it_removes_is_of_its_scope(at: Apart) -> None:
    dry = await at.good("red", "/v1/suppressions/remove", {"filter": {"address": "*"}, "dry_run": True})
    assert dry["count"] == 1 and len(await listed(at, "all")) == 4
    gone = await at.good("red", "/v1/suppressions/remove", {"addresses": ["gone@x.example", "not@x.example"]})
    assert gone["count"] == 1 and gone["missing"] == ["not@x.example"]
    gone = await at.good("blue", "/v1/suppressions/remove", {"filter": {"address": "*"}})
    assert gone["count"] == 1
    assert await listed(at, "all") == {("gone@x.example", "all"), ("gone@x.example", "class:default")}


async def test_who_has_no_tenant_has_no_list(at: Apart) -> None:
    for path, body in (
        ("/v1/suppressions", None),
        ("/v1/suppressions", {"entries": []}),
        ("/v1/suppressions/remove", {"addresses": ["gone@x.example"]}),
    ):
        status, told = await at.ask("eve", path, body)
        assert status == 403 and "no tenant" in told["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"entries": [{"address": "a@x.example"}, {"scope": "all"}]}, "entries[1].address"),
        ({"entries": [{"address": 5}]}, "entries[0].address"),
        ({"entries": [{"address": "a@x.example", "until": "soon"}]}, "entries[0].until"),
        ({"entries": [{"address": "a@x.example", "colour": "red"}]}, "entries[0].colour"),
        ({"entries": [{"address": "a@x.example"}] * 1001}, "entries"),
        ({}, "entries"),
    ],
    ids=["missing", "no-text", "no-time", "unknown", "too-many", "none"],
)
async def test_fields_that_are_wrong_are_named(at: Apart, body: dict[str, Any], field: str) -> None:
    status, told = await at.ask("all", "/v1/suppressions", body)
    assert status == 400 and field in [error["field"] for error in told["errors"]]
