"""An e-mail backend for Django: EMAIL_BACKEND = "relay.client.django.EmailBackend".

What Django makes of a message is sent as it is, byte for byte; who gets it is its to, cc and bcc. Settings, all of them
optional: RELAY_URL, RELAY_TOKEN and RELAY_ALLOW_HTTP (else from the environment), RELAY_CA, RELAY_TIMEOUT. What the relay is to
know beyond the message stands in its headers, which do not leave: X-Relay-Tag, X-Relay-Class, X-Relay-Priority,
X-Relay-Send-At (RFC 3339), X-Relay-Idempotency-Key, X-Relay-Metadata (a JSON object).

The connections are the process's, not the backend object's: `open` and `close` have nothing to do.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from email.utils import parseaddr
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend

from relay.client.calls import Receipt
from relay.client.errors import RelayError
from relay.client.message import Message, octets
from relay.client.sync import Relay

_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "x-relay-tag": ("tag", str),
    "x-relay-class": ("class_", str),
    "x-relay-priority": ("priority", lambda text: int(text) if text.isdecimal() else text),
    "x-relay-send-at": ("send_at", datetime.fromisoformat),
    "x-relay-idempotency-key": ("key", str),
    "x-relay-metadata": ("metadata", lambda text: _object(json.loads(text))),
}


class EmailBackend(BaseEmailBackend):
    def __init__(self, fail_silently: bool = False, **_: Any) -> None:
        """Django hands in `username` and `password` too: a relay wants a token, which is a setting."""
        super().__init__(fail_silently=fail_silently)

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        """How many the relay has on its disk. One that it refuses keeps no other back; then the first error is raised.

        Raises ValueError (BadHeaderError is one) before anything is sent, where a message cannot be made.
        """
        messages = [translated(one) for one in email_messages if one.recipients()]
        try:
            results = relay().send_many(messages)
        except RelayError:
            if not self.fail_silently:
                raise
            return 0
        errors = [one for one in results if isinstance(one, RelayError)]
        if errors and not self.fail_silently:
            raise errors[0]
        return sum(isinstance(one, Receipt) for one in results)


def relay() -> Relay:
    """The process's, for the settings as they are."""
    return _relay(
        *(getattr(settings, f"RELAY_{name}", None) for name in ("URL", "TOKEN", "CA", "ALLOW_HTTP", "TIMEOUT"))
    )


@functools.lru_cache(maxsize=8)
def _relay(url: str | None, token: str | None, ca: str | None, allow_http: bool | None, timeout: float | None) -> Relay:
    return Relay(url, token=token, ca=ca, allow_http=allow_http, timeout=timeout or 30.0)


def translated(email: EmailMessage) -> Message:
    """Raises ValueError naming the header."""
    made, given = email.message(), dict[str, Any]()
    for name, value in email.extra_headers.items():
        if (option := _OPTIONS.get(name.lower())) is None:
            continue
        del made[name]
        try:
            given[option[0]] = option[1](str(value))
        except ValueError as error:
            raise ValueError(f"{name}: {value!r}: {error}") from None
    return Message(
        raw=octets(made),
        from_=_plain(email.from_email),
        to=[_plain(one) for one in email.recipients()],
        **given,
    )


def _object(value: Any) -> Mapping[str, Any]:
    """Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError('it wants a JSON object, such as {"order": 17}')
    return value


def _plain(address: str) -> str:
    """Without a name: an envelope has none."""
    return parseaddr(address)[1] or address
