"""Who may ask the API what, for each operation of its table: a new one is asked here by being there.

Where an operation has a path parameter, `THEIRS` says how the thing it names is made by another tenant, or `NOBODYS` why it is
no tenant's; the last test fails where it is in neither.
"""

from __future__ import annotations

import asyncio
import json
import re
import smtplib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from bearers import ask, base, token
from rig import Rig, free_port, running, write_config

from relay import clock
from relay.api.route import Operation
from relay.policy.access import SCOPES, Scope, Token, bearer

MORE = """tenants: {retail: {}, press: {}}
users:
  shop: {tenant: retail, password: {command: [echo, opensesame]}}
  desk: {tenant: press}
  alone: {}
"""
SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"
Made = Callable[[Rig], Awaitable[str]]


def api(folder: Path, more: str = MORE) -> Path:
    # Nothing listens at the upstream: what is sent waits.
    file = write_config(folder, {"main": f"port: {free_port()}, tls: none"}, classes=SLOW, extra=more)
    text = file.read_text().replace("address: null", f'address: "127.0.0.1:{free_port()}"')
    file.write_text(text.replace('127.0.0.1:0"}', '127.0.0.1:0", auth: optional}'))
    return file


def table(rig: Rig) -> list[Operation]:
    return rig.app.admin.operations


def url(rig: Rig, operation: Operation, name: str = "00000000000") -> str:
    return base(rig) + re.sub(r"{\w+(:[^}]*)?}", name, operation.path)


def wrong_scopes(operation: Operation) -> list[Scope]:
    """Those that don't bring with them what it wants."""
    return [s for s in SCOPES if not bearer(Token("", "", "", (s,))).may(operation.scope)]


# -- of which the path names a thing

MARK = "onlyofretail"


async def message(rig: Rig) -> str:
    """One of user shop; its queue id."""

    def send() -> str:
        with smtplib.SMTP("127.0.0.1", rig.port) as smtp:
            smtp.login("shop", "opensesame")
            smtp.mail(f"{MARK}@example.com")
            smtp.rcpt(f"{MARK}@example.net")
            said = smtp.data(f"Subject: {MARK}\r\nX-Relay-Tag: {MARK}\r\n\r\n{MARK}\r\n")
            return said[1].decode().split()[-1]

    return await asyncio.to_thread(send)


# By how the path begins.
THEIRS: dict[str, Made] = {"/v1/messages/{id}": message}
# One thing for the whole relay, or one of its configuration: no tenant's, so that a tenant's token gets 403 or what all get.
NOBODYS = {
    "/v1/tokens/{token}",
    "/v1/accounts/{name}",
    "/v1/limits/{section}/{name}",
    "/v1/webhooks/{name}/dead",
    "/v1/webhooks/{name}/drop",
    "/v1/webhooks/{name}/replay",
    "/v1/webhooks/{name}/test",
    # Each owner has names of his own, so that another's cannot even be asked for: test_api_reports.
    "/v1/reports/{consumer}",
}


@pytest.fixture
async def rig(tmp_path: Path) -> Any:
    async with running(api(tmp_path)) as made:
        yield made


async def test_without_a_good_token_nobody_gets_anywhere(rig: Rig) -> None:
    made = {
        "expired": await token(rig, expires=clock.now() - 1),
        "user": await token(rig, user="gone"),
        "tenant": await token(rig, tenant="gone"),
        "revoked": await token(rig),
    }
    number = made["revoked"].split("_")[1]
    assert await rig.app.tokens.revoke(number, clock.now())
    good = await token(rig)
    bad = {
        "": "say `Authorization",
        "garbage": "no such token",
        good[:-1] + ("a" if good[-1] != "a" else "b"): "no such token",
        good.replace(good.split("_")[1], "00000000"): "no such token",
        good + "\u00e9": "no such token",
        made["expired"]: "is expired",
        made["user"]: "user gone is not in the configuration",
        made["tenant"]: "tenant gone is not in the configuration",
        made["revoked"]: "is revoked",
    }
    for operation in table(rig):
        for text, why in bad.items():
            status, headers, said = await ask(url(rig, operation), operation.method, text)
            assert (status, why in said["detail"]) == (401, True), (operation.name, text, said)
            assert headers["WWW-Authenticate"].startswith("Bearer") and headers["Content-Type"].startswith(
                "application/problem+json"
            )
            assert good.split("_", 2)[2] not in str(said)
    for scheme in (f"Basic {good}", f"bearer{good}", good, "Bearer", "Bearer  "):
        assert (await ask(base(rig) + "/v1/status", headers={"Authorization": scheme}))[0] == 401
    assert (await ask(base(rig) + "/v1/status", headers={"Authorization": f"bearer {good}"}))[0] == 200
    # A token in the query counts no more than none (RFC 6750 §2.3 advises against it): queries are logged everywhere.
    assert (await ask(f"{base(rig)}/v1/status?access_token={good}"))[0] == 401


