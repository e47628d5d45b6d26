"""What providers say, as they document it: which recipient, hard or not, why, of which message; and who is not believed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import NOW
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.envelope import queue_id
from relay.feedback.providers import DIALECTS, Keys, Said, Unreadable, Unverified, ses
from relay.feedback.providers.said import Ids
from relay.outgoing import templates, verp
from relay.outgoing.templates import About
from relay.policy.bounces import Verdict
from relay.returned import Finding, Kind
from tests import webhooks
from tests.webhooks import call, ses_bounce

ID = queue_id(1_234_567_890_123)
TOKEN = verp.make(b"k" * 16, 1_234_567_890_123, 0)
KEYS = Keys(
    public_key=webhooks.verification_key(),
    signing_key="signing-key",
    username="relay",
    password="secret",
)
LOGIN = {"authorization": webhooks.login("relay", "secret")}


def hear(kind: str, body: Any, now: float = NOW, keys: Keys = KEYS, **headers: str) -> list[Said]:
    """Through both steps of a dialect; signed or logged in as it should be."""
    dialect = DIALECTS[kind]()
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    if not headers:
        signed = webhooks.sendgrid(raw, str(int(now))) if kind == "sendgrid" else LOGIN
        headers = {name.lower(): value for name, value in signed.items()}
    asked = call(raw, now, **headers)
    dialect.admits(keys, asked.headers)
    return dialect.hear(keys, asked)


def one(found: list[Said]) -> Finding:
    assert len(found) == 1, found
    return found[0].finding


def suppresses(finding: Finding) -> bool:
    return Verdict(finding.class_, finding.reason).suppresses  # type: ignore[arg-type]


# -- SendGrid: www.twilio.com/docs/sendgrid/for-developers/tracking-events/event

SENDGRID = {
    "email": "example@test.com",
    "timestamp": 1513299569,
    "smtp-id": "<14c5d75ce93.dfd.64b469@ismtpd-555>",
    "event": "bounce",
    "category": "cat facts",
    "sg_event_id": "6g4ZI7SA-xmRDv57GoPIPw==",
    "sg_message_id": "14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0",
    "reason": "500 unknown recipient",
    "status": "5.0.0",
    "bounce_classification": "Invalid Address",
    "type": "bounce",
}


@pytest.mark.parametrize(
    ("event", "class_", "reason"),
    [
        ({}, "hard", "user_unknown"),
        ({"type": "blocked"}, "soft", "user_unknown"),
        ({"bounce_classification": "Reputation", "reason": "550 5.1.1 unknown"}, "soft", "reputation"),
        ({"bounce_classification": "Content", "reason": "554 5.7.1 spam"}, "soft", "content"),
        ({"bounce_classification": "Frequency or Volume Too High", "reason": "450 slow down"}, "soft", "rate_limited"),
        ({"bounce_classification": "Unclassified", "reason": "550 5.1.1 user unknown", "status": "5.1.1"}, "hard", "user_unknown"),
        ({"bounce_classification": "Unclassified", "reason": "554 no", "status": "5.0.0"}, "undetermined", "unknown"),
        ({"bounce_classification": "Mailbox Unavailable", "reason": "552 5.2.2 mailbox full", "status": "5.2.2"}, "soft", "mailbox_full"),
        ({"event": "dropped", "reason": "Bounced Address"}, "undetermined", "unknown"),
        ({"event": "dropped", "reason": "Spam Reporting Address"}, "soft", "refused"),
        ({"event": "dropped", "reason": "Invalid"}, "hard", "user_unknown"),
        ({"event": "dropped", "reason": "Recipient List over Package Quota"}, "soft", "policy"),
    ],
)  # fmt: skip
def test_sendgrid_bounces(event: dict[str, Any], class_: str, reason: str) -> None:
    found = one(hear("sendgrid", [SENDGRID | event]))
    assert (found.kind, found.class_, found.reason) == (Kind.BOUNCE, class_, reason)
    assert found.recipient == "example@test.com" and found.at == 1513299569.0
    assert suppresses(found) is (class_ == "hard")


def test_sendgrid_batches_and_other_events() -> None:
    events = [
        SENDGRID | {"event": "spamreport", "sg_event_id": "a"},
        SENDGRID | {"event": "unsubscribe", "sg_event_id": "b"},
        SENDGRID | {"event": "group_unsubscribe", "sg_event_id": "c", "asm_group_id": 10},
        SENDGRID | {"event": "dropped", "reason": "Unsubscribed Address", "sg_event_id": "d"},
        SENDGRID | {"event": "deferred", "response": "400 try again later", "attempt": "5", "sg_event_id": "e"},
        *(SENDGRID | {"event": event} for event in ("processed", "delivered", "open", "click", "group_resubscribe", "new")),
    ]  # fmt: skip
    found = hear("sendgrid", events)
    assert [each.finding.kind.value for each in found] == [
        "complaint",
        "unsubscribe",
        "unsubscribe",
        "unsubscribe",
        "bounce",
    ]
    assert [each.once for each in found] == ["a", "b", "c", "d", "e"]
    assert (found[4].finding.action, found[4].finding.class_) == ("delayed", "")


def test_sendgrid_ids() -> None:
    """A unique argument of X-SMTPAPI stands beside the other fields."""
    assert one(hear("sendgrid", [SENDGRID | {"relay": ID}])).queue_id == ID
    assert one(hear("sendgrid", [SENDGRID | {"relay": TOKEN}])).token == TOKEN
    ours = f"<{ID.lower()}@relay.example.com>"
    found = one(hear("sendgrid", [SENDGRID | {"smtp-id": ours}]))
    assert (found.queue_id, found.message_id) == (ID, ours)


def test_sendgrid_signature() -> None:
    raw, stamp = json.dumps([SENDGRID]).encode(), str(int(NOW))
    good = {name.lower(): value for name, value in webhooks.sendgrid(raw, stamp).items()}
    assert hear("sendgrid", raw, **good)
    other = {n.lower(): v for n, v in webhooks.sendgrid(raw, stamp, ec.generate_private_key(ec.SECP256R1())).items()}
    bad = [
        (raw + b" ", good, NOW),  # altered
        (raw.replace(b"example@test.com", b"another@test.com"), good, NOW),
        (raw, other, NOW),  # another key
        (raw, good | {"x-twilio-email-event-webhook-timestamp": str(int(NOW) + 1)}, NOW),
        (raw, good | {"x-twilio-email-event-webhook-signature": "AAAA"}, NOW),
        (raw, good | {"x-twilio-email-event-webhook-signature": "é"}, NOW),
        (raw, {"x-twilio-email-event-webhook-signature": good["x-twilio-email-event-webhook-signature"]}, NOW),
        (raw, {"content-type": "application/json"}, NOW),
        (raw, good, NOW + 26 * 3600),  # replayed later than it would be tried
        (raw, good, NOW - 600),  # of a time to come
    ]
    for body, headers, now in bad:
        with pytest.raises(Unverified):
            hear("sendgrid", body, now, **headers)
    for words in ("tomorrow", "NaN", "", "1e400", "-1"):
        signed = {n.lower(): v for n, v in webhooks.sendgrid(raw, words).items()}
        with pytest.raises(Unverified):
            hear("sendgrid", raw, **signed)


# -- Mailgun: documentation.mailgun.com/docs/mailgun/user-manual/events/event-structure

MAILGUN = {
    "event": "failed",
    "severity": "permanent",
    "reason": "bounce",
    "id": "G9Bn5sl1TC6nu79C8C0bwg",
    "timestamp": 1521233195.375624,
    "log-level": "error",
    "recipient": "alice@example.com",
    "recipient-domain": "example.com",
    "envelope": {"sender": "bob@test.example", "transport": "smtp", "targets": "alice@example.com"},
    "delivery-status": {
        "attempt-no": 1,
        "message": "5.1.1 The email account that you tried to reach does not exist. Please try\n5.1.1 double-checking",
        "code": 550,
        "enhanced-code": "",
        "description": "",
        "session-seconds": 0.0,
        "mx-host": "aspmx.l.example.org",
    },
    "message": {
        "headers": {"to": "Alice <alice@example.com>", "message-id": "20130503192659.13651.20287@test.example"}
    },
    "user-variables": {"my_var_1": "Mailgun Variable #1"},
    "flags": {"is-routed": False, "is-test-mode": False},
}


@pytest.mark.parametrize(
    ("event", "class_", "reason", "action"),
    [
        ({}, "hard", "user_unknown", "failed"),
        ({"severity": "temporary"}, "", "user_unknown", "delayed"),
        ({"delivery-status": {"code": 554, "message": "5.7.1 Message blocked by Spamhaus"}}, "soft", "reputation", "failed"),
        ({"delivery-status": {"code": 550, "message": "no", "bounce-type": "soft"}}, "soft", "unknown", "failed"),
        ({"reason": "suppress-bounce", "delivery-status": {"code": 605, "message": "Not delivering to previously bounced address"}},
         "undetermined", "unknown", "failed"),
        ({"reason": "suppress-complaint", "delivery-status": {"code": 607}}, "soft", "refused", "failed"),
        ({"reason": "old", "delivery-status": {"code": 602, "message": "Too old"}}, "soft", "expired", "failed"),
        ({"reason": "generic", "delivery-status": {"code": 550, "message": "552 5.2.2 mailbox full", "enhanced-code": "5.2.2"}},
         "soft", "mailbox_full", "failed"),
    ],
)  # fmt: skip
def test_mailgun_failures(event: dict[str, Any], class_: str, reason: str, action: str) -> None:
    found = one(hear("mailgun", webhooks.mailgun(MAILGUN | event, NOW)))
    assert (found.class_, found.reason, found.action) == (class_, reason, action)
    assert found.message_id == "<20130503192659.13651.20287@test.example>" and found.at == 1521233195.375624


def test_mailgun_others_and_ids() -> None:
    for event, kind in (("complained", Kind.COMPLAINT), ("unsubscribed", Kind.UNSUBSCRIBE)):
        assert one(hear("mailgun", webhooks.mailgun(MAILGUN | {"event": event}, NOW))).kind is kind
    left = MAILGUN | {"reason": "suppress-unsubscribe"}
    assert one(hear("mailgun", webhooks.mailgun(left, NOW))).kind is Kind.UNSUBSCRIBE
    for event in ("delivered", "opened", "accepted", "something"):
        assert hear("mailgun", webhooks.mailgun(MAILGUN | {"event": event}, NOW)) == []
    tagged = MAILGUN | {"user-variables": {"relay": TOKEN.upper()}}
    assert one(hear("mailgun", webhooks.mailgun(tagged, NOW))).token == TOKEN


def test_mailgun_signature() -> None:
    good = webhooks.mailgun(MAILGUN, NOW)
    signature = good["signature"]
    parent = {**signature, "signature": "0" * 64, "parent-signature": signature["signature"]}
    assert hear("mailgun", {**good, "signature": parent})
    bad = [
        ({"event-data": MAILGUN}, NOW),
        ({**good, "signature": {**signature, "token": "b" * 50}}, NOW),
        ({**good, "signature": {**signature, "timestamp": str(int(NOW) + 5)}}, NOW),
        ({**good, "signature": {**signature, "signature": ""}}, NOW),
        ({**good, "signature": {**signature, "signature": None}}, NOW),
        (webhooks.mailgun(MAILGUN, NOW, key="another"), NOW),
        (good, NOW + 10 * 3600),
        (good, NOW - 600),
    ]
    for body, now in bad:
        with pytest.raises(Unverified):
            hear("mailgun", body, now)
    with pytest.raises(Unverified):
        hear("mailgun", webhooks.mailgun(MAILGUN, NOW, key=""), keys=Keys())  # no key is nobody's key


def test_mailguns_token_is_good_for_one_body() -> None:
    """Its signature is not over the event: who has seen one request could say anything with it."""
    dialect = DIALECTS["mailgun"]()
    opened = webhooks.mailgun(MAILGUN | {"event": "opened"}, NOW)
    assert dialect.hear(KEYS, call(opened, NOW)) == []
    assert dialect.hear(KEYS, call(opened, NOW)) == []  # it comes again
    forged = {**opened, "event-data": MAILGUN | {"recipient": "victim@example.com"}}
    with pytest.raises(Unverified, match="something else"):
        dialect.hear(KEYS, call(forged, NOW))


# -- Postmark: postmarkapp.com/developer/webhooks/bounce-webhook

POSTMARK = {
    "RecordType": "Bounce",
    "MessageStream": "outbound",
    "ID": 4323372036854775807,
    "Type": "HardBounce",
    "TypeCode": 1,
    "Name": "Hard bounce",
    "Tag": "Test",
    "MessageID": "883953f4-6105-42a2-a16a-77a8eac79483",
    "Metadata": {"a_key": "a_value", "relay": ID},
    "ServerID": 23,
    "Description": "The server was unable to deliver your message (ex: unknown user, mailbox not found).",
    "Details": "Test bounce details",
    "Email": "john@example.com",
    "From": "sender@example.com",
    "BouncedAt": "2019-11-05T16:33:54.9070259Z",
    "DumpAvailable": True,
    "Inactive": True,
    "CanActivate": True,
    "Subject": "Test subject",
}


@pytest.mark.parametrize(
    ("event", "class_", "reason"),
    [
        ({}, "hard", "user_unknown"),
        ({"Details": "554 5.7.1 blocked using zen.spamhaus.org"}, "soft", "reputation"),
        ({"Type": "BadEmailAddress", "TypeCode": 100000}, "hard", "user_unknown"),
        ({"Type": "SoftBounce", "Details": "550 5.1.1 no such user"}, "soft", "user_unknown"),
        ({"Type": "Blocked", "Details": ""}, "soft", "reputation"),
        ({"Type": "SpamNotification"}, "soft", "spam"),
        ({"Type": "DMARCPolicy"}, "soft", "authentication"),
        ({"Type": "Unknown", "Details": "smtp;550 nothing"}, "undetermined", "unknown"),
        ({"Type": "Transient"}, "", "unknown"),
    ],
)
def test_postmark_bounces(event: dict[str, Any], class_: str, reason: str) -> None:
    found = one(hear("postmark", POSTMARK | event))
    assert (found.class_, found.reason, found.queue_id) == (class_, reason, ID)
    assert found.at == pytest.approx(1572971634.907, abs=0.01)


def test_postmark_others() -> None:
    spam = POSTMARK | {
        "RecordType": "SpamComplaint",
        "Type": "SpamComplaint",
        "TypeCode": 512,
        "Content": "<Abuse report dump>",
    }
    assert one(hear("postmark", spam)).kind is Kind.COMPLAINT
    changed = {
        "RecordType": "SubscriptionChange",
        "MessageID": "883953f4-6105-42a2-a16a-77a8eac79483",
        "ServerID": 123456,
        "MessageStream": "outbound",
        "ChangedAt": "2020-02-01T10:53:34.416071Z",
        "Recipient": "bounced-address@wildbit.com",
        "Origin": "Recipient",
        "SuppressSending": True,
        "SuppressionReason": "ManualSuppression",
        "Metadata": {},
    }
    assert one(hear("postmark", changed)).kind is Kind.UNSUBSCRIBE
    for other in ({"SuppressSending": False}, {"SuppressionReason": "HardBounce"}, {"Origin": "Admin"}):
        assert hear("postmark", changed | other) == []
    for other in ({"Type": "AutoResponder"}, {"Type": "Subscribe"}, {"RecordType": "Open"}, {"Email": "nobody"}):
        assert hear("postmark", POSTMARK | other) == []


# -- Brevo: developers.brevo.com/docs/transactional-webhooks

BREVO = {
    "event": "hard_bounce",
    "email": "example@domain.com",
    "id": 26224,
    "date": "2024-03-04 08:00:00",
    "ts": 1604937111,
    "message-id": "<201798300811.5787683@smtp-relay.mailin.fr>",
    "ts_event": 1604933654,
    "subject": "My first Transactional",
    "X-Mailin-custom": ID,
    "sending_ip": "xxx.xxx.xxx.xxx",
    "template_id": 22,
    "tag": "[\"transac_messages\"]",
    "tags": ["transac_messages"],
    "reason": "server is down",
    "ts_epoch": 1604933653000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("event", "class_", "reason"),
    [
        ({"reason": " RecipientError: 550 5.1.1 <a@b.example> User unknown"}, "hard", "user_unknown"),
        ({"reason": "550 5.7.1 Spamhaus"}, "soft", None),
        ({"event": "soft_bounce", "reason": "550 5.1.1 user unknown"}, "soft", "user_unknown"),
        ({"event": "blocked", "reason": "blocked : due to blacklist user"}, "soft", "refused"),
        ({"event": "invalid_email"}, "hard", "user_unknown"),
        ({"event": "error"}, "soft", None),
        ({"event": "deferred", "reason": "550 RecipientError: 550 5.1.1 User unknown"}, "", "user_unknown"),
    ],
)
def test_brevo_bounces(event: dict[str, Any], class_: str, reason: str | None) -> None:
    found = one(hear("brevo", BREVO | event))
    assert found.class_ == class_ and reason in (None, found.reason)
    assert found.queue_id == ID and found.at == 1604933653.0


def test_brevo_others() -> None:
    assert one(hear("brevo", BREVO | {"event": "spam"})).kind is Kind.COMPLAINT
    assert one(hear("brevo", BREVO | {"event": "complaint"})).kind is Kind.COMPLAINT
    assert one(hear("brevo", BREVO | {"event": "unsubscribed"})).kind is Kind.UNSUBSCRIBE
    assert len(hear("brevo", [BREVO, BREVO | {"event": "delivered"}, BREVO | {"email": "b@domain.com"}])) == 2
    for custom in (f'{{"relay": "{ID}"}}', f"custom:1|relay:{ID}|x:2"):
        assert one(hear("brevo", BREVO | {"X-Mailin-custom": custom})).queue_id == ID
    assert one(hear("brevo", BREVO | {"ts_epoch": 1604933654})).at == 1604933654.0
    again = hear("brevo", BREVO)[0].once
    assert again == hear("brevo", dict(reversed(BREVO.items())))[0].once
    assert again != hear("brevo", BREVO | {"ts_epoch": 1604933653001})[0].once


def test_brevo_by_token() -> None:
    keys = Keys(token="t0ken")
    assert hear("brevo", BREVO, keys=keys, authorization="Bearer t0ken")
    for header in ("Bearer t0kem", "Bearer", "t0ken", "Basic t0ken", "", LOGIN["authorization"]):
        with pytest.raises(Unverified):
            hear("brevo", BREVO, keys=keys, authorization=header)
    with pytest.raises(Unverified):
        hear("brevo", BREVO, keys=Keys(), authorization="Bearer ")


# -- Mailjet: dev.mailjet.com/email/guides/webhooks

MAILJET = {
    "event": "bounce",
    "time": 1430812195,
    "MessageID": 13792286917004336,
    "Message_GUID": "1ab23cd4-e567-8901-2345-6789f0gh1i2j",
    "email": "bounce@mailjet.com",
    "mj_campaign_id": 0,
    "mj_contact_id": 0,
    "customcampaign": "",
    "CustomID": ID,
    "Payload": "",
    "blocked": False,
    "hard_bounce": True,
    "error_related_to": "recipient",
    "error": "user unknown",
    "comment": "Host or domain name not found. Name service error for name=lbjsnrftlsiuvbsren.com type=A: Host not found",
}


@pytest.mark.parametrize(
    ("event", "class_", "reason"),
    [
        ({}, "hard", "user_unknown"),
        ({"hard_bounce": False}, "soft", "user_unknown"),
        ({"error_related_to": "recipient", "error": "quota exceeded", "hard_bounce": False}, "soft", "mailbox_full"),
        ({"error_related_to": "domain", "error": "invalid domain"}, "hard", "host_unknown"),
        ({"error_related_to": "spam", "error": "sender blocked"}, "soft", "reputation"),
        ({"error_related_to": "mailjet", "error": "preblocked", "event": "blocked"}, "soft", "refused"),
        ({"error_related_to": "recipient", "error": "user unknown", "event": "blocked"}, "soft", "user_unknown"),
        ({"error_related_to": "domain", "error": "greylisted", "hard_bounce": False}, "", "rate_limited"),
        ({"error_related_to": "", "error": "", "comment": "550 5.1.1 user unknown"}, "hard", "user_unknown"),
    ],
)
def test_mailjet_bounces(event: dict[str, Any], class_: str, reason: str) -> None:
    found = one(hear("mailjet", [MAILJET | event]))
    assert (found.class_, found.reason, found.queue_id, found.at) == (class_, reason, ID, 1430812195.0)


def test_mailjet_others() -> None:
    """Version 1 posts one event, version 2 a list."""
    assert hear("mailjet", MAILJET) == hear("mailjet", [MAILJET])
    found = hear("mailjet", [MAILJET | {"event": event} for event in ("spam", "unsub", "sent", "open", "click")])
    assert [each.finding.kind for each in found] == [Kind.COMPLAINT, Kind.UNSUBSCRIBE]
    assert hear("mailjet", MAILJET | {"error": "duplicate in campaign"}) == []


# -- SparkPost: developers.sparkpost.com/api/webhooks

SPARKPOST = {
    "type": "bounce",
    "bounce_class": "1",
    "campaign_id": "Example Campaign Name",
    "customer_id": "1",
    "error_code": "554",
    "event_id": "92356927693813856",
    "friendly_from": "sender@example.com",
    "ip_address": "127.0.0.1",
    "message_id": "000443ee14578172be22",
    "msg_from": "sender@example.com",
    "msg_size": "1337",
    "num_retries": "2",
    "rcpt_meta": {"customKey": "customValue", "relay": ID},
    "rcpt_tags": ["male", "US"],
    "rcpt_to": "recipient@example.com",
    "raw_rcpt_to": "Recipient@example.com",
    "reason": "MAIL REFUSED - IP (17.99.99.99) is in black list",
    "raw_reason": "MAIL REFUSED - IP (17.99.99.99) is in black list",
    "routing_domain": "example.com",
    "timestamp": "1460989507",
    "transmission_id": "65832150921904138",
}


def sparkpost(**event: Any) -> list[dict[str, Any]]:
    return [{"msys": {"message_event": SPARKPOST | event}}]


@pytest.mark.parametrize(
    ("event", "class_", "reason"),
    [
        ({}, "soft", "reputation"),
        ({"bounce_class": "10", "raw_reason": "no"}, "hard", "user_unknown"),
        ({"bounce_class": "30", "raw_reason": "no"}, "hard", "user_unknown"),
        ({"bounce_class": "22"}, "soft", "mailbox_full"),
        ({"bounce_class": "51", "raw_reason": "550 5.1.1 user unknown"}, "soft", "reputation"),
        ({"bounce_class": "40", "raw_reason": "550 5.1.1 user unknown"}, "soft", "user_unknown"),
        ({"bounce_class": "1", "raw_reason": "550 5.1.1 user unknown"}, "hard", "user_unknown"),
        ({"bounce_class": "1", "raw_reason": "no"}, "undetermined", "unknown"),
        ({"type": "out_of_band", "bounce_class": "10"}, "hard", "user_unknown"),
        ({"type": "policy_rejection", "bounce_class": "25"}, "soft", "policy"),
        ({"type": "delay", "bounce_class": "21", "raw_reason": "451 4.4.1 no"}, "", None),
    ],
)
def test_sparkpost_bounces(event: dict[str, Any], class_: str, reason: str | None) -> None:
    found = one(hear("sparkpost", sparkpost(**event)))
    assert found.class_ == class_ and reason in (None, found.reason)
    assert (found.queue_id, found.recipient, found.at) == (ID, "Recipient@example.com", 1460989507.0)


def test_sparkpost_others() -> None:
    assert (
        one(hear("sparkpost", sparkpost(type="spam_complaint", fbtype="abuse", report_by="server.email.com"))).kind
        is Kind.COMPLAINT
    )
    assert hear("sparkpost", sparkpost(type="spam_complaint", fbtype="not-spam")) == []
    for kind in ("list_unsubscribe", "link_unsubscribe"):
        found = hear("sparkpost", [{"msys": {"unsubscribe_event": SPARKPOST | {"type": kind}}}])
        assert one(found).kind is Kind.UNSUBSCRIBE
    assert one(hear("sparkpost", sparkpost(bounce_class="90"))).kind is Kind.UNSUBSCRIBE
    for number in ("60", "80", "100"):
        assert hear("sparkpost", sparkpost(bounce_class=number)) == []
    assert hear("sparkpost", [{"msys": {}}]) == []  # a ping
    assert hear("sparkpost", sparkpost(type="delivery")) == []
    assert len(hear("sparkpost", [*sparkpost(), *sparkpost(event_id="2")])) == 2


# -- logins


@pytest.mark.parametrize("kind", ["postmark", "brevo", "mailjet", "sparkpost"])
def test_logins(kind: str) -> None:
    dialect = DIALECTS[kind]()
    dialect.admits(KEYS, LOGIN)
    dialect.admits(KEYS, {"authorization": LOGIN["authorization"].replace("Basic", "basic")})
    for header in (
        "", "Basic", "Basic !!!", "Bearer secret", webhooks.login("relay", ""), webhooks.login("", "secret"),
        webhooks.login("relay", "secret "), webhooks.login("Relay", "secret"), webhooks.login("relay:secret", ""),
        "Basic cmVsYXk=", "Basic /w==", LOGIN["authorization"] + "é",
    ):  # fmt: skip
        with pytest.raises(Unverified):
            dialect.admits(KEYS, {"authorization": header})
    with pytest.raises(Unverified):
        dialect.admits(KEYS, {})
    with pytest.raises(Unverified):
        dialect.admits(Keys(), {"authorization": webhooks.login("", "")})


# -- nobody's JSON is trusted

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["a@b.example", "bounce", ID, "5.1.1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
SAMPLES: dict[str, dict[str, Any]] = {
    "sendgrid": SENDGRID, "mailgun": MAILGUN, "postmark": POSTMARK, "brevo": BREVO, "mailjet": MAILJET, "sparkpost": SPARKPOST,
    "ses": ses_bounce(),
}  # fmt: skip


def wrapped(kind: str, event: Any) -> Any:
    match kind:
        case "sendgrid":
            return [event]
        case "sparkpost":
            return [{"msys": {"message_event": event}}]
        case "mailgun":
            return webhooks.mailgun(event, NOW)
    return event


@settings(max_examples=150, deadline=None)
@given(st.data())
@pytest.mark.parametrize("kind", sorted(SAMPLES))
def test_wrong_types_everywhere(kind: str, data: st.DataObject) -> None:
    """A value of any other type counts as not there; nothing else than our own refusals is raised."""
    sample: Any = json.loads(json.dumps(SAMPLES[kind]))
    for _ in range(data.draw(st.integers(1, 4))):
        part = sample
        while isinstance(part, dict) and part:
            key = data.draw(st.sampled_from(sorted(part)))
            if not isinstance(part[key], dict) or data.draw(st.booleans()):
                part[key] = data.draw(JSON)
                break
            part = part[key]
    try:
        found = ses.read(json.dumps(sample), "id-1") if kind == "ses" else hear(kind, wrapped(kind, sample))
    except (Unreadable, Unverified):
        return
    for each in found:
        json.dumps(each.finding.row()).encode()
        each.once.encode()
        assert len(each.once) < 700 and each.finding.recipient


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"1", b'"x"', b"[]", b"{}", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe", b"NaN", b"[Infinity]",
        b'{"email": "\\ud800@b.example", "event": "bounce"}', b"[1, null, [], {}, [{}]]", b"1" * 5000,
        b'{"event-data": 1, "signature": 2}', b'{"Type": "Notification"}', b'{"email": "a@b.example\\u0000"}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", sorted(DIALECTS))
def test_bodies_that_are_none(kind: str, body: bytes) -> None:
    try:
        assert hear(kind, body) == []
    except (Unreadable, Unverified):
        return


def test_ids() -> None:
    assert Ids.of([ID.lower()]) == Ids(queue_id=ID)
    assert Ids.of([TOKEN.upper()]) == Ids(token=TOKEN)
    assert Ids.of([None, 5, {}, [], "x" * 300, ""]) == Ids()
    assert Ids.of([], ["abc@def"]) == Ids(message_id="<abc@def>")
    assert Ids.of(["ZZZZZZZZZZU"]).queue_id == ""


def test_the_recipes_of_the_documentation_come_back() -> None:
    """What a route adds by them is what its provider brings along."""
    page = (Path(__file__).parents[2] / "docs" / "feedback-providers.md").read_text()
    recipes = dict(re.findall(r"\| `(X-[A-Za-z-]+): (.+?)` \|", page))
    about = About(ID, "app@shop.example", "you@example.net", "news@shop.example", token=TOKEN)
    made = {name: templates.text(yaml.safe_load(value), about) for name, value in recipes.items()}
    assert made == {
        "X-SES-MESSAGE-TAGS": f"relay={ID}",
        "X-SMTPAPI": json.dumps({"unique_args": {"relay": ID}}),
        "X-Mailgun-Variables": json.dumps({"relay": ID}),
        "X-PM-Metadata-relay": ID,
        "X-Mailin-custom": ID,
        "X-MJ-CustomID": ID,
        "X-MSYS-API": json.dumps({"metadata": {"relay": ID}}),
    }
