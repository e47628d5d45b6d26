"""Real mail clients, byte for byte: what each hands over is what arrives upstream, behind our Received.

A tee stands between the client and the relay and keeps the octets that the client said, so that nothing need be known
of what a client makes of its input; where it is given a finished message, that one must come through too.
"""

from __future__ import annotations

import os
import re
import smtplib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from typing import NamedTuple

import pytest

from .postfix import Postfix
from .support import (
    ENV,
    Received,
    Recorder,
    Relay,
    Tee,
    answers,
    config_text,
    find,
    free_port,
    needs,
    needs_root,
    run,
    until,
    without_prefix,
)

pytestmark = pytest.mark.clients
HERE = Path(__file__).parent

# All that a clean message may hold and that something on the way could spoil.
EML = b"".join(
    line + b"\r\n"
    for line in (
        b"From: =?utf-8?q?B=C3=BCcherei?= <%b>",
        b"To: zoe@example.com,",
        b"\tbob@example.com",
        b"Subject: folded",
        b"  twice,",
        b"\twith a tab and trailing blanks  \t",
        b"DATE: Sat, 21 Nov 2026 10:00:00 +0100",
        b"message-id:<exact@client.test>",
        b"MIME-Version: 1.0",
        b"X-Empty:",
        b"X-Long: " + b"a" * 900,
        b"Content-Type: text/plain; charset=utf-8",
        b"Content-Transfer-Encoding: 8bit",
        b"",
        b".",
        b"..",
        b".leading dot",
        "Köln, дом, 🏠".encode(),
        b"trailing blanks   \t",
        b"From the beginning of a line",
        b"y" * 990,
        b"",
        b"",
        b".",
        b"",
    )
)


class Way(NamedTuple):
    """A client's way through the relay."""

    tee: Tee
    upstream: Recorder
    relay: Relay

    @property
    def port(self) -> int:
        return self.tee.port

    def through(self, sender: str, count: int = 1, timeout: float = 30) -> tuple[list[bytes], list[Received]]:
        """(what was said, what arrived) of one sender, once all is there and equal to the octet."""
        until(lambda: len(self.arrived(sender)) >= count, timeout, f"{count} messages from {sender} arrive")
        said, arrived = self.tee.messages(sender), self.arrived(sender)
        assert len(said) == len(arrived) == count
        by_id = {_message_id(raw): raw for raw in said}
        assert len(by_id) == count or not all(by_id)
        for received in arrived:
            sent = by_id.get(_message_id(received.raw), said[0])
            assert without_prefix(received.raw, sent) == sent
        return said, arrived

    def arrived(self, sender: str) -> list[Received]:
        return [m for m in self.upstream.messages if m.sender == sender]


def _message_id(raw: bytes) -> bytes:
    found = re.search(rb"^message-id:\s*(\S+)", raw.partition(b"\r\n\r\n")[0], re.IGNORECASE | re.MULTILINE)
    return found[1] if found else b""


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Way]:
    folder = tmp_path_factory.mktemp("clients")
    with Recorder() as upstream:
        file = folder / "relay.yaml"
        file.write_text(config_text(folder, upstream.port))
        with Relay(file) as relay, Tee(relay.port) as tee:
            yield Way(tee, upstream, relay)
            assert relay.stop() == 0
            relay.clean()


def eml(folder: Path, sender: str, *, crlf: bool = True) -> tuple[Path, bytes]:
    raw = EML % sender.encode()
    file = folder / "message.eml"
    file.write_bytes(raw if crlf else raw.replace(b"\r\n", b"\n"))
    return file, raw


def test_smtplib(way: Way) -> None:
    raw = EML % b"smtplib@example.com"
    with smtplib.SMTP("127.0.0.1", way.port, timeout=120) as smtp:
        refused = smtp.sendmail("smtplib@example.com", ["zoe@example.com", "bob@example.com"], raw, ["BODY=8BITMIME"])
    assert not refused
    said, arrived = way.through("smtplib@example.com")
    assert said == [raw]
    assert arrived[0].recipients == ["zoe@example.com", "bob@example.com"]
    assert "BODY=8BITMIME" in arrived[0].parameters


def test_smtplib_with_addresses_beyond_ascii(way: Way) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "jörg@example.com", "zoë@exämple.com", "Grüße"
    message.set_content("Köln\n")
    with smtplib.SMTP("127.0.0.1", way.port, timeout=120) as smtp:
        smtp.send_message(message)
    _, arrived = way.through("jörg@example.com")
    assert arrived[0].recipients == ["zoë@exämple.com"]
    assert "SMTPUTF8" in arrived[0].parameters


