"""Deliver: an account whose login fails is paused and its queue is not burnt; another account of the route takes over."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path

import pytest
from fakes import DROP, Later, Upstream
from rig import free_port, running, until, write_config

from relay import metrics
from relay.recipient import State

SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"


def with_login(
    folder: Path, up: Upstream, more: str = "", password: str = "right", classes: str = SLOW, extra: str = ""
) -> Path:
    (folder / "pw").write_text(password + "\n")
    rest = f"port: {up.port}, tls: none, username: user, password: {{file: {folder}/pw}}{more}"
    return write_config(folder, {"main": rest}, classes=classes, extra=extra)


def metric(name: str, **labels: str) -> float:
    text = ",".join(f'{k}="{v}"' for k, v in labels.items())
    (line,) = [li for li in metrics.exposition().decode().splitlines() if li.startswith(f"{name}{{{text}}}")]
    return float(line.split()[-1])


@pytest.mark.parametrize("mechanisms", ["PLAIN", "LOGIN", "XOAUTH2 LOGIN PLAIN"])
async def test_login(tmp_path: Path, mechanisms: str) -> None:
    async with Upstream(login=("user", "right"), mechanisms=mechanisms) as up, running(with_login(tmp_path, up)) as rig:
        await rig.reaches(await rig.send(), "delivered")
        assert up.logins == [("user", "right")]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ({"AUTH": "535 5.7.8 bad credentials"}, "535 5.7.8 bad credentials"),
        ({"AUTH": "454 4.7.0 temporary"}, "454 4.7.0 temporary"),
        ({"AUTH": "550 5.7.1 account blocked"}, "account blocked"),
        (None, "535 5.7.8"),
    ],
    ids=["535", "454", "550", "wrong"],
)
async def test_a_refused_login_pauses_the_account(tmp_path: Path, script: dict[str, str] | None, says: str) -> None:
    """One login is tried, one message tells of it; all others wait untried."""
    file_password = "wrong" if script is None else "right"
    async with (
        Upstream(script, login=("user", "right")) as up,
        running(with_login(tmp_path, up, password=file_password)) as rig,
    ):
        ids = await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(30)])
        await until(lambda: rig.egress().breaker.is_open and rig.egress().busy == 0)
        await until(lambda: rig.app.spool.counts[State.ACTIVE] == 0 and rig.app.spool.queued == 30)
        rows = await rig.rows(*ids)
        assert len(up.logins) == 1
        assert sorted(r["attempts"] for r in rows) == [0] * 29 + [1]
        assert {r["state"] for r in rows} <= {"queued", "deferred"}
        assert all(says in r["why"] or says in r["last_reply"] for r in rows), rows
        assert all(r["next_at"] is not None for r in rows)
        (paused,) = rig.said("account_paused")
        assert paused["egress"] == "main" and says in paused["reply"] and paused["seconds"] > 30
        assert metric("relay_account_login_failed", egress="main") == 1
        assert metric("relay_breaker_state", egress="main") == 1


async def test_no_way_to_log_in_pauses_too(tmp_path: Path) -> None:
    async with Upstream() as up, running(with_login(tmp_path, up)) as rig:
        row = await rig.tried(await rig.send())
        assert row["state"] == "deferred" and "no way to log in" in row["why"]
        assert rig.said("account_paused") and up.transactions == []


async def test_a_missing_secret_pauses_and_is_named(tmp_path: Path) -> None:
    async with Upstream(login=("user", "right")) as up:
        file = with_login(tmp_path, up)
        async with running(file) as rig:
            (tmp_path / "pw").unlink()
            row = await rig.tried(await rig.send())
            assert row["state"] == "deferred" and str(tmp_path / "pw") in row["why"]
            assert rig.said("account_paused") and up.logins == []


async def test_secret_is_read_anew_and_mail_flows(tmp_path: Path) -> None:
    """One try a cool-down; once the file is right, all of the queue leaves."""
    fast, short = "  default: {retry: {schedule: [100ms]}}", "breaker: {cool_down: 400ms, max: 400ms}"
    async with (
        Upstream(login=("user", "right")) as up,
        running(with_login(tmp_path, up, password="wrong", classes=fast, extra=short)) as rig,
    ):
        ids = await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(30)])
        await until(lambda: len(up.logins) >= 3)
        assert len(rig.said("account_paused")) in (2, 3)
        tried = sum(r["attempts"] for r in await rig.rows(*ids))
        assert tried <= len(up.logins)
        (tmp_path / "pw").write_text("right\n")
        await rig.settled()
        assert sorted(up.delivered()) == sorted(f"r{i}@example.net" for i in range(30))
        assert metric("relay_account_login_failed", egress="main") == 0


async def test_retry_does_not_override_the_pause(tmp_path: Path) -> None:
    async with Upstream(login=("user", "right")) as up, running(with_login(tmp_path, up, password="wrong")) as rig:
        number = await rig.send()
        await rig.tried(number)
        service = rig.app.admin.service
        await service.act("retry", service.parse_filter({"id": number}), dry_run=False)
        await until(lambda: any(lane.due_at is not None for lane in rig.app.scheduler.lanes.by_id.values()))
        row = await rig.row(number)
        assert len(up.logins) == 1 and row["attempts"] == 1
        assert "main rests: auth: 535" in row["why"] and row["next_at"] is not None


async def test_a_session_from_before_does_not_end_the_pause(tmp_path: Path) -> None:
    """The password was changed while a session is open: that one goes on, and nobody tries the old password again and again."""
    gate = asyncio.Event()

    async with Upstream(login=("user", "right")) as up, running(with_login(tmp_path, up, ", connections: 4")) as rig:
        up.script["DOT"] = [Later(0, "250 ok", gate), "250 ok"]
        await rig.send("first@example.net")
        await until(lambda: up.transactions and up.transactions[0].wire)
        up.login = ("user", "changed")
        await rig.send("second@example.net")
        await until(lambda: rig.egress().breaker.is_open)
        refused = len(up.logins)
        gate.set()
        await until(lambda: up.delivered() == ["first@example.net"] and rig.egress().busy == 0)
        assert rig.egress().breaker.auth_failed and rig.egress().breaker.is_open
        await rig.send("third@example.net")
        await until(lambda: rig.app.scheduler.recorder.unrecorded == 0)
        assert len(up.logins) == refused == 2


@pytest.mark.parametrize(
    ("code", "says"), [("535 5.7.8", "535 5.7.8"), ("999", "login: malformed reply: 999")], ids=["refusal", "no reply"]
)
async def test_a_reply_that_quotes_the_secret_is_told_without_it(tmp_path: Path, code: str, says: str) -> None:
    secret = "canary-Passw0rd!"
    plain = base64.b64encode(b"\0user\0" + secret.encode()).decode()
    echo = f"{code} bad: {secret} {base64.b64encode(secret.encode()).decode()} AUTH PLAIN {plain} end"
    # The last one would be cut in its middle by the limit on what is told of a reply.
    echo += "." * (480 - len(echo)) + plain
    async with (
        Upstream({"AUTH": echo}, login=("user", "x")) as up,
        running(with_login(tmp_path, up, password=secret)) as rig,
    ):
        row = await rig.tried(await rig.send())
        assert row["last_reply"].startswith(f"{says} bad: *** *** AUTH PLAIN *** end")
        told = (
            repr(rig.events) + repr(await rig.message(row["queue_id"])) + repr(rig.app.scheduler.outlook.egress_rows())
        )
        assert "canary" not in told and plain[:12] not in told


# -- fail over


def two(folder: Path, first: str, second: str, classes: str = SLOW, routes: str = "", extra: str = "") -> Path:
    return write_config(folder, {"one": first, "two": second}, classes=classes, routes=routes, extra=extra)


async def test_connect_failure_goes_to_the_next_account(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = two(tmp_path, f"port: {free_port()}, tls: none", f"port: {up.port}, tls: none")
        async with running(file) as rig:
            number = await rig.send()
            row = await rig.reaches(number, "delivered")
            assert (row["egress"], row["attempts"]) == ("two", 1)
            assert await rig.story(number) == ["accepted", "failed_over", "delivered"]
            event = (await rig.message(number))["events"][1]
            assert event["egress"] == "one" and "refused" in event["why"]
            assert rig.said("failed_over")[0]["to"] == "two"


async def test_refused_login_goes_to_the_next_account(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("wrong")
    async with Upstream(login=("user", "right")) as first, Upstream() as second:
        login = f"port: {first.port}, tls: none, username: user, password: {{file: {tmp_path}/pw}}"
        async with running(two(tmp_path, login, f"port: {second.port}, tls: none")) as rig:
            await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(20)])
            await rig.settled()
            assert len(second.delivered()) == 20 and len(first.logins) == 1


async def test_lost_before_the_dot_fails_over_and_after_it_does_not(tmp_path: Path) -> None:
    async with Upstream({"DATA": DROP}) as first, Upstream() as second:
        file = two(tmp_path, f"port: {first.port}, tls: none", f"port: {second.port}, tls: none")
        async with running(file) as rig:
            assert (await rig.reaches(await rig.send(), "delivered"))["egress"] == "two"
            first.script = {"DOT": DROP}
            row = await rig.tried(await rig.send())
            assert (row["state"], row["in_doubt"], row["egress"]) == ("deferred", True, "one")
            assert len(second.done) == 1


@pytest.mark.parametrize(
    "script", [{"RCPT": "450 4.2.1 later"}, {"DOT": "451 4.3.0 later"}, {"MAIL": "550 5.7.1 no"}], ids=str
)
async def test_a_reply_about_the_message_does_not_fail_over(tmp_path: Path, script: dict[str, str]) -> None:
    async with Upstream(script) as first, Upstream() as second:
        file = two(tmp_path, f"port: {first.port}, tls: none", f"port: {second.port}, tls: none")
        async with running(file) as rig:
            assert (await rig.tried(await rig.send()))["egress"] == "one"
            assert second.sessions == []


async def test_senders_are_respected(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = two(
            tmp_path, f"port: {free_port()}, tls: none", f'port: {up.port}, tls: none, senders: ["*@other.example"]'
        )
        async with running(file) as rig:
            row = await rig.tried(await rig.send(sender="app@example.com"))
            assert (row["state"], row["egress"]) == ("deferred", "one") and up.sessions == []
            row = await rig.reaches(await rig.send(sender="app@other.example"), "delivered")
            assert row["egress"] == "two"


async def test_all_accounts_down_defers_once_and_names_the_last(tmp_path: Path) -> None:
    file = two(tmp_path, f"port: {free_port()}, tls: none", f"port: {free_port()}, tls: none")
    async with running(file) as rig:
        number = await rig.send()
        row = await rig.tried(number)
        assert (row["attempts"], row["egress"], row["state"]) == (1, "two", "deferred")
        assert await rig.story(number) == ["accepted", "failed_over", "deferred"]


async def test_the_first_account_is_used_again_once_it_is_back(tmp_path: Path) -> None:
    port, short = free_port(), "breaker: {failures: 1, cool_down: 300ms}"
    async with Upstream() as second:
        file = two(tmp_path, f"port: {port}, tls: none", f"port: {second.port}, tls: none", extra=short)
        async with running(file) as rig:
            assert (await rig.reaches(await rig.send(), "delivered"))["egress"] == "two"
            assert rig.egress("one").breaker.is_open
            async with Upstream(port=port) as first:

                async def back() -> bool:
                    return (await rig.reaches(await rig.send(), "delivered"))["egress"] == "one"

                end = time.monotonic() + 60
                while not await back():
                    assert time.monotonic() < end
                    await asyncio.sleep(0.01)
                assert first.done and not rig.egress("one").breaker.is_open
