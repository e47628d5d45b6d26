"""What a user may do: as whom it sends, to whom, how much, and by which options."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from front import Client, Front, front, stuffed
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.intake import _check_authors
from relay.listener.wire import MAX_ERRORS
from relay.policy.classes import TrafficClass
from relay.policy.rate import Rate
from relay.policy.routing import Match, Question
from relay.secrets import Reference
from relay.settings import Address, Listen, User
from relay.submission import BadMessage, read_head

HERE = Address("127.0.0.1", 0)
LOCAL = Listen("local", HERE, auth="optional")
MESSAGE = b"From: me@shop.example\r\nSubject: hi\r\n\r\nend\r\n"


def user(**more: Any) -> User:
    return User("shop", Reference("plain", "right"), **more)


@contextlib.asynccontextmanager
async def as_user(folder: Path, made: User, listen: Listen = LOCAL, **more: Any) -> AsyncIterator[tuple[Front, Client]]:
    more.setdefault("users", {"shop": made})
    async with front(folder, listen, **more) as relay, relay.session() as client:
        assert (await client.log_in("shop", "right"))[0] == 235
        yield relay, client


@pytest.mark.parametrize(
    ("sender", "code"),
    [
        ("me@shop.example", 250), ("ME@SHOP.example", 250), ("news@lists.example", 250), ("boss@corp.example", 553),
        ("me@shop.example.", 553), ("me@sub.shop.example", 553), ("x@notlists.example", 553), ("", 553),
        ("me@shop.example@corp.example", 553), ("@shop.example:boss@corp.example", 553),
        ('"me@shop.example"@corp.example', 553), ('"x\\"@lists.example"@corp.example', 553),
        ("boss%corp.example@lists.example", 250),  # a mailbox of lists.example, whatever it looks like
    ],
)  # fmt: skip
async def test_mail_from(tmp_path: Path, sender: str, code: int) -> None:
    made = user(senders=("me@shop.example", "*@lists.example"))
    async with as_user(tmp_path, made) as (_, client):
        assert (await client.say(f"MAIL FROM:<{sender}>"))[0] == code


@pytest.mark.parametrize(
    ("recipient", "code"),
    [
        ("a@allowed.example", 250), ("a@other.example", 550), ("a%other.example@allowed.example", 250),
        ("@allowed.example:b@other.example", 550), ('"a@allowed.example"@other.example', 550),
        ("a@allowed.example.", 550),
    ],
)  # fmt: skip
async def test_recipients(tmp_path: Path, recipient: str, code: int) -> None:
    async with as_user(tmp_path, user(recipients=("*@allowed.example",))) as (_, client):
        assert (await client.say("MAIL FROM:<x@y.example>"))[0] == 250
        assert (await client.say(f"RCPT TO:<{recipient}>"))[0] == code


# -- the authors that a message names (RFC 5322 §3.6.2, RFC 6409 §6.1)

MINE = ("me@shop.example",)
ALLOWED = [
    b"From: me@shop.example",
    b"From: ME@Shop.Example",
    b"From: <me@shop.example>",
    b"From: Shop <me@shop.example>",
    b'From: "Shop, Ltd." <me@shop.example>',
    b"From: =?utf-8?q?Sh=C3=B6p?= <me@shop.example>",
    "From: Shöp <me@shop.example>".encode(),
    b"From: Shop\r\n <me@shop.example>",
    b"From:\r\n\tme@shop.example",
    b"From: (a comment) me@shop.example (and another)",
    b"From: me@shop.example, Me <me@shop.example>",
    b"From: team: me@shop.example, <me@shop.example>;",
    b"From : me@shop.example",
    b"FROM: me@shop.example\r\nSender: Me <me@shop.example>\r\nReply-To: boss@corp.example",
    b"Subject: no author at all",
    b"X-From: boss@corp.example",
]
FORBIDDEN = [
    b"From: boss@corp.example",
    b"From: Me <boss@corp.example>",
    b'From: "me@shop.example" <boss@corp.example>',
    b"From: me@shop.example <boss@corp.example>",
    b"From: <me@shop.example> <boss@corp.example>",
    b"From: me@shop.example, boss@corp.example",
    b"From: me@shop.example,\r\n boss@corp.example",
    b"From: team: me@shop.example, boss@corp.example;",
    b"From: undisclosed:;",
    b"From: me@shop.example\r\nSender: boss@corp.example",
    b"Sender: boss@corp.example",
    b"Resent-From: boss@corp.example\r\nFrom: me@shop.example",
    b"From: me@shop.example\r\nResent-Sender: boss@corp.example",
    b"From:\r\n boss@corp.example",
    b"From:\r\n\t\r\n boss@corp.example",
    b"From: boss(comment)@corp.example",
    b"From: boss@(me@shop.example)corp.example",
    b"From: (me@shop.example) boss@corp.example",
    b'From: "boss"@corp.example',
    b'From: "bo\\ss"@corp.example',
    b"From: boss@corp.example (me@shop.example)",
    b"From: =?utf-8?q?boss=40corp=2Eexample?=",
    b"From: =?utf-8?b?Ym9zc0Bjb3JwLmV4YW1wbGU=?=",
    b"From: =?utf-8?q?=3Cboss=40corp=2Eexample=3E?=",
    b"From: boss@corp.example@shop.example",
    b"From: me@shop.example@corp.example",
    b"From: <@shop.example:boss@corp.example>",
    b"From: me@shop.example;boss@corp.example",
    b"From: me@shop.example boss@corp.example",
    b"From: boss@corp.example me@shop.example",
    b"From: <boss@corp.example>me@shop.example",
    b"From: boss@corp.example\x0b<me@shop.example>",
    b"From: boss@corp.example<me@shop.example>",
    b"From: nobody",
    b"From: <>",
    b"From: ((((" + b"(" * 1200,
    b"From: " + b"x" * 5000 + b" <me@shop.example>",
    b"From: me@shop.example" + b",me@shop.example" * 60,
    b"From: me@shop.example, " + b"a" * 3990 + b"\r\n , boss@corp.example",
    "From: boss@corp。example".encode(),
    b"From: boss\xff@corp.example",
]  # fmt: skip

TWO_AUTHORS = [
    b"From: me@shop.example\r\nFrom: boss@corp.example",
    b"From: boss@corp.example\r\nFrom: me@shop.example",
    b"From: me@shop.example\r\nfrom : boss@corp.example",
    b"From: me@shop.example\r\nSender: me@shop.example\r\nSender: boss@corp.example",
]


@pytest.mark.parametrize("header", ALLOWED)
async def test_authors_that_are_allowed(tmp_path: Path, header: bytes) -> None:
    async with as_user(tmp_path, user(senders=MINE)) as (_, client):
        assert (await client.mail(header + b"\r\n\r\nend\r\n", sender="me@shop.example"))[0] == 250


@pytest.mark.parametrize("header", FORBIDDEN)
async def test_authors_that_are_not(tmp_path: Path, header: bytes) -> None:
    async with as_user(tmp_path, user(senders=MINE)) as (relay, client):
        for content in (
            header + b"\r\n\r\nend\r\n",
            b"Subject: x\r\n" + header + b"\r\nTo: y@z.example\r\n\r\nend\r\n",
        ):
            code, text = await client.mail(content, sender="me@shop.example")
            assert (code, text[:5]) == (550, "5.7.1"), header[:60]
        assert await relay.rows() == []


@pytest.mark.parametrize("header", TWO_AUTHORS)
async def test_two_authors_are_refused_whoever_sends(tmp_path: Path, header: bytes) -> None:
    async with as_user(tmp_path, user(senders=("me@shop.example",))) as (relay, client):
        code, text = await client.mail(header + b"\r\n\r\nend\r\n", sender="me@shop.example")
        assert (code, text[:5]) == (554, "5.6.0"), header
        assert await relay.rows() == []


async def test_an_author_that_we_add_is_asked_for_too(tmp_path: Path) -> None:
    """Who may send as nobody may not send as MAILER-DAEMON."""
    async with as_user(tmp_path, user(senders=(*MINE, ""))) as (relay, client):
        for said in (b"Subject: x\r\n\r\nx\r\n", b"From: \r\n\r\nx\r\n", b"\r\nx\r\n"):
            assert (await client.mail(said, sender="me@shop.example"))[0] == 250
            assert await client.mail(said, sender="") == (
                550,
                "5.7.1 user shop may not send as MAILER-DAEMON@relay.test",
            )
        assert {
            row["header_from"] for row in [await relay.spool.message(r["message"]) for r in await relay.rows()]
        } == {"me@shop.example"}


@pytest.mark.parametrize("pattern", ["*@shop.example", "*@*shop.example", "me@*"])
@pytest.mark.parametrize(
    "header",
    [
        b"From: boss@corp.example@shop.example",
        b"From: boss@corp.example <x@shop.example>, me@",
        b"From: me@",
        b'From: "boss@corp.example <x@shop.example',  # a quote that nobody ends
        b'From: "boss@corp.example\\" @shop.example',
        b'From: "me@boss@corp.example',
    ],
)
async def test_a_glob_takes_no_address_in_an_address(tmp_path: Path, pattern: str, header: bytes) -> None:
    async with as_user(tmp_path, user(senders=(pattern,))) as (_, client):
        assert (await client.mail(header + b"\r\n\r\n", sender="me@shop.example"))[0] == 550


async def test_who_may_send_as_everybody_is_not_asked(tmp_path: Path) -> None:
    async with as_user(tmp_path, user()) as (_, client):
        for header in FORBIDDEN:
            assert (await client.mail(header + b"\r\n\r\nend\r\n", sender="me@shop.example"))[0] == 250


PIECES = [
    "me@shop.example", "boss@corp.example", "<me@shop.example>", "<boss@corp.example>", '"', "\\", "(", ")", "<", ">", "@",
    ",", ";", ":", " ", "a", '"boss@corp.example"', "=?utf-8?q?boss=40corp.example?=", ".", "[", "]", "\t",
]  # fmt: skip


def others(value: str) -> set[str]:
    """Whom two other readers see: the modern parser of the standard library, and one that takes the last <…>."""
    from email.headerregistry import HeaderRegistry

    found = set()
    try:
        made = HeaderRegistry()("From", value)
        found |= {a.addr_spec for a in made.addresses if not made.defects}
    except (IndexError, AttributeError, ValueError, TypeError):
        found |= set()  # it breaks on some of these: no reader, no opinion
    return {a.lower() for a in found if a.count("@") == 1}


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
def test_no_other_reader_sees_an_author_that_we_let_pass(value: str) -> None:
    head = read_head(b"From: " + value.encode() + b"\r\n\r\n")
    try:
        _check_authors(user(senders=MINE), head)
    except BadMessage:
        return
    assert others(value) <= {"me@shop.example"}, value


def test_authors_that_take_long_to_read_are_refused() -> None:
    """The stdlib's parser wants a millisecond for each such field, and holds up everybody meanwhile."""
    odd = b"".join(b"Resent-Sender: " + b"(a)" * 1300 + b"<me@shop.example>\r\n" for _ in range(49))
    with pytest.raises(BadMessage, match="cannot be read"):
        _check_authors(user(senders=MINE), read_head(b"From: me@shop.example\r\n" + odd + b"\r\n"))
    plain = b"".join(b'Resent-Sender: "Jane Q. Doe" <me@shop.example>\r\n' for _ in range(49))
    _check_authors(user(senders=MINE), read_head(b"From: me@shop.example\r\n" + plain + b"\r\n"))
    many = b"From: " + b", ".join(b"<me@shop.example>" for _ in range(49)) + b"\r\n\r\n"
    _check_authors(user(senders=MINE), read_head(many))


