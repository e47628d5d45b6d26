"""What an application hands over, as POST /v1/messages wants it."""

from __future__ import annotations

import base64
import copy
import re
from collections.abc import Mapping
from email.message import Message
from email.utils import getaddresses
from typing import Any

from relay.client.message import as_json, octets

_KEY = re.compile(r"[!-~]([ -~]{0,198}[!-~])?")  # as the relay has it


def wire(message: Any) -> dict[str, Any]:
    """From a dict of the API's fields, an object with `wire()` such as `relay.client.Message`, or an email.message one.

    Raises ValueError or TypeError, in the application's transaction, where nobody could ever send it.
    """
    if isinstance(message, Message):
        found = _raw(message)
    elif callable(getattr(message, "wire", None)):
        found = dict(message.wire())
    elif isinstance(message, Mapping):
        found = dict(message)
    else:
        raise TypeError(f"a message is a dict, a relay.client.Message or an EmailMessage, no {type(message).__name__}")
    if not found.get("raw") and not (found.get("from") and any(found.get(name) for name in ("to", "cc", "bcc"))):
        raise ValueError("a message wants `from` and one of `to`, `cc`, `bcc`")
    return found


def _raw(message: Message[Any, Any]) -> dict[str, Any]:
    """A whole message and its envelope, from its own fields (RFC 5322 §3.6.2, §3.6.3).

    Bcc does not leave the application: whoever it names is in the envelope.
    """
    to = _addresses(message, "To", "Cc", "Bcc")
    origin = next(iter(_addresses(message, "Sender", "From")), "")
    if not origin or not to:
        raise ValueError("a message wants From, and one of To, Cc, Bcc")
    shown = copy.copy(message)
    shown._headers = list(message._headers)  # type: ignore[attr-defined]  # the copy shares them otherwise
    del shown["Bcc"]
    return {"from": origin, "to": to, "raw": base64.b64encode(octets(shown)).decode()}


def _addresses(message: Message[Any, Any], *names: str) -> list[str]:
    fields = [str(value) for name in names for value in message.get_all(name, [])]
    return list(dict.fromkeys(address for _, address in getaddresses(fields) if address))


def row(message: Any, key: str | None, fresh: str) -> tuple[str, str]:
    """(key, JSON) for the table. `fresh`: the key where neither caller nor message has one."""
    found = wire(message)
    own = found.pop("idempotency_key", None)
    if key and own and key != own:
        raise ValueError("the key and the message's idempotency_key differ: give one of them")
    chosen = str(key or own or fresh)
    if not _KEY.fullmatch(chosen):
        raise ValueError("a key has 1 to 200 printable characters of ASCII")
    return chosen, as_json(found)
