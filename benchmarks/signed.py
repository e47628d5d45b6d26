"""Every message signed by RSA-2048, relaxed/relaxed: the relay, and Postfix with OpenDKIM, with the same key.

What arrives before the clock starts is kept and looked into: each message must be signed, and the signatures of some must
verify. What arrives afterwards is only counted, as in the other modes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import dkim

from benchmarks import opendkim, peers
from benchmarks.loads import Load, Sink, Stuck, drive
from benchmarks.peers import Running
from relay.signing import keys
from relay.signing.key import SigningKey

DOMAIN, SELECTOR, SECOND = "example.org", "s1", "s2"
VERIFIED = 5  # messages of a run

Keys = dict[str, SigningKey]  # by selector


def _entries(folder: Path, found: Keys) -> str:
    """`signing` of the relay's configuration."""
    lines = ["signing:"]
    for selector, key in found.items():
        file = folder / f"{selector}.pem"
        file.touch(0o600)
        file.write_text(key.pem())
        lines.append(f"  - {{domain: {DOMAIN}, selector: {selector}, key: {{file: {file}}}}}")
    return "\n".join(lines) + "\n"


@contextmanager
def relay(folder: Path, sink: int, found: Keys) -> Iterator[Running]:
    home = folder / "relay"
    with peers.relay_with(home, peers.plain(home, sink) + _entries(folder, found)) as running:
        yield running


@contextmanager
def postfix(folder: Path, sink: int, found: Keys) -> Iterator[Running]:
    if why := opendkim.lacks():
        raise Stuck(why)
    with (
        opendkim.signs(folder / "opendkim", DOMAIN, SELECTOR, found[SELECTOR].pem()) as settings,
        peers.postfix(folder / "postfix", sink, **settings) as running,
    ):
        yield running


Start = Callable[[Path, int, Keys], AbstractContextManager[Running]]
STARTERS: dict[str, Start] = {"relay": relay, "postfix": postfix}


def messages(kept: str) -> list[bytes]:
    """Those that smtp-sink has kept in one file, as they arrived: what it puts before each is taken away again."""
    found = []
    for text in re.split(r"(?m)^X-Client-Addr: ", kept)[1:]:
        _, own, rest = text.partition("Received: ")
        lines = (own + rest).split("\n")
        end = next(n for n, line in enumerate(lines[1:], 1) if not line.startswith("\t"))
        found.append("\r\n".join(lines[end:]).encode())
    return found


def prove(arrived: list[bytes], found: Keys) -> None:
    """Each has one signature of each key, and those of some messages are good. Raises Stuck."""
    records = {f"{s}._domainkey.{DOMAIN}.".encode(): key.record.encode() for s, key in found.items()}
    for number, message in enumerate(arrived):
        signatures = len(re.findall(rb"(?mi)^DKIM-Signature:", message.partition(b"\r\n\r\n")[0]))
        if signatures != len(found):
            raise Stuck(f"a message arrived with {signatures} signatures instead of {len(found)}")
        if number < VERIFIED and not all(_good(message, n, records) for n in range(signatures)):
            raise Stuck("a message arrived with a signature that is not good")


def _good(message: bytes, number: int, records: dict[bytes, bytes]) -> bool:
    try:
        return bool(dkim.DKIM(message).verify(number, dnsfunc=lambda name, timeout=5: records.get(name)))
    except dkim.DKIMException:
        return False


def rates(load: Load, *, ed25519: bool = False) -> Callable[[str, Path, int], dict[str, float]]:
    """{accepted, relayed} in messages a second; with `ed25519` each has a second signature."""

    def measure(peer: str, folder: Path, count: int) -> dict[str, float]:
        folder.mkdir()
        found: Keys = {SELECTOR: keys.generate("rsa")}
        if ed25519:
            found[SECOND] = keys.generate("ed25519")
        first = max(load.sessions, count // 10)
        with Sink() as sink, STARTERS[peer](folder, sink.port, found) as running:
            with sink.keeping(folder / "kept") as kept:
                drive(running.port, sink, load, first)
            arrived = messages(kept.read_text("utf-8"))
            if len(arrived) != first:
                raise Stuck(f"{len(arrived)} of {first} messages were kept")
            prove(arrived, found)
            accepted, relayed = drive(running.port, sink, load, count)
        return {"accepted": accepted, "relayed": relayed}

    return measure