def test_who_may_send_as_nobody_is_still_asked_for_his_authors() -> None:
    """The empty sender among `senders` is for the envelope; an author that can't be read is not the same."""
    sender = user(senders=(*MINE, ""))
    with pytest.raises(BadMessage, match="cannot be read"):
        _check_authors(sender, read_head(b"From: " + b"(" * 2000 + b"\r\n\r\n"))
    _check_authors(sender, read_head(b"From: me@shop.example\r\n\r\n"))


# -- classes and options


async def test_classes(tmp_path: Path) -> None:
    classes = {
        "bulk": TrafficClass("bulk"),
        "fast": TrafficClass("fast", Match((Question("from", ("*@shop.example",)),))),
        "other": TrafficClass("other"),
    }
    async with as_user(tmp_path, user(classes=("bulk", "fast")), classes=classes) as (relay, client):
        expected = []
        for asked, class_ in (
            ("", "bulk"),
            ("fast", "fast"),
            ("other", "bulk"),
            ("nonsense", "bulk"),
            ("FAST", "bulk"),
        ):
            header = f"X-Relay-Class: {asked}\r\n".encode() if asked else b""
            assert (await client.mail(header + MESSAGE))[0] == 250
            expected.append(class_)
        assert [row["class"] for row in await relay.rows()] in (expected, expected[::-1])
        assert [e["option"] for e in relay.told("option_ignored")] == [
            "x-relay-class: class 'other' is none of this user's",
            "x-relay-class: no class 'nonsense' in the configuration",
            "x-relay-class: no class 'FAST' in the configuration",
        ]


