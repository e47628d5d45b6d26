"""Who may relay, in the real process: no mail of a stranger, whatever the recipient looks like and however he comes in."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from certificates import Authority, authority
from front import plain
from rig import ENV, Process, process

__all__ = ["authority"]

RECIPIENTS = [
    "user@us.example", "user@elsewhere.example", "a%elsewhere.example@us.example", "b@elsewhere.example@us.example",
    "@us.example:b@elsewhere.example", '"b@elsewhere.example"@us.example', "us.example!b", "b@[192.0.2.1]",
]  # fmt: skip
# name -> (which listener, from where, what it says first, does it log in, may it send)
CLIENTS = {
    "local": ("local", "127.0.0.1", b"", False, True),
    "in the local network": ("lan", "127.0.0.2", b"", False, True),
    "remote": ("lan", "127.0.0.3", b"", False, False),
    "remote, asked for a login": ("login", "127.0.0.3", b"", False, False),
    "remote, logged in": ("login", "127.0.0.3", b"", True, True),
    "behind a balancer, known": ("proxy", "127.0.0.1", b"PROXY TCP4 10.1.2.3 127.0.0.1 5 25\r\n", False, True),
    "behind a balancer, unknown": ("proxy", "127.0.0.1", b"PROXY TCP4 192.0.2.9 127.0.0.1 5 25\r\n", False, False),
    "behind a balancer, mapped": ("proxy", "127.0.0.1", b"PROXY TCP6 ::ffff:192.0.2.9 ::1 5 25\r\n", False, False),
    "who pretends to be a balancer": ("lan", "127.0.0.3", b"PROXY TCP4 127.0.0.2 127.0.0.1 5 25\r\n", False, False),
    "no balancer at all": ("proxy", "127.0.0.3", b"PROXY TCP4 10.1.2.3 127.0.0.1 5 25\r\n", False, False),
    "mapped": ("dual", "127.0.0.2", b"", False, True),
    "mapped, remote": ("dual", "127.0.0.3", b"", False, False),
    "unix": ("unix", "", b"", False, True),
}


@pytest.fixture(scope="module")
def relay(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, dict[str, object]]]:
    folder = tmp_path_factory.mktemp("open")
    tls = f"{{mode: starttls, certificate: {authority.certificate}, key: {{file: {authority.key}}}}}"
    file = folder / "relay.yaml"
    file.write_text(
        f"""hostname: us.example
admin: {{socket: {folder}/admin.sock, address: null}}
spool: {{path: {folder}/spool/spool.db, reserve: 1MB}}
routes: [{{name: all, hold: true}}]
users: {{shop: {{password: {{env: SHOP_PASSWORD}}}}}}
listen:
  - {{name: local, address: "127.0.0.1:0"}}
  - {{name: lan, address: "0.0.0.0:0", clients: [127.0.0.2/32]}}
  - {{name: login, address: "0.0.0.0:0", auth: required, tls: {tls}}}
  - {{name: proxy, address: "0.0.0.0:0", clients: [10.0.0.0/8], proxy: [127.0.0.1/32]}}
  - {{name: dual, address: "systemd:dual", clients: [127.0.0.2/32]}}
  - {{name: unix, address: "systemd:unix"}}
