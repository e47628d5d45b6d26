"""Amazon SES behind SNS: what is signed by it for a topic of ours, and now; and that nothing of a request says where we connect to."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import NOW

from relay.envelope import queue_id
from relay.feedback.providers import Said, Unreadable, Unverified, ses, sns
from relay.outgoing import verp
from relay.policy.bounces import Reason, Verdict
from relay.returned import Finding, Kind
from tests import webhooks
from tests.webhooks import Signer, ses_bounce

TOPICS = (webhooks.TOPIC,)
ID = queue_id(1_234_567_890_123)
TOKEN = verp.make(b"k" * 16, 1_234_567_890_123, 0)


def one(found: list[Said]) -> Finding:
    assert len(found) == 1, found
    return found[0].finding


# -- SES: docs.aws.amazon.com/ses/latest/dg/notification-contents.html


def ses_read(event: dict[str, Any]) -> list[Said]:
    return ses.read(json.dumps(event), "id-1")


@pytest.mark.parametrize(
    ("event", "class_", "reason"),
    [
        (ses_bounce(), "hard", "user_unknown"),
        (ses_bounce(diagnostic="smtp; 554 5.7.1 Service unavailable; blocked using zen.spamhaus.org"), "soft", "reputation"),
        (ses_bounce(diagnostic=""), "undetermined", "unknown"),
        (ses_bounce(sub="NoEmail", diagnostic=""), "hard", "user_unknown"),
        (ses_bounce(sub="Suppressed", diagnostic="Amazon SES has suppressed sending to this address"), "hard", "user_unknown"),
        (ses_bounce(sub="OnAccountSuppressionList", diagnostic="smtp; 550 5.1.1 x"), "undetermined", "unknown"),
        (ses_bounce(type_="Transient"), "soft", "user_unknown"),
        (ses_bounce(type_="Transient", sub="MailboxFull"), "soft", "mailbox_full"),
        (ses_bounce(type_="Transient", sub="MessageTooLarge"), "soft", "message_too_big"),
        (ses_bounce(type_="Transient", sub="ContentRejected"), "soft", "content"),
        (ses_bounce(type_="Undetermined", sub="Undetermined", diagnostic=""), "undetermined", "unknown"),
    ],
)  # fmt: skip
def test_ses_bounces(event: dict[str, Any], class_: str, reason: str) -> None:
    found = one(ses_read(event))
    assert (found.class_, found.reason, found.recipient) == (class_, reason, "jane@example.com")
    assert Verdict(found.class_, Reason(found.reason)).suppresses is (class_ == "hard")


def test_ses_feedback_notifications_are_the_same() -> None:
    event = ses_bounce()
    event["notificationType"] = event.pop("eventType")
    found = one(ses_read(event))
    assert found.reporter == "dsn; mta.example.com" and found.sender == "sender@example.com"
    assert found.diagnostic == "550 5.1.1 user unknown" and found.at == pytest.approx(1501893662.669)


def test_ses_ids() -> None:
    tags = {"tags": {"relay": [ID]}}
    assert one(ses_read(ses_bounce(**tags))).queue_id == ID
    assert one(ses_read(ses_bounce(tags={"relay": [TOKEN]}))).token == TOKEN
    received = (
        f"from app (localhost [127.0.0.1]) by relay.example.com with ESMTP id {ID}; Sat, 5 Aug 2017 00:40:02 +0000"
    )
    assert one(ses_read(ses_bounce(headers=[{"name": "Received", "value": received}]))).queue_id == ID
    own = f"<{ID.lower()}@relay.example.com>"
    assert one(ses_read(ses_bounce(headers=[{"name": "Message-ID", "value": own}]))).queue_id == ID
    header = [{"name": "X-SES-MESSAGE-TAGS", "value": f"a=b, relay={ID}"}]
    assert one(ses_read(ses_bounce(headers=header))).queue_id == ID
    assert one(ses_read(ses_bounce(commonHeaders={"messageId": own}))).message_id == own


def test_ses_others() -> None:
    complaint = {
        "notificationType": "Complaint",
        "complaint": {
            "userAgent": "AnyCompany Feedback Loop (V0.01)",
            "complainedRecipients": [{"emailAddress": "richard@example.com"}],
            "complaintFeedbackType": "abuse",
            "timestamp": "2016-01-27T14:59:38.237Z",
            "feedbackId": "000001378603177f-18c07c78-fa81-4a58-9dd1-fedc3cb8f49a-000000",
        },
        "mail": {"source": "john@example.com", "destination": ["jane@example.com", "richard@example.com"]},
    }
    found = one(ses_read(complaint))
    assert (found.kind, found.recipient, found.reason) == (Kind.COMPLAINT, "richard@example.com", "abuse")
    complaint["complaint"]["complaintSubType"] = "OnAccountSuppressionList"  # type: ignore[index]
    assert one(ses_read(complaint)).kind is Kind.BOUNCE
    complaint["complaint"]["complaintFeedbackType"] = "not-spam"  # type: ignore[index]
    assert ses_read(complaint) == []
    delay = {
        "eventType": "DeliveryDelay",
        "mail": {"source": "sender@example.com", "destination": ["recipient@example.com"]},
        "deliveryDelay": {
            "timestamp": "2020-06-16T00:25:40.095Z",
            "delayType": "TransientCommunicationFailure",
            "delayedRecipients": [
                {"emailAddress": "recipient@example.com", "status": "4.4.1", "diagnosticCode": "smtp; 421 4.4.1 Unable to connect"}
            ],
        },
    }  # fmt: skip
    assert (one(ses_read(delay)).action, one(ses_read(delay)).class_) == ("delayed", "")
    reject = {"eventType": "Reject", "mail": {"destination": ["r@example.com"]}, "reject": {"reason": "Bad content"}}
    assert one(ses_read(reject)).reason == "virus"
    left = {
        "eventType": "Subscription",
        "mail": {"destination": ["r@example.com"]},
        "subscription": {"newTopicPreferences": {"unsubscribeAll": True}, "timestamp": "2022-01-12T01:00:17.910Z"},
    }
    assert one(ses_read(left)).kind is Kind.UNSUBSCRIBE
    left["mail"] = {"destination": ["r@example.com", "s@example.com"]}
    assert ses_read(left) == []
    for kind in ("Delivery", "Send", "Open", "Click", "Rendering Failure", "AmazonSnsSubscriptionSucceeded"):
        assert ses_read(ses_bounce() | {"eventType": kind}) == []
    both = ses_bounce()
    both["bounce"]["bouncedRecipients"].append({"emailAddress": "richard@example.com"})
    assert len({each.once for each in ses_read(both)}) == 2


# -- SNS


def test_sns_signature() -> None:
    signer = Signer()
    key = sns.public_key(signer.pem, webhooks.TOPIC, signer.begins.timestamp() + 5)
    for version in ("1", "2"):
        for given_ in ({}, {"Subject": "Amazon SES Email Event Notification"}, {"Message": "ü\n\"' 漢"}):
            made = signer.message(NOW, version, **given_)
            sns.verify(sns.envelope(json.dumps(made).encode(), TOPICS, NOW), key)
            for name in ("Message", "MessageId", "Timestamp"):
                changed = made | {name: made[name].replace("Z", "1Z") if name == "Timestamp" else made[name] + "x"}
                with pytest.raises(Unverified):
                    sns.verify(sns.envelope(json.dumps(changed).encode(), TOPICS, NOW), key)
            with pytest.raises(Unverified):
                sns.verify(sns.envelope(json.dumps(made | {"Subject": "another"}).encode(), TOPICS, NOW), key)
    made = signer.message(NOW)
    for bad in ({"Signature": "AAAA"}, {"Signature": "é"}, {"SignatureVersion": "3"}, {"SignatureVersion": "1"}):
        with pytest.raises(Unverified):
            sns.verify(sns.envelope(json.dumps(made | bad).encode(), TOPICS, NOW), key)
    other = sns.public_key(Signer(number=1).pem, webhooks.TOPIC, signer.begins.timestamp() + 5)
    with pytest.raises(Unverified):
        sns.verify(sns.envelope(json.dumps(made).encode(), TOPICS, NOW), other)


def test_sns_envelopes_that_are_none_of_ours() -> None:
    signer = Signer()
    for changed in (
        {"TopicArn": webhooks.TOPIC + "2"}, {"TopicArn": None}, {"Type": "Other"}, {"MessageId": None}, {"Message": {}},
        {"Timestamp": "yesterday"}, {"SigningCertURL": None}, {"Message": None},
    ):  # fmt: skip
        made = signer.message(NOW) | changed
        with pytest.raises(Unverified):
            sns.envelope(json.dumps({k: v for k, v in made.items() if v is not None}).encode(), TOPICS, NOW)
    made = signer.message(NOW)
    for now in (NOW + 3700, NOW - 400):
        with pytest.raises(Unverified):
            sns.envelope(json.dumps(made).encode(), TOPICS, now)
    del made["Signature"]
    with pytest.raises(Unverified, match="raw"):
        sns.envelope(json.dumps(made).encode(), TOPICS, NOW)
    with pytest.raises(Unreadable):
        sns.envelope(b"[]", TOPICS, NOW)


FORGED_URLS = [
    "http://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem",
    "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-1.pem",  # another region than the topic's
    "https://sns.eu-central-1.amazonaws.com.evil.example/SimpleNotificationService-1.pem",
    "https://evil.example/sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com@evil.example/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com:8443/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com/../SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com/?Action=Publish#/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem?x",
    "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem#x",
    "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem\n",
    "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-%2e%2e.pem",
    "https://SNS.eu-central-1.amazonaws.com/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com./SimpleNotificationService-1.pem",
    "https://s3.eu-central-1.amazonaws.com/bucket/SimpleNotificationService-1.pem",
    "https://sns.eu-central-1.amazonaws.com\\@evil.example/SimpleNotificationService-1.pem",
    "https://127.0.0.1/SimpleNotificationService-1.pem",
    "https://[::1]/SimpleNotificationService-1.pem",
    "https://169.254.169.254/SimpleNotificationService-1.pem",
    "https://2130706433/SimpleNotificationService-1.pem",
    "file:///etc/passwd",
    " " + webhooks.PEM_URL,
    "",
]


@pytest.mark.parametrize("url", FORGED_URLS)
def test_a_certificate_from_elsewhere_is_not_fetched(url: str) -> None:
    with pytest.raises(Unverified):
        sns.certificate_url(url, webhooks.TOPIC)


def test_where_certificates_and_confirmations_are() -> None:
    assert sns.certificate_url(webhooks.PEM_URL, webhooks.TOPIC) == webhooks.PEM_URL
    china = "arn:aws-cn:sns:cn-north-1:123456789012:t"
    assert sns.host(china) == "sns.cn-north-1.amazonaws.com.cn"
    assert "sns-cn-north-1.amazonaws.com.cn" in sns.names(china)
    assert "sns-us-gov-west-1.amazonaws.com" in sns.names("arn:aws-us-gov:sns:us-gov-east-1:123456789012:t")
    assert "sns-signing.af-south-1.amazonaws.com" in sns.names("arn:aws:sns:af-south-1:123456789012:t")
    made = Signer().message(
        NOW, Type="SubscriptionConfirmation", Token="2336412f37fb687f5d51e6e2425f", SubscribeURL="https://evil.example/"
    )
    envelope = sns.envelope(json.dumps(made).encode(), TOPICS, NOW)
    assert sns.confirmation(envelope) == (
        "https://sns.eu-central-1.amazonaws.com/?Action=ConfirmSubscription&TopicArn="
        "arn%3Aaws%3Asns%3Aeu-central-1%3A123456789012%3Ases-feedback&Token=2336412f37fb687f5d51e6e2425f"
    )
    made["Token"] = "x&Action=Publish"
    with pytest.raises(Unverified):
        sns.confirmation(sns.envelope(json.dumps(made).encode(), TOPICS, NOW))
    for bad in (
        "arn:aws:sns:eu-central-1:1:t",
        "arn:aws:sqs:eu-central-1:123456789012:t",
        "arn:aws:sns:evil.example/:123456789012:t",
    ):
        with pytest.raises(ValueError):
            sns.host(bad)


def test_signing_certificates() -> None:
    now = Signer().begins.timestamp() + 3600
    for names in (
        ("sns.amazonaws.com",),
        ("sns.eu-central-1.amazonaws.com",),
        ("x.example", "sns-signing.eu-central-1.amazonaws.com"),
    ):
        assert sns.public_key(Signer(names).pem, webhooks.TOPIC, now)
    bad = [
        (Signer(("sns.us-east-1.amazonaws.com",)).pem, now),
        (Signer(("amazonaws.com",)).pem, now),
        (Signer(("*.amazonaws.com",)).pem, now),
        (Signer(days=1).pem, now + 86400 * 3),
        (Signer().pem, now - 86400 * 3),
        (Signer().pem + Signer(("other.example",)).pem, now),  # not issued by the one beside it
        (b"", now),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", now),
        (b"<html>404</html>", now),
    ]
    for pem, at in bad:
        with pytest.raises(Unverified):
            sns.public_key(pem, webhooks.TOPIC, at)
