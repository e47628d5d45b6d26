"""Deliver: at whatever stage an upstream fails, and however, the recipient's state, the breaker and the words are right."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import DROP, RESET, SILENT, Early, Later, Upstream
from rig import free_port, running, until, write_config

from relay.deliver import smtp
from relay.reply import Stage

SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"
SOFT, HARD, DOUBT = "deferred", "failed", "doubt"


@dataclass(frozen=True)
class Case:
    """`hop`: whether the failure counts against the next hop; a message's or recipient's does not."""

    name: str
    script: dict[str, Any]
    ends: str
    says: str
    hop: bool
    reply: str = ""


CASES = [
    Case("banner 421", {"BANNER": "421 4.3.2 busy"}, SOFT, "busy", True, "421 4.3.2 busy"),
    Case("banner 554", {"BANNER": "554 5.7.1 no"}, SOFT, "554 5.7.1 no", True),
    Case("banner garbage", {"BANNER": b"\x16\x03\x01garbage\r\n"}, SOFT, "malformed reply", True),
    Case("banner silence", {"BANNER": SILENT}, SOFT, "timed out", True),
    Case("banner drop", {"BANNER": DROP}, SOFT, "connection lost", True),
    Case("ehlo 421", {"EHLO": "421 4.3.2 busy"}, SOFT, "421", True),
    Case("ehlo silence", {"EHLO": SILENT}, SOFT, "timed out", True),
    Case("ehlo and helo 550", {"EHLO": "550 5.7.1 no", "HELO": "550 5.7.1 nor"}, SOFT, "550", True),
    Case("mail 421", {"MAIL": "421 4.3.2 later"}, SOFT, "421 4.3.2 later", True),
    Case("mail 451", {"MAIL": "451 4.7.1 greylisted"}, SOFT, "451 4.7.1 greylisted", False),
    Case("mail 550", {"MAIL": "550 5.7.1 not you"}, HARD, "550 5.7.1 not you", False),
    Case("mail 530", {"MAIL": "530 5.7.0 log in first"}, SOFT, "log in first", True),
    Case("mail silence", {"MAIL": SILENT}, SOFT, "timed out", True),
    Case("mail drop", {"MAIL": DROP}, SOFT, "", True),
    Case("mail reset", {"MAIL": RESET}, SOFT, "", True),
    Case("rcpt 450", {"RCPT": "450 4.2.1 later"}, SOFT, "450 4.2.1 later", False),
    Case("rcpt 550", {"RCPT": "550 5.1.1 nobody"}, HARD, "550 5.1.1 nobody", False),
    Case("rcpt 552", {"RCPT": "552 5.5.3 too many"}, SOFT, "552", False),
    Case("rcpt 421", {"RCPT": "421 4.3.2 closing"}, SOFT, "421", True),
    Case("rcpt drop", {"RCPT": DROP}, SOFT, "", True),
    Case("data 451", {"DATA": "451 4.3.0 not now"}, SOFT, "451 4.3.0 not now", False),
    Case("data 554", {"DATA": "554 5.5.1 no valid recipients"}, HARD, "554", False),
    Case("data 421", {"DATA": "421 4.3.2 closing"}, SOFT, "421", True),
    Case("data silence", {"DATA": SILENT}, SOFT, "timed out", True),
    Case("data 250", {"DATA": "250 2.0.0 what"}, SOFT, "250", False),
    Case("dot 451", {"DOT": "451 4.3.0 try again"}, SOFT, "451 4.3.0 try again", False),
    Case("dot 452", {"DOT": "452 4.3.1 full"}, SOFT, "452 4.3.1 full", False),
    Case("dot 554", {"DOT": "554 5.6.0 spam"}, HARD, "rejected: main: 554 5.6.0 spam", False),
    Case("dot 552", {"DOT": "552 5.3.4 too big"}, HARD, "552 5.3.4", False),
    Case("dot 421", {"DOT": "421 4.3.2 shutting down"}, SOFT, "421", True),
    Case("dot drop", {"DOT": DROP}, DOUBT, "in doubt", True),
    Case("dot reset", {"DOT": RESET}, DOUBT, "in doubt", True),
    Case("dot silence", {"DOT": SILENT}, DOUBT, "timed out", True),
    Case("dot garbage", {"DOT": b"what?\r\n"}, DOUBT, "malformed reply", True),
    Case("dot endless line", {"DOT": b"250 " + b"x" * 200_000}, DOUBT, "", True),
    Case("dot NUL", {"DOT": b"554 5.0.0 a\0b\x1b[31mc\x7f\r\n"}, HARD, "a b [31mc", False),
    Case("dot 10 MB", {"DOT": b"250-" + b"y" * 10_000_000 + b"\r\n250 ok\r\n"}, DOUBT, "", True),
    Case("dot bad code", {"DOT": b"999 what\r\n"}, DOUBT, "malformed reply: 999 what", True),
    Case("dot negative code", {"DOT": b"-50 what\r\n"}, DOUBT, "malformed reply", True),
    Case("dot 530", {"DOT": "530 5.7.0 log in first"}, SOFT, "log in first", True),
    Case("rcpt 530", {"RCPT": "530 5.7.0 log in first"}, SOFT, "log in first", True),
    Case("mail many lines", {"MAIL": b"450-4.7.1 one\r\n450-4.7.1 two\r\n450 4.7.1 three\r\n"}, SOFT, "one two three", False),
    Case("mail endless lines", {"MAIL": b"450-x\r\n" * 100_000}, SOFT, "", True),
    Case("mail not UTF-8", {"MAIL": b"550 5.7.1 \xff\xfe\xed\xa0\x80 no\r\n"}, HARD, "550 5.7.1", False),
]  # fmt: skip


def accounts(up: Upstream) -> dict[str, str]:
    return {"main": f"port: {up.port}, tls: none"}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
async def test_each_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    for stage, action in case.script.items():
        if action is SILENT:  # what is answered is answered in time, whatever else the machine has to do
            monkeypatch.setitem(smtp.TIMEOUTS, Stage[stage], 0.4)
    async with Upstream(case.script) as up, running(write_config(tmp_path, accounts(up), classes=SLOW)) as rig:
        number = await rig.send()
        row = await rig.tried(number)
        assert row["attempts"] == 1
        assert row["state"] == (SOFT if case.ends == DOUBT else case.ends)
        assert row["in_doubt"] is (case.ends == DOUBT)
        assert case.says in row["why"] and row["why"].startswith(
            {DOUBT: "in doubt: ", HARD: "rejected: main: ", SOFT: "main: "}[case.ends]
        )
        assert case.reply in row["last_reply"] and len(row["last_reply"]) < 600 and row["last_reply"].isprintable()
        assert (rig.egress().breaker.failures > 0 or rig.egress().breaker.is_open) is case.hop
        event = (await rig.message(number))["events"][-1]
        assert event["kind"] == ("in_doubt" if case.ends == DOUBT else case.ends)
        await until(lambda: rig.egress().busy == 0 and rig.egress().sessions == len(rig.egress()._idle))


async def test_connection_refused(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"}, classes=SLOW)
    async with running(file) as rig:
        row = await rig.tried(await rig.send())
        assert (row["state"], row["attempts"], row["in_doubt"]) == ("deferred", 1, False)
        assert "Connection refused" in row["why"]
        await until(lambda: rig.egress().busy == 0)
        assert rig.egress().sessions == 0


async def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": "port: 25, tls: none"}, classes=SLOW)
    file.write_text(file.read_text().replace("127.0.0.1, port: 25", "no.such.name.invalid, port: 25"))
    async with running(file) as rig:
        row = await rig.tried(await rig.send(), deadline=120)
        assert row["state"] == "deferred" and "no.such.name.invalid" in row["why"]


async def test_ehlo_refused_falls_back_to_helo(tmp_path: Path) -> None:
    async with Upstream({"EHLO": "502 5.5.1 what"}) as up, running(write_config(tmp_path, accounts(up))) as rig:
        await rig.reaches(await rig.send(), "delivered")
        assert up.commands("HELO") == ["HELO relay.test"]
        assert up.transactions[0].mail == "FROM:<app@example.com>"


async def test_quit_is_not_waited_for_by_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upstream that ignores QUIT: the session is given up, no mail is hurt, and the relay stops in time."""
    file = write_config(tmp_path, {"main": "PORT, tls: none, connections: 5"})
    async with Upstream({"QUIT": SILENT}) as up:
        text = file.read_text().replace("stop_timeout: 5s", "stop_timeout: 60s")
        file.write_text(text.replace("PORT", f"port: {up.port}"))
        async with running(file) as rig:
            await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(20)])
            await rig.settled()
            assert len(up.delivered()) == 20
            patience: list[float] = []
            said = smtp.Upstream.quit

            async def quit_(session: smtp.Upstream, timeout: float = 1e9) -> None:
                patience.append(timeout)
                await said(session, timeout)

            monkeypatch.setattr(smtp.Upstream, "quit", quit_)
            began = asyncio.get_running_loop().time()
            await rig.app.stop()
            assert asyncio.get_running_loop().time() - began < 30.0  # of `stop_timeout`
            assert up.commands("QUIT") and patience and max(patience) < 1.0


