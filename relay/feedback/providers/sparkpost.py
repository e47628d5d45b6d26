"""SparkPost's webhooks, which log in (HTTP basic); batches of `{"msys": {CLASS: EVENT}}`, an empty one of which is a ping.

developers.sparkpost.com/api/webhooks; support.sparkpost.com/docs/deliverability/bounce-classification-codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.feedback.providers import said
from relay.feedback.providers.said import Call, Ids, Keys, Said, Unreadable
from relay.policy.bounces import Reason

_SURE: Mapping[str, Reason] = {  # bounce_class
    "10": Reason.USER_UNKNOWN,
    "22": Reason.MAILBOX_FULL,
    "23": Reason.MESSAGE_TOO_BIG,
    "25": Reason.POLICY,
    "26": Reason.POLICY,
    "30": Reason.USER_UNKNOWN,
    "51": Reason.REPUTATION,
    "52": Reason.SPAM,
    "53": Reason.CONTENT,
    "54": Reason.RELAYING_DENIED,
}
_LIKELY: Mapping[str, Reason] = {"21": Reason.NETWORK, "24": Reason.EXPIRED, "50": Reason.POLICY}
_TEMPORARY = frozenset({"20", "21", "22", "23", "24", "40", "50", "51", "52", "53", "54", "70"})  # "Soft" and "Block"
_NONE = frozenset({"60", "80", "100"})  # what machines and subscribers answer
_UNSUBSCRIBE = "90"


class SparkPost:
    most = 4 << 20

    def admits(self, keys: Keys, headers: Mapping[str, str]) -> None:
        said.basic(keys, headers)

    def hear(self, keys: Keys, call: Call) -> list[Said]:
        found = said.read_json(call.body)
        if not isinstance(found, dict | list):
            raise Unreadable("no batch")
        events = [e for one in said.objects(found) for e in said.objects(list(said.obj(one.get("msys")).values()))]
        return [one for event in events if (one := _event(event)) is not None]


def _event(event: dict[str, Any]) -> Said | None:
    recipient = said.address(event.get("raw_rcpt_to")) or said.address(event.get("rcpt_to"))
    kind, class_ = said.text(event.get("type"), 50), said.text(event.get("bounce_class"), 10)
    if not recipient:
        return None
    ids = Ids.of([said.obj(event.get("rcpt_meta")).get(said.KEY)])
    at = said.seconds(event.get("timestamp"))
    key = said.text(event.get("event_id"), 200)
    if not key:
        key = said.once(kind, recipient, said.text(event.get("message_id"), 200), said.text(event.get("timestamp"), 40))
    bounced = kind in ("bounce", "out_of_band")
    if kind in ("list_unsubscribe", "link_unsubscribe") or (bounced and class_ == _UNSUBSCRIBE):
        return Said(said.unsubscribe(recipient, ids, at=at), key)
    if kind == "spam_complaint":
        reason = said.text(event.get("fbtype"), 50) or "abuse"
        if reason == "not-spam":
            return None
        reporter = said.text(event.get("report_by"), 255)
        return Said(said.complaint(recipient, ids, reason=reason, reporter=reporter, at=at), key)
    if kind not in ("bounce", "out_of_band", "policy_rejection", "delay") or (bounced and class_ in _NONE):
        return None
    return _bounced(event, kind, recipient, ids, at, key)


def _bounced(event: dict[str, Any], kind: str, recipient: str, ids: Ids, at: float | None, key: str) -> Said:
    class_ = said.text(event.get("bounce_class"), 10)
    words = said.text(event.get("raw_reason")) or said.text(event.get("reason"))
    sure = Reason.POLICY if kind == "policy_rejection" else _SURE.get(class_)
    delayed = kind == "delay"
    temporary = delayed or class_ in _TEMPORARY
    verdict = said.judged("", words, sure=None if delayed else sure, likely=_LIKELY.get(class_), temporary=temporary)
    finding = said.bounce(
        recipient,
        ids,
        verdict,
        words=words,
        remote=said.text(event.get("ip_address"), 50),
        sender=said.address(event.get("msg_from")),
        at=at,
        action="delayed" if delayed else "failed",
    )
    return Said(finding, key)
