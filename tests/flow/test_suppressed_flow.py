"""Who is suppressed: learnt from what next hops say, refused at RCPT and after DATA, found at the claim, over at its end."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from fakes import Upstream
from rig import Rig, running, submit, write_config

from relay import clock, metrics
from relay.policy.suppression import Suppression, Why
from relay.scheduler import housekeeping
from relay.spool import SpoolError
from relay.spool.feed import Learnt

SECTION = "suppression: {on: [hard_bounce, complaint, unsubscribe], soft: {count: 2, within: 1d}, scope: all}"
USERS = """tenants: {shop: {}, blog: {}}
users:
  web: {password_hash: "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Qh2lr6WXtkL0NDQr0lHRaTGxqfD0bmYmkE9IA/4RPA4", tenant: shop}
"""
CLASSES = """  default: {retry: {schedule: [200ms], give_up: 1d}}
  news: {match: {header: {Precedence: bulk}}, retry: {schedule: [200ms], give_up: 1d}}"""
NEWS = b"From: app@example.com\r\nPrecedence: bulk\r\n\r\nhello\r\n"
PLAIN = b"From: app@example.com\r\n\r\nhello\r\n"


def config(folder: Path, up: Upstream, extra: str = SECTION, **more: Any) -> Path:
    more = {"classes": CLASSES} | more
    return write_config(folder, {"main": f"port: {up.port}, tls: none"}, extra=extra, **more)


async def suppress(rig: Rig, *entries: tuple[str, str, Why]) -> None:
    now = clock.now()
    made = [Suppression(address, scope, why, "said so", "hand", now) for address, scope, why in entries]
    await rig.app.spool.learn(Learnt(suppressions=made))


async def refused(rig: Rig, *recipients: str, sender: str = "app@example.com", message: bytes = PLAIN) -> str:
    """What a client hears instead of a 250."""
    with pytest.raises(AssertionError) as heard:
        await rig.send(*recipients, sender=sender, message=message)
    return str(heard.value)


def counted(at: str) -> float:
    counter = metrics.declared()["relay_suppressed_total"]
    assert isinstance(counter, metrics.Counter)
    return counter.values.get((at,), 0.0)


# -- what is learnt


async def test_a_hard_bounce_refuses_the_next_message(tmp_path: Path) -> None:
    said = {"RCPT": lambda a: "550 5.1.1 no such user" if "gone" in a.lower() else "250 ok"}
    async with Upstream(said) as up, running(config(tmp_path, up)) as rig:
        number = await rig.send("Gone@example.net", "b@example.net")
        await rig.settled()
        await until(lambda: len(rig.app.suppressions) == 1)
        (found,) = await rig.app.spool.suppressed("gone@EXAMPLE.net")
        assert (found.why, found.source, found.scope) == (Why.HARD_BOUNCE, "smtp", "")
        assert found.evidence == "550 5.1.1 no such user" and found.until > clock.now() + 179 * 86400
        assert [r["queue_id"] for r in await rig.rows() if r["state"] == "failed"] == [number]
        before = counted("rcpt")
        assert "550 5.7.1 <GONE@example.net> is suppressed (hard bounce)" in await refused(rig, "GONE@example.net")
        assert counted("rcpt") == before + 1 and len(up.commands("RCPT")) == 2
        (told,) = rig.said("suppression_added")
        assert (told["recipient"], told["why"], told["scope"]) == ("gone@example.net", "hard_bounce", None)
        kinds = [row.kind for row in await rig.app.spool.events(0)]
        assert kinds.count("suppression_added") == 1


async def test_it_is_known_after_a_restart_before_anybody_may_send(tmp_path: Path) -> None:
    async with Upstream({"RCPT": "550 5.1.1 no such user"}) as up:
        file = config(tmp_path, up)
        async with running(file) as rig:
            await rig.send("gone@example.net")
            await rig.settled()
        async with running(file) as rig:
            assert len(rig.app.suppressions) == 1 and "is suppressed" in await refused(rig, "gone@example.net")


async def test_of_one_message_many_soft_bounces_are_one(tmp_path: Path) -> None:
    said = {"RCPT": ["452 4.2.2 mailbox full"] * 4 + ["250 ok"] + ["452 4.2.2 mailbox full"] * 99}
    async with Upstream(said) as up, running(config(tmp_path, up)) as rig:
        await rig.reaches(await rig.send("full@example.net"), "delivered")
        assert rig.app.suppressions.none, "one message, four bounces"
        await rig.send("full@example.net")
        await until(lambda: not rig.app.suppressions.none)
        (found,) = await rig.app.spool.suppressed("full@example.net")
        assert found.why is Why.SOFT_BOUNCES and "mailbox full" in found.evidence


async def test_greylisting_reputation_and_policy_suppress_nobody(tmp_path: Path) -> None:
    said = {
        "RCPT": lambda a: {
            "grey": "451 4.7.1 greylisted", "spam": "550 5.7.1 blocked using Spamhaus", "quota": "550 5.4.5 daily limit",
        }.get(a.partition("@")[0].strip("<"), "250 ok"),
    }  # fmt: skip
    async with Upstream(said) as up, running(config(tmp_path, up)) as rig:
        for who in ("grey", "spam", "quota"):
            await rig.tried(await rig.send(f"{who}@example.net"))
        assert rig.app.suppressions.none


async def test_without_a_section_nothing_is_learnt_and_the_list_counts(tmp_path: Path) -> None:
    async with Upstream({"RCPT": "550 5.1.1 no such user"}) as up, running(config(tmp_path, up, "")) as rig:
        await rig.send("gone@example.net")
        await rig.settled()
        assert rig.app.suppressions.none
        await suppress(rig, ("gone@example.net", "", Why.MANUAL))
        assert "is suppressed (manual)" in await refused(rig, "gone@example.net")


# -- whose mail


async def test_a_class_is_known_after_data(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        await suppress(rig, ("a@example.net", "class:news", Why.UNSUBSCRIBE))
        assert "550 5.7.1 <a@example.net> is suppressed (unsubscribe)" in await refused(
            rig, "a@example.net", message=NEWS
        )
        assert up.transactions == []
        number = await rig.send("a@example.net", "b@example.net", message=NEWS)
        await rig.settled()
        rows = {r["recipient"]: (r["state"], r["why"], r["attempts"]) for r in await rig.rows(number)}
        assert rows["a@example.net"] == ("failed", "suppressed: unsubscribe", 0)
        assert rows["b@example.net"][0] == "delivered" and up.delivered() == ["b@example.net"]
        events = (await rig.message(number))["events"]
        assert [e["n"] for e in events if e["kind"] == "suppressed"] == [0]
        (told,) = rig.said("suppressed")
        assert (told["recipient"], told["why"]) == ("a@example.net", "suppressed: unsubscribe")
        await rig.send("a@example.net", message=PLAIN)
        await rig.settled()
        assert up.delivered() == ["b@example.net", "a@example.net"], "mail of other classes goes on"


async def test_a_tenant_stops_its_own_mail_alone(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up, f"{SECTION}\n{USERS}")) as rig:
        await suppress(rig, ("a@example.net", "tenant:shop", Why.COMPLAINT))
        find = rig.app.suppressions.find
        assert find("A@example.net", "", "web", "x@y") is Why.COMPLAINT
        assert find("a@example.net", "", "", "x@y") is None and find("a@example.net", "news", "other", "x@y") is None


async def test_a_report_heeds_the_mailbox_and_no_persons_word(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        await suppress(rig, ("a@example.net", "", Why.COMPLAINT), ("gone@example.net", "", Why.HARD_BOUNCE))
        await rig.reaches(await rig.send("a@example.net", sender=""), "delivered")
        assert "is suppressed (hard bounce)" in await refused(rig, "gone@example.net", sender="")


# -- at_rcpt: accept

ACCEPT = SECTION.replace("scope: all", "scope: all, at_rcpt: accept")


async def test_who_is_accepted_fails_at_once_and_is_told_of(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up, ACCEPT, dsn="to: sender")) as rig:
        await suppress(rig, ("a@example.net", "", Why.HARD_BOUNCE))
        number = await rig.send("a@example.net")
        row = await rig.reaches(number, "failed")
        assert (row["why"], row["attempts"]) == ("suppressed: hard bounce", 0)
        assert (await rig.story(number))[:2] == ["accepted", "suppressed"]
        await until(lambda: up.delivered() == ["app@example.com"])
        (report,) = up.transactions
        assert b"suppressed: hard bounce" in report.message and b"a@example.net" in report.message


async def test_one_who_wants_no_reports_gets_none(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up, ACCEPT, dsn="to: sender")) as rig:
        await suppress(rig, ("a@example.net", "", Why.HARD_BOUNCE))
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        lines = b"EHLO x\r\nMAIL FROM:<app@example.com>\r\nRCPT TO:<a@example.net> NOTIFY=NEVER\r\nDATA\r\n"
        writer.write(lines)
        while not (line := await asyncio.wait_for(reader.readline(), 30)).startswith(b"354"):
            assert line[:1] == b"2", line
        writer.write(PLAIN + b".\r\n")
        assert (await asyncio.wait_for(reader.readline(), 30)).startswith(b"250")
        writer.close()
        await rig.settled()
        assert up.transactions == [] and len(rig.said("suppressed")) == 1


# -- copies


async def test_a_copy_that_is_suppressed_fails_alone(tmp_path: Path) -> None:
    routes = "  - {name: all, via: main, copy: [archive@example.net]}"
    async with Upstream() as up, running(config(tmp_path, up, routes=routes)) as rig:
        await suppress(rig, ("archive@example.net", "", Why.MANUAL), ("a@example.net", "class:news", Why.UNSUBSCRIBE))
        number = await rig.send("b@example.net")
        await rig.settled()
        rows = {r["recipient"]: r["state"] for r in await rig.rows(number)}
        assert rows == {"b@example.net": "delivered", "archive@example.net": "failed"}
        assert "is suppressed" in await refused(rig, "a@example.net", message=NEWS), (
            "nothing is sent, so nothing copied"
        )


# -- at the claim


async def test_what_waits_is_found_when_it_is_claimed(tmp_path: Path) -> None:
    said = {"RCPT": ["450 4.7.1 later"] * 2 + ["250 ok"] * 9}
    classes = "  default: {retry: {schedule: [1h], give_up: 1d}}"
    async with Upstream(said) as up, running(config(tmp_path, up, classes=classes)) as rig:
        number = await rig.send("a@example.net", "b@example.net")
        await rig.tried(number)
        before = counted("claim")
        await suppress(rig, ("a@example.net", "", Why.COMPLAINT))
        service = rig.app.admin.service
        await service.act("retry", service.parse_filter({"id": number}), dry_run=False)
        await rig.settled()
        rows = {r["recipient"]: (r["state"], r["attempts"]) for r in await rig.rows(number)}
        assert rows == {"a@example.net": ("failed", 1), "b@example.net": ("delivered", 2)}
        assert counted("claim") == before + 1 and (await rig.story(number)).count("suppressed") == 1
        (told,) = rig.said("suppressed")
        assert told["recipient"] == "a@example.net"


# -- its end


async def test_one_that_is_over_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "OVER_EVERY", 0.2)
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        now = clock.now()
        made = Suppression("a@example.net", "", Why.HARD_BOUNCE, "", "smtp", now, now + 3600)
        await rig.app.spool.learn(Learnt(suppressions=[made]))
        assert "is suppressed" in await refused(rig, "a@example.net")
        monkeypatch.setattr(clock, "now", lambda real=clock.now: real() + 3601)
        await until(lambda: rig.app.suppressions.none)
        await rig.reaches(await rig.send("a@example.net"), "delivered")
        assert await rig.app.spool.suppressed("a@example.net") == []


async def test_a_reload_applies_the_rule(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = config(tmp_path, up)
        async with running(file) as rig:
            await suppress(rig, ("a@example.net", "", Why.HARD_BOUNCE))
            file.write_text(file.read_text().replace("scope: all", "scope: all, at_rcpt: accept"))
            assert rig.app.reload()[0]
            assert (await rig.reaches(await rig.send("a@example.net"), "failed"))["why"] == "suppressed: hard bounce"


# -- what an earlier version remembered


async def test_what_shaping_had_suppressed_moves_to_the_list(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = config(tmp_path, up, "")
        now = clock.now()
        rows = [
            {"address": f"R{n}@example.net", "why": "550 x (r)", "at": now - 9, "until": now + 3600}
            for n in range(1200)
        ]
        rows.append({"address": "over@example.net", "why": "550 x (r)", "at": now - 9, "until": now - 1})
        async with running(file) as rig:
            await rig.app.spool.remember({"suppressed": json.dumps({"rows": json.dumps(rows)})})
        async with running(file) as rig:
            assert len(rig.app.suppressions) == 1200 and "is suppressed (shaping)" in await refused(
                rig, "r7@example.net"
            )
            (found,) = await rig.app.spool.suppressed("r7@example.net")
            assert (found.why, found.scope, found.evidence) == (Why.SHAPING, "", "550 x (r)")
            assert found.until == pytest.approx(now + 3600) and "suppressed" not in await rig.app.spool.remembered()
            await rig.app.scheduler.remember()
        async with running(file) as rig:
            assert len(rig.app.suppressions) == 1200


@pytest.mark.parametrize("text", ["{", "5", '{"rows": "[5]"}', '{"rows": "[{\\"address\\": 1}]"}'])
async def test_what_cannot_be_read_of_it_is_told_and_forgotten(tmp_path: Path, text: str) -> None:
    async with Upstream() as up:
        file = config(tmp_path, up, "")
        async with running(file) as rig:
            await rig.app.spool.remember({"suppressed": text})
        async with running(file) as rig:
            assert [told["what"] for told in rig.said("not_remembered")] == ["suppressed"]
            assert "suppressed" not in await rig.app.spool.remembered()


async def test_a_storm_of_bounces_is_recorded_and_listed_once_each(tmp_path: Path) -> None:
    async with Upstream({"RCPT": "550 5.1.1 no such user"}) as up, running(config(tmp_path, up)) as rig:
        await submit(rig.port, [("app@example.com", (f"r{n}@example.net",), PLAIN) for n in range(300)])
        await rig.settled()
        await until(lambda: len(rig.app.suppressions) == 300)
        added = [row for row in await rig.app.spool.events(0, 5000) if row.kind == "suppression_added"]
        assert len(added) == 300


async def test_a_spool_that_cannot_be_read_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the list mail would go to people who complained."""
    from relay.app import StartError
    from relay.spool.sqlite import SqliteSpool

    async def broken(self: SqliteSpool) -> Any:
        raise SpoolError("the spool is damaged")

    async with Upstream() as up:
        monkeypatch.setattr(SqliteSpool, "suppression_index", broken)
        with pytest.raises(StartError, match="damaged"):
            async with running(config(tmp_path, up)):
                raise AssertionError("it started")
