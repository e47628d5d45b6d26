#!/usr/bin/env python3
"""Whether the real process holds its limits, as counted by the sink, and whether it uses them up.

    .venv/bin/python -m benchmarks.limits [--short]

More mail waits than the limit lets go. `most`: what came in any span of the limit's period, by the time at which the sink
accepted MAIL; `used`: how much came of what the limit lets go while mail waited. Each limit once as the account's and once as
a rule of `limits`. The day's one is held over two restarts, by SIGTERM and by SIGKILL: what was in flight at the SIGKILL stays
counted, so that so much less may come.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.service.counting import Counting, hand_in, numbered
from tests.service.support import Relay, config_text

CONNECTIONS = 10
USED = 0.97  # of what the limit lets go: less is a fault


@dataclass(frozen=True)
class Held:
    """What was seen of one limit."""

    limit: str
    where: str
    seconds: float
    most: int  # in any span of its period
    allowed: int
    came: int
    expected: int  # in so many seconds
    lost: int = 0  # in flight at a SIGKILL: counted, and not sent

    @property
    def used(self) -> float:
        return self.came / self.expected

    @property
    def kept(self) -> bool:
        return self.most <= self.allowed + 1 and (self.used >= USED or self.came + self.lost >= self.expected - 1)


def write_config(folder: Path, sink: int, limit: str, where: str) -> Path:
    """`where`: the account's, or a rule's."""
    account = f", connections: {CONNECTIONS}" + (f", limits: [{limit}]" if where == "account" else "")
    extra = f"dsn: {{to: none}}\nlimits: [{{name: one, rate: {limit}}}]\n" if where == "rule" else "dsn: {to: none}\n"
    file = folder / "relay.yaml"
    file.write_text(config_text(folder, sink, account=account, extra=extra))
    return file


def steady(
    folder: Path,
    limit: str,
    where: str,
    count: int,
    period: float,
    seconds: float,
    expected: int = 0,
    patience: float = 0.0,
) -> Held:
    """For so many seconds. `expected`: in that time; 0: they are whole periods.

    `patience`: so many seconds more, until a span of that length was used up: a machine that stands still in between, or hands
    in slowly, is none of the limit's faults.
    """
    expected, span = expected or round(count * seconds / period), max(seconds, period)
    with Counting() as sink, Relay(write_config(folder, sink.port, limit, where)) as relay:
        hand_in(relay.port, list(numbered(round(expected * (1 + patience / span)) + 2 * count)))
        begin = min(sink.mails)
        end = time.monotonic() + patience
        time.sleep(max(0.0, begin + seconds + 0.1 - time.monotonic()))
        while sink.most(span) < USED * expected and time.monotonic() < end:
            time.sleep(0.1)
        found = Held(limit, where, seconds, sink.most(period), count, sink.most(span), expected)
        relay.kill()
    return found


def restarted(folder: Path, count: int, where: str) -> Held:
    """A day's limit. The process is stopped once, and killed once, while it sends."""
    limit, begin = f"{count}/d", time.monotonic()
    # So slow that a start which takes its time does not find all of it gone; nor shall handing them in.
    with Counting(delay=0.6, held=True) as sink, Relay(write_config(folder, sink.port, limit, where)) as relay:
        hand_in(relay.port, list(numbered(count + count // 5)))
        sink.release()
        sink.wait(max(len(sink.taken), count // 4), 120)
        assert relay.stop() == 0
        relay.start()
        sink.wait(max(len(sink.taken), count // 2), 120)
        relay.kill()
        assert len(sink.taken) < count, "it was too fast to be killed before its limit"
        sink.delay = 0.15
        relay.start()
        # At most one a connection was in flight. Only then is it asked whether more comes: a start may take its time.
        sink.wait(count - CONNECTIONS, 120)
        sink.quiet(4.0, 300)
        # By the final dot: a stop drops a session after MAIL and before it, and gives back what that was counted for.
        came = len(sink.taken)
        seconds = time.monotonic() - begin
        relay.stop()
    return Held(limit, where, seconds, came, count, came, count, count - came)


def measure(folder: Path, short: bool) -> Iterator[Held]:
    for number, where in enumerate(("account", "rule")):
        for name, make in (
            (
                "second",
                lambda f, w: steady(f, "20/s" if short else "14/s", w, 20 if short else 14, 1, 5 if short else 60),
            ),
            ("minute", lambda f, w: steady(f, "100/min", w, 100, 60, 180)),
            ("day", lambda f, w: restarted(f, 300 if short else 2000, w)),
        ):
            if short and name == "minute":
                continue
            mine = folder / f"{number}-{name}"
            mine.mkdir()
            yield make(mine, where)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="as the tests do")
    given = parser.parse_args()
    print("| limit | of | seconds | most | came | expected | in flight when killed | used | held |")
    print("|---|---|---:|---:|---:|---:|---:|---:|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="limits-") as name:
        for h in measure(Path(name), given.short):
            print(
                f"| {h.limit} | {h.where} | {h.seconds:.0f} | {h.most} | {h.came} | {h.expected} | {h.lost} "
                f"| {h.used:.1%} | {'yes' if h.kept else 'NO'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
