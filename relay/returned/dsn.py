"""Delivery status notifications, RFC 3464, and the same fields where a report has them as plain text. Pure.

Read as they are written, not only as they should be: names in any case, blanks anywhere, recipients without an empty line
between them, a status with a comment, no Action, no Final-Recipient. What the fields leave open is taken from the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Any

from relay.policy.bounces import Verdict, classify, codes
from relay.reply import clean
from relay.returned import Finding, Kind
from relay.returned.original import Original, mailboxes, queue_id, token
from relay.returned.parts import Mail, header_fields
from relay.returned.transcript import ADDRESS, MOST_RECIPIENTS, Said, delayed, parted, stage

TYPES = ("message/delivery-status", "message/global-delivery-status")

_FIELD = re.compile(r"[\s>]{0,20}([A-Za-z][A-Za-z0-9-]{1,60})[ \t]{0,10}:[ \t]*(.*)")
_PER_RECIPIENT = frozenset(
    {"final-recipient", "original-recipient", "action", "status", "diagnostic-code", "x-actual-recipient"}
)
_STATUS = re.compile(r"([245])\s?\.\s?(\d{1,3})\s?\.\s?(\d{1,3})")
_UNICODE = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")  # RFC 6533 §3


@dataclass(slots=True)
class Group:
    """The fields of the message (the first group) or of one recipient; names in lower case, values unfolded."""

    fields: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.fields.get(name, "")


def groups(text: str) -> tuple[Group, list[Group]]:
    """Per-message fields, and those of each recipient."""
    message, one, found = Group(), Group(), list[Group]()
    last = ""
    for line in text.split("\n")[: 40 * MOST_RECIPIENTS]:
        if line[:1] in (" ", "\t") and last and line.strip():
            one.fields[last] = f"{one.fields[last]} {line.strip()}"[:4000]
            continue
        match = _FIELD.match(line[:4000])
        if match is None:
            last = ""
            if not line.strip(" >\t\r"):
                one = _ended(one, message, found)
            continue
        last = match[1].lower()
        if last in one.fields and last in ("final-recipient", "original-recipient", "action"):
            one = _ended(one, message, found)
        elif last == "final-recipient" and not _PER_RECIPIENT & one.fields.keys():
            one = _ended(one, message, found)  # no empty line between the message's fields and his
        one.fields.setdefault(last, "")
        one.fields[last] = one.fields[last] or match[2].strip()
    _ended(one, message, found)
    return message, _whole(found)[:MOST_RECIPIENTS]


def _ended(one: Group, message: Group, found: list[Group]) -> Group:
    if _PER_RECIPIENT & one.fields.keys():
        found.append(one)
    else:
        for name, value in one.fields.items():
            message.fields.setdefault(name, value)
    return Group()


def _whole(found: Sequence[Group]) -> list[Group]:
    """A recipient whose fields an empty line tore apart, in one piece."""
    kept: list[Group] = []
    for one in found:
        nameless = not one["final-recipient"] and not one["original-recipient"]
        if kept and nameless and not one.fields.keys() & kept[-1].fields.keys():
            kept[-1].fields.update(one.fields)
        else:
            kept.append(one)
    return kept


def read_dsn(mail: Mail) -> list[Finding]:
    """Empty: it is none."""
    reports = [part.text for part in mail.of_type(*TYPES)]
    if not reports:
        return []
    return read_fields(mail, "\n\n".join(reports), mail.text)


def read_fields(mail: Mail, fields: str, text: str) -> list[Finding]:
    """`fields`: the delivery status; `text`: what the report says to people. Empty: no recipient has any."""
    message, each = groups(fields)
    said, returned = parted(text)
    about_it = returned_by(mail, returned)
    instead = [*mailboxes(mail.first("x-failed-recipients")), *about_it.recipients] if len(each) == 1 else []
    named = [recipient(one, instead) for one in each]
    found: dict[tuple[str, str], Finding] = {}
    spoken = Said(said, named)
    for one, address in zip(each, named, strict=True):
        narrow = spoken.about(address)
        finding = _finding(mail, message, one, address, said if len(each) == 1 else narrow, narrow)
        key = (address.lower(), finding.original_recipient.lower())
        if address or finding.status:
            found.setdefault(key, finding)
    sender = about_it.sender or _mailbox(message["x-postfix-sender"])
    return [
        replace(
            one,
            queue_id=about_it.queue_id,
            token=about_it.token,
            message_id=about_it.message_id,
            sender=sender,
        )
        for one in found.values()
    ]


def _finding(mail: Mail, message: Group, one: Group, address: str, said: str, narrow: str) -> Finding:
    action = one["action"].split(" ", 1)[0].strip("();,").lower()
    kind, _, diagnostic = one["diagnostic-code"].partition(";")
    if not diagnostic:
        kind, diagnostic = "", one["diagnostic-code"]
    status, verdict = judged(_status(one["status"]), one["status"], kind.strip().lower(), diagnostic, action, said)
    first = _mailbox(one["original-recipient"])
    return Finding(
        Kind.BOUNCE,
        recipient=address,
        original_recipient=first if first.lower() != address.lower() else "",
        status=status,
        class_=verdict.class_,
        reason=verdict.reason.value,
        action=action or ("delayed" if delayed(said) else "failed" if verdict.class_ else ""),
        diagnostic=clean(diagnostic) or clean(narrow),
        remote=_typed(one["remote-mta"]),
        reporter=_typed(message["reporting-mta"]),
        at=when(one["last-attempt-date"], message["arrival-date"], mail.first("date")),
    )


def judged(status: str, comment: str, kind: str, diagnostic: str, action: str, said: str) -> tuple[str, Verdict]:
    """The status as it should have been, and what it all means. The fields first, then the words for people."""
    code, own = codes(diagnostic)
    if own and (not status or status.endswith(".0.0") or (status.endswith(".0") and not own.endswith(".0"))):
        status = own
    if kind == "x-unix":  # a program on the other machine said it, to itself
        return status, _of_program(status, diagnostic, action)
    at = stage(f"{comment} {said}")
    verdict = classify(status, code, diagnostic, action, at)
    if verdict.reason.value == "unknown" or (not diagnostic.strip() and status.endswith((".0", ""))):
        words = f"{comment} {firmly(said)}"
        second = classify(status, code, words, action, at)
        if second.reason.value != "unknown":
            verdict = second
        if not status or status.endswith(".0.0"):
            status = codes(said)[1] or status
    return status, verdict


def _of_program(status: str, said: str, action: str) -> Verdict:
    verdict = classify(status, 0, said, action)
    if verdict.reason.value in ("user_unknown", "host_unknown", "moved", "unknown") and verdict.class_:
        return Verdict("soft", type(verdict.reason).SYSTEM)
    return verdict


# What any report may say of any failure: advice, and what it could have been.
_PERHAPS = re.compile(
    r"\b(?:if|unless|whether|may|might|could be|possibl[ey]|perhaps|probably|either|usually|often|for example|"
    r"check (?:that|the|whether)|make sure|verify)\b",
    re.IGNORECASE,
)


_SENTENCES = re.compile(r"(?<=[.!?;])\s|\n\s{0,20}\n")
_MOST_SAID = 20_000  # characters


def firmly(said: str, most: int = 900) -> str:
    """On one line, without the sentences that do not say that it is so. `said`: with its lines."""
    kept = [one for one in _SENTENCES.split(said[:_MOST_SAID]) if not _PERHAPS.search(one)]
    return " ".join(" ".join(kept).split())[:most]


def recipient(one: Group, instead: Iterable[str] = ()) -> str:
    """The mailbox; where the report has none, that of the message."""
    for name in ("final-recipient", "original-recipient", "x-actual-recipient"):
        if found := _mailbox(one[name]):
            return found
    return next(iter(instead), "") or _typed(one["final-recipient"])


def _mailbox(value: str) -> str:
    """Of `rfc822; <@route:local@domain>`, of `utf-8; …` (RFC 6533 §3), and without its type too."""
    kind, semicolon, rest = value.partition(";")
    text = (rest if semicolon else kind).strip()
    if kind.strip().lower() == "utf-8":
        text = _UNICODE.sub(lambda found: _letter(int(found[1], 16)), text)
    text = text.strip("<> \t")
    if text.startswith("@") and ":" in text:  # RFC 5321 appendix C
        text = text.partition(":")[2]
    if kind.strip().lower() in ("x400", "ms-exch", "x-unix") and "@" not in text:
        return ""
    match = ADDRESS.search(text[:1000])
    return match[0] if match else ""


def _letter(number: int) -> str:
    """What no text may hold stands for nothing: halves of characters, and numbers beyond them all."""
    return chr(number) if number < 0xD800 or 0xDFFF < number < 0x110000 else ""


def _typed(value: str) -> str:
    """Of `dns; host.example (comment)` the host."""
    text = value.partition(";")[2] or value
    return clean(text.strip()).split(" ", 1)[0].rstrip(".")[:255]


def _status(value: str) -> str:
    found = _STATUS.search(value[:200])
    return f"{found[1]}.{found[2]}.{found[3]}" if found else ""


_QUOTED = ("message/rfc822", "message/global", "message/partial", "text/rfc822-headers", "text/rfc822-header",
           "message/global-headers")  # fmt: skip
# To whom a report came: it goes to the reverse-path.
_REACHED = frozenset(
    {"x-original-to", "delivered-to", "envelope-to", "x-envelope-to", "x-forwarded-to", "to", "received"}
)


def returned_by(mail: Mail, text: str = "") -> Original:
    """The message that a report returns. `text`: of one in plain text what follows its separator, header block first."""
    status = header_fields("\n".join(part.text for part in mail.of_type(*TYPES)).encode("utf-8", "replace"))
    reached = [one for one in mail.fields if one[0] in _REACHED]
    named = [("message-id", value) for name, value in status if name == "x-original-message-id"]  # Gmail
    known = [
        *(Original.of(part.content) for part in mail.of_type(*_QUOTED)),
        Original.of(text.encode("utf-8", "replace")),
        Original.read([*named, *((name, value) for name, value in status if name.startswith("x-postfix"))]),
        Original(queue_id=queue_id(named), token=token(reached)),
    ]

    def first(name: str) -> Any:
        return next((value for one in known if (value := getattr(one, name))), getattr(Original(), name))

    return Original(**{name: first(name) for name in Original.__slots__})


def when(*values: str) -> float | None:
    """Epoch seconds of the first that is a date."""
    for value in values:
        try:
            return parsedate_to_datetime(value[:100]).timestamp()
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None