"""
    )
    dual = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(str(folder / "smtp.sock"))
    unix.listen()
    with dual, unix, process(file, {"dual": dual, "unix": unix}, {"SHOP_PASSWORD": "right"}) as made:
        ports = made.ports()
        names = ("local", "lan", "login", "proxy", "dual")
        yield made, dict(zip(names, ports, strict=False)) | {"unix": str(folder / "smtp.sock")}
        made.signal()
        assert made.wait() == 0
        assert "session_error" not in made.log and "Traceback" not in made.log


class Talk:
    """One blocking client."""

    def __init__(self, where: object, source: str, first: bytes) -> None:
        if isinstance(where, str):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(where)
        else:
            assert isinstance(where, int)
            self.sock = socket.create_connection(("127.0.0.1", where), 60, source_address=(source, 0))
        self.sock.settimeout(60)
        self.sock.sendall(first)
        self.lines = self.sock.makefile("rb")

    def reply(self) -> int:
        with contextlib.suppress(ConnectionError):
            while line := self.lines.readline():
                if line[3:4] == b" ":
                    return int(line[:3])
        return 0

    def say(self, line: str) -> int:
        try:
            self.sock.sendall(line.encode() + b"\r\n")
            return self.reply()
        except ConnectionError:
            return 0

    def secure(self, context: ssl.SSLContext) -> None:
        assert self.say("STARTTLS") == 220
        self.sock = context.wrap_socket(self.sock, server_hostname="127.0.0.1")
        self.lines = self.sock.makefile("rb")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.lines.close()
            self.sock.close()


@pytest.mark.parametrize("who", CLIENTS)
def test_the_matrix(relay: tuple[Process, dict[str, object]], authority: Authority, who: str) -> None:
    made, where = relay
    listener, source, first, logs_in, may = CLIENTS[who]
    before = len(made.json("queue", "list"))
    codes = {}
    for recipient in RECIPIENTS:
        client = Talk(where[listener], source, first)
        try:
            client.reply()
            client.say("EHLO x")
            if logs_in:
                client.secure(authority.client())
                client.say("EHLO x")
                assert client.say("AUTH PLAIN " + plain("shop", "right")) == 235
            said = [client.say(line) for line in ("MAIL FROM:<a@b.example>", f"RCPT TO:<{recipient}>", "DATA")]
            said.append(client.say("Subject: x\r\n\r\nx\r\n.") if said[-1] == 354 else 0)
            codes[recipient] = said
        finally:
            client.close()
    taken = {recipient for recipient, said in codes.items() if said[-1] == 250}
    kept = made.json("queue", "list")
    assert len(kept) - before == len(taken)
    if may:
        assert {"user@us.example", "user@elsewhere.example", "@us.example:b@elsewhere.example"} <= taken, codes
        assert "us.example!b" not in taken  # it has no domain
    else:
        assert taken == set(), codes
        assert not any(354 in said for said in codes.values()), codes


@pytest.mark.parametrize(
    ("listen", "why"),
    [
        ('{address: "0.0.0.0:0"}', "would relay for everybody"),
        ('{address: "[::]:0"}', "would relay for everybody"),
        ('{address: "0.0.0.0:0", auth: optional}', "would relay for everybody"),
        ('{address: "127.0.0.1:0", proxy: [127.0.0.1]}', "would relay for everybody"),
        ('{address: "0.0.0.0:0", clients: [0.0.0.0/1, 128.0.0.0/1]}', "together these are everybody"),
    ],
)
def test_beyond_loopback_for_everybody_does_not_start(tmp_path: Path, listen: str, why: str) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(f"routes: [{{hold: true}}]\nlisten: [{listen}]\nadmin: {{address: null}}\n")
    done = subprocess.run(
        [sys.executable, "-m", "relay", "serve", "--config", str(file)],
        capture_output=True, text=True, timeout=120, check=False, env=ENV,
    )  # fmt: skip
    assert done.returncode == 78
    assert why in done.stderr and str(file) in done.stderr and "Traceback" not in done.stderr


# -- sockets of systemd


def ended(file: Path, sockets: dict[str, socket.socket]) -> tuple[int, str]:
    made = Process(file, sockets)
    try:
        return made.wait(), made.log
    finally:
        made.close()


def activated(folder: Path, more: str = "") -> Path:
    file = folder / "relay.yaml"
    file.write_text(
        f"admin: {{socket: {folder}/admin.sock, address: null}}\nspool: {{path: {folder}/spool.db, reserve: 1MB}}\n"
        f"routes: [{{hold: true}}]\nlisten: [{{name: handed, address: 'systemd:smtp'{more}}}]\n"
    )
    return file


def test_a_socket_with_another_name_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given:
        code, log = ended(activated(tmp_path), {"other": given})
        assert (code, log.splitlines()[-1]) == (
            69,
            "relay: listener handed: systemd handed over no socket named smtp; there is other",
        )


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_a_socket_beyond_loopback_for_everybody_is_refused(tmp_path: Path, address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as given:
        code, log = ended(activated(tmp_path), {"smtp": given})
        assert code == 69 and "would relay for everybody" in log.splitlines()[-1]
        file = activated(tmp_path, ", auth: required")
        file.write_text(file.read_text() + f"users: {{shop: {{password: {{file: {file}}}}}}}\n")
        code, log = ended(file, {"smtp": given})
        assert code == 69 and "in clear" in log.splitlines()[-1]


def test_a_datagram_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as given:
        given.bind(("127.0.0.1", 0))
        code, log = ended(activated(tmp_path), {"smtp": given})
        assert code == 69 and "no stream socket" in log.splitlines()[-1]


def test_a_socket_that_no_listener_names_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as given, socket.create_server(("127.0.0.1", 0)) as other:
        made = Process(activated(tmp_path), {"smtp": given, "other": other})
        try:
            made.ready()
            assert "event=socket_unused descriptor=other" in made.log
        finally:
            made.close()
