"""Providers that call our webhooks: requests as their documentation has them, signed with keys of the tests' own.

The signatures are made here by `cryptography` alone, from the texts of the documentation, and by nothing of relay.feedback.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from relay.feedback.providers.said import Call

TOPIC = "arn:aws:sns:eu-central-1:123456789012:ses-feedback"
PEM_URL = "https://sns.eu-central-1.amazonaws.com/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"


def call(body: Any, now: float, client: str = "192.0.2.1", **headers: str) -> Call:
    """`body`: bytes, or what is made JSON."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Call({name.replace("_", "-"): value for name, value in headers.items()}, raw, client, now)


def login(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


# -- SendGrid


@cache
def sendgrid_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def verification_key(key: Any = None) -> str:
    """As SendGrid shows it."""
    public = (key or sendgrid_key()).public_key()
    return base64.b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()


def sendgrid(body: bytes, stamp: str, key: Any = None) -> dict[str, str]:
    """Its headers."""
    signature = (key or sendgrid_key()).sign(stamp.encode() + body, ec.ECDSA(hashes.SHA256()))
    return {
        "X-Twilio-Email-Event-Webhook-Signature": base64.b64encode(signature).decode(),
        "X-Twilio-Email-Event-Webhook-Timestamp": stamp,
    }


# -- Mailgun


def mailgun(event: Any, now: float, key: str = "signing-key", token: str = "a" * 50) -> dict[str, Any]:
    stamp = str(int(now))
    made = hmac.new(key.encode(), (stamp + token).encode(), hashlib.sha256).hexdigest()
    return {"signature": {"timestamp": stamp, "token": token, "signature": made}, "event-data": event}


# -- SNS


@cache
def rsa_key(number: int = 0) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@dataclass
class Signer:
    """A certificate of SNS, and what is signed with its key."""

    names: tuple[str, ...] = ("sns.amazonaws.com",)
    begins: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(days=1))
    days: int = 400
    number: int = 0  # which of the keys

    @property
    def pem(self) -> bytes:
        key = rsa_key(self.number)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.names[0])])
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Amazon of the tests")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.begins)
            .not_valid_after(self.begins + timedelta(days=self.days))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(one) for one in self.names]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return made.public_bytes(Encoding.PEM)

    def message(self, now: float, version: str = "2", **given: Any) -> dict[str, Any]:
        """As SNS posts it; `given` replaces or, with None, takes away."""
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + "123Z"
        made: dict[str, Any] = {
            "Type": "Notification",
            "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
            "TopicArn": TOPIC,
            "Message": "{}",
            "Timestamp": stamp,
            "SignatureVersion": version,
            "SigningCertURL": PEM_URL,
        } | given
        made = {name: value for name, value in made.items() if value is not None}
        made["Signature"] = self.sign(made)
        return made

    def sign(self, message: dict[str, Any]) -> str:
        """https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message-verify-message-signature.html"""
        if message["Type"] == "Notification":
            names = ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"]
        else:
            names = ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"]
        text = ""
        for name in names:
            if name in message:
                text += name + "\n" + message[name] + "\n"
        algorithm = hashes.SHA1() if message["SignatureVersion"] == "1" else hashes.SHA256()
        return base64.b64encode(rsa_key(self.number).sign(text.encode(), padding.PKCS1v15(), algorithm)).decode()


def ses_bounce(
    recipient: str = "jane@example.com",
    type_: str = "Permanent",
    sub: str = "General",
    diagnostic: str = "smtp; 550 5.1.1 user unknown",
    **mail: Any,
) -> dict[str, Any]:
    """https://docs.aws.amazon.com/ses/latest/dg/event-publishing-retrieving-sns-examples.html"""
    return {
        "eventType": "Bounce",
        "bounce": {
            "bounceType": type_,
            "bounceSubType": sub,
            "bouncedRecipients": [
                {"emailAddress": recipient, "action": "failed", "status": "5.1.1", "diagnosticCode": diagnostic}
                if diagnostic
                else {"emailAddress": recipient}
            ],
            "timestamp": "2017-08-05T00:41:02.669Z",
            "feedbackId": "01000157c44f053b-61b59c11-9236-11e6-8f96-7be8aexample-000000",
            "reportingMTA": "dsn; mta.example.com",
        },
        "mail": {
            "timestamp": "2017-08-05T00:40:02.012Z",
            "source": "Sender Name <sender@example.com>",
            "sourceArn": "arn:aws:ses:us-east-1:123456789012:identity/sender@example.com",
            "sendingAccountId": "123456789012",
            "messageId": "EXAMPLE7c191be45-e9aedb9a-02f9-4d12-a87d-dd0099a07f8a-000000",
            "destination": [recipient],
            "headersTruncated": False,
            "headers": [{"name": "From", "value": "Sender Name <sender@example.com>"}],
            "commonHeaders": {"from": ["Sender Name <sender@example.com>"], "to": [recipient]},
            "tags": {"ses:configuration-set": ["ConfigSet"]},
        }
        | mail,
    }
