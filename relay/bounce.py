"""Writes the message that tells a sender what became of his mail: multipart/report, RFC 3464 and 6522. Pure.

Promises: what strangers said (replies, host names, ENVID, ORCPT, Subject, Message-ID) stands in it as one clean line and can
start no header, no field and no part; the header block of the original is quoted byte for byte; nobody is named but those
whom it is about. The boundary is made of `token`, which nobody can guess.
"""

from __future__ import annotations

import quopri
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate

from relay.envelope import EIGHT_BIT, LONG_LINES, UTF8, queue_id, unxtext
from relay.outgoing import mime
from relay.recipient import News
from relay.reply import Reply

HEAD_LIMIT = 50_000  # bytes of a header block that are quoted
MAX_SHOWN = 300  # characters of a Subject

_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,250}>")
_QCHAR = re.compile(r"[!-*,-<>-\[\]-~]")  # RFC 6533 §3
_ACTION = {
    News.FAILED: ("Undelivered mail", "could not be delivered to"),
    News.DELAYED: ("Delayed mail", "has not been delivered yet to"),
    News.RELAYED: ("Mail passed on", "was passed on for"),
}


@dataclass(frozen=True, slots=True)
class About:
    """What became of one recipient."""

    address: str
    reply: Reply  # the last one; code 0: no server said anything, the text is ours
    remote: str = ""  # the host that said it; empty: not known, or nobody
    orcpt: str = ""
    tried_at: float = 0.0  # 0: not told
    retry_until: float = 0.0
    expired: bool = False
    in_doubt: bool = False
    by_rule: bool = False  # a rule of ours refused it, no server


@dataclass(frozen=True, slots=True)
class Original:
    """The message that the report is about, as far as it is told of."""

    id: int
    accepted_at: float
    head: bytes
    envid: str = ""
    subject: str = ""
    message_id: str = ""
    utf8: bool = False
    body: bytes | None = None  # to be quoted too
    too_large: bool = False  # it was asked for and is not quoted
    whose: str = "Your message"


@dataclass(frozen=True, slots=True)
class Written:
    head: bytes
    body: bytes
    needs: int  # EIGHT_BIT | UTF8 | LONG_LINES


def write(
    news: News,
    original: Original,
    abouts: Sequence[About],
    *,
    to: str,
    hostname: str,
    number: int,
    now: float,
    token: str,
) -> Written:
    """The report with the queue id `number`, to one address."""
    boundary = f"=_{token}"
    text = _text(news, original, abouts, hostname)
    parts = [
        _text_part(text),
        b"Content-Type: message/delivery-status\r\n\r\n" + _status(news, original, abouts, hostname).encode("ascii"),
        _quoted(original),
    ]
    mark = b"--" + boundary.encode("ascii")
    body = b"".join(mark + b"\r\n" + part + b"\r\n" for part in parts) + mark + b"--\r\n"
    thread = f"References: {original.message_id}\r\n" if _MESSAGE_ID.fullmatch(original.message_id) else ""
    head = (
        f"Date: {formatdate(int(now), localtime=True)}\r\n"
        f"From: Mail Delivery System <MAILER-DAEMON@{hostname}>\r\n"
        f"To: <{to}>\r\n"
        f"Subject: {_ACTION[news][0]} ({queue_id(original.id)})\r\n"
        f"Message-ID: <{queue_id(number).lower()}@{hostname}>\r\n"
        f"{thread}"
        "Auto-Submitted: auto-replied\r\n"  # RFC 3834 §5
        "MIME-Version: 1.0\r\n"
        f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"\r\n'
        f"{'' if body.isascii() else 'Content-Transfer-Encoding: 8bit' + chr(13) + chr(10)}\r\n"
    ).encode()
    needs = (0 if head.isascii() and body.isascii() else EIGHT_BIT) | (0 if to.isascii() else UTF8)
    needs |= LONG_LINES if mime.long_line(body) else 0
    return Written(head, body, needs)


# -- for people


