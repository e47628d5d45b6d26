"""A reply decides who suffers: a recipient, a message, a destination, the account; for how long; and who takes over."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import Upstream
from rig import Rig, running, until, write_config

from relay import clock
from relay.recipient import State

SLOW = "  default: {retry: {schedule: [1h], give_up: 2d}}"
QUOTA = '{reply: "^550 5.4.5", scope: account, wait: 30m, means: the daily quota is used up}'
RATE = '{reply: "^421 4.7.0 .*too fast", scope: account, then: slow, wait: 300ms, means: it was too fast}'
CROWD = '{reply: "^432 4.3.2", scope: account, then: fewer, means: too many connections}'
BLOCKED = '{reply: "^451 4.7.28", scope: destination, wait: 20m, means: this destination slows us}'


def rules(folder: Path, ups: dict[str, Upstream], *replies: str, more: str = "", classes: str = SLOW) -> Path:
    rest = f", connections: 3, replies: [{', '.join(replies)}]{more}"
    return write_config(folder, {n: f"port: {u.port}, tls: none{rest}" for n, u in ups.items()}, classes=classes)


def many(count: int, domain: str = "example.net") -> list[tuple[str, tuple[str, ...], bytes]]:
    return [("a@example.com", (f"r{i}@{domain}",), b"\r\nx\r\n") for i in range(count)]


async def quiet(rig: Rig) -> None:
    """Nothing is claimed, nor being written."""
    await until(lambda: rig.egress().busy == 0 and rig.app.spool.counts[State.ACTIVE] == 0)


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "BODY"])
async def test_a_quota_that_is_used_up_pauses_the_account_and_burns_nothing(tmp_path: Path, at: str) -> None:
    """A 550 that means the account: one message hears it, all others wait untried until the quota turns."""
    said = {at if at != "BODY" else "DOT": "550 5.4.5 Daily user sending limit exceeded"}
    async with Upstream(said) as up, running(rules(tmp_path, {"main": up}, QUOTA)) as rig:
        ids = await rig.send_many(many(30))
        await until(lambda: rig.egress().breaker.is_open)
        await quiet(rig)
        rows = await rig.rows(*ids)
        assert {r["state"] for r in rows} <= {"queued", "deferred"}
        heard = [r for r in rows if r["attempts"]]
        # All connections may have been at work when the first heard it.
        assert 1 <= len(heard) <= 3 and all(r["attempts"] == 1 for r in heard)
        for row in heard:
            assert row["state"] == "deferred" and "daily quota is used up" in row["why"]
            assert 1790 < row["next_at"] - clock.now() < 1860
        waiting = [r for r in rows if not r["attempts"]]
        assert all("main rests: 550 5.4.5" in r["why"] for r in waiting), waiting
        (told,) = rig.said("account_rests")
        assert told["means"] == "the daily quota is used up" and 1799 < told["seconds"] <= 1800
        assert rig.said("account_paused") == [] and rig.said("failed") == []


async def test_the_routes_next_account_takes_over_once_with_one_alarm(tmp_path: Path) -> None:
    async with (
        Upstream({"DOT": "550 5.4.5 Daily user sending limit exceeded"}) as up,
        Upstream() as second,
        running(rules(tmp_path, {"main": up, "second": second}, QUOTA)) as rig,
    ):
        await rig.send_many(many(30))
        await rig.settled()
        assert sorted(second.delivered()) == sorted(f"r{i}@example.net" for i in range(30))
        assert len(rig.said("account_rests")) == 1
        assert up.delivered() == [] and len(up.transactions) <= 3
        number = await rig.send()
        await rig.reaches(number, "delivered")
        assert len(rig.said("account_rests")) == 1 and len(up.transactions) <= 3  # it is not asked again


async def test_the_next_account_stays_out_where_the_rule_says_so(tmp_path: Path) -> None:
    alone = QUOTA.replace("means:", "fail_over: false, means:")
    async with (
        Upstream({"DOT": "550 5.4.5 Daily user sending limit exceeded"}) as up,
        Upstream() as second,
        running(rules(tmp_path, {"main": up, "second": second}, alone)) as rig,
    ):
        ids = await rig.send_many(many(10))
        await until(lambda: rig.egress().breaker.is_open)
        await quiet(rig)
        number = await rig.send()
        await quiet(rig)
        assert second.transactions == []
        row = await rig.row(number)
        assert row["state"] == "queued" and "main waits: 550 5.4.5" in row["why"]
        assert {r["state"] for r in await rig.rows(*ids)} <= {"queued", "deferred"}


async def test_the_probe_that_is_well_ends_the_pause_and_everything_leaves(tmp_path: Path) -> None:
    quick = QUOTA.replace("30m", "300ms")
    script = {"DOT": ["550 5.4.5 Daily user sending limit exceeded"] * 2 + [None]}
    async with Upstream(script) as up, running(rules(tmp_path, {"main": up}, quick)) as rig:
        await rig.send_many(many(20))
        await rig.settled()
        assert sorted(up.delivered()) == sorted(f"r{i}@example.net" for i in range(20))
        assert rig.said("egress_back")


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DOT"])
async def test_what_was_too_fast_waits_without_an_attempt(tmp_path: Path, at: str) -> None:
    script = {at: ["250 Ok"] * 5 + ["421 4.7.0 too fast, closing"] + ["250 Ok"] * 200}
    async with Upstream(script) as up, running(rules(tmp_path, {"main": up}, RATE)) as rig:
        ids = await rig.send_many(many(12))
        await rig.settled()
        assert sorted(up.delivered()) == sorted(f"r{i}@example.net" for i in range(12))
        assert [r["attempts"] for r in await rig.rows(*ids)] == [1] * 12
        assert len(rig.said("account_slowed")) == 1 and rig.said("deferred") == []
        assert rig.egress().pace.rate is not None and not rig.egress().breaker.is_open


async def test_too_many_connections_become_fewer(tmp_path: Path) -> None:
    script = {"DATA": ["432 4.3.2 Concurrent connections limit exceeded"] * 2 + ["354 go"] * 100}
    async with Upstream(script) as up, running(rules(tmp_path, {"main": up}, CROWD)) as rig:
        await rig.send_many(many(20))
        await rig.settled()
        assert sorted(up.delivered()) == sorted(f"r{i}@example.net" for i in range(20))
        assert rig.egress().connections == 1 and rig.said("deferred") == []
        await until(lambda: up.held <= 1)
        assert len(rig.said("account_crowded")) == 1
        (row,) = rig.app.scheduler.outlook.egress_rows()
        assert (row["state"], row["wait"]) == ("ready", 0) and " connections: 432 4.3.2 " in str(row["why"])


async def test_a_destination_rests_and_nobody_else(tmp_path: Path) -> None:
    """One transaction hears it; what comes after it for the same domain waits as long, untried; all others leave."""
    script = {"RCPT": lambda a: "451 4.7.28 rate limited" if "slow.example" in a else "250 Ok"}
    async with Upstream(script) as up, running(rules(tmp_path, {"main": up}, BLOCKED)) as rig:
        heard = await rig.send("a@slow.example")
        row = await rig.tried(heard)
        assert row["state"] == "deferred" and 1190 < row["next_at"] - clock.now() < 1260
        later = await rig.send("b@slow.example", "c@else.example")
        await until(lambda: up.delivered() == ["c@else.example"])
        await quiet(rig)
        waits, left = sorted(await rig.rows(later), key=lambda r: r["recipient"])
        assert (waits["state"], waits["attempts"], left["state"]) == ("deferred", 0, "delivered")
        assert "slow.example rests at main: 451 4.7.28" in waits["why"]
        assert 1180 < waits["next_at"] - clock.now() < 1260
        assert len(rig.said("destination_rests")) == 1
        assert not any("b@slow" in c for c in up.commands("RCPT"))


@pytest.mark.parametrize(
    ("reply", "wait"),
    [
        ("450 4.2.0 Greylisted, try again in 300 seconds", 300),
        ("451 4.7.1 Please retry after 10 minutes", 600),
        ("450 4.7.1 come back in 00:01:40", 100),
    ],
)
async def test_a_hint_in_the_reply_is_honoured(tmp_path: Path, reply: str, wait: float) -> None:
    async with Upstream({"RCPT": reply}) as up, running(rules(tmp_path, {"main": up})) as rig:
        before = clock.now()
        row = await rig.tried(await rig.send())
        assert row["state"] == "deferred"
        assert before + wait <= row["next_at"] <= clock.now() + wait * 1.02 + 1
        assert up.delivered() == []


async def test_limits_hold_and_nothing_is_claimed_before_its_turn(tmp_path: Path) -> None:
    async with Upstream() as up, running(rules(tmp_path, {"main": up}, more=", limits: [10/s, 12/h]")) as rig:
        ids = await rig.send_many(many(30))
        await until(lambda: len(up.delivered()) == 12)
        await quiet(rig)
        rows = await rig.rows(*ids)
        assert sorted(r["state"] for r in rows) == ["delivered"] * 12 + ["queued"] * 18
        assert all("its limit of 12/h is used up" in r["why"] for r in rows if r["state"] == "queued")
        assert all(3400 < r["next_at"] - clock.now() < 3700 for r in rows if r["state"] == "queued")


async def test_a_message_to_many_is_cut_to_what_a_limit_lets_go(tmp_path: Path) -> None:
    async with Upstream() as up, running(rules(tmp_path, {"main": up}, more=", limits: [5/s]")) as rig:
        number = await rig.send(*(f"r{i}@example.net" for i in range(12)))
        await rig.settled()
        assert sorted(len(t.recipients) for t in up.done) == [2, 5, 5]
        assert {r["state"] for r in await rig.rows(number)} == {"delivered"}


async def test_what_was_spent_survives_a_reload(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = rules(tmp_path, {"main": up}, more=", limits: [5/h]")
        async with running(file) as rig:
            await rig.send_many(many(5))
            await rig.settled()
            file.write_text(file.read_text().replace("connections: 3", "connections: 2").replace("5/h", "6/h"))
            assert rig.app.reload()[0]
            await rig.send_many(many(5, "second.example"))
            await until(lambda: len(up.delivered()) == 6)
            await quiet(rig)
            assert len(up.delivered()) == 6


async def test_a_4xx_that_means_a_dead_address_fails_it(tmp_path: Path) -> None:
    dead = (
        '{reply: "^450 .*no such user", at: [rcpt], scope: recipient, verdict: permanent, means: the address is dead}'
    )
    script = {"RCPT": lambda a: "450 4.1.1 no such user here" if "dead" in a else "250 Ok"}
    async with Upstream(script) as up, running(rules(tmp_path, {"main": up}, dead)) as rig:
        number = await rig.send("dead@example.net", "live@example.net")
        await rig.settled()
        rows = {r["recipient"]: r for r in await rig.rows(number)}
        assert (
            rows["dead@example.net"]["state"] == "failed" and "the address is dead" in rows["dead@example.net"]["why"]
        )
        assert rows["live@example.net"]["state"] == "delivered"


async def test_the_state_of_an_account_tells_its_pace(tmp_path: Path) -> None:
    script = {"MAIL": ["250 Ok"] * 3 + ["421 4.7.0 too fast, closing"] + ["250 Ok"] * 200}
    async with Upstream(script) as up, running(rules(tmp_path, {"main": up}, RATE, more=", limits: [20/h]")) as rig:
        await rig.send_many(many(25))
        await until(
            lambda: len(up.delivered()) == 19
        )  # the one that was refused counts: nobody knows whether it does there
        await quiet(rig)
        (row,) = rig.app.scheduler.outlook.egress_rows()
        assert row["state"] == "ready" and 3400 < float(str(row["wait"])) < 3700
        assert row["why"] == "its limit of 20/h is used up"
