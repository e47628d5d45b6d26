"""What the verbs tell a newcomer: the socket of a broken file, what still waits, what was left alone, and on what screen."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes import Upstream
from rig import ENV, Process, free_port, process, running, submit, until, write_config

from relay import clock
from relay.admin.words import joined
from relay.cli import client, show
from relay.cli.mail import _has_port
from relay.cli.queue import _state
from relay.cli.service import _capture, _leaving

TEXT = b"From: app@example.com\r\nSubject: t\r\n\r\nhello\r\n"
SLOW = "  default: {retry: {schedule: [1h], give_up: 4h}}"
ROUTES = """  - {name: parked, match: {recipient: "*@parked.example"}, hold: true}
  - {name: dead, match: {recipient: "*@dead.example"}, via: dead}
  - {name: live, via: live}"""


def call(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=ENV | env, cwd=cwd,
    )  # fmt: skip


def on_terminal(relay: Process, columns: int, *arguments: str) -> list[str]:
    """The lines of `relay …` as a terminal of that width gets them."""
    mine, theirs = pty.openpty()
    env = ENV | {"RELAY_ENDPOINT": str(relay.socket), "COLUMNS": str(columns), "LINES": "50", "NO_COLOR": "1"}
    child = subprocess.Popen([sys.executable, "-m", "relay", *arguments], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    text = b""
    try:
        while data := os.read(mine, 65536):
            text += data
    except OSError:
        pass  # EIO: the child has closed it
    finally:
        os.close(mine)
    assert child.wait(20) == 0, text
    return re.sub(r"\x1b\[[0-9;]*m|\r", "", text.decode()).splitlines()


@pytest.fixture
async def relay(tmp_path: Path) -> AsyncIterator[Process]:
    async with Upstream({"RCPT": lambda r: "550 5.1.1 nobody" if r.startswith("no") else "250 ok"}) as up:
        accounts = {"dead": f"port: {free_port()}, tls: none", "live": f"port: {up.port}, tls: none"}
        with process(write_config(tmp_path, accounts, routes=ROUTES, classes=SLOW)) as made:
            yield made


async def send(relay: Process, *recipients: str) -> str:
    return (await submit(relay.port, [("app@example.com", recipients, TEXT)]))[0]


async def reaches(relay: Process, number: str, state: str) -> None:
    end = time.monotonic() + 60
    while True:
        shown = await asyncio.to_thread(relay.json, "queue", "show", number)
        if all(r["state"] == state for r in shown["recipients"]):
            return
        assert time.monotonic() < end, shown["recipients"]


# -- finding the relay


async def test_a_broken_file_still_leads_to_its_relay(relay: Process, tmp_path: Path) -> None:
    good = relay.file.read_text()
    for text in (good + "nonsense: 1\n", good.replace(f"{tmp_path}/admin.sock", "admin.sock") + "nonsense: 1\n"):
        relay.file.write_text(text)
        done = await asyncio.to_thread(lambda: call("status", RELAY_CONFIG=str(relay.file)))
        assert done.returncode == 0 and "accepting" in done.stdout, done
    for text in (good + "x: [\n", good.replace(f"socket: {tmp_path}/admin.sock", "socket: [1]")):
        relay.file.write_text(text)
        done = await asyncio.to_thread(lambda: call("status", RELAY_CONFIG=str(relay.file)))
        assert done.returncode == 78 and f"{relay.file}:" in done.stderr, done
        assert "admin.socket is not known" in done.stderr and "RELAY_ENDPOINT" in done.stderr
    for form in ("unix:", "unix://"):
        done = await asyncio.to_thread(lambda form=form: call("status", RELAY_ENDPOINT=f"{form}{relay.socket}"))
        assert done.returncode == 0, done


@pytest.mark.parametrize("given", ["127.0.0.1:2580", "http://127.0.0.1:2580", "localhost:2580", "unix:"])
def test_an_endpoint_that_is_no_path_is_told_so(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_ENDPOINT", given)
    with pytest.raises(client.Failed, match="wants the path of the relay's socket"):
        client.endpoint()


async def test_a_file_without_a_socket_means_the_default_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text("routes: 7\n")
    monkeypatch.delenv("RELAY_ENDPOINT", raising=False)
    monkeypatch.setenv("RELAY_CONFIG", str(file))
    assert client.endpoint().endswith("/admin.sock")


# -- acting


async def test_what_is_not_acted_on_is_told(relay: Process) -> None:
    done_, stranger = await send(relay, "a@live.example"), "00000000001"
    held = await send(relay, "b@parked.example")
    await reaches(relay, done_, "delivered")
    answer = await asyncio.to_thread(relay.call, "queue", "hold", done_, stranger)
    assert answer.returncode == 65
    assert f"{done_}: delivered, which hold does not change" in answer.stderr
    assert f"{stranger}: no such message" in answer.stderr and "hold: 0 recipients" in answer.stdout
    answer = await asyncio.to_thread(relay.call, "queue", "release", held, stranger)
    assert answer.returncode == 0 and "release: 1 recipient\n" in answer.stdout
    assert answer.stderr == f"{stranger}: no such message\n"

    def released() -> list[str]:
        whole = relay.log.rpartition("\n")[0]
        return [x for x in whole.splitlines() if "event=operator" in x and "verb=release" in x]

    await asyncio.to_thread(relay.wait_for, released)
    (line,) = released()
    assert f"id={held},{stranger}" in line and "recipients=1" in line


async def test_retry_tells_what_still_keeps_it(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"}, classes=SLOW)
    async with running(file) as rig:
        number = await rig.send()
        await rig.tried(number)
        service = rig.app.admin.service
        breaker = rig.egress().breaker
        breaker.opened, breaker.until, breaker.why = 1, clock.now() + 600, "connect: refused"
        for verb in ("hold", "release", "retry", "reroute"):
            found = await service.act(verb, service.parse_filter({"id": number}), dry_run=False)
            assert found["recipients"] == 1 and found["skipped"] == []
            notes = [n for n in found["notes"] if n.startswith("1 recipient is due, but main rests until ")]
            assert len(notes) == (verb != "hold") and all(n.endswith(": connect: refused") for n in notes)
        assert [e["verb"] for e in rig.said("operator")] == ["hold", "release", "retry", "reroute"]
        events = (await rig.message(number))["events"]
        for why in ("held by an operator", "released by an operator", "retried by an operator"):
            assert any(e.get("why") == why for e in events), why
        status = service.status()
        assert status["waiting"] == 1 and status["held"] == 0
        assert [(r["egress"], r["why"]) for r in status["resting_until"]] == [("main", "connect: refused")]
        leaving = _leaving(status)
        assert leaving.startswith("no: main rests until ") and leaving.endswith(": connect: refused")
        assert _leaving(status | {"accounts": 2}).startswith("partly: main rests until ")
        (egress,) = (await service.explain({"from": "a@example.com", "to": "b@example.net"}))["egresses"]
        assert egress["when"].startswith("rests until ") and egress["when"].endswith(": connect: refused")
        # what waits for an account is found by its name, tried or not
        fresh = await rig.send()
        await until(lambda: rig.app.scheduler.lanes.by_id)
        rows, _ = await service.rows(service.parse_filter({"egress": "MA*"}), None, 10)
        assert {r["queue_id"] for r in rows} == {number, fresh}
        assert (await service.rows(service.parse_filter({"egress": "other"}), None, 10))[0] == []


def test_two_reasons_are_told_once() -> None:
    assert joined("connect: refused", "main rests: connect: refused") == "main rests: connect: refused"
    assert joined("a: b, and more", "a: b") == "a: b, and more"
    assert joined("450 busy", "main rests: x") == "450 busy; besides, main rests: x"
    assert joined("main: 535 no", "main rests: auth: 535 no") == "main rests: auth: 535 no"
    assert joined("in doubt: x", "main rests: x") == "in doubt: x; besides, main rests: x"
    assert joined("", "x") == joined("x", "") == "x"


async def test_a_change_that_is_taken_back_needs_no_restart(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": "port: 1, tls: none"})
    good = file.read_text()
    async with running(file) as rig:
        file.write_text(good.replace("relay.test", "other.test"))
        for _ in range(2):  # told as long as it is so
            assert any("hostname" in note for note in rig.app.reload()[1])
        file.write_text(good)
        assert not any("restart" in note for note in rig.app.reload()[1])


# -- looking


async def test_a_narrow_terminal_breaks_no_address(relay: Process) -> None:
    long = f"{'r' * 50}@dead.example"
    number = await send(relay, long)
    await reaches(relay, number, "deferred")
    lines = await asyncio.to_thread(on_terminal, relay, 80, "queue", "list")
    assert lines[0].split() == ["QUEUE", "ID", "STATE", "RECIPIENT", "TRIES", "AGE", "NEXT"]
    assert lines[1].startswith(number) and long in lines[1] and "deferred" in lines[1]
    assert lines[2].startswith("    <app@example.com>  default/dead  ") and "Connection refused" in lines[2]
    assert lines[3] == "1 recipient"
    wide = await asyncio.to_thread(on_terminal, relay, 240, "queue", "list")
    assert "SENDER" in wide[0] and long in wide[1]


async def test_stats_hide_what_is_empty(relay: Process) -> None:
    await reaches(relay, await send(relay, "a@live.example"), "delivered")
    await reaches(relay, await send(relay, "b@parked.example"), "held")
    await reaches(relay, await send(relay, "c@dead.example"), "deferred")
    rows = [line.split("\t") for line in (await asyncio.to_thread(relay.cli, "queue", "stats")).splitlines()]
    lanes = {row[0]: row for row in rows if row[0].startswith("default/")}
    assert set(lanes) == {"default/parked", "default/dead"}
    assert lanes["default/parked"][6] == "-" and "(in" in lanes["default/dead"][6]
    assert len((await asyncio.to_thread(relay.json, "queue", "stats"))["lanes"]) == 3


async def test_why_an_account_waits_stands_whole_below_its_line(relay: Process) -> None:
    await reaches(relay, await send(relay, "c@dead.example"), "deferred")
    lines = await asyncio.to_thread(on_terminal, relay, 80, "queue", "stats")
    (row,) = [i for i, line in enumerate(lines) if line.startswith("dead ")]
    assert lines[row].split()[1].startswith("127.0.0.1:")
    assert lines[row + 1].startswith("    connect: 127.0.0.1:") and lines[row + 1].endswith("Connection refused")


def test_an_account_that_is_well_may_have_to_wait() -> None:
    table = {("ready", 0.0): "ready", ("ready", 3.5): "waits", ("resting", 3.5): "resting"}
    assert {key: _state({"state": key[0], "wait": key[1]}) for key in table} == table


def test_a_server_may_be_said_without_a_port() -> None:
    table = {"localhost": False, "127.0.0.1": False, "[::1]": False, "localhost:2525": True, "[::1]:2525": True}
    assert {server: _has_port(server) for server in table} == table


def test_spans() -> None:
    table = {0: "0s", 64: "1m 4s", 3600: "1h", 11100: "3h 5m", 176400: "2d 1h", 86405: "1d"}
    assert {seconds: show.span(seconds) for seconds in table} == table


# -- a first message, a first file


async def test_send_finds_the_relay_and_tells_who_was_refused(tmp_path: Path) -> None:
    routes = '  - {match: {recipient: "*@never.example"}, reject: "use the API"}\n  - {name: all, via: main}'
    async with Upstream() as up:
        with process(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, routes=routes)) as relay:
            answer = await asyncio.to_thread(relay.call, "send", "--to", "x@never.example", "--to", "y@live.example")
            assert answer.returncode == 65 and "refused: x@never.example: 550" in answer.stderr, answer
            await asyncio.to_thread(relay.wait_for, lambda: "event=delivered" in relay.log)
            assert up.delivered() == ["y@live.example"]
            assert f"127.0.0.1:{relay.port}" in await asyncio.to_thread(relay.cli, "status")


async def test_explain_uses_the_words_of_the_file(relay: Process) -> None:
    ask = ("explain", "--from", "a@example.com", "--to")
    assert "tried for 4h;" in await asyncio.to_thread(relay.cli, *ask, "b@live.example")
    assert "tried for" not in await asyncio.to_thread(relay.cli, *ask, "b@parked.example")
    answer = await asyncio.to_thread(relay.call, *ask, "nobody")
    assert answer.returncode == 64 and "--to wants a mail address" in answer.stderr


def test_check_and_serve_take_a_path(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": "port: 1, tls: none"}, extra='capture: {allow: ["*@ours.example"]}')
    done = call("check", str(file))
    assert done.returncode == 0 and f"{file}: good: 1 account, 1 route, capture on" in done.stdout, done
    missing = tmp_path / "none.yaml"
    for verb in ("check", "serve"):
        done = call(verb, str(missing))
        assert done.returncode == 78 and f"relay init {missing}" in done.stderr
        assert call(verb, str(file), "--config", str(file)).returncode == 64


async def test_export_tells_what_it_wrote_and_writes_over_nothing(relay: Process, tmp_path: Path) -> None:
    one, two = await send(relay, "no@live.example"), await send(relay, "no@live.example")
    await reaches(relay, one, "failed")
    await reaches(relay, two, "failed")
    out = tmp_path / "one.eml"
    assert await asyncio.to_thread(relay.cli, "queue", "export", one, "-o", str(out)) == f"wrote {out}\n"
    out.write_text("mine")
    await asyncio.to_thread(lambda: relay.cli("queue", "export", one, "-o", str(out), code=73))
    assert out.read_text() == "mine"
    await asyncio.to_thread(relay.cli, "queue", "export", one, "-o", str(out), "--force")
    assert "Subject: t" in out.read_text()
    answer = await asyncio.to_thread(relay.call, "queue", "export", one, two, "-o", str(tmp_path / "many"))
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"wrote 2 messages into {tmp_path / 'many'}\n"


def test_send_says_no_password_in_clear(tmp_path: Path) -> None:
    beyond = call("send", "--to", "a@b.example", "--user", "shop", "--server", "192.0.2.1")
    assert (beyond.returncode, "say --tls starttls" in beyond.stderr) == (64, True), beyond.stderr


async def test_send_tells_what_to_do_where_no_login_is_offered(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, {"main": "port: 9, tls: none"})) as rig:
        arguments = ("send", "--to", "a@b.example", "--user", "shop", "--server", f"127.0.0.1:{rig.port}")
        said = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "relay", *arguments, env=ENV, stdin=-1, stdout=-1, stderr=-1
        )
        _, errors = await asyncio.wait_for(said.communicate(b"sesame\n"), 30)
        assert (said.returncode, b"`auth` and `tls` of its listener" in errors) == (69, True), errors


def test_explain_before_the_first_start(tmp_path: Path) -> None:
    """The checklist asks it before the relay runs: then the file answers, and says so."""
    file = tmp_path / "relay.yaml"
    file.write_text(
        f"admin: {{socket: {tmp_path}/admin.sock}}\nspool: {{path: {tmp_path}/spool.db}}\n"
        "listen: [{name: apps, address: '127.0.0.1:2525', auth: required}]\n"
        "users: {shop: {password: {env: PATH}}}\naccounts: {main: {host: 127.0.0.1}}\n"
        "routes: [{name: shop, match: {user: shop}, via: main}]\n"
    )
    asked = ("explain", "--from", "a@example.com", "--to", "b@example.com")
    done = call(*asked, RELAY_CONFIG=str(file))
    assert done.returncode == 0 and f"no relay is running: by {file}" in done.stderr
    assert "--user NAME" in done.stdout and "550 5.7.1" in done.stdout
    done = call(*asked, "--user", "shop", RELAY_CONFIG=str(file))
    assert "→ shop" in done.stdout and "--user NAME" not in done.stdout
    assert call(*asked, RELAY_CONFIG=str(tmp_path / "none.yaml")).returncode == 69


def test_status_says_that_staging_is_on() -> None:
    assert _capture(None) == ""
    assert _capture(["*@example.com", "me@b.example"]).endswith("but to *@example.com, me@b.example")
    assert "all mail stays" in _capture([])


def test_staging_is_seen_from_outside(tmp_path: Path) -> None:
    """Left on in production by mistake all is `delivered`, and nothing arrives."""
    file = write_config(tmp_path, {"main": "tls: none"}, extra="capture: {allow: ['*@example.com']}\n")
    with process(file) as relay:
        told = call("status", RELAY_CONFIG=str(relay.file)).stdout
    assert "capture      on: mail stays on this machine, but to *@example.com\n" in told


def test_no_line_of_the_list_of_verbs_is_cut() -> None:
    for group in ([], ["queue"], ["spool"], ["password"], ["dkim"], ["feedback"], ["suppress"], ["webhooks"]):
        done = call(*group, "--help", COLUMNS="80")
        assert "..." not in done.stdout.partition("Commands:")[2], done.stdout


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("routes: [{via: direct}]", "1 direct entry, 1 route"),
        (
            "accounts: {main: {host: 127.0.0.1}}\ndirect: {mx-1: {}, mx-2: {}}\n"
            "pools: {bulk: {members: [mx-1, mx-2]}}\nroutes: [{via: [bulk, main]}]",
            "1 account, 2 direct entries, 1 pool (bulk), 1 route",
        ),
        ("routes: [{hold: true}]", "0 accounts, 1 route"),
    ],
)
def test_check_tells_the_ways_out(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(text)
    assert f"{file}: good: {told}\n" in call("check", str(file)).stdout


def test_nobody_logs_in_to_a_direct_entry(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text("accounts: {main: {host: 127.0.0.1}}\nroutes: [{via: [main, direct]}]\n")
    done = call("oauth", "login", "direct", "--config", str(file))
    assert done.returncode == 65 and "no account 'direct'; there is main\n" in done.stderr
