"""Complaints: feedback reports (RFC 5965, RFC 6650, RFC 6692) and what some send instead of one. Pure.

A report has a finding for each recipient that it names, or one without a recipient: many redact it (RFC 6590), and the token or
queue id of the returned header tells who it was. `reason` is the feedback type in lower case: abuse, fraud, virus, opt-out,
not-spam, auth-failure, other, …

Failure reports of DMARC (RFC 6591, RFC 7489 §7.3) come in the same form and are findings of the same kind, with the reason
`auth-failure`: no recipient complained, so whoever acts on complaints looks at the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

from relay.returned import Finding, Kind
from relay.returned.original import Fields, Original, date, mailbox, token
from relay.returned.parts import Mail, Part, header_fields, split

MOST_REPORTS = 10  # in one mail
MOST_RECIPIENTS = 100
MOST_VALUE = 300  # characters of a field that are told

# RFC 5965 §3.1 and §3.2, RFC 6591 §3, and what feedback loops add: field -> name in `detail`.
_TOLD = {
    "user-agent": "user_agent",
    "source-ip": "source_ip",
    "reported-domain": "reported_domain",
    "reported-uri": "reported_uri",
    "incidents": "incidents",
    "original-envelope-id": "envelope_id",
    "auth-failure": "auth_failure",
    "delivery-result": "delivery_result",
    "identity-alignment": "identity_alignment",
    "dkim-domain": "dkim_domain",
    "source": "source",
}
# Who was meant, the best first; the last three are what Microsoft's and other loops write into the returned header.
_IN_REPORT = ("original-rcpt-to", "removal-recipient")
_IN_ORIGINAL = ("x-hmxmroriginalrecipient", "x-original-to", "delivered-to")
_REDACTED = re.compile(r"redacted|removed|hashed|hidden|anonymi[sz]ed|undisclosed|x{3,}|\*+", re.IGNORECASE)
_FEEDBACK = re.compile(rb"\s{0,100}(?:[A-Za-z-]{1,40}:[^\n]{0,1000}\n){0,20}?Feedback-Type:", re.IGNORECASE)
_FORENSIC = re.compile(r"dmarc (?:forensic|failure)|\[dmarc failure", re.IGNORECASE)
_COPY = re.compile(r"^-+ This is a copy of the headers.{0,200}$", re.MULTILINE)


def read_arf(mail: Mail, raw: bytes) -> list[Finding]:
    """What it complains of; empty where it is no complaint. Never raises."""
    reports = list(_reports(mail))
    found = [one for fields, original in reports for one in _findings(mail, fields, original)]
    return found or _jmrp(mail) or _forensic(mail) or _apple(mail)


def _reports(mail: Mail) -> Iterator[tuple[Fields, list[tuple[str, str]]]]:
    """Each report with the header of the message that follows it."""
    wanted = "feedback-report" in mail.parameters.get("report-type", "").lower()
    at = [i for i, part in enumerate(mail.parts) if _is_report(part, wanted)][:MOST_REPORTS]
    for i, end in pairwise([*at, len(mail.parts)]):
        returned = next((part for part in mail.parts[i + 1 : end] if _is_returned(part)), None)
        content = mail.parts[i].content.lstrip(b"\r\n")
        yield header_fields(content), _header(returned) if returned else []


def _is_report(part: Part, wanted: bool) -> bool:
    if part.type == "message/feedback-report":
        return True
    return wanted and part.type in ("text/plain", "application/octet-stream") and bool(_FEEDBACK.match(part.content))


def _is_returned(part: Part) -> bool:
    """RFC 6522 §3, and how it is misspelt."""
    return part.type in ("message/rfc822", "message/global", "message/global-headers") or part.type.startswith(
        "text/rfc822"
    )


def _header(part: Part) -> list[tuple[str, str]]:
    return header_fields(split(part.content.lstrip(b"\r\n"))[0])


def _findings(mail: Mail, fields: Fields, header: list[tuple[str, str]]) -> Iterator[Finding]:
    values: dict[str, list[str]] = {}
    for name, value in fields:
        values.setdefault(name, []).append(value[:MOST_VALUE])
    # RFC 5965 §3.1: once; a report that has lost it still complains.
    type_ = (values.get("feedback-type") or ["abuse"])[0].strip().lower().replace("_", "-")
    reason = re.sub(r"[^a-z0-9-]", "", "auth-failure" if type_ == "authentication-failure" else type_)[:40] or "other"
    original = Original.read(header)
    sender = mailbox((values.get("original-mail-from") or [""])[0])
    about = _about(mail, reason, original, {new: values[old] for old, new in _TOLD.items() if old in values})
    about = replace(
        about,
        sender=sender or original.sender,
        token=original.token or token(fields) or about.token,
        at=date(mail.first("date")) or date((values.get("arrival-date") or values.get("received-date") or [""])[0]),
    )
    yield from _each(about, _recipients(fields, header, original))


def _about(mail: Mail, reason: str, original: Original, told: dict[str, list[str]]) -> Finding:
    detail: dict[str, Any] = {name: found[0] if len(found) == 1 else found[:5] for name, found in told.items()}
    if reason == "auth-failure":
        detail["report"] = "failure"
    if original.subject:
        detail["subject"] = original.subject
    return Finding(
        kind=Kind.COMPLAINT,
        reason=reason,
        reporter=mailbox(mail.first("from")),
        queue_id=original.queue_id,
        token=original.token or token(mail.fields),
        message_id=original.message_id,
        sender=original.sender,
        at=date(mail.first("date")),
        detail=detail,
    )


def _each(about: Finding, recipients: list[str]) -> Iterator[Finding]:
    """One for each; where the address is not the real one, `detail` says so."""
    for recipient in recipients or [""]:
        hidden = bool(_REDACTED.search(recipient.partition("@")[0]))
        detail = {**about.detail, "redacted": True} if hidden else about.detail
        yield replace(about, recipient=recipient, detail=detail)


def _recipients(fields: Fields, header: Fields, original: Original) -> list[str]:
    for names, where in ((_IN_REPORT[:1], fields), (_IN_REPORT[1:], fields), (_IN_ORIGINAL[:1], header)):
        found = [address for name, value in where if name in names and (address := mailbox(value))]
        if found:
            return list(dict.fromkeys(found))[:MOST_RECIPIENTS]
    if len(original.recipients) == 1:
        return list(original.recipients)
    # Of several in To and Cc one complained; which one may say where it was delivered.
    delivered = [mailbox(value) for name, value in header if name in _IN_ORIGINAL[1:]]
    return [one for one in delivered if one][:1]


def _jmrp(mail: Mail) -> list[Finding]:
    """Microsoft's Junk Mail Reporting Program: the message, with its recipient in a field of its own, and no report."""
    for header in map(_header, filter(_is_returned, mail.parts)):
        if any(name == "x-hmxmroriginalrecipient" for name, _ in header):
            original = Original.read(header)
            return list(_each(_about(mail, "abuse", original, {}), _recipients((), header, original)))
    return []


def _forensic(mail: Mail) -> list[Finding]:
    """A failure report of DMARC in words alone, as Exim's recipe writes it: the header of the message stands in the text."""
    if mail.type not in ("multipart/report", "text/plain") or not _FORENSIC.search(mail.first("subject")[:200]):
        return []
    copied = _COPY.search(mail.text)
    header = header_fields(mail.text[copied.end() :].strip().encode()) if copied else []
    original = Original.read(header)
    return list(_each(_about(mail, "auth-failure", original, {}), _recipients((), header, original)))


def _apple(mail: Mail) -> list[Finding]:
    """Apple Mail unsubscribes for its reader, by mail to List-Unsubscribe: the author does not want any more."""
    who = mailbox(mail.first("from"))
    if mail.first("x-apple-unsubscribe").lower() != "true" or not who:
        return []
    about = _about(mail, "opt-out", Original(token=token(mail.fields)), {})
    return [replace(about, recipient=who)]
