"""A DNS of the tests' own, from the root down: Knot DNS, which signs, and Unbound in front of it, which validates.

    with world(folder, {"example.com": signed("@ MX 10 mx", "mx A 127.0.1.1"), "example.net": plain("@ MX 0 .")}) as dns:
        ... dns.server  # 127.0.0.1:PORT, for `dns: {servers: […], trust_ad: true}`

The root zone is ours and signed, and its key is Unbound's trust anchor. Each zone is delegated by the nearest one above it. So a
signed zone is proved, one that is not signed is proved to be so, and whatever is below that is not proved.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import dns.dnssec
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import pytest
from conftest import free_port
from knotd import PATH, Knot, knot

# `test.` and `invalid.` are answered by Unbound itself otherwise (RFC 6761 §6). What a test changes must be seen at once.
UNBOUND = """server:
    directory: "{folder}"
    username: ""
    chroot: ""
    pidfile: ""
    logfile: "{folder}/unbound.log"
    use-syslog: no
    do-daemonize: no
    num-threads: 1
    port: {port}
    interface: 127.0.0.1
    do-ip6: no
    access-control: 127.0.0.0/8 allow
    do-not-query-localhost: no
    module-config: "validator iterator"
    trust-anchor: "{anchor}"
    val-bogus-ttl: 1
    cache-max-ttl: 1
    cache-max-negative-ttl: 1
    infra-host-ttl: 1
    infra-keep-probing: yes
    local-zone: "test." nodefault
    local-zone: "invalid." nodefault
{insecure}
remote-control:
    control-enable: no
forward-zone:
    name: "."
    forward-addr: 127.0.0.1@{knot}
"""


@dataclass(frozen=True)
class Zone:
    """Lines as in a zone file, relative to the zone. A `bogus` one is signed, by another key than the zone above says."""

    lines: tuple[str, ...]
    security: Literal["signed", "plain", "bogus"] = "plain"


def signed(*lines: str) -> Zone:
    return Zone(lines, "signed")


def plain(*lines: str) -> Zone:
    return Zone(lines)


def bogus(*lines: str) -> Zone:
    return Zone(lines, "bogus")


class World:
    """Both servers. Their ports stay when the zones change."""

    def __init__(self, program: str, folder: Path, authority: Knot) -> None:
        self._program, self._folder, self.authority = program, folder, authority
        self.port = free_port()
        self._knot_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> str:
        """Of Unbound. `authority.server` is Knot's, which never says AD."""
        return f"127.0.0.1:{self.port}"

    def serve(self, zones: Mapping[str, Zone], elsewhere: Mapping[str, int] | None = None) -> None:
        """Returns when Unbound answers by these zones alone. `elsewhere`: domain -> port, on 127.0.0.1, of another server that is
        asked for it; not validated."""
        self.stop()
        elsewhere = elsewhere or {}
        lines = {".": [], **{name: list(zone.lines) for name, zone in zones.items()}}
        secured = {".", *(name for name, zone in zones.items() if zone.security != "plain")}
        # Twice: only then there are keys whose digests (DS) the zones above can name. Knot keeps them.
        self.authority.run(lines, secured, self._knot_port)
        for name, zone in zones.items():
            lines[_above(name, zones)] += self._delegation(name, zone)
        anchor = self._ds(".")[0]
        self.authority.run(lines, secured, self._knot_port)
        self._resolve(f". DS {anchor}", elsewhere)

    def _delegation(self, name: str, zone: Zone) -> list[str]:
        made = [f"{name}. NS ns.{name}.", f"ns.{name}. A 127.0.0.1"]
        if zone.security == "plain":
            return made
        digests = self._ds(name)
        if zone.security == "bogus":
            digests = [f"{text.rpartition(' ')[0]} {'0' * 64}" for text in digests]
        return made + [f"{name}. DS {text}" for text in digests]

    def _ds(self, name: str) -> list[str]:
        """Of the zone's keys, as zone files write them."""
        origin = dns.name.from_text(name)
        asked = dns.message.make_query(origin, "DNSKEY")
        found = dns.query.tcp(asked, "127.0.0.1", port=self.authority.port, timeout=30)
        return [dns.dnssec.make_ds(origin, key, "SHA256").to_text() for rrset in found.answer for key in rrset]

    def _resolve(self, anchor: str, elsewhere: Mapping[str, int]) -> None:
        config = self._folder / "unbound.conf"
        insecure = "".join(f'    domain-insecure: "{name}"\n' for name in elsewhere)
        text = UNBOUND.format(
            folder=self._folder, port=self.port, anchor=anchor, insecure=insecure, knot=self._knot_port
        )
        for name, port in elsewhere.items():
            text += f'forward-zone:\n    name: "{name}"\n    forward-addr: 127.0.0.1@{port}\n'
        config.write_text(text)
        with (self._folder / "unbound.out").open("wb") as out:
            self._process = subprocess.Popen([self._program, "-d", "-c", str(config)], stdout=out, stderr=out)
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(dns.exception.Timeout, OSError):
                if self.ask(".", "SOA", timeout=0.2).flags & dns.flags.AD:
                    return
            told = "".join(f.read_text() for f in self._folder.glob("unbound.[ol]*"))
            assert time.monotonic() < end and self._process.poll() is None, told

    def ask(self, name: str, kind: str, timeout: float = 5.0) -> dns.message.Message:
        """A question to Unbound with AD set: tell whether it is proved (RFC 6840 §5.7)."""
        question = dns.message.make_query(name, kind, flags=dns.flags.RD | dns.flags.AD)
        return dns.query.udp_with_fallback(question, "127.0.0.1", port=self.port, timeout=timeout)[0]

    def stop(self) -> None:
        """Of Unbound: no answer from then on. Knot goes on until the block ends."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


def _above(name: str, zones: Mapping[str, Zone]) -> str:
    """The nearest zone above."""
    while name:
        name = name.partition(".")[2]
        if name in zones:
            return name
    return "."


@contextlib.contextmanager
def world(folder: Path, zones: Mapping[str, Zone], elsewhere: Mapping[str, int] | None = None) -> Iterator[World]:
    """Skips the test where there is no Unbound or no Knot."""
    program = shutil.which("unbound", path=PATH)
    if program is None:
        pytest.skip("no unbound: tests/service/install-programs")
    with knot(folder) as authority:
        made = World(program, folder, authority)
        try:
            made.serve(zones, elsewhere)
            yield made
        finally:
            made.stop()
