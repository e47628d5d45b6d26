"""Limits in the relay as it is: whose mail is held, for how long, who is refused, and what a restart or a reload keeps."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from fakes import Later, Upstream
from front import Client
from rig import FAST, Rig, running, until, write_config

from relay import clock
from relay.spool import SpoolError
from tests.pace import Jerks, jerks

TEXT = b"Subject: t\r\nFrom: %s\r\n\r\nhello\r\n"


class Counting(Upstream):
    """Notes when each MAIL came, and from whom."""

    def __init__(self, script: dict[str, Any] | None = None) -> None:
        self.mails: list[tuple[float, str]] = []
        super().__init__({"MAIL": self._mail, **(script or {})})

    def _mail(self, argument: str) -> str:
        found = re.search(r"<(.*?)>", argument)
        self.mails.append((time.monotonic(), found[1] if found else argument))
        return "250 ok"

    def of(self, sender: str = "") -> int:
        return sum(sender in who for _, who in self.mails)

    def most(self, period: float) -> int:
        times = sorted(at for at, _ in self.mails)
        return max(sum(begin <= at < begin + period for at in times) for begin in times)

    def most_in_a_second(self, felt: Jerks) -> int:
        """Of the relay's seconds: what it says is heard as much later as the loop was held up, and as it was not."""
        return self.most(0.98 - 2 * felt.worst)


def config(folder: Path, limits: Iterable[str], *ups: Upstream, account: str = "", **more: Any) -> Path:
    rules = "".join(f"  - {{name: l{n}, {rule}}}\n" for n, rule in enumerate(limits))
    accounts = {name: f"port: {up.port}, tls: none{account}" for name, up in zip(("main", "other"), ups, strict=False)}
    return write_config(folder, accounts, extra=f"limits:\n{rules}" if rules else "", **more)


async def mail(rig: Rig, count: int, sender: str = "app@example.com", *, to: str = "example.net") -> list[str]:
    return await rig.send_many([(sender, (f"u{n}@{to}",), TEXT % sender.encode()) for n in range(count)])


