"""`relay oauth login` as a process of its own, against a real endpoint: by a code, and by a pasted address. And the grants."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from fakes import Upstream
from rig import ENV, running, until, write_config
from test_oauth import USER, mails, sending, upstream
from tokens import HANG, Endpoint, refusal

from relay.oauth import tokens as tokens_


async def relay(*arguments: str, said: str = "", deadline: float = 120.0) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "relay", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=ENV,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(said.encode()), deadline)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def config(folder: Path, there: Endpoint, more: str = "", port: int = 1, token: str = "") -> Path:
    where = token or f"{{file: {folder}/secrets/refresh}}"
    account = (
        f"port: {port}, tls: none, username: {USER}, oauth2: {{grant: refresh_token, client_id: 1f2e, "
        f"refresh_token: {where}, token_url: '{there.url}', scope: mail offline_access{more}}}"
    )
    return write_config(folder, {"main": account, "plain": "port: 1, tls: none"})


async def test_by_a_code_and_mail_flows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens_, "LOOK", 0.2)
    async with Endpoint() as there, upstream(there) as up:
        there.device = ["authorization_pending", "authorization_pending"]
        file = config(tmp_path, there, f", device_url: '{there.device_url}'", up.port)
        code, out, err = await relay("check", str(file))
        assert code == 0 and "is not there yet: relay oauth login main makes it" in err
        async with running(file) as rig:
            await rig.send_many(mails(5))
            await until(lambda: rig.said("account_paused"))
            code, out, err = await relay("oauth", "login", "main", "--config", str(file))
            assert (code, err) == (0, "")
            assert "https://microsoft.example/devicelogin" in out and "WDJB-MJHT" in out
            written = tmp_path / "secrets" / "refresh"
            assert f"wrote {written}" in out and there.login not in out
            assert written.read_text() == there.login + "\n" and written.stat().st_mode & 0o777 == 0o640
            assert there.requests[0] == {"client_id": "1f2e", "scope": "mail offline_access"}
            await rig.settled()
            assert len(up.delivered()) == 5


@pytest.mark.parametrize(
    ("plan", "device", "code", "says"),
    [
        ([], ["access_denied"], 77, "it was declined"),
        ([], ["expired_token"], 75, "nobody entered the code in time"),
        ([{"body": {"refresh_token": None}}], [], 77, "gave no refresh token"),
        ([refusal("invalid_client", "bad")], [], 77, "the provider refused: invalid_client: bad"),
        ([{"status": 302, "body": {}, "headers": {"Location": "/x"}}], [], 77, "a redirect"),
    ],
)
async def test_why_there_is_no_login(tmp_path: Path, plan: list[Any], device: list[str], code: int, says: str) -> None:
    async with Endpoint(plan=plan) as there:
        there.device = device
        file = config(tmp_path, there, f", device_url: '{there.device_url}'")
        found, _, err = await relay("oauth", "login", "main", "--config", str(file))
        assert found == code and says in err and not (tmp_path / "secrets").exists()


async def test_slow_down_and_an_outage_are_waited_out(tmp_path: Path) -> None:
    async with Endpoint(plan=[{"status": 500, "raw": b""}]) as there:
        file = config(tmp_path, there, f", device_url: '{there.device_url}'")
        found, _, err = await relay("oauth", "login", "main", "--config", str(file))
        assert (found, err) == (0, "")
        assert there.at[1] - there.at[0] >= 1.9
        there.device = ["slow_down"]
        there.at.clear()
        found, _, err = await relay("oauth", "login", "main", "--config", str(file))
        assert (found, err) == (0, "") and there.at[1] - there.at[0] >= 5.9


async def by_address(file: Path, there: Endpoint, change: Any = lambda address: address) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "relay", "oauth", "login", "main", "--config", str(file),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env=ENV | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    out = ""
    while "Paste that address" not in out:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, (out, await process.communicate())
        out += line.decode()
    (address,) = re.findall(r"^http\S+$", out, re.MULTILINE)
    rest, err = await asyncio.wait_for(process.communicate((change(there.authorize(address)) + "\n").encode()), 60)
    assert process.returncode is not None
    return process.returncode, out + rest.decode(), err.decode()


async def test_by_a_pasted_address(tmp_path: Path) -> None:
    async with Endpoint() as there:
        authorize = there.url.replace("/token", "/auth")
        (tmp_path / "secret").write_text(there.secret)
        more = f", authorize_url: '{authorize}', client_secret: {{file: {tmp_path}/secret}}"
        code, out, err = await by_address(config(tmp_path, there, more), there)
        assert (code, err) == (0, "") and out.count("http://127.0.0.1:8585/") == 1
        assert (tmp_path / "secrets" / "refresh").read_text() == there.login + "\n"
        asked = there.requests[-1]
        assert asked["grant_type"] == "authorization_code" and asked["client_secret"] == there.secret
        assert there.login not in out and there.secret not in out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.replace("state=", "state=x"), "of another login"),
        (lambda a: "http://127.0.0.1:8585/?error=access_denied", "it was declined: access_denied"),
        (lambda a: "https://[", "holds no code"),
        (lambda a: "", "holds no code"),
        (lambda a: a.replace("code=code", "code=c0de"), "the provider refused: invalid_grant"),
    ],
)
async def test_an_address_that_is_none(tmp_path: Path, change: Any, says: str) -> None:
    async with Endpoint() as there:
        file = config(tmp_path, there, f", authorize_url: '{there.url.replace('/token', '/auth')}'")
        code, _, err = await by_address(file, there, change)
        assert code == 77 and says in err and not (tmp_path / "secrets").exists()


@pytest.mark.parametrize(
    ("account", "more", "token", "code", "says"),
    [
        ("nobody", "", "", 65, "no account 'nobody'; there is main, plain"),
        ("plain", "", "", 65, "has no `oauth2`"),
        ("main", "", "{env: HOME}", 65, "{env: HOME}, which cannot be written: name a file"),
        ("main", "", "{file: relay.yaml/refresh}", 73, "we may not write there"),
        ("main", "", "", 78, "neither `device_url` nor `authorize_url`"),
    ],
)
async def test_what_cannot_be_logged_in_to(
    tmp_path: Path, account: str, more: str, token: str, code: int, says: str
) -> None:
    if code == 73:
        more = ", device_url: 'https://127.0.0.1:1/device'"
    file = config(tmp_path, Endpoint(), more, token=token)
    found, _, err = await relay("oauth", "login", account, "--config", str(file))
    assert found == code and says in err


# -- the other grants, through the whole relay


async def test_client_credentials(tmp_path: Path) -> None:
    async with Endpoint() as there, upstream(there) as up:
        (tmp_path / "secret").write_text(there.secret + "\n")
        account = (
            f"port: {up.port}, tls: none, username: {USER}, oauth2: {{grant: client_credentials, client_id: 1f2e, "
            f"client_secret: {{file: {tmp_path}/secret}}, token_url: '{there.url}', scope: .default}}"
        )
        async with running(write_config(tmp_path, {"main": account})) as rig:
            await rig.reaches(await rig.send(), "delivered")
            assert not (tmp_path / "spool" / "oauth2").exists()


@pytest.mark.parametrize("ahead", [0.0, 7200.0, -7200.0])
async def test_service_account_learns_the_clock_of_the_endpoint(tmp_path: Path, ahead: float) -> None:
    from pure.test_oauth_grants import RSA, service_key

    async with Endpoint(ahead=ahead, life=0.8, grace=300) as there, upstream(there) as up:
        there.key = RSA.public_key()
        (tmp_path / "key.json").write_text(service_key())
        account = (
            f"port: {up.port}, tls: none, username: {USER}, "
            f"oauth2: {{grant: service_account, key: {{file: {tmp_path}/key.json}}, token_url: '{there.url}'}}"
        )
        async with running(write_config(tmp_path, {"main": account})) as rig:
            await rig.reaches(await rig.send(), "delivered")
            await until(lambda: len(there.given) >= 3)
            # Once wrong, and never again.
            assert len(there.requests) == len(there.given) + (1 if ahead else 0)
            assert len(rig.said("oauth_clock")) == (1 if ahead else 0) and not rig.said("oauth_failed")


async def test_a_clock_that_is_wrong_does_no_harm(tmp_path: Path) -> None:
    """The endpoint lives two hours ahead: a token ends by its life, not by anybody's wall clock."""
    async with Endpoint(ahead=7200.0, life=600.0) as there, upstream(there) as up, sending(tmp_path, up, there) as rig:
        await rig.reaches(await rig.send(), "delivered")
        await rig.reaches(await rig.send(), "delivered")
        assert len(there.requests) == 1


