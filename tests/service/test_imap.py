"""A mailbox at a real Dovecot: what came back is read once, whatever happens to us, to the server or to the folder."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import smtplib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.config.load import default_config
from relay.feedback.heard import Finding, Heard
from relay.feedback.imap import Place, Poller
from relay.maillog import MailLog
from relay.outgoing import verp
from relay.recipient import State
from relay.returned.understand import understand
from relay.secrets import Reference
from relay.settings import Feedback, Mailbox, Tls
from relay.spool import NewMessage, NewRecipient, SpoolError
from relay.spool.sqlite import SqliteSpool
from tests.certificates import Authority
from tests.conftest import NOW, Spools, until
from tests.returned import DOMAIN, FEEDBACK, KEY, dsn

from .dovecot import PASSWORD, USER, Dovecot
from .support import Recorder, Relay, config_text, needs, needs_root
from .support import until as wait_until

pytestmark = [needs("dovecot"), needs_root]
JUNK = b"From: a@example.org\r\nSubject: hello\r\n\r\nhow are you?\r\n"


@pytest.fixture
def dovecot(open_folder: Path) -> Iterator[Dovecot]:
    with Dovecot(open_folder) as made:
        yield made


class Desk:
    """A spool with a message to three, and who looks into the mailbox for what came back of it."""

    def __init__(self, spool: SqliteSpool, mailbox: Mailbox) -> None:
        self.spool, self.mailbox = spool, mailbox
        self.log = MailLog(None)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.log.listeners.append(lambda kind, fields: self.events.append((kind, dict(fields))))
        self.config = replace(default_config({}), feedback=Feedback(DOMAIN, KEY.encode()))
        self.message = spool.next_id()

        async def read(raw: bytes) -> list[Finding]:
            return understand(raw)

        self.heard = Heard(spool, lambda: self.config, read, self.log, lambda *_: None)
        self.poller = self.anew()

    def anew(self, **change: Any) -> Poller:
        """As after a restart."""
        self.mailbox = replace(self.mailbox, **change)
        self.poller = Poller(self.mailbox, self.heard, self.log)
        return self.poller

    async def accept(self) -> None:
        people = [NewRecipient(f"you{n}@example.net", "{}", State.QUEUED, NOW, NOW + 9e6) for n in range(3)]
        head = b"Message-ID: <m@example.com>\r\n\r\n"
        made = NewMessage(self.message, "a@example.com", "a@example.com", "", "default", "", "local", "", 0, NOW, head, b"",
                          0, 0, people)  # fmt: skip
        await self.spool.accept(made)

    def report(self, n: int) -> bytes:
        token = verp.make(KEY.encode(), self.message, n)
        return dsn(f"you{n}@example.net", headers=f"Return-Path: <bounce+{token}@{DOMAIN}>\r\nSubject: t\r\n")

    async def bounced(self) -> list[str]:
        return [row.recipient for row in await self.spool.events(0, 1000) if row.kind == "bounced"]

    def said(self, kind: str) -> list[dict[str, Any]]:
        return [fields for k, fields in self.events if k == kind]


@pytest.fixture
async def desk(spools: Spools, dovecot: Dovecot) -> Desk:
    mailbox = Mailbox(
        "box", Reference("plain", "127.0.0.1"), dovecot.port, Tls("none"), Reference("plain", USER),
        Reference("plain", PASSWORD), every=5.0,
    )  # fmt: skip
    made = Desk(await spools.open(), mailbox)
    await made.accept()
    return made


async def test_what_came_back_is_read_once(desk: Desk, dovecot: Dovecot) -> None:
    dovecot.put(desk.report(0), JUNK, desk.report(1))
    assert await desk.poller.once() == 5.0
    assert await desk.bounced() == ["you0@example.net", "you1@example.net"]
    assert len(desk.said("nothing_understood")) == 1
    for _ in range(2):
        assert await desk.anew().once() == 5.0
    assert len(desk.said("nothing_understood")) == 1  # nothing was read again
    dovecot.put(desk.report(2))
    await desk.poller.once()
    assert len(await desk.bounced()) == 3
    assert [flags for flags in dovecot.messages().values() if "Seen" in flags or "Deleted" in flags] == []


async def test_the_address_that_it_was_sent_to_is_enough(desk: Desk, dovecot: Dovecot) -> None:
    """A report that quotes nothing of the message, and an unsubscription."""
    tokens = [verp.make(KEY.encode(), desk.message, n) for n in range(3)]
    bare = dsn("someone@else.example", headers="", to=f"bounce+{tokens[0]}@{DOMAIN}")
    forged = dsn("someone@else.example", headers="", to=f"bounce+{tokens[1][::-1]}@{DOMAIN}")
    wish = f"From: you2@example.net\r\nDelivered-To: unsubscribe+{tokens[2]}@{DOMAIN}\r\n\r\n\r\n".encode()
    report = dsn("someone@else.example", headers="", to=f"unsubscribe+{tokens[1]}@{DOMAIN}")
    dovecot.put(bare, forged, wish, report)
    await desk.poller.once()
    rows = [(row.kind, row.recipient) for row in await desk.spool.events(0, 1000)]
    assert ("bounced", "you0@example.net") in rows and ("unsubscribed", "you2@example.net") in rows
    assert ("unsubscribed", "you1@example.net") not in rows


async def test_what_was_understood_is_removed_and_the_rest_stays(desk: Desk, dovecot: Dovecot) -> None:
    dovecot.put(desk.report(0), JUNK, desk.report(1))
    await desk.anew(then="delete").once()
    assert list(dovecot.messages()) == [2]
    assert len(await desk.bounced()) == 2


@pytest.mark.parametrize("folder", ["Done", "Zurück & fort/日本", 'a "b" \\ c'])
async def test_what_was_understood_is_moved(desk: Desk, dovecot: Dovecot, folder: str) -> None:
    folder = folder.replace("/", ".")  # Dovecot's Maildir parts by dots
    for n in range(2):
        dovecot.put(desk.report(n))
        await desk.anew(then=folder).once()
        assert desk.said("imap_failing") == []
    assert dovecot.messages() == {}
    assert await desk.anew(folder=folder, then="keep").once() == 5.0
    assert len(await desk.bounced()) == 2  # all of them known


async def test_another_uidvalidity_begins_anew_and_teaches_nothing_twice(desk: Desk, dovecot: Dovecot) -> None:
    dovecot.put(desk.report(0), JUNK)
    await desk.poller.once()
    began = int(time.time())
    await until(lambda: int(time.time()) > began + 1)  # Dovecot's UIDVALIDITY is a time in seconds
    dovecot.drop()
    dovecot.put(desk.report(0), desk.report(1))
    await desk.anew().once()
    assert len(desk.said("imap_anew")) == 1
    assert await desk.bounced() == ["you0@example.net", "you1@example.net"]


async def test_what_was_learnt_and_not_removed_is_removed_by_the_next_run(
    desk: Desk, dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    from relay.feedback.imapwire import ImapError, Session

    async def broken(*_: Any) -> bool:
        raise ImapError("gone")

    dovecot.put(desk.report(0), JUNK)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "remove", broken)
        await desk.anew(then="delete").once()
    assert len(await desk.bounced()) == 1 and list(dovecot.messages()) == [1, 2]
    await desk.anew().once()
    assert len(await desk.bounced()) == 1 and list(dovecot.messages()) == [2]


async def test_nothing_is_removed_that_the_spool_did_not_take(
    desk: Desk, dovecot: Dovecot, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any) -> None:
        raise SpoolError("no space left on device")

    dovecot.put(desk.report(0), desk.report(1))
    with monkeypatch.context() as patch:
        patch.setattr(desk.spool, "learn", full)
        await desk.anew(then="delete").once()
    assert [one["why"] for one in desk.said("imap_failing")] == ["no space left on device"]
    assert list(dovecot.messages()) == [1, 2]
    await desk.poller.once()
    assert dovecot.messages() == {} and len(await desk.bounced()) == 2
    assert len(desk.said("imap_well")) == 1


async def test_a_message_that_breaks_us_is_passed_over_at_last(desk: Desk, dovecot: Dovecot) -> None:
    dovecot.put(desk.report(0), JUNK, desk.report(1))

    async def fragile(raw: bytes) -> list[Finding]:
        if b"how are you" in raw:
            raise RecursionError("a fault of ours")
        return understand(raw)

    desk.heard.understand = fragile
    for _ in range(3):
        await desk.poller.once()
        assert await desk.bounced() == ["you0@example.net"]
    await desk.poller.once()
    assert len(await desk.bounced()) == 2
    assert len(desk.said("imap_stumbled")) == 3 and len(desk.said("imap_passed_over")) == 1


async def test_a_large_message_is_read_as_far_as_it_may_be(desk: Desk, dovecot: Dovecot) -> None:
    dovecot.put(desk.report(0) + b"x" * 3_000_000, desk.report(1))
    await desk.anew(max_message_size=20_000).once()
    assert len(await desk.bounced()) == 2


async def test_a_server_that_is_away_is_told_once(desk: Desk, dovecot: Dovecot) -> None:
    dovecot.stop()
    waits = [await desk.poller.once() for _ in range(6)]
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0] and desk.poller.up is False
    assert len(desk.said("imap_failing")) == 1
    dovecot.start()
    dovecot.put(desk.report(0))
    assert await desk.poller.once() == 5.0 and desk.poller.up is True
    assert len(desk.said("imap_well")) == 1 and len(await desk.bounced()) == 1


async def test_a_login_that_is_refused_tells_no_password(desk: Desk) -> None:
    await desk.anew(password=Reference("plain", "secret-that-is-wrong")).once()
    (told,) = desk.said("imap_failing")
    assert "AUTHENTICATIONFAILED" in told["why"] and "secret-that" not in str(desk.events)
    assert desk.poller.why == told["why"]
    await desk.anew(password=Reference("plain", PASSWORD)).once()
    assert desk.poller.why == ""


async def test_after_a_reload_what_failed_is_asked_at_once(desk: Desk, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("wrong")
    poller = desk.anew(password=Reference("file", str(secret)), every=3600.0)
    task = asyncio.create_task(poller.run())
    try:
        await until(lambda: poller.up is False)
        secret.write_text(PASSWORD)
        poller.hurry()
        await until(lambda: poller.up is True)
        assert len(desk.said("imap_well")) == 1
    finally:
        task.cancel()


async def test_many_messages(desk: Desk, dovecot: Dovecot) -> None:
    dovecot.put(*[JUNK] * 300, desk.report(0))
    began = time.monotonic()
    await desk.anew(then="delete").once()
    print(f"301 messages in {time.monotonic() - began:.2f} s")
    assert len(await desk.bounced()) == 1 and len(dovecot.messages()) == 300
    place = Place.read((await desk.spool.remembered())["imap box"], desk.poller._place.of if desk.poller._place else "")
    assert place.uid == 301 and place.gone == []


@pytest.mark.parametrize("mode", ["implicit", "starttls"])
async def test_tls_is_verified(open_folder: Path, tmp_path: Path, spools: Spools, mode: Any) -> None:
    authority = Authority(tmp_path)
    authority.ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    with Dovecot(open_folder, authority.certificate, authority.key) as server:
        port = server.tls_port if mode == "implicit" else server.port
        plain = Reference("plain", USER), Reference("plain", PASSWORD)
        desk = Desk(await spools.open(), Mailbox("box", Reference("plain", "127.0.0.1"), port, Tls(mode), *plain))
        await desk.accept()
        server.put(desk.report(0))
        await desk.poller.once()
        assert "certificate" in desk.said("imap_failing")[0]["why"].lower()
        await desk.anew(tls=Tls(mode, ca=tmp_path / "ca.pem")).once()
        assert len(await desk.bounced()) == 1


# -- the process


@contextlib.contextmanager
def between(target: int, word: bytes, then: Callable[[], None]) -> Iterator[int]:
    """A way to a server on which `then` happens before the client's first `word` gets there, which it never does."""
    door = socket.create_server(("127.0.0.1", 0))

    def carry(source: socket.socket, sink: socket.socket, watch: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if watch and word in data:
                    then()
                    break
                sink.sendall(data)
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = door.accept()
                server = socket.create_connection(("127.0.0.1", target))
                threading.Thread(target=carry, args=(server, client, False), daemon=True).start()
                threading.Thread(target=carry, args=(client, server, True), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield door.getsockname()[1]
    finally:
        door.close()


def test_killed_between_what_it_learnt_and_what_it_removes(tmp_path: Path, dovecot: Dovecot) -> None:
    """kill -9 just before the first STORE: the next run removes what was learnt, and learns nothing twice."""
    (tmp_path / "token").write_text(KEY)
    (tmp_path / "token").chmod(0o640)
    (tmp_path / "password").write_text(PASSWORD)

    def written(port: int, upstream: int) -> Path:
        imap = f"  imap: {{box: {{host: 127.0.0.1, port: {port}, tls: none, username: '{USER}', "
        imap += "password: {file: password}, every: 5s, then: delete}}\n"
        file = tmp_path / "relay.yaml"
        text = config_text(tmp_path, upstream, extra=FEEDBACK + imap)
        file.write_text(text.replace("via: main}", "via: main, rewrite: {reverse_path: verp}}"))
        return file

    with Recorder() as upstream:
        relay = Relay(written(dovecot.port, upstream.port))
        with relay:
            with smtplib.SMTP("127.0.0.1", relay.port, timeout=120) as smtp:
                smtp.sendmail("a@example.com", ["you@example.net"], b"Subject: t\r\n\r\nx\r\n")
            path = upstream.wait(1)[0].sender
            relay.stop()
        dovecot.put(dsn("you@example.net", headers=f"Return-Path: <{path}>\r\n"), JUNK)
        with between(dovecot.port, b"STORE", relay.kill) as port, contextlib.suppress(AssertionError):
            written(port, upstream.port)
            relay.start()
            wait_until(lambda: relay.ended, what="it is killed")
        assert relay.ended and list(dovecot.messages()) == [1, 2]
        written(dovecot.port, upstream.port)
        relay.start()
        with relay_of(relay):
            wait_until(lambda: list(dovecot.messages()) == [2], what="what was learnt is removed")
            number = re.findall(r" id=(\w+)", relay.log_file.read_text())[0]
            story = json.loads(relay.cli("queue", "show", number, "--json"))
            assert [event["kind"] for event in story["events"]].count("bounced") == 1
            assert relay.stop() == 0


@contextlib.contextmanager
def relay_of(relay: Relay) -> Iterator[None]:
    try:
        yield
    finally:
        relay.__exit__()
