"""What came back finds its message and is learnt once; what nobody vouches for teaches nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay import clock
from relay.envelope import parse_queue_id
from relay.feedback import heard
from relay.feedback.heard import PUBLIC_REPORTS, Heard, Source, once
from relay.outgoing import verp
from relay.returned import Finding, Kind
from relay.returned.understand import understand
from tests.fakes import Upstream
from tests.pace import within
from tests.returned import FEEDBACK, KEY, VERP, dsn
from tests.rig import Rig, running, write_config

SUPPRESSION = "suppression: {on: [hard_bounce, complaint, unsubscribe], soft: {count: 3, within: 7d}, scope: all}\n"
GONE = {"class_": "hard", "reason": "user_unknown", "status": "5.1.1", "action": "failed"}


class Scene:
    """A relay whose one message was delivered, and who hears of it."""

    def __init__(self, rig: Rig, number: str, key: bytes) -> None:
        self.rig, self.number, self.key = rig, number, key
        self.told: list[tuple[str, ...]] = []
        self.heard = self.made()

    def made(self) -> Heard:
        async def read(raw: bytes) -> list[Finding]:
            return understand(raw)

        spool, config = self.rig.app.spool, lambda: self.rig.app.config
        return Heard(spool, config, read, self.rig.log, lambda *said: self.told.append(said))

    def token(self, n: int = 0, key: bytes | None = None) -> str:
        return verp.make(key or self.key, parse_queue_id(self.number), n)

    async def events(self, *kinds: str) -> list[dict[str, Any]]:
        rows = await self.rig.app.spool.events(0, 10_000)
        return [{"kind": row.kind, "message": row.message, **(row.data or {})} for row in rows if row.kind in kinds]

    async def suppressed(self, address: str) -> list[str]:
        return [one.why.word for one in await self.rig.app.spool.suppressed(address)]


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    async with Upstream() as up:
        (tmp_path / "token").write_text(KEY)
        (tmp_path / "token").chmod(0o640)
        accounts = {"main": f"port: {up.port}, tls: none"}
        extra = FEEDBACK + SUPPRESSION
        async with running(write_config(tmp_path, accounts, routes=VERP, extra=extra)) as rig:
            message = b"Message-ID: <m@example.com>\r\nFrom: a@shop.example\r\nSubject: t\r\n\r\nhello\r\n"
            number = await rig.send("You@example.net", "other@example.net", sender="app@shop.example", message=message)
            await rig.settled()
            yield Scene(rig, number, KEY.encode())


@pytest.mark.parametrize("n", [0, 1])
async def test_a_token_finds_its_recipient_whatever_the_report_says(scene: Scene, n: int) -> None:
    address = ("You@example.net", "other@example.net")[n]
    source = Source("bounce", token=scene.token(n))
    found = await scene.heard.mail(dsn("forwarded@elsewhere.example"), source)
    assert [one.kind for one in found] == [Kind.BOUNCE]
    (event,) = await scene.events("bounced")
    assert event["message"] == parse_queue_id(scene.number)
    assert event["class"] == "hard" and event["proof"] == "token" and event["late"] is True
    assert event["reported_recipient"] == "forwarded@elsewhere.example"
    assert "User unknown" in event["reply"]
    assert await scene.suppressed(address) == ["hard_bounce"]
    assert await scene.suppressed("forwarded@elsewhere.example") == []
    row = next(r for r in await scene.rig.rows(scene.number) if r["recipient"] == address)
    assert row["state"] == "delivered"  # what it was stays: the event tells the rest
    assert scene.told == [("main", "example.net", "shop.example", "default", "bounced")]


@pytest.mark.parametrize(
    ("said", "hard"),
    [
        ([("b", "failed", "5.1.1"), ("c", "failed", "5.1.1")], True),  # it arrived nowhere
        ([("b", "failed", "5.1.1"), ("c", "delivered", "2.0.0")], False),
        ([("b", "failed", "5.1.1"), ("c", "delayed", "4.4.1")], False),
        ([("b", "failed", "5.1.1"), ("YOU", "delivered", "2.0.0")], False),
        ([("b", "failed", "5.1.1"), ("you", "failed", "4.2.2")], False),
        ([("b", "delivered", "2.0.0"), ("you", "failed", "5.1.1")], True),
    ],
)
async def test_where_one_was_forwarded_to_several(scene: Scene, said: list[tuple[str, str, str]], hard: bool) -> None:
    fields = "\r\n".join(
        f"Final-Recipient: rfc822; {name}@example.net\r\nAction: {action}\r\nStatus: {status}\r\n"
        for name, action, status in said
    )
    whole = dsn("X").decode()
    begin, end = whole.index("Final-Recipient"), whole.index("--b1\r\nContent-Type: text/rfc822-headers")
    raw = (whole[:begin] + fields + "\r\n" + whole[end:]).encode()
    await scene.heard.mail(raw, Source("bounce", token=scene.token()))
    assert await scene.suppressed("you@example.net") == (["hard_bounce"] if hard else [])


async def test_the_same_report_by_two_doors_is_one(scene: Scene) -> None:
    raw = dsn("you@example.net", headers=f"Return-Path: <bounce+{scene.token()}@bounces.example.com>\r\n")
    await scene.heard.mail(raw, Source("bounce", token=scene.token()))
    await scene.heard.mail(raw, Source("imap:box"))
    await scene.made().mail(raw, Source("imap:other"))
    assert len(await scene.events("bounced")) == 1
    assert len(scene.told) == 1


async def test_who_has_a_token_cannot_fill_the_spool(scene: Scene) -> None:
    source = Source("bounce", token=scene.token())
    for n in range(30):
        await scene.heard.mail(dsn(f"x{n}@example.net", status=f"5.1.{n}", diagnostic=f"smtp; 550 no {n}"), source)
    assert len(await scene.events("bounced")) <= 3  # one of each class


async def test_what_only_waits_or_has_arrived_is_no_bounce(scene: Scene) -> None:
    source = Source("bounce", token=scene.token())
    delayed = dsn("you@example.net", status="4.4.1", action="delayed", diagnostic="smtp; 451 4.4.1 try later")
    await scene.heard.mail(delayed, source)
    await scene.heard.mail(
        dsn("you@example.net", status="2.0.0", action="delivered", diagnostic="smtp; 250 ok"), source
    )
    assert await scene.events("bounced") == []
    assert [e["recipient"] for e in scene.rig.said("delay_reported")] == ["You@example.net"]


@pytest.mark.parametrize(
    "change",
    [
        {"queue_id": "0000000000A"},  # no message of ours
        {"recipient": "stranger@example.org"},  # none of its recipients
        {"recipient": ""},
        {"message_id": "<another@example.com>"},  # an id that was guessed
        {"queue_id": "", "token": "a" * 40},  # forged
        {"queue_id": "", "token": ""},
        {"queue_id": "../../etc/passwd"},
    ],
)
async def test_what_nobody_vouches_for_teaches_nothing(scene: Scene, change: dict[str, str]) -> None:
    said = {"recipient": "you@example.net", "queue_id": scene.number, "message_id": "<m@example.com>", **GONE}
    good = Finding(Kind.BOUNCE, **said)
    bad = Finding(Kind.BOUNCE, **(said | change))
    assert await scene.heard.take(bad, Source("imap:box"))
    assert await scene.events("bounced") == [] and await scene.suppressed("you@example.net") == []
    assert len(scene.rig.said("report_unbelieved")) == 1 and scene.told == []
    assert await scene.heard.take(good, Source("imap:box"))
    (event,) = await scene.events("bounced")
    assert event["proof"] == "quoted"
    assert await scene.suppressed("you@example.net") == ["hard_bounce"]
    assert not await scene.heard.take(good, Source("imap:box"))


async def test_who_guesses_a_queue_id_suppresses_nobody(scene: Scene) -> None:
    """They follow one another: who got one message knows the next one's."""
    guessed = Finding(Kind.BOUNCE, recipient="you@example.net", queue_id=scene.number, **GONE)
    assert await scene.heard.take(guessed, Source("imap:box"))
    (event,) = await scene.events("bounced")
    assert event["proof"] == "claimed"
    assert await scene.suppressed("you@example.net") == [] and scene.told == []