def _text(news: News, original: Original, abouts: Sequence[About], hostname: str) -> str:
    lines = [
        f"This is the mail system at {hostname}.",
        "",
        f"{_line(original.whose)} {_ACTION[news][1]} {'this recipient' if len(abouts) == 1 else 'these recipients'}:",
    ]
    for about in abouts:
        lines += ["", f"  <{_line(about.address)}>"]
        for sentence in _why(news, about):
            lines += textwrap.wrap(
                sentence, 76, initial_indent="    ", subsequent_indent="    ", break_long_words=False
            )
    for sentence in dict.fromkeys(_advice(news, about) for about in abouts):
        lines += ["", *textwrap.wrap(sentence, 78)]
    lines += ["", "The message:"]
    for label, value in (
        ("Subject", original.subject),
        ("Message-ID", original.message_id),
        ("Handed in", formatdate(int(original.accepted_at), localtime=True)),
        ("Queue id", f"{queue_id(original.id)} at {hostname}"),
    ):
        if value:
            lines.append(f"  {label + ':':<12}{_line(value)[:MAX_SHOWN]}")
    if original.too_large:
        lines += ["", "You asked for the whole message to be returned; it is too large, so only its header follows."]
    return "".join(line + "\r\n" for line in lines)


def _why(news: News, about: About) -> list[str]:
    """What happened, as sentences; the last one is what was said."""
    server = f"The mail server {_line(about.remote)}" if about.remote else "The next mail server"
    said = _line(str(about.reply))
    if news is News.RELAYED:
        return [f"{server} has taken it, and does not promise to report what becomes of it."]
    if about.by_rule:
        return ["A rule of this mail system does not let it pass:", said]
    if about.in_doubt:
        doubt = "It may have been delivered all the same: the whole message was sent once, and no answer came."
        return [doubt, *([f"{server} said last:", said] if about.reply.code else [])]
    if news is News.DELAYED or about.expired:
        end = ["Its time to be delivered is over."] if about.expired else []
        if not said:
            return [*end, "It could not be handed to the next mail server so far."]
        return [*end, f"{server} said last:" if about.reply.code else "What stood in its way last:", said]
    return [f"{server} refused it:" if about.reply.code else "It can't be delivered:", said]


def _advice(news: News, about: About) -> str:
    if news is News.RELAYED:
        return "You need not do anything. That no further report comes does not mean that it failed."
    if news is News.DELAYED:
        until = f" until {formatdate(int(about.retry_until), localtime=True)}" if about.retry_until else ""
        return f"You need not do anything: it is tried again{until}, and if it fails for good, you will be told."
    if about.by_rule:
        return "Ask the postmaster of your system, with the queue id below."
    if about.in_doubt:
        return "Ask the recipient whether it arrived before you send it again."
    if about.expired:
        return "It will not be tried again. Send it anew later, or ask the postmaster of your system, with the queue id below."
    return (
        "It will not be tried again. Check the address; if it is right, ask the postmaster of your system, with the queue id "
        "below and the answer above."
    )


def _text_part(text: str) -> bytes:
    if text.isascii():
        return b"Content-Type: text/plain; charset=us-ascii\r\n\r\n" + text.encode("ascii")
    head = b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    plain = text.replace("\r\n", "\n").encode("utf-8", "replace")
    return head + quopri.encodestring(plain).replace(b"\n", b"\r\n")


# -- for programs: RFC 3464 §2


def _status(news: News, original: Original, abouts: Sequence[About], hostname: str) -> str:
    groups = [
        [
            ("Reporting-MTA", f"dns; {hostname}"),
            ("Original-Envelope-Id", _ascii(original.envid)),
            ("Arrival-Date", formatdate(int(original.accepted_at), localtime=True)),
            ("X-Relay-Queue-Id", queue_id(original.id)),
        ]
    ]
    for about in abouts:
        groups.append(
            [
                ("Original-Recipient", _original_recipient(about.orcpt)),
                ("Final-Recipient", _typed(about.address)),
                ("Action", news.value),
                ("Status", status(news, about)),
                ("Remote-MTA", f"dns; {_ascii(about.remote)}" if about.remote and about.reply.code else ""),
                ("Diagnostic-Code", _diagnostic(about.reply)),
                ("Last-Attempt-Date", formatdate(int(about.tried_at), localtime=True) if about.tried_at else ""),
                (
                    "Will-Retry-Until",
                    formatdate(int(about.retry_until), localtime=True)
                    if about.retry_until and news is News.DELAYED
                    else "",
                ),
            ]
        )
    return "\r\n".join("".join(f"{name}: {value}\r\n" for name, value in group if value) for group in groups)


