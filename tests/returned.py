"""What mail servers send back: reports as tests want them, and a client that brings them to a door."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

DOMAIN = "bounces.example.com"
KEY = "a secret of tests, long enough"
FEEDBACK = f"""feedback:
  domain: {DOMAIN}
  token_key: {{file: token}}
"""
SMTP = '  smtp: {address: "127.0.0.1:0"}\n'
VERP = "  - {name: all, via: main, rewrite: {reverse_path: verp}}"


def dsn(
    recipient: str,
    *,
    status: str = "5.1.1",
    action: str = "failed",
    diagnostic: str = "smtp; 550 5.1.1 <{recipient}>: Recipient address rejected: User unknown",
    headers: str = "Message-ID: <m@example.com>\r\nSubject: t\r\n",
    to: str = "sender@example.com",
) -> bytes:
    """RFC 3464, as Postfix writes it. `headers`: of the message that it is about."""
    text = f"""From: MAILER-DAEMON@mx.example.net
To: {to}
Subject: Undelivered Mail Returned to Sender
Auto-Submitted: auto-replied
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b1"

--b1
Content-Type: text/plain

I'm sorry to have to inform you that your message could not be delivered.

--b1
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net
Arrival-Date: Fri, 15 Jan 2027 08:00:00 +0000

Final-Recipient: rfc822; {recipient}
Action: {action}
Status: {status}
Remote-MTA: dns; mail.example.net
Diagnostic-Code: {diagnostic.replace("{recipient}", recipient)}

--b1
Content-Type: text/rfc822-headers

"""
    return text.replace("\n", "\r\n").encode() + headers.encode() + b"\r\n--b1--\r\n"


async def bring(
    port: int, recipients: Sequence[str], raw: bytes, *, sender: str = "", mail: str = "", end: bytes = b"\r\n.\r\n"
) -> list[str]:
    """The replies to EHLO, MAIL, each RCPT, and where one was taken DATA and the dot. `raw` goes as it is, but for dots."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    replies: list[str] = []

    async def ask(line: bytes) -> str:
        if line:
            writer.write(line)
        while True:
            said = (await asyncio.wait_for(reader.readline(), 20)).decode()
            if said[3:4] != "-":
                return said.strip()

    try:
        await ask(b"")
        replies.append(await ask(b"EHLO mx.example.net\r\n"))
        replies.append(await ask(f"MAIL FROM:<{sender}>{mail}\r\n".encode()))
        replies += [await ask(f"RCPT TO:<{recipient}>\r\n".encode()) for recipient in recipients]
        if any(reply.startswith("250") for reply in replies[2:]):
            replies.append(await ask(b"DATA\r\n"))
            if replies[-1].startswith("354"):
                stuffed = raw.removesuffix(b"\r\n").replace(b"\r\n.", b"\r\n..")
                writer.write(stuffed + end)
                await writer.drain()
                replies.append(await ask(b""))
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    return replies