async def test_one_that_says_goodbye_counts_until_it_is_gone(tmp_path: Path) -> None:
    """`connections` is the upstream's limit too: with QUIT unanswered, no new session is opened beside the old one."""
    more = ", connections: 2, messages_per_connection: 2"
    async with (
        Upstream({"QUIT": SILENT}) as up,
        running(write_config(tmp_path, {"main": accounts(up)["main"] + more})) as rig,
    ):
        await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(8)])
        await rig.settled()
        assert len(up.delivered()) == 8 and len(up.commands("QUIT")) >= 2
        assert up.most_held == 2


async def test_rset_is_not_waited_for_by_mail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another session costs less than the patience that MAIL deserves."""
    monkeypatch.setattr(smtp, "_PROMPT", 0.3)
    more = ", connections: 1"
    async with (
        Upstream({"RSET": SILENT, "MAIL": ["550 5.7.1 no", "250 ok"]}) as up,
        running(write_config(tmp_path, {"main": accounts(up)["main"] + more}, classes=SLOW)) as rig,
    ):
        ids = await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(2)])
        await rig.settled()
        assert [(r["state"], r["attempts"]) for r in await rig.rows(*ids)] == [("failed", 1), ("delivered", 1)]
        assert len(up.sessions) == 2 and rig.egress().breaker.failures == 0


# -- in the middle of the body

BIG = b"Subject: big\r\n\r\n" + b"0123456789abcdef" * 4 * 1000 + b"\r\n"
BIG = BIG.replace(b"0123456789abcdef" * 4, b"0123456789abcdef" * 4 + b"\r\n") * 160  # about 10 MB


@pytest.mark.parametrize(
    ("action", "says"), [(DROP, ""), (RESET, ""), ("421 4.3.2 closing", "")], ids=["drop", "reset", "421"]
)
async def test_lost_in_the_middle_of_the_body_is_no_doubt(tmp_path: Path, action: Any, says: str) -> None:
    script = {"BODY": Early(100_000, action)}
    async with (
        Upstream(script, small_window=True) as up,
        running(write_config(tmp_path, accounts(up), classes=SLOW)) as rig,
    ):
        row = await rig.tried(await rig.send(message=BIG))
        assert (row["state"], row["in_doubt"], row["attempts"]) == ("deferred", False, 1)
        assert not up.done


@pytest.mark.parametrize("keep_reading", [True, False])
async def test_refused_in_the_middle_of_the_body(tmp_path: Path, keep_reading: bool) -> None:
    """552 while we still send: the reply counts at once, whether or not the upstream takes the rest."""
    script = {"BODY": Early(100_000, "552 5.3.4 that is too much", keep_reading)}
    async with (
        Upstream(script, small_window=True) as up,
        running(write_config(tmp_path, accounts(up), classes=SLOW)) as rig,
    ):
        row = await rig.tried(await rig.send(message=BIG))
        assert (row["state"], row["in_doubt"]) == ("failed", False)
        assert row["last_reply"] == "552 5.3.4 that is too much"


async def test_a_peer_that_stops_reading_and_resets_is_no_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dot never left us: nothing can have been delivered."""
    gate = asyncio.Event()
    script = {"BODY": Early(50_000, Later(0, RESET, gate))}
    async with (
        Upstream(script, small_window=True) as up,
        running(write_config(tmp_path, accounts(up), classes=SLOW)) as rig,
    ):
        number = await rig.send(message=BIG)
        await until(lambda: any(s and s.stage is Stage.BODY for s in rig.app.scheduler.carriers.at_work.values()))
        gate.set()
        row = await rig.tried(number)
        assert (row["state"], row["in_doubt"]) == ("deferred", False)


