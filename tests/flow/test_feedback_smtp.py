"""The door of the bounce domain: what our key made may come in, all else is refused, and nothing is ever answered by mail."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiosmtplib import SMTP as Client

from relay.envelope import parse_queue_id
from relay.outgoing import verp
from relay.spool import SpoolError
from tests.certificates import Authority
from tests.fakes import Upstream
from tests.returned import DOMAIN, FEEDBACK, KEY, SMTP, VERP, bring, dsn
from tests.rig import Rig, free_port, running, until, write_config

RULE = "suppression: {on: [hard_bounce, unsubscribe], scope: all, unsubscribe_scope: all}\n"


class Bench:
    def __init__(self, rig: Rig, upstream: Upstream) -> None:
        self.rig, self.upstream = rig, upstream

    @property
    def port(self) -> int:
        door = self.rig.app.feedback.smtp
        assert door is not None
        return door.port

    async def return_path(self, recipient: str = "you@example.net") -> str:
        """Of a message that left just now: what its next hop was told."""
        before = len(self.upstream.done)
        await self.rig.send(recipient)
        await until(lambda: len(self.upstream.done) > before)
        await self.rig.settled()
        return self.upstream.done[-1].sender

    async def events(self, *kinds: str) -> list[str]:
        return [row.recipient for row in await self.rig.app.spool.events(0, 10_000) if row.kind in kinds]


def configured(folder: Path, port: int, smtp: str = SMTP) -> Path:
    (folder / "token").write_text(KEY)
    (folder / "token").chmod(0o640)
    extra = FEEDBACK + smtp + RULE
    # Whoever were answered by mail would be answered through the one account that there is.
    return write_config(folder, {"main": f"port: {port}, tls: none"}, routes=VERP, extra=extra, dsn="to: sender")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Upstream() as up, running(configured(tmp_path, up.port)) as rig:
        yield Bench(rig, up)


async def test_what_was_sent_may_come_back(bench: Bench) -> None:
    path = await bench.return_path()
    assert path.startswith("bounce+") and path.endswith(f"@{DOMAIN}")
    replies = await bring(bench.port, [path], dsn("you@example.net"))
    assert replies[-1] == "250 2.0.0 Ok: noted"
    assert await bench.events("bounced") == ["you@example.net"]
    assert [one.why.word for one in await bench.rig.app.spool.suppressed("you@example.net")] == ["hard_bounce"]
    (door,) = bench.rig.app.admin.service.status()["feedback"]
    assert (door["door"], door["address"], door["up"], door["why"]) == ("smtp", f"127.0.0.1:{bench.port}", True, "")
    again = await bring(bench.port, [path.upper()], dsn("you@example.net"))  # letters of either case, as some send it
    assert again[-1].startswith("250")
    assert await bench.events("bounced") == ["you@example.net"]


@pytest.mark.parametrize(
    "recipient",
    [
        f"bounce+{'a' * 40}@{DOMAIN}",
        f"bounce+{verp.make(b'another key, as long as it may be', 1, 0)}@{DOMAIN}",
        f"bounce+{verp.make(KEY.encode(), 1, 0)}@example.com",
        f"bounce+{verp.make(KEY.encode(), 1, 0)}@sub.{DOMAIN}",
        f"bounce+{verp.make(KEY.encode(), 1, 0)}x@{DOMAIN}",
        f"other+{verp.make(KEY.encode(), 1, 0)}@{DOMAIN}",
        f"bounce+{verp.make(KEY.encode(), 1, 0)[:-1]}@{DOMAIN}",
        f"{verp.make(KEY.encode(), 1, 0)}@{DOMAIN}",
        f"bounce@{DOMAIN}",
        f"postmaster@{DOMAIN}",
        f"abuse@{DOMAIN}",
        "postmaster",
        "you@example.net",
        f"you%example.net@{DOMAIN}",
        f"@{DOMAIN}:you@example.net",
        f"you@example.net@{DOMAIN}",
        f'"you@example.net"@{DOMAIN}',
    ],
)
async def test_nothing_else_is_taken(bench: Bench, recipient: str) -> None:
    for sender in ("", "someone@example.org"):
        replies = await bring(bench.port, [recipient], b"Subject: x\r\n\r\nx\r\n", sender=sender)
        assert replies[-1].startswith(("550", "501", "553")), replies
    assert bench.rig.app.spool.queued == 0
    assert bench.upstream.transactions == []


async def test_unsubscribe_by_mail(bench: Bench) -> None:
    address = (await bench.return_path()).replace("bounce+", "unsubscribe+")
    refused = await bring(bench.port, [address], dsn("you@example.net"))
    assert refused[-1].startswith("550 5.7.1")  # a report is no unsubscription
    for _ in range(2):
        replies = await bring(bench.port, [address], b"Subject: unsubscribe\r\n\r\n\r\n", sender="you@example.net")
        assert replies[-1].startswith("250")
    assert await bench.events("unsubscribed") == ["you@example.net"]
    assert [one.why.word for one in await bench.rig.app.spool.suppressed("you@example.net")] == ["unsubscribe"]


async def test_several_return_paths_of_one_report(bench: Bench) -> None:
    paths = [await bench.return_path(f"you{n}@example.net") for n in range(3)]
    replies = await bring(bench.port, [*paths, f"nobody@{DOMAIN}", paths[0]], dsn("x@example.net"))
    assert [reply[:3] for reply in replies] == ["250", "250", "250", "250", "250", "550", "250", "354", "250"]
    assert await bench.events("bounced") == [f"you{n}@example.net" for n in range(3)]


async def test_what_says_nothing_is_taken_and_told(bench: Bench) -> None:
    path = await bench.return_path()
    replies = await bring(bench.port, [path], b"Subject: hello\r\n\r\nhow are you?\r\n", sender="a@example.org")
    assert replies[-1].startswith("250")
    assert await bench.events("bounced", "complained", "auto_replied") == []
    assert len(bench.rig.said("nothing_understood")) == 1


async def test_a_spool_that_cannot_write_is_told_451(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender keeps it, and brings it again."""
    path = await bench.return_path()

    async def broken(*_: Any) -> None:
        raise SpoolError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bench.rig.app.spool, "learn", broken)
        assert (await bring(bench.port, [path], dsn("you@example.net")))[-1].startswith("451 4.3.0")
    assert await bench.events("bounced") == []
    assert (await bring(bench.port, [path], dsn("you@example.net")))[-1].startswith("250")
    assert await bench.events("bounced") == ["you@example.net"]


