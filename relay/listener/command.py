"""SMTP commands as they are written: verbs, paths, parameters. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from relay.envelope import AddressError, parse_address, unxtext
from relay.spool import Notify

MAX_ENVID = 100  # RFC 3461 §4.4
MAX_ORCPT = 500  # §4.2
_NOTIFY = {"NEVER": Notify.NEVER, "SUCCESS": Notify.SUCCESS, "FAILURE": Notify.FAILURE, "DELAY": Notify.DELAY}
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]{1,40}")

MAX_LINE = 4096  # RFC 5321 §4.5.3.1.4 asks for 512, extensions (RFC 6531, RFC 3461) for more


class BadCommand(Exception):
    """The reply that says what is wrong: code, enhanced code, text."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.code, self.enhanced, self.text = code, enhanced, text


@dataclass(slots=True)
class Mail:
    sender: str
    size: int = 0
    eight_bit: bool = False
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""


@dataclass(slots=True)
class Rcpt:
    address: str
    notify: int = 0  # bits of Notify
    orcpt: str = ""


def parse_mail(argument: str, dsn: bool = True) -> Mail:
    """`FROM:<reverse-path> [parameters]`, RFC 5321 §4.1.1.2. `dsn`: we offered RFC 3461. Raises BadCommand."""
    path, rest = _path(argument, "FROM", "MAIL FROM:<address>")
    size, eight_bit, smtputf8 = 0, False, False
    ret = envid = ""
    for name, value in _parameters(rest):
        match name:
            case "SIZE":
                # str.isdecimal knows other digits than ASCII's, and int() would read them.
                if value is None or not (value.isascii() and value.isdecimal() and len(value) <= 20):
                    raise BadCommand(501, "5.5.4", "SIZE wants a number of bytes")
                size = int(value)
            case "BODY":
                if value is None or value.upper() not in ("7BIT", "8BITMIME"):
                    raise BadCommand(501, "5.5.4", "BODY wants 7BIT or 8BITMIME")
                eight_bit = value.upper() == "8BITMIME"
            case "AUTH":
                # RFC 4954 §5: on whose behalf. It is taken, and believed of nobody: what leaves says nothing of it.
                if value is None:
                    raise BadCommand(501, "5.5.4", "AUTH wants a value: AUTH=<>")
            case "SMTPUTF8":
                if value is not None:
                    raise BadCommand(501, "5.5.4", "SMTPUTF8 takes no value")
                smtputf8 = True
            case "RET" if dsn:
                ret = (value or "").upper()
                if ret not in ("FULL", "HDRS"):
                    raise BadCommand(501, "5.5.4", "RET wants FULL or HDRS")
            case "ENVID" if dsn:
                envid = _envid(value or "")
            case _:
                raise BadCommand(555, "5.5.4", f"MAIL parameter {_shown(name)} is not supported")
    return Mail(_address(path, smtputf8, "sender") if path else "", size, eight_bit, smtputf8, ret, envid)


def parse_rcpt(argument: str, smtputf8: bool, dsn: bool = True) -> Rcpt:
    """`TO:<forward-path> [parameters]`, RFC 5321 §4.1.1.3. `dsn`: we offered RFC 3461. Raises BadCommand."""
    path, rest = _path(argument, "TO", "RCPT TO:<address>")
    notify, orcpt = 0, ""
    for name, value in _parameters(rest):
        match name:
            case "NOTIFY" if dsn:
                notify = _notify(value or "")
            case "ORCPT" if dsn:
                orcpt = _orcpt(value or "", smtputf8)
            case _:
                raise BadCommand(555, "5.5.4", f"RCPT parameter {_shown(name)} is not supported")
    if not path:
        raise BadCommand(501, "5.1.3", "RCPT wants an address: RCPT TO:<address>")
    if path.casefold() == "postmaster":
        # RFC 5321 §4.1.1.3 wants it taken without a domain; a relay has no mailbox of its own to put it in.
        raise BadCommand(550, "5.1.1", "this relay has no local mailboxes; give Postmaster a domain")
    return Rcpt(_address(path, smtputf8, "recipient"), notify, orcpt)