@needs("swaks")
def test_swaks(way: Way, tmp_path: Path) -> None:
    sender, to = "swaks@example.com", "zoe@example.com,bob@example.com"
    file, raw = eml(tmp_path, sender)
    # Without its fix-up swaks sends what it is given: dots are ours to stuff.
    file.write_bytes(re.sub(rb"(?m)^\.", b"..", raw) + b".\r\n")
    common = ("swaks", "--server", "127.0.0.1", "--port", str(way.port), "--from", sender, "--to", to)
    run(*common, "--no-data-fixup", "--data", f"@{file}")
    said, arrived = way.through(sender)
    assert said == [raw]
    assert arrived[0].recipients == to.split(",")


@needs("swaks")
def test_swaks_as_it_comes(way: Way, tmp_path: Path) -> None:
    """Its own header, an attachment, pipelining."""
    attached = tmp_path / "some.bin"
    attached.write_bytes(bytes(range(256)) * 64)
    common = ("swaks", "--server", "127.0.0.1", "--port", str(way.port), "--from", "swaks2@example.com")
    run(*common, "--to", "zoe@example.com", "--pipeline", "--attach", f"@{attached}", "--body", ".\nhello")
    way.through("swaks2@example.com")


@needs("msmtp")
def test_msmtp(way: Way, tmp_path: Path) -> None:
    sender = "msmtp@example.com"
    file, raw = eml(tmp_path, sender, crlf=False)
    options = ("--host=127.0.0.1", f"--port={way.port}", "--tls=off", "--auth=off", f"--from={sender}")
    with file.open("rb") as content:
        run("msmtp", "--file=/dev/null", *options, "zoe@example.com", "bob@example.com", stdin=content)
    said, _ = way.through(sender)
    assert said == [raw]


@needs("curl")
@pytest.mark.parametrize("crlf", [True, False], ids=["crlf", "lf"])
def test_curl(way: Way, tmp_path: Path, crlf: bool) -> None:
    sender = f"curl-{crlf}@example.com"
    file, raw = eml(tmp_path, sender, crlf=crlf)
    url = f"smtp://127.0.0.1:{way.port}/client.test"
    options = ("--mail-from", sender, "--mail-rcpt", "zoe@example.com", "--mail-rcpt", "bob@example.com")
    run("curl", "--silent", "--show-error", url, *options, *([] if crlf else ["--crlf"]), "--upload-file", file)
    said, _ = way.through(sender)
    assert said == [raw]


@needs("git")
def test_git_send_email(way: Way, tmp_path: Path) -> None:
    """A real commit, from a folder without a configuration of the user."""
    if not (Path(run("git", "--exec-path").stdout.strip()) / "git-send-email").exists():
        pytest.skip("git-email is missing; tests/service/install-programs")
    env = ENV | {"HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"}

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=Jörg", "-c", "user.email=git@example.com")
        return run("git", *identity, *arguments, cwd=tmp_path / "repo", env=env).stdout

    (tmp_path / "repo").mkdir()
    git("init", "--quiet", "--initial-branch=main")
    for n, text in enumerate((".\n..\nplain\n", ".\n..\nKöln 🏠\nplain\n\n")):
        (tmp_path / "repo/file").write_text(text)
        git("add", "file")
        git("commit", "--quiet", "-m", f"file: Change {n}.", "-m", ".a line with a dot\nFrom the start\nGrüße")
    server = ("--smtp-server=127.0.0.1", f"--smtp-server-port={way.port}", "--confirm=never")
    git("send-email", *server, "--from=git@example.com", "--to=zoe@example.com", "--suppress-cc=all", "--root", "HEAD")
    said, _ = way.through("git@example.com", 2)
    assert "Köln 🏠".encode() in said[1]


DJANGO = """
import sys
from django.conf import settings
settings.configure(EMAIL_HOST="127.0.0.1", EMAIL_PORT=int(sys.argv[1]), EMAIL_TIMEOUT=30)
import django
django.setup()
from django.core.mail import EmailMultiAlternatives, get_connection, send_mass_mail
message = EmailMultiAlternatives(
    "Grüße — дом 🏠", ".\\n..\\nKöln liegt am Rhein\\n" + "x" * 1200 + "\\n", "Bücherei <django@example.com>",
    ["Zoë <zoe@example.com>"], bcc=["hidden@example.com"], cc=["bob@example.com"], reply_to=["answer@example.com"],
)
message.attach_alternative("<p>Köln liegt am <b>Rhein</b></p>", "text/html")
message.attach("größe.bin", bytes(range(256)) * 64, "application/octet-stream")
message.attach("notes.txt", ".\\n.\\n", "text/plain")
assert message.send() == 1
assert send_mass_mail([(f"Nr. {n}", "text", "django@example.com", ["zoe@example.com"]) for n in range(5)]) == 5
"""


def test_django(way: Way, tmp_path: Path) -> None:
    pytest.importorskip("django")
    script = tmp_path / "send.py"
    script.write_text(DJANGO)
    run(sys.executable, script, str(way.port))
    _, arrived = way.through("django@example.com", 6)
    assert set(arrived[0].recipients) == {"zoe@example.com", "bob@example.com", "hidden@example.com"}
    assert b"hidden@" not in arrived[0].raw


