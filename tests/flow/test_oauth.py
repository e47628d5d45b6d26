"""OAuth2: tokens that end, are revoked, and come late; an endpoint that fails. No mail is lost and no storm of requests is made."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import time
from calendar import timegm
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from certificates import Authority, authority
from fakes import DROP, Upstream
from rig import Rig, free_port, running, until, write_config
from test_deliver_login import metric
from test_deliver_tls import _our_address
from tokens import HANG, Endpoint, refusal

from relay import https
from relay.deliver.connect import connect
from relay.deliver.smtp import Failure
from relay.maillog import MailLog
from relay.oauth import endpoint as endpoint_
from relay.oauth import keeper as keeper_
from relay.oauth import tokens as tokens_
from relay.oauth.store import Store
from relay.oauth.tokens import Tokens
from relay.secrets import Reference
from relay.settings import Account, OAuth2, Tls

assert authority
USER = "app@corp.example"
FAST = "  default: {retry: {schedule: [100ms], give_up: 1d}}"
SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"
QUICK = "breaker: {cool_down: 200ms, max: 200ms}"


def account(folder: Path, up: Upstream, there: Endpoint, more: str = "", ca: str = "") -> str:
    """By refresh token."""
    login = folder / "refresh"
    if not login.exists():
        login.write_text(there.login + "\n")
    trust = f", ca: {ca}" if ca else ""
    return (
        f"port: {up.port}, tls: none, username: {USER}, oauth2: {{grant: refresh_token, client_id: 1f2e, "
        f"refresh_token: {{file: {login}}}, token_url: '{there.url}'{trust}{more}}}"
    )


def upstream(there: Endpoint, script: dict[str, Any] | None = None, mechanisms: str = "PLAIN XOAUTH2") -> Upstream:
    return Upstream(script, mechanisms=mechanisms, bearer=lambda user, token: user == USER and there.good(token))


@contextlib.asynccontextmanager
async def sending(
    folder: Path, up: Upstream, there: Endpoint, more: str = "", classes: str = FAST, extra: str = ""
) -> AsyncIterator[Rig]:
    async with running(
        write_config(folder, {"main": account(folder, up, there, more)}, classes=classes, extra=extra)
    ) as rig:
        yield rig


def mails(count: int, first: int = 0) -> list[tuple[str, tuple[str, ...], bytes]]:
    return [("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(first, first + count)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes a minute takes a moment; QUICK does so for the account."""
    monkeypatch.setattr(tokens_, "PASSING", 0.05)
    monkeypatch.setattr(tokens_, "MAX_PASSING", 0.2)
    monkeypatch.setattr(tokens_, "LOOK", 0.1)


@pytest.mark.parametrize(
    ("mechanisms", "wanted", "used"),
    [
        ("PLAIN LOGIN XOAUTH2 OAUTHBEARER", "", "XOAUTH2"),
        ("OAUTHBEARER PLAIN", "", "OAUTHBEARER"),
        ("XOAUTH2 OAUTHBEARER", ", mechanism: oauthbearer", "OAUTHBEARER"),
    ],
)
async def test_mail_leaves_with_a_token(tmp_path: Path, mechanisms: str, wanted: str, used: str) -> None:
    async with (
        Endpoint() as there,
        upstream(there, mechanisms=mechanisms) as up,
        sending(tmp_path, up, there, wanted) as rig,
    ):
        await rig.reaches(await rig.send(), "delivered")
        assert len(there.requests) == 1
        assert up.commands("AUTH")[0].split()[1] == used
        assert there.requests[0] == {
            "grant_type": "refresh_token",
            "client_id": "1f2e",
            "refresh_token": there.login,
        }
        expires = metric("relay_oauth_token_expires_seconds", egress="main")
        assert 3500 < expires - time.time() < 3601


async def test_a_token_is_there_before_mail_is(tmp_path: Path) -> None:
    async with Endpoint() as there, upstream(there) as up, sending(tmp_path, up, there) as rig:
        await until(lambda: rig.said("oauth_token"))
        assert up.sessions == []