async def test_a_large_report_is_understood_by_its_beginning(bench: Bench) -> None:
    path = await bench.return_path()
    large = dsn("you@example.net", headers="X-Long: y\r\n" + "X: " + "x" * 70 + "\r\n") + (b"z" * 76 + b"\r\n") * 60_000
    assert (await bring(bench.port, [path], large))[-1].startswith("250")
    assert await bench.events("bounced") == ["you@example.net"]


async def test_what_is_beyond_the_size_is_refused(bench: Bench) -> None:
    path = await bench.return_path()
    assert (await bring(bench.port, [path], b"", mail=" SIZE=20000000"))[1].startswith("552")
    replies = await bring(bench.port, [path], b"Subject: x\r\n\r\n" + (b"z" * 76 + b"\r\n") * 140_000)
    assert replies[-1].startswith("552")
    assert await bench.events("bounced") == []


@pytest.mark.parametrize("end", [b"\n.\n", b"\r\n.\n", b"\n.\r\n", b"\r.\r"])
async def test_only_a_whole_line_with_a_dot_ends_a_message(bench: Bench, end: bytes) -> None:
    path = await bench.return_path()
    smuggled = b"MAIL FROM:<>\r\nRCPT TO:<you@example.net>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\n"
    replies = await bring(bench.port, [path], dsn("you@example.net") + end + smuggled.removesuffix(b"\r\n.\r\n"))
    assert replies[-1].startswith("250")  # one message
    assert bench.upstream.transactions[1:] == [] and bench.rig.app.spool.queued == 0


async def test_it_takes_no_login_and_tells_of_nobody(bench: Bench) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
    said = []
    for line in (b"EHLO x\r\n", b"AUTH PLAIN AGEAYg==\r\n", b"VRFY postmaster\r\n", b"EXPN all\r\n", b"QUIT\r\n"):
        writer.write(line)
    said = (await asyncio.wait_for(reader.read(-1), 10)).decode().splitlines()
    writer.close()
    assert not any("AUTH" in line for line in said[:8] if line.startswith("250"))
    assert [line[:3] for line in said[-4:]] == ["502", "252", "502", "221"]


async def test_nothing_ever_leaves(bench: Bench) -> None:
    """No backscatter: whatever is brought, by whomever, the upstream hears of nothing but what was submitted."""
    path = await bench.return_path()
    sent = len(bench.upstream.transactions)
    for raw in (dsn("you@example.net"), dsn("x@example.org", action="delayed", status="4.0.0"), b"junk\r\n", b"\r\n"):
        for sender in ("", "victim@example.org"):
            await bring(bench.port, [path, f"nobody@{DOMAIN}"], raw, sender=sender)
    await bench.rig.settled()
    assert len(bench.upstream.transactions) == sent and bench.rig.app.spool.queued == 0
    assert await bench.rig.count() == 1


