"""Mailgun's webhooks: HMAC-SHA-256 with the signing key over a timestamp and a token, not over what is told beside them.

So a token is good for one body only: what it was used for is remembered here while its timestamp is good, and by the spool
where it taught anything. documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks; the events:
.../user-manual/events/event-structure. It tries for 8 hours.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from relay.feedback.providers import said
from relay.feedback.providers.said import Call, Ids, Keys, Said, Unreadable, Unverified
from relay.policy.bounces import Reason

WINDOW = 9 * 3600.0
MOST_TOKENS = 50_000

_REASONS: Mapping[str, Reason] = {  # `reason` of an event `failed`
    "suppress-bounce": Reason.UNKNOWN,  # it bounced once; why, nobody says
    "suppress-complaint": Reason.REFUSED,
    "old": Reason.EXPIRED,
    "espblock": Reason.REPUTATION,
}


class Mailgun:
    most = 256 << 10

    def __init__(self) -> None:
        self._used: OrderedDict[str, bytes] = OrderedDict()  # token -> what it was used for

    def admits(self, keys: Keys, headers: Mapping[str, str]) -> None:
        """What it is known by stands in the body."""

    def hear(self, keys: Keys, call: Call) -> list[Said]:
        found = said.obj(said.read_json(call.body))
        token = self._verified(keys, said.obj(found.get("signature")), call)
        event = found.get("event-data")
        if not isinstance(event, dict):
            raise Unreadable("no event")
        one = _event(event, f"token {token}")
        return [] if one is None else [one]

    def _verified(self, keys: Keys, signature: dict[str, Any], call: Call) -> str:
        stamp, token = said.text(signature.get("timestamp"), 20), said.text(signature.get("token"), 100)
        if not stamp or not token or not keys.signing_key:
            raise Unverified("it is not signed")
        wanted = hmac.digest(keys.signing_key.encode(), (stamp + token).encode(), hashlib.sha256).hex()
        # Of a subaccount's events the second one is made with the key of the account above it.
        one, other = (said.text(signature.get(key), 100) for key in ("signature", "parent-signature"))
        if not said.same(one, wanted) | said.same(other, wanted):
            raise Unverified("the signature is not of this key")
        said.fresh(said.seconds(stamp) or 0.0, call.now, WINDOW)
        body = hashlib.sha256(call.body).digest()
        if self._used.setdefault(token, body) != body:
            raise Unverified("its token was used for something else")
        if len(self._used) > MOST_TOKENS:
            self._used.popitem(last=False)
        return token


def _event(event: dict[str, Any], key: str) -> Said | None:
    recipient = said.address(event.get("recipient"))
    if not recipient:
        return None
    head = said.obj(said.obj(event.get("message")).get("headers"))
    ids = Ids.of([said.obj(event.get("user-variables")).get(said.KEY)], [head.get("message-id")])
    at = said.seconds(event.get("timestamp"))
    match said.text(event.get("event"), 50):
        case "failed":
            return _failed(event, recipient, ids, at, key)
        case "complained":
            return Said(said.complaint(recipient, ids, at=at), key)
        case "unsubscribed":
            return Said(said.unsubscribe(recipient, ids, at=at), key)
    return None


def _failed(event: dict[str, Any], recipient: str, ids: Ids, at: float | None, key: str) -> Said:
    reason, delivery = said.text(event.get("reason"), 50), said.obj(event.get("delivery-status"))
    if reason == "suppress-unsubscribe":
        return Said(said.unsubscribe(recipient, ids, at=at), key)
    code, status = said.text(delivery.get("code"), 10), said.text(delivery.get("enhanced-code"), 20)
    words = said.text(delivery.get("message")) or said.text(delivery.get("description"))
    if code.isdecimal() and 400 <= int(code) < 600 and not words.startswith(code):
        words = f"{code} {words}"  # 605 and their like are Mailgun's own
    delayed = said.text(event.get("severity"), 20) == "temporary"
    verdict = said.judged(
        status,
        words,
        sure=_REASONS.get(reason),
        temporary=delayed or said.text(delivery.get("bounce-type"), 10) == "soft",
    )
    finding = said.bounce(
        recipient,
        ids,
        verdict,
        status=status,
        words=words,
        remote=said.text(delivery.get("mx-host"), 255),
        at=at,
        action="delayed" if delayed else "failed",
    )
    return Said(finding, key)
