"""Postmark's webhooks, which log in (HTTP basic, in the URL that it is given).

postmarkapp.com/developer/webhooks/bounce-webhook, spam-complaint-webhook, subscription-change-webhook; the types of bounces:
postmarkapp.com/developer/api/bounce-api#bounce-types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relay.feedback.providers import said
from relay.feedback.providers.said import Call, Ids, Keys, Said, Unreadable
from relay.policy.bounces import Reason


@dataclass(frozen=True, slots=True)
class _Type:
    sure: Reason | None = None
    likely: Reason | None = None
    temporary: bool = False


_TYPES: Mapping[str, _Type] = {
    "HardBounce": _Type(likely=Reason.USER_UNKNOWN),  # "unknown user, mailbox not found"
    "BadEmailAddress": _Type(sure=Reason.USER_UNKNOWN),
    "SoftBounce": _Type(temporary=True),
    "DnsError": _Type(likely=Reason.NETWORK, temporary=True),
    "AddressChange": _Type(temporary=True),
    "SpamNotification": _Type(sure=Reason.SPAM),
    "VirusNotification": _Type(sure=Reason.VIRUS),
    "Blocked": _Type(likely=Reason.REPUTATION, temporary=True),
    "ManuallyDeactivated": _Type(sure=Reason.REFUSED),
    "DMARCPolicy": _Type(sure=Reason.AUTHENTICATION),
    "Unconfirmed": _Type(sure=Reason.POLICY),
    "SMTPApiError": _Type(sure=Reason.POLICY),
    "Unknown": _Type(),
}


class Postmark:
    most = 512 << 10  # a complaint may bring the message along

    def admits(self, keys: Keys, headers: Mapping[str, str]) -> None:
        said.basic(keys, headers)

    def hear(self, keys: Keys, call: Call) -> list[Said]:
        found = said.read_json(call.body)
        if not isinstance(found, dict):
            raise Unreadable("no event")
        recipient = said.address(found.get("Email")) or said.address(found.get("Recipient"))
        ids = Ids.of([said.obj(found.get("Metadata")).get(said.KEY)])
        if not recipient:
            return []
        record = said.text(found.get("RecordType"), 50)
        if record == "SubscriptionChange":
            return _changed(found, recipient, ids)
        if record not in ("", "Bounce", "SpamComplaint"):  # older hooks have no RecordType
            return []
        return _bounced(found, recipient, ids)


def _bounced(found: dict[str, Any], recipient: str, ids: Ids) -> list[Said]:
    kind, at = said.text(found.get("Type"), 50), said.seconds(found.get("BouncedAt"))
    number = said.text(found.get("ID"), 40) or said.once(said.text(found.get("MessageID"), 100), recipient)
    key, sender = f"{kind} {number}", said.address(found.get("From"))
    if kind == "SpamComplaint":
        return [Said(said.complaint(recipient, ids, sender=sender, at=at), key)]
    if kind == "Unsubscribe":
        return [Said(said.unsubscribe(recipient, ids, at=at), key)]
    words = said.text(found.get("Details"))  # `Description` is Postmark's own, and the same for all of a type
    if kind == "Transient":
        verdict = said.judged("", words, temporary=True)
        finding = said.bounce(recipient, ids, verdict, words=words, sender=sender, at=at, action="delayed")
        return [Said(finding, key)]
    if (known := _TYPES.get(kind)) is None:
        return []  # what machines answer, or nothing about a recipient
    verdict = said.judged("", words, sure=known.sure, likely=known.likely, temporary=known.temporary)
    return [Said(said.bounce(recipient, ids, verdict, words=words, sender=sender, at=at), key)]


def _changed(found: dict[str, Any], recipient: str, ids: Ids) -> list[Said]:
    """Who unsubscribes is `ManualSuppression` by `Recipient`; bounces and complaints come as such too."""
    if found.get("SuppressSending") is not True or said.text(found.get("Origin"), 20) != "Recipient":
        return []
    if said.text(found.get("SuppressionReason"), 30) != "ManualSuppression":
        return []
    at = said.text(found.get("ChangedAt"), 60)
    key = f"subscription {said.once(said.text(found.get('MessageID'), 100), recipient, at)}"
    return [Said(said.unsubscribe(recipient, ids, at=said.seconds(at)), key)]
