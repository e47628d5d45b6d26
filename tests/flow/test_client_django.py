"""Django's own functions, by our backend, before a real relay."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from email import message_from_bytes, policy
from email.message import EmailMessage as Parsed
from email.mime.image import MIMEImage
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core import mail
from django.test.utils import override_settings
from fakes import Transaction, Upstream
from rig import Rig, free_port, running, write_config

from relay.client import Refused, Unavailable
from relay.client.django import relay as backend_relay

if not settings.configured:
    settings.configure(
        EMAIL_BACKEND="relay.client.django.EmailBackend", DEFAULT_FROM_EMAIL="Shop <shop@example.com>", USE_TZ=True
    )
    django.setup()


class Django:
    def __init__(self, rig: Rig, up: Upstream) -> None:
        self.rig, self.up = rig, up

    async def does(self, what: Callable[[], Any], **given: Any) -> Any:
        def run() -> Any:
            backend = "relay.client.django.EmailBackend"
            with override_settings(
                EMAIL_BACKEND=backend, RELAY_URL=f"unix:{self.rig.app.config.admin.socket}", **given
            ):
                try:
                    return what()
                finally:
                    backend_relay().close()  # a process has one for good; a test its own

        return await asyncio.to_thread(run)

    async def arrived(self) -> list[tuple[Transaction, Parsed]]:
        await self.rig.settled()
        return [(t, message_from_bytes(t.message, policy=policy.default)) for t in self.up.transactions if t.message]  # type: ignore[misc]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Django]:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        yield Django(rig, up)


async def test_send_mail(site: Django) -> None:
    sent = await site.does(
        lambda: mail.send_mail(
            "Grüße", "Hallo Ä\n", "Shop Ä <shop@example.com>", ["Ann <ann@example.net>"], html_message="<p>"
        )
    )
    assert sent == 1
    ((got, message),) = await site.arrived()
    assert (got.sender, got.recipients) == ("shop@example.com", ["ann@example.net"])
    assert message["Subject"] == "Grüße" and message["From"].addresses[0].display_name == "Shop Ä"
    parts = {p.get_content_type(): p.get_content() for p in message.walk() if not p.is_multipart()}
    assert parts["text/plain"].strip() == "Hallo Ä" and parts["text/html"].strip() == "<p>"


async def test_send_mass_mail_is_one_batch(site: Django) -> None:
    many = [(f"s{i}", "t", None, [f"c{i}@example.net"]) for i in range(30)]
    assert await site.does(lambda: mail.send_mass_mail(many)) == 30
    assert sorted(t.recipients[0] for t, _ in await site.arrived()) == sorted(f"c{i}@example.net" for i in range(30))


async def test_alternatives_attachments_inline_and_everybody_who_gets_it(site: Django) -> None:
    def send() -> int:
        message = mail.EmailMultiAlternatives(
            "s", "text", "a@example.com", ["b@example.net"], cc=["c@example.net"], bcc=["d@example.net"], reply_to=["r@example.com"],
            headers={"X-Order": "17", "Message-ID": "<own@example.com>"},
        )  # fmt: skip
        message.attach_alternative("<img src='cid:logo'>", "text/html")
        message.attach("bill.pdf", b"%PDF", "application/pdf")
        logo = MIMEImage(b"\x89PNG", "png")
        logo.add_header("Content-ID", "<logo>")
        if django.VERSION < (6,):
            message.attach(logo)
        return message.send()

    assert await site.does(send) == 1
    arrived = await site.arrived()
    assert sorted(r for t, _ in arrived for r in t.recipients) == ["b@example.net", "c@example.net", "d@example.net"]
    for _, message in arrived:
        assert message["Bcc"] is None and message["X-Order"] == "17" and message["Reply-To"] == "r@example.com"
        assert message["Message-ID"] == "<own@example.com>"
        assert {"text/plain", "text/html", "application/pdf", "image/png"} <= {
            p.get_content_type() for p in message.walk()
        }


async def test_what_the_relay_is_told_does_not_leave(site: Django) -> None:
    headers = {
        "X-Relay-Tag": "orderÄ",
        "X-Relay-Priority": "1",
        "X-Relay-Metadata": '{"order": 17}',
        "x-relay-idempotency-key": "o-17",
    }

    def send() -> int:
        return mail.EmailMessage(
            "s",
            "t",
            "a@example.com",
            ["b@example.net"],
            headers=headers | {"Message-ID": "<1@x>", "Date": "Mon, 1 Jan 2024 00:00:00 +0000"},
        ).send()

    assert await site.does(send) == 1
    ((_, message),) = await site.arrived()
    assert not [name for name in message if name.lower().startswith("x-relay")]
    (row,) = await site.rig.rows()
    assert (row["tag"], row["priority"]) == ("orderÄ", 1)


async def test_nobody_to_send_to(site: Django) -> None:
    assert await site.does(lambda: mail.EmailMessage("s", "t", "a@example.com", []).send()) == 0
    assert await site.rig.count() == 0


async def test_one_that_is_refused_keeps_no_other_back(site: Django) -> None:
    def send(silently: bool) -> int:
        with mail.get_connection(fail_silently=silently) as connection:
            made = [
                mail.EmailMessage("s", "t", "a@example.com", [to])
                for to in ("b@example.net", "no-address", "c@example.net")
            ]
            return connection.send_messages(made)

    assert await site.does(lambda: send(True)) == 2
    with pytest.raises(Refused):
        await site.does(lambda: send(False))
    assert await site.rig.count() == 4


async def test_bad_headers_are_told_before_anything_is_sent(site: Django) -> None:
    with pytest.raises(ValueError, match="newline"):
        await site.does(lambda: mail.send_mail("s\nBcc: x@example.com", "t", None, ["b@example.net"]))
    with pytest.raises(ValueError, match="X-Relay-Send-At"):
        await site.does(
            lambda: mail.EmailMessage("s", "t", None, ["b@example.net"], headers={"X-Relay-Send-At": "soon"}).send()
        )
    with pytest.raises(ValueError, match="wants a JSON object"):
        await site.does(
            lambda: mail.EmailMessage("s", "t", None, ["b@example.net"], headers={"X-Relay-Metadata": "[17]"}).send()
        )
    assert await site.rig.count() == 0


async def test_no_relay(tmp_path: Path) -> None:
    def send(silently: bool) -> int:
        with override_settings(
            EMAIL_BACKEND="relay.client.django.EmailBackend", RELAY_URL=f"http://127.0.0.1:{free_port()}"
        ):
            return mail.send_mail("s", "t", "a@example.com", ["b@example.net"], fail_silently=silently)

    with pytest.raises(Unavailable, match="is the relay running"):
        await asyncio.to_thread(send, False)
    assert await asyncio.to_thread(send, True) == 0


def test_a_token_does_not_go_out_in_the_clear() -> None:
    given = {
        "EMAIL_BACKEND": "relay.client.django.EmailBackend",
        "RELAY_URL": "http://relay.invalid",
        "RELAY_TOKEN": "relay_x",
    }
    with override_settings(**given), pytest.raises(ValueError, match="in the clear"):
        mail.send_mail("s", "t", "a@example.com", ["b@example.net"], fail_silently=True)
    with override_settings(**given, RELAY_ALLOW_HTTP=True):
        assert "relay.invalid" in repr(backend_relay())
