"""Deliver: what goes over the wire is what was handed in, behind our header fields; sessions carry several messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import RESET, Upstream
from rig import running, until, write_config

HEAD = b"From: app@example.com\r\nDate: Mon, 1 Jan 2024 00:00:00 +0000\r\nMessage-ID: <a@b>\r\nSubject: t\r\n\r\n"
BODIES = {
    "plain": b"hello\r\n",
    "dots": b".\r\n..\r\n.leading\r\n....\r\nin.side\r\n.\r\n",
    "only a dot": b".\r\n",
    "ends in blank lines": b"text\r\n\r\n\r\n",
    "eight bits": bytes(range(0x80, 0x100)) + b"\r\n",
    "empty": b"",
    "long lines": b"x" * 998 + b"\r\n" + b"." + b"y" * 900 + b"\r\n",
    "300 KB in a file": b".0123456789abcdef\r\n" * 16000,
    "3 MB in slices": (b"..a\r\n" * 7 + b"x" * 61 + b"\r\n.\r\n") * 30000,
}


def one(up: Upstream, more: str = "") -> dict[str, str]:
    return {"main": f"port: {up.port}, tls: none{more}"}


@pytest.mark.parametrize("name", BODIES)
async def test_bytes_arrive_as_they_were_sent(tmp_path: Path, name: str) -> None:
    body = BODIES[name]
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send(message=HEAD + body)
        await rig.settled()
        (got,) = up.transactions
        before, _, rest = got.message.partition(b"From: app@example.com\r\n")
        assert rest == (HEAD + body).partition(b"From: app@example.com\r\n")[2]
        assert before.startswith(b"Received: ") and number.encode() in before
        assert (got.sender, got.accepted) == ("app@example.com", ["you@example.net"])


async def test_size_and_8bitmime_are_said_where_offered(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        await rig.send(message=HEAD + b"gr\xc3\xbcn\r\n")
        await rig.settled()
        said = up.transactions[0].mail
        assert "BODY=8BITMIME" in said
        assert f"SIZE={len(up.transactions[0].message)}" in said
    async with Upstream(extensions=()) as up, running(write_config(tmp_path, one(up))) as rig:
        await rig.send(message=HEAD + b"plain\r\n")
        await rig.settled()
        assert up.transactions[0].mail == "FROM:<app@example.com>"


async def test_utf8_address_only_where_smtputf8_is_offered(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        await rig.send("jürgen@example.net", message=HEAD + b"x\r\n")
        await rig.settled()
        assert "SMTPUTF8" in up.transactions[0].mail and up.delivered() == ["jürgen@example.net"]
    async with Upstream(extensions=("8BITMIME",)) as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send("jürgen@example.net", message=HEAD + b"x\r\n")
        row = await rig.reaches(number, "failed")
        assert "SMTPUTF8" in row["why"] and not up.transactions


async def test_too_large_for_the_upstream_is_known_before_a_byte_is_sent(tmp_path: Path) -> None:
    async with Upstream(extensions=("SIZE 500",)) as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send(message=HEAD + b"x" * 600 + b"\r\n")
        row = await rig.reaches(number, "failed")
        assert "500" in row["why"] and row["last_reply"].startswith("552 5.3.4") and not up.transactions


async def test_session_is_used_for_so_many_messages_then_quit(tmp_path: Path) -> None:
    more = ", connections: 1, messages_per_connection: 3"
    async with Upstream() as up, running(write_config(tmp_path, one(up, more))) as rig:
        await rig.send_many([("app@example.com", (f"r{i}@example.net",), HEAD) for i in range(7)])
        await rig.settled()
        await until(lambda: len(up.commands("QUIT")) == 2)
        assert [sum(li.startswith("MAIL") for li in s) for s in up.sessions] == [3, 3, 1]
        assert [s[-1] for s in up.sessions[:2]] == ["QUIT", "QUIT"]
        assert up.most_open == 1
        assert sorted(up.delivered()) == [f"r{i}@example.net" for i in range(7)]


async def test_recipients_are_split_as_the_account_says(tmp_path: Path) -> None:
    more = ", recipients_per_message: 10"
    names = [f"r{i}@example.net" for i in range(25)]
    async with Upstream() as up, running(write_config(tmp_path, one(up, more))) as rig:
        await rig.send(*names)
        await rig.settled()
        assert sorted(len(t.accepted) for t in up.done) == [5, 10, 10]
        assert sorted(up.delivered()) == sorted(names)


async def test_partial_refusal_is_exact_for_each_recipient(tmp_path: Path) -> None:
    """100 recipients: who was accepted is never sent again, who got 4xx or 552 is retried alone, who got 5xx has failed."""
    codes = {"a": "250 2.1.5 ok", "b": "450 4.2.1 later", "c": "550 5.1.1 nobody", "d": "552 5.5.3 too many"}
    seen: dict[str, int] = {}

    def answer(recipient: str) -> str:
        seen[recipient] = seen.get(recipient, 0) + 1
        return codes[recipient[0]] if seen[recipient] == 1 else "250 2.1.5 now"

    names = [f"{'abcd'[i % 4]}{i}@example.net" for i in range(100)]
    async with Upstream({"RCPT": answer}) as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send(*names)
        await rig.settled()
        rows = {r["recipient"]: r for r in await rig.rows(number)}
        assert len(rows) == 100
        for name in names:
            state, attempts = {"a": ("delivered", 1), "c": ("failed", 1)}.get(name[0], ("delivered", 2))
            assert (rows[name]["state"], rows[name]["attempts"]) == (state, attempts)
            assert seen[name] == attempts
        assert rows["c2@example.net"]["last_reply"] == "550 5.1.1 nobody"
        assert sorted(up.delivered()) == sorted(n for n in names if n[0] != "c")
        first, *later = up.done
        assert len(first.accepted) == 25
        assert sorted(r for t in later for r in t.recipients) == sorted(n for n in names if n[0] in "bd")


def _no_or_yes(recipient: str) -> str:
    return "550 5.1.1 nobody" if recipient.startswith("no") else "250 ok"


@pytest.mark.parametrize("pipelining", [True, False])
async def test_no_recipient_taken_keeps_the_session(tmp_path: Path, pipelining: bool) -> None:
    """DATA is not said, unless it was said ahead; RSET makes sure that both are in step."""
    more = ", connections: 1"
    async with (
        Upstream({"RCPT": _no_or_yes}, extensions=("PIPELINING",) if pipelining else ()) as up,
        running(write_config(tmp_path, one(up, more))) as rig,
    ):
        bad, good = await rig.send_many(
            [("app@example.com", (r,), HEAD) for r in ("no@example.net", "yes@example.net")]
        )
        await rig.settled()
        assert (await rig.row(bad))["state"] == "failed"
        assert (await rig.row(good))["state"] == "delivered"
        (said,) = [[line[:4] for line in session] for session in up.sessions]
        ahead = ["DATA"] if pipelining else []
        assert said == ["EHLO", "MAIL", "RCPT", *ahead, "RSET", "MAIL", "RCPT", "DATA"]


async def test_a_message_for_nobody_is_a_single_dot(tmp_path: Path) -> None:
    """RFC 2920 section 3.1: an upstream may answer 354 to a DATA that was said ahead, though it took no recipient."""
    more = ", connections: 1"
    async with (
        Upstream({"RCPT": _no_or_yes, "EMPTY": "354 go on"}) as up,
        running(write_config(tmp_path, one(up, more))) as rig,
    ):
        bad, good = await rig.send_many(
            [("app@example.com", (r,), HEAD) for r in ("no@example.net", "yes@example.net")]
        )
        await rig.settled()
        assert [(r["state"], r["attempts"]) for r in await rig.rows(bad, good)] == [("failed", 1), ("delivered", 1)]
        assert (up.transactions[0].wire, up.transactions[0].accepted) == (b"", [])
        assert len(up.sessions) == 1 and up.delivered() == ["yes@example.net"]


@pytest.mark.parametrize("pipelining", [True, False])
async def test_commands_go_out_together_where_pipelining_is_offered(tmp_path: Path, pipelining: bool) -> None:
    """RSET and MAIL up to DATA, before a reply has come; and a command at a time where it is not offered."""
    names = [f"{'no' if i % 3 else 'yes'}{i}@example.net" for i in range(9)]
    waiting = []

    def rcpt(recipient: str) -> str:
        waiting.append(up.unread)
        return _no_or_yes(recipient)

    script = {"RCPT": rcpt, "DOT": ["451 4.3.0 later", "250 ok"]}
    async with (
        Upstream(script, extensions=("PIPELINING",) if pipelining else ()) as up,
        running(write_config(tmp_path, one(up, ", connections: 1"))) as rig,
    ):
        number = await rig.send(*names, message=HEAD)
        await rig.settled()
        states = {r["recipient"]: (r["state"], r["attempts"]) for r in await rig.rows(number)}
        assert states == {n: ("failed", 1) if n.startswith("no") else ("delivered", 2) for n in names}
        assert len(up.sessions) == 1 and "RSET" in up.sessions[0]
        assert all(n > 0 for n in waiting) if pipelining else not any(waiting)


async def test_a_session_closed_while_idle_costs_no_attempt(tmp_path: Path) -> None:
    more = ", connections: 1"
    async with Upstream() as up, running(write_config(tmp_path, one(up, more))) as rig:
        await rig.send("one@example.net")
        await rig.settled()
        up.cut()
        number = await rig.send("two@example.net")
        await rig.settled()
        row = await rig.row(number)
        assert (row["state"], row["attempts"]) == ("delivered", 1)
        assert await rig.story(number) == ["accepted", "delivered"]


@pytest.mark.parametrize("ending", ["421 4.4.2 idle for too long", RESET], ids=["421", "reset"])
async def test_a_session_that_ends_at_its_next_mail_costs_no_attempt(tmp_path: Path, ending: object) -> None:
    """The upstream's idle time-out and our next MAIL cross on the wire."""
    more = ", connections: 1"
    script = {"MAIL": ["250 ok", ending, "250 ok"]}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up, more))) as rig:
        await rig.send("one@example.net")
        await rig.settled()
        number = await rig.send("two@example.net")
        await rig.settled()
        row = await rig.row(number)
        assert (row["state"], row["attempts"]) == ("delivered", 1)
        assert rig.egress().sessions == 1


async def test_idle_session_is_ended_politely(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, one(up))) as rig:
        await rig.send()
        await rig.settled()
        assert rig.egress().sessions == 1
        for session in rig.egress()._idle:
            session.idle_since -= 31
        await until(lambda: rig.egress().sessions == 0, 25)
        assert up.commands("QUIT") == ["QUIT"]


async def test_remote_queue_id_and_reply_are_kept(tmp_path: Path) -> None:
    async with (
        Upstream({"DOT": "250 2.0.0 Ok: queued as 4XyZ12"}) as up,
        running(write_config(tmp_path, one(up))) as rig,
    ):
        number = await rig.send()
        row = await rig.reaches(number, "delivered")
        assert (row["remote_id"], row["last_reply"]) == ("4XyZ12", "250 2.0.0 Ok: queued as 4XyZ12")
        assert row["egress"] == "main"
