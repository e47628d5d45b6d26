"""One client's hard work leaves the event loop to the others now and then; counted in turns, not in seconds."""

from __future__ import annotations

import asyncio
from pathlib import Path

from conftest import until
from fakes import Upstream
from rig import running, submit, write_config

from relay import clock
from relay.intake import Envelope
from relay.policy.classes import DEFAULT_CLASS
from relay.policy.routing import Facts
from relay.recipient import State
from relay.reply import Reply, Result, Stage
from relay.scheduler.record import SLICE, TELLING
from relay.settle import Outcome
from relay.spool import Ask
from relay.spool.writer import COMMITS

RULES = "\n".join(
    f"  - {{name: r{i}, match: {{recipient: '*@d{i}.example', from: '*@s{i}.example'}}, via: main}}" for i in range(100)
)


class Turns:
    """Counts how often the loop came round while something ran."""

    def __init__(self) -> None:
        self.count = 0
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    async def stop(self) -> int:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        return self.count


async def test_a_thousand_recipients_under_a_hundred_rules(tmp_path: Path) -> None:
    async with Upstream() as up:
        file = write_config(
            tmp_path, {"main": f"port: {up.port}, tls: none"}, routes=RULES + "\n  - {name: rest, hold: true}"
        )
        async with running(file) as rig:
            config = rig.app.config
            intake = rig.app.intake
            envelope = Envelope(config.listen[0], "127.0.0.1", sender="a@b.example")
            envelope.recipients = [f"u{i}@x{i}.example" for i in range(1000)]
            turns = Turns()
            made = await intake.recipients(
                config, envelope, Facts("a@b.example", "", from_="a@b.example"), DEFAULT_CLASS, "", 0.0, 1
            )
            assert len(made) == 1000
            assert await turns.stop() >= 10


async def test_pipelined_commands_by_the_hundred(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        await reader.readline()
        # One that is no command for which a client is cut after a hundred.
        writer.write(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n" + b"RCPT TO:<c@d.example>\r\n" * 900)
        writer.write(
            (b"RSET\r\n" + b"MAIL FROM:<a@b.example>\r\n" + b"RCPT TO:<c@d.example>\r\n" * 900) * 4 + b"QUIT\r\n"
        )
        other = asyncio.ensure_future(submit(rig.port, [("a@b.example", ("c@d.example",), b"Subject: t\r\n\r\nx\r\n")]))
        answered = await asyncio.wait_for(reader.read(-1), 120)
        assert answered.count(b"250 2.1.5 Ok\r\n") == 5 * 900
        assert answered.endswith(b"221 2.0.0 Bye\r\n")
        assert await other
        writer.close()
        await writer.wait_closed()


async def test_a_storm_of_refusals_is_recorded_in_slices(tmp_path: Path) -> None:
    """Each is told its sender in the same transaction: thousands at once would take memory, and time that others wait for."""
    count = 3 * SLICE
    file = write_config(tmp_path, {"main": "port: 9, tls: none"}, dsn="to: sender")
    async with running(file) as rig:
        await rig.app.supervisor.stop("dispatch")
        await rig.send_many([("a@b.example", ("c@d.example",), b"Subject: t\r\n\r\nx\r\n")] * count)
        (lane,) = rig.app.spool.lanes.values()
        claims, _ = await rig.app.spool.claim([Ask(lane, count, clock.now())])
        before = COMMITS.values[()]
        refused = Outcome(Result.HARD, "main", Stage.RCPT, Reply(550, "no such user", "5.1.1"))
        for claim in claims:
            rig.app.scheduler.recorder.settle(claim, [(r, refused) for r in claim.recipients])
        await until(lambda: rig.app.spool.counts[State.FAILED] == count)
        assert COMMITS.values[()] - before >= count // TELLING
        assert len(rig.said("reported")) == count
