"""No reply answers two commands, and nobody is given another's answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import DROP, Early, Upstream
from rig import running, write_config

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