def _envid(value: str) -> str:
    """ENVID, decoded: RFC 3461 §4.4."""
    try:
        text = unxtext(value)
    except ValueError:
        text = ""
    if not (text and len(value) <= MAX_ENVID and text.isascii() and text.isprintable()):
        raise BadCommand(
            501, "5.5.4", f"ENVID wants 1 to {MAX_ENVID} characters of xtext that stand for printable ASCII"
        )
    return text


def _notify(value: str) -> int:
    """NOTIFY as bits: RFC 3461 §4.1."""
    words = value.upper().split(",")
    if any(word not in _NOTIFY for word in words):
        raise BadCommand(501, "5.5.4", "NOTIFY wants NEVER, or some of SUCCESS,FAILURE,DELAY")
    if "NEVER" in words and len(words) > 1:
        raise BadCommand(501, "5.5.4", "NOTIFY=NEVER stands alone")
    bits = 0
    for word in words:
        bits |= int(_NOTIFY[word])
    return bits


def _orcpt(value: str, smtputf8: bool) -> str:
    """ORCPT, as ASCII whoever it is passed on to: RFC 3461 §4.2, RFC 6533 §3."""
    kind, semicolon, address = value.partition(";")
    if smtputf8 and kind.lower() == "utf-8" and address.isprintable():
        address = "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in address)
    try:
        text = unxtext(address)
    except ValueError:
        text = ""
    good = _ADDRESS_TYPE.fullmatch(kind) and semicolon and text.isascii() and text.isprintable()
    if not (good and text and len(kind) + 1 + len(address) <= MAX_ORCPT):
        raise BadCommand(
            501, "5.5.4", f"ORCPT wants type;xtext, such as rfc822;a@example.com, up to {MAX_ORCPT} characters"
        )
    return f"{kind};{re.sub('[+]..', lambda found: found[0].upper(), address)}"


_USUAL = re.compile(r'(FROM|TO):<([^\s"\\<>]*)>(| .*)', re.IGNORECASE)


def _path(argument: str, keyword: str, wanted: str) -> tuple[str, str]:
    """The path between the brackets and what follows it. Blanks around it and missing brackets are forgiven."""
    found = _USUAL.fullmatch(argument)
    if found and found[1].upper() == keyword:
        return found[2], found[3]
    head, colon, rest = argument.partition(":")
    if not colon or head.strip().upper() != keyword:
        raise BadCommand(501, "5.5.4", f"syntax: {wanted}")
    rest = rest.strip(" \t")
    if not rest.startswith("<"):
        path, _, parameters = rest.partition(" ")
        if not path:
            raise BadCommand(501, "5.5.4", f"syntax: {wanted}")
        return path, parameters
    end = _closing(rest)
    if end < 0:
        raise BadCommand(501, "5.1.7" if keyword == "FROM" else "5.1.3", "address has no closing >")
    parameters = rest[end + 1 :]
    if parameters and not parameters.startswith((" ", "\t")):
        raise BadCommand(501, "5.5.4", "a blank is missing after the address")
    return rest[1:end].strip(" "), parameters


def _closing(text: str) -> int:
    """Where the > is that is not inside a quoted local part; -1 if nowhere."""
    quoted = escaped = False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif quoted and c == "\\":
            escaped = True
        elif c == '"':
            quoted = not quoted
        elif c == ">" and not quoted:
            return i
    return -1


def _parameters(text: str) -> list[tuple[str, str | None]]:
    if not text:
        return []
    found: dict[str, str | None] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        name = name.upper()
        if name in found:
            raise BadCommand(501, "5.5.4", f"parameter {_shown(name)} is given twice")
        found[name] = value if equals else None
    return list(found.items())


def _address(path: str, smtputf8: bool, what: str) -> str:
    if not smtputf8 and not path.isascii():
        raise BadCommand(553, "5.6.7", f"{what} address is not ASCII: say SMTPUTF8 in MAIL FROM")
    try:
        return parse_address(path)
    except AddressError as error:
        raise BadCommand(553, "5.1.7" if what == "sender" else "5.1.3", f"{what} {error}") from None


def _shown(name: str) -> str:
    return "".join(c for c in name[:20] if c.isascii() and c.isprintable()) or "?"