async def test_a_peer_that_stops_reading_times_out_and_is_no_doubt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(smtp.TIMEOUTS, Stage.BODY, 0.5)
    script = {"BODY": Early(50_000, Later(0, RESET, asyncio.Event()))}
    async with (
        Upstream(script, small_window=True) as up,
        running(write_config(tmp_path, accounts(up), classes=SLOW)) as rig,
    ):
        row = await rig.tried(await rig.send(message=BIG))
        assert (row["state"], row["in_doubt"]) == ("deferred", False)
        assert "timed out" in row["why"]


# -- in doubt


@pytest.mark.parametrize(("rule", "state"), [("retry", "deferred"), ("hold", "held"), ("fail", "failed")])
async def test_in_doubt_by_the_class_rule(tmp_path: Path, rule: str, state: str) -> None:
    classes = f"  default: {{in_doubt: {rule}, retry: {{schedule: [1h], give_up: 1d}}}}"
    async with Upstream({"DOT": DROP}) as up, running(write_config(tmp_path, accounts(up), classes=classes)) as rig:
        number = await rig.send()
        row = await rig.tried(number)
        assert (row["state"], row["in_doubt"], row["attempts"]) == (state, True, 1)
        assert await rig.story(number) == ["accepted", "in_doubt"]
        assert "in doubt" in row["why"]
        assert len(up.transactions) == 1