def status(news: News, about: About) -> str:
    """RFC 3463: what the server said where it fits, else what is known."""
    enhanced, code = about.reply.enhanced, about.reply.code
    if news is News.RELAYED:
        return enhanced if enhanced.startswith("2.") else "2.0.0"
    if about.by_rule:
        return "5.7.1"
    if about.in_doubt and code < 500:
        return "4.4.2"  # bad connection: nobody knows
    if news is News.FAILED and not about.expired:
        return enhanced if enhanced.startswith("5.") else "5.0.0"
    if enhanced[:2] in ("4.", "5."):
        return enhanced
    if about.expired:
        return "4.4.7"
    return "4.0.0" if code else "4.4.1"


def _diagnostic(reply: Reply) -> str:
    said = _ascii(str(reply))
    return f"{'smtp' if reply.code else 'x-relay'}; {said}" if said else ""


def _typed(address: str) -> str:
    if address.isascii():
        return f"rfc822; {_ascii(address)}"
    # RFC 6533 §3: utf-8-addr-xtext, so that the part stays ASCII.
    return "utf-8; " + "".join(c if _QCHAR.fullmatch(c) else f"\\x{{{ord(c):X}}}" for c in address)


def _original_recipient(orcpt: str) -> str:
    """RFC 3461 §6.3: decoded. What does not read as it should is left out."""
    kind, _, text = orcpt.partition(";")
    try:
        address = unxtext(text)
    except ValueError:
        return ""
    return (
        f"{kind}; {address}"
        if kind.isascii() and address.isascii() and (kind + address).isprintable() and address
        else ""
    )


# -- the original


def _quoted(original: Original) -> bytes:
    """The header block, or the whole message, as the third part. RFC 6533 §6 names the types for UTF-8."""
    full = original.body is not None and _can_be_quoted(original, original.body)
    if original.utf8:
        kind = b"message/global" if full else b"message/global-headers"
    else:
        kind = b"message/rfc822" if full else b"text/rfc822-headers"
    content = original.head + (original.body or b"") if full else _clipped(original.head)
    if not content.endswith(b"\r\n"):
        content += b"\r\n"
    encoding = b"" if content.isascii() else b"\r\nContent-Transfer-Encoding: 8bit"
    return b"Content-Type: " + kind + encoding + b"\r\n\r\n" + content


def _can_be_quoted(original: Original, body: bytes) -> bool:
    """What can't be re-encoded would keep the report from leaving, too: then its header block alone is quoted."""
    if b"\0" in body:
        return False
    try:
        if not original.utf8:  # else it is of a type that may be encoded whole
            mime.convert(original.head, body, seven_bit=True)
    except mime.Unconvertible:
        return False
    return True


def _clipped(head: bytes) -> bytes:
    """Without its last, empty line; whole fields only where it is too long."""
    text = head.removesuffix(b"\r\n") if head.endswith(b"\r\n\r\n") else head
    if len(text) <= HEAD_LIMIT:
        return text
    ends = [found.end() for found in re.finditer(rb"\r\n(?![ \t])", text[:HEAD_LIMIT])]
    return text[: ends[-1]] if ends else b""


def _line(text: str) -> str:
    """One line of what a stranger said, for people: nothing that steers a terminal or turns the direction of writing."""
    return "".join(c if c.isprintable() else " " for c in text[:1000]).strip()


def _ascii(text: str) -> str:
    """The same for a field."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:600]).strip()
