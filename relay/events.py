"""What happens, in closed words: the kinds of events, how one is told, and which a reader wants. Pure.

An event is a row of the spool, written in the transaction of the state that it tells. Its id is the cursor of the stream:
ids grow, and are never reused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from relay.envelope import ascii_domain, domain_of, queue_id
from relay.policy.routing import glob

Kind = Literal[
    "accepted", "deferred", "delivered", "in_doubt", "failed", "expired", "suppressed", "discarded", "captured",
    "held", "released", "retried", "cancelled", "rerouted", "failed_over", "bounced", "complained", "unsubscribed",
    "auto_replied", "dsn_refused", "reported", "not_reported", "report_on", "throttled", "paused", "resumed",
    "dmarc_report", "tls_report", "config_changed", "suppression_added", "suppression_removed",
]  # fmt: skip

# Every kind that is written, and what it says. docs/events.md holds this table; a test compares.
KINDS: Mapping[Kind, str] = {
    "accepted": "the message is durable and was answered 250",
    "deferred": "an attempt failed for now; `due_at` says when the next one may start",
    "delivered": "the next hop answered 250 to the final dot",
    "in_doubt": "the final dot was sent and no reply came: it may have arrived",
    "failed": "it will not be tried again: refused, by the next hop or by a rule",
    "expired": "it was given up, for its time is over",
    "suppressed": "it was not sent, for its recipient is suppressed",
    "discarded": "a `discard` route took it",
    "captured": "`capture` keeps it here",
    "held": "it waits for an operator's release",
    "released": "an operator released it",
    "retried": "an operator wants it tried at once",
    "cancelled": "an operator cancelled it",
    "rerouted": "an operator gave it another route",
    "failed_over": "an egress did not take it, and the next one was tried in the same attempt",
    "bounced": "a report came back, or the next hop's own, that it was not delivered after all; `bounce_class` says hard or soft",
    "complained": "its recipient called it spam (a feedback loop, or a provider)",
    "unsubscribed": "its recipient unsubscribed",
    "auto_replied": "a machine answered for its recipient: out of office and their like",
    "dmarc_report": "a receiver told what became of mail in our domain's name (DMARC aggregate): the summary",
    "tls_report": "a receiver told how TLS to our domain fared (SMTP TLS reporting): the summary",
    "dsn_refused": "a report of ours was refused, for it has the null sender",
    "reported": "a report to its sender was made",
    "not_reported": "its sender is not told, and why",
    "report_on": "this message is a report of ours on another one",
    "throttled": "an upstream wants less: a rate, sessions or a pause",
    "paused": "an egress, a destination, a class, … is suspended, or rests",
    "resumed": "and goes on",
    "config_changed": "a new configuration is in force",
    "suppression_added": "an address is suppressed from now on",
    "suppression_removed": "and is no more",
}


def absorbed(egress: str) -> Kind:
    """What is said of mail that is done without a next hop: `egress` is the action that took it."""
    return "discarded" if egress == "discard" else "captured" if egress == "capture" else "delivered"


@dataclass(slots=True)
class Row:
    """An event with what the spool knows of its message and recipient; empty where it has none, or it is forgotten."""

    id: int
    at: float
    kind: str
    message: int = 0  # 0: it is about no message
    n: int | None = None
    egress: str = ""
    code: int = 0
    data: Mapping[str, Any] | None = None
    sender: str = ""
    header_from: str = ""
    recipient: str = ""
    user: str = ""
    class_: str = ""
    tag: str = ""
    metadata: str = ""  # JSON, as the application gave it
    recipients: tuple[str, ...] = ()  # of an `accepted`: all of them, up to 1000


def told(row: Row, tenants: Mapping[str, str]) -> dict[str, Any]:
    """One flat object for programs: the same in the stream, in webhooks and in files. `tenants`: user -> tenant.

    What is empty is left out, but for `id`, `at`, `event`.
    """
    found: dict[str, Any] = {"id": row.id, "at": round(row.at, 3), "event": row.kind}
    known = {
        "queue_id": queue_id(row.message) if row.message else "",
        "recipient": row.recipient,
        "recipients": list(row.recipients),
        "sender": row.sender,
        "from": row.header_from,
        "tag": row.tag,
        "metadata": json.loads(row.metadata) if row.metadata else {},
        "class": row.class_,
        "user": row.user,
        "tenant": tenants.get(row.user, "") if row.user else "",
        "egress": row.egress,
        "code": row.code,
    }
    found |= {key: value for key, value in known.items() if value}
    # `class` of a bounce is hard or soft; that of its message keeps the name.
    extra = dict(row.data or {})
    if "class" in extra:
        extra["bounce_class"] = extra.pop("class")
    return found | {key: value for key, value in extra.items() if key not in found and value not in ("", None, [], {})}


@dataclass(frozen=True)
class Wanted:
    """Which events a reader wants. Empty: all. Of one key any value does, all keys must hold; globs have no case."""

    kinds: frozenset[str] = frozenset()
    tag: tuple[str, ...] = ()
    class_: tuple[str, ...] = ()
    user: tuple[str, ...] = ()
    tenant: tuple[str, ...] = ()
    sender: tuple[str, ...] = ()
    recipient: tuple[str, ...] = ()
    domain: tuple[str, ...] = ()  # of the recipient
    egress: tuple[str, ...] = ()
    message: int = 0
    users: frozenset[str] | None = None  # of exactly these; None: of all, and what is of nobody
    mail: bool = False  # only what is about a message

    @cached_property
    def _globs(self) -> list[tuple[str, list[Any]]]:
        named = ("tag", "class_", "user", "tenant", "sender", "recipient", "domain", "egress")
        return [(name, [glob(pattern) for pattern in getattr(self, name)]) for name in named if getattr(self, name)]

    def takes(self, row: Row, tenants: Mapping[str, str]) -> bool:
        if self.kinds and row.kind not in self.kinds:
            return False
        if self.message and row.message != self.message:
            return False
        if self.mail and not row.message:
            return False
        if self.users is not None and row.user not in self.users:
            return False
        for name, globs in self._globs:
            match name:
                case "tenant":
                    value = tenants.get(row.user, "")
                case "domain":
                    value = ascii_domain(domain_of(row.recipient))
                case _:
                    value = getattr(row, name)
            if not any(fits(value) for fits in globs):
                return False
        return True