async def test_storm_of_expiries_and_revocations(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 messages while tokens live for a second and are revoked: each arrives once, a request for each token that ended."""
    monkeypatch.setattr(tokens_, "FORCED", 0.0)
    async with Endpoint(life=1.0) as there, upstream(there) as up:
        config = account(tmp_path, up, there) + ", connections: 8, messages_per_connection: 2"
        async with running(write_config(tmp_path, {"main": config}, classes=FAST, extra=QUICK)) as rig:
            revoked = 0
            for part in range(10):
                await rig.send_many(mails(20, part * 20))
                if part % 3 == 1:
                    there.revoke()
                    revoked += 1
                await asyncio.sleep(0.3)
            await rig.settled()
            assert sorted(up.delivered()) == sorted(f"r{i}@example.net" for i in range(200))
            # Between two renewals; one may be under way at any moment.
            await until(lambda: len(rig.said("oauth_token")) == len(there.requests) == len(there.given))
            seconds = there.at[-1] - there.at[0]
            assert len(there.requests) <= seconds / 0.6 + revoked + 2  # renewed when 62 to 75 % of a life are over
            assert there.most_at_once == 1


async def test_storm_of_all_that_can_go_wrong(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Expiry, revocation, 5xx, no JSON, slow and hanging answers, sessions that are cut: each message arrives once."""
    monkeypatch.setattr(tokens_, "FORCED", 0.0)
    chance = random.Random(7)
    wrong: list[Any] = [
        {"status": 503, "raw": b""},
        {"status": 500, "body": {}},
        {"raw": b"<html>"},
        HANG,
        0.3,
        0.1,
        {},
    ]
    async with Endpoint(life=1.0) as there, upstream(there) as up:
        config = account(tmp_path, up, there) + ", connections: 8, messages_per_connection: 2"
        async with running(write_config(tmp_path, {"main": config}, classes=FAST, extra=QUICK)) as rig:

            async def ask(*given: Any, seconds: float, **more: Any) -> https.Answer:
                """Not waited for is what hangs alone: of another answer that comes late the endpoint would say that it was given."""
                hangs = bool(there.plan) and there.plan[0] is HANG
                return await https.ask(*given, seconds=0.5 if hangs else seconds, **more)

            monkeypatch.setattr(endpoint_, "https", SimpleNamespace(ask=ask, Unanswered=https.Unanswered))
            there.plan = [chance.choice(wrong) for _ in range(25)]
            failing = sum(p is HANG or (isinstance(p, dict) and bool(p)) for p in there.plan)
            for part in range(10):
                await rig.send_many(mails(20, part * 20))
                if part % 4 == 1:
                    there.revoke()
                await asyncio.sleep(0.2)
            await rig.settled(60)
            assert sorted(up.delivered()) == sorted(f"r{i}@example.net" for i in range(200))

            def adds_up() -> bool:
                """Between two renewals; one may be under way at any moment."""
                left = sum(p is HANG or (isinstance(p, dict) and bool(p)) for p in there.plan)
                failed = len(there.requests) - len(there.given)
                return failed <= failing - left and len(rig.said("oauth_token")) == len(there.given)

            await until(adds_up)
            assert there.most_at_once <= 2  # one that takes long may be left behind


async def test_many_sessions_with_one_stale_token_make_one_request(tmp_path: Path) -> None:
    async with Endpoint() as there, upstream(there) as up:
        config = account(tmp_path, up, there) + ", connections: 10, messages_per_connection: 1"
        async with running(write_config(tmp_path, {"main": config}, classes=SLOW)) as rig:
            await rig.reaches(await rig.send(), "delivered")
            there.revoke()
            await rig.send_many(mails(50))
            await rig.settled()
            assert len(up.delivered()) == 51 and len(there.requests) == 2


async def test_a_fresh_token_that_is_refused_is_not_renewed(tmp_path: Path) -> None:
    """SMTP AUTH is off for the mailbox: more tokens would not help, and more logins would lock it."""
    async with (
        Endpoint() as there,
        Upstream(mechanisms="XOAUTH2", bearer=lambda user, token: False) as up,
        sending(tmp_path, up, there, classes=SLOW) as rig,
    ):
        ids = await rig.send_many(mails(30))
        await until(lambda: rig.egress().breaker.is_open and rig.egress().busy == 0)
        rows = await rig.rows(*ids)
        while not any(row["attempts"] for row in rows):  # what came of the one may be on its way to the spool
            await until(lambda: rig.app.scheduler.recorder.unrecorded == 0)
            rows = await rig.rows(*ids)
        assert (len(there.requests), len(up.logins)) == (1, 1)
        assert sorted(r["attempts"] for r in rows) == [0] * 29 + [1]
        (paused,) = rig.said("account_paused")
        assert "535 5.7.8 no such token (status 401, schemes bearer, scope mail)" in paused["reply"]


async def test_each_probe_of_a_refused_account_has_a_new_token_and_one_login(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right that was granted meanwhile stands in new tokens alone."""
    monkeypatch.setattr(tokens_, "FRESH", 0.1)
    good: list[bool] = []
    async with (
        Endpoint() as there,
        Upstream(mechanisms="XOAUTH2", bearer=lambda user, token: bool(good)) as up,
        sending(tmp_path, up, there, classes=FAST, extra=QUICK) as rig,
    ):
        await rig.send_many(mails(10))
        await until(lambda: len(up.logins) >= 4)
        assert abs(len(up.logins) - len(there.requests)) <= 1
        good.append(True)
        await rig.settled()
        assert len(up.delivered()) == 10


async def test_an_upstream_that_refuses_good_tokens_makes_no_storm(tmp_path: Path, quick: None) -> None:
    """Every third login is refused whatever it shows: one renewal is made for it in ten seconds, and all mail arrives."""
    logins = iter(range(1_000_000))
    async with (
        Endpoint() as there,
        Upstream(mechanisms="XOAUTH2", bearer=lambda user, token: next(logins) % 3 != 2) as up,
        sending(tmp_path, up, there, ", scope: mail", extra=QUICK) as rig,
    ):
        config = account(tmp_path, up, there, ", scope: mail") + ", messages_per_connection: 1, connections: 4"
        write_config(tmp_path, {"main": config}, classes=FAST, extra=QUICK)
        assert rig.app.reload()[0]
        began = time.monotonic()
        await rig.send_many(mails(40))
        await rig.settled(60)
        assert sorted(up.delivered()) == sorted(f"r{i}@example.net" for i in range(40))
        assert len(there.requests) <= 2 + (time.monotonic() - began) / 10


async def test_454_renews_nothing(tmp_path: Path) -> None:
    async with Endpoint() as there, upstream(there) as up, sending(tmp_path, up, there, classes=SLOW) as rig:
        await rig.reaches(await rig.send(), "delivered")
        up.script["AUTH"] = "454 4.7.0 temporary"
        there.revoke()
        up.cut()
        row = await rig.tried(await rig.send())
        assert "454" in row["last_reply"] and len(there.requests) == 1


# -- an endpoint that fails


async def test_an_outage_is_unnoticed_while_the_token_is_good(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_, "early", lambda life, chance: 2.0)
    plan: list[Any] = [{}, {"status": 503, "raw": b"busy"}, DROP_JSON, {"status": 500, "body": {}}]
    async with Endpoint(life=300.0, plan=plan) as there, upstream(there) as up:
        config = account(tmp_path, up, there) + ", messages_per_connection: 1"
        async with running(write_config(tmp_path, {"main": config}, classes=SLOW, extra=QUICK)) as rig:
            await until(lambda: len(rig.said("oauth_token")) >= 2)
            assert await rig.reaches(await rig.send(), "delivered")
            assert len(rig.said("oauth_failed")) == 1, rig.events
            (failed,) = rig.said("oauth_failed")
            assert failed["token_good_for"] is not None and "503" in failed["error"]
            assert len(rig.said("oauth_recovered")) == 1 and not rig.said("account_paused")


DROP_JSON = {"raw": b"<html>a proxy says hello</html>"}


async def test_an_outage_beyond_the_end_rests_the_account_and_loses_nothing(tmp_path: Path, quick: None) -> None:
    async with Endpoint(life=0.6) as there, upstream(there) as up:
        config = account(tmp_path, up, there) + ", messages_per_connection: 1"
        async with running(write_config(tmp_path, {"main": config}, classes=FAST, extra=QUICK)) as rig:
            await rig.reaches(await rig.send(), "delivered")
            there.plan = [{"status": 503, "raw": b""}] * 10_000
            await until(lambda: any(f["token_good_for"] is None for f in rig.said("oauth_failed")))
            await rig.send_many(mails(50))
            await until(lambda: rig.said("account_paused"))
            assert metric("relay_oauth_failing", egress="main") == 1
            there.life, failed = 3600.0, 10_000 - len(there.plan)
            there.plan.clear()
            await rig.settled()
            assert sorted(up.delivered()) == sorted([f"r{i}@example.net" for i in range(50)] + ["you@example.net"])
            assert len(there.requests) == len(there.given) + failed
            assert metric("relay_oauth_failing", egress="main") == 0


@pytest.mark.parametrize(
    ("answer", "says", "lasting"),
    [
        (
            refusal("invalid_client", "AADSTS7000222: keys are expired.\r\nTrace ID: 1"),
            "AADSTS7000222: keys are expired",
            1,
        ),
        (refusal("invalid_grant"), "relay oauth login main", 1),
        ({"status": 302, "headers": {"Location": "/elsewhere"}, "body": {}}, "a redirect, which is not followed", 1),
        ({"status": 404, "raw": b"no"}, "it answered 404 and no JSON object", 1),
        ({"status": 200, "raw": b"[1]"}, "it answered 200 and no JSON object", 0),
        ({"status": 200, "raw": b"[" * 60000}, "no JSON object", 0),
        ({"status": 200, "raw": b" " * 70000}, "longer than 65536 bytes", 0),
        ({"status": 200, "body": {"expires_in": 1}}, "200 without a token", 1),
        ({"status": 200, "body": {"access_token": "a\r\nMAIL", "expires_in": 1}}, "characters that no token has", 1),
        ({"status": 200, "body": {"access_token": "a", "token_type": "mac"}}, "type mac", 1),
        ({"status": 429, "body": {"error": "slow_down"}, "headers": {"Retry-After": "77"}}, "slow_down", 0),
        ({"status": 500, "raw": b"x", "headers": {"Retry-After": "77"}}, "it answered 500", 0),
        (HANG, "no answer within 0 s", 0),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
async def test_what_the_endpoint_says_is_told_and_it_is_left_alone(
    tmp_path: Path, answer: Any, says: str, lasting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_, "PASSING", 60.0)
    if answer is HANG:
        monkeypatch.setattr(endpoint_, "TIMEOUT", 0.3)
    async with (
        Endpoint(plan=[answer]) as there,
        upstream(there) as up,
        sending(tmp_path, up, there, classes=SLOW) as rig,
    ):
        first = await rig.tried(await rig.send())
        assert says in first["why"] and first["state"] == "deferred"
        (failed,) = rig.said("oauth_failed")
        assert failed["egress"] == "main" and failed["retry_in"] > (290 if lasting else 40)
        if "Retry-After" in str(answer):
            assert 76 < failed["retry_in"] < 78
        ids = await rig.send_many(mails(20))
        await until(lambda: rig.app.scheduler.recorder.unrecorded == 0)
        assert (len(there.requests), up.sessions, there.elsewhere) == (1, [], 0)
        assert {r["attempts"] for r in await rig.rows(*ids)} == {0}


async def test_an_endpoint_that_is_not_there_or_hangs_up(tmp_path: Path) -> None:
    nobody = Endpoint()
    nobody.port = free_port()
    async with (
        Upstream() as up,
        running(write_config(tmp_path, {"main": account(tmp_path, up, nobody)}, classes=SLOW)) as rig,
    ):
        row = await rig.tried(await rig.send())
        assert "(127.0.0.1): it cannot be reached" in row["why"]
    async with Upstream({"BANNER": DROP}) as up:
        nobody.port = up.port
        (tmp_path / "two").mkdir()
        async with running(
            write_config(tmp_path / "two", {"main": account(tmp_path, up, nobody)}, classes=SLOW)
        ) as rig:
            row = await rig.tried(await rig.send())
            assert "the connection failed: " in row["why"]


async def test_the_certificate_of_the_endpoint_is_verified(
    tmp_path: Path,
    authority: Authority,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.certificate, authority.key)
    authority.ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with Endpoint(tls=context) as there, upstream(there) as up, sending(tmp_path, up, there, classes=SLOW) as rig:
        row = await rig.tried(await rig.send())
        assert "its certificate is not accepted: " in row["why"] and there.requests == []
        ca = account(tmp_path, up, there, ca=str(tmp_path / "ca.pem"))
        write_config(tmp_path, {"main": ca}, classes=FAST)
        assert rig.app.reload()[0]
        await rig.reaches(await rig.send(), "delivered")


async def test_another_account_takes_over(tmp_path: Path) -> None:
    async with Endpoint(plan=[refusal("invalid_client")]) as there, upstream(there) as up, Upstream() as other:
        accounts = {"main": account(tmp_path, up, there), "two": f"port: {other.port}, tls: none"}
        async with running(write_config(tmp_path, accounts, classes=SLOW)) as rig:
            await rig.send_many(mails(20))
            await rig.settled()
            assert len(other.delivered()) == 20 and up.sessions == []


async def test_a_new_login_is_taken_without_a_reload(tmp_path: Path, quick: None) -> None:
    """The refresh token was revoked; `relay oauth login` writes another one: mail flows by itself."""
    async with Endpoint() as there, upstream(there) as up:
        config = write_config(tmp_path, {"main": account(tmp_path, up, there)}, classes=FAST, extra=QUICK)
        (tmp_path / "refresh").write_text("revoked-1Ab\n")
        async with running(config) as rig:
            await rig.send_many(mails(10))
            await until(lambda: rig.said("account_paused"))
            await asyncio.sleep(0.5)
            assert len(there.requests) == 1
            (tmp_path / "refresh").write_text(there.login + "\n")
            await rig.settled()
            assert len(up.delivered()) == 10 and len(there.requests) == 2


async def test_a_command_is_run_for_a_request_and_not_to_look_for_news(tmp_path: Path, quick: None) -> None:
    """It may ask a vault that counts, or a person."""
    async with Endpoint() as there, upstream(there) as up:
        script = tmp_path / "secret.sh"
        script.write_text(f"#!/bin/sh\necho run >> {tmp_path}/runs\necho revoked-2Bc\n")
        script.chmod(0o700)
        made = account(tmp_path, up, there).replace(f"{{file: {tmp_path}/refresh}}", f"{{command: [{script}]}}")
        async with running(write_config(tmp_path, {"main": made}, extra=QUICK)) as rig:
            await until(lambda: rig.said("oauth_failed"))
            await asyncio.sleep(0.5)
            assert (tmp_path / "runs").read_text().count("run") == len(there.requests) == 1


async def test_mail_comes_back_to_the_first_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it has a token again, without a wait for the end of its pause."""
    monkeypatch.setattr(tokens_, "PASSING", 0.3)
    monkeypatch.setattr(tokens_, "MAX_PASSING", 0.3)
    async with (
        Endpoint(plan=[{"status": 503, "raw": b""}] * 10_000) as there,
        upstream(there) as up,
        Upstream() as other,
    ):
        accounts = {"main": account(tmp_path, up, there), "two": f"port: {other.port}, tls: none"}
        async with running(write_config(tmp_path, accounts, classes=SLOW)) as rig:
            await rig.reaches(await rig.send(), "delivered")
            assert len(other.delivered()) == 1 and rig.egress().breaker.is_open
            there.plan.clear()
            await until(lambda: rig.said("oauth_recovered"))
            assert (await rig.reaches(await rig.send(), "delivered"))["egress"] == "main"
            assert not rig.egress().breaker.is_open


async def test_a_missing_file_is_told_with_what_makes_it(tmp_path: Path, quick: None) -> None:
    async with Endpoint() as there, upstream(there) as up:
        config = write_config(tmp_path, {"main": account(tmp_path, up, there)}, classes=FAST, extra=QUICK)
        (tmp_path / "refresh").unlink()
        async with running(config) as rig:
            assert any("relay oauth login main makes it" in w for w in rig.app.config.warnings)
            row = await rig.tried(await rig.send())
            assert "No such file" in row["last_reply"] and "relay oauth login main" in row["last_reply"]
            (tmp_path / "refresh").write_text(there.login)
            await rig.settled()


async def test_a_reload_keeps_the_token_and_asks_again_after_a_failure(tmp_path: Path) -> None:
    async with Endpoint() as there, upstream(there) as up:
        file = write_config(tmp_path, {"main": account(tmp_path, up, there)})
        async with running(file) as rig:
            await rig.reaches(await rig.send(), "delivered")
            write_config(tmp_path, {"main": account(tmp_path, up, there) + ", connections: 3"})
            assert rig.app.reload()[0]
            await rig.reaches(await rig.send(), "delivered")
            assert len(there.requests) == 1 and rig.egress().account.connections == 3
            there.plan = [refusal("invalid_client")]
            write_config(tmp_path, {"main": account(tmp_path, up, there, ", scope: mail")})
            assert rig.app.reload()[0]
            number = await rig.send()
            await until(lambda: rig.said("account_paused"))
            assert rig.app.reload()[0]
            await rig.reaches(number, "delivered")
            assert len(there.requests) == 3


# -- rotation


async def test_a_rotated_refresh_token_survives_a_restart(tmp_path: Path) -> None:
    async with Endpoint(life=0.5, rotate=True, grace=300) as there, upstream(there) as up:
        file = write_config(tmp_path, {"main": account(tmp_path, up, there)}, classes=FAST)
        for _ in range(3):
            before = len(there.requests)
            async with running(file) as rig:
                await rig.reaches(await rig.send(), "delivered")
                await until(lambda before=before: len(there.requests) >= before + 3)  # type: ignore[misc]
                assert not rig.said("oauth_failed")
        kept = tmp_path / "spool" / "oauth2" / "main.json"
        assert kept.stat().st_mode & 0o777 == 0o600 and kept.parent.stat().st_mode & 0o777 == 0o700
        assert there.login in kept.read_text()
        # A new login wins over what came of the old one.
        there.login = "new-login-5Yx"
        (tmp_path / "refresh").write_text(there.login)
        async with running(file) as rig:
            await rig.reaches(await rig.send(), "delivered")
            assert not rig.said("oauth_failed")


async def test_one_that_cannot_be_kept_is_told_and_used(tmp_path: Path) -> None:
    async with Endpoint(life=0.5, rotate=True, grace=300) as there, upstream(there) as up:
        file = write_config(tmp_path, {"main": account(tmp_path, up, there)}, classes=FAST)
        (tmp_path / "spool").mkdir(mode=0o700)
        (tmp_path / "spool" / "oauth2").write_text("in the way")
        async with running(file) as rig:
            await rig.reaches(await rig.send(), "delivered")
            await until(lambda: len(there.requests) >= 4)
            assert len(rig.said("oauth_unsaved")) == 1 and not rig.said("oauth_failed")
            (tmp_path / "spool" / "oauth2").unlink()
            await until(lambda: (tmp_path / "spool" / "oauth2" / "main.json").exists())


async def test_a_stop_waits_for_an_answer_that_may_rotate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_, "FINISH", 60.0)
    async with Endpoint(rotate=True, plan=[0.5]) as there, upstream(there) as up:
        file = write_config(tmp_path, {"main": account(tmp_path, up, there)})
        async with running(file):
            await until(lambda: there.requests)
        assert there.login in (tmp_path / "spool" / "oauth2" / "main.json").read_text()


# -- what is never done


async def test_no_password_is_tried_where_the_upstream_knows_no_tokens(tmp_path: Path) -> None:
    async with (
        Endpoint() as there,
        upstream(there, mechanisms="PLAIN LOGIN CRAM-MD5") as up,
        sending(tmp_path, up, there, classes=SLOW) as rig,
    ):
        row = await rig.tried(await rig.send())
        assert "offers neither XOAUTH2 nor OAUTHBEARER (plain login cram-md5)" in row["why"]
        assert up.commands("AUTH") == []


async def test_the_secret_that_ends_is_told_before(tmp_path: Path) -> None:
    ends = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 5 * 86400))

    def days() -> float:
        return (timegm(time.strptime(ends, "%Y-%m-%d")) - time.time()) / 86400

    before = days()
    async with Endpoint() as there, upstream(there) as up:
        (tmp_path / "secret").write_text(there.secret)
        more = f", client_secret: {{file: {tmp_path}/secret}}, expires: {ends}"
        async with sending(tmp_path, up, there, more) as rig:
            await until(lambda: rig.said("oauth_secret_expires"))
            (said,) = rig.said("oauth_secret_expires")
            assert said["days"] in (int(before), int(days())) and 4 < before < 5
            left = metric("relay_oauth_secret_expires_seconds", egress="main") - time.time()
            assert left / 86400 == pytest.approx(days(), abs=0.001)


