"""A storm of kill -9 (or of gentle restarts): senders, a slow upstream and a supervisor on one loop, so that all ledgers read one clock.

The relay is another process; what was in its memory is gone with each kill. The ledgers say for each message when its
final dot was sent, when 250 was read, when it arrived upstream and when that was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
import zlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .support import ENV, Relay, config_text, free_port

DELAYS = (0.05, 0.5)  # seconds that the upstream takes to answer the final dot
# The upstream has answered, the relay has not yet recorded it: who is killed now sends again. No other reply counts. On a
# machine that stands still meanwhile that takes longer than these seconds: so long as less than this many mails, each begun
# after the last was answered, were answered 250 since. What the relay was told before such a mail is on the disk no later.
UNRECORDED, ROUNDS = 0.25, 3
CONNECTIONS = 120
LARGE = 0.01  # of the mails: above what the spool keeps in its table, so that they lie in files
SENDERS = 24
# Accepted and not yet arrived: after a kill the senders go on below the first, and never go beyond the second; so mail
# comes in and goes out at the same time.
RESUME, BACKLOG = 300, 3000

CLASSES = """\
classes:
  default: {retry: {first: 500ms, factor: 2, cap: 4s, give_up: 1h}}
"""


@dataclass(slots=True)
class Mail:
    """One submission: it is sent once and never again, whatever becomes of it."""

    dot_at: float = 0.0
    accepted_at: float = 0.0
    refused: str = ""


@dataclass(slots=True)
class Arrival:
    """One delivery at the upstream, from its 354 on."""

    begun_at: float
    id: int = -1
    dot_at: float = 0.0
    answered_at: float = 0.0  # 0: never, the relay was gone
    cut_at: float = 0.0

    def awaits_reply(self, moment: float) -> bool:
        end = self.answered_at or self.cut_at
        return self.begun_at <= moment and (not end or moment < end)

    def in_flight(self, kill: Kill) -> bool:
        """Awaiting its reply, or just answered."""
        return self.awaits_reply(kill.at) or kill.recorded < self.answered_at <= kill.at


@dataclass(slots=True)
class Kill:
    at: float
    awaiting_250: int  # a final dot was sent to us and not answered
    awaiting_dot: int  # a final dot was sent by us and not answered
    recorded: float = 0.0  # what was answered by then must be on the disk


@dataclass
class Storm:
    folder: Path
    kills_wanted: int
    mails_wanted: int
    seed: int
    show: bool = False
    gentle: bool = False  # SIGTERM instead of kill -9: each must end with 0
    large: float = LARGE
    spool: Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    dead: Callable[[], None] = lambda: None  # called while it is dead, before it is started again
    mails: dict[int, Mail] = field(default_factory=dict)
    arrivals: list[Arrival] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self._sending = True
        self._go = asyncio.Event()  # the relay runs, and is not behind
        self._arrived: set[int] = set()
        self.accepted = self.damaged = self.held = 0
        self.started = 0.0

    async def run(self) -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Upstream(self), "127.0.0.1", 0, backlog=512)
        port = server.sockets[0].getsockname()[1]
        file = self.folder / "relay.yaml"
        extra = f", connections: {CONNECTIONS}"
        file.write_text(
            config_text(self.folder, port, port=free_port(), account=extra, extra=CLASSES, spool=self.spool)
        )
        self.started = time.monotonic()
        with Relay(file, env=ENV | self.env) as relay:
            self.relay = relay
            self._go.set()
            senders = [asyncio.create_task(self._send(relay.port)) for _ in range(SENDERS)]
            await self._kill_and_restart(relay)
            self._sending = False
            await asyncio.gather(*senders)
            await self._drain()
            assert await asyncio.to_thread(relay.stop) == 0
        server.close()
        self.seconds = time.monotonic() - self.started

    # -- the supervisor

    async def _kill_and_restart(self, relay: Relay) -> None:
        """A kill after each share of the mails, at a random moment within it."""
        share = self.mails_wanted / self.kills_wanted
        for _ in range(self.kills_wanted):
            await self._catch_up()
            self._go.set()
            mark = self.accepted + share * self.random.uniform(0.4, 1.6)
            await self._until(lambda: self.accepted >= mark)  # noqa: B023 - awaited here
            await asyncio.sleep(self.random.uniform(0.0, 0.05))
            self._go.clear()
            assert relay.process is not None
            now = time.monotonic()
            relay.signal(signal.SIGTERM if self.gentle else signal.SIGKILL)
            self.kills.append(Kill(now, self._awaiting_250(), self._awaiting_dot()))
            code = await asyncio.to_thread(relay.process.wait, 90)
            assert code == (0 if self.gentle else -signal.SIGKILL), relay.log()[-3000:]
            self._progress()
            await asyncio.to_thread(self.dead)
            await asyncio.to_thread(relay.start)
        self._go.set()
        await self._until(lambda: self.accepted >= self.mails_wanted)

    async def _catch_up(self) -> None:
        """Until few are behind; with so many kills that may be those that are held."""
        while self._behind > RESUME:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._until(lambda: self._behind <= RESUME), 3)
                return
            self.held += await self._release()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.005)
            assert not self.relay.ended, self.relay.log()[-3000:]

    def _awaiting_250(self) -> int:
        return sum(1 for m in self.mails.values() if m.dot_at and not m.accepted_at and not m.refused)

    def _awaiting_dot(self) -> int:
        return sum(1 for u in Upstream.open_ if u.arrival and u.arrival.dot_at and not u.arrival.answered_at)

    @property
    def _behind(self) -> int:
        return self.accepted - len(self._arrived)

    async def _drain(self) -> None:
        """Until each accepted mail has arrived, and a little longer, for a copy that is still on its way."""
        wanted = {i for i, m in self.mails.items() if m.accepted_at}
        seen, since = -1, time.monotonic()
        while time.monotonic() < since + (60 if wanted - self._arrived else 6):
            if len(self.arrivals) != seen:
                seen, since = len(self.arrivals), time.monotonic()
            await asyncio.sleep(0.5)
            if wanted - self._arrived and time.monotonic() > since + 2:
                self.held += await self._release()
        self._progress(last=True)

    async def _release(self) -> int:
        """What was in flight at three kills in a row is held as poison: an operator's word lets it go."""
        held = int(json.loads(await asyncio.to_thread(self.relay.cli, "status", "--json"))["held"])
        if held:
            await asyncio.to_thread(self.relay.cli, "queue", "release", "--error", "3 times in a row")
        return held

    def _progress(self, *, last: bool = False) -> None:
        if not self.show:
            return
        done, width = len(self.kills) / self.kills_wanted, 30
        bar = "█" * int(done * width) + "░" * (width - int(done * width))
        passed = time.monotonic() - self.started
        text = f"\r  {bar} {len(self.kills)} kills, {self.accepted} accepted, {len(self._arrived)} arrived, {passed:.0f} s  "
        print(text, end="\n" if last else "", file=sys.stderr, flush=True)

    # -- the senders

    async def _send(self, port: int) -> None:
        while self._sending:
            if self._behind > BACKLOG:
                await asyncio.sleep(0.01)
                continue
            await self._go.wait()
            # A kill in the middle of anything: connect again, and never say the same mail twice.
            with contextlib.suppress(OSError, EOFError):
                await self._session(port)

    async def _session(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def say(line: bytes, code: bytes) -> None:
            writer.write(line)
            answer = await reader.readline()
            while answer[3:4] == b"-":
                answer = await reader.readline()
            if not answer or answer.startswith(b"421"):
                raise EOFError
            if not answer.startswith(code):
                raise _Refused(answer.decode())

        mail: Mail | None = None
        try:
            await say(b"", b"220")
            await say(b"EHLO storm.test\r\n", b"250")
            for _ in range(self.random.randrange(1, 20)):
                if not self._sending or self._behind > BACKLOG:
                    break
                number = len(self.mails)
                mail = self.mails[number] = Mail()
                await say(b"MAIL FROM:<storm@example.com>\r\n", b"250")
                await say(b"RCPT TO:<user@example.com>\r\n", b"250")
                await say(b"DATA\r\n", b"354")
                large = self.random.random() < self.large
                body = b"x" * 70 + b"\r\n"
                body = (
                    body * (self.random.randrange(4000, 6000) if large else self.random.randrange(1, 40)) + b"end\r\n"
                )
                head = b"From: storm@example.com\r\nX-Storm: %d %d\r\n\r\n" % (number, zlib.crc32(body))
                mail.dot_at = time.monotonic()
                await say(head + body + b".\r\n", b"250")
                mail.accepted_at = time.monotonic()
                self.accepted += 1
        except _Refused as error:
            assert mail is not None
            mail.refused = str(error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    # -- what the ledgers say

    def _date_what_is_recorded(self) -> None:
        begun = self.started
        for kill in self.kills:
            round_ = kill.at
            for _ in range(ROUNDS):
                round_ = max((m.dot_at for m in self.mails.values() if begun < m.accepted_at <= round_), default=begun)
            kill.recorded = max(begun, min(kill.at - UNRECORDED, round_))
            begun = kill.at

    def result(self) -> Result:
        copies: dict[int, list[Arrival]] = defaultdict(list)
        for arrival in self.arrivals:
            if arrival.dot_at:
                copies[arrival.id].append(arrival)
        accepted = {i for i, m in self.mails.items() if m.accepted_at}
        # Only what the upstream answered counts as having arrived: else nobody could know of it.
        answered = {i for i, found in copies.items() if any(a.answered_at for a in found)}
        self._date_what_is_recorded()
        duplicates, unexplained, latest = 0, 0, 0.0
        for found in copies.values():
            found.sort(key=lambda a: a.begun_at)
            for earlier in found[:-1]:
                duplicates += 1
                kill = next((k for k in self.kills if earlier.in_flight(k)), None)
                if kill is None:
                    unexplained += 1
                elif earlier.answered_at:
                    latest = max(latest, kill.at - earlier.answered_at)
        return Result(
            kills=len(self.kills),
            accepted=len(accepted),
            lost=len(accepted - answered),
            duplicates=duplicates,
            unexplained=unexplained,
            awaiting=sum(1 for k in self.kills for a in self.arrivals if a.awaits_reply(k.at)),
            in_flight=sum(1 for k in self.kills for a in self.arrivals if a.in_flight(k)),
            both=sum(1 for k in self.kills if k.awaiting_250 and k.awaiting_dot),
            damaged=self.damaged,
            held=self.held,
            unknown=len(set(copies) - set(self.mails)),
            refused=sorted({m.refused for m in self.mails.values() if m.refused}),
            unanswered=sum(1 for m in self.mails.values() if m.dot_at and not m.accepted_at and not m.refused),
            latest=latest,
            seconds=self.seconds,
        )


class _Refused(Exception):
    pass


@dataclass(slots=True)
class Result:
    kills: int
    accepted: int
    lost: int
    duplicates: int
    unexplained: int
    awaiting: int
    in_flight: int
    both: int
    damaged: int
    held: int
    unknown: int
    refused: list[str]
    unanswered: int
    latest: float
    seconds: float

    def table(self) -> str:
        rows = (
            ("kills", self.kills),
            ("mails answered 250", self.accepted),
            ("of those lost", self.lost),
            ("arrived otherwise than sent", self.damaged),
            ("deliveries awaiting their reply at the kills", self.awaiting),
            (f"  with those answered up to {UNRECORDED * 1000:.0f} ms before: in flight", self.in_flight),
            ("duplicates", self.duplicates),
            ("duplicates of what was never in flight at a kill", self.unexplained),
            ("kills with a DATA and a delivery both awaiting their reply", self.both),
            ("submissions cut before their 250", self.unanswered),
            ("held as poison, in flight at three kills in a row; released", self.held),
            ("latest kill after an answer that was sent again", f"{self.latest * 1000:.0f} ms"),
            ("seconds", f"{self.seconds:.0f}"),
        )
        return "\n".join(f"  {name:60}{value:>10}" for name, value in rows)


# -- the upstream


class Upstream(asyncio.Protocol):
    """One connection: answers the final dot after 50 to 500 ms, and keeps the ledger."""

    open_: set[Upstream] = set()  # noqa: RUF012 - of this process; a storm at a time

    def __init__(self, storm: Storm) -> None:
        self._storm, self._buffer, self.arrival = storm, b"", None
        self.arrival: Arrival | None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.open_.add(self)
        transport.write(b"220 storm.test ESMTP\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self.open_.discard(self)
        if self.arrival is not None:
            self.arrival.cut_at = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self.arrival is not None and not self._buffer.endswith(b"\r\n.\r\n"):
            return  # the relay says nothing after the final dot until it is answered
        while self._buffer:
            if self.arrival is not None:
                content, dot, rest = self._buffer.partition(b"\r\n.\r\n")
                if not dot:
                    return
                self._buffer = rest
                self._arrived(content)
            else:
                line, end, rest = self._buffer.partition(b"\r\n")
                if not end:
                    return
                self._buffer = rest
                self._command(line[:4].upper())

    def _command(self, verb: bytes) -> None:
        if verb == b"DATA":
            self.arrival = Arrival(time.monotonic())
            self._storm.arrivals.append(self.arrival)
        reply = {b"EHLO": b"250-storm.test\r\n250 PIPELINING", b"DATA": b"354 go on", b"QUIT": b"221 bye"}
        self._transport.write(reply.get(verb, b"250 ok") + b"\r\n")
        if verb == b"QUIT":
            self._transport.close()

    def _arrived(self, content: bytes) -> None:
        arrival = self.arrival
        assert arrival is not None
        arrival.dot_at = time.monotonic()
        head, _, body = content.partition(b"\r\n\r\n")
        number, check = head.partition(b"X-Storm: ")[2].partition(b"\r\n")[0].split()
        arrival.id = int(number)
        self._storm.damaged += zlib.crc32(body + b"\r\n") != int(check)
        asyncio.get_running_loop().call_later(random.uniform(*DELAYS), self._answer, arrival)

    def _answer(self, arrival: Arrival) -> None:
        self.arrival = None
        if self._transport.is_closing():
            return  # whoever sent it is dead
        arrival.answered_at = time.monotonic()
        self._storm._arrived.add(arrival.id)
        self._transport.write(b"250 2.0.0 kept\r\n")
