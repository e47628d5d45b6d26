"""Logins at the sink: anybody, or those whom files name; passwords, access tokens, and TLS."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from front import Client
from sinks import sink

from relay.sink import Logins
from tests.certificates import Authority, authority

__all__ = ["authority"]
TEXT = b"Subject: t\r\n\r\nhello\r\n"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def bearer(mechanism: str, user: str, token: str) -> str:
    if mechanism == "XOAUTH2":
        return b64(f"user={user}\1auth=Bearer {token}\1\1")
    return b64(f"n,a={user},\1host=smtp.x.example\1port=587\1auth=Bearer {token}\1\1")


async def refused(client: Client, mechanism: str, token: str) -> tuple[int, str]:
    code, text = await client.say(f"AUTH {mechanism} {bearer(mechanism, 'shop@x.example', token)}")
    assert code == 334
    assert json.loads(base64.b64decode(text)) == {
        "status": "400",
        "schemes": "Bearer",
        "scope": "https://mail.google.com/",
    }
    return await client.say("" if mechanism == "XOAUTH2" else "AQ==")


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
async def test_any_token_will_do_unless_a_file_says_otherwise(tmp_path: Path, mechanism: str) -> None:
    async with sink(tmp_path, "gmail") as bench:
        client = await bench.client()
        said = bearer(mechanism, "shop@x.example", "ya29." + "t" * 8000)
        assert await client.say(f"AUTH {mechanism} {said}") == (235, "2.7.0 Accepted")
        assert (await client.mail(TEXT))[0] == 250
        assert bench.kept[0].account == "shop@x.example"


@pytest.mark.parametrize("mechanism", ["XOAUTH2", "OAUTHBEARER"])
async def test_tokens_of_a_file_may_be_revoked(tmp_path: Path, mechanism: str) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one\ntwo\n")
    async with sink(tmp_path, "gmail", logins=Logins(tokens=tokens)) as bench:
        client = await bench.client()
        code, text = await refused(client, mechanism, "three")
        assert (code, text.split("\n")[0]) == (
            535,
            "5.7.8 Username and Password not accepted. For more information, go to",
        )
        assert (await client.log_in("shop", "one"))[0] == 535  # a token is no password
        assert (await client.say(f"AUTH {mechanism} {bearer(mechanism, 'shop', 'two')}"))[0] == 235
        tokens.write_text("one\n")
        again = await bench.client()
        assert (await refused(again, mechanism, "two"))[0] == 535
        tokens.unlink()
        assert (await refused(again, mechanism, "one"))[0] == 535
        assert bench.sink.tally.refused().total() == 4


async def test_a_token_in_a_line_of_its_own(tmp_path: Path) -> None:
    async with sink(tmp_path, "microsoft365") as bench:
        client = await bench.client()
        assert await client.say("AUTH XOAUTH2") == (334, "")
        assert (await client.say(bearer("XOAUTH2", "shop@x.example", "t")))[0] == 235


@pytest.mark.parametrize(
    ("mechanism", "said"),
    [
        ("XOAUTH2", "user=shop\1auth=Basic x\1\1"),
        ("XOAUTH2", "auth=Bearer x\1\1"),
        ("OAUTHBEARER", "n,a=shop,\1host=x\1\1"),
        ("OAUTHBEARER", ""),
    ],
)
async def test_what_is_no_token(tmp_path: Path, mechanism: str, said: str) -> None:
    async with sink(tmp_path, "gmail") as bench:
        client = await bench.client()
        assert (await client.say(f"AUTH {mechanism} {b64(said) or '='}"))[0] == 501
        assert (await client.log_in("shop", "x"))[0] == 235


async def test_what_is_not_offered(tmp_path: Path) -> None:
    async with sink(tmp_path, "ses") as bench:
        assert (await (await bench.client()).say("AUTH XOAUTH2 eA=="))[0] == 504
    async with sink(tmp_path, "login: {mechanisms: []}") as bench:
        client = await bench.client(greet=False)
        await client.reply()
        assert "AUTH" not in (await client.say("EHLO x"))[1]
        assert (await client.log_in("shop", "x"))[0] == 502


async def test_one_user_and_a_password(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("geheim\n")
    async with sink(tmp_path, "microsoft365", logins=Logins("shop", password)) as bench:
        client = await bench.client()
        for user, given, code in (("shop", "falsch", 535), ("books", "geheim", 535), ("shop", "geheim", 235)):
            assert (await client.say("AUTH LOGIN"))[0] == 334
            assert (await client.say(b64(user)))[0] == 334
            found = await client.say(b64(given))
            assert found[0] == code
            if code == 535:
                assert found[1].startswith("5.7.3 Authentication unsuccessful [")
        assert (await refused(await bench.client(), "XOAUTH2", "geheim"))[0] == 535


async def test_too_many_logins(tmp_path: Path) -> None:
    script = "profile: gmail\nlimits: [{name: logins, at: auth, rate: 2/h, reply: 454 4.7.0 Too many login attempts}]"
    async with sink(tmp_path, script) as bench:
        for code in (235, 235, 454):
            client = await bench.client()
            assert (await client.log_in("shop", "x"))[0] == code
        assert (await client.log_in("books", "x"))[0] == 235


@pytest.mark.parametrize("mode", ["starttls", "implicit"])
async def test_over_tls(tmp_path: Path, authority: Authority, mode: str) -> None:
    tls = authority.tls("starttls" if mode == "starttls" else "implicit")
    async with sink(tmp_path, "gmail", tls=tls) as bench:
        client = await bench.client(tls=None if mode == "starttls" else authority.client())
        if mode == "starttls":
            assert "AUTH LOGIN PLAIN XOAUTH2 OAUTHBEARER" in (await client.start_tls(authority.client()))[1]
        assert (await client.say(f"AUTH XOAUTH2 {bearer('XOAUTH2', 'shop', 't')}"))[0] == 235
        assert (await client.mail(TEXT))[0] == 250
