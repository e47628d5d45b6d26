"""Knot DNS in a folder, authoritative for the zones that it is given."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import pytest

from tests.service.support import free_port

PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
ZONE = """$ORIGIN {origin}
$TTL {ttl}
@ SOA ns hostmaster 1 60 60 60 {ttl}
@ NS ns
ns A 127.0.0.1
"""

# One key for a zone, of the algorithm that everybody validates (RFC 8624 §3.1).
POLICY = """policy:
  - id: signed
    algorithm: ecdsap256sha256
    single-type-signing: on
"""


class Knot:
    """knotd in a folder, for the zones that it is given."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program, self.folder, self.port = program, folder, 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serve(self, **zones: list[str]) -> None:
        """`example_com=["x TXT y", …]`: the records of example.com; anew, if it runs."""
        self.run({name.replace("_", "."): lines for name, lines in zones.items()})

    def run(
        self, zones: Mapping[str, Sequence[str]], signed: Collection[str] = (), port: int = 0, ttl: int = 1
    ) -> None:
        """The records of each zone by its name; `.` is the root. `signed`: those that Knot signs, with keys that it keeps in
        its folder, so that they outlive a further call. `ttl`: seconds, also of what is not there."""
        self.stop()
        self.port = port or free_port()
        written = []
        for name, lines in zones.items():
            origin = name.rstrip(".") + "."
            file = self.folder / f"{name.rstrip('.') or 'root'}.zone"
            file.write_text(ZONE.format(origin=origin, ttl=ttl) + "\n".join(lines) + "\n")
            written.append(
                f"  - domain: {origin}\n    file: {file}\n    zonefile-sync: -1\n    journal-content: none\n"
                + ("    dnssec-signing: on\n    dnssec-policy: signed\n" if name in signed else "")
            )
        config = self.folder / "knot.conf"
        config.write_text(
            f"server:\n    rundir: {self.folder}\n    listen: 127.0.0.1@{self.port}\n"
            "    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n"
            f"database:\n    storage: {self.folder}/db\n{POLICY if signed else ''}zone:\n" + "".join(written)
        )
        (self.folder / "db").mkdir(exist_ok=True)  # for keys; it makes none itself
        with (self.folder / "knot.log").open("wb") as log:
            self._process = subprocess.Popen([self._program, "-c", str(config)], stdout=log, stderr=log)
        for name in zones:
            self._until_it_answers(name)

    def _until_it_answers(self, origin: str) -> None:
        question = dns.message.make_query(origin, "SOA")
        end = time.monotonic() + 60
        while True:
            with contextlib.suppress(dns.exception.Timeout, OSError):
                if dns.query.udp(question, "127.0.0.1", port=self.port, timeout=0.2).answer:
                    return
            assert time.monotonic() < end, (self.folder / "knot.log").read_text()

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(60)
            self._process = None


@contextlib.contextmanager
def knot(folder: Path) -> Iterator[Knot]:
    """Skips the test where there is no knotd."""
    program = shutil.which("knotd", path=PATH)
    if program is None:
        pytest.skip("no knotd: tests/service/install-programs")
    folder.mkdir()
    made = Knot(program, folder)
    try:
        yield made
    finally:
        made.stop()
