"""What is changed at run time: over the API, over restarts and reloads, and by the verbs."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import Upstream
from rig import ENV, Rig, free_port, running, until, write_config

from relay.cli.simulate import _in_force
from relay.config.load import load
from relay.simulate.snapshot import Snapshot
from relay.spool import SpoolError

FILE = {"main": "port: PORT, tls: none, limits: [1000/h], connections: 4"}


def config(folder: Path, port: int = 0, *, extra: str = "") -> Path:
    file = write_config(folder, FILE, extra=extra)
    file.write_text(file.read_text().replace("PORT", str(port or free_port())))
    return file


async def ask(rig: Rig, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    connector = aiohttp.UnixConnector(str(rig.app.config.admin.socket))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.request(method, f"http://localhost{path}", json=body) as answer,
    ):
        return answer.status, await answer.json(content_type=None)


async def patch(rig: Rig, name: str, **wanted: Any) -> dict[str, Any]:
    status, found = await ask(rig, "PATCH", f"/v1/accounts/{name}", wanted)
    assert status == 200, found
    return dict(found)


async def changes(rig: Rig) -> list[tuple[str, Any, Any]]:
    return [(c["path"], c["value"], c["file"]) for c in (await ask(rig, "GET", "/v1/changes"))[1]["changes"]]


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


async def test_the_limit_binds_at_once_and_what_was_spent_counts_on(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up.port)) as rig:
        await rig.send_many([("a@example.com", (f"u{n}@example.net",), b"Subject: t\r\n\r\nx\r\n") for n in range(3)])
        await rig.settled()
        found = await patch(rig, "main", limits=["5/h"], connections=2)
        assert found["limits"][0] | {"wait": 0} == {
            "limit": "5/h", "unit": "recipients", "spent": 3, "count": 5, "share": 0.6, "wait": 0,
        }  # fmt: skip
        assert found["connections"] == rig.egress().account.connections == 2
        await rig.send_many([("a@example.com", (f"v{n}@example.net",), b"Subject: t\r\n\r\nx\r\n") for n in range(4)])
        await until(lambda: len(up.delivered()) == 5)
        await until(lambda: rig.app.spool.queued == 2)  # what was delivered is told of a little later
        rows = [row for row in await rig.rows() if row["state"] != "delivered"]
        assert len(rows) == 2 and all("5/h" in row["why"] for row in rows), rows
        await patch(rig, "main", limits=None)
        await rig.settled()
        assert len(up.delivered()) == 7


async def test_accounts_tell_who_changed_what(tmp_path: Path) -> None:
    extra = 'direct: {mx: {source: ["127.0.0.1"], limits: [30 messages/min]}}'
    async with running(config(tmp_path, extra=extra)) as rig:
        await patch(rig, "main", limits=["14/s", {"rate": "50000/d", "burst": 9}])
        status, found = await ask(rig, "GET", "/v1/accounts")
        assert status == 200
        main, mx = found["accounts"]
        assert (main["name"], main["kind"], main["state"], main["messages_per_connection"]) == (
            "main", "account", "ready", 100,
        )  # fmt: skip
        (change,) = main["changes"]
        assert change["who"].startswith("uid ") and change["at"] > 1e9
        assert (change["key"], change["file"]) == ("limits", ["1000/h"])
        assert (mx["name"], mx["kind"], mx["limits"][0]["unit"], mx["changes"]) == ("mx", "direct", "messages", [])
        assert (await ask(rig, "GET", "/v1/accounts/mx"))[1]["destinations"] == 0
        assert (await ask(rig, "GET", "/v1/status"))[1]["changes"] == 1
        await patch(rig, "mx", connections=3)
        assert (await ask(rig, "GET", "/v1/accounts/mx"))[1]["connections"] == 3
        assert await changes(rig) == [
            ("accounts.main.limits", ["14/s", {"rate": "50000/d", "burst": 9}], ["1000/h"]),
            ("direct.mx.connections", 3, None),
        ]
        audit = (await ask(rig, "GET", "/v1/audit?act=PATCH*"))[1]["audit"]
        assert [(one["act"], one["status"]) for one in audit] == [
            ("PATCH /v1/accounts/mx", 200), ("PATCH /v1/accounts/main", 200),
        ]  # fmt: skip
        assert audit[0]["asked"] == {"connections": 3}
        await until(lambda: not rig.app.scheduler.journal._events)
        told = json.loads(f"[{','.join((await cli(rig, 'events', '--json')).splitlines())}]")
        events = [(e["by"], e["sections"]) for e in told if e["event"] == "config_changed"]
        assert events[-2:] == [("change", ["accounts"]), ("change", ["direct"])]


BAD = {
    "rate": ("PATCH", "/v1/accounts/main", {"limits": ["5/fortnight"]}, 400, "expected a rate"),
    "one-of-two": ("PATCH", "/v1/accounts/main", {"connections": 2, "limits": ["5/h", "x"]}, 400, "expected a rate"),
    "none": ("PATCH", "/v1/accounts/main", {}, 400, "change what?"),
    "zero": ("PATCH", "/v1/accounts/main", {"connections": 0}, 400, "at least 1"),
    "huge": ("PATCH", "/v1/accounts/main", {"connections": 10**30}, 400, "at most"),
    "unknown-key": ("PATCH", "/v1/accounts/main", {"password": "x"}, 400, "there is no field of that name"),
    "not-of-direct": ("PATCH", "/v1/accounts/mx", {"messages_per_connection": 3}, 400, "unknown key"),
    "reject": (
        "PATCH",
        "/v1/accounts/main",
        {"limits": [{"rate": "5 connections/h", "when_full": "reject"}]},
        400,
        "dialled",
    ),
    "nobody": ("PATCH", "/v1/accounts/nobody", {"connections": 3}, 404, "no such account"),
    "built-in": ("PATCH", "/v1/accounts/direct", {"messages_per_connection": 3}, 400, "unknown key"),
    "no-name": ("PATCH", "/v1/limits/limits/limit-1", {"rate": "3/h"}, 404, "have a `name`"),
    "no-map": ("PATCH", "/v1/limits/limits/0", {"rate": "3/h"}, 404, "have a `name`"),
    "not-of-a-rule": ("PATCH", "/v1/limits/limits/mailbox", {"limits": ["3/h"]}, 400, "of limits there is rate, burst"),
    "nothing-of-a-rule": ("PATCH", "/v1/limits/limits/mailbox", {}, 400, "change what?"),
    "rule-rate": ("PATCH", "/v1/limits/limits/mailbox", {"rate": "3 connections/h"}, 400, "this rate counts mail"),
    "rule-burst": ("PATCH", "/v1/limits/limits/mailbox", {"burst": 9000}, 400, "more at once"),
    "destination-few": ("PATCH", "/v1/limits/destinations/big", {"connections": 0}, 400, "at least 1"),
    "not-of-a-user": ("PATCH", "/v1/limits/users/app", {"connections": 3}, 400, "of users there is limits"),
    "look": ("GET", "/v1/accounts/nobody", None, 404, "no such account"),
    "section": ("PATCH", "/v1/limits/routes/all", {"limits": []}, 404, "users, tenants, classes, destinations, limits"),
    "user": ("PATCH", "/v1/limits/users/nobody", {"limits": []}, 404, "users.nobody"),
    "user-rate": ("PATCH", "/v1/limits/users/app", {"limits": ["5 connections/h"]}, 400, "limits"),
    "reset": ("POST", "/v1/reload", {"reset": "perhaps"}, 400, "reset"),
}
EXTRA = """users: {app: {password: {env: HOME}, tenant: shop}}
tenants: {shop: {}}
direct: {mx: {}}
limits: [9000/d, {rate: 800/d, per: user}, {name: mailbox, match: {class: default}, per: sender, rate: 500/d}]
destinations: [{name: big, match: {recipient: "*@big.example"}, limits: [9/s]}, {match: {mx: "*"}}]"""


async def test_what_may_not_be_changes_nothing(tmp_path: Path) -> None:
    file = config(tmp_path, extra=EXTRA)
    rewrite(file, "via: [main]", "via: [main, mx, direct]")
    async with running(file) as rig:
        before = rig.app.config
        for name, (method, path, body, wanted, words) in BAD.items():
            status, found = await ask(rig, method, path, body)
            assert status == wanted and words in found["detail"], (name, found)
            if method == "PATCH" and status == 400 and body:
                assert found["errors"], name
        assert rig.app.config is before and await changes(rig) == []


async def test_limits_of_users_tenants_and_classes(tmp_path: Path) -> None:
    async with running(config(tmp_path, extra=EXTRA)) as rig:
        for section, name in (("users", "app"), ("tenants", "shop"), ("classes", "default")):
            path = f"/v1/limits/{section}/{name}"
            assert (await ask(rig, "GET", path))[1]["limits"] == []
            status, found = await ask(rig, "PATCH", path, {"limits": ["3/h"]})
            assert (status, found["limits"], found["changes"][0]["file"]) == (200, ["3/h"], None)
            assert (await ask(rig, "GET", path))[1]["limits"] == ["3/h"]
        found = {limit.whose: str(limit.rate) for limit in rig.app.config.limits if limit.whose}
        assert found == {"user app": "3/h", "tenant shop": "3/h", "class default": "3/h"}


async def test_named_limits_destinations_and_what_is_built_in(tmp_path: Path) -> None:
    file = config(tmp_path, extra=EXTRA)
    rewrite(file, "via: [main]", "via: [main, mx, direct]")
    rule, place = "/v1/limits/limits/mailbox", "/v1/limits/destinations/big"

    def in_force(rig: Rig) -> tuple[str, int, list[str], int, int]:
        config = rig.app.config
        (limit,) = [one for one in config.limits if one.name == "mailbox"]
        (big,) = [one for one in config.destinations if one.name == "big"]
        built_in = config.accounts["direct"].connections
        return limit.rate.text, limit.rate.burst, [one.text for one in big.limits], big.connections, built_in

    filed = ("500/d", 0, ["9/s"], 20, 200)
    async with running(file) as rig:
        assert in_force(rig) == filed
        status, found = await ask(rig, "PATCH", rule, {"rate": "300/d", "burst": 7})
        assert (status, found["limits"], found["values"]) == (200, ["300/d"], {"rate": "300/d", "burst": 7})
        status, found = await ask(rig, "PATCH", place, {"limits": ["2/s"], "connections": 3})
        assert (status, found["limits"], found["values"]["connections"]) == (200, ["2/s"], 3)
        assert (await patch(rig, "direct", connections=5, limits=["60/min"]))["connections"] == 5
        assert in_force(rig) == ("300/d", 7, ["2/s"], 3, 5)
        assert await changes(rig) == [
            ("limits.mailbox.rate", "300/d", "500/d"), ("limits.mailbox.burst", 7, None),
            ("destinations.big.limits", ["2/s"], ["9/s"]), ("destinations.big.connections", 3, None),
            ("direct.direct.limits", ["60/min"], None), ("direct.direct.connections", 5, None),
        ]  # fmt: skip
    # Another number in its list is the same entry; a key that the file says otherwise is the file's.
    rewrite(file, "{name: mailbox,", "700/h, {name: mailbox,")
    rewrite(file, "limits: [9/s]", "limits: [8/s]")
    async with running(file) as rig:
        assert in_force(rig) == ("300/d", 7, ["8/s"], 3, 5)
        assert ["destinations.big.limits" in said["note"] for said in rig.said("change_dropped")] == [True]
        rewrite(file, "name: mailbox", "name: postbox")
        taken, notes = rig.app.reload()
        assert taken and sum("limits.mailbox is no more" in note for note in notes) == 2
        rewrite(file, "name: postbox", "name: mailbox")
        status, found = await ask(rig, "POST", "/v1/reload", {"reset": True})
        assert status == 200 and any("direct.direct.connections: 5" in note for note in found["notes"])
        assert in_force(rig) == ("500/d", 0, ["8/s"], 20, 200)


async def test_what_was_wrong_without_it_is_told_apart(tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.write_text("x")
    users = f'users: {{app: {{password: {{file: "{secret}"}}}}}}'
    async with running(config(tmp_path, extra=f"limits: [{{name: box, rate: 9/d, burst: 5}}]\n{users}")) as rig:
        secret.unlink()  # what is in force can't be built again
        status, found = await ask(rig, "PATCH", "/v1/limits/limits/box", {"rate": "3/d"})
        assert (status, [one["field"] for one in found["errors"]]) == (400, ["burst"])
        status, found = await ask(rig, "PATCH", "/v1/limits/limits/box", {"rate": "7/d"})
        assert status == 409 and "users.app.password" in found["detail"] and "errors" not in found
        assert await changes(rig) == []


async def test_over_a_restart_and_dropped_where_the_file_changed_meanwhile(tmp_path: Path) -> None:
    file = config(tmp_path)
    async with running(file) as rig:
        await patch(rig, "main", limits=["14/s"], connections=2, recipients_per_message=7)
    async with running(file) as rig:
        main = rig.egress().account
        assert (str(main.limits[0]), main.connections, main.recipients_per_message) == ("14/s", 2, 7)
        assert len(await changes(rig)) == 3
        snapshot = Snapshot(0.0, {}, await rig.app.spool.remembered(), {})
        assert (
            _in_force(load(file), snapshot).accounts["main"].connections == 2
        )  # a simulation of its queue knows it too
    rewrite(file, "connections: 4", "connections: 6")
    async with running(file) as rig:
        assert rig.egress().account.connections == 6
        assert [path for path, *_ in await changes(rig)] == [
            "accounts.main.limits", "accounts.main.recipients_per_message",
        ]  # fmt: skip
        (said,) = rig.said("change_dropped")
        assert "the file says 6 there now, it said 4" in said["note"]
        await until(lambda: not rig.app.runtime._unkept.is_set())
    rewrite(file, "connections: 6", "connections: 4")  # as it was: what was dropped does not come back
    async with running(file) as rig:
        assert rig.egress().account.connections == 4


async def test_a_file_that_it_no_longer_fits_does_not_stop_a_start(tmp_path: Path) -> None:
    file = config(tmp_path, extra="users: {app: {password: {env: HOME}}}")
    async with running(file) as rig:
        await ask(rig, "PATCH", "/v1/limits/users/app", {"limits": ["3/h"]})
        await rig.app.spool.remember({"more": "x"})
    rewrite(file, "users: {app: {password: {env: HOME}}}", "users: {}")
    async with running(file) as rig:
        assert await changes(rig) == [] and "users.app is no more" in rig.said("change_dropped")[0]["note"]
        await rig.app.spool.remember({"changes": '[{"damaged'})
    async with running(file) as rig:
        assert await changes(rig) == [] and rig.said("not_remembered")[0]["what"] == "changes"


async def test_a_reload_keeps_it_but_where_the_file_changed(tmp_path: Path) -> None:
    file = config(tmp_path)
    async with running(file) as rig:
        await patch(rig, "main", limits=["14/s"], connections=2)
        rewrite(file, "stop_timeout: 5s", "stop_timeout: 6s")
        assert rig.app.reload() == (True, [])
        assert len(await changes(rig)) == 2 and rig.app.config.stop_timeout == 6
        rewrite(file, "limits: [1000/h]", "limits: [20/s]")
        taken, notes = rig.app.reload()
        assert taken and len(notes) == 1 and "the file says 20/s there now" in notes[0]
        account = rig.egress().account
        assert (str(account.limits[0]), account.connections) == ("20/s", 2)
        good = file.read_text()
        file.write_text("routes: [")
        assert not rig.app.reload()[0]
        assert await changes(rig) == [("accounts.main.connections", 2, 4)]
        assert (await ask(rig, "POST", "/v1/reload", {"reset": True}))[0] == 422
        assert await changes(rig) == [("accounts.main.connections", 2, 4)]
        file.write_text(good)
        status, found = await ask(rig, "POST", "/v1/reload", {"reset": True})
        assert status == 200 and "accounts.main.connections: 2" in found["notes"][0]
        assert rig.egress().account.connections == 4 and await changes(rig) == []
    async with running(file) as rig:
        assert await changes(rig) == []


async def test_at_once_the_last_wins_and_each_is_on_record(tmp_path: Path) -> None:
    file = config(tmp_path)
    async with running(file) as rig:
        asked = [patch(rig, "main", connections=n) for n in range(5, 15)]
        found, *_ = await asyncio.gather(
            asyncio.gather(*asked), ask(rig, "POST", "/v1/reload", {}), ask(rig, "POST", "/v1/reload", {})
        )
        ((_, value, _),) = await changes(rig)
        assert value == rig.egress().account.connections and value in range(5, 15)
        assert [one["changes"][0]["value"] for one in found]
        audit = (await ask(rig, "GET", "/v1/audit?act=PATCH*"))[1]["audit"]
        assert sorted(one["asked"]["connections"] for one in audit) == list(range(5, 15))
        document = json.loads((await rig.app.spool.remembered())["changes"])
        assert [one["value"] for one in document] == [value]


async def test_a_reload_in_the_middle_of_a_change_is_not_undone(tmp_path: Path) -> None:
    """The file changes while the spool writes: the change counts over what the file says by then."""
    file = config(tmp_path)
    async with running(file) as rig:
        keep = rig.app.runtime.keep

        async def reload_first(documents: Any) -> None:
            rig.app.runtime.keep = keep
            rewrite(file, "limits: [1000/h]", "limits: [20/s]")
            assert rig.app.reload()[0]
            await keep(documents)

        rig.app.runtime.keep = reload_first
        await patch(rig, "main", connections=2)
        account = rig.egress().account
        assert (str(account.limits[0]), account.connections) == ("20/s", 2)


async def test_where_the_spool_does_not_keep_it_nothing_is_changed(tmp_path: Path) -> None:
    async with running(config(tmp_path)) as rig:
        keep = rig.app.runtime.keep

        async def sick(documents: Any) -> None:
            raise SpoolError("the disk is sick")

        rig.app.runtime.keep = sick
        status, found = await ask(rig, "PATCH", "/v1/accounts/main", {"connections": 2})
        assert status == 409 and "sick" in found["detail"]
        assert (await ask(rig, "POST", "/v1/reload", {"reset": True}))[0] == 409
        assert rig.egress().account.connections == 4 and await changes(rig) == []
        rig.app.runtime.keep = keep


async def cli(rig: Rig, *arguments: str, code: int = 0) -> str:
    env = ENV | {"RELAY_ENDPOINT": str(rig.app.config.admin.socket)}
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "relay", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=env,
    )  # fmt: skip
    assert done.returncode == code, done
    return done.stdout + done.stderr


async def test_the_verbs(tmp_path: Path) -> None:
    async with running(config(tmp_path, extra=EXTRA)) as rig:
        said = await cli(rig, "accounts", "set", "main", "limits", "14/s, 50000/d")
        assert said == "accounts.main.limits: 14/s, 50000/d; the file says 1000/h\n"
        await cli(rig, "accounts", "set", "main", "recipients_per_message", "5")
        assert "at least 1" in await cli(rig, "accounts", "set", "main", "connections", "0", code=64)
        table = await cli(rig, "accounts")
        assert "14/s (0% used), 50000/d (0% used)*" in table and "recipients_per_message 5*" in table
        assert "changed      2 keys at run time (relay changes)" in await cli(rig, "status")
        assert (
            await cli(rig, "limits", "set", "users", "app", "9/d") == "users.app.limits: 9/d; the file says nothing\n"
        )
        lines = (await cli(rig, "changes")).splitlines()
        assert [line.split("\t")[:3] for line in lines] == [
            ["accounts.main.limits", "14/s, 50000/d", "1000/h"],
            ["accounts.main.recipients_per_message", "5", "nothing"],
            ["users.app.limits", "9/d", "nothing"],
        ]
        assert [one["key"] for one in json.loads(await cli(rig, "changes", "--json"))] == [
            "limits", "recipients_per_message", "limits",
        ]  # fmt: skip
        assert await cli(rig, "accounts", "reset", "main") == "main: as the file has it\n"
        assert "nothing is changed" in await cli(rig, "accounts", "reset", "main")
        said = await cli(rig, "limits", "set", "limits", "mailbox", "300/d")
        assert said == 'limits.mailbox.rate: "300/d"; the file says "500/d"\n'
        await cli(rig, "limits", "set", "limits", "mailbox", "30", "--key", "burst")
        await cli(rig, "limits", "set", "destinations", "big", "3", "--key", "connections")
        assert "connections" in await cli(rig, "limits", "set", "users", "app", "3", "--key", "connections", code=64)
        assert "limits.mailbox.rate" in await cli(rig, "limits", "reset", "limits", "mailbox", "--key", "burst")
        assert await cli(rig, "limits", "reset", "limits", "mailbox") == "mailbox: as the file has it\n"
        assert await cli(rig, "limits", "reset", "destinations", "big") == "big: as the file has it\n"
        assert await cli(rig, "limits", "reset", "users", "app") == "app: as the file has it\n"
        await cli(rig, "accounts", "set", "main", "limits", "none")
        assert rig.egress().account.limits == ()
        said = await cli(rig, "reload", "--reset")
        assert re.search(r"accounts\.main\.limits: none, changed by uid \d+, is dropped: a reset by uid \d+", said)
        assert json.loads(await cli(rig, "accounts", "--json"))[0]["changes"] == []


@pytest.mark.parametrize("verb", ["accounts", "changes"])
async def test_nothing_to_tell(tmp_path: Path, verb: str) -> None:
    async with running(config(tmp_path)) as rig:
        assert ("main" in await cli(rig, verb)) is (verb == "accounts")
