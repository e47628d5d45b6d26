"""What is of the whole relay: limits, webhooks, figures, reload, the spool; and how long the audit is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from apart import Apart, apart, configured

from relay import clock
from relay.scheduler import housekeeping
from relay.spool.access import Audit, AuditFilter


@pytest.fixture
async def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Apart]:
    async with apart(configured(tmp_path, monkeypatch)) as made:
        await made.token("admin", "admin")
        yield made


async def test_limits_are_told_apart(at: Apart) -> None:
    for user in ("ann", "bob", "eve"):
        await at.rig.reaches(await at.send(user), "delivered")

    async def whose(who: str) -> list[str]:
        return sorted(row["whose"] for row in (await at.good(who, "/v1/limits"))["limits"])

    every = await whose("all")
    assert every == ["tenant blue", "tenant red", "user ann"]
    assert await whose("red") == ["tenant red", "user ann"] and await whose("blue") == ["tenant blue"]
    assert await whose("ann") == ["user ann"] and await whose("eve") == []


@pytest.mark.parametrize("path", ["shaping", "alarms", "reputation", "webhooks", "feedback/stats"])
async def test_what_is_of_the_whole_relay(at: Apart, path: str) -> None:
    assert (await at.ask("red", f"/v1/{path}"))[0] == 403
    assert path.rpartition("/")[0] or path in await at.good("all", f"/v1/{path}")


async def test_a_reload_that_is_refused_says_why(at: Apart) -> None:
    assert (await at.ask("all", "/v1/reload", {}))[0] == 403
    assert (await at.good("admin", "/v1/reload", {}))["taken"] is True
    source = at.rig.app.config.source
    assert source is not None
    source.write_text(source.read_text() + "\nxyzzy: 5\n")
    status, told = await at.ask("admin", "/v1/reload", {})
    assert status == 422 and told["taken"] is False and "xyzzy" in told["notes"][0] and told["title"]


async def test_the_spool_is_checked_and_copied(at: Apart, tmp_path: Path) -> None:
    assert (await at.good("admin", "/v1/spool/check", {}))["ok"] is True
    body = {"folder": str(tmp_path / "copy")}
    assert (await at.good("admin", "/v1/spool/backup", body))["folder"] == body["folder"]
    assert (await at.ask("admin", "/v1/spool/backup", body))[0] == 409
    assert (await at.ask("admin", "/v1/spool/backup", {"folder": "relative"}))[0] == 400
    acts = [entry["act"] for entry in (await at.good("admin", "/v1/audit"))["audit"]]
    assert acts.count("POST /v1/spool/backup") == 3 and "POST /v1/spool/check" not in acts


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/webhooks/none/dead", None, 404),
        ("/v1/webhooks/none/dead?limit=0", None, 400),
        ("/v1/webhooks/none/dead?after=99999999999999999999", None, 400),
        ("/v1/webhooks/none/replay", {"dead": True}, 404),
        ("/v1/webhooks/none/replay", {}, 400),
        ("/v1/webhooks/none/replay", {"dead": True, "after": 5}, 400),
        ("/v1/webhooks/none/replay", {"after": True}, 400),
        ("/v1/webhooks/none/drop", {"dry_run": True}, 404),
        ("/v1/webhooks/none/test", {}, 404),
        ("/v1/feedback/stats?seconds=0", None, 400),
        ("/v1/feedback/stats?seconds=nan", None, 400),
    ],
)
async def test_slips_of_the_pen(at: Apart, path: str, body: Any, status: int) -> None:
    got, told = await at.ask("all", path, body)
    assert got == status and told["detail"]


async def test_the_audit_is_forgotten_by_age(at: Apart, monkeypatch: pytest.MonkeyPatch) -> None:
    spool, year = at.rig.app.spool, at.rig.app.config.admin.audit
    assert year == 365 * 86400
    for number, age in enumerate((2 * year, year + 60, year - 3600, 0)):
        await spool.begin_audit(Audit(clock.now() - age, f"token {number}", "", "r", "POST /v1/x"))
    monkeypatch.setattr(housekeeping, "PURGE_EVERY", 0.0)
    at.rig.app.supervisor.start("once more", at.rig.app.housekeeper.forget)
    left: list[str] = []
    for _ in range(2000):
        left = [entry.who for entry in await spool.audits(AuditFilter(act="POST /v1/x"))]
        if len(left) == 2:
            break
        await asyncio.sleep(0.01)
    assert left == ["token 3", "token 2"]