async def test_no_secret_and_no_token_is_told(tmp_path: Path) -> None:
    """An endpoint and an upstream that quote what they hear."""
    async with Endpoint() as there:

        def echo(argument: str) -> str:
            token = max(there.given, key=lambda t: there.given[t])
            return f"535 5.7.8 bad: {token} and {token[5:30]}"

        async with Upstream({"AUTH": echo}, mechanisms="XOAUTH2", bearer=lambda *_: False) as up:
            file = write_config(tmp_path, {"main": account(tmp_path, up, there)}, classes=SLOW)
            async with running(file) as rig:
                number = await rig.send()
                await rig.tried(number)
                told = await everything(rig, number)
                assert "535 5.7.8 bad: *** and ***" in told and "canary" not in told
            (tmp_path / "refresh").write_text("canary-refresh-wrong-6Pq")
            async with running(file) as rig:
                number = await rig.send()
                assert rig.app.reload()[0]  # it still rests, and is asked again at once
                await rig.tried(number, 2) if (await rig.row(number))["attempts"] > 1 else await rig.tried(number)
                told = await everything(rig, number)
                assert "you said" in told and "canary" not in told


async def everything(rig: Rig, number: str) -> str:
    service = rig.app.admin.service
    return repr((rig.events, await rig.message(number), rig.app.scheduler.outlook.egress_rows(), service.status()))


