"""A file of a drop folder: its envelope, and what goes in front of its message. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from relay.addressees import Unreadable, begin, destinations, mailboxes, read
from relay.envelope import AddressError, parse_address
from relay.settings import Drop
from relay.submission import MAX_HEAD, BadMessage

# As Microsoft's pickup folder has them: at the very top, one a line.
_ENVELOPE = re.compile(rb"(x-sender|x-receiver)[ \t]*:([^\r\n]*)\r\n", re.IGNORECASE)


@dataclass(slots=True)
class Letter:
    sender: str
    recipients: list[str]
    start: int  # where the message begins, behind the lines that are its envelope
    has_header: bool


def open_letter(front: bytes, complete: bool) -> Letter:
    """From the normalised beginning of a file. Raises BadMessage."""
    place, sender, recipients = 0, None, dict[str, None]()
    try:
        while found := _ENVELOPE.match(front, place):
            place, value = found.end(), found[2].decode("utf-8").strip()
            if found[1].lower() == b"x-sender":
                if sender is not None:
                    raise BadMessage(554, "5.6.0", "a second X-Sender; one message has one")
                sender = "" if value in ("", "<>") else _addresses(value)[0]
            else:
                recipients |= dict.fromkeys(_addresses(value))
        content = front[place:]
        fields, _ = read(content[:MAX_HEAD], complete and len(content) <= MAX_HEAD)
        if sender is None:
            authors = [f for f in fields if f.name == b"from" and f.value.strip()]
            if not authors:
                raise BadMessage(554, "5.6.0", "nobody sends it: write X-Sender in its first line, or a From field")
            sender = _addresses(authors[0].value)[0]
        if not recipients:
            recipients = dict.fromkeys(parse_address(address) for address in destinations(fields))
    except (Unreadable, AddressError) as error:
        raise BadMessage(554, "5.1.3", str(error)) from None
    except UnicodeError:
        raise BadMessage(554, "5.6.7", "its envelope is not UTF-8") from None
    if not recipients:
        raise BadMessage(554, "5.1.3", "nobody is named: write X-Receiver in its first lines, or To, Cc or Bcc")
    return Letter(sender, list(recipients), place + begin(content), bool(fields))


def _addresses(text: str) -> list[str]:
    """At least one. Raises Unreadable, AddressError."""
    found = [parse_address(mailbox.address) for mailbox in mailboxes(text)]
    if not found:
        raise Unreadable("an address is missing")
    return found


def prefix(drop: Drop, key: str, letter: Letter) -> bytes:
    """What the folder says, as the fields that say it; those of the message come later, and count.

    The key is the file's own: a file that is met again after a crash is the same message.
    """
    said = (("Class", drop.class_), ("Tag", drop.tag), ("Idempotency-Key", key))
    lines = "".join(f"X-Relay-{name}: {value}\r\n" for name, value in said if value)
    return lines.encode() + (b"" if letter.has_header else b"\r\n")