async def test_starttls(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    tls = f", tls: {{mode: starttls, certificate: {authority.certificate}, key: {{file: {authority.key}}}}}"
    smtp = SMTP.replace("}", tls + "}")
    async with Upstream() as up, running(configured(tmp_path, up.port, smtp)) as rig:
        bench = Bench(rig, up)
        path = await bench.return_path()
        context = ssl.create_default_context()
        authority.ca.configure_trust(context)
        client = Client(hostname="127.0.0.1", port=bench.port, start_tls=True, tls_context=context)
        async with client:
            await client.sendmail("", [path], dsn("you@example.net"))
        assert await bench.events("bounced") == ["you@example.net"]


async def test_connections_and_messages_have_limits(tmp_path: Path) -> None:
    smtp = '  smtp: {address: "127.0.0.1:0", max_connections: {total: 4, client: 2}, max_messages: 3/h}\n'
    async with Upstream() as up, running(configured(tmp_path, up.port, smtp)) as rig:
        bench = Bench(rig, up)
        path = await bench.return_path()
        open_ = [await asyncio.open_connection("127.0.0.1", bench.port) for _ in range(2)]
        for reader, _ in open_:
            assert (await reader.readline()).startswith(b"220")
        reader, writer = await asyncio.open_connection("127.0.0.1", bench.port)
        assert (await reader.readline()).startswith(b"421")
        for _, other in (*open_, (reader, writer)):
            other.close()
        door = rig.app.feedback.smtp
        await until(lambda: door is not None and not door.sessions)
        replies = [await bring(bench.port, [path], b"Subject: x\r\n\r\nx\r\n") for _ in range(5)]
        assert [said[-1][:3] for said in replies[:3]] == ["250"] * 3
        assert [said[1][:3] for said in replies[3:]] == ["450"] * 2


async def test_a_reload_opens_moves_and_closes_the_door(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = configured(tmp_path, up.port, "")
        async with running(file) as rig:
            assert rig.app.feedback.smtp is None
            ports = [free_port(), free_port()]
            for port in ports:
                configured(tmp_path, up.port, f'  smtp: {{address: "127.0.0.1:{port}"}}\n')
                assert rig.app.reload()[0]
                await until(lambda: (door := rig.app.feedback.smtp) is not None and door.port == port)  # noqa: B023
                assert (await bring(port, [f"nobody@{DOMAIN}"], b""))[-1].startswith("550")
            taken = free_port()
            held = await asyncio.start_server(lambda r, w: None, "127.0.0.1", taken)
            configured(tmp_path, up.port, f'  smtp: {{address: "127.0.0.1:{taken}"}}\n')
            assert rig.app.reload()[0]
            await until(lambda: rig.said("listener_failed"))
            held.close()
            configured(tmp_path, up.port, "")
            assert rig.app.reload()[0]
            await until(lambda: rig.app.feedback.smtp is None)
            with pytest.raises(OSError):
                await bring(ports[-1], [f"nobody@{DOMAIN}"], b"")


async def test_a_storm_does_not_starve_mail(bench: Bench) -> None:
    """1000 reports from ten servers, while applications hand in mail."""
    numbers = await bench.rig.send_many(
        [("app@example.com", (f"u{n}@example.net",), b"Subject: t\r\n\r\nx\r\n") for n in range(100)]
    )
    await bench.rig.settled()
    paths = [f"bounce+{verp.make(KEY.encode(), parse_queue_id(n), 0)}@{DOMAIN}" for n in numbers]

    async def server(number: int) -> None:
        for n in range(100):
            path = paths[(number * 100 + n) % len(paths)]
            start = time.monotonic()
            assert (await bring(bench.port, [path], dsn("x@example.net")))[-1].startswith("250")
            brought.append(time.monotonic() - start)

    began, brought = time.monotonic(), list[float]()
    storm = asyncio.gather(*(server(n) for n in range(10)))
    delays = []
    while not storm.done():
        start = time.monotonic()
        await bench.rig.send("other@example.org")
        delays.append(time.monotonic() - start)
        await asyncio.sleep(0.02)
    await storm
    took = time.monotonic() - began
    delays.sort()
    print(
        f"1000 reports in {took:.1f} s; mail meanwhile: {len(delays)}, median {delays[len(delays) // 2]:.3f} s, worst {delays[-1]:.3f} s"
    )
    assert len(await bench.events("bounced")) == 100
    # Not much longer than one of the reports, which come by sessions of their own too, however slow the machine.
    assert delays[len(delays) // 2] < max(0.5, 2 * sorted(brought)[len(brought) // 2])
