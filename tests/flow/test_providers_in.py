"""Providers call: what they say becomes an event, a suppression, a rate; once, however often; and only if it is they."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from relay import https
from relay.feedback import http
from relay.feedback.providers import Later
from relay.policy.suppression import Why
from tests import webhooks
from tests.publicside import Bench, public
from tests.webhooks import PEM_URL, TOPIC, Signer, ses_bounce

LOGIN = {"Authorization": webhooks.login("relay", "secret")}
BEARER = {"Authorization": "Bearer secret"}
GONE = "550 5.1.1 <you@example.net>: user unknown"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with public(tmp_path) as made:
        yield made


def bounces(name: str, number: str) -> tuple[Any, dict[str, str]]:
    """One hard bounce of `you@example.net` as each provider tells it, and the headers that come with it."""
    match name:
        case "sendgrid":
            event = {
                "event": "bounce",
                "type": "bounce",
                "email": "you@example.net",
                "reason": GONE,
                "sg_event_id": "1",
                "relay": number,
            }
            raw = json.dumps([event]).encode()
            return raw, webhooks.sendgrid(raw, str(int(time.time())))
        case "mailgun":
            status = {"code": 550, "message": GONE}
            event = {"event": "failed", "severity": "permanent", "recipient": "you@example.net", "delivery-status": status,
                     "user-variables": {"relay": number}}  # fmt: skip
            return webhooks.mailgun(event, time.time()), {}
        case "postmark":
            return {"RecordType": "Bounce", "Type": "HardBounce", "ID": 7, "Email": "you@example.net", "Details": GONE,
                    "Metadata": {"relay": number}}, LOGIN  # fmt: skip
        case "brevo":
            return {
                "event": "hard_bounce",
                "email": "you@example.net",
                "reason": GONE,
                "X-Mailin-custom": number,
            }, BEARER
        case "mailjet":
            return [
                {
                    "event": "bounce",
                    "email": "you@example.net",
                    "hard_bounce": True,
                    "error": "user unknown",
                    "CustomID": number,
                }
            ], LOGIN
        case _:
            event = {
                "type": "bounce",
                "bounce_class": "10",
                "rcpt_to": "you@example.net",
                "event_id": "1",
                "rcpt_meta": {"relay": number},
            }
            return [{"msys": {"message_event": event}}], LOGIN


@pytest.mark.parametrize("name", ["sendgrid", "mailgun", "postmark", "brevo", "mailjet", "sparkpost"])
async def test_a_bounce_of_each_provider(bench: Bench, name: str) -> None:
    number = await bench.rig.send("You@example.net")
    body, headers = bounces(name, number)
    for _ in range(3):  # providers tell it again
        assert (await bench.post(name, body, **headers)).status == 200
    (event,) = await bench.events("bounced")
    assert (event.recipient, event.data["class"], event.data["proof"]) == ("You@example.net", "hard", "provider")
    assert event.data["source"] == name
    (entry,) = await bench.suppressed("you@example.net")
    assert (entry.why, entry.source) == (Why.HARD_BOUNCE, name)
    # And of a message that nobody knows: believed, for it is the provider who says it.
    body, headers = bounces(name, "1PGWBZ00001")
    changed = json.loads(body) if isinstance(body, bytes) else body
    text = json.dumps(changed).replace("you@example.net", "other@example.net").replace('"1"', '"2"')
    if name == "sendgrid":
        headers = webhooks.sendgrid(text.encode(), str(int(time.time())))
    if name == "mailgun":
        text = json.dumps(webhooks.mailgun(json.loads(text)["event-data"], time.time(), token="b" * 50))
    assert (await bench.post(name, text.encode(), **headers)).status == 200
    assert len(await bench.suppressed("other@example.net")) == 1


@pytest.mark.parametrize("name", ["sendgrid", "mailgun", "postmark", "brevo", "mailjet", "sparkpost"])
async def test_who_is_not_the_provider(bench: Bench, name: str) -> None:
    number = await bench.rig.send("you@example.net")
    body, headers = bounces(name, number)
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    if name == "mailgun":
        raw = raw.replace(b'"token": "a', b'"token": "b')
    if name == "sendgrid":
        answer = await bench.post(name, raw.replace(b"you@", b"all@"), **headers)
        assert answer.status == 403
    answer = await bench.post(name, raw)
    assert answer.status == (403 if name in ("sendgrid", "mailgun") else 401) and answer.body == b""
    assert ("WWW-Authenticate" in answer.headers) is (answer.status == 401)
    assert await bench.events("bounced") == [] and await bench.suppressed("you@example.net") == []


async def test_a_complaint_and_an_unsubscription(bench: Bench) -> None:
    number = await bench.rig.send("you@example.net")
    known = {"Email": "you@example.net", "Metadata": {"relay": number}}
    spam = known | {"RecordType": "SpamComplaint", "Type": "SpamComplaint", "ID": 1}
    assert (await bench.post("postmark", spam, **LOGIN)).status == 200
    gone = known | {"RecordType": "Bounce", "Type": "Unsubscribe", "ID": 2}
    assert (await bench.post("postmark", gone, **LOGIN)).status == 200
    assert [row.kind for row in await bench.events("complained", "unsubscribed")] == ["complained", "unsubscribed"]
    assert {one.why for one in await bench.suppressed("you@example.net")} == {Why.COMPLAINT, Why.UNSUBSCRIBE}


async def test_what_is_no_fault_of_the_mailbox_suppresses_nobody(bench: Bench) -> None:
    for number, (kind, words) in enumerate((
        ("Blocked", "554 5.7.1 blocked using zen.spamhaus.org"), ("SpamNotification", ""), ("DMARCPolicy", ""),
        ("HardBounce", "552 5.2.2 mailbox full"), ("HardBounce", "554 5.7.1 message rejected as spam"), ("SoftBounce", GONE),
        ("Transient", GONE), ("Unknown", "no"),
    )):  # fmt: skip
        event = {
            "RecordType": "Bounce",
            "Type": kind,
            "ID": number,
            "Email": f"n{number}@example.net",
            "Details": words,
        }
        assert (await bench.post("postmark", event, **LOGIN)).status == 200
        assert await bench.suppressed(f"n{number}@example.net") == []
    assert {row.data["class"] for row in await bench.events("bounced")} == {"soft", "undetermined"}


async def test_a_batch_is_learnt_whole_and_once(bench: Bench) -> None:
    events = [
        {"event": "bounce", "type": "bounce", "email": f"n{n}@example.net", "reason": GONE, "sg_event_id": f"id-{n}"} for n in range(300)
    ]  # fmt: skip
    raw = json.dumps([*events, {"event": "open", "email": "x@example.net"}, None, 5]).encode()
    for _ in range(2):
        assert (await bench.post("sendgrid", raw, **webhooks.sendgrid(raw, str(int(time.time()))))).status == 200
    assert len(await bench.events("bounced")) == 300
    assert {row.egress for row in await bench.events("bounced")} == {"main"}  # of `egress`, for no message is known


async def test_a_tokens_message(bench: Bench) -> None:
    """The token of {token} in a provider's metadata names the recipient, whatever address it was forwarded to."""
    number = await bench.rig.send("a@example.net", "b@example.net")
    event = {"RecordType": "Bounce", "Type": "HardBounce", "ID": 3, "Email": "elsewhere@example.org", "Details": GONE,
             "Metadata": {"relay": bench.token(number, 1)}}  # fmt: skip
    assert (await bench.post("postmark", event, **LOGIN)).status == 200
    (row,) = await bench.events("bounced")
    assert (row.recipient, row.n) == ("b@example.net", 1)


