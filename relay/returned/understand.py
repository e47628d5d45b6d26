"""The one entry: what came back, as Findings. Never raises for what strangers wrote, and takes bounded time.

The order matters: a complaint may quote a bounce, an auto-reply is marked as bounces are, and what has neither form is known by
its words alone, which anybody may quote.
"""

from __future__ import annotations

from relay.returned import Finding, Kind, parts
from relay.returned.arf import read_arf
from relay.returned.autoreply import read_auto_reply
from relay.returned.dmarc import read_dmarc
from relay.returned.dsn import read_dsn, returned_by, when
from relay.returned.notification import read_notification
from relay.returned.original import mailbox
from relay.returned.other import read_other
from relay.returned.tlsrpt import read_tlsrpt


def understand(raw: bytes) -> list[Finding]:
    """At least one Finding. `raw`: a mail, or a report as a file: XML, gzip, zip, JSON."""
    mail = parts.read(raw)
    found = (
        read_arf(mail, raw)
        or read_dsn(mail)
        or read_dmarc(mail, raw)
        or read_tlsrpt(mail, raw)
        or read_notification(mail)
    )
    if not found:
        answer = read_auto_reply(mail)
        found = [answer] if answer else read_other(mail, raw)
    if found:
        return found
    about = returned_by(mail)
    return [
        Finding(
            Kind.OTHER,
            reporter=mailbox(mail.first("from")),
            queue_id=about.queue_id,
            token=about.token,
            at=when(mail.first("date")),
        )
    ]