# -- what the verbs tell


async def test_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Endpoint() as there, upstream(there) as up, sending(tmp_path, up, there) as rig:
        await rig.reaches(await rig.send(), "delivered")
        monkeypatch.setitem(ENV, "RELAY_ENDPOINT", str(tmp_path / "admin.sock"))
        code, out, _ = await relay("oauth", "status")
        assert code == 0 and re.fullmatch(r"main +good until [\d: -]+\n", out), out
        _, out, _ = await relay("status")
        assert re.search(r"^token +main: good until ", out, re.MULTILINE)
        code, out, err = await relay("oauth", "status", "nobody")
        assert code == 65 and "no account 'nobody'" in err
        there.plan = [refusal("invalid_client", "the secret is over")]
        there.revoke()
        up.cut()
        await rig.send()
        await until(lambda: rig.said("oauth_failed"))
        code, out, _ = await relay("oauth", "status", "main", "--json")
        (told,) = json.loads(out)
        assert code == 75 and told["state"] == "none" and "the secret is over" in told["why"]
        assert "canary" not in out and there.login not in out


async def test_an_endpoint_that_hangs_holds_up_neither_others_nor_a_stop(tmp_path: Path) -> None:
    async with Endpoint(plan=[HANG]) as there, upstream(there) as up, Upstream() as other:
        from test_oauth import account

        accounts = {"main": account(tmp_path, up, there), "two": f"port: {other.port}, tls: none"}
        routes = "  - {name: a, match: {recipient: two@example.net}, via: two}\n  - {name: b, via: main}"
        async with running(write_config(tmp_path, accounts, routes=routes)) as rig:
            await rig.send("one@example.net")
            await until(lambda: there.requests)
            await rig.reaches(await rig.send("two@example.net"), "delivered")
            before = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - before < 20  # of the 30 that an answer is waited for
        async with running(write_config(tmp_path, accounts, routes=routes)) as rig:
            await rig.settled()  # nothing was lost
