"""SMTP commands as they are written: verbs, paths, parameters. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from relay.envelope import AddressError, parse_address

MAX_LINE = 4096  # RFC 5321 §4.5.3.1.4 asks for 512, extensions (RFC 6531, RFC 3461) for more


class BadCommand(Exception):
    """The reply that says what is wrong: code, enhanced code, text."""

    def __init__(self, code: int, enhanced: str, text: str) -> None:
        super().__init__(text)
        self.code, self.enhanced, self.text = code, enhanced, text


@dataclass(frozen=True, slots=True)
class Mail:
    sender: str
    size: int = 0
    eight_bit: bool = False
    smtputf8: bool = False


def parse_mail(argument: str) -> Mail:
    """`FROM:<reverse-path> [parameters]`, RFC 5321 §4.1.1.2. Raises BadCommand."""
    path, rest = _path(argument, "FROM", "MAIL FROM:<address>")
    size, eight_bit, smtputf8 = 0, False, False
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
            case "SMTPUTF8":
                if value is not None:
                    raise BadCommand(501, "5.5.4", "SMTPUTF8 takes no value")
                smtputf8 = True
            case _:
                raise BadCommand(555, "5.5.4", f"MAIL parameter {_shown(name)} is not supported")
    return Mail(_address(path, smtputf8, "sender") if path else "", size, eight_bit, smtputf8)


def parse_rcpt(argument: str, smtputf8: bool) -> str:
    """`TO:<forward-path> [parameters]`, RFC 5321 §4.1.1.3. Raises BadCommand."""
    path, rest = _path(argument, "TO", "RCPT TO:<address>")
    for name, _ in _parameters(rest):
        raise BadCommand(555, "5.5.4", f"RCPT parameter {_shown(name)} is not supported")
    if not path:
        raise BadCommand(501, "5.1.3", "RCPT wants an address: RCPT TO:<address>")
    if path.casefold() == "postmaster":
        # RFC 5321 §4.1.1.3 wants it taken without a domain; a relay has no mailbox of its own to put it in.
        raise BadCommand(550, "5.1.1", "this relay has no local mailboxes; give Postmaster a domain")
    return _address(path, smtputf8, "recipient")


def _path(argument: str, keyword: str, wanted: str) -> tuple[str, str]:
    """The path between the brackets and what follows it. Blanks around it and missing brackets are forgiven."""
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
