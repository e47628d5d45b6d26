"""Amazon's notifications (SES by way of SNS) that were subscribed to by mail: JSON where others have sentences. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from relay.policy.bounces import classify
from relay.reply import clean
from relay.returned import Finding, Kind
from relay.returned.parts import Mail
from relay.returned.transcript import MOST_RECIPIENTS

_MARKS = ('"notificationType"', '"eventType"', '\\"notificationType\\"', '\\"eventType\\"')
_MOST = 200_000  # characters of one


def read_notification(mail: Mail) -> list[Finding]:
    """Empty: it is none."""
    text = mail.text[:_MOST]
    if not any(mark in text for mark in _MARKS):
        return []
    told = _object(text)
    if isinstance(inner := told.get("Message"), str):  # SNS' own envelope
        told = _object(inner)
    about, kind = _mapping(told.get("mail")), str(told.get("notificationType") or told.get("eventType") or "").lower()
    report = _mapping(told.get(kind))
    recipients = report.get(
        {"bounce": "bouncedRecipients", "complaint": "complainedRecipients"}.get(kind, "recipients")
    )
    if not isinstance(recipients, list):
        return []
    return [_finding(kind, report, about, one) for one in recipients[:MOST_RECIPIENTS]]


def _finding(kind: str, report: Mapping[str, Any], about: Mapping[str, Any], one: object) -> Finding:
    given = one if isinstance(one, Mapping) else {"emailAddress": one}
    said, status = clean(_text(given, "diagnosticCode")), _text(given, "status")[:20]
    action = _text(given, "action") or {"bounce": "failed", "delivery": "delivered"}.get(kind, "")
    headers = _mapping(about.get("commonHeaders"))
    common = Finding(
        Kind.COMPLAINT if kind == "complaint" else Kind.BOUNCE,
        recipient=_text(given, "emailAddress")[:320],
        reason=_text(report, "complaintFeedbackType") if kind == "complaint" else "",
        reporter=_text(report, "reportingMTA").partition(";")[2].strip() or _text(report, "reportingMTA"),
        remote=_text(report, "remoteMtaIp"),
        message_id=_text(headers, "messageId") or _text(about, "messageId"),
        sender=_text(about, "source"),
        at=_time(_text(report, "timestamp")),
    )
    if kind == "complaint":
        return common
    verdict = classify(status, 0, said or _subtype(report), action)
    fields = {name: getattr(common, name) for name in Finding.__slots__}
    judged = {
        "status": status,
        "class_": verdict.class_,
        "reason": verdict.reason.value,
        "action": action,
        "diagnostic": said,
    }
    return Finding(**fields | judged)


def _subtype(report: Mapping[str, Any]) -> str:
    """What SES makes of a bounce that came without words: https://docs.aws.amazon.com/ses `bounceSubType`."""
    return {
        "NoEmail": "user unknown", "MailboxFull": "mailbox full", "MessageTooLarge": "message too large",
        "ContentRejected": "message content rejected", "AttachmentRejected": "attachment rejected",
    }.get(_text(report, "bounceSubType"), "")  # fmt: skip


def _object(text: str) -> Mapping[str, Any]:
    """The first JSON object of a text, also of one that a mail system has folded."""
    begin = text.find("{")
    for form in (text[begin:], text[begin:].replace("\n", "")) if begin >= 0 else ():
        try:
            found, _ = json.JSONDecoder().raw_decode(form)
        except (ValueError, RecursionError):
            continue
        return _mapping(found)
    return {}


def _mapping(given: object) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {}


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given.get(name)
    return value[:2000] if isinstance(value, str) else ""


def _time(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        return None
