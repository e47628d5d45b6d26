"""The whole way round: sent, taken by a real Postfix, bounced by it, known by its return path, suppressed, refused."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.returned import DOMAIN, FEEDBACK, KEY

from .application import Application
from .postfix import Postfix
from .support import Relay, config_text, free_port, needs, needs_root, until

pytestmark = [needs("postfix"), needs_root]
# Taken, and given up afterwards: what no next hop told us.
LATER = {
    "transport_maps": "inline:{{gone@example.net=error:5.1.1 no such user here}, {full@example.net=error:5.2.2 mailbox full}}",
    "smtpd_reject_unlisted_recipient": "no",
    # With a second, its queue manager may meet a bounce that its client has not let go of yet, and leaves it lying.
    "minimal_backoff_time": "4s",
    "maximal_backoff_time": "5s",
    "queue_run_delay": "2s",
}
MESSAGE = b"From: shop@shop.example\r\nSubject: the bill\r\nMessage-ID: <bill@shop.example>\r\n\r\nPay, please.\r\n"


class Circle:
    """A relay whose upstream is a Postfix that hands everything it bounces to the relay's door for that."""

    def __init__(self, folder: Path, postfix: Postfix, door: int, application: Application) -> None:
        self.folder, self.application = folder, application
        (folder / "crm").write_text(application.secret)
        (folder / "crm").chmod(0o640)
        (folder / "token").write_text(KEY)
        (folder / "token").chmod(0o640)
        smtp = f'  smtp: {{address: "127.0.0.1:{door}"}}\n'
        extra = FEEDBACK + smtp + "suppression: {on: [hard_bounce], scope: all}\n"
        extra += (
            f"webhooks: {{crm: {{url: '{application.url}', secret: {{file: crm}}, allow_private: true, cap: 1s}}}}\n"
        )
        file = folder / "relay.yaml"
        text = config_text(folder, postfix.port, extra=extra)
        file.write_text(text.replace("via: main}", "via: main, rewrite: {reverse_path: verp}}"))
        self.relay = Relay(file)

    def send(self, recipient: str) -> str:
        """Its queue id. Raises SMTPRecipientsRefused."""
        with smtplib.SMTP("127.0.0.1", self.relay.port, timeout=120) as smtp:
            smtp.ehlo()
            smtp.mail("shop@shop.example")
            code, said = smtp.rcpt(recipient)
            if code >= 400:
                raise smtplib.SMTPRecipientsRefused({recipient: (code, said)})
            return smtp.data(MESSAGE)[1].decode().split()[-1]

    def events(self, number: str) -> list[dict[str, Any]]:
        return list(json.loads(self.relay.cli("queue", "show", number, "--json"))["events"])

    def bounced(self, number: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            return next((event for event in self.events(number) if event["kind"] == "bounced"), None)

        try:
            event = until(found, 80, "what came back is known")
        except AssertionError as late:
            raise AssertionError(f"{late}\n{self.relay.log()[-4000:]}") from None
        assert event is not None
        return event


@pytest.fixture
def circle(tmp_path: Path, open_folder: Path) -> Iterator[Circle]:
    door = free_port()
    with Postfix(open_folder, door, **LATER) as postfix, Application() as application:
        made = Circle(tmp_path, postfix, door, application)
        with made.relay:
            yield made


def test_what_bounces_later_is_known_suppressed_and_refused(circle: Circle) -> None:
    """With a kill -9 while the bounce is on its way, and one after it was learnt; the application hears of all of it."""
    number = circle.send("gone@example.net")
    # On the disk, not only in the log: else the kill leaves it in doubt, and it is sent once more.
    until(lambda: "delivered" in [event["kind"] for event in circle.events(number)], what="Postfix took it")
    circle.relay.kill()
    circle.relay.start()
    event = circle.bounced(number)
    assert event["class"] == "hard" and event["proof"] == "token"
    assert event["late"] is True and event["status"].startswith("5.1.1")
    circle.relay.kill()
    circle.relay.start()
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        circle.send("Gone@example.net")
    (code, said), *_ = refused.value.recipients.values()
    assert code == 550 and b"suppressed" in said
    assert [e["kind"] for e in circle.events(number)].count("bounced") == 1
    row = json.loads(circle.relay.cli("queue", "list", "--state", "delivered", "--json"))
    assert [r["queue_id"] for r in row] == [number]  # what it was stays
    application = circle.application
    until(lambda: "suppression_added" in application.kinds(number), what="the application knows")
    assert application.kinds(number) == ["accepted", "delivered", "bounced", "suppression_added"]
    assert application.failed and not application.forged
    told = {event["event"]: event for event in list(application.events.values()) if event.get("queue_id") == number}
    assert told["bounced"]["recipient"] == "gone@example.net" and told["bounced"]["bounce_class"] == "hard"
    assert circle.relay.stop() == 0
    circle.relay.clean()


def test_what_is_no_word_on_the_mailbox_suppresses_nobody(circle: Circle) -> None:
    number = circle.send("full@example.net")
    assert circle.bounced(number)["class"] == "soft"
    assert circle.send("full@example.net")
    assert DOMAIN not in circle.relay.cli("queue", "list", "--json")  # no report on a report was made
    circle.relay.clean()