async def test_what_a_user_is_honoured_for_beside_the_listener(tmp_path: Path) -> None:
    listen = Listen("local", HERE, auth="optional", honour=frozenset({"tag"}))
    users = {"shop": user(honour=frozenset({"priority"}))}
    async with front(tmp_path, listen, users=users) as relay, relay.session() as client:
        header = b"X-Relay-Tag: t\r\nX-Relay-Priority: high\r\nX-Relay-Class: x\r\n"
        assert (await client.mail(header + MESSAGE))[0] == 250
        assert (await client.log_in("shop", "right"))[0] == 235
        assert (await client.mail(header + MESSAGE))[0] == 250
        found = [await relay.spool.message(row["message"]) for row in await relay.rows()]
        by_user = {m["user"]: m for m in found if m}
        assert (by_user[""]["tag"], by_user[""]["priority"]) == ("t", 2)
        assert (by_user["shop"]["tag"], by_user["shop"]["priority"]) == ("t", 1)
        assert b"X-Relay" not in b"".join([await relay.kept(r["message"]) for r in await relay.rows()])


# -- how much


def up_to(text: str) -> Listen:
    """A listener that takes so much of each user."""
    return replace(LOCAL, user_rate=Rate.parse(text))


async def test_who_does_not_heed_450_is_cut(tmp_path: Path) -> None:
    async with as_user(tmp_path, user(), up_to("1 messages/h")) as (relay, client):
        assert (await client.mail(MESSAGE))[0] == 250
        codes = []
        while (code := (await client.say("MAIL FROM:<a@b.example>"))[0]) == 450:
            codes.append(code)
        assert code == 421 or len(codes) == MAX_ERRORS + 1
        assert len(codes) <= MAX_ERRORS + 1
        assert len(relay.told("throttled")) == 1


