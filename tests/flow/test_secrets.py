"""Canaries in every place that a secret has, and the real process through all that happens to it: 0 are found outside."""

from __future__ import annotations

import asyncio
import base64
import http.client
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bearers import ask
from certificates import Authority
from fakes import Upstream
from front import Client, plain
from rig import ENV, Process, free_port, process, submit

from relay.listener.auth import hasher_

MESSAGE = b"Subject: t\r\n\r\nhello\r\n"
# Made-up ones: nobody's.
UPSTREAMS = {kind: f"canary-upstream-{kind}-7Qx" for kind in ("env", "file", "credential", "command")}
USERS = {kind: f"canary-user-{kind}-9Zk" for kind in ("env", "file", "credential", "command", "hash")}
TYPED = {"wrong": "canary-typed-wrong-3Jd", "stranger": "canary-typed-as-name-5Wb"}
PATHS = ("/metrics", "/healthz", "/readyz", "/v1/status", "/v1/queue", "/v1/stats", "/v1/nothing", "/v1/messages/x")


class Setting:
    """The secrets in their places, and a configuration that names these."""

    def __init__(self, folder: Path, format_: str) -> None:
        self.folder, self.vault = folder, folder / "vault"
        self.vault.mkdir(mode=0o700)
        self.authority = Authority(self.vault)
        self.env = {"CREDENTIALS_DIRECTORY": str(self.vault), "PYTHONFAULTHANDLER": "1"}
        for who, secrets in (("up", UPSTREAMS), ("user", USERS)):
            for kind, secret in secrets.items():
                (self.vault / f"{who}-{kind}").write_text(secret + "\n")
            self.env[f"{who.upper()}_SECRET"] = secrets["env"]
        self.hash = hasher_().hash(USERS["hash"])
        self.log = f"log: {{format: {format_}}}"
        self.secrets = {**UPSTREAMS, **{f"user {k}": v for k, v in USERS.items()}, **TYPED}
        self.secrets["hash"] = self.hash.rsplit("$", 1)[1]
        key = self.authority.key.read_text().splitlines()[1:-1]
        self.secrets |= {f"key line {i}": line for i, line in enumerate(key)}

    def reference(self, who: str, kind: str) -> str:
        file = self.vault / f"{who}-{kind}"
        return {
            "env": f"{{env: {who.upper()}_SECRET}}",
            "file": f"{{file: {file}}}",
            "credential": f"{{credential: {file.name}}}",
            "command": f"{{command: [cat, {file}]}}",
        }[kind]

    def write(self, port: int, more: str = "") -> Path:
        accounts = "\n".join(
            f"  {k}: {{host: 127.0.0.1, port: {port}, tls: none, username: app-{k}, password: {self.reference('up', k)}}}"
            for k in UPSTREAMS
        )
        users = "\n".join(
            f"  {k}: {{password_hash: '{self.hash}'}}"
            if k == "hash"
            else f"  {k}: {{password: {self.reference('user', k)}}}"
            for k in USERS
        )
        a = self.authority
        file = self.folder / "relay.yaml"
        file.write_text(f"""hostname: relay.test
{self.log}
listen:
  - {{name: clear, address: "127.0.0.1:0", auth: optional}}
  - {{name: tls, address: "127.0.0.1:0", auth: required, tls: {{mode: starttls, certificate: {a.certificate}, key: {{file: {a.key}}}}}}}
admin: {{socket: {self.folder}/admin.sock, address: null}}
spool: {{path: {self.folder}/spool/spool.db, reserve: 1MB, keep_bodies: all}}
accounts:
{accounts}
users:
{users}
classes:
  default: {{retry: {{schedule: [200ms], give_up: 1d}}}}
routes:
""" + "".join(f"  - {{name: {k}, match: {{recipient: '{k}@*'}}, via: {k}}}\n" for k in UPSTREAMS) + more)  # fmt: skip
        return file

    def found(self, text: bytes) -> list[str]:
        """Whose secret is in it, as it is or as SMTP's mechanisms and escapes write it."""
        return [name for name, secret in self.secrets.items() if any(form in text for form in forms(name, secret))]


def forms(name: str, secret: str) -> Iterator[bytes]:
    raw = secret.encode()
    yield raw
    yield base64.b64encode(raw).rstrip(b"=")
    for user in (name.removeprefix("user "), f"app-{name}"):
        yield base64.b64encode(f"\0{user}\0{secret}".encode())
    yield raw.hex().encode()
    yield "".join(f"\\u{ord(c):04x}" for c in secret).encode()


def quoting(argument: str) -> str:
    """An upstream that tells what it was told, as it came and as it means it."""
    sent = argument.rpartition(" ")[2]
    password = base64.b64decode(sent).decode().split("\0")[2]
    again = base64.b64encode(password.encode()).decode()
    return f"535-5.7.8 {sent}\r\n535-5.7.8 <{password}> is wrong\r\n535 5.7.8 {again}, {password!r}"