async def test_a_doubt_that_is_retried_stays_marked(tmp_path: Path) -> None:
    async with Upstream({"DOT": [DROP, "250 ok"]}) as up, running(write_config(tmp_path, accounts(up))) as rig:
        row = await rig.reaches(await rig.send(), "delivered")
        assert (row["attempts"], row["in_doubt"]) == (2, True)
        assert up.transactions[0].wire == up.transactions[1].wire  # the same bytes: a receiver may know them again


async def test_a_missing_body_file_is_not_the_upstreams_fault(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with (
        Upstream({"BANNER": Later(0, "220 slow", gate), "RCPT": ["550 5.1.1 nobody", "250 ok"]}) as up,
        running(write_config(tmp_path, accounts(up), classes=SLOW)) as rig,
    ):
        number = await rig.send("no@example.net", "you@example.net", message=BIG)
        for file in (tmp_path / "spool" / "content").iterdir():
            file.unlink()
        gate.set()
        await rig.tried(number)
        refused, row = await rig.rows(number)
        assert (row["state"], row["attempts"], row["in_doubt"]) == ("deferred", 1, False)
        assert (refused["state"], refused["last_reply"]) == ("failed", "550 5.1.1 nobody")
        assert rig.egress().breaker.failures == 0
        assert "body" in row["why"]
        await rig.reaches(await rig.send(), "delivered")


def test_every_stage_has_a_timeout() -> None:
    assert set(smtp.TIMEOUTS) == set(Stage) - {Stage.PREPARE}  # nothing is said to an upstream in it
    assert smtp.TIMEOUTS[Stage.DOT] >= 600  # RFC 5321 §4.5.3.2.6
    assert smtp.TIMEOUTS[Stage.MAIL] >= 300 and smtp.TIMEOUTS[Stage.RCPT] >= 300
    assert smtp.TIMEOUTS[Stage.DATA] >= 120 and smtp.TIMEOUTS[Stage.BODY] >= 180
