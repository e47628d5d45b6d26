"""Tokens from the command line, routes of a tenant's own, and what a backup keeps of both."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from bearers import token
from click.testing import CliRunner, Result
from rig import free_port, running, write_config

from relay import clock
from relay.admin.ports import BadRequest
from relay.api import access
from relay.api.tokens import Tokens
from relay.cli import cli
from relay.config.load import load
from relay.policy.routing import Facts, Route
from relay.spool import Filter
from relay.spool.sqlite import SqliteSpool

MORE = """tenants: {retail: {routes: [news, rest]}, press: {}}
users: {shop: {tenant: retail}, desk: {tenant: press}}
"""
ROUTES = """  - {name: first, match: {recipient: "*@example.net"}, via: main}
  - {name: news, match: {class: marketing}, via: other}
  - {name: rest, match: {recipient: "*@example.*"}, via: other}"""


def configured(folder: Path, more: str = MORE) -> Path:
    accounts = {name: f"port: {free_port()}, tls: none" for name in ("main", "other")}
    classes = "  default: {retry: {schedule: [1h], give_up: 1d}}\n  marketing: {}"
    return write_config(folder, accounts, routes=ROUTES, classes=classes, extra=more)


async def relay(folder: Path, *arguments: str) -> Result:
    env = {"RELAY_ENDPOINT": str(folder / "admin.sock")}
    return await asyncio.to_thread(CliRunner().invoke, cli, arguments, env=env)


async def test_tokens_and_the_audit_by_the_command_line(tmp_path: Path) -> None:
    async with running(configured(tmp_path)) as rig:
        made = await relay(
            tmp_path,
            "token",
            "add",
            "crm",
            "--scope",
            "submit",
            "--scope",
            "read",
            "--user",
            "shop",
            "--expires",
            "90d",
        )
        text = made.stdout.removesuffix("\n")
        assert made.exit_code == 0 and "crm" in made.stderr and text not in made.stderr
        found = rig.app.tokens.bearer(text, 0.0)
        assert not isinstance(found, str) and found.user == "shop" and found.scopes == {"submit", "read"}
        number = text.split("_")[1]
        listed = await relay(tmp_path, "token", "list")
        assert listed.stdout.split("\t")[:6] == [number, "crm", "submit,read", "shop", "-", "valid"]
        assert text.split("_", 2)[2] not in listed.stdout
        (row,) = json.loads((await relay(tmp_path, "token", "list", "--json")).stdout)
        assert row["id"] == number
        assert (await relay(tmp_path, "token", "revoke", number[:4])).exit_code != 0  # exact, or none
        assert "revoked" in (await relay(tmp_path, "token", "revoke", number)).stdout
        assert rig.app.tokens.bearer(text, 0.0) == "the token is revoked"
        audit = await relay(tmp_path, "audit", "--act", "* /v1/tokens*")
        lines = [line.split("\t") for line in audit.stdout.splitlines()]
        assert [line[2:4] for line in lines] == [
            [f"DELETE /v1/tokens/{number}", "200"], [f"DELETE /v1/tokens/{number[:4]}", "404"], ["POST /v1/tokens", "201"]
        ]  # fmt: skip
        assert all(line[1].startswith("uid ") for line in lines) and text not in audit.stdout
        rows = json.loads((await relay(tmp_path, "audit", "--json", "--limit", "2", "--since", "1h")).stdout)
        assert len(rows) == 2 and rows[0]["id"] > rows[1]["id"]
        assert json.loads((await relay(tmp_path, "audit", "--json", "--who", "token*")).stdout) == []


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--scope", "all"), "'all' is not one of"),
        (("--scope", "read", "--user", "nobody"), "no user 'nobody' in the configuration; there are: desk, shop"),
        (("--scope", "read", "--user", "shop", "--tenant", "retail"), "not both"),
        (("--scope", "read", "--expires", "soon"), "expected a duration"),
        ((), "Missing option '--scope'"),
    ],
    ids=["scope", "user", "both", "expires", "none"],
)
async def test_a_token_that_makes_no_sense_is_refused(tmp_path: Path, more: tuple[str, ...], why: str) -> None:
    async with running(configured(tmp_path)):
        said = await relay(tmp_path, "token", "add", "x", *more)
        assert said.exit_code != 0 and why in said.stderr and not said.stdout, said.stderr


def picked(table: object, user: str, class_: str = "default", recipient: str = "a@example.net") -> str | None:
    facts = Facts("s@x", recipient, user=user, from_="s@x", class_=class_, tag="", size=1, headers={})
    found = table.pick_for(facts)  # type: ignore[attr-defined]
    return found.name if isinstance(found, Route) else None


def test_other_routes_are_passed_over(tmp_path: Path) -> None:
    config = load(configured(tmp_path))
    assert not config.warnings
    table = config.table
    assert [picked(table, user) for user in ("", "desk", "shop")] == ["first", "first", "rest"]
    assert picked(table, "shop", "marketing", "a@elsewhere.org") == "news"
    assert picked(table, "shop", recipient="a@elsewhere.org") is None
    assert table.open_to(["shop"]) == ["news", "rest"] and table.open_to(["desk", ""]) == ["first", "news", "rest"]


def test_a_user_whose_mail_no_route_takes_is_warned_of(tmp_path: Path) -> None:
    file = configured(tmp_path)
    file.write_text(file.read_text().replace("class: marketing", "user: desk").replace("[news, rest]", "[news]"))
    (warning,) = load(file).warnings
    assert "tenants.retail.routes: none of them takes mail of user 'shop'" in warning


async def test_a_route_by_name_and_by_hand_and_explained(tmp_path: Path) -> None:
    file = configured(tmp_path)
    file.write_text(file.read_text().replace('127.0.0.1:0"}', '127.0.0.1:0", honour: [route]}'))
    async with running(file) as rig:
        service = rig.app.admin.service
        asked = {"sender": "s@example.com", "to": "a@example.net", "user": "shop"}
        found = await service.explain(asked)
        assert found["route"] == "rest" and found["rules"][1]["verdict"].startswith("not for tenant retail")
        for to in ("first", "main", "other", "nothing"):
            with pytest.raises(BadRequest, match="no route of yours; there are news, rest"):
                await service.act("reroute", _mine(), to, dry_run=True)
        assert (await service.act("reroute", _mine(), "rest", dry_run=True))["recipients"] == 0


def _mine() -> Filter:
    return Filter(sender="*", users=frozenset({"shop"}))


async def test_what_the_spool_did_not_take_is_revoked_by_asking_again(tmp_path: Path) -> None:
    """Else it would be revoked as far as anybody sees, and valid again after the next start."""
    file = configured(tmp_path)
    async with running(file) as rig:
        number = (await token(rig, "read")).split("_")[1]
        with closing(sqlite3.connect(tmp_path / "spool/spool.db", isolation_level=None)) as other:
            other.execute("CREATE TRIGGER no BEFORE INSERT ON token BEGIN SELECT RAISE(ABORT, 'no'); END")
            assert (await relay(tmp_path, "token", "revoke", number)).exit_code != 0
            other.execute("DROP TRIGGER no")
        again = await relay(tmp_path, "token", "revoke", number)
        assert again.exit_code == 0, again.output
    async with running(file) as rig:
        assert [one.state(clock.now()) for one in rig.app.tokens.page("", 10)] == ["revoked"]


async def test_a_backup_keeps_tokens_and_what_was_revoked(tmp_path: Path) -> None:
    file = configured(tmp_path)
    async with running(file) as rig:
        good, bad = await token(rig, "read"), await token(rig, "read")
        await rig.app.tokens.revoke(bad.split("_")[1], 1.0)
        await rig.app.admin.service.backup(str(tmp_path / "copy"))
    saved = await relay(tmp_path, "spool", "salvage", str(tmp_path / "spool"), str(tmp_path / "salvaged"))
    assert saved.exit_code == 0, saved.output
    for folder in ("copy", "salvaged", "spool"):
        spool = await SqliteSpool.open(tmp_path / folder / "spool.db", 2.0)
        try:
            tokens = Tokens(spool, lambda: load(file))
            await tokens.load()
            assert not isinstance(tokens.bearer(good, 2.0), str)
            assert tokens.bearer(bad, 2.0) == "the token is revoked"
        finally:
            await spool.close()
        for part in (tmp_path / folder).rglob("*"):
            held = part.read_bytes() if part.is_file() else b""
            assert not any(text.split("_", 2)[2].encode() in held for text in (good, bad)), part


async def test_tokens_come_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "MOST", 3)
    async with running(configured(tmp_path)) as rig:
        for number in range(7):
            made = await relay(tmp_path, "token", "add", f"app{number}", "--scope", "read")
            assert made.exit_code == 0
        rows = json.loads((await relay(tmp_path, "token", "list", "--json")).stdout)
        assert [row["name"] for row in rows] == [f"app{number}" for number in range(7)]
        assert len((await relay(tmp_path, "token", "list")).stdout.splitlines()) == 7
        assert rig.app.tokens.page("00000000", 10) == [] and len(rig.app.tokens.page(rows[4]["id"], 10)) == 2
