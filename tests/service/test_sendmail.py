"""Programs that call sendmail(8), calling ours: what each writes is what arrives upstream."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import NamedTuple

import pytest

from relay.sendmail.main import mail_domain

from .support import ENV, ROOT, Received, Recorder, Relay, config_text, needs, run

pytestmark = pytest.mark.clients


class Lab(NamedTuple):
    folder: Path
    program: Path
    relay: Relay
    upstream: Recorder
    env: dict[str, str]

    def only(self) -> tuple[Received, EmailMessage]:
        """What arrived, and the same read."""
        [got] = self.upstream.wait(1)
        read = message_from_bytes(got.raw, policy=policy.default)
        assert isinstance(read, EmailMessage)
        return got, read


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A relay, and a sendmail beside it; the program's name has no place for an environment."""
    program = tmp_path / "relay-sendmail"
    with Recorder() as upstream:
        config = tmp_path / "relay.yaml"
        config.write_text(config_text(tmp_path, upstream.port))
        with Relay(config) as relay:
            # As the console script is, with the way to this relay in it: cron hands on no environment.
            program.write_text(
                f"#!{sys.executable}\nimport os, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
                f"os.environ['RELAY_SMTP'] = '127.0.0.1:{relay.port}'\n"
                "from relay.sendmail import main\nmain()\n"
            )
            program.chmod(0o755)
            yield Lab(tmp_path, program, relay, upstream, ENV | {"HOME": str(tmp_path)})


@needs("php")
def test_php(lab: Lab) -> None:
    """PHP 8 writes CRLF, before that it wrote LF."""
    code = (
        "exit(mail('Zoe <zoe@example.com>, bob@example.com', 'Grüße', \"one\\n.two\\r\\n.\\nend\", "
        '"From: shop@example.org\\r\\nBcc: audit@example.com\\r\\nContent-Type: text/plain; charset=utf-8", '
        "'-fbounce@example.org') ? 0 : 9);"
    )
    run("php", "-d", f"sendmail_path={lab.program} -t -i", "-r", code, env=lab.env)
    got, read = lab.only()
    assert got.sender == "bounce@example.org"
    assert sorted(got.recipients) == ["audit@example.com", "bob@example.com", "zoe@example.com"]
    assert read["Bcc"] is None and read["From"] == "shop@example.org"
    assert got.raw.partition(b"\r\n\r\n")[2] == b"one\r\n.two\r\n.\r\nend\r\n"
    lab.relay.stop()
    done = run("php", "-d", f"sendmail_path={lab.program} -t -i", "-r", code, env=lab.env, check=False)
    assert done.returncode == 9 and "try again later" in done.stderr  # mail() says false


def test_cron(lab: Lab) -> None:
    """As cron of Debian calls it, and what it writes."""
    text = (
        "From: root (Cron Daemon)\nTo: root\nSubject: Cron <root@host> test -x /x\nMIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\nX-Cron-Env: <SHELL=/bin/sh>\n\n"
        ".\nGrüße\n"
    )
    run(lab.program, "-i", "-FCronDaemon", "-B8BITMIME", "-oem", "root", input=text, env={"PATH": "/usr/bin:/bin"})
    got, read = lab.only()
    assert got.recipients == [f"root@{mail_domain()}"] and "BODY=8BITMIME" in got.parameters
    assert read["From"].addresses[0].addr_spec == f"root@{mail_domain()}"
    assert read.get_content() == ".\r\nGrüße\r\n"


def test_a_report_as_logwatch_sends_it(lab: Lab) -> None:
    text = "To: root@example.com\nFrom: logwatch@example.org\nSubject: Logwatch\n\n" + "a line of the log\n" * 40_000
    with subprocess.Popen([lab.program, "-t"], stdin=subprocess.PIPE, env=lab.env) as process:
        assert process.stdin is not None
        for line in text.splitlines(keepends=True):
            process.stdin.write(line.encode())
        process.stdin.close()
        assert process.wait(60) == 0
    got, _ = lab.only()
    assert got.raw.partition(b"\r\n\r\n")[2] == b"a line of the log\r\n" * 40_000


@needs("git")
def test_git_send_email(lab: Lab) -> None:
    if not (Path(run("git", "--exec-path").stdout.strip()) / "git-send-email").exists():
        pytest.skip("git-email is missing; tests/service/install-programs")
    env = lab.env | {
        **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
           for what, value in (("NAME", "Zoë"), ("EMAIL", "zoe@example.org"))},
        "GIT_CONFIG_NOSYSTEM": "1",
    }  # fmt: skip
    tree = lab.folder / "tree"
    tree.mkdir()
    run("git", "init", "-q", tree, env=env)
    (tree / "file").write_text("From the first\n.\nline\n")
    run("git", "-C", tree, "add", "file", env=env)
    run("git", "-C", tree, "commit", "-qm", "A change: Grüße", env=env)
    words = ("--confirm=never", "--quiet", "--to=list@example.com", "--cc=bob@example.com", "--suppress-cc=self")
    run("git", "-C", tree, "send-email", *words, f"--smtp-server={lab.program}", "-1", env=env)
    got, read = lab.only()
    assert got.sender == "zoe@example.org" or got.sender.endswith(mail_domain())
    assert sorted(got.recipients) == ["bob@example.com", "list@example.com"]
    assert "A change: Grüße" in read["Subject"] and b"\r\n+.\r\n" in got.raw


@needs("s-nail")
def test_mailx(lab: Lab) -> None:
    (lab.folder / "attached").write_bytes(bytes(range(256)))
    run(
        *("s-nail", "-n", "-S", f"mta={lab.program}", "-S", "sendwait", "-S", "ttycharset=utf-8", "-r", "me@example.org"),
        *("-s", "hello", "-b", "hidden@example.com", "-a", lab.folder / "attached", "you@example.com"),
        input="one\n.two\n", env=lab.env,
    )  # fmt: skip
    got, read = lab.only()
    assert sorted(got.recipients) == ["hidden@example.com", "you@example.com"] and read["Bcc"] is None
    assert got.sender == "me@example.org"
    [attached] = read.iter_attachments()
    assert attached.get_payload(decode=True) == bytes(range(256))


@needs("mutt")
def test_mutt(lab: Lab) -> None:
    rules = f'set sendmail="{lab.program} -oem -oi"; set use_envelope_from=yes; set from="Zoë <me@example.org>"; set copy=no'
    run(
        "mutt", "-n", "-F", "/dev/null", "-e", rules, "-s", "Grüße", "-b", "hidden@example.com", "--", "you@example.com",
        input="one\n.\ntwo\n", env=lab.env | {"LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    got, read = lab.only()
    assert got.sender == "me@example.org"
    assert sorted(got.recipients) == ["hidden@example.com", "you@example.com"]
    assert read["Subject"] == "Grüße" and read["Bcc"] is None
    assert read.get_content() == "one\r\n.\r\ntwo\r\n"


def test_a_relay_that_is_gone(lab: Lab) -> None:
    lab.relay.stop()
    done = run(lab.program, "you@example.com", input="x", env=lab.env, check=False)
    assert done.returncode == 75 and "try again later" in done.stderr


def test_who_may_read_nothing(lab: Lab) -> None:
    """RELAY_CONFIG and the socket are of no use to it, and are not looked at."""
    env = {"RELAY_CONFIG": "/nowhere", "RELAY_ENDPOINT": "/nowhere", "PATH": "/usr/bin:/bin"}
    run(lab.program, "-f", "", "you@example.com", input="x\n", env=env)
    assert lab.only()[0].sender == ""