@needs("node")
@pytest.mark.parametrize(("pool", "count"), [("single", 1), ("pool", 30)])
def test_nodemailer(way: Way, pool: str, count: int) -> None:
    if not (HERE / "node/node_modules/nodemailer").exists():
        pytest.skip("Nodemailer is missing; tests/service/install-programs")
    sender = f"node-{pool}@example.com"
    done = run("node", HERE / "node/send.js", str(way.port), sender, str(count), pool)
    assert done.stdout.count("250 2.0.0 Ok: queued as ") == count
    _, arrived = way.through(sender, count)
    assert all(len(m.recipients) == 3 and b"hidden@" not in m.raw for m in arrived)


@needs("smtp-source")
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "fresh"])
def test_smtp_source(way: Way, kept: bool) -> None:
    """1,000 messages over ten connections at once, kept open or a new one for each message."""
    sender = f"source-{'kept' if kept else 'fresh'}@example.com"
    options = ("-s", "10", "-m", "1000", "-l", "4096", "-f", sender, "-t", "zoe@example.com")
    run("smtp-source", *(["-d"] if kept else []), *options, f"127.0.0.1:{way.port}", timeout=120)
    way.through(sender, 1000, timeout=120)


def test_no_message_twice(way: Way) -> None:
    """Nobody was killed: over all clients above, each message came once."""
    ids = Counter(_RELAY_ID.search(m.raw)[1] for m in way.upstream.messages)  # type: ignore[index]
    assert ids
    assert max(ids.values()) == 1


_RELAY_ID = re.compile(rb"^\tby relay\.test with \S+ id (\w+);", re.MULTILINE)


# -- real upstreams


@needs("smtp-sink")
def test_upstream_smtp_sink(tmp_path: Path, open_folder: Path) -> None:
    """Postfix' sink keeps each message in a file."""
    folder, port = open_folder / "dump", free_port()
    folder.mkdir()
    folder.chmod(0o777)
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    sink = subprocess.Popen([str(find("smtp-sink")), *user, "-d", f"{folder}/", f"127.0.0.1:{port}", "100"], env=ENV)
    try:
        until(lambda: answers(port), what="smtp-sink answers")
        file = tmp_path / "relay.yaml"
        file.write_text(config_text(tmp_path, port))
        raw = EML % b"sink@example.com"
        with Relay(file) as relay:
            with smtplib.SMTP("127.0.0.1", relay.port, timeout=120) as smtp:
                for n in range(50):
                    smtp.sendmail(f"{n}@example.com", ["zoe@example.com"], raw)
            until(lambda: len(relay.lines("delivered")) == 50, what="50 messages are delivered")
            assert relay.stop() == 0
            relay.clean()
        files = [f.read_bytes() for f in folder.iterdir()]
        kept = [text for text in files if b"X-Helo-Args: relay.test" in text]
        assert len(kept) == 50
        assert {re.search(rb"X-Mail-Args: <(\d+)@", text)[1] for text in kept} == {b"%d" % n for n in range(50)}  # type: ignore[index]
        for text in kept:
            assert raw.replace(b"\r\n", b"\n") in text.replace(b"\r\n", b"\n")
    finally:
        sink.terminate()
        sink.wait(10)


@needs("postfix")
@needs_root
def test_upstream_postfix(tmp_path: Path, open_folder: Path) -> None:
    """Through a real Postfix, and further: what Postfix passes on is what was sent, behind two Received."""
    raw = EML % b"postfix@example.com"
    with Recorder() as last, Postfix(open_folder, last.port) as postfix:
        file = tmp_path / "relay.yaml"
        file.write_text(config_text(tmp_path, postfix.port))
        with Relay(file) as relay:
            with smtplib.SMTP("127.0.0.1", relay.port, timeout=120) as smtp:
                for n in range(100):
                    smtp.sendmail(f"{n}@example.com", ["zoe@example.com", "bob@example.com"], raw, ["BODY=8BITMIME"])
            last.wait(100)
            # The log tells Postfix' own queue ids. Postfix may have passed one on before we are told that it took it.
            until(
                lambda: len(set(re.findall(r"queued as \w+", relay.log()))) >= 100, what="Postfix' queue ids in the log"
            )
            assert relay.stop() == 0
            relay.clean()
    assert Counter(m.sender for m in last.messages) == Counter(f"{n}@example.com" for n in range(100))
    for m in last.messages:
        end = m.raw.index(b"\r\nReceived: ") + 2
        assert b"by postfix.test (Postfix)" in m.raw[:end]
        assert without_prefix(m.raw[end:], raw) == raw
        assert sorted(m.recipients) == ["bob@example.com", "zoe@example.com"]
