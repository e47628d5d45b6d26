"""Amazon SNS over HTTP: whether a notification is one of our topics', signed by SNS, and of now.

docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message-verify-message-signature.html. Nothing of a request says where
we connect to: the host is that of the topic's region, and the topic is one of the configuration's. What is delivered raw is not
signed, and refused.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any
from urllib.parse import quote

from relay import clock
from relay.feedback.providers import said, ses
from relay.feedback.providers.said import Call, Keys, Later, Said, Unreadable, Unverified
from relay.settings.feedback import SNS_TOPIC

WINDOW = 3600.0  # SNS tries for less than that, and keeps the time of the first try
KEEP = 24 * 3600.0  # how long a certificate is used before it is fetched anew
MISSED = 60.0  # how long one that could not be had is not asked for again
MOST_CERTIFICATES = 20

_PEM = re.compile(r"/SimpleNotificationService-[0-9A-Za-z]{1,64}\.pem", re.ASCII)
_CONFIRM_TOKEN = re.compile(r"[0-9A-Za-z]{1,2048}", re.ASCII)
_NOTIFICATION = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_CONFIRMATION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED: Mapping[str, tuple[str, ...]] = {
    "Notification": _NOTIFICATION,
    "SubscriptionConfirmation": _CONFIRMATION,
    "UnsubscribeConfirmation": _CONFIRMATION,
}

# A URL of SNS -> what is there, of status 200; what can't be had raises Later.
Fetch = Callable[[str], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Envelope:
    """Its fields are strings, its topic is ours, its time is now. Not verified yet."""

    fields: Mapping[str, str]
    certificate: str  # where the certificate is

    @property
    def kind(self) -> str:
        return self.fields["Type"]

    @property
    def topic(self) -> str:
        return self.fields["TopicArn"]

    def signed(self) -> bytes:
        """What the signature is over: names and values, a line each, of those that there are."""
        pairs = ((name, self.fields.get(name)) for name in _SIGNED[self.kind])
        return "".join(f"{name}\n{value}\n" for name, value in pairs if value is not None).encode()


def host(topic: str) -> str:
    """Of the region's SNS. Raises ValueError."""
    found = SNS_TOPIC.fullmatch(topic)
    if not found:
        raise ValueError("no ARN of an SNS topic, such as arn:aws:sns:eu-central-1:123456789012:ses-feedback")
    return f"sns.{found[2]}.amazonaws.com{'.cn' if found[1] == 'aws-cn' else ''}"


def envelope(body: bytes, topics: tuple[str, ...], now: float) -> Envelope:
    """Raises Unverified, Unreadable."""
    found = said.read_json(body)
    if not isinstance(found, dict):
        raise Unreadable("no message of SNS")
    fields = {name: value for name, value in found.items() if isinstance(value, str)}
    if fields.get("Type") not in _SIGNED or "Signature" not in fields:
        raise Unverified("no message of SNS, or one that was delivered raw: that is not signed")
    try:
        "".join(fields.values()).encode()
    except UnicodeEncodeError:
        raise Unreadable("half a character") from None
    needed = [name for name in _SIGNED[fields["Type"]] if name != "Subject"]
    if any(name not in fields for name in needed):
        raise Unverified("a part of what is signed is missing")
    if fields["TopicArn"] not in topics:
        raise Unverified("its topic is none of `topics`")
    said.fresh(said.seconds(fields["Timestamp"]) or 0.0, now, WINDOW)
    return Envelope(fields, certificate_url(fields.get("SigningCertURL", ""), fields["TopicArn"]))


def certificate_url(url: str, topic: str) -> str:
    """`url`, where it is one of SNS in the topic's region. Raises Unverified."""
    begins = f"https://{host(topic)}"
    if not url.startswith(begins) or not _PEM.fullmatch(url[len(begins) :]):
        raise Unverified("its certificate is not where that of its topic is")
    return url


def confirmation(one: Envelope) -> str:
    """Where a subscription is confirmed: made of what was signed, not taken from it. Raises Unverified."""
    token = one.fields.get("Token", "")
    if not _CONFIRM_TOKEN.fullmatch(token):
        raise Unverified("no token to confirm with")
    query = f"Action=ConfirmSubscription&TopicArn={quote(one.topic, safe='')}&Token={token}"
    return f"https://{host(one.topic)}/?{query}"


def names(topic: str) -> frozenset[str]:
    """Whose certificate signs for a region, as Amazon's own libraries have it; newer regions have their own."""
    found = SNS_TOPIC.fullmatch(topic)
    assert found
    region, ending = found[2], "amazonaws.com.cn" if found[1] == "aws-cn" else "amazonaws.com"
    of_region = {f"sns.{region}.{ending}", f"sns-signing.{region}.{ending}", f"sns-{region}.{ending}"}
    if found[1] == "aws-us-gov":
        return frozenset({*of_region, "sns-us-gov-west-1.amazonaws.com"})
    return frozenset(of_region if found[1] == "aws-cn" else {*of_region, "sns.amazonaws.com"})


