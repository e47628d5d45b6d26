"""sendmail(8)'s stand-in as a process, in front of a relay that runs."""

from __future__ import annotations

import asyncio
import getpass
import os
import sys
from pathlib import Path

import pytest
from fakes import Upstream
from rig import ENV, free_port, running, write_config

from relay.sendmail.main import mail_domain


class Done:
    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.out, self.err = code, out, err.decode()


async def call(port: int, *words: str, stdin: bytes = b"", env: dict[str, str] | None = None) -> Done:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from relay.sendmail import main; main()", *words),
        stdin=-1, stdout=-1, stderr=-1, env=ENV | {"RELAY_SMTP": f"127.0.0.1:{port}"} | (env or {}),
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    assert process.returncode is not None and b"Traceback" not in err, err
    return Done(process.returncode, out, err)


def behind(folder: Path, upstream: Upstream, dsn: str = "to: none") -> Path:
    return write_config(folder, {"main": f"port: {upstream.port}, tls: none"}, dsn=dsn)


def sent(upstream: Upstream) -> list[tuple[str, list[str], bytes]]:
    """(sender, recipients, content) of each transaction."""
    return [(t.sender, sorted(t.recipients), t.message) for t in upstream.transactions if t.done]


async def test_recipients_of_the_header_and_no_bcc(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(behind(tmp_path, upstream)) as rig:
        text = b"From: Shop <s@x.test>\nTo: a@y.test\nBCC: b@y.test,\n c@y.test\nSubject: dots\n\n.\n..x\nend"
        done = await call(rig.port, "-t", "-i", "-v", "d@y.test", "e@y.test", stdin=text)
        assert (done.code, done.err) == (0, "") and b"queued as" in done.out
        await rig.settled()
        [(sender, recipients, raw)] = sent(upstream)
        assert recipients == [f"{who}@y.test" for who in "abcde"]
        assert sender == f"{getpass.getuser()}@{mail_domain()}"
        head, _, body = raw.partition(b"\r\n\r\n")
        assert b"bcc" not in head.lower() and b"c@y.test" not in raw
        assert body == b".\r\n..x\r\nend\r\n"


async def test_as_cron_calls_it(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(behind(tmp_path, upstream)) as rig:
        text = "From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@host> ls\nContent-Type: text/plain\n\nÜ\n.\nb\n"
        done = await call(rig.port, "-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root", stdin=text.encode())
        assert (done.code, done.err) == (0, "")
        await rig.settled()
        [(_, recipients, raw)] = sent(upstream)
        assert recipients == [f"root@{mail_domain()}"]
        assert f"From: root@{mail_domain()} (Cron Daemon)\r\n".encode() in raw
        assert raw.endswith("\r\n\r\nÜ\r\n.\r\nb\r\n".encode())
        assert "BODY=8BITMIME" in upstream.transactions[0].mail


async def test_a_dot_ends_it_and_an_author_is_named(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(behind(tmp_path, upstream)) as rig:
        done = await call(rig.port, "-F", 'Jo "x"', "-f", "jo@x.test", "a@y.test", stdin=b"text\n.\nnot this\n")
        assert (done.code, done.err) == (0, "")
        await rig.settled()
        [(sender, _, raw)] = sent(upstream)
        assert sender == "jo@x.test"
        assert b'From: "Jo \\"x\\"" <jo@x.test>\r\n' in raw and raw.endswith(b"\r\n\r\ntext\r\n")


async def test_the_null_sender_and_what_is_asked_of_reports(tmp_path: Path) -> None:
    async with (
        Upstream(extensions=("DSN", "8BITMIME")) as upstream,
        running(behind(tmp_path, upstream, "to: sender")) as rig,
    ):
        words = ("-f", "", "-N", "never", "-R", "hdrs", "-V", "a+b", "--", "a@y.test")
        done = await call(rig.port, *words, stdin=b"From: x@y.test\n\nx\n")
        assert (done.code, done.err) == (0, "")
        await rig.settled()
        mail = upstream.transactions[0].mail
        assert mail.startswith("FROM:<>") and "RET=HDRS" in mail and "ENVID=a+2Bb" in mail
        assert any("NOTIFY=NEVER" in line for line in upstream.sessions[0])


async def test_addresses_beyond_ascii(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(behind(tmp_path, upstream)) as rig:
        done = await call(rig.port, "-t", stdin="From: x@y.test\nTo: Zoë <zoë@y.test>\n\nx\n".encode())
        assert (done.code, done.err) == (0, "")
        await rig.settled()
        assert sent(upstream)[0][1] == ["zoë@y.test"]


async def test_megabytes(tmp_path: Path) -> None:
    async with Upstream() as upstream, running(behind(tmp_path, upstream)) as rig:
        body = b"".join(b"%07d %s\n" % (n, b"." * 60) for n in range(70_000))
        done = await call(rig.port, "-oi", "a@y.test", stdin=b"From: x@y.test\n\n" + body)
        assert (done.code, done.err) == (0, "")
        await rig.settled()
        assert sent(upstream)[0][2].partition(b"\r\n\r\n")[2] == body.replace(b"\n", b"\r\n")
        done = await call(rig.port, "-oi", "a@y.test", stdin=b"From: x@y.test\n\n" + b"x" * 26_000_000)
        assert done.code == 65 and "552 5.3.4" in done.err


async def test_more_recipients_than_one_message_may_have(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"})
    file.write_text(file.read_text().replace("name: local,", "name: local, max_recipients: 3,"))
    async with running(file) as rig:
        people = [f"p{n}@y.test" for n in range(8)]
        done = await call(rig.port, *people, stdin=b"x\n")
        assert (done.code, done.err) == (0, "")
        rows = await rig.rows()
        assert sorted(row["recipient"] for row in rows) == people
        assert len({row["queue_id"] for row in rows}) == 3


REFUSING = """  - {name: no, match: {recipient: "no@*"}, reject: not this one}
  - {name: all, via: [main]}"""


async def test_who_is_refused(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"}, routes=REFUSING)
    async with running(file) as rig:
        done = await call(rig.port, "no@y.test", "a@y.test", stdin=b"x\n")
        assert done.code == 0 and "refused: <no@y.test>: 550 5.7.1 not this one" in done.err
        done = await call(rig.port, "no@y.test", stdin=b"x\n")
        assert done.code == 77
        done = await call(rig.port, "odd..@-", stdin=b"x\n")
        assert done.code == 67 and "5.1.3" in done.err
        assert [row["recipient"] for row in await rig.rows()] == ["a@y.test"]
        rig.app.spool.reserve = 1 << 62  # more than any disk has
        rig.app.spool.check_room()
        done = await call(rig.port, "a@y.test", stdin=b"x\n")
        assert done.code == 75 and "452 4.3.1" in done.err


@pytest.mark.parametrize(
    ("words", "stdin", "code"),
    [
        ((), b"x", 64),
        (("-bd",), b"", 64),
        (("-t",), b"Subject: nobody\n\nx", 65),
        (("-t",), b"To: a@b c@d\n\nx", 65),
        (("a@b", "-f", "c@d"), b"x", 64),
        (("-bi",), b"", 0),
        (("-q15m",), b"", 0),
        (("a@y.test",), b"x", 75),
        (("-bs",), b"QUIT\r\n", 75),
    ],
)
async def test_without_a_relay(words: tuple[str, ...], stdin: bytes, code: int) -> None:
    done = await call(free_port(), *words, stdin=stdin)
    assert done.code == code
    assert (done.err == "") is (code == 0) and done.err.count("\n") <= 1


async def test_whoever_does_not_listen_is_told_by_the_exit_code(tmp_path: Path) -> None:
    """A full disk behind the output must not make the caller send again what was taken."""
    async with running(write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"})) as rig:
        program = f'"{sys.executable}" -c "from relay.sendmail import main; main()"'

        async def shell(words: str, port: int = rig.port) -> tuple[int, str]:
            process = await asyncio.create_subprocess_exec(
                "sh", "-c", f"printf 'Subject: t\\n\\nx\\n' | {program} {words}",
                stdout=-1, stderr=-1, env=ENV | {"RELAY_SMTP": f"127.0.0.1:{port}"},
            )  # fmt: skip
            _, err = await asyncio.wait_for(process.communicate(), 60)
            assert process.returncode is not None
            return process.returncode, err.decode()

        for count, words in enumerate(("-v a@y.test >/dev/full", "-v a@y.test >&-"), 1):
            assert await shell(words) == (0, "")
            assert await rig.count() == count
        for words in ("a@y.test 2>/dev/full", "a@y.test 2>&-"):
            assert await shell(words, free_port()) == (75, "")
        code, err = await shell("-f 'a b@x.test' a@y.test")
        assert code == 65 and err.startswith("sendmail: -f: 'a b@x.test'")
        code, err = await shell("a@y.test <&-")
        assert code == 65 and "standard input cannot be read" in err
        assert await rig.count() == 2


async def test_a_queue_of_which_the_beginning_is_enough(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"})) as rig:
        await rig.send_many([("a@x.test", (f"{'r' * 50}{n}@y.test",), b"Subject: t\r\n\r\n") for n in range(900)])
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", f'"{sys.executable}" -c "from relay.sendmail import main; main()" -bp | head -n 1',
            stdout=-1, stderr=-1, env=ENV | {"RELAY_ENDPOINT": str(tmp_path / "admin.sock")},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert out.startswith(b"-Queue ID-") and err == b""


LOGIN = """users: {app: {password: {file: secret}}}
"""


async def test_with_a_login(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("open sesame\n")
    secret.chmod(0o600)
    file = write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"}, extra=LOGIN)
    file.write_text(file.read_text().replace("name: local,", "name: local, auth: required,"))
    mine = tmp_path / "mine"
    mine.write_text("open sesame\n")
    env = {"RELAY_SMTP_USER": "app", "RELAY_SMTP_PASSWORD_FILE": str(mine)}
    async with running(file) as rig:
        assert (await call(rig.port, "a@y.test", stdin=b"x\n")).code == 77
        done = await call(rig.port, "a@y.test", stdin=b"x\n", env=env)
        assert (done.code, done.err) == (0, "")
        assert (await rig.rows())[0]["user"] == "app"
        mine.write_text("close sesame\n")
        done = await call(rig.port, "a@y.test", stdin=b"x\n", env=env)
        assert done.code == 77 and "535" in done.err and "sesame" not in done.err


async def test_smtp_on_its_standard_input(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"})) as rig:
        said = (
            b"EHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\nSubject: x\r\n\r\n\xffhi\r\n.\r\nQUIT\r\n"
        )
        done = await call(rig.port, "-bs", stdin=said)
        assert done.code == 0 and done.err == ""
        assert done.out.startswith(b"220 ") and b"queued as" in done.out and done.out.endswith(b"221 2.0.0 Bye\r\n")
        done = await call(rig.port, "-bs", stdin=b"NOOP\r\n")  # and then its end
        assert done.code == 0 and done.out.endswith(b"250 2.0.0 Ok\r\n")


async def test_the_queue_as_mailq_shows_it(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"})) as rig:
        env = {"RELAY_ENDPOINT": str(tmp_path / "admin.sock"), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
        assert (await call(rig.port, "-bp", env=env)).out == b"Mail queue is empty\n"
        number = await rig.send("a@y.test", "b@y.test")
        done = await call(rig.port, "-bp", env=env)
        assert done.code == 0 and number.encode() in done.out and b"b@y.test" in done.out
        assert done.out.endswith(b"in 1 Request.\n")
        done = await call(rig.port, "-bp", env=env | {"RELAY_ENDPOINT": str(tmp_path / "none.sock")})
        assert done.code == 69 and "no relay is running" in done.err


async def test_relay_sendmail_is_the_same(tmp_path: Path) -> None:
    async with running(write_config(tmp_path, {"main": f"port: {free_port()}, tls: none"})) as rig:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "sendmail", "-i", "-f", "x@y.test", "--", "-a@y.test"),
            stdin=-1, env=ENV | {"RELAY_SMTP": f"127.0.0.1:{rig.port}"},
        )  # fmt: skip
        await asyncio.wait_for(process.communicate(b"Subject: x\n\nhi\n"), 60)
        assert process.returncode == 0
        assert [(row["sender"], row["recipient"]) for row in await rig.rows()] == [("x@y.test", "-a@y.test")]


async def test_both_ways_to_call_it_load_little(tmp_path: Path) -> None:
    """It is started once for each message: neither the command line of all verbs, nor what imports half the library."""
    heavy = "click", "dataclasses", "inspect", "asyncio", "pydantic", "yaml", "email.parser"
    for module in ("relay.sendmail", "relay.__main__"):
        words = ["sendmail"] if module == "relay.__main__" else []
        code = (
            f"import sys; from {module} import main; sys.argv[1:] = {[*words, 'you@example.net']}\n"
            f"try:\n    main()\nfinally:\n    print(sorted(set(sys.modules) & set({heavy})))"
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code), stdin=-1, stdout=-1, stderr=-1, cwd=tmp_path,
            env=ENV | {"RELAY_SMTP": f"127.0.0.1:{free_port()}"},
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(b"Subject: t\n\nhello\n"), 60)
        assert (process.returncode, out) == (75, b"[]\n"), err
