"""No reply answers two commands, and nobody is given another's answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from cells import GROUNDS, KINDS, Ground, cells_of, mails
from fakes import DROP, Early, Pieces, Upstream
from rig import running, until, write_config

HEAD = b"From: app@example.com\r\nSubject: t\r\n\r\n"
LARGE = HEAD + b"x" * 70 + b"\r\n" + (b"y" * 76 + b"\r\n") * 30000


def one(up: Upstream, more: str = "") -> dict[str, str]:
    return {"main": f"port: {up.port}, tls: none, connections: 1{more}"}


async def test_a_refusal_in_mid_body_and_another_at_the_dot_touch_one_message(tmp_path: Path) -> None:
    def dot(_: str) -> str:
        return "554 5.6.0 message refused" if "big" in up.transactions[-1].recipients[0] else "250 2.0.0 Ok"

    script = {"BODY": [Early(1000, "552 5.2.3 too big"), None], "DOT": dot}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up))) as rig:
        large, innocent = await rig.send_many(
            [
                ("a@example.com", ("big@example.net",), LARGE),
                ("a@example.com", ("innocent@example.net",), HEAD + b"x\r\n"),
            ]
        )
        assert "552" in (await rig.reaches(large, "failed"))["last_reply"]
        assert (await rig.reaches(innocent, "delivered"))["last_reply"] == "250 2.0.0 Ok"


@pytest.mark.parametrize(
    ("script", "rest"),
    [
        ({"DATA": "554 5.6.0 no"}, "failed"),
        ({"DOT": "554 5.6.0 no"}, "failed"),
        ({"DOT": DROP}, "deferred"),
        ({"DOT": "421 4.3.2 going"}, "deferred"),
    ],
    ids=["data", "dot", "drop", "421"],
)
@pytest.mark.parametrize(
    ("rcpt", "state", "reply"),
    [("450 4.2.0 greylisted", "deferred", "450"), ("550 5.1.1 no such user", "failed", "550")],
    ids=["450", "550"],
)
async def test_who_was_refused_at_rcpt_keeps_that_answer(
    tmp_path: Path, script: dict[str, object], rest: str, rcpt: str, state: str, reply: str
) -> None:
    script = script | {"RCPT": lambda argument: rcpt if "first" in argument else "250 2.1.5 Ok"}
    slow = "  default: {retry: {schedule: [1h], give_up: 1d}}"
    async with Upstream(script) as up, running(write_config(tmp_path, one(up), classes=slow)) as rig:
        number = await rig.send("first@example.net", "second@example.net", message=HEAD + b"x\r\n")
        await rig.tried(number)
        first, second = await rig.rows(number)
        assert (first["state"], first["in_doubt"]) == (state, False)
        assert first["last_reply"].startswith(reply)
        assert second["state"] == rest
        assert second["in_doubt"] is (script["DOT"] is DROP if "DOT" in script else False)


async def test_a_second_reply_to_data_ends_the_session(tmp_path: Path) -> None:
    script = {"DATA": [b"354 go\r\n250 surprise\r\n", "354 go"]}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send(message=HEAD + b"x\r\n")
        await rig.reaches(number, "delivered")
        assert len(up.sessions) == 2
        assert len(up.done) == 1


# -- more replies than commands


async def test_a_second_reply_to_the_dot_is_not_the_next_messages(tmp_path: Path) -> None:
    script = {"DOT": [b"250 2.0.0 taken\r\n554 5.6.0 and yet not\r\n", "250 2.0.0 ok"]}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up))) as rig:
        ids = await rig.send_many([("a@example.com", (f"r{i}@example.net",), HEAD + b"x\r\n") for i in range(2)])
        await rig.settled()
        said = [(r["state"], r["attempts"], r["last_reply"]) for r in await rig.rows(*ids)]
        assert said == [("delivered", 1, "250 2.0.0 taken"), ("delivered", 1, "250 2.0.0 ok")]
        assert len(up.sessions) == 2 and rig.egress().breaker.failures == 0


async def test_a_second_reply_that_is_late_is_nobodys(tmp_path: Path) -> None:
    script = {"DOT": [Pieces((b"250 2.0.0 taken\r\n", b"554 5.6.0 and yet not\r\n")), "250 2.0.0 ok"]}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up))) as rig:
        await rig.reaches(await rig.send(message=HEAD + b"x\r\n"), "delivered")
        await until(lambda: up.done and not rig.egress().busy)
        await rig.reaches(await rig.send(message=HEAD + b"x\r\n"), "delivered")
        assert len(up.sessions) == 2


REFUSED_ONCE = {"RCPT": ["550 5.1.1 nobody", b"250 2.1.5 ok\r\n550 5.1.1 nobody\r\n", "250 2.1.5 ok"]}
THREE = ("no@example.net", "a@example.net", "b@example.net")


async def test_a_second_reply_to_one_recipient_is_not_the_next_ones(tmp_path: Path) -> None:
    """Who was refused before keeps that; the others are asked again in a session that is in step."""
    async with Upstream(REFUSED_ONCE, extensions=()) as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send(*THREE, message=HEAD + b"x\r\n")
        await rig.settled()
        rows = [(r["state"], r["attempts"]) for r in await rig.rows(number)]
        assert rows == [("failed", 1), ("delivered", 2), ("delivered", 2)]
        assert up.delivered() == ["a@example.net", "b@example.net"] and len(up.sessions) == 2


async def test_said_ahead_nobody_knows_which_reply_is_one_too_many(tmp_path: Path) -> None:
    """So nobody is given one of them: all are asked again."""
    async with Upstream(REFUSED_ONCE) as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send(*THREE, message=HEAD + b"x\r\n")
        await rig.settled()
        rows = [(r["state"], r["attempts"]) for r in await rig.rows(number)]
        assert rows == [("delivered", 2)] * 3
        assert up.delivered() == list(THREE) and len(up.sessions) == 2


# After 354 a late one may be a refusal in the middle of the body.
@pytest.mark.parametrize(
    ("where", "late"), [("MAIL", False), ("MAIL", True), ("RCPT", False), ("RCPT", True), ("DATA", False)]
)
@pytest.mark.parametrize("extra", [b"250 2.0.0 ok\r\n", b"451 4.0.0 no\r\n", b"550 5.0.0 no\r\n", b"354 go on\r\n"])
async def test_one_reply_too_many_gives_nobody_anothers_answer(
    tmp_path: Path, where: str, extra: bytes, late: bool
) -> None:
    """Wherever it comes, with whatever code: the one who is refused may be asked again, the others are never refused."""
    usual = {"MAIL": b"250 2.1.0 ok\r\n", "RCPT": b"250 2.1.5 ok\r\n", "DATA": b"354 go\r\n"}[where]
    both = Pieces((usual, extra)) if late else usual + extra

    def rcpt(recipient: str) -> object:
        if recipient.startswith("no"):
            return "550 5.1.1 nobody"
        return both if where == "RCPT" and recipient.startswith("a") and len(up.transactions) == 1 else "250 2.1.5 ok"

    script: dict[str, object] = {"RCPT": rcpt}
    if where != "RCPT":
        script[where] = [both, usual]
    async with Upstream(script) as up, running(write_config(tmp_path, one(up))) as rig:
        number = await rig.send(*THREE, message=HEAD + b"x\r\n")
        await rig.settled()
        first, *others = await rig.rows(number)
        assert first["state"] == "failed" and first["last_reply"] == "550 5.1.1 nobody"
        assert [r["state"] for r in others] == ["delivered"] * 2
        assert up.delivered() == ["a@example.net", "b@example.net"]


@pytest.mark.parametrize("login", ["235 2.7.0 welcome", "250 2.0.0 ok"])
async def test_a_reply_before_its_command_is_not_believed(tmp_path: Path, login: str) -> None:
    """An upstream, or somebody on the way, that answers ahead of us: neither the login nor the mail has gone well by that."""
    ahead = f"250-fake.example\r\n250 AUTH PLAIN\r\n{login}\r\n250 ok\r\n250 ok\r\n354 go\r\n250 taken\r\n"
    (tmp_path / "pw").write_text("right")
    more = f", username: user, password: {{file: {tmp_path}/pw}}"
    slow = "  default: {retry: {schedule: [1h], give_up: 1d}}"
    async with (
        Upstream({"EHLO": ahead.encode()}, login=("user", "right")) as up,
        running(write_config(tmp_path, one(up, more), classes=slow)) as rig,
    ):
        row = await rig.tried(await rig.send(message=HEAD + b"x\r\n"))
        assert (row["state"], row["in_doubt"]) == ("deferred", False)
        assert row["last_reply"] == "login: upstream said more than one reply"
        assert up.logins == [] and up.transactions == []


# -- replies in pieces


COMMANDS = ("BANNER", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "DOT", "RSET", "QUIT")


@pytest.mark.parametrize("ground", GROUNDS, ids=lambda g: g.name)
def test_every_reply_byte_by_byte(ground: Ground, tmp_path: Path) -> None:
    with asyncio.Runner(loop_factory=ground.loop) as runner:
        runner.run(bytewise(ground, tmp_path))


async def bytewise(ground: Ground, folder: Path) -> None:
    """All that EHLO offered is known, a refusal of several lines is one, and all of it goes on in one session."""
    refusal = Pieces(tuple(bytes([b]) for b in b"550-5.1.1 no such\r\n550 5.1.1 user\r\n"))
    async with cells_of([replace(KINDS[0], stages=("quit",))], ground, folder) as (file, (cell,)):
        up = cell.up
        up.script = dict.fromkeys(COMMANDS, Pieces()) | {"RCPT": lambda r: refusal if r.startswith("no") else Pieces()}
        async with running(file) as rig:
            await rig.send_many(mails([cell], "second", "first", "third"))
            await rig.settled()
            rows = {r["recipient"].partition("@")[0]: r for r in await rig.rows()}
            for name, row in rows.items():
                wanted = (
                    ("failed", "550 5.1.1 no such user") if name.startswith("no") else ("delivered", "250 2.0.0 Ok")
                )
                assert row["state"] == wanted[0] and row["last_reply"].startswith(wanted[1]), row
                assert row["attempts"] == 1
            (session,) = up.sessions
            assert "SIZE=" in up.transactions[0].mail and session[-1] == "QUIT"
            assert bool(up.tls_versions) is bool(up.logins) is ground.secure


async def test_a_reply_cut_at_every_place_is_the_same_reply(tmp_path: Path) -> None:
    text = b"250-2.0.0 Ok:\r\n250-2.0.0 queued as\r\n250 2.0.0 4XyZ12abc\r\n"
    cuts = range(1, len(text))
    script = {"DOT": [Pieces((text[:i], text[i:])) for i in cuts]}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up))) as rig:
        ids = await rig.send_many([("a@example.com", (f"r{i}@example.net",), HEAD + b"x\r\n") for i in cuts])
        await rig.settled()
        rows = await rig.rows(*ids)
        said = {(r["state"], r["attempts"], r["last_reply"], r["remote_id"]) for r in rows}
        assert said == {("delivered", 1, "250 2.0.0 Ok: queued as 4XyZ12abc", "4XyZ12abc")}
        assert len(up.sessions) == 1 and len(up.done) == len(cuts)


# -- what was said ahead, and may not be taken back


async def test_a_354_after_a_refused_rset_gets_no_message_for_those_who_were_taken(tmp_path: Path) -> None:
    """MAIL and RCPT went out with it and were taken: a dot alone would be an empty mail for somebody."""
    script = {"RSET": "502 5.5.1 what?", "DOT": ["554 5.6.0 not this one", "250 2.0.0 ok"]}
    async with Upstream(script) as up, running(write_config(tmp_path, one(up))) as rig:
        await rig.reaches(await rig.send("first@example.net", message=HEAD + b"x\r\n"), "failed")
        await rig.reaches(await rig.send("second@example.net", message=HEAD + b"x\r\n"), "delivered")
        assert [(t.recipients, t.wire[-3:]) for t in up.done] == [(["second@example.net"], b"x\r\n")]