def get(path: Path, target: str) -> bytes:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(60)
    connection.sock.connect(str(path))
    try:
        connection.request("GET", target)
        return connection.getresponse().read()
    finally:
        connection.close()


async def log_in(ports: list[int], setting: Setting) -> bytes:
    """Right and wrong ones, in clear and over TLS, with handshakes that fail; all that was answered."""
    said = []
    tries = list(USERS.items())
    tries += [("env", TYPED["wrong"]), (TYPED["stranger"], "x"), ("hash", TYPED["wrong"])]

    async def one(port: int, user: str, password: str, tls: bool) -> None:
        client = Client(*await asyncio.open_connection("127.0.0.1", port))
        await client.reply()
        said.append(await client.say("EHLO x"))
        if tls:
            said.append(await client.start_tls(setting.authority.client()))
        said.append(await client.log_in(user, password))
        said.append(await client.say("AUTH PLAIN " + plain(user, password)[:-3]))  # not even base64
        await client.close()

    await asyncio.gather(*(one(ports[tls], *t, tls=bool(tls)) for t in tries for tls in (0, 1)))
    assert [code for code, _ in said].count(235) == 2 * len(USERS)
    client = Client(*await asyncio.open_connection("127.0.0.1", ports[1]))
    await client.reply()
    await client.raw(b"EHLO x\r\nSTARTTLS\r\n")
    await client.raw(b"AUTH PLAIN " + plain("env", USERS["env"]).encode() + b"\r\n")
    said.append((0, (await client.reader.read()).decode("latin-1")))
    await client.close()
    return repr(said).encode()


async def one_login(port: int, user: str, password: str) -> bytes:
    client = Client(*await asyncio.open_connection("127.0.0.1", port))
    said = [await client.reply(), await client.say("EHLO x"), await client.log_in(user, password)]
    await client.close()
    return repr(said).encode()


def verbs(relay: Process, number: str, file: Path, *more: str) -> bytes:
    """Every verb that looks, as a table or as JSON."""
    said = []
    for arguments in (
        ("status",), ("queue", "list"), ("queue", "show", number), ("queue", "stats"), ("reload",), ("check", "--config", str(file)),
        ("explain", "--from", "a@b.example", "--to", "env@y.example"), ("queue", "hold", number), ("queue", "release", number),
        ("queue", "retry", number), ("spool", "check"), ("queue", "export", number),
    ):  # fmt: skip
        done = relay.call(*arguments, *more)
        assert "Traceback" not in done.stderr
        said.append(done.stdout + done.stderr)
    return "\n".join(said).encode()


@pytest.mark.parametrize("format_", ["logfmt", "json"])
async def test_no_canary_comes_out(tmp_path: Path, format_: str) -> None:
    setting = Setting(tmp_path, format_)
    everything: dict[str, bytes] = {}
    async with Upstream({"AUTH": quoting}, login=("x", "x")) as up:
        file = setting.write(up.port)
        with process(file, env=setting.env) as relay:
            ports = relay.ports()
            everything["answers"] = await log_in(ports, setting)
            ids = await submit(ports[0], [("a@b.example", (f"{k}@y.example",), MESSAGE) for k in UPSTREAMS])
            await asyncio.to_thread(
                relay.wait_for, lambda: len(re.findall(r'event"?[=:] ?"?account_paused', relay.log)) >= len(UPSTREAMS)
            )
            assert {password for _, password in up.logins} >= set(UPSTREAMS.values())
            everything["verbs"] = await asyncio.to_thread(
                verbs, relay, ids[0], file, *(("--json",) if format_ == "json" else ())
            )
            for path in PATHS:
                everything[path] = await asyncio.to_thread(get, relay.socket, path)
            setting.write(up.port, "nonsense: {password: 1}\n")
            assert relay.call("reload").returncode == 78
            relay.signal(signal.SIGHUP)
            setting.write(up.port)
            everything["after"] = (relay.cli("reload") + relay.cli("status", "--json")).encode()
            good = setting.authority.key.read_text()
            setting.authority.key.write_text(good[:-40])
            spoilt = relay.call("reload")
            assert spoilt.returncode == 78
            everything["key"] = (spoilt.stdout + spoilt.stderr).encode()
            (setting.vault / "user-file").unlink()
            (setting.vault / "up-file").write_bytes(b"\xff" + UPSTREAMS["file"].encode())
            refused = relay.call("reload")
            assert refused.returncode == 78
            everything["refused"] = refused.stderr.encode() + relay.call("status").stdout.encode()
            everything["unreadable"] = await one_login(ports[0], "file", USERS["file"])
            assert b"535" in everything["unreadable"]
            arguments = Path(f"/proc/{relay.popen.pid}/cmdline").read_bytes()
            everything["arguments"] = arguments
            relay.signal(signal.SIGABRT)
            assert relay.wait() == -signal.SIGABRT
            assert "Fatal Python error" in relay.log
            everything["log"] = relay.log.encode()
        (setting.vault / "user-file").write_text(USERS["file"])
        (setting.vault / "up-file").write_text(UPSTREAMS["file"])
        relay = Process(file, env=setting.env)  # and a start that fails, for its key
        try:
            assert relay.wait() == 78
            everything["failed start"] = relay.log.encode()
        finally:
            relay.close()
    for path in (tmp_path / "spool").rglob("*"):
        if path.is_file():
            everything[path.name] = path.read_bytes()
    assert b"5.7.8" in everything["log"] and b"5.7.8" in everything["spool.db"] + everything["spool.db-wal"]
    assert {where: setting.found(text) for where, text in everything.items() if setting.found(text)} == {}


