"""A queue of mail through each profile of the sink: nothing lost, nothing doubled, hardly a complaint, no time wasted.

    python -m benchmarks.providers [PROFILE ...] [--count 2000] [--speed 1] [--bare] [--json]

The relay and the sink are processes of their own. The account has the preset of that name, with the sink's address; `--bare`
leaves the preset out, so that the pace must be learnt. With `--speed N` the sink's clock runs N times faster, and the
preset's limits are put so much higher.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import smtplib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from relay.config.presets import load_preset, names
from relay.policy.rate import PERIODS, Rate

PROFILES = ("ses", "greylist", "slow", "flaky", "gmail", "microsoft365")
COLUMNS = (("sent", 6), ("lost", 6), ("doubled", 9), ("seconds", 9), ("least", 8), ("ratio", 7), ("complaints", 12),
           ("after 1 min", 13), ("share", 8), ("failed", 8), ("tries", 7))  # fmt: skip


@dataclass
class Run:
    """One profile's figures. `least`: seconds that its buckets, or its waits, leave no way below."""

    profile: str
    sent: int
    arrived: int
    doubled: int
    seconds: float
    least: float
    complaints: int
    complaints_after_minute: int
    share_after_minute: float
    failed: int
    most_attempts: int

    @property
    def lost(self) -> int:
        return self.sent - self.arrived

    @property
    def ratio(self) -> float:
        return self.seconds / self.least if self.least else 0.0


def least_of(profile: str, count: int, told: list[dict[str, Any]], connections: int, speed: float) -> float:
    """Seconds: the slowest bucket's minimum; a greylist's wait after the last was offered; the delays of a slow final dot."""
    summary = told[-1]
    buckets = max((b["minimum"] for b in summary["buckets"]), default=0.0)
    if profile == "greylist":
        offered = [event["time"] for event in told if event["event"] == "greylisted"]
        return 60.0 / speed + max(offered) - min(offered)
    if profile == "slow":
        return count * 2.0 / connections / speed
    return float(buckets)


def account(profile: str, port: int, speed: float, bare: bool) -> str:
    """Its lines in the configuration."""
    login = ", username: app, password: {env: SINK_PASSWORD}" if profile in ("ses", "gmail", "microsoft365") else ""
    if bare or profile not in names():
        return f"host: 127.0.0.1, port: {port}, tls: none{login}"
    limits = [faster(rate, speed) for rate in load_preset(profile).limits]
    said = f", limits: [{', '.join(limits)}]" if limits and speed != 1 else ""
    return f"preset: {profile}, host: 127.0.0.1, port: {port}, tls: none{login}{said}"


def faster(rate: Rate, speed: float) -> str:
    """The limit by a clock that runs so much faster: a shorter window where there is one, else more in the same."""
    units = {seconds: name for name, seconds in PERIODS.items()}
    unit = " messages" if rate.unit == "messages" else ""
    if rate.period / speed in units:
        return f"{rate.count}{unit}/{units[rate.period / speed]}"
    return f"{round(rate.count * speed)}{unit}/{units[rate.period]}"


@contextlib.contextmanager
def process(output: Path, *arguments: str, **environment: str) -> Iterator[None]:
    """A verb of the relay, ended at the end of the block."""
    with output.open("wb") as out:
        command = [sys.executable, "-m", "relay", *arguments]
        made = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | environment)
    try:
        yield
    finally:
        made.send_signal(signal.SIGTERM)
        try:
            made.wait(60)
        except subprocess.TimeoutExpired:
            made.kill()
            made.wait()


def said(output: Path, pattern: str) -> int:
    """The port that a process says it listens on."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        if found := re.search(pattern, output.read_text()):
            return int(found[1])
        time.sleep(0.05)
    raise SystemExit(f"not said within 90 s: {pattern}\n{output.read_text()[-2000:]}")


def run(profile: str, count: int, speed: float, bare: bool, folder: Path) -> Run:
    events, log, file = folder / "sink.jsonl", folder / "relay.log", folder / "relay.yaml"
    sink = ["sink", "--listen", "127.0.0.1:0", "--keep", str(folder / "kept"), "--profile", profile, "--json"]
    with process(events, *sink, "--speed", str(speed)):
        port = said(events, r"127\.0\.0\.1:(\d+)")
        file.write_text(
            f"""hostname: relay.test
