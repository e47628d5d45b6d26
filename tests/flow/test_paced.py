"""What an account's pace and its pauses must not do: spin, hold up what may leave, or touch who was not spoken of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from fakes import DROP, Later, Upstream
from rig import Rig, running, until
from test_blame import QUOTA, many, quiet, rules

from relay import clock
from relay.policy import crowd

HOURLY = ", limits: [5/h]"


async def test_an_upstream_that_greets_with_too_fast_is_not_dialled_in_a_circle(tmp_path: Path) -> None:
    """The second complaint about connections is news as well: each makes the pause longer, and writes nothing meanwhile."""
    busy = '{reply: "^4.. .*too frequent connects", scope: account, then: slow, wait: 200ms, means: too many dials}'
    async with (
        Upstream({"BANNER": "450 4.7.1 too frequent connects"}) as up,
        running(rules(tmp_path, {"main": up}, busy)) as rig,
    ):
        number = await rig.send()
        await asyncio.sleep(1.5)
        assert 3 <= len(up.sessions) <= 9, len(up.sessions)
        assert (await rig.row(number))["attempts"] == 0


async def test_who_is_refused_for_good_with_the_session_takes_nobody_with_him(tmp_path: Path) -> None:
    """A 421 to one RCPT ends the session; what it says of that address is not said of those that were not asked."""
    dead = '{reply: "no such user", at: [rcpt], scope: recipient, verdict: permanent, means: the address is dead}'
    script = {"RCPT": lambda a: "421 4.1.1 no such user, closing" if "dead" in a else "250 Ok"}
    for pipelining in (False, True):
        async with Upstream(script, extensions=("PIPELINING",) if pipelining else ()) as up:
            folder = tmp_path / str(pipelining)
            folder.mkdir()
            async with running(rules(folder, {"main": up}, dead)) as rig:
                number = await rig.send("a@example.net", "dead@example.net", "b@example.net")
                await rig.settled()
                rows = {r["recipient"][0]: (r["state"], r["attempts"]) for r in await rig.rows(number)}
                assert rows == {"a": ("delivered", 1), "d": ("failed", 1), "b": ("delivered", 1)}
                assert sorted(up.delivered()) == ["a@example.net", "b@example.net"]


async def test_a_slow_session_does_not_hold_up_what_its_limit_lets_go(tmp_path: Path) -> None:
    """While one waits for the reply to its final dot, the others leave as soon as the limit turns."""
    never = asyncio.Event()
    script = {"DOT": lambda s: Later(0, "250 ok", never) if s.startswith("slow") else "250 ok"}
    async with Upstream(script) as up, running(rules(tmp_path, {"main": up}, more=", limits: [5/s]")) as rig:
        await rig.send(sender="slow@example.com")
        await until(lambda: any(t.ended for t in up.transactions))
        await rig.send_many(many(15))
        await until(lambda: len(up.delivered()) == 15)
        never.set()
        await rig.settled()


async def test_a_limit_that_was_raised_lets_go_what_waited_for_it(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = rules(tmp_path, {"main": up}, more=HOURLY)
        async with running(file) as rig:
            await rig.send(*(f"a{i}@example.net" for i in range(4)))
            await rig.settled()
            await rig.send(*(f"b{i}@example.net" for i in range(4)))
            await quiet(rig)
            file.write_text(file.read_text().replace("5/h", "50/h"))
            assert rig.app.reload()[0]
            await rig.settled()
            assert len(up.delivered()) == 8


async def test_a_message_to_many_holds_nobody_up(tmp_path: Path) -> None:
    """What a limit still lets go leaves; one message that wants more does not keep the account for an hour."""
    async with Upstream() as up, running(rules(tmp_path, {"main": up}, more=HOURLY)) as rig:
        await rig.send(*(f"a{i}@example.net" for i in range(3)))
        await rig.settled()
        await rig.send(*(f"b{i}@example.net" for i in range(4)))
        await until(lambda: len(up.delivered()) == 5)
        await quiet(rig)
        assert len(up.delivered()) == 5


async def test_a_list_is_claimed_as_its_limit_lets_it_go(tmp_path: Path) -> None:
    """Not all of it each time, to put back what may not leave: that would write a thousand rows for each that leaves."""
    async with Upstream() as up, running(rules(tmp_path, {"main": up}, more=", limits: [100/s]")) as rig:
        changed = await recorded(rig)
        await rig.send(*(f"r{i}@example.net" for i in range(600)))
        await rig.settled()
        assert len(up.delivered()) == 600
        assert sum(changed) <= 900, sum(changed)


async def recorded(rig: Rig) -> list[int]:
    """The recipients of each settlement that is written."""
    sizes: list[int] = []
    record = rig.app.spool.record

    async def counted(settlements):  # type: ignore[no-untyped-def]
        sizes.extend(len(s.changes) for s in settlements)
        return await record(settlements)

    rig.app.spool.record = counted  # type: ignore[method-assign]
    return sizes


async def test_a_reload_ends_what_a_reply_asked_to_wait_for(tmp_path: Path) -> None:
    """As it asks again an account that rests: nobody should have to restart for a stranger's word."""
    script = {"MAIL": ["421 4.7.0 too fast, try again in 20 hours", "250 ok"]}
    slow = '{reply: "^421 4.7.0 too fast", scope: account, then: slow, means: it was too fast}'
    async with Upstream(script) as up, running(rules(tmp_path, {"main": up}, slow)) as rig:
        number = await rig.send()
        await until(lambda: rig.said("account_slowed"))
        await quiet(rig)
        row = await rig.row(number)
        assert row["state"] == "queued" and 71_000 < row["next_at"] - clock.now() < 72_100
        assert rig.app.reload()[0]
        await rig.settled()