@pytest.mark.parametrize("format_", ["logfmt", "json"])
async def test_no_token_comes_out(tmp_path: Path, format_: str) -> None:
    """One that is used rightly, one that is put where none belongs, one that is wrong: of none the secret is anywhere."""
    setting, port = Setting(tmp_path, format_), free_port()
    file = setting.write(free_port())
    file.write_text(file.read_text().replace("address: null", f'address: "127.0.0.1:{port}"'))
    everything: dict[str, bytes] = {}
    with process(file, env=setting.env) as relay:
        made = [relay.call("token", "add", f"n{n}", "--scope", "admin").stdout.strip() for n in range(2)]
        setting.secrets = {f"token {n}": text.split("_", 2)[2] for n, text in enumerate(made)}
        good, other, url = made[0], made[1], f"http://127.0.0.1:{port}"
        assert relay.call("token", "revoke", other).returncode == 0  # by its whole text
        for bearer in (good, other, good.replace("relay_", "relay-"), other[:-1]):
            for method, path, body in (
                ("GET", f"/v1/status?token={other}", None), ("DELETE", f"/v1/tokens/{other}", None),
                ("POST", "/v1/tokens", {"name": f"x {other}", "scopes": ["read"], "user": other}),
                ("POST", "/v1/tokens", {"name": "x", other: 1}), ("POST", f"/{other}", None),
            ):  # fmt: skip
                status, headers, _ = await ask(url + path, method, bearer, body)
                assert status >= 400 or path.startswith("/v1/status")
                everything[f"{method} {path[:12]} {status}"] = repr(headers).encode()
        for verb in (
            ("token", "list"),
            ("token", "list", "--json"),
            ("audit",),
            ("audit", "--json"),
            ("status", "--json"),
        ):
            everything[" ".join(verb)] = relay.cli(*verb).encode()
        for path in ("/metrics", "/openapi.json", "/v1/audit", "/v1/tokens"):
            everything[path] = get(relay.socket, path)
        everything["arguments"] = Path(f"/proc/{relay.popen.pid}/cmdline").read_bytes()
        everything["log"] = relay.log.encode()
    assert b"relay_" in everything["audit --json"]
    for part in (tmp_path / "spool").rglob("*"):
        everything[part.name] = part.read_bytes() if part.is_file() else b""
    assert {where: setting.found(text) for where, text in everything.items() if setting.found(text)} == {}


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    canary = "canary-misplaced-8Tm"
    file = tmp_path / "relay.yaml"
    file.write_text("""
routes: [{hold: true}]
accounts:
  a: {host: 127.0.0.1, username: u, password: CANARY}
  b: {host: 127.0.0.1, username: u, password: {plain: CANARY}}
  c: {host: 'smtp://u:CANARY@mail.example'}
  d: {host: 127.0.0.1, username: u, password: [CANARY]}
  e: {host: 127.0.0.1, username: u, password: {env: {CANARY: 1}}}
users:
  a: {password: CANARY}
  b: {password_hash: CANARY}
  c: {password_hash: '$argon2id$CANARY'}
listen:
  - {address: '127.0.0.1:0', tls: {mode: starttls, certificate: /dev/null, key: CANARY}}
  - {address: '127.0.0.1:0', tls: {mode: starttls, certificate: /dev/null, key: {file: [CANARY]}}}
""".replace("CANARY", canary))  # fmt: skip
    for arguments in (("check",), ("check", "--json"), ("serve",)):
        done = subprocess.run(
            [sys.executable, "-m", "relay", *arguments, "--config", str(file)],
            capture_output=True, text=True, timeout=120, check=False, env=ENV,
        )  # fmt: skip
        assert done.returncode == 78
        said = done.stdout + done.stderr
        assert canary not in said
        for place in (
            "accounts.a",
            "accounts.b",
            "accounts.c",
            "accounts.d",
            "accounts.e",
            "users.a",
            "users.b",
            "users.c",
        ):
            assert place in said