# -- SES


class Amazon:
    """SNS of a region: its certificates and its API, on this machine, under its own name."""

    def __init__(self) -> None:
        self.signer, self.asked, self.status = (
            Signer(begins=webhooks.datetime.now(webhooks.UTC) - webhooks.timedelta(days=1)),
            [],
            200,
        )
        self.ca = trustme.CA()

    async def __aenter__(self) -> Amazon:
        import ssl

        async def serve(request: web.Request) -> web.Response:
            self.asked.append(f"{request.host}{request.path_qs}")
            return web.Response(status=self.status, body=self.signer.pem)

        app = web.Application()
        app.router.add_get("/{rest:.*}", serve)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert("sns.eu-central-1.amazonaws.com").configure_cert(context)
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        port = self._runner.addresses[0][1]

        class Here(AbstractResolver):
            async def resolve(self, host: str, given: int = 0, family: Any = socket.AF_INET) -> list[ResolveResult]:
                return [
                    ResolveResult(hostname=host, host="127.0.0.1", port=port, family=socket.AF_INET, proto=0, flags=0)
                ]

            async def close(self) -> None:
                """Nothing is open."""

        self._resolver, self._trust = Here(), ssl.create_default_context()
        self.ca.configure_trust(self._trust)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def fetch(self, url: str) -> bytes:
        answer = await https.ask(url, self._trust, accept="*/*", seconds=60.0, most=65536, resolver=self._resolver)
        if answer.status != 200:
            raise Later(f"SNS answered {answer.status}")
        return answer.body


@pytest.fixture
async def amazon(bench: Bench) -> AsyncIterator[Amazon]:
    async with Amazon() as made:
        bench.rig.app.feedback.public._fetch = made.fetch
        yield made