async def still(condition: Callable[[], object], seconds: float = 0.4) -> None:
    """It stays so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert condition()
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("per", ["sender", "from"])
async def test_each_sender_has_a_count_of_his_own(tmp_path: Path, per: str) -> None:
    async with Counting() as up, running(config(tmp_path, [f"per: [{per}], rate: 3/h"], up)) as rig:
        await mail(rig, 8, "a@one.example")
        await mail(rig, 2, "b@two.example")
        await until(lambda: (up.of("one"), up.of("two")) == (3, 2))
        await mail(rig, 2, "b@two.example")
        await until(lambda: up.of("two") == 3)
        await still(lambda: (up.of("one"), up.of("two")) == (3, 3))
        assert all(row["attempts"] == 0 for row in await rig.rows() if row["state"] != "delivered")


async def test_each_destination_has_one(tmp_path: Path) -> None:
    async with Counting() as up, running(config(tmp_path, ["per: [destination], rate: 2/h"], up)) as rig:
        await mail(rig, 5, to="one.example")
        await mail(rig, 5, to="two.example")
        await until(lambda: len(up.mails) == 4)
        await still(lambda: len(up.mails) == 4)


async def test_a_class_that_is_held_hides_no_other(tmp_path: Path) -> None:
    classes = FAST + "\n  bulk: {priority: high, limits: [2/h], match: {sender: '*@bulk.example'}}"
    async with Counting() as up, running(config(tmp_path, [], up, classes=classes)) as rig:
        await mail(rig, 30, "app@bulk.example")
        await mail(rig, 10)
        await until(lambda: len(up.mails) == 12)
        await still(lambda: len(up.mails) == 12)


async def test_it_goes_on_when_the_period_is_over_in_the_order_of_its_coming(tmp_path: Path) -> None:
    async with (
        Counting() as up,
        running(config(tmp_path, ["{rate: 5/s, burst: 5}"[1:-1]], up)) as rig,
        jerks() as felt,
    ):
        await mail(rig, 15)
        await rig.settled()
        assert up.most_in_a_second(felt) <= 5
        times = [at for at, _ in up.mails]
        assert 1.9 - 2 * felt.worst < times[-1] - times[0] < 3.5 + felt.lost
        # Five begin at once, each over a session of its own: who of them ends first is for the machine to say.
        came = [int(r.partition("@")[0][1:]) for r in up.delivered()]
        assert sorted(came) == list(range(15)) and all(abs(n - at) < 5 for at, n in enumerate(came)), came


async def test_what_waits_for_a_session_is_counted_when_it_is_said(tmp_path: Path) -> None:
    """The first sessions are greeted late: what was let go for them is said together with what was let go since."""
    late = [Later(1.3, "220 late")] * 5 + ["220 hello"]
    rule = "rate: 5/s, burst: 5"
    async with (
        Counting({"BANNER": late}) as up,
        running(config(tmp_path, [rule], up, account=", connections: 20")) as rig,
        jerks() as felt,
    ):
        await mail(rig, 20)
        await rig.settled()
        assert up.most_in_a_second(felt) <= 5


async def test_bytes(tmp_path: Path) -> None:
    """What is small, in another lane, fits beside what does not."""
    classes = FAST + "\n  small: {match: {sender: '*@small.example'}}"
    async with Counting() as up, running(config(tmp_path, ["rate: 50kB/h"], up, classes=classes)) as rig:
        large = b"Subject: t\r\n\r\n" + (b"x" * 70 + b"\r\n") * 250  # 18 kB
        await rig.send_many([("large@one.example", ("u@example.net",), large)] * 5)
        await until(lambda: len(up.mails) == 2)
        await still(lambda: len(up.mails) == 2)
        await mail(rig, 3, "app@small.example")
        await until(lambda: len(up.mails) == 5)


async def test_excess_goes_by_the_next_egress(tmp_path: Path) -> None:
    async with Counting() as first, Counting() as second:
        file = config(tmp_path, ["per: [egress], rate: 3/h, when_full: next"], first, second)
        async with running(file) as rig:
            await mail(rig, 10)
            await until(lambda: (len(first.mails), len(second.mails)) == (3, 3))
            await still(lambda: (len(first.mails), len(second.mails)) == (3, 3))


async def test_an_accounts_excess_goes_by_the_next_egress_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Counting() as first, Counting() as second:
        limit = "limits: [{rate: 4/h, when_full: next}]"
        file = write_config(
            tmp_path,
            {"main": f"port: {first.port}, tls: none, {limit}", "other": f"port: {second.port}, tls: none"},
        )
        async with running(file) as rig:
            await mail(rig, 10)
            await rig.settled()
            assert (len(first.mails), len(second.mails)) == (4, 6)
            now = clock.now
            monkeypatch.setattr(clock, "now", lambda: now() + 3700)
            await mail(rig, 2)
            await rig.settled()
            assert len(first.mails) == 6


# -- refused


async def refused(client: Client, sender: str, *recipients: str) -> list[str]:
    """The replies to RCPT and, where one was taken, to the final dot."""
    assert (await client.say(f"MAIL FROM:<{sender}>"))[0] == 250
    told = [await client.say(f"RCPT TO:<{r}>") for r in recipients]
    if any(code == 250 for code, _ in told):
        assert (await client.say("DATA"))[0] == 354
        told.append(await client.say(f"Subject: t\r\nFrom: {sender}\r\n\r\nhello\r\n."))
    else:
        await client.say("RSET")
    return [f"{code} {text}" for code, text in told]


async def connect(rig: Rig) -> Client:
    client = Client(*await asyncio.open_connection("127.0.0.1", rig.port))
    assert (await client.reply())[0] == 220
    assert (await client.say("EHLO client.example"))[0] == 250
    return client


async def test_refused_at_rcpt_and_at_the_dot(tmp_path: Path) -> None:
    limits = ["per: [sender], rate: 2/h, when_full: reject", "per: [from], rate: 3/h, when_full: reject"]
    async with Counting() as up, running(config(tmp_path, limits, up)) as rig:
        client = await connect(rig)
        await mail(rig, 2, "a@one.example")
        (told,) = await refused(client, "a@one.example", "x@example.net")
        assert re.match(r"452 4\.7\.1 limit l0 \(a@one\.example\) of 2/h is used up; try again in \d+ s", told), told
        await mail(rig, 1, "b@one.example")
        first, end = await refused(client, "b@one.example", "x@example.net")  # what From says is not known at RCPT
        assert first.startswith("250")
        assert re.match(r"452 4\.7\.1 limit l1 \(one\.example\) of 3/h is used up", end), end
        assert await rig.count() == 3
        await mail(rig, 1, "b@two.example")
        await client.close()


async def test_a_message_to_many_counts_each(tmp_path: Path) -> None:
    async with Counting() as up, running(config(tmp_path, ["rate: 3/h, when_full: reject"], up)) as rig:
        client = await connect(rig)
        await mail(rig, 1)
        told = await refused(client, "a@one.example", *(f"x{n}@example.net" for n in range(4)))
        assert [line[:3] for line in told] == ["250", "250", "452", "452", "250"]
        await rig.settled()
        assert await rig.count() == 3
        (again,) = await refused(client, "a@one.example", "x@example.net")
        assert again.startswith("452 4.7.1")
        await client.close()


async def test_what_was_not_stored_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Counting() as up, running(config(tmp_path, ["rate: 2/h, when_full: reject"], up)) as rig:
        client = await connect(rig)

        async def full(*_: object) -> None:
            raise SpoolError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(rig.app.intake.spool, "accept", full)
            for _ in range(4):
                assert (await refused(client, "a@one.example", "x@example.net"))[-1][:1] == "4"
        await mail(rig, 2)
        (told,) = await refused(client, "a@one.example", "x@example.net")
        assert told.startswith("452 4.7.1")
        await client.close()


# -- kept


@pytest.mark.parametrize("rule", ["rate: 3/h", "rate: 3/h, when_full: reject"])
async def test_a_restart_keeps_what_was_spent(tmp_path: Path, rule: str) -> None:
    async with Counting() as up:
        file = config(tmp_path, [rule], up)
        async with running(file) as rig:
            await mail(rig, 2)
            await rig.settled()
        async with running(file) as rig:
            await mail(rig, 1)
            await rig.settled()
            if "reject" in rule:
                client = await connect(rig)
                assert (await refused(client, "a@one.example", "x@example.net"))[0].startswith("452")
                await client.close()
            else:
                await mail(rig, 3)
            await still(lambda: len(up.mails) == 3)


@pytest.mark.parametrize("account", [False, True])
async def test_a_reload_that_changes_the_number_keeps_what_was_spent(tmp_path: Path, account: bool) -> None:
    def limited(rate: str) -> Path:
        if account:
            return config(tmp_path, [], up, account=f", limits: [{rate}]", port=port)
        return config(tmp_path, [f"rate: {rate}"], up, port=port)

    port = 0
    async with Counting() as up, running(limited("3/h")) as rig:
        await mail(rig, 10)
        await until(lambda: len(up.mails) == 3)
        limited("5/h")
        assert rig.app.reload()[0]
        await until(lambda: len(up.mails) == 5)
        await still(lambda: len(up.mails) == 5)
        limited("4/h")
        assert rig.app.reload()[0]
        await still(lambda: len(up.mails) == 5)


async def test_what_could_not_be_said_is_not_spent(tmp_path: Path) -> None:
    """Nobody listens at first: no part of the limit is used up by that."""
    greeting = ["450 4.3.0 not now"] * 3 + ["220 hello"]
    async with Counting({"BANNER": greeting}) as up, running(config(tmp_path, ["rate: 5/h"], up)) as rig:
        await mail(rig, 8)
        await until(lambda: len(up.mails) == 5, 60.0)
        await still(lambda: len(up.mails) == 5)
