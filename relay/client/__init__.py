"""The library for programs that send mail by a relay, over its HTTP API.

    from relay.client import Message, Relay

    with Relay("http://127.0.0.1:2580", token=TOKEN) as relay:
        receipt = relay.send(Message(from_="shop@example.com", to="a@example.net", subject="Hello", text="Hi"))

`Relay` is synchronous and needs the standard library alone; `AsyncRelay` has the same methods and needs aiohttp, which is
imported when it is first named. Neither imports the server. The package promises that what `send` returned for is on the
relay's disk, and that no retry of its own makes a second mail. docs/client.md tells the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from relay.client.calls import Changed, Receipt, Recipient
from relay.client.errors import FieldError, Forbidden, NotFound, Refused, RelayError, Unauthorized, Unavailable
from relay.client.message import Attachment, Message
from relay.client.sync import Relay, Reports

if TYPE_CHECKING:
    from relay.client.aio import AsyncRelay

__all__ = [
    "AsyncRelay", "Attachment", "Changed", "FieldError", "Forbidden", "Message", "NotFound", "Receipt", "Recipient", "Refused",
    "Relay", "RelayError", "Reports", "Unauthorized", "Unavailable",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "AsyncRelay":
        from relay.client.aio import AsyncRelay

        return AsyncRelay
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