async def notify(bench: Bench, message: dict[str, Any]) -> int:
    """As SNS does: JSON that it calls text."""
    headers = {"Content_Type": "text/plain; charset=UTF-8", "x_amz_sns_message_type": str(message.get("Type"))}
    return (await bench.post("ses", message, **headers)).status


async def test_ses(bench: Bench, amazon: Amazon) -> None:
    number = await bench.rig.send("you@example.net")
    event = ses_bounce("you@example.net", diagnostic="smtp; " + GONE, tags={"relay": [number]})
    made = amazon.signer.message(time.time(), Message=json.dumps(event))
    for _ in range(3):
        assert await notify(bench, made) == 200
    (row,) = await bench.events("bounced")
    assert (row.recipient, row.data["source"]) == ("you@example.net", "ses")
    assert len(await bench.suppressed("you@example.net")) == 1
    assert amazon.asked == [PEM_URL.removeprefix("https://")]  # once for all of them
    # The other way to hear of the same bounce: it is one.
    feedback = {"notificationType" if key == "eventType" else key: value for key, value in event.items()}
    again = amazon.signer.message(time.time(), "1", MessageId="another", Message=json.dumps(feedback))
    assert await notify(bench, again) == 200 and len(await bench.events("bounced")) == 1


async def test_ses_that_is_not_ses(bench: Bench, amazon: Amazon) -> None:
    now = time.time()
    good = amazon.signer.message(now, Message=json.dumps(ses_bounce("you@example.net")))
    stranger = Signer(number=1).message(now, Message=good["Message"])
    old = amazon.signer.message(now - 4000, Message=good["Message"])
    elsewhere = amazon.signer.message(now, TopicArn=TOPIC + "-of-others", Message=good["Message"])
    for bad in (
        stranger, old, elsewhere, good | {"Message": good["Message"].replace("you@", "all@")}, json.loads(good["Message"]),
        good | {"SigningCertURL": "https://127.0.0.1/SimpleNotificationService-1.pem"},
        good | {"SigningCertURL": PEM_URL.replace("https", "http")}, {}, {"Type": "Notification"},
    ):  # fmt: skip
        assert await notify(bench, bad) == 403
    raw = await bench.post("ses", good, x_amz_sns_rawdelivery="true")
    assert raw.status == 403
    assert set(amazon.asked) <= {PEM_URL.removeprefix("https://")}
    assert await bench.events("bounced") == [] and await bench.suppressed("you@example.net") == []


async def test_a_subscription_of_our_topic_is_confirmed_and_no_other(bench: Bench, amazon: Amazon) -> None:
    given = {
        "Type": "SubscriptionConfirmation",
        "Token": "2336412f37fb",
        "SubscribeURL": "https://127.0.0.1/?Action=ConfirmSubscription",
    }
    assert await notify(bench, amazon.signer.message(time.time(), **given)) == 200
    topic = TOPIC.replace(":", "%3A")
    wanted = f"sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn={topic}&Token=2336412f37fb"
    assert amazon.asked[-1].replace(":", "%3A") == wanted.replace(":", "%3A")
    assert bench.rig.said("sns_confirmed")[0]["topic"] == TOPIC
    count = len(amazon.asked)
    assert await notify(bench, amazon.signer.message(time.time(), TopicArn=TOPIC + "2", **given)) == 403
    assert await notify(bench, Signer(number=1).message(time.time(), **given)) == 403
    assert len(amazon.asked) == count
    left = {**given, "Type": "UnsubscribeConfirmation"}
    assert await notify(bench, amazon.signer.message(time.time(), **left)) == 200
    assert bench.rig.said("sns_unsubscribed") and len(amazon.asked) == count


async def test_a_certificate_that_cannot_be_had(bench: Bench, amazon: Amazon) -> None:
    """It is asked for now and then, not for each who calls; and SNS comes again."""
    amazon.status = 404
    made = amazon.signer.message(time.time(), Message=json.dumps(ses_bounce("you@example.net")))
    assert [await notify(bench, made) for _ in range(5)] == [503] * 5
    assert len(amazon.asked) == 1
    for number in range(40):  # names that a stranger makes up
        url = PEM_URL.replace("0123456789abcdef", f"{number:016x}", 1)
        assert await notify(bench, made | {"SigningCertURL": url}) in (403, 503)
    assert len(amazon.asked) <= 20


async def test_only_the_public_network_is_asked(bench: Bench) -> None:
    for where in ("127.0.0.1", "::1", "10.0.0.1", "169.254.169.254", "192.168.1.1", "::ffff:127.0.0.1", "0.0.0.0"):
        family = socket.AF_INET6 if ":" in where else socket.AF_INET
        with pytest.raises(OSError):
            http.public_socket((family, socket.SOCK_STREAM, 0, "", (where, 443)))
    made = http.public_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("52.94.5.1", 443)))
    made.close()
