"""The one entry: what came back, as Findings. Never raises for what strangers wrote; what is nothing that we know is `other`."""

from __future__ import annotations

from relay.returned import Finding, Kind, parts
from relay.returned.dsn import read_dsn, when
from relay.returned.original import mailbox
from relay.returned.other import read_other


def understand(raw: bytes) -> list[Finding]:
    """At least one Finding. `raw`: a mail, or a report as a file: XML, gzip, zip, JSON."""
    mail = parts.read(raw)
    found = read_dsn(mail) or read_other(mail, raw)
    if found:
        return found
    return [Finding(Kind.OTHER, reporter=mailbox(mail.first("from")), at=when(mail.first("date")))]
