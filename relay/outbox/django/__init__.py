"""Django's mail through the outbox: it is sent if the transaction that it was written in commits.

    INSTALLED_APPS += ["relay.outbox.django"]                 # its migration makes the table
    EMAIL_BACKEND = "relay.outbox.django.EmailBackend"
    RELAY_OUTBOX_USING = "default"                            # which of DATABASES has it
    RELAY_OUTBOX_NOTIFY = True                                # PostgreSQL wakes the reader at the commit

A message's headers X-Relay-Tag, X-Relay-Idempotency-Key and the like mean what they mean to `relay.client.django`.
`fail_silently` is not heeded: a row that can't be written is the transaction's failure.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.db import connections

from relay.client.django import translated
from relay.outbox.write import enqueue


def using() -> str:
    """The alias of the database that has the outbox."""
    return str(getattr(settings, "RELAY_OUTBOX_USING", "default"))


class EmailBackend(BaseEmailBackend):
    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        count, notify = 0, bool(getattr(settings, "RELAY_OUTBOX_NOTIFY", True))
        for message in email_messages:
            if message.recipients():
                enqueue(connections[using()], translated(message), notify=notify)
                count += 1
        return count
