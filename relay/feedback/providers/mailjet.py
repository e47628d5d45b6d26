"""Mailjet's event API, which logs in (HTTP basic, in the URL that it is given); one event (version 1), or a list (version 2).

dev.mailjet.com/email/guides/webhooks; the errors: .../webhooks#possible-values-for-errors. Any answer but 200 is tried again for a day.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.feedback.providers import said
from relay.feedback.providers.said import Call, Ids, Keys, Said, Unreadable
from relay.policy.bounces import Reason

_ERRORS: Mapping[str, Reason] = {
    "user unknown": Reason.USER_UNKNOWN,
    "mailbox inactive": Reason.MAILBOX_DISABLED,
    "quota exceeded": Reason.MAILBOX_FULL,
    "blacklisted": Reason.REFUSED,
    "spam reporter": Reason.REFUSED,
    "preblocked": Reason.REFUSED,
    "invalid domain": Reason.HOST_UNKNOWN,
    "no mail host": Reason.NETWORK,
    "typofix": Reason.HOST_UNKNOWN,
    "relay/access denied": Reason.RELAYING_DENIED,
    "greylisted": Reason.RATE_LIMITED,
    "sender blocked": Reason.REPUTATION,
    "content blocked": Reason.SPAM,
    "policy issue": Reason.POLICY,
    "bad or empty template": Reason.CONTENT,
    "error in template language": Reason.CONTENT,
    "system issue": Reason.SYSTEM,
    "protocol issue": Reason.SYSTEM,
    "connection issue": Reason.NETWORK,
}


class Mailjet:
    most = 1 << 20

    def admits(self, keys: Keys, headers: Mapping[str, str]) -> None:
        said.basic(keys, headers)

    def hear(self, keys: Keys, call: Call) -> list[Said]:
        found = said.read_json(call.body)
        if not isinstance(found, dict | list):
            raise Unreadable("no event")
        return [one for event in said.objects(found) if (one := _event(event)) is not None]


def _event(event: dict[str, Any]) -> Said | None:
    recipient, kind = said.address(event.get("email")), said.text(event.get("event"), 50)
    if not recipient:
        return None
    number = said.text(event.get("MessageID"), 40) or said.text(event.get("Message_GUID"), 60)
    ids, at = Ids.of([event.get("CustomID"), event.get("Payload")]), said.seconds(event.get("time"))
    key = said.once(kind, number, recipient, said.text(event.get("time"), 20))
    match kind:
        case "spam":
            return Said(said.complaint(recipient, ids, at=at), key)
        case "unsub":
            return Said(said.unsubscribe(recipient, ids, at=at), key)
        case "bounce" | "blocked":
            return _bounced(event, recipient, ids, at, key)
    return None


def _bounced(event: dict[str, Any], recipient: str, ids: Ids, at: float | None, key: str) -> Said | None:
    error, comment = said.text(event.get("error"), 100), said.text(event.get("comment"))
    if error.lower() == "duplicate in campaign":
        return None  # it has the message already
    words = comment or " ".join(filter(None, (said.text(event.get("error_related_to"), 50), error)))
    delayed = error.lower() == "greylisted"  # it will be tried again, though it comes as a bounce
    # What was blocked was never tried.
    temporary = delayed or event.get("event") == "blocked" or event.get("hard_bounce") is not True
    verdict = said.judged("", words, sure=_ERRORS.get(error.lower()), temporary=temporary)
    action: Any = "delayed" if delayed else "failed"
    return Said(
        said.bounce(recipient, ids, verdict, words=words, at=at, action=action),
        key,
    )
