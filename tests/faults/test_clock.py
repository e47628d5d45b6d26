"""The machine's clock is ten days off at a start, and right again at the next: nothing bounces early, mail moves on."""

from __future__ import annotations

import asyncio
import json
import smtplib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from fakes import Upstream
from service.storm import CLASSES
from service.support import ENV, Relay, config_text, until

DAYS = 10 * 86400
# Deferred for an hour after each attempt: each further one is the clock's doing.
SLOW = CLASSES.replace("first: 500ms, factor: 2, cap: 4s, give_up: 1h", "first: 1h, factor: 1, cap: 1h, give_up: 5d")


def send(port: int, to: str, **headers: str) -> None:
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    with smtplib.SMTP("127.0.0.1", port, timeout=60) as smtp:
        smtp.sendmail("app@example.com", [to], f"Subject: x\r\n{head}\r\nhello\r\n".encode())


@pytest.mark.parametrize("way", [1, -1])
async def test_ten_days_off_and_back(tmp_path: Path, compiled: Any, way: int) -> None:
    wait = asyncio.to_thread
    answers = {"user@example.com": "451 4.3.0 not now"}
    attempts: Counter[str] = Counter()

    def at_rcpt(to: str) -> str:
        attempts[to] += 1
        return answers.get(to, "250 2.1.5 ok")

    def shifted(seconds: int) -> dict[str, str]:
        return ENV | {"LD_PRELOAD": str(compiled("clock")), "CLOCK_OFFSET": str(seconds)}

    def states(relay: Relay) -> dict[str, str]:
        return {r["recipient"]: r["state"] for r in json.loads(relay.cli("queue", "list", "--all", "--json"))}

    async with Upstream({"RCPT": at_rcpt}) as upstream:
        (tmp_path / "relay.yaml").write_text(config_text(tmp_path, upstream.port, extra=SLOW + "dsn: {to: none}\n"))
        with Relay(tmp_path / "relay.yaml", env=shifted(0)) as relay:
            await wait(send, relay.port, "user@example.com")
            await wait(until, lambda: relay.lines("deferred"), 60, "it is deferred")
            for runs, offset in enumerate((way * DAYS, way * DAYS, 0), 1):
                assert await wait(relay.stop) == 0
                relay.env = shifted(offset)
                await wait(relay.start)
                # A new one goes out at once, whatever the time is.
                await wait(send, relay.port, f"new{runs}@example.com")
                await wait(until, lambda: len(relay.lines("delivered")) == 1, 60, "mail moves")
                told = relay.lines("clock_gap")
                assert len(told) == (1 if runs != 2 else 0), relay.log()
                assert (await wait(states, relay))["user@example.com"] in ("deferred", "active")
                assert not relay.lines("expired")
            # One attempt before; then at most one for each jump.
            assert 1 <= attempts["user@example.com"] <= 3
            before = attempts["user@example.com"]
            answers.clear()
            await wait(relay.cli, "queue", "retry", "--recipient", "user@example.com")
            await wait(until, lambda: len(relay.lines("delivered")) == 2, 60, "it is delivered in the end")
            assert attempts["user@example.com"] == before + 1
            # The log has its line before the transaction that records it.
            await wait(until, lambda: set(states(relay).values()) == {"delivered"}, 60, "all of it is recorded")
            assert await wait(relay.stop) == 0
            relay.clean()
