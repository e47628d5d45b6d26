"""SendGrid's signed event webhook: ECDSA over P-256 and SHA-256, of the timestamp and the body as they came.

The events: www.twilio.com/docs/sendgrid/for-developers/tracking-events/event; the signature: .../getting-started-event-webhook-
security-features. It posts batches of up to 768 kB. A batch is tried again for 24 hours; what is in it is known by `sg_event_id`.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from relay.certificate import ec_public_key
from relay.feedback.providers import said
from relay.feedback.providers.said import Call, Ids, Keys, Said, Unreadable, Unverified
from relay.policy.bounces import Reason

SIGNATURE = "x-twilio-email-event-webhook-signature"
TIMESTAMP = "x-twilio-email-event-webhook-timestamp"
WINDOW = 25 * 3600.0

# `bounce_classification`, in lower case.
_CLASSES: Mapping[str, Reason] = {
    "invalid address": Reason.USER_UNKNOWN,
    "content": Reason.CONTENT,
    "reputation": Reason.REPUTATION,
    "frequency or volume too high": Reason.RATE_LIMITED,
}
_LIKELY: Mapping[str, Reason] = {
    "mailbox unavailable": Reason.MAILBOX_DISABLED,
    "technical failure": Reason.NETWORK,
    "technical": Reason.NETWORK,
}


class SendGrid:
    most = 1 << 20

    def admits(self, keys: Keys, headers: Mapping[str, str]) -> None:
        if not headers.get(SIGNATURE) or not headers.get(TIMESTAMP):
            raise Unverified("it is not signed")

    def hear(self, keys: Keys, call: Call) -> list[Said]:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.hashes import SHA256

        stamp = call.headers[TIMESTAMP]
        try:
            signature = base64.b64decode(call.headers[SIGNATURE], validate=True)
            ec_public_key(keys.public_key).verify(signature, stamp.encode() + call.body, ec.ECDSA(SHA256()))
        except (InvalidSignature, ValueError):
            raise Unverified("the signature is not of this key and body") from None
        at = said.seconds(stamp)
        said.fresh(at or 0.0, call.now, WINDOW)
        found = said.read_json(call.body)
        if not isinstance(found, list):
            raise Unreadable("no list of events")
        return [one for event in said.objects(found) if (one := _event(event)) is not None]


def _event(event: dict[str, Any]) -> Said | None:
    recipient = said.address(event.get("email"))
    kind = said.text(event.get("event"), 50)
    if not recipient or kind not in _READERS:
        return None
    arguments = said.obj(event.get("unique_args")) or said.obj(event.get("custom_args"))
    ids = Ids.of([event.get(said.KEY), arguments.get(said.KEY)], [event.get("smtp-id")])
    # Without an id of its own an event is known by all that it says.
    key = said.text(event.get("sg_event_id"), 200) or said.once(*map(str, sorted(event.items(), key=str)))
    return _READERS[kind](event, recipient, ids, key)


def _bounce(event: dict[str, Any], recipient: str, ids: Ids, key: str) -> Said:
    words, status = said.text(event.get("reason")), said.text(event.get("status"), 20)
    named = said.text(event.get("bounce_classification"), 100).lower()
    verdict = said.judged(
        status,
        words,
        sure=_CLASSES.get(named),
        likely=_LIKELY.get(named),
        temporary=said.text(event.get("type"), 20) == "blocked",
    )
    at = said.seconds(event.get("timestamp"))
    return Said(said.bounce(recipient, ids, verdict, status=status, words=words, at=at), key)


def _dropped(event: dict[str, Any], recipient: str, ids: Ids, key: str) -> Said:
    """It was never tried. That it bounced once, or was called spam, says why; it is no news of the mailbox."""
    words, at = said.text(event.get("reason")), said.seconds(event.get("timestamp"))
    if words.lower() == "unsubscribed address":
        return Said(said.unsubscribe(recipient, ids, at=at), key)
    reasons = {
        "invalid": Reason.USER_UNKNOWN,
        "bounced address": Reason.UNKNOWN,
        "spam reporting address": Reason.REFUSED,
    }
    sure = reasons.get(words.lower(), Reason.POLICY)
    return Said(said.bounce(recipient, ids, said.judged("", words, sure=sure), words=words, at=at), key)


def _deferred(event: dict[str, Any], recipient: str, ids: Ids, key: str) -> Said:
    words, at = said.text(event.get("response")), said.seconds(event.get("timestamp"))
    verdict = said.judged("", words, temporary=True)
    return Said(said.bounce(recipient, ids, verdict, words=words, at=at, action="delayed"), key)


def _spam(event: dict[str, Any], recipient: str, ids: Ids, key: str) -> Said:
    return Said(said.complaint(recipient, ids, at=said.seconds(event.get("timestamp"))), key)


def _unsubscribed(event: dict[str, Any], recipient: str, ids: Ids, key: str) -> Said:
    return Said(said.unsubscribe(recipient, ids, at=said.seconds(event.get("timestamp"))), key)


_READERS = {
    "bounce": _bounce,
    "blocked": lambda event, *rest: _bounce({**event, "type": "blocked"}, *rest),
    "dropped": _dropped,
    "deferred": _deferred,
    "spamreport": _spam,
    "unsubscribe": _unsubscribed,
    "group_unsubscribe": _unsubscribed,
}