listen: [{{name: local, address: "127.0.0.1:0"}}]
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool/spool.db, reserve: 1MB}}
dsn: {{to: none}}
accounts:
  main: {{{account(profile, port, speed, bare)}}}
routes: [{{via: main}}]
"""
        )
        with process(log, "serve", "--config", str(file), SINK_PASSWORD="secret"):
            listening = said(log, r"event=listening .*port=(\d+)")
            began = time.monotonic()
            submit(listening, count)
            rows = settled(folder, count, began)
    told = [json.loads(line) for line in events.read_text().splitlines()]
    summary = told[-1]
    times = [event["time"] for event in told[:-1] if event["event"] != "listening"]
    connections = load_preset(profile).connections if profile in names() and not bare else None
    return Run(
        profile,
        count,
        len(arrived(folder / "kept")),
        len(summary["doubled"]),
        round(max(times) - min(times), 1),
        round(least_of(profile, count, told, connections or 10, speed), 1),
        sum(r["count"] for r in summary["replies"]),
        sum(r["after_minute"] for r in summary["replies"]),
        sum(r["share_after_minute"] for r in summary["replies"]),
        sum(row["state"] == "failed" for row in rows),
        max(row["attempts"] for row in rows),
    )


def arrived(kept: Path) -> set[str]:
    """The Message-IDs of all that arrived."""
    found = set()
    for file in kept.glob("*.eml"):
        if match := re.search(rb"(?im)^Message-ID: *<([^>]+)>", file.read_bytes()):
            found.add(match[1].decode())
    return found


def submit(port: int, count: int) -> None:
    """One message to one recipient each, in one session."""
    with smtplib.SMTP("127.0.0.1", port, timeout=120) as smtp:
        for i in range(count):
            text = f"From: app@example.com\r\nMessage-ID: <run-{i}@example.com>\r\nSubject: {i}\r\n\r\nhello\r\n"
            smtp.sendmail("app@example.com", [f"r{i}@example.net"], text)


def settled(folder: Path, count: int, began: float) -> list[dict[str, Any]]:
    """Waits until nothing waits; returns a row for each recipient."""
    while waiting := len(listed(folder)):
        show(f"\r  {count - waiting}/{count}, {time.monotonic() - began:.0f} s ")
        time.sleep(min(10.0, max(1.0, waiting / 100)))
    return listed(folder, "--all")


def listed(folder: Path, *filters: str) -> list[dict[str, Any]]:
    ask = [sys.executable, "-m", "relay", "queue", "list", "--json", *filters]
    env = os.environ | {"RELAY_ENDPOINT": str(folder / "admin.sock")}
    rows: list[dict[str, Any]] = json.loads(subprocess.run(ask, capture_output=True, env=env, check=True).stdout)
    return rows


def show(text: str) -> None:
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.providers", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("profiles", nargs="*", default=list(PROFILES), metavar="PROFILE")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--speed", type=float, default=1.0)
    parser.add_argument("--bare", action="store_true", help="without the preset")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.json:
        print(f"{'profile':14}" + "".join(f"{name:>{width}}" for name, width in COLUMNS))
    for profile in options.profiles:
        with tempfile.TemporaryDirectory(prefix="providers-") as folder:
            found = run(profile, options.count, options.speed, options.bare, Path(folder))
        if options.json:
            print(json.dumps(asdict(found) | {"lost": found.lost, "ratio": round(found.ratio, 3)}), flush=True)
        else:
            print(
                f"\r{found.profile:14}{found.sent:6}{found.lost:6}{found.doubled:9}{found.seconds:9.1f}{found.least:8.1f}"
                f"{found.ratio:7.2f}{found.complaints:12}{found.complaints_after_minute:13}{found.share_after_minute:8.2%}"
                f"{found.failed:8}{found.most_attempts:7}",
                flush=True,
            )


if __name__ == "__main__":
    main()