@pytest.mark.parametrize(
    ("tls", "says"),
    [
        (Tls("none"), "never sent in clear"),
        (Tls("opportunistic"), "nobody vouches for"),
        (Tls("starttls", verify=False), "nobody vouches for"),
        (Tls("starttls"), "certificate is not accepted"),
    ],
)
async def test_a_token_goes_over_verified_connections_alone(tmp_path: Path, tls: Tls, says: str) -> None:
    """The configuration refuses it already; the code that logs in does so too, whatever it was given."""
    host = _our_address()
    if not host:
        pytest.skip("this machine has loopback addresses only")
    own = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    (tmp_path / "secret").write_text("x")
    async with Endpoint() as there, Upstream(mechanisms="XOAUTH2 PLAIN", bearer=lambda *_: True, host=host) as up:
        up.tls = None if tls.mode == "none" else context
        oauth2 = OAuth2("client_credentials", there.url, client_secret=Reference("file", str(tmp_path / "secret")))
        there.secret, user = "x", Reference("plain", USER)
        made = Account("main", Reference("plain", host), up.port, tls, user, oauth2=oauth2)
        tokens = Tokens("main", user, oauth2, Store(tmp_path / "kept"), MailLog(None), lambda: None)
        with pytest.raises(Failure) as caught:
            await connect(made, "relay.test", tokens)
        assert says in caught.value.reply.text
        assert up.logins == [] and up.commands("AUTH") == [] and len(there.requests) == 1
