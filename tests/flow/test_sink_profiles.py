"""What the profiles of the sink do over the wire: limits, replies, faults, and what is counted."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import until
from front import Client, stuffed
from sinks import Bench, sink

TEXT = b"Subject: t\r\n\r\nhello\r\n"
OK = (250, "2.1.0 Ok")


def numbered(number: object) -> bytes:
    return b"Message-ID: <%s@x.example>\r\n" % str(number).encode() + TEXT


async def send(client: Client, numbers: Iterable[int]) -> list[tuple[int, str]]:
    return [await client.mail(numbered(n)) for n in numbers]


# -- the providers


async def test_ses(tmp_path: Path) -> None:
    async with sink(tmp_path, "ses") as bench:
        client = await bench.client(greet=False)
        assert re.fullmatch(r"email-smtp\.amazonaws\.com ESMTP SimpleEmailService-\w+", (await client.reply())[1])
        assert (await client.say("EHLO x"))[1].split("\n") == [
            "email-smtp.amazonaws.com",
            "SIZE 41943040",
            "8BITMIME",
            "AUTH PLAIN LOGIN",
        ]
        assert await client.mail(TEXT) == (530, "Authentication required")
        assert await client.log_in("AKIA", "secret") == (235, "Authentication successful.")
        assert {code for code, _ in await send(client, range(14))} == {250}
        async with asyncio.timeout(30):
            while (reply := await client.mail(TEXT, *(f"r{n}@x.example" for n in range(14))))[0] == 250:
                continue  # a second gives room for as many again
        assert reply == (454, "Throttling failure: Maximum sending rate exceeded.")
        await asyncio.sleep(0.3)
        assert (await client.mail(TEXT, "a@x.example", "b@x.example", "c@x.example"))[0] == 250
        assert (await client.mail(TEXT))[0] in (250, 454)
        rate, daily = bench.sink.tally.buckets
        assert (rate["burst"], rate["refused"], daily["burst"]) == (14, pytest.approx(2, abs=1), 50000)
        assert rate["took"] == daily["took"] >= 17


async def test_ses_refuses_too_many_recipients_after_the_dot(tmp_path: Path) -> None:
    async with sink(tmp_path, "ses") as bench:
        client = await bench.client("AKIA")
        many = [f"r{n}@x.example" for n in range(51)]
        assert await client.mail(TEXT, *many) == (554, "Transaction failed: Recipient count exceeds 50.")
        assert (bench.kept, bench.sink.tally.buckets) == ([], [])


async def test_gmail(tmp_path: Path) -> None:
    async with sink(tmp_path, "gmail") as bench:
        client = await bench.client()
        code, text = await client.mail(TEXT)
        assert (code, text.split("\n")[0]) == (530, "5.7.0 Authentication Required. For more information, go to")
        assert await client.log_in("shop@x.example", "secret") == (235, "2.7.0 Accepted")
        many = [f"r{n}@x.example" for n in range(101)]
        code, text = await client.mail(TEXT, *many)
        assert (code, text.split("\n")[0]) == (
            452,
            "4.5.3 Your message has too many recipients. For more information regarding",
        )
        assert {code for code, _ in await send(client, range(99))} == {250}
        async with asyncio.timeout(30):
            while (reply := await client.say("MAIL FROM:<shop@x.example>"))[0] == 250:
                await client.say("RSET")  # 0.6 s give room for one more
        assert (reply[0], reply[1][:44]) == (421, "4.7.0 Try again later, closing connection. (")
        assert await client.reply() == (0, "")
        (refused,) = [reply for reply in bench.sink.tally.refused() if reply.startswith("421")]
        assert refused == "421 4.7.0 Try again later, closing connection. (MAIL) {id} - gsmtp"


async def test_gmails_day(tmp_path: Path) -> None:
    script = "profile: gmail\nlimits: [{name: rate, at: mail, rate: 100/s, reply: 421 4.7.0 later}]"
    async with sink(tmp_path, script) as bench:
        bucket = bench.sink.door.player.profile.limits[-2]
        assert (bucket.name, bucket.tokens) == ("daily", (pytest.approx(2000 / 86400), 2000))
        client = await bench.client("shop@x.example")
        await client.mail(TEXT)
        list(bench.sink.door.player.buckets())[1][2].level = 0.5
        code, text = await client.mail(TEXT)
        assert (code, text.split("\n")[:2]) == (
            550,
            ["5.4.5 Daily user sending limit exceeded. For more information on Gmail", "5.4.5 sending limits go to"],
        )


async def test_microsoft365_at_once(tmp_path: Path) -> None:
    async with sink(tmp_path, "microsoft365") as bench:
        clients = [await bench.client() for _ in range(4)]
        other = await bench.client()
        for client in clients:
            assert (await client.mail(TEXT))[0] == 530
            await _login(client, "shop@x.example")
        await _login(other, "books@x.example")
        replies = [await client.mail(numbered(n)) for n, client in enumerate(clients)]
        assert [code for code, _ in replies] == [250, 250, 250, 432]
        assert replies[3][1].startswith("4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/")
        assert (await other.mail(numbered(4)))[0] == 250
        await clients[0].say("QUIT")
        await until(lambda: len(bench.sink.door.sessions) == 4)
        assert (await clients[3].mail(numbered(3)))[0] == 250
        tally = bench.sink.tally
        assert (tally.kept, tally.most_connections, tally.doubled) == (5, 5, {})
        assert [(p["of"], p["highest"], p["refused"]) for p in tally.places] == [
            ("shop@x.example", 3, 1),
            ("books@x.example", 1, 0),
        ]


async def _login(client: Client, user: str) -> None:
    import base64

    assert (await client.say("AUTH LOGIN"))[0] == 334
    assert (await client.say(base64.b64encode(user.encode()).decode()))[0] == 334
    assert await client.say(base64.b64encode(b"secret").decode()) == (235, "2.7.0 Authentication successful")


async def test_microsoft365_rate(tmp_path: Path) -> None:
    async with sink(tmp_path, "microsoft365", speed=0.01) as bench:  # two seconds would let another one pass
        client = await bench.client()
        await _login(client, "shop@x.example")
        assert {code for code, _ in await send(client, range(30))} == {250}
        said = "4.4.2 Message submission rate for this client has exceeded the configured limit"
        assert await client.say("MAIL FROM:<shop@x.example>") == (421, said)
        assert await client.reply() == (0, "")


async def test_speed(tmp_path: Path) -> None:
    """30/min at 120 is 60/s: of 60 messages that hurry, all are through in half a second and a bit."""
    async with sink(tmp_path, "microsoft365", speed=120) as bench:
        arrived = 0
        while arrived < 60:
            client = await bench.client()
            await _login(client, "shop@x.example")
            while arrived < 60 and (await client.mail(numbered(arrived)))[0] == 250:
                arrived += 1
            await asyncio.sleep(0.05)
        (bucket,) = [b for b in bench.sink.tally.buckets if b["limit"].startswith("rate")]
        assert bucket["minimum"] == pytest.approx((arrived - 30) / 60)
        assert bucket["seconds"] >= bucket["minimum"] - 1e-6


async def test_greylist(tmp_path: Path) -> None:
    async with sink(tmp_path, "greylist", speed=200) as bench:
        client = await bench.client()
        assert await client.mail(TEXT, "a@x.example") == (450, "4.2.0 Greylisted, try again in 1 seconds")
        await asyncio.sleep(0.31)
        assert (await client.mail(TEXT, "a@x.example"))[0] == 250
        assert (await client.mail(TEXT, "a@x.example"))[0] == 250
        assert (await client.mail(TEXT, "b@x.example"))[0] == 450
        assert [kind for kind, _ in bench.told] == ["greylisted", "greylisted"]
        assert bench.told[-1][1]["recipients"] == ("b@x.example",)


async def test_slow(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with sink(tmp_path, "slow", speed=10) as bench:
        began = loop.time()
        client = await bench.client(greet=False)
        await client.raw(b"EHLO early.example\r\n")
        assert (await client.reply())[0] == 220
        greeted = loop.time()
        assert (await client.reply())[0] == 250
        assert (await client.mail(TEXT))[0] == 250
        assert greeted - began >= 0.099
        assert loop.time() - began >= 0.298


async def test_flaky_keeps_all_once(tmp_path: Path) -> None:
    """Whoever tries again until it hears 250 has delivered everything once."""
    async with sink(tmp_path, "flaky", speed=1000, seed=3) as bench:
        client: Client | None = None
        for number in range(200):
            while True:
                client = client or await _greeted(bench)
                if client is None:
                    continue
                code, _ = await client.mail(numbered(number), f"r{number}@x.example")
                if code == 250:
                    break
                assert code < 500
                if code in (0, 421):
                    client = None
        tally = bench.sink.tally
        assert (tally.kept, len(tally.message_ids), tally.doubled) == (200, 200, {})
        assert {reply[:3] for reply in tally.refused()} == {"421", "451"}
        assert tally.dropped > 5
        assert {"dropped", "refused"} == {kind for kind, _ in bench.told}


async def _greeted(bench: Bench) -> Client | None:
    client = await bench.client(greet=False)
    if (await client.reply())[0] != 220:
        return None
    assert (await client.say("EHLO x"))[0] == 250
    return client


# -- the rules, one by one


async def test_drop_after_the_dot_with_and_without_keeping(tmp_path: Path) -> None:
    script = "rules:\n- {at: dot, times: 1, then: drop, kept: true}\n- {at: dot, times: 1, then: drop}"
    async with sink(tmp_path, script) as bench:
        for kept in (1, 1, 2):
            client = await bench.client()
            await client.mail(numbered(7))
            assert len(bench.kept) == kept
        assert bench.sink.tally.doubled == {("<7@x.example>", "rcpt@example.net"): 2}
        assert bench.sink.tally.message_ids == {"<7@x.example>": 2}
        assert [(kind, fields["kept"]) for kind, fields in bench.told] == [("dropped", True), ("dropped", False)]


async def test_kept_though_refused(tmp_path: Path) -> None:
    async with sink(tmp_path, "rules: [{at: dot, times: 1, reply: 451 4.3.0 no, kept: true}]") as bench:
        client = await bench.client()
        assert await client.mail(numbered(1)) == (451, "4.3.0 no")
        assert (await client.mail(numbered(1)))[0] == 250
        assert bench.sink.tally.doubled


@pytest.mark.parametrize("size", [10, 3_000_000])
async def test_cut_within_the_content(tmp_path: Path, size: int) -> None:
    async with sink(tmp_path, "rules: [{at: content, times: 1, then: drop}]") as bench:
        client = await bench.client()
        for line in ("MAIL FROM:<a@x.example>", "RCPT TO:<b@x.example>", "DATA"):
            await client.say(line)
        try:
            await client.raw(stuffed(TEXT + b"x" * size))
        except ConnectionError:
            pass  # cut while we were writing
        assert await client.reply() == (0, "")
        await until(lambda: not bench.sink.door.sessions)
        assert (bench.kept, bench.sink.tally.dropped) == ([], 1)
        assert bench.sink.door.keeper.budget.used == 0
        assert (await (await bench.client()).mail(TEXT))[0] == 250


@pytest.mark.parametrize("stage", ["connect", "ehlo", "mail", "rcpt", "data", "content", "dot"])
async def test_a_stall_lasts_until_the_client_goes(tmp_path: Path, stage: str) -> None:
    async with sink(tmp_path, f"rules: [{{at: {stage}, times: 1, then: stall}}]") as bench:
        client = await bench.client(greet=False)
        text = "EHLO x\r\nMAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nDATA\r\n"
        await client.raw(text.encode() + stuffed(TEXT))
        await until(lambda: bench.sink.tally.dropped)
        assert [kind for kind, _ in bench.told] == ["stalled"]
        await client.close()
        await until(lambda: not bench.sink.door.sessions)
        assert bench.kept == []


async def test_a_delay_within_the_content_loses_nothing(tmp_path: Path) -> None:
    async with sink(tmp_path, "rules: [{at: content, delay: 100ms}, {at: rcpt, delay: 50ms}]") as bench:
        client = await bench.client()
        pipelined = b"MAIL FROM:<a@x.example>\r\nRCPT TO:<b@x.example>\r\nRCPT TO:<c@x.example>\r\nDATA\r\n"
        await client.raw(pipelined)
        assert [(await client.reply())[0] for _ in range(4)] == [250, 250, 250, 354]
        content = b"Subject: t\r\n\r\n" + b"line\r\n" * 100_000
        await client.raw(stuffed(content))
        assert (await client.reply())[0] == 250
        assert bench.kept[0].size == len(content)


async def test_partial_refusals(tmp_path: Path) -> None:
    script = "rules: [{at: rcpt, match: {recipient: 'no*'}, reply: '451 4.3.0 <{recipient}> of {sender}: later'}]"
    async with sink(tmp_path, script) as bench:
        client = await bench.client()
        assert await client.say("MAIL FROM:<a@x.example>") == OK
        assert (await client.say("RCPT TO:<b@x.example>"))[0] == 250
        assert await client.say("RCPT TO:<no@x.example>") == (451, "4.3.0 <no@x.example> of a@x.example: later")
        assert (await client.say("RCPT TO:<c@x.example>"))[0] == 250
        assert (await client.say("DATA"))[0] == 354
        await client.raw(stuffed(TEXT))
        assert (await client.reply())[0] == 250
        assert bench.kept[0].recipients == ("b@x.example", "c@x.example")


@pytest.mark.parametrize(
    ("stage", "reply"), [("connect", "421 4.3.2 full"), ("connect", "554 5.7.1 no"), ("ehlo", "421 4.3.2 full")]
)
async def test_turned_away(tmp_path: Path, stage: str, reply: str) -> None:
    async with sink(tmp_path, f"rules: [{{at: {stage}, reply: {reply}}}]") as bench:
        client = await bench.client(greet=False)
        if stage == "ehlo":
            assert (await client.reply())[0] == 220
            await client.raw(b"EHLO x\r\n")
        code, text = await client.reply()
        assert f"{code} {text}" == reply
        assert await client.reply() == (0, "")
        assert bench.sink.tally.refused() == {reply: 1}


async def test_by_header(tmp_path: Path) -> None:
    async with sink(tmp_path, "rules: [{at: dot, match: {header: {Subject: 'no*'}}, reply: 554 5.7.1 spam}]") as bench:
        client = await bench.client()
        assert await client.mail(b"Subject: No\r\n\r\n") == (554, "5.7.1 spam")
        assert (await client.mail(b"Subject: yes\r\n\r\n"))[0] == 250


async def test_what_the_sink_itself_refuses_is_counted_too(tmp_path: Path) -> None:
    async with sink(tmp_path, "offers: []\nmax_message_size: 100B") as bench:
        client = await bench.client(greet=False)
        await client.reply()
        assert (await client.say("EHLO x"))[1].split("\n")[1:] == [
            "SIZE 100",
            "AUTH PLAIN LOGIN XOAUTH2 OAUTHBEARER",
        ]
        assert (await client.say("MAIL FROM:<a@x.example> SMTPUTF8"))[0] == 555
        assert (await client.mail(b"x" * 200))[0] == 552
        assert sorted(reply[:3] for reply in bench.sink.tally.refused()) == ["552", "555"]
        assert [kind for kind, _ in bench.told] == ["refused", "refused"]


# -- the tally


async def test_doubled_is_by_recipient(tmp_path: Path) -> None:
    async with sink(tmp_path, "{}") as bench:
        client = await bench.client()
        await client.mail(numbered(1), "a@x.example", "b@x.example")
        await client.mail(numbered(1), "c@x.example")
        assert bench.sink.tally.doubled == {}
        await client.mail(numbered(1), "b@x.example")
        await client.mail(TEXT)
        tally = bench.sink.tally
        assert tally.doubled == {("<1@x.example>", "b@x.example"): 2}
        assert (tally.kept, tally.without_id, len(tally.message_ids)) == (4, 1, 1)
        assert tally.summary()["doubled"] == [{"message_id": "<1@x.example>", "recipient": "b@x.example", "count": 2}]


async def test_shares_are_of_what_was_tried(tmp_path: Path) -> None:
    async with sink(tmp_path, "rules: [{at: mail, times: 1, reply: 450 4.2.0 no}]") as bench:
        client = await bench.client()
        for _ in range(4):
            await client.mail(TEXT)
        tally = bench.sink.tally
        assert tally.share() == tally.share(reply="450 4.2.0 no") == 0.25
        assert (tally.share(60), tally.refused(60), tally.by_minute()) == (0.0, {}, {(0, "450 4.2.0 no"): 1})
