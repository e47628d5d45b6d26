"""From what a door heard to what the spool learns: an event, a suppression, a rate. One transaction for each Finding.

Believed is what proves that it is about a message of ours: a token of our key, or a provider whose signature was verified; or
what names a message and a recipient of it that we have. All else is told (an event, the log) and teaches nothing: anybody can
write a report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from relay.returned import Finding


@dataclass(frozen=True, slots=True)
class Source:
    """By which door something came."""

    name: str  # bounce (our SMTP door), imap:NAME, or a provider: ses, …; unsubscribe
    verified: bool = False  # a provider that signed or logged in: believed without a message of ours
    token: str = ""  # the return path that it was sent to; not verified yet
    egress: str = ""  # whose reputation it tells, where the message's is not known


def once(source: Source, what: bytes) -> str:
    """By what a report is known when it comes again."""
    return f"{source.name} {hashlib.blake2b(what, digest_size=16).hexdigest()}"


# Who reads a mail: returned.bounded.Understanding.read. Who counts: (egress, recipient's domain, sender's domain, class, kind).
Tell = Callable[[str, str, str, str, str], None]
__all__ = ["Finding", "Source", "Tell", "once"]