async def test_a_token_of_another_key_is_none(scene: Scene) -> None:
    forged = scene.token(key=b"another key, as long as it may be")
    await scene.heard.mail(dsn("you@example.net"), Source("bounce", token=forged))
    assert await scene.events("bounced") == []


async def test_a_provider_that_is_verified_is_believed_without_a_message(scene: Scene) -> None:
    bounce = Finding(Kind.BOUNCE, recipient="Gone@example.ORG", **GONE)
    source = Source("ses", verified=True, egress="main")
    assert await scene.heard.take(bounce, source, once(source, b"event 1"))
    assert not await scene.heard.take(bounce, source, once(source, b"event 1"))
    (event,) = await scene.events("bounced")
    assert (event["message"], event["recipient"], event["proof"]) == (0, "Gone@example.ORG", "provider")
    assert await scene.suppressed("gone@example.org") == ["hard_bounce"]
    assert scene.told == [("main", "example.org", "", "", "bounced")]


@pytest.mark.parametrize(
    ("finding", "event", "why"),
    [
        (Finding(Kind.COMPLAINT, reason="abuse"), "complained", ["complaint"]),
        (Finding(Kind.COMPLAINT, reason="not-spam"), "", []),
        (Finding(Kind.COMPLAINT, reason="auth-failure"), "", []),
        (Finding(Kind.AUTO_REPLY, reason="vacation"), "auto_replied", []),
        (Finding(Kind.UNSUBSCRIBE), "unsubscribed", ["unsubscribe"]),
        (Finding(Kind.BOUNCE, class_="hard", reason="user_unknown", action="failed"), "bounced", ["hard_bounce"]),
        # What is said of us, of the message or of the way suppresses nobody.
        (Finding(Kind.BOUNCE, class_="soft", reason="reputation", action="failed"), "bounced", []),
        (Finding(Kind.BOUNCE, class_="soft", reason="policy", action="failed"), "bounced", []),
        (Finding(Kind.BOUNCE, class_="hard", reason="invented by a provider", action="failed"), "bounced", []),
        (Finding(Kind.BOUNCE, class_="undetermined", reason="unknown", action="failed"), "bounced", []),
        (Finding(Kind.BOUNCE, class_="soft", reason="mailbox_full", action="failed"), "bounced", []),
        (Finding(Kind.OTHER), "", []),
    ],
)
async def test_what_each_kind_comes_to(scene: Scene, finding: Finding, event: str, why: list[str]) -> None:
    await scene.heard.take(finding, Source("bounce", token=scene.token()))
    kinds = ("bounced", "complained", "auto_replied", "unsubscribed")
    assert [e["kind"] for e in await scene.events(*kinds)] == ([event] if event else [])
    assert await scene.suppressed("you@example.net") == why


