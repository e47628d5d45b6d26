"""The servers: each is started in a folder of its own in front of a sink, takes mail on a port of loopback, and is ended.

All are null clients that send everything to the one upstream, with the settings that they are shipped with; what they must be
told is where to listen, where to keep their queue, and whither.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks import exim as debian
from benchmarks.loads import ROOT
from relay import __version__
from tests.service.postfix import Postfix
from tests.service.support import ENV, Relay, answers, find, free_port, until

TOOLS = Path(__file__).parent / "out/peers"  # what is fetched for a comparison
HARAKA = "Haraka@3"
_NPM = ("--silent", "--no-audit", "--no-fund", "--omit=optional", "--ignore-scripts")

CONFIG = """\
hostname: relay.example.org
listen:
  - {{name: local, address: "127.0.0.1:0"{door}}}
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool/spool.db}}
{users}accounts:
  sink: {{host: {host}, port: {port}, tls: {tls}}}
routes:
  - {{name: all, via: sink}}
"""


@dataclass(frozen=True)
class Running:
    port: int
    pid: int  # of the process that started the others


Start = Callable[[Path, int], AbstractContextManager[Running]]


@dataclass(frozen=True)
class Peer:
    """`lacks` installs what it may and says what is still missing, empty if nothing."""

    start: Start
    lacks: Callable[[], str]
    version: Callable[[], str]


def output(*command: str | Path, cwd: Path | None = None) -> str:
    """What a program prints, empty where it fails."""
    try:
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=ENV, cwd=cwd, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def plain(folder: Path, sink: int) -> str:
    """The configuration that is compared."""
    return CONFIG.format(folder=folder, door="", users="", host="127.0.0.1", port=sink, tls="none")


@contextmanager
def relay(folder: Path, sink: int) -> Iterator[Running]:
    with relay_with(folder, plain(folder, sink)) as running:
        yield running


@contextmanager
def relay_with(folder: Path, config: str) -> Iterator[Running]:
    """The relay under a configuration; it must end well and have nothing to complain of."""
    folder.mkdir()
    file = folder / "relay.yaml"
    file.write_text(config)
    with Relay(file) as running:
        assert running.process is not None
        yield Running(running.port, running.process.pid)
        assert running.stop() == 0, running.log()[-2000:]
        running.clean()


@contextmanager
def postfix(folder: Path, sink: int, **settings: str) -> Iterator[Running]:
    with Postfix(folder, sink, **settings) as running:
        yield Running(running.port, running.pid)


def _postfix_lacks() -> str:
    if not find("postfix"):
        return "the Debian package postfix is missing"
    return "" if os.geteuid() == 0 else "an instance of Postfix needs root"


@contextmanager
def program(command: list[str | Path], folder: Path, port: int, env: dict[str, str]) -> Iterator[Running]:
    """A server that stays in the foreground, its words in `folder`/log."""
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(c) for c in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder, env=env
        )
    try:
        until(lambda: answers(port) or process.poll() is not None, 30, f"{command[0]} answers")
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        yield Running(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# Its plugins for other people's mail ask the DNS; a null client has none of them.
_HARAKA_PLUGIN = """\
exports.hook_connect = (next, connection) => { connection.relaying = true; next() }
exports.hook_get_mx = (next) => next(OK, { exchange: '127.0.0.1', port: %d, priority: 0 })
"""


@contextmanager
def haraka(folder: Path, sink: int) -> Iterator[Running]:
    port, home = free_port(), TOOLS / "haraka/node_modules/Haraka"
    shutil.copytree(home / "config", folder / "config")
    for name in ("plugins", "queue"):
        (folder / name).mkdir()
    (folder / "config/smtp.ini").write_text(f"[main]\nlisten=127.0.0.1:{port}\n")
    (folder / "config/me").write_text("haraka.example.org\n")
    (folder / "config/plugins").write_text("null_client\n")
    (folder / "config/outbound.ini").write_text("local_mx_ok=true\n")  # it would take a server on loopback for itself
    (folder / "plugins/null_client.js").write_text(_HARAKA_PLUGIN % sink)
    command: list[str | Path] = ["node", home / "bin/haraka", "-c", folder]
    with program(command, folder, port, ENV) as running:
        yield running


def _haraka_lacks() -> str:
    if not find("npm"):
        return "npm is missing"
    folder = TOOLS / "haraka"
    folder.mkdir(parents=True, exist_ok=True)
    # A mirror may lag behind, and lack what the newest release asks for: then as it was some months ago.
    before = (datetime.now(UTC) - timedelta(days=90)).date()
    for moment in ((), (f"--before={before}",)):
        if not _haraka_version():
            output("npm", "install", "--prefix", folder, *_NPM, *moment, HARAKA)
    return "" if _haraka_version() else f"npm does not install {HARAKA}"


def _haraka_version() -> str:
    file = TOOLS / "haraka/node_modules/Haraka/package.json"
    return str(json.loads(file.read_text())["version"]) if file.exists() else ""


@contextmanager
def exim(folder: Path, sink: int) -> Iterator[Running]:
    port = free_port()
    debian.configure(folder, port, sink)
    serve = ("exim4", "-C", f"{folder}/exim.conf", "-bdf", "-q30m")
    with program(debian.enter(folder / "etc", debian.unpacked(TOOLS), *serve), folder, port, ENV) as running:
        yield running


def _exim_version() -> str:
    for package in (TOOLS / "exim").glob("exim4-daemon-light_*.deb"):
        return package.name.split("_")[1]
    return ""


PEERS = {
    "relay": Peer(relay, lambda: "", lambda: _relay_version()),
    "postfix": Peer(postfix, _postfix_lacks, lambda: output("postconf", "-h", "mail_version")),
    "haraka": Peer(haraka, _haraka_lacks, _haraka_version),
    "exim": Peer(exim, lambda: debian.lacks(TOOLS, output), _exim_version),
}
# Asked for by name and answered with a word.
NOT_COMPARED = {
    "genro": "genro-mail-proxy takes mail by HTTP and not by SMTP; its release 0.7.0 does not start either: it imports a "
    "module `tools` that it does not bring"
}


def _relay_version() -> str:
    commit = output("git", "describe", "--always", "--dirty", cwd=ROOT)
    return f"{__version__} ({commit})" if commit else __version__