async def test_a_scope_that_is_not_enough_is_403(rig: Rig) -> None:
    for operation in table(rig):
        for scope in wrong_scopes(operation):
            for owner in ({}, {"tenant": "retail"}, {"user": "shop"}):
                text = await token(rig, scope, **owner)
                status, _, said = await ask(url(rig, operation), operation.method, text, {})
                assert (status, operation.scope in said["detail"]) == (403, True), (operation.name, scope, owner)


async def test_what_is_of_the_whole_relay_is_not_for_a_tenant(rig: Rig) -> None:
    owners = [{"tenant": "retail"}, {"user": "shop"}, {"user": "alone"}]
    texts = [await token(rig, "admin", **owner) for owner in owners]
    for operation in table(rig):
        for text in texts if operation.whole else ():
            status, _, said = await ask(url(rig, operation), operation.method, text, {})
            assert (status, "whole relay" in said["detail"]) == (403, True), operation.name


async def test_another_tenants_thing_is_as_one_that_is_not_there(rig: Rig) -> None:
    theirs, mine = await token(rig, "admin", "submit", tenant="retail"), await token(rig, "admin", tenant="press")
    for operation in table(rig):
        made = next((make for begin, make in THEIRS.items() if operation.path.startswith(begin)), None)
        if made is None or operation.whole:
            continue
        name = await made(rig)
        body = operation.examples.get("body", {}) if operation.method != "GET" else None
        there = await ask(url(rig, operation, name), operation.method, mine, body)
        gone = await ask(url(rig, operation), operation.method, mine, body)
        assert there[0] == gone[0] == 404, (operation.name, there, gone)
        assert there[2]["detail"].replace(name, "") == gone[2]["detail"].replace("00000000000", "")
        seen = await ask(url(rig, operation, name), operation.method, theirs, body)
        assert seen[0] < 500 and seen[0] not in (401, 403, 404), (operation.name, seen)


async def test_no_list_shows_another_tenants_mail(rig: Rig) -> None:
    number = await message(rig)
    texts = {
        True: [
            await token(rig, "admin"),
            await token(rig, "admin", tenant="retail"),
            await token(rig, "read", user="shop"),
        ],
        False: [await token(rig, "admin", tenant="press"), await token(rig, "admin", user="desk")],
    }
    shown = 0
    for operation in table(rig):
        if operation.method != "GET" or operation.whole or "{" in operation.path or "stream" in operation.path:
            continue  # a stream has no end of its own: test_api_events
        for may, owners in texts.items():
            for text in owners:
                said = (await ask(url(rig, operation), text=text))[2]
                there = MARK in json.dumps(said) or number in json.dumps(said)
                assert not there or may, (operation.name, said)
                shown += there
    listed = {operation.path for operation in table(rig)} & {"/v1/messages", "/v1/queue"}
    assert shown >= 3 * len(listed)


@pytest.mark.parametrize("owner", [{}, {"tenant": "press"}, {"user": "alone"}], ids=["whole", "tenant", "user"])
async def test_nothing_that_is_asked_makes_it_stumble(rig: Rig, owner: dict[str, str]) -> None:
    text = await token(rig, "admin", **owner)
    names = ["00000000000", "x", "..%2f..", "%00", "%ff", "a" * 300, "%F0%9F%92%A9", "*", "-1", str(1 << 80)]
    bodies = [None, {}, [], b"", b"{", b"null", b'{"a": NaN}', b"\xff\xfe", b"[" * 5000, b'{"limit": 1e999}']
    for operation in table(rig):
        if operation.path == "/v1/events" or "stream" in operation.path:
            continue  # may wait for something to come
        for name in names if "{" in operation.path else names[:1]:
            for body in bodies if operation.method != "GET" else [None]:
                status, headers, said = await ask(url(rig, operation, name), operation.method, text, body)
                assert status < 500 or status == 503, (operation.name, name, body, said)
                assert headers.get("X-Request-Id"), (operation.name, name, body, status, said)
        for query in ("?x=1", "?limit=-1", "?limit=1&limit=2", "?after=%ff", "?limit=" + "9" * 400, "?%00=%00"):
            status, _, said = await ask(url(rig, operation) + query, operation.method, text)
            assert status < 500 or status == 503, (operation.name, query, said)


async def test_what_is_no_operation_tells_nobody_without_a_token_what_there_is(rig: Rig) -> None:
    text = await token(rig, "read")
    for path in ("/v1", "/v1/", "/v1/nothing"):
        assert (await ask(base(rig) + path))[0] == 401
        assert (await ask(base(rig) + path, text=text))[0] == 404
    assert (await ask(base(rig) + "/v1/reload"))[0] == 401
    assert (await ask(base(rig) + "/v1/reload", text=text))[0] == 405
    assert (await ask(base(rig) + "/v1/tokens", "PATCH"))[0] == 401
    assert (await ask(base(rig) + "/v1/tokens", "OPTIONS"))[0] == 401


async def test_each_operation_with_a_name_in_its_path_is_looked_at(rig: Rig) -> None:
    named = {operation.path for operation in table(rig) if "{" in operation.path}
    missing = "say in THEIRS how another tenant's is made, or in NOBODYS that it is none's"
    assert {path for path in named - NOBODYS if not path.startswith((*THEIRS,))} == set(), missing
    assert NOBODYS - named == set(), "these are no operation's"
