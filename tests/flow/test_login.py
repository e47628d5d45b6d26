"""Logins: who may, in clear or not, how a wrong one is answered and bounded, what is remembered and for how long."""

from __future__ import annotations

import asyncio
import base64
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from certificates import Authority, authority
from conftest import until
from front import Front, front, plain

from relay.listener import auth
from relay.listener.auth import FAILURES_A_MINUTE, MAX_WAITING, hasher_
from relay.secrets import Reference
from relay.settings import Address, Listen, User
from tests.pace import jerks

__all__ = ["authority"]
BOTH_LOOPS = True

HERE = Address("127.0.0.1", 0)
MESSAGE = b"Subject: hi\r\n\r\nend\r\n"
HASH = hasher_().hash("right")
USERS = {
    "shop": User("shop", Reference("plain", "right")),
    "hashed": User("hashed", password_hash=HASH),
    "lost": User("lost", Reference("file", "/nonexistent/secret")),
    "bad hash": User("bad hash", password_hash="$argon2id$v=19$m=19456,t=2,p=1$bad"),
}
OPTIONAL = Listen("local", HERE, auth="optional")
BEHIND = Listen("behind", HERE, auth="required", proxy=("127.0.0.0/8",))
REMOTE = b"PROXY TCP4 192.0.2.%d 127.0.0.1 5000 25\r\n"


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A "no" comes sooner than in life."""
    monkeypatch.setattr(auth, "FAILED_AFTER", 0.02)


@pytest.mark.parametrize(
    "said",
    [
        ["AUTH PLAIN " + plain("shop", "right")],
        ["AUTH PLAIN " + plain("shop", "right", "shop")],
        ["auth plain   " + plain("shop", "right") + "  "],
        ["AUTH PLAIN", plain("shop", "right")],
        ["AUTH LOGIN", b64("shop"), b64("right")],
        ["AUTH LOGIN " + b64("hashed"), b64("right")],
        ["AUTH PLAIN " + plain("hashed", "right")],
    ],
)
async def test_right_ones(tmp_path: Path, said: list[str]) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay, relay.session() as client:
        *before, last = [await client.say(line) for line in said]
        assert [code for code, _ in before] == [334] * len(before)
        assert last == (235, "2.7.0 logged in")
        assert (await client.say("AUTH PLAIN " + plain("shop", "right")))[0] == 503
        assert (await client.mail(MESSAGE))[0] == 250
        (row,) = await relay.rows()
        found = await relay.spool.message(row["message"])
        assert found is not None and found["user"] in ("shop", "hashed")
        assert b"with ESMTPA id" in await relay.kept(row["message"])


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (["AUTH PLAIN ="], 501),
        (["AUTH PLAIN", "*"], 501),
        (["AUTH LOGIN", b64("shop"), "*"], 501),
        (["AUTH PLAIN", "no base64"], 501),
        (["AUTH PLAIN", ""], 501),
        (["AUTH PLAIN " + b64("\0shop\0right\0")], 501),
        (["AUTH PLAIN " + plain("shop", "right", "boss")], 535),
        (["AUTH LOGIN =", "="], 501),
        (["AUTH CRAM-MD5"], 504),
        (["AUTH"], 504),
        (["AUTH PLAIN " + plain("shop", "x" * 2000)], 501),
    ],
)
async def test_what_is_no_login(tmp_path: Path, said: list[str], code: int) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay, relay.session() as client:
        answers = [(await client.say(line))[0] for line in said]
        assert answers == [334] * (len(said) - 1) + [code]
        assert (await client.say("NOOP"))[0] == 250  # the exchange is over, and there was one reply
        assert (await client.log_in("shop", "right"))[0] == 235


async def test_order(tmp_path: Path) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay:
        async with relay.session(greet=False) as client:
            await client.reply()
            assert (await client.say("AUTH PLAIN"))[0] == 503
            await client.say("HELO x")
            assert (await client.say("AUTH PLAIN"))[0] == 503  # RFC 4954 §4: after EHLO
            await client.say("EHLO x")
            await client.say("MAIL FROM:<a@b.example>")
            assert (await client.say("AUTH PLAIN"))[0] == 503
        async with relay.session() as client:  # pipelined, as some clients do
            await client.raw(b"AUTH PLAIN\r\n" + plain("shop", "right").encode() + b"\r\nNOOP\r\nQUIT\r\n")
            assert [(await client.reply())[0] for _ in range(4)] == [334, 235, 250, 221]


async def test_a_password_is_taken_over_tls_or_from_this_machine(tmp_path: Path, authority: Authority) -> None:
    secure = Listen("secure", HERE, auth="required", proxy=("127.0.0.0/8",), tls=authority.tls())
    async with front(tmp_path, OPTIONAL, BEHIND, secure, users=USERS) as relay:
        async with relay.session() as client:
            assert "AUTH PLAIN LOGIN" in (await client.say("EHLO x"))[1]
        for said in (REMOTE % 1, b"PROXY TCP4 127.0.0.1 127.0.0.1 5 25\r\n", b"PROXY UNKNOWN\r\n"):
            async with relay.session(1, first=said) as client:
                assert "AUTH" not in (await client.say("EHLO x"))[1]
                assert (await client.log_in("shop", "right"))[0] == 538
                assert (await client.say("AUTH LOGIN"))[0] == 538
                assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 530
            async with relay.session(2, first=said) as client:
                assert "AUTH" not in (await client.say("EHLO x"))[1]
                assert (await client.log_in("shop", "right"))[0] == 538
                assert "AUTH PLAIN LOGIN" in (await client.start_tls(authority.client()))[1]
                assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 530
                assert (await client.log_in("shop", "right"))[0] == 235
                assert (await client.mail(MESSAGE))[0] == 250


async def test_every_wrong_login_is_answered_alike_and_after_the_same_time(tmp_path: Path) -> None:
    tries = [
        ("shop", "wrong"),
        ("nobody", "x"),
        ("hashed", "wrong"),
        ("lost", "x"),
        ("bad hash", "x"),
        ("shop", "right "),
    ]
    async with front(tmp_path, OPTIONAL, users=USERS) as relay, jerks() as felt:

        async def one(user: str, password: str) -> tuple[tuple[int, str], float]:
            async with relay.session() as client:
                began = time.monotonic()
                return await client.log_in(user, password), time.monotonic() - began

        answers = await asyncio.gather(*(one(*t) for t in tries))
        assert {answer for answer, _ in answers} == {(535, "5.7.8 user name or password is wrong")}
        # A second; where argon2 itself took longer than that, the next one.
        assert all(at > 0.99 and (at + 0.01) % 1.0 < 0.6 + felt.lost for _, at in answers), answers
        (told,) = relay.told("user_secret")
        assert told["user"] == "lost"
        known = [event["user"] for event in relay.told("login_failed")]
        assert sorted(map(str, known)) == ["None", "bad hash", "hashed", "lost", "shop", "shop"]
        assert "stranger" not in repr(relay.events)  # who mistakes the fields for each other types a password there


@pytest.mark.usefixtures("quick")
async def test_cut_after_five_failures(tmp_path: Path) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay, relay.session() as client:
        codes = [(await client.log_in("shop", f"wrong{i}"))[0] for i in range(5)]
        assert codes == [535] * 5
        assert (await client.reply())[0] == 421
        assert await client.reply() == (0, "")
        await until(relay.nothing_left)


async def tried(relay: Front, user: str, count: int, source: str = "") -> list[int]:
    """Wrong passwords, over as many connections as it takes."""
    codes: list[int] = []
    while len(codes) < count:
        async with relay.session(source=source) as client:
            for _ in range(min(4, count - len(codes))):
                codes.append((await client.log_in(user, f"wrong{len(codes)}"))[0])
    return codes


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("user", ["shop", "hashed", "nobody"])
async def test_ten_a_minute_and_nobody_else_is_harmed(tmp_path: Path, user: str) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay:
        assert await tried(relay, user, 13) == [535] * FAILURES_A_MINUTE + [454] * 3
        async with relay.session() as client:
            assert (await client.log_in(user, "right"))[0] == 454  # it is not even looked at
            other = "hashed" if user == "shop" else "shop"
            assert (await client.log_in(other, "right"))[0] == 235
        if user != "nobody":
            async with relay.session(source="127.0.0.9") as client:
                assert (await client.log_in(user, "right"))[0] == 235
        for key, (since, count) in list(relay.guard.logins._failures.items()):
            relay.guard.logins._failures[key] = (since - 61, count)  # a minute later
        async with relay.session() as client:
            assert (await client.log_in(user, "right"))[0] == (535 if user == "nobody" else 235)


@pytest.mark.usefixtures("quick")
async def test_it_cannot_be_told_who_exists(tmp_path: Path) -> None:
    """Many unknown names, then one: whether it is known, it hears the same."""
    async with front(tmp_path, OPTIONAL, users=USERS) as relay:
        for i in range(FAILURES_A_MINUTE + 2):
            assert await tried(relay, f"nobody{i}", 1) == [535]
        assert await tried(relay, "nobody", 1) == await tried(relay, "shop", 1) == [535]


@pytest.mark.usefixtures("quick")
async def test_guesses_side_by_side_are_no_more_than_ten(tmp_path: Path) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay:

        async def guess(number: int) -> int:
            async with relay.session() as client:
                return (await client.log_in("shop", f"wrong{number}"))[0]

        codes = await asyncio.gather(*(guess(i) for i in range(30)))
        assert sorted(codes) == [454] * 20 + [535] * FAILURES_A_MINUTE


class Clock:
    """How long argon2 had work in the thread that does it."""

    def __init__(self, relay: Front) -> None:
        self.relay = relay

    async def logins(self, *tries: tuple[str, str]) -> tuple[list[int], float]:
        codes, began = [], time.thread_time()
        pool = self.relay.guard.logins._thread
        loop = asyncio.get_running_loop()
        start = await loop.run_in_executor(pool, time.thread_time)
        for user, password in tries:
            async with self.relay.session() as client:
                codes.append((await client.log_in(user, password))[0])
        assert began >= 0
        return codes, await loop.run_in_executor(pool, time.thread_time) - start


async def test_a_verified_login_is_remembered_until_the_reload(tmp_path: Path) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay:
        clock = Clock(relay)
        codes, first = await clock.logins(("hashed", "right"))
        assert codes == [235]
        codes, again = await clock.logins(*[("hashed", "right")] * 20)
        assert codes == [235] * 20 and again < first / 4
        relay.reload()
        codes, after = await clock.logins(("hashed", "right"))
        assert codes == [235] and after > again / 4  # as much as five of those, and more
        relay.reload(users=USERS | {"hashed": User("hashed", password_hash=hasher_().hash("other"))})
        codes, _ = await clock.logins(("hashed", "right"), ("hashed", "other"))
        assert codes == [535, 235]


async def test_a_login_that_is_checked_during_the_reload_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay, relay.session() as client:
        logins, reloaded = relay.guard.logins, threading.Event()
        check = logins._argon2
        monkeypatch.setattr(logins, "_argon2", lambda *said: reloaded.wait(60) and check(*said))
        await client.raw(b"AUTH PLAIN " + plain("hashed", "right").encode() + b"\r\n")
        await until(lambda: logins._waiting)
        relay.reload(users=USERS | {"hashed": User("hashed", password_hash=hasher_().hash("other"))})
        reloaded.set()
        assert (await client.reply())[0] == 235  # it was right when it was said
        async with relay.session() as later:
            assert (await later.log_in("hashed", "right"))[0] == 535


@pytest.mark.usefixtures("quick")
async def test_a_password_file_that_is_rotated(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("old\n")
    users = {"shop": User("shop", Reference("file", str(file)))}
    async with front(tmp_path, OPTIONAL, users=users) as relay:

        async def login(password: str) -> int:
            async with relay.session() as client:
                return (await client.log_in("shop", password))[0]

        assert await login("old") == 235
        file.write_text("new\n")
        assert await login("old") == 235  # what was verified counts until the reload, or until the new one was used
        assert await login("new") == 235
        assert await login("old") == 535
        file.write_text("newer\n")
        relay.reload()
        assert [await login("new"), await login("newer")] == [535, 235]
        file.write_text("")
        relay.reload()
        assert [await login("newer"), await login("x")] == [535, 535]


async def test_forty_at_once(tmp_path: Path) -> None:
    """Different users, each with a hash: those beyond the queue are told to come again, and all get in."""
    users = {f"u{i}": User(f"u{i}", password_hash=HASH) for i in range(40)}
    async with front(tmp_path, OPTIONAL, users=users) as relay:
        busy, go = 0, threading.Event()
        relay.guard.logins._thread.submit(go.wait, 60)  # until all have come

        async def login(number: int) -> None:
            nonlocal busy
            while True:
                async with relay.session() as client:
                    code, _ = await client.log_in(f"u{number}", "right")
                if code == 235:
                    return
                assert code == 454
                busy += 1
                await until(lambda: relay.guard.logins._waiting < MAX_WAITING)

        async with asyncio.timeout(90):
            all_of_them = asyncio.gather(*(login(i) for i in range(40)))
            try:
                await until(lambda: busy == 40 - MAX_WAITING)
            finally:
                go.set()
            await all_of_them
        assert relay.guard.logins._waiting == 0


async def test_forty_of_one_application_cost_one_check(tmp_path: Path) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay:
        clock = Clock(relay)
        _, one = await clock.logins(("hashed", "right"))
        relay.reload()
        clients = [await relay.client() for _ in range(MAX_WAITING)]
        start = await asyncio.get_running_loop().run_in_executor(relay.guard.logins._thread, time.thread_time)
        codes = await asyncio.gather(*(c.log_in("hashed", "right") for c in clients))
        spent = await asyncio.get_running_loop().run_in_executor(relay.guard.logins._thread, time.thread_time) - start
        assert {code for code, _ in codes} == {235}
        assert spent < 4 * one
        for client in clients:
            await client.close()


async def test_a_client_that_goes_away_while_it_waits(tmp_path: Path) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay:
        for _ in range(5):
            client = await relay.client()
            await client.raw(b"AUTH PLAIN " + plain("hashed", "wrong").encode() + b"\r\n")
            await client.close()
        await until(relay.nothing_left)
        await until(lambda: relay.guard.logins._waiting == 0)
        assert relay.told("session_error") == []


async def test_a_user_that_is_gone_after_a_reload(tmp_path: Path) -> None:
    listen = Listen("local", HERE, auth="required")
    async with front(tmp_path, listen, users=USERS) as relay, relay.session() as client:
        assert (await client.log_in("shop", "right"))[0] == 235
        assert (await client.mail(MESSAGE))[0] == 250
        relay.reload(users={"hashed": USERS["hashed"]})
        assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 530
        assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 530
        assert (await client.log_in("hashed", "right"))[0] == 235
        assert (await client.mail(MESSAGE))[0] == 250


async def test_a_changed_password_ends_the_login_of_an_open_session(tmp_path: Path) -> None:
    async with front(tmp_path, OPTIONAL, users=USERS) as relay, relay.session() as client:
        await client.say("AUTH PLAIN " + plain("shop", "right"))
        assert (await client.mail(MESSAGE))[0] == 250
        relay.config = replace(relay.config, users=USERS | {"shop": User("shop", Reference("plain", "new"))})
        assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 530
        assert (await client.say("AUTH PLAIN " + plain("shop", "new")))[0] == 235
        assert (await client.mail(MESSAGE))[0] == 250


async def test_optional_lets_strangers_log_in(tmp_path: Path) -> None:
    """Who is not in `clients` may not send without a login: that is what the login is for."""
    listen = replace(OPTIONAL, clients=("192.0.2.0/24",))
    async with front(tmp_path, listen, users=USERS) as relay, relay.session() as client:
        assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 530
        assert (await client.say("AUTH PLAIN " + plain("shop", "right")))[0] == 235
        assert (await client.mail(MESSAGE))[0] == 250


async def test_a_secret_that_is_slow_to_read_holds_up_nobody_else(tmp_path: Path) -> None:
    pipe = tmp_path / "slow"
    os.mkfifo(pipe)
    users = USERS | {"slow": User("slow", Reference("command", "cat", (str(pipe),)))}
    async with front(tmp_path, OPTIONAL, users=users) as relay, relay.session() as one, relay.session() as other:
        waits = asyncio.ensure_future(one.say("AUTH PLAIN " + plain("slow", "right")))
        await until(lambda: relay.guard.logins._waiting == 1)
        assert (await other.say("AUTH PLAIN " + plain("hashed", "right")))[0] == 235
        assert not waits.done()
        await asyncio.to_thread(pipe.write_text, "right\n")
        assert (await waits)[0] == 235


async def test_required_means_required(tmp_path: Path) -> None:
    listen = Listen("local", HERE, auth="required", clients=("127.0.0.0/8",))
    elsewhere = Listen("else", HERE, auth="required", clients=("192.0.2.0/24",))
    optional = Listen("optional", HERE, auth="optional", clients=("192.0.2.0/24",))
    async with front(tmp_path, listen, elsewhere, optional, users=USERS) as relay:
        async with relay.session() as client:
            assert await client.say("MAIL FROM:<a@b.example>") == (530, "5.7.0 log in first")
            assert (await client.say("RCPT TO:<a@b.example>"))[0] == 503
        async with relay.session(1) as client:
            assert (await client.log_in("shop", "right"))[0] == 550  # `clients` says who may log in
            assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 530
        async with relay.session(2) as client:
            assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 530


async def test_a_secret_that_is_no_text_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", os.fsdecode(b"canary-\xff\xfe"))
    users = {"shop": User("shop", Reference("env", "SHOP_PASSWORD"))}
    async with front(tmp_path, OPTIONAL, users=users) as relay, relay.session() as client:
        assert (await client.log_in("shop", "wrong"))[0] == 535
        assert "is not UTF-8 text" in relay.told("user_secret")[0]["error"]
        assert "canary" not in repr(relay.events)
