"""Who reports by HTTP: one module each, which verifies that it is he who calls and reads what he says. docs/feedback-providers.md.

`DIALECTS` names all but `ses`, whose certificate must be fetched: `sns`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from relay.feedback.providers.brevo import Brevo
from relay.feedback.providers.mailgun import Mailgun
from relay.feedback.providers.mailjet import Mailjet
from relay.feedback.providers.postmark import Postmark
from relay.feedback.providers.said import Call, Keys, Later, Said, Unreadable, Unverified
from relay.feedback.providers.sendgrid import SendGrid
from relay.feedback.providers.sparkpost import SparkPost

__all__ = ["DIALECTS", "KINDS", "Call", "Dialect", "Keys", "Later", "Said", "Unreadable", "Unverified"]


class Dialect(Protocol):
    most: int  # bytes of a body

    def admits(self, keys: Keys, headers: Mapping[str, str]) -> None:
        """What the header tells before a body is read. Raises Unverified."""
        ...

    def hear(self, keys: Keys, call: Call) -> list[Said]:
        """Raises Unverified, Unreadable."""
        ...


DIALECTS: Mapping[str, Callable[[], Dialect]] = {
    "sendgrid": SendGrid,
    "mailgun": Mailgun,
    "postmark": Postmark,
    "brevo": Brevo,
    "mailjet": Mailjet,
    "sparkpost": SparkPost,
}
KINDS = ("ses", *DIALECTS)