def public_key(pem: bytes, topic: str, now: float) -> Any:
    """The key of a signing certificate. Raises Unverified.

    It came over TLS from the region's own host, and that is what it is trusted by: SNS shows a leaf alone, without what would
    lead to a root. Certificates that come along must have signed one another.
    """
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    try:
        chain = x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise Unverified("its certificate can't be read") from None
    leaf, at = chain[0], datetime.fromtimestamp(now, UTC)
    if any(not one.not_valid_before_utc <= at <= one.not_valid_after_utc for one in chain):
        raise Unverified("its certificate is of another time")
    if not _named(leaf) & names(topic):
        raise Unverified("its certificate has another name")
    try:
        for one, issuer in pairwise(chain):
            one.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise Unverified("its certificate was not issued by the one beside it") from None
    key = leaf.public_key()
    if not isinstance(key, RSAPublicKey) or key.key_size < 2048:
        raise Unverified("its certificate has a key of another kind")
    return key


def _named(certificate: Any) -> set[str]:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return {name.lower() for name in found.get_values_for_type(x509.DNSName)}
    except (x509.ExtensionNotFound, ValueError):
        subject = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return {str(one.value).lower() for one in subject}


def verify(one: Envelope, key: Any) -> None:
    """Raises Unverified."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15

    algorithms: Mapping[str, hashes.HashAlgorithm] = {"1": hashes.SHA1(), "2": hashes.SHA256()}
    algorithm = algorithms.get(one.fields.get("SignatureVersion", ""))
    if algorithm is None:
        raise Unverified("a signature of another version")
    try:
        signature = base64.b64decode(one.fields["Signature"], validate=True)
        key.verify(signature, one.signed(), PKCS1v15(), algorithm)
    except (InvalidSignature, ValueError):
        raise Unverified("the signature is not of this certificate and message") from None


class Sns:
    """SES behind SNS. `fetch` is asked for nothing but certificates and confirmations of our topics' regions."""

    most = 512 << 10  # 256 KiB, with what JSON within JSON adds

    def __init__(self, fetch: Fetch, told: Callable[[str, str], None] = lambda kind, topic: None) -> None:
        """`told`: hears of confirmations, by their Type and topic."""
        self._fetch, self._told = fetch, told
        self._kept: dict[
            str, tuple[float, bytes]
        ] = {}  # url -> until when (monotonic), PEM; empty: it could not be had
        self._asking: dict[str, asyncio.Future[bytes]] = {}

    def admits(self, keys: Keys, headers: Mapping[str, str]) -> None:
        if headers.get("x-amz-sns-rawdelivery", "").lower() == "true":
            raise Unverified("raw delivery is not signed; switch it off for this subscription")

    async def hear(self, keys: Keys, call: Call) -> list[Said]:
        """Raises Unverified, Unreadable, Later."""
        one = envelope(call.body, keys.topics, call.now)
        verify(one, public_key(await self._certificate(one.certificate), one.topic, call.now))
        if one.kind == "SubscriptionConfirmation":
            await self._fetch(confirmation(one))
        if one.kind != "Notification":
            self._told(one.kind, one.topic)
            return []
        return ses.read(one.fields["Message"], one.fields["MessageId"])

    async def _certificate(self, url: str) -> bytes:
        now = clock.monotonic()
        kept = self._kept.get(url)
        if kept and kept[0] > now:
            if not kept[1]:
                raise Later("its certificate could not be had just now")
            return kept[1]
        if url not in self._asking:
            # A forged request may name any file of SNS: so many of them, and no more.
            self._kept = {at: had for at, had in self._kept.items() if had[0] > now - (7 * KEEP if had[1] else 0)}
            if len(self._kept) + len(self._asking) >= MOST_CERTIFICATES:
                raise Later("too many certificates were asked for")
            self._asking[url] = asyncio.ensure_future(self._fetched(url, kept[1] if kept else b""))
        return await asyncio.shield(self._asking[url])  # a crowd of notifications asks once

    async def _fetched(self, url: str, old: bytes) -> bytes:
        """Raises Later."""
        try:
            found = await self._fetch(url)
        except Later:
            self._kept[url] = (clock.monotonic() + MISSED, old)
            if not old:
                raise
            return old  # as good as it was
        finally:
            del self._asking[url]
        self._kept[url] = (clock.monotonic() + KEEP, found)
        return found