async def test_who_has_no_session_open_has_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others use the account, or it was dialled too often: then fewer sessions help nobody, and each dial makes it worse."""
    monkeypatch.setattr(crowd, "CROWDED", 0.2)
    rule = '{reply: "^454 4.7.0 Too many login", scope: account, then: fewer, means: too many logins}'
    script = {"BANNER": ["454 4.7.0 Too many login attempts"] * 3 + [None]}
    login = ", username: u, password: {env: SECRET}"
    monkeypatch.setenv("SECRET", "p")
    async with (
        Upstream(script, login=("u", "p")) as up,
        running(rules(tmp_path, {"main": up}, rule, more=login)) as rig,
    ):
        began = clock.now()
        await rig.send_many(many(10))
        await rig.settled()
        assert 1.35 < clock.now() - began < 4.0  # 0.2, 0.4 and 0.8 s
        assert len(up.delivered()) == 10 and rig.egress().connections == 3
        assert rig.said("deferred") == []


async def test_a_session_that_breaks_while_the_account_rests_takes_its_mail_nowhere_else(tmp_path: Path) -> None:
    """The rule says that the next account stays out; that a connection is lost meanwhile does not change it."""
    alone = QUOTA.replace("means:", "fail_over: false, means:")
    go = asyncio.Event()
    script = {
        "MAIL": lambda a: Later(0, DROP, go) if "slow" in a else None,
        "DOT": "550 5.4.5 Daily sending limit exceeded",
    }
    async with (
        Upstream(script) as up,
        Upstream() as second,
        running(rules(tmp_path, {"main": up, "second": second}, alone)) as rig,
    ):
        number = await rig.send(sender="slow@example.com")
        await until(lambda: up.commands("MAIL"))
        await rig.send()
        await until(lambda: rig.egress().breaker.is_open)
        go.set()
        row = await rig.tried(number)
        assert row["state"] == "deferred" and second.transactions == []


async def test_a_login_that_the_dictionary_knows_is_a_login_that_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the metric, for who reads the status, and for a token that is there again: it need not rest any longer then."""
    monkeypatch.setenv("SECRET", "p")
    refused = '{reply: "^535 5.7.139", scope: account, wait: 1h, means: the tenant forbids it}'
    login = ", username: u, password: {env: SECRET}"
    async with (
        Upstream({"AUTH": "535 5.7.139 unsuccessful"}, login=("u", "p")) as up,
        running(rules(tmp_path, {"main": up}, refused, more=login)) as rig,
    ):
        await rig.tried(await rig.send())
        assert rig.egress().breaker.is_open and rig.egress().breaker.auth_failed
