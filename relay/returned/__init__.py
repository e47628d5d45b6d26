"""What came back, understood: a mail or a report -> Findings. Pure but for `bounded`, which lets it run in another process.

Promises: never raises for what strangers wrote, never takes long: sizes, parts, depths and unpacked bytes have bounds. What is
nothing that we know is one Finding of kind `other`. A Finding is what the report claims; whether it may be believed is for
`feedback` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    BOUNCE = "bounce"  # a report of what was not delivered, or not yet; `action` says which
    COMPLAINT = "complaint"  # RFC 5965
    DMARC = "dmarc"  # an aggregate report, RFC 7489 §7.2 and RFC 9990
    TLSRPT = "tlsrpt"  # RFC 8460
    AUTO_REPLY = "auto_reply"  # RFC 3834: out of office and their like
    UNSUBSCRIBE = "unsubscribe"  # of a provider, a click or a mail to the address of List-Unsubscribe; no report is one
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Finding:
    """One recipient of which a report tells; of a report without recipients the report itself."""

    kind: Kind
    recipient: str = ""  # whom it is about: as the report says it, the mailbox alone
    original_recipient: str = ""  # RFC 3464 §2.3.1, where it differs
    status: str = ""  # RFC 3463, of a bounce: 5.1.1
    class_: str = ""  # of a bounce: hard, soft or undetermined; empty: it is no failure (delivered, relayed)
    reason: str = ""  # relay.policy.bounces.Reason of a bounce; feedback type of a complaint; what an auto-reply is
    action: str = ""  # RFC 3464 §2.3.3: failed, delayed, delivered, relayed, expanded
    diagnostic: str = ""  # the other server's words, one clean line
    remote: str = ""  # whose words
    reporter: str = ""  # who made the report
    queue_id: str = ""  # ours, in our letters, where a header or Message-ID gives it; claimed, not proven
    token: str = ""  # of a return path of ours (relay.outgoing.verp), not verified
    message_id: str = ""  # of the message that it is about
    sender: str = ""  # its reverse-path or author
    at: float | None = None  # when that happened, as the report says; epoch seconds
    detail: Mapping[str, Any] = field(default_factory=dict)  # of dmarc and tlsrpt: the summary

    def row(self) -> dict[str, Any]:
        """For people and programs; `class`, not `class_`."""
        return {
            "kind": self.kind.value, "recipient": self.recipient, "status": self.status, "class": self.class_,
            "reason": self.reason, "queue_id": self.queue_id, "action": self.action, "diagnostic": self.diagnostic,
            "remote": self.remote, "reporter": self.reporter, "original_recipient": self.original_recipient,
            "token": self.token, "message_id": self.message_id, "sender": self.sender, "at": self.at,
            "detail": dict(self.detail),
        }  # fmt: skip