async def test_450_at_each_stage(tmp_path: Path) -> None:
    listen = replace(up_to("3/h"), client_rate=Rate.parse("2 messages/h"))
    async with as_user(tmp_path, user(), listen) as (relay, client):
        await client.say("MAIL FROM:<a@b.example>")
        answers = [await client.say(f"RCPT TO:<r{i}@y.example>") for i in range(5)]
        assert [code for code, _ in answers] == [250, 250, 250, 450, 450]
        assert answers[3][1].startswith("4.7.1 user shop has sent its 3/h; try again in ")
        await client.say("DATA")
        await client.raw(stuffed(MESSAGE))
        assert (await client.reply())[0] == 250
        code, text = await client.say("MAIL FROM:<a@b.example>")
        assert (code, text[:5]) == (450, "4.7.1")
        assert len(await relay.rows()) == 3
        assert len(relay.told("throttled")) == 2  # once until something was sent


async def test_several_sessions_at_once_do_not_exceed_it(tmp_path: Path) -> None:
    async with front(tmp_path, up_to("7 messages/h"), users={"shop": user()}) as relay:
        clients = [await relay.client() for _ in range(20)]
        for client in clients:
            assert (await client.log_in("shop", "right"))[0] == 235
        codes = [code for code, _ in await asyncio.gather(*(c.mail(MESSAGE) for c in clients))]
        assert sorted(codes) == [250] * 7 + [450] * 13
        for client in clients:
            await client.close()