async def test_soft_bounces_of_three_messages_suppress(scene: Scene) -> None:
    full = Finding(Kind.BOUNCE, class_="soft", reason="mailbox_full", action="failed")
    numbers = [scene.number, *[await scene.rig.send("you@example.net") for _ in range(2)]]
    await scene.rig.settled()
    for place, scene.number in enumerate(numbers):
        assert await scene.suppressed("you@example.net") == []
        for _ in range(2):  # once for each message
            await scene.heard.take(full, Source("bounce", token=scene.token()))
        assert len(await scene.events("bounced")) == place + 1
    assert await scene.suppressed("you@example.net") == ["soft_bounces"]


async def test_a_message_that_was_forgotten_suppresses_nobody(scene: Scene) -> None:
    token = verp.make(scene.key, 12345, 0)
    await scene.heard.mail(dsn("victim@example.net"), Source("bounce", token=token))
    (event,) = await scene.events("bounced")
    assert event["message"] == 0 and event["proof"] == "token"
    assert await scene.suppressed("victim@example.net") == []
    assert await scene.heard.unsubscribe(Source("unsubscribe", token=token)) is None


async def test_reports_about_a_domain_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    at = clock.now()  # the bound is one of each hour by the clock
    monkeypatch.setattr(heard, "clock", SimpleNamespace(now=lambda: at))
    for n in range(PUBLIC_REPORTS + 20):
        await scene.heard.take(Finding(Kind.DMARC, detail={"report_id": n}), Source("imap:box"))
        await scene.heard.take(Finding(Kind.DMARC, detail={"report_id": 1}), Source("imap:box"))
    assert len(await scene.events("dmarc_report")) <= PUBLIC_REPORTS
    assert len(scene.rig.said("reports_too_many")) == 1


async def test_a_stranger_s_words_are_bounded(scene: Scene) -> None:
    long = "\x00\r\n\x1b" + "x" * 100_000
    finding = Finding(
        Kind.BOUNCE, class_="hard", reason=long, status=long, diagnostic=long, remote=long, recipient=long
    )
    await scene.heard.take(finding, Source("bounce", token=scene.token()))
    (event,) = await scene.events("bounced")
    assert all(len(str(value)) <= 500 and str(value).isprintable() for value in event.values())
    report = Finding(Kind.TLSRPT, detail={"text": "x" * 200_000})
    await scene.heard.take(report, Source("imap:box"))
    (event,) = await scene.events("tls_report")
    assert len(str(event)) < 20_000


async def test_a_hostile_header_is_looked_at_in_no_time(scene: Scene) -> None:
    raw = b"".join(b"To: %s\r\n" % (b"x" * 8000) for _ in range(1000)) + b"\r\nx\r\n"
    assert within(0.2, lambda: scene.heard.sent_to(raw)) == ("", "")
