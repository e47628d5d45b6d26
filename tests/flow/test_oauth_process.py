"""The real process and a real endpoint over TLS: through kills and restarts no mail is lost, and no token is found anywhere."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from certificates import Authority, authority
from rig import ENV, process, submit, until, write_config
from test_oauth import mails, upstream
from test_secrets import PATHS, get, verbs
from tokens import Endpoint, refusal

assert authority


def over_tls(folder: Path, authority: Authority, port: int, there: Endpoint, format_: str = "logfmt") -> Path:
    """By refresh token, with a client secret."""
    authority.ca.cert_pem.write_to_path(folder / "ca.pem")
    (folder / "refresh").write_text(there.login + "\n")
    (folder / "secret").write_text(there.secret + "\n")
    account = (
        f"port: {port}, tls: none, username: app@corp.example, messages_per_connection: 5, oauth2: {{grant: refresh_token, "
        f"client_id: 1f2e, client_secret: {{file: {folder}/secret}}, refresh_token: {{file: {folder}/refresh}}, "
        f"token_url: '{there.url}', ca: {folder}/ca.pem}}"
    )
    return write_config(folder, {"main": account}, extra=f"log: {{format: {format_}}}")


def server(authority: Authority) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    return context


async def test_kills_and_restarts_lose_nothing(tmp_path: Path, authority: Authority) -> None:
    """Rotation between restarts; between kills a token that no answer was lost for."""
    async with Endpoint(life=2.0, grace=300, tls=server(authority)) as there, upstream(there) as up:
        file = over_tls(tmp_path, authority, up.port, there)
        starts = 0
        for part, end in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)):
            there.rotate = end is signal.SIGTERM
            with process(file) as relay:
                starts += 1
                await submit(relay.port, mails(25, part * 25))
                if part == 2:
                    there.revoke()
                await asyncio.sleep(0.2)
                relay.signal(end)
                await asyncio.to_thread(relay.wait)
        with process(file):
            starts += 1
            await until(lambda: set(up.delivered()) >= {f"r{i}@example.net" for i in range(100)}, 60)
            assert len(there.requests) <= starts + 2 * len(there.given)
        assert there.most_at_once == 1


@pytest.mark.parametrize("format_", ["logfmt", "json"])
async def test_no_secret_comes_out(tmp_path: Path, authority: Authority, format_: str) -> None:
    """Secrets and tokens, with an endpoint and an upstream that quote them: in no log, no answer and no verb."""
    async with Endpoint(tls=server(authority), rotate=True) as there, upstream(there) as up:
        up.script["AUTH"] = lambda _: f"535 5.7.8 bad {up.logins[-1][1]} {up.logins[-1][1][4:40]}"
        file = over_tls(tmp_path, authority, up.port, there, format_)
        said: list[bytes] = []
        with process(file, env={"PYTHONFAULTHANDLER": "1"}) as relay:
            (number, *_) = await submit(relay.port, mails(3))
            await until(lambda: "account_paused" in relay.log)
            there.plan = [refusal("invalid_grant", f"{there.login} {there.secret} is wrong")] * 2
            (tmp_path / "secret").write_text(there.secret + "x\n")
            more = ("--json",) if format_ == "json" else ()
            assert (await asyncio.to_thread(relay.call, "reload")).returncode == 0
            await until(lambda: "oauth_failed" in relay.log)
            said.append(await asyncio.to_thread(verbs, relay, number, file, *more))
            said.append((await asyncio.to_thread(relay.call, "oauth", "status", *more)).stdout.encode())
            said += [await asyncio.to_thread(get, relay.socket, path) for path in PATHS]
            relay.signal(signal.SIGTERM)
            await asyncio.to_thread(relay.wait)
            said.append(relay.log.encode())
        told = b"\n".join(said)
        assert b"is wrong" in told and b"535" in told
        secrets = [there.secret, there.login, "first-refresh-token-0Zq", *there.given]
        assert [s for s in secrets if s.encode() in told or s[4:30].encode() in told] == []
        assert b"canary" not in told


async def test_the_secret_that_is_kept_is_in_one_file_alone(tmp_path: Path, authority: Authority) -> None:
    async with Endpoint(tls=server(authority), rotate=True) as there, upstream(there) as up:
        with process(over_tls(tmp_path, authority, up.port, there)) as relay:
            await submit(relay.port, mails(3))
            await until(lambda: len(up.delivered()) == 3)
        holding = [f.name for f in tmp_path.rglob("*") if f.is_file() and there.login.encode() in f.read_bytes()]
        assert holding == ["main.json"]
        tokens = [f for f in tmp_path.rglob("*") if f.is_file() and b"canary-token" in f.read_bytes()]
        assert tokens == []


def test_nothing_is_loaded_for_those_without_oauth2(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": "port: 1, tls: none"})
    code = f"""
import asyncio, json, sys
from relay.app import App
from relay.config.load import load
from relay.maillog import MailLog
from pathlib import Path
async def main():
    app = App(load(Path({str(file)!r})), MailLog(None))
    await app.start()
    await asyncio.sleep(0.1)
    await app.stop()
asyncio.run(main())
print(json.dumps([m for m in sys.modules if m.startswith(("relay.oauth.", "cryptography"))]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=True)
    loaded = set(json.loads(done.stdout))
    assert not {m for m in loaded if re.match(r"relay\.oauth\.(tokens|endpoint|login|store)|cryptography", m)}, loaded