async def test_at_data_the_last_word_is_said(tmp_path: Path) -> None:
    async with as_user(tmp_path, user(), up_to("1/h")) as (relay, one), relay.session() as two:
        await two.log_in("shop", "right")
        for client in (one, two):
            assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 250
            assert (await client.say("RCPT TO:<x@y.example>"))[0] == 250
        assert (await one.say("DATA"))[0] == 354
        assert (await two.say("DATA"))[0] == 450
        await one.raw(stuffed(MESSAGE))
        assert (await one.reply())[0] == 250


@pytest.mark.parametrize("how", ["refused", "dropped", "too large"])
async def test_what_was_not_accepted_is_given_back(tmp_path: Path, how: str) -> None:
    made = user(senders=("me@shop.example",))
    async with as_user(tmp_path, made, up_to("2 messages/h"), max_message_size=10_000) as (relay, client):
        for _ in range(4):
            if how == "dropped":
                async with relay.session() as other:
                    await other.log_in("shop", "right")
                    await other.raw(b"MAIL FROM:<me@shop.example>\r\nRCPT TO:<x@y.example>\r\nDATA\r\nFrom: me")
                    assert [(await other.reply())[0] for _ in range(3)] == [250, 250, 354]
                await until(lambda: len(relay.door.sessions) == 1)
            else:
                bad = b"From: boss@corp.example\r\n\r\n" if how == "refused" else MESSAGE + b"x" * 20_000
                assert (await client.mail(bad, sender="me@shop.example"))[0] in (550, 552)
        codes = [(await client.mail(MESSAGE, sender="me@shop.example"))[0] for _ in range(3)]
        assert codes == [250, 250, 450]


async def test_counts_survive_a_reload(tmp_path: Path) -> None:
    async with as_user(tmp_path, user(), up_to("2 messages/h")) as (relay, client):
        assert (await client.mail(MESSAGE))[0] == 250
        relay.reload(users={"shop": user(senders=("*@b.example",))})
        assert (await client.mail(MESSAGE, sender="a@b.example"))[0] == 550  # From
        assert (await client.mail(b"\r\n", sender="a@b.example"))[0] == 250
        assert (await client.mail(b"\r\n", sender="a@b.example"))[0] == 450


async def test_a_rate_of_each_client(tmp_path: Path) -> None:
    listen = Listen("local", HERE, client_rate=Rate.parse("1 messages/h"))
    async with front(tmp_path, listen) as relay:
        for source in ("127.0.0.1", "127.0.0.2"):
            async with relay.session(source=source) as client:
                assert [(await client.mail(MESSAGE))[0] for _ in range(2)] == [250, 450]
