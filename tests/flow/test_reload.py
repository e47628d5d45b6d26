"""A reload: mail that waits follows the new rules, a bad file changes nothing and says why."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from fakes import Upstream
from rig import Rig, free_port, process, running, until, write_config

from relay import clock

SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"
TEXT = b"From: boss@corp.example\r\nX-Kind: report\r\nSubject: t\r\n\r\nhello\r\n"


def dead(folder: Path, routes: str = "", classes: str = SLOW) -> Path:
    return write_config(folder, {"main": f"port: {free_port()}, tls: none"}, routes=routes, classes=classes)


async def retry_all(rig: Rig) -> None:
    service = rig.app.admin.service
    await service.act("retry", service.parse_filter({"sender": "*"}), dry_run=False)


@pytest.mark.parametrize(
    ("rule", "state", "why"),
    [
        ("reject: not any more", "failed", "not any more"),
        ("hold: true", "held", "hold"),
        ("discard: true", "delivered", ""),
    ],
)
async def test_mail_that_waits_ends_as_its_new_route_says(tmp_path: Path, rule: str, state: str, why: str) -> None:
    file = dead(tmp_path)
    async with running(file) as rig:
        number = await rig.send(message=TEXT)
        await rig.tried(number)
        text = file.read_text().replace("{name: all, via: [main]}", f"{{name: all, {rule}}}")
        file.write_text(text)
        taken, notes = rig.app.reload()
        assert taken, notes
        await retry_all(rig)
        row = await rig.reaches(number, state)
        assert why in row["why"]
        assert row["attempts"] == (2 if state != "held" else 1)
        assert (await rig.story(number))[-1] == {"failed": "failed", "held": "held", "delivered": "discarded"}[state]


async def test_capture_after_a_reload(tmp_path: Path) -> None:
    file = dead(tmp_path)
    async with running(file) as rig:
        number = await rig.send(message=TEXT)
        await rig.tried(number)
        file.write_text(file.read_text() + 'capture: {allow: ["*@allowed.example"]}\n')
        assert rig.app.reload()[0]
        await retry_all(rig)
        row = await rig.reaches(number, "delivered")
        assert row["egress"] == "capture"
        assert (await rig.message(number))["body"] == "kept"  # to be looked at


@pytest.mark.parametrize(
    "match",
    [
        'from: "boss@corp.example"', "header: {X-Kind: report}", 'recipient: "you@*"', 'sender: "app@*"',
        'size: "<1MB"', "listener: local", "client: 127.0.0.0/8", "not: {recipient: other@example.net}",
    ],
)  # fmt: skip
async def test_mail_that_waits_is_asked_the_new_questions(tmp_path: Path, match: str) -> None:
    """Queued when no rule asked for it; the new rule finds it all the same."""
    file = dead(tmp_path)
    async with Upstream() as up, running(file) as rig:
        number = await rig.send("you@example.net", message=TEXT)
        held = await rig.send("you@example.net", message=TEXT)
        service = rig.app.admin.service
        await rig.tried(number)
        await rig.tried(held)
        await service.act("hold", service.parse_filter({"id": held}), dry_run=False)
        text = file.read_text().replace(
            "accounts:\n", f"accounts:\n  fresh: {{host: 127.0.0.1, port: {up.port}, tls: none}}\n"
        )
        text = text.replace("routes:\n", f"routes:\n  - {{name: new, match: {{{match}}}, via: fresh}}\n")
        file.write_text(text)
        assert rig.app.reload()[0]
        await until(lambda: not any(lane.stale and lane.due_at for lane in rig.app.scheduler.lanes.by_id.values()))
        await retry_all(rig)
        row = await rig.reaches(number, "delivered")
        assert (row["egress"], row["route"]) == ("fresh", "new")
        await service.act("release", service.parse_filter({"id": held}), dry_run=False)
        assert (await rig.reaches(held, "delivered"))["egress"] == "fresh"
        assert len(up.done) == 2


async def test_no_route_any_more_waits_and_says_so(tmp_path: Path) -> None:
    file = dead(tmp_path)
    async with running(file) as rig:
        number = await rig.send(message=TEXT)
        await rig.tried(number)
        good = file.read_text()
        file.write_text(good.replace("{name: all, via", '{name: all, match: {recipient: "*@else.example"}, via'))
        assert rig.app.reload()[0]
        await retry_all(rig)
        await until(lambda: not any(lane.stale and lane.due_at for lane in rig.app.scheduler.lanes.by_id.values()))
        row = await rig.row(number)
        assert (row["state"], row["attempts"]) == ("deferred", 1) and "no route" in row["why"], row["why"]


async def test_new_account_settings_count_for_what_waits(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": "port: 1, tls: none"})
    async with Upstream() as up, running(file) as rig:
        number = await rig.send(message=TEXT)
        await rig.tried(number)
        file.write_text(file.read_text().replace("port: 1,", f"port: {up.port},"))
        assert rig.app.reload()[0]
        await rig.reaches(number, "delivered")
        assert rig.egress().account.port == up.port


async def test_changed_account_ends_its_sessions_and_work(tmp_path: Path) -> None:
    """The work that runs ends as it is; the session is not kept, and nothing is lost."""
    file = write_config(tmp_path, {"main": "PORT"})
    async with Upstream() as up:
        file.write_text(file.read_text().replace("PORT", f"port: {up.port}, tls: none"))
        async with running(file) as rig:
            await rig.send(message=TEXT)
            await rig.settled()
            old = rig.egress()
            file.write_text(file.read_text().replace("tls: none", "tls: none, connections: 2"))
            await rig.send_many([("a@example.com", (f"r{i}@example.net",), TEXT) for i in range(50)])
            assert rig.app.reload()[0]
            await rig.settled()
            assert rig.egress() is not old
            await until(lambda: old.sessions == 0 and not rig.app.scheduler.carriers.retired)
            assert len(up.delivered()) == 51


async def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})
        async with running(file) as rig:
            before = rig.app.config
            file.write_text(file.read_text().replace("via: [main]", "via: [mian]") + "nonsense: 1\n")
            taken, lines = rig.app.reload()
            assert not taken and len(lines) == 2 and all(str(file) in line for line in lines)
            assert rig.app.config is before
            assert rig.app.health()["config_error"] and rig.app.health()["alive"]
            assert len(rig.said("config_refused")) == 2
            await rig.reaches(await rig.send(message=TEXT), "delivered")


async def test_the_process_reloads_on_sighup_and_by_the_verb(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})
        with process(file) as relay:
            good = file.read_text()
            file.write_text(good + "nonsense: 1\n")
            relay.signal(signal.SIGHUP)
            relay.wait_for(lambda: "event=config_refused" in relay.log)
            done = relay.call("reload")
            assert done.returncode == 78 and "nonsense" in done.stderr and str(file) in done.stderr
            assert "nonsense" in relay.json("status")["config_error"]
            file.write_text(good.replace("name: all", "name: renamed"))
            relay.signal(signal.SIGHUP)
            relay.wait_for(lambda: "event=config_loaded" in relay.log)
            assert relay.cli("reload").startswith("reloaded")
            assert relay.json("status")["config_error"] == ""
            assert relay.json("explain", "--from", "a@example.com", "--to", "b@example.com")["route"] == "renamed"


async def test_an_account_that_rests_is_asked_again_at_once(tmp_path: Path) -> None:
    """Its secret was corrected: nobody waits for the end of its pause."""
    secret = tmp_path / "secret"
    secret.write_text("wrong\n")
    async with Upstream(login=("u", "right")) as up:
        account = {"main": f"port: {up.port}, tls: none, username: u, password: {{file: {secret}}}"}
        async with running(write_config(tmp_path, account)) as rig:
            number = await rig.send()
            await rig.tried(number)
            assert rig.egress().breaker.wait(clock.now()) > 10
            rig.app.reload()
            await until(lambda: len(up.logins) == 2)
            secret.write_text("right\n")
            await until(lambda: rig.egress().breaker.wait(clock.now()) > 10)
            rig.app.reload()
            await rig.reaches(number, "delivered")
