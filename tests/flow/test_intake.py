"""Intake through the real listener: what is added and taken away, how it is routed, and when it is refused."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path

import pytest
from conftest import until
from front import REST, Front, front

from relay import clock
from relay.envelope import parse_queue_id, queue_id
from relay.intake import MAX_TOLD
from relay.policy.backoff import Retry
from relay.policy.classes import Priority, TrafficClass
from relay.policy.routing import Action, Match, Question, Route, Table
from relay.recipient import State, Verb
from relay.resend import resend
from relay.settings import HONOURABLE, Address, Listen
from relay.spool import Place, SpoolError
from relay.submission import BadMessage

HERE = Address("127.0.0.1", 0)
ALL = frozenset(HONOURABLE)


def match(fact: str, *patterns: str) -> Match:
    return Match((Question(fact, patterns),))


async def row_of(relay: Front, number: int) -> dict[str, object]:
    return next(r for r in await relay.rows() if r["message"] == number)


async def test_what_is_added_and_what_is_taken_away(tmp_path: Path) -> None:
    said = (
        b"From: App <app@example.com>\r\nTo: a@example.net\r\nbCC: secret@example.org,\r\n\tother@example.org\r\n"
        b"Subject: =?utf-8?q?hi?=\r\n folded\r\nX-Relay-Tag: order-7\r\nx-relay-Unknown: x\r\nResent-Bcc : r@example.org\r\n"
        b"X-Relayed: stays\r\n\r\nBcc: body\r\nX-Relay-Tag: body\r\n"
    )
    async with front(tmp_path) as relay:
        number = await relay.send(said, "a@example.net", "secret@example.org")
        kept = await relay.kept(number)
        received, rest = kept.split(b"From: App", 1)
        assert b"From: App" + rest == (
            b"From: App <app@example.com>\r\nTo: a@example.net\r\nSubject: =?utf-8?q?hi?=\r\n folded\r\n"
            b"X-Relayed: stays\r\n\r\nBcc: body\r\nX-Relay-Tag: body\r\n"
        )
        assert b"secret" not in kept
        assert b"example.net" not in received  # one recipient is not shown to another
        lines = received.decode().split("\r\n")
        assert lines[0] == "Received: from client.example ([127.0.0.1])"
        assert lines[1] == f"\tby relay.test with ESMTP id {queue_id(number)};"
        assert [line.split(":")[0] for line in lines[3:]] == ["Date", "Message-ID", ""]
        parsed = message_from_bytes(kept)
        assert parsed["Message-ID"] == f"<{queue_id(number).lower()}@relay.test>"
        assert not parsed.defects
        assert {r["tag"] for r in await relay.rows()} == {"order-7"}
        (ignored,) = relay.told("option_ignored")
        assert ignored["option"] == "x-relay-unknown: unknown"


async def test_thousands_of_options_do_not_flood_the_log(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        said = b"".join(b"X-Relay-No-%d: x\r\n" % i for i in range(4000)) + b"Subject: x\r\n\r\nx\r\n"
        number = await relay.send(said, "a@example.net")
        assert b"X-Relay" not in await relay.kept(number)
        told = [e["option"] for e in relay.told("option_ignored")]
        assert len(told) == MAX_TOLD + 1
        assert told[-1] == f"and {4000 - MAX_TOLD} more"


async def test_date_and_message_id_are_kept_where_they_are(tmp_path: Path) -> None:
    said = b"date: Mon, 1 Jan 2024 00:00:00 +0000\r\nMESSAGE-ID: <x@y>\r\nfrom: a@b.example\r\n\r\n"
    async with front(tmp_path) as relay:
        kept = await relay.kept(await relay.send(said))
        assert kept.endswith(said)
        assert len(re.findall(rb"(?im)^(date|message-id):", kept)) == 2


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (b"", b"\r\n"),
        (b"\r\nbody\r\n", b"\r\nbody\r\n"),
        (b"just text\r\n\r\nmore: text\r\n", b"\r\njust text\r\n\r\nmore: text\r\n"),
        (b"Subject: only\r\n", b"Subject: only\r\n\r\n"),
        (b"Bcc: a@b.c\r\n\r\nx\r\n", b"\r\nx\r\n"),
    ],
)
async def test_headers_that_are_missing(tmp_path: Path, said: bytes, kept: bytes) -> None:
    async with front(tmp_path) as relay:
        found = await relay.kept(await relay.send(said))
        head, _, rest = found.partition(b"Message-ID: ")
        assert head.startswith(b"Received: from ")
        assert rest.split(b"\r\n", 1)[1] == b"From: <app@example.com>\r\n" + kept


async def test_class_by_header_then_by_rule_then_default(tmp_path: Path) -> None:
    classes = {
        "urgent": TrafficClass("urgent", priority=Priority.IMMEDIATE, retry=Retry(give_up=60)),
        "bulk": TrafficClass("bulk", match("header", "Precedence: bulk"), priority=Priority.LOW),
        "shop": TrafficClass("shop", match("from", "*@shop.example")),
    }
    async with front(tmp_path, Listen("a", HERE), Listen("b", HERE, honour=frozenset()), classes=classes) as relay:
        for said, door, expected, priority in [
            (b"X-Relay-Class: urgent\r\nPrecedence: bulk\r\n\r\n", 0, "urgent", 0),
            (b"X-Relay-Class: urgent\r\n\r\n", 1, "default", 2),
            (b"X-Relay-Class: nonsense\r\n\r\n", 0, "default", 2),
            (b"precedence: BULK\r\nFrom: <a@shop.example>\r\n\r\n", 0, "bulk", 3),
            (b'From: "x, y" <a@Shop.Example>\r\n\r\n', 0, "shop", 2),
            (b"X-Relay-Priority: high\r\nPrecedence: bulk\r\n\r\n", 0, "bulk", 1),
            (b"\r\n", 0, "default", 2),
        ]:
            row = await row_of(relay, await relay.send(said, door=door))
            assert (row["class"], row["priority"]) == (expected, priority), said
        row = (await relay.rows())[0]
        assert row["expires_at"] - row["accepted_at"] == 60
        assert relay.told("option_ignored")[0]["option"] == "x-relay-class: not honoured by this listener"


async def test_send_at_holds_it_back(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        for text, offset in [
            ("2130-01-01T00:00:00Z", None),
            ("Tue, 1 Jan 2019 00:00:00 +0000", 0),
            ("0001-01-01T00:00:00+23:59", 0),
        ]:
            async with relay.session() as client:
                code, answer = await client.mail(b"X-Relay-Send-At: %s\r\n\r\n" % text.encode())
            if offset is None:
                assert (code, answer[:5]) == (554, "5.6.0")  # more than a year ahead
            else:
                row = (await relay.rows())[-1]
                assert row["due_at"] == row["accepted_at"]
        soon = clock.now() + 3600
        when = datetime.fromtimestamp(soon, UTC).isoformat()
        row = await row_of(relay, await relay.send(b"X-Relay-Send-At: %s\r\n\r\n" % when.encode()))
        assert row["due_at"] == pytest.approx(soon, abs=0.001)
        assert row["expires_at"] == pytest.approx(soon + 5 * 86400, abs=0.01)


@pytest.mark.parametrize(
    "line",
    [
        b"X-Relay-Priority: soonish",
        b"X-Relay-Send-At: tomorrow",
        b"X-Relay-Send-At: 2026-01-01",
        b"X-Relay-Send-At: 9999-12-31T23:59:59-23:59",
        b"X-Relay-Send-At: 10000-01-01T00:00:00Z",
        b"X-Relay-Tag: " + b"x" * 201,
        b"X-Relay-Tag: a\x1bb",
        b"X-Relay-Idempotency-Key: ",
    ],
)
async def test_an_honoured_option_that_makes_no_sense_is_refused(tmp_path: Path, line: bytes) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        code, text = await client.mail(line + b"\r\n\r\n")
        assert (code, text[:5]) == (554, "5.6.0"), text
        assert relay.told("session_error") == []


async def test_a_route_is_decided_at_rcpt_where_no_content_can_change_it(tmp_path: Path) -> None:
    routes = (
        Route("no", Action.REJECT, match("recipient", "*@no.example"), text="we do not write there"),
        Route("perhaps", Action.REJECT, match("header", "X-Bad: *"), text="bad header"),
        Route("ok", Action.VIA, match("recipient", "*@ok.example"), via=("up",)),
    )
    async with front(tmp_path, routes=routes) as relay, relay.session() as client:
        await client.say("MAIL FROM:<a@b.example>")
        assert await client.say("RCPT TO:<x@no.example>") == (550, "5.7.1 we do not write there")
        assert (await client.say("RCPT TO:<x@ok.example>"))[0] == 250  # the header could still refuse it
        assert (await client.say("RCPT TO:<x@other.example>"))[0] == 250
        (refused,) = relay.told("refused")
        assert (refused["recipient"], refused["code"]) == ("x@no.example", 550)
        await client.say("RSET")
        code, text = await client.mail(b"X-Bad: x\r\n\r\n", "x@ok.example", "y@ok.example")
        assert (code, text) == (550, "5.7.1 bad header")
        code, text = await client.mail(b"\r\n", "x@other.example")
        assert code == 550
        assert "no route" in text
        assert await relay.rows() == []


async def test_some_recipients_refused_and_others_taken(tmp_path: Path) -> None:
    routes = (
        Route(
            "no",
            Action.REJECT,
            Match((Question("recipient", ("*@no.example",)), Question("header", ("X-A: *",)))),
            text="no",
        ),
        REST,
    )
    async with front(tmp_path, routes=routes) as relay:
        await relay.send(b"X-A: 1\r\n\r\n", "x@no.example", "y@ok.example", "y@ok.example")
        rows = {r["recipient"]: (r["state"], r["why"]) for r in await relay.rows()}
        assert rows == {"x@no.example": ("failed", "rejected: no"), "y@ok.example": ("queued", "")}


async def test_a_sender_that_no_account_may_send_as(tmp_path: Path) -> None:
    async with front(tmp_path, senders=("*@corp.example",)) as relay, relay.session() as client:
        code, text = await client.mail(b"\r\n", sender="a@else.example")
        assert (code, text) == (550, "5.7.1 no account of route rest may send as this sender")
        assert (await client.mail(b"\r\n", sender="a@Corp.Example"))[0] == 250


async def test_hold_discard_copy_and_what_is_done_with_the_copy(tmp_path: Path) -> None:
    routes = (
        Route("held", Action.HOLD, match("recipient", "*@held.example"), origin="relay.yaml:3"),
        Route("gone", Action.DISCARD, match("recipient", "*@gone.example")),
        Route("never", Action.REJECT, match("recipient", "archive@no.example"), text="no"),
        Route("rest", Action.VIA, via=("up",), copy=("archive@example.com", "archive@no.example", "k@held.example")),
    )
    async with front(tmp_path, routes=routes) as relay:
        await relay.send(b"\r\n", "a@held.example", "b@gone.example", "c@example.net", "archive@example.com")
        rows = {r["recipient"]: (r["state"], r["egress"], r["why"]) for r in await relay.rows()}
        assert rows == {
            "a@held.example": ("held", "", "held by route held (relay.yaml:3)"),
            "b@gone.example": ("delivered", "discard", "discarded by route gone"),
            "c@example.net": ("queued", "", ""),
            "archive@example.com": ("queued", "", ""),
            "k@held.example": ("held", "", "held by route held (relay.yaml:3)"),
        }


@pytest.mark.parametrize("size", [100, 1_000_000])
async def test_the_body_of_what_is_discarded_is_not_kept(tmp_path: Path, size: int) -> None:
    async with front(tmp_path, routes=(Route("gone", Action.DISCARD),)) as relay:
        number = await relay.send(b"Subject: x\r\n\r\n" + b"y" * size + b"\r\n")
        with pytest.raises(SpoolError):
            await relay.kept(number)
        found = await relay.spool.message(number)
        assert found and (found["place"], found["size"] > size) == (Place.DROPPED, True)
        await until(lambda: not list(relay.spool.content.folder.iterdir()))


async def test_capture_keeps_all_but_what_is_allowed(tmp_path: Path) -> None:
    async with front(tmp_path, capture=Question("recipient", ("*@example.com",))) as relay:
        relay.spool.keep_bodies = "none"
        number = await relay.send(b"Subject: x\r\n\r\nbody\r\n", "a@example.com", "b@real.example")
        rows = {r["recipient"]: (r["state"], r["egress"]) for r in await relay.rows()}
        assert rows == {"a@example.com": ("queued", ""), "b@real.example": ("delivered", "capture")}
        await relay.spool.change([(number, 0)], Verb.CANCEL, clock.now(), "done")
        assert (await relay.kept(number)).endswith(b"body\r\n")


async def test_the_same_key_again_gets_the_first_queue_id(tmp_path: Path) -> None:
    said = b"X-Relay-Idempotency-Key: order-7\r\n\r\n%s\r\n"
    async with front(tmp_path, Listen("a", HERE), Listen("b", HERE, honour=frozenset())) as relay:
        first = await relay.send(said % b"first")
        assert await relay.send(said % b"second") == first
        large = said % (b"x" * 1_000_000)
        assert await relay.send(large) == first
        assert len(relay.told("repeated")) == 2
        assert await relay.send(said % b"other", door=1) != first  # not honoured there
        assert (await relay.kept(first)).endswith(b"first\r\n")
        assert len(await relay.rows()) == 2
        await until(relay.nothing_left)


async def test_the_same_key_at_once_over_many_connections(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        said = b"X-Relay-Idempotency-Key: k\r\n\r\n" + b"x" * 300_000
        numbers = await asyncio.gather(*(relay.send(said) for _ in range(8)))
        assert len(set(numbers)) == 1
        assert len(await relay.rows()) == 1
        await until(lambda: list(relay.spool.content.ids()) == [numbers[0]])


async def test_a_named_route_where_it_is_honoured(tmp_path: Path) -> None:
    routes = (Route("held", Action.HOLD, match("sender", "nobody@x")), REST)
    async with front(tmp_path, Listen("a", HERE, honour=ALL), Listen("b", HERE), routes=routes) as relay:
        said = b"X-Relay-Route: held\r\n\r\n"
        assert (await row_of(relay, await relay.send(said)))["state"] == "held"
        assert (await row_of(relay, await relay.send(said, door=1)))["state"] == "queued"


async def test_hops_and_header_blocks_are_capped(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        hop = b"Received: from a by b; Mon, 1 Jan 2024 00:00:00 +0000\r\n"
        assert (await client.mail(hop * 50 + b"\r\n"))[0] == 250
        code, text = await client.mail(hop * 51 + b"\r\n")
        assert (code, text[:5]) == (554, "5.4.6")
        for many in (b"X: y\r\n" * 5001, b"X: " + b"y" * 300_000 + b"\r\n", b"X: y\r\n y\r\n" * 2600):
            code, text = await client.mail(many + b"\r\nbody")
            assert (code, text[:5]) == (552, "5.3.4")
        assert relay.intake.budget.used == 0


async def test_a_nul_is_kept_for_what_can_carry_it_or_refused(tmp_path: Path) -> None:
    message = b"Subject: a\0b\r\nFrom: a@b.example\r\n\r\nc\0d\r\n"
    async with front(tmp_path) as relay, relay.session() as client:
        code, text = await client.mail(message)
        assert code == 250
        kept = await relay.kept(parse_queue_id(text.rsplit(" ", 1)[1]))
        assert kept.endswith(b"Subject: a b\r\nFrom: a@b.example\r\n\r\nc\0d\r\n")
        assert [event["what"] for event in relay.told("repaired")] == ["control_character"]
    strict = Listen("local", Address("127.0.0.1", 0), line_endings="reject")
    async with front(tmp_path / "strict", strict) as relay, relay.session() as client:
        code, text = await client.mail(message)
        assert (code, text[:5]) == (554, "5.6.0")


async def test_what_the_next_hop_must_be_able_to_take(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        async with relay.session() as client:
            assert (await client.mail("Subject: é\r\n\r\n".encode(), options=" SMTPUTF8 BODY=8BITMIME"))[0] == 250
            assert (await client.mail(b"\r\nx\r\n", "é@example.net", options=" SMTPUTF8"))[0] == 250
            assert (await client.mail(b"\r\nx\r\n", options=" SMTPUTF8"))[0] == 250
            assert (await client.mail("\r\né\r\n".encode()))[0] == 250
        found = [await relay.spool.message(r["message"]) for r in await relay.rows()]
        assert [f and f["smtp"] for f in found] == [3, 2, 0, 1]


async def test_a_kept_message_is_sent_again_by_the_rules_in_force(tmp_path: Path) -> None:
    async with front(tmp_path) as relay:
        for body in (b"small\r\n", b"x" * 1_000_000 + b"\r\n"):
            number = await relay.send(b"Subject: x\r\n\r\n" + body)
            found = await relay.spool.message(number)
            assert found is not None
            again = await resend(relay.intake, found, ["new@example.net"])
            assert (await relay.kept(again)) == (await relay.kept(number))
            row = await row_of(relay, again)
            assert (row["recipient"], row["state"]) == ("new@example.net", State.QUEUED.label)
            before = set(relay.spool.content.ids())
            relay.config = replace(relay.config, routes=Table(()))
            with pytest.raises(BadMessage, match="no route"):
                await resend(relay.intake, found, ["new@example.net"])
            relay.config = replace(relay.config, routes=Table((REST,)))
            relay.spool.refusal = "full"
            with pytest.raises(Exception, match="full"):
                await resend(relay.intake, found, ["new@example.net"])
            relay.spool.refusal = ""
            await until(lambda before=before: set(relay.spool.content.ids()) == before)


async def test_the_id_that_was_said_finds_the_message(tmp_path: Path) -> None:
    async with front(tmp_path) as relay, relay.session() as client:
        _, text = await client.mail(b"\r\n")
        number = parse_queue_id(text.removeprefix("2.0.0 Ok: queued as "))
        assert await relay.spool.message(number) is not None
        (told,) = relay.told("accepted")
        assert told["id"] == queue_id(number)
