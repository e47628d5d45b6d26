"""Hands one message to the relay by SMTP, and says in an exit code what became of it."""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from typing import NoReturn

from relay.sendmail.content import Message, stuffed
from relay.sendmail.options import DATA, NO_USER, NOPERM, TEMPORARY, UNAVAILABLE, USAGE, Failed, Options

DEFAULT = "127.0.0.1:2525"
TIMEOUT = 300.0  # seconds, RFC 5321 §4.5.3.2
_ENHANCED = re.compile(r"[245]\.(\d{1,3})\.(\d{1,3})\b")
_SERVER = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?")
LOOPBACK = re.compile(r"127\.[0-9.]+|::1|localhost", re.IGNORECASE)
_TOO_MANY = re.compile(r"452 4\.5\.3\b")  # RFC 5321 §4.5.3.1.10


def server(env: Mapping[str, str]) -> tuple[str, int]:
    """RELAY_SMTP: `HOST`, `HOST:PORT` or `[IPV6]:PORT`. Raises Failed."""
    given = env.get("RELAY_SMTP") or DEFAULT
    found = _SERVER.fullmatch(given)
    if not found or int(found["port"] or 2525) > 65535:
        raise Failed(USAGE, f"RELAY_SMTP={given}: it wants the relay's listener, such as {DEFAULT} or [::1]:2525")
    return found["six"] or found["host"], int(found["port"] or 2525)


def connect(env: Mapping[str, str], domain: str) -> smtplib.SMTP:
    """A session that has said EHLO, and has logged in where that is wanted. Raises Failed, OSError, SMTPException."""
    host, port = server(env)
    # Its own idea of our name would ask the DNS, which may take longer than all the rest.
    smtp = smtplib.SMTP(timeout=TIMEOUT, local_hostname=domain)
    code, said = smtp.connect(host, port)
    if code == 220:
        code, said = smtp.ehlo()
    if code not in (220, 250):
        fail(code, said, UNAVAILABLE)
    if user := env.get("RELAY_SMTP_USER"):
        if not LOOPBACK.fullmatch(host):
            smtp.starttls(context=ssl.create_default_context())
            smtp.ehlo()
        smtp.login(user, _password(env))
    return smtp


def _password(env: Mapping[str, str]) -> str:
    """Raises Failed."""
    file = env.get("RELAY_SMTP_PASSWORD_FILE", "")
    if not file:
        raise Failed(USAGE, "RELAY_SMTP_USER wants RELAY_SMTP_PASSWORD_FILE beside it, which names a file")
    try:
        with open(file, encoding="utf-8") as opened:
            return opened.readline().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise Failed(NOPERM, f"RELAY_SMTP_PASSWORD_FILE={file}: {why}") from None


def exit_code(code: int, text: str, otherwise: int = DATA) -> int:
    """What a program should think of a reply: try again, correct it, or ask the operator."""
    enhanced = _ENHANCED.match(text)
    subject = enhanced[1] if enhanced else ""
    if 400 <= code < 500:
        return TEMPORARY
    if subject == "7" or code in (530, 535, 538):
        return NOPERM
    return DATA if subject or code in (552, 554) else otherwise


def fail(code: int, said: bytes, otherwise: int) -> NoReturn:
    text = said.decode("utf-8", "replace").replace("\n", " ")
    raise Failed(exit_code(code, text, otherwise), f"the relay said: {code} {text}")


class Submission:
    """One message to some recipients. `sender` and `recipients` are whole addresses."""

    def __init__(self, options: Options, sender: str, message: Message, head: bytes) -> None:
        self.options, self.sender, self.message, self.head = options, sender, message, head
        self.refused: list[tuple[int, str]] = []  # (exit code, words), of recipients
        self.taken = ""  # the relay's word to the last final dot

    def send(self, smtp: smtplib.SMTP, recipients: Sequence[str]) -> None:
        """To all of them, in as many transactions as the relay's limit asks for. Raises Failed, OSError, SMTPException."""
        left = list(recipients)
        while left:
            left = self._transaction(smtp, left)

    def _transaction(self, smtp: smtplib.SMTP, recipients: Sequence[str]) -> list[str]:
        """The recipients that are left for the next one."""
        self._mail(smtp, recipients)
        options = self.options
        notify = f" NOTIFY={options.notify}" if options.notify and smtp.has_extn("dsn") else ""
        taken, left = 0, list[str]()
        for number, address in enumerate(recipients):
            code, said = smtp.docmd("RCPT", f"TO:<{address}>{notify}")
            text = said.decode("utf-8", "replace").replace("\n", " ")
            if code == 421:
                fail(code, said, TEMPORARY)
            if code in (250, 251):
                taken += 1
            elif taken and _TOO_MANY.match(f"{code} {text}"):
                left = list(recipients[number:])  # none of them would hear anything else in this one
                break
            else:
                known = _ENHANCED.match(text)
                no_user = code >= 500 and (known is None or known[1] == "1")
                self.refused.append((NO_USER if no_user else exit_code(code, text), f"<{address}>: {code} {text}"))
        if taken:
            self._data(smtp)
        return left

    def _mail(self, smtp: smtplib.SMTP, recipients: Sequence[str]) -> None:
        options, offered = self.options, smtp.has_extn
        words = [f"FROM:<{self.sender}>"]
        if offered("size"):
            words.append(f"SIZE={self.message.text_size + len(self.head)}")
        if not (self.message.ascii and self.head.isascii()) and offered("8bitmime"):
            words.append("BODY=8BITMIME")
        if not all(address.isascii() for address in (self.sender, *recipients)):
            if not offered("smtputf8"):
                raise Failed(UNAVAILABLE, "an address is not ASCII, and the relay takes ASCII only (no SMTPUTF8)")
            smtp.command_encoding = "utf-8"
            words.append("SMTPUTF8")
        if offered("dsn"):
            words += [f"RET={options.ret}"] if options.ret else []
            words += [f"ENVID={_xtext(options.envid)}"] if options.envid else []
        code, said = smtp.docmd("MAIL", " ".join(words))
        if code != 250:
            fail(code, said, DATA)

    def _data(self, smtp: smtplib.SMTP) -> None:
        code, said = smtp.docmd("DATA")
        if code != 354:
            fail(code, said, UNAVAILABLE)
        assert smtp.sock is not None
        for piece in stuffed((self.head, *self.message.body())):
            smtp.sock.sendall(piece)
        smtp.sock.sendall(b".\r\n")
        code, said = smtp.getreply()
        if code != 250:
            fail(code, said, UNAVAILABLE)
        self.taken = said.decode("utf-8", "replace")


def _xtext(text: str) -> str:
    from relay.envelope import xtext  # not for those who never ask: it reads the tables of IDNA

    return xtext(text)
