"""What a report or a reply says of a recipient: whether he exists, and what stands in the way. Pure.

`hard` is said of a mailbox or a domain that does not exist, and of nothing else: it is what may suppress. All else that is
understood is `soft`: it may pass, or it is about the message, its sender or the way. A permanent refusal that nobody
understands is `undetermined`. The words of a reply are believed before its codes, for servers give 5.7.1 to users whom they
don't know and 5.1.1 to hosts that they don't like; but what is temporary (4xx, 4.x.x) is never hard.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from relay.policy.bouncewords import WORDS, Reason
from relay.reply import Stage

__all__ = ["Class", "Reason", "Verdict", "classify", "codes"]

Class = Literal["", "hard", "soft", "undetermined"]

MOST_TEXT = 1000  # characters of a reply that are looked at

_GONE = frozenset({Reason.USER_UNKNOWN, Reason.HOST_UNKNOWN, Reason.NOT_ACCEPTED, Reason.MOVED})
# What tells of the mailbox itself: so much of it, and nobody may be there any more.
_MAILBOX = frozenset({*_GONE, Reason.MAILBOX_FULL, Reason.MAILBOX_DISABLED, Reason.EXPIRED, Reason.NETWORK})

_ACTIONS = {
    "delivered": Reason.DELIVERED, "deliverable": Reason.DELIVERED,  # Postfix' `sendmail -bv`
    "relayed": Reason.RELAYED, "expanded": Reason.EXPANDED,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    class_: Class  # empty: no failure
    reason: Reason

    @property
    def suppresses(self) -> bool:
        """Whether nothing will ever arrive there."""
        return self.class_ == "hard" and self.reason in _GONE

    @property
    def counts(self) -> bool:
        """Whether many of them mean that the mailbox is dead. Never for what the sender, the message or the way there did."""
        return self.class_ == "soft" and self.reason in _MAILBOX


def classify(status: str, code: int, text: str, action: str = "", stage: Stage | None = None) -> Verdict:
    """Of RFC 3463's `status` (empty: none), the reply's `code` (0: none), its words, and RFC 3464's `action`.

    `stage`: which command was answered, where that is known. Who is unknown after the whole message was taken is known well
    enough, but does not want it; and what is unknown after MAIL is the sender.
    """
    if (done := _ACTIONS.get(action.strip().lower())) is not None:
        return Verdict("", done)
    text = text[:MOST_TEXT]
    said_code, said = codes(text)
    code = code or said_code
    status = said if said and (_vague(status) or not _known(status)) else status
    if not status.startswith(("4", "5")) and not 400 <= code < 600:
        if status.startswith("2") or 200 <= code < 300:
            return Verdict("", Reason.DELIVERED)
        status = "4" + status[1:] if action.strip().lower() == "delayed" else status
    temporary = action.strip().lower() == "delayed" or 400 <= code < 500 or status.startswith("4")
    reason = _judged(text, status, code, stage)
    if reason in _GONE:
        return Verdict("soft" if temporary else "hard", reason)
    if reason is Reason.UNKNOWN and not temporary:
        return Verdict("undetermined", reason)
    return Verdict("soft", reason)


_CODE = re.compile(r"(?<![\w./-])(?<!\w:)([45]\d\d)(?=[ \-:;,]|$)")
_ENHANCED = re.compile(r"(?<![\w.])#?([245]\.\d{1,3}\.\d{1,3})(?![\w.]*\d)")


def codes(text: str) -> tuple[int, str]:
    """The reply code and the enhanced status that a text holds; 0 and the empty string where there is none.

    Of several statuses the first that says anything.
    """
    text = _URL.sub(" ", text)
    found = [match for match in _ENHANCED.findall(text) if match[0] != "2"]
    code = _CODE.search(text)
    return int(code[1]) if code else 0, next((one for one in found if not _vague(one)), found[0] if found else "")


def _vague(status: str) -> bool:
    return not status or status.endswith(".0")


def _known(status: str) -> bool:
    return status.partition(".")[2] in _STATUS


_URL = re.compile(r"\b(?:https?|ftp|mailto):\S+|\bwww\.\S+", re.IGNORECASE)
_ADDRESS = re.compile(
    r"<[^<>\s]{0,200}@[^<>\s]{0,300}>|[^\s<>()\[\]:;,'\"]{1,100}@[^\s<>()\[\]:;,'\"]{1,255}|<[^<>\s@]{1,100}>"
)
_NUMBERS = re.compile(
    r"(?<![\w.])#?[245]\d\d[- ]+#?(?=[245]\.\d{1,3}\.\d)|(?<![\w.])\(?#?[245]\.\d{1,3}\.\d{1,3}\)?(?![\w.]*\d)"
)
_CONTINUED = re.compile(r"(?<=\s)[45]\d\d-(?=\s?\w)")
# Cisco's appliances put these before whatever the other server said.
_PUT_BEFORE = re.compile(r"5\.1\.0 - Unknown address error|5\.3\.0 - Other mail system problem", re.IGNORECASE)
_LISTS = re.compile(
    r"(?:spamhaus|spamcop|sorbs|barracudacentral|abuseat|uceprotect|senderscore|sender\.office|spamrl|dnsbl|blocked|backscatterer)"
    r"[\w.-]*[./](?:org|com|net|de|query|lookup|cgi)",
    re.IGNORECASE,
)
# KDDI and NTT docomo know who is there, and say this for their filters: KDDI without the name, docomo always.
_CARRIERS = re.compile(r"\b550:?\s{1,5}: user unknown|\bunknown user \S{1,64}@docomo\.ne\.jp", re.IGNORECASE)
_NO_ACCOUNT = re.compile(r"doesn't have an? \S{1,60} account", re.IGNORECASE)  # Yahoo, which looks after the final dot
_CLOUD = re.compile(r"recipient address rejected: access denied", re.IGNORECASE)


def _plain(text: str) -> str:
    """In lower case, one blank between words, and without what names somebody or something."""
    text = _PUT_BEFORE.sub(" ", text)
    text = _URL.sub(" ", text)
    text = _ADDRESS.sub("@", text)
    text = _CONTINUED.sub(" ", _NUMBERS.sub(" ", text))
    text = text.replace("\u2019", "'").replace("`", "'").replace("*", " ")
    return " ".join(text.lower().split())


_AFTER_DATA = (Stage.DATA, Stage.BODY, Stage.DOT)


def _heard(text: str, status: str, stage: Stage | None) -> Reason | None:
    """What the words mean; None: nothing that we know."""
    if not text.strip():
        return None
    if _LISTS.search(text):
        return Reason.REPUTATION
    if status == "5.4.1" and _CLOUD.search(text):  # Exchange Online: no such recipient in its directory
        return Reason.USER_UNKNOWN
    if _CARRIERS.search(text):
        return Reason.REFUSED
    plain = _plain(text)
    reason = next((reason for reason, words in WORDS if words.search(plain)), None)
    if reason in _GONE and status == "5.7.8":
        return Reason.SECURITY  # RFC 4954 §6: it is the login that is unknown
    if reason in _GONE and (stage is Stage.MAIL or status.endswith((".1.7", ".1.8"))):
        return Reason.SENDER_REJECTED
    if reason is Reason.USER_UNKNOWN and _NO_ACCOUNT.search(text):
        return reason
    if reason is Reason.USER_UNKNOWN and (
        stage in _AFTER_DATA or (status in ("5.2.0", "5.2.1") and stage is not Stage.RCPT)
    ):
        return Reason.REFUSED  # RFC 3463 §3.3: of 5.2.x the mailbox is there
    if reason is Reason.POLICY and status.endswith((".1.1", ".1.2", ".1.6", ".1.10", ".2.1", ".2.2", ".2.3")):
        return None  # `rejected by`, `administrator`: too little to doubt a status that is that clear
    return reason


# RFC 3463, RFC 7505, 7372, 7293 and the registry of IANA; of Microsoft's three digits what their manual says. `1.1` for X.1.1.
_STATUS: dict[str, Reason] = {
    "1.1": Reason.USER_UNKNOWN, "1.2": Reason.HOST_UNKNOWN, "1.3": Reason.USER_UNKNOWN, "1.6": Reason.MOVED,
    "1.7": Reason.SENDER_REJECTED, "1.8": Reason.SENDER_REJECTED, "1.9": Reason.SYNTAX, "1.10": Reason.NOT_ACCEPTED,
    "1.351": Reason.USER_UNKNOWN, "1.20": Reason.SENDER_REJECTED, "1.90": Reason.RATE_LIMITED,
    "2.0": Reason.REFUSED, "2.1": Reason.MAILBOX_DISABLED, "2.2": Reason.MAILBOX_FULL, "2.3": Reason.MESSAGE_TOO_BIG, "2.4": Reason.SYSTEM,
    "2.121": Reason.RATE_LIMITED, "2.122": Reason.RATE_LIMITED,
    "3.0": Reason.SYSTEM, "3.1": Reason.SYSTEM, "3.2": Reason.SYSTEM, "3.3": Reason.SYSTEM, "3.4": Reason.MESSAGE_TOO_BIG,
    "3.5": Reason.SYSTEM, "3.6": Reason.CONTENT, "3.7": Reason.SECURITY,
    "4.0": Reason.NETWORK, "4.1": Reason.NETWORK, "4.2": Reason.NETWORK, "4.3": Reason.SYSTEM, "4.4": Reason.NETWORK,
    "4.5": Reason.RATE_LIMITED, "4.6": Reason.NETWORK, "4.7": Reason.EXPIRED, "4.14": Reason.NETWORK,
    "4.300": Reason.EXPIRED, "4.310": Reason.HOST_UNKNOWN, "4.312": Reason.NETWORK, "4.316": Reason.EXPIRED,
    "5.1": Reason.SYNTAX, "5.2": Reason.SYNTAX, "5.3": Reason.RATE_LIMITED, "5.4": Reason.SYNTAX, "5.5": Reason.SYNTAX,
    "5.6": Reason.SECURITY,
    "6.0": Reason.CONTENT, "6.1": Reason.CONTENT, "6.2": Reason.CONTENT, "6.3": Reason.CONTENT, "6.4": Reason.CONTENT,
    "6.5": Reason.CONTENT, "6.6": Reason.CONTENT, "6.7": Reason.CONTENT, "6.8": Reason.CONTENT, "6.9": Reason.CONTENT,
    "7.0": Reason.POLICY, "7.1": Reason.POLICY, "7.2": Reason.REFUSED, "7.3": Reason.POLICY, "7.4": Reason.SECURITY,
    "7.5": Reason.SECURITY, "7.6": Reason.SECURITY, "7.7": Reason.SECURITY, "7.8": Reason.SECURITY, "7.9": Reason.POLICY,
    "7.10": Reason.SECURITY, "7.11": Reason.SECURITY, "7.12": Reason.SECURITY, "7.13": Reason.MAILBOX_DISABLED,
    "7.14": Reason.SECURITY, "7.15": Reason.POLICY, "7.16": Reason.POLICY, "7.17": Reason.MOVED, "7.18": Reason.MOVED,
    "7.19": Reason.POLICY, "7.20": Reason.AUTHENTICATION, "7.21": Reason.AUTHENTICATION, "7.22": Reason.AUTHENTICATION,
    "7.23": Reason.AUTHENTICATION, "7.24": Reason.AUTHENTICATION, "7.25": Reason.REPUTATION,
    "7.26": Reason.AUTHENTICATION, "7.27": Reason.SENDER_REJECTED, "7.28": Reason.RATE_LIMITED,
    "7.29": Reason.AUTHENTICATION, "7.30": Reason.SECURITY, "7.40": Reason.AUTHENTICATION,
}  # fmt: skip


def _judged(text: str, status: str, code: int, stage: Stage | None) -> Reason:
    heard = _heard(text, status, stage)
    said = codes(text)[1]
    if heard is None and said and _known(said) and _coded(said, code) not in _GONE:
        status = said  # what the other server said itself, where a report puts X.1.1 before it
    if code in (521, 556) and heard in (None, Reason.SYSTEM, Reason.NETWORK):  # RFC 7504
        return Reason.NOT_ACCEPTED
    return heard or _coded(status, code)


def _coded(status: str, code: int) -> Reason:
    subject = status.partition(".")[2]
    if reason := _STATUS.get(subject):
        return reason
    detail = subject.rpartition(".")[2]
    if subject.startswith("7.") and len(detail) == 3:  # Exchange Online: 5.7.5xx to 5.7.9xx
        return Reason.REPUTATION if detail[0] in "567" else Reason.POLICY
    match code:
        case 552:
            return Reason.MAILBOX_FULL
        case 500 | 501 | 502 | 503 | 504 | 555:
            return Reason.SYNTAX
        case 523:
            return Reason.MESSAGE_TOO_BIG
        case 522:
            return Reason.MAILBOX_FULL
        case 530 | 534 | 535 | 538:
            return Reason.SECURITY
        case 421 | 451 | 452:
            return Reason.SYSTEM
        case _:
            return Reason.UNKNOWN
