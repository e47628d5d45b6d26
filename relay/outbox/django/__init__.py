"""Django's mail through the outbox: it is sent if the transaction that it was written in commits.

    INSTALLED_APPS += ["relay.outbox.django"]                 # its migration makes the table
    EMAIL_BACKEND = "relay.outbox.django.EmailBackend"
    RELAY_OUTBOX_USING = "default"                            # which of DATABASES has it

`fail_silently` is not heeded: a row that can't be written is the transaction's failure.
"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import parseaddr
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import connections

from relay.outbox.message import raw
from relay.outbox.write import enqueue


def using() -> str:
    """The alias of the database that has the outbox."""
    return str(getattr(settings, "RELAY_OUTBOX_USING", "default"))


class EmailBackend(BaseEmailBackend):
    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        count = 0
        for message in email_messages:
            if not message.recipients():
                continue
            enqueue(connections[using()], _wire(message))
            count += 1
        return count


def _wire(message: EmailMessage) -> dict[str, Any]:
    """Byte for byte what Django made; `from_email` is the reverse-path, whatever a From of `headers` says."""
    return raw(message.message(), _address(message.from_email), [_address(one) for one in message.recipients()])


def _address(text: str) -> str:
    return parseaddr(str(text))[1]
