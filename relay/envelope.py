"""The envelope: addresses and parameters as SMTP carries them, and the queue id. Pure.

Promises: an `Address` that exists is safe to put on a wire: no control character, no angle bracket, no space outside a
quoted local part, within the lengths of RFC 5321 §4.5.3.1. The null reverse-path is the empty string.
"""

from __future__ import annotations

import re
from functools import lru_cache

import idna

# What a message needs of its next hop, as bits.
EIGHT_BIT, UTF8 = 1, 2
LONG_LINES = 4  # of a line of over LINE octets, which no next hop need take (RFC 5321 §4.5.3.1.6)
NUL = 8  # of a NUL, which none takes (RFC 5321 §4.5.2)
LINE = 998  # octets without the CRLF

# Crockford's base 32: no I, L, O, U, so that an id can be read over the telephone.
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUE = {c: i for i, c in enumerate(_ALPHABET)} | {"O": 0, "I": 1, "L": 1}
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
QUEUE_ID_LENGTH = 11

# RFC 5321 §4.1.2, with RFC 6531 §3.3: any non-ASCII character counts as atext.
_ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\u0080-\U0010ffff]"
_DOT_STRING = rf"{_ATEXT}+(?:\.{_ATEXT}+)*"
_QUOTED = r'"(?:[ !\x23-\x5b\x5d-\x7e\u0080-\U0010ffff]|\\[ -~])*"'
# Underscores are no letters of a host name, but they are in use; RFC 5321 §2.3.5 asks for no more than we can resolve.
_LABEL = r"[A-Za-z0-9_\u0080-\U0010ffff](?:[A-Za-z0-9_\-\u0080-\U0010ffff]*[A-Za-z0-9_\u0080-\U0010ffff])?"
_DOMAIN = rf"{_LABEL}(?:\.{_LABEL})*\.?"
_LITERAL = r"\[[!-Z^-~]+\]"
_MAILBOX = re.compile(rf"(?P<local>{_DOT_STRING}|{_QUOTED})@(?P<domain>{_DOMAIN}|{_LITERAL})")
# Applications send these though RFC 5321 forbids them; every large receiver takes them.
_LENIENT_LOCAL = re.compile(rf"{_ATEXT}(?:{_ATEXT}|\.)*")
# Those of ASCII and of Latin-1, which some terminals obey too; line separators; halves of characters, which no wire takes.
UNSENDABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class AddressError(ValueError):
    """Not an address that can be mailed to; the text says why, for the one who wrote it."""


@lru_cache(maxsize=8192)
def parse_address(text: str) -> str:
    """The mailbox `local@domain` of RFC 5321 §4.1.2, as written but with the domain in lower case.

    Raises AddressError. Source routes (`@a,@b:c@d`) lose their route, as RFC 5321 Appendix C wishes.
    """
    if UNSENDABLE.search(text):
        raise AddressError("address has a control character")
    if text.startswith("@") and ":" in text:
        text = text.partition(":")[2]
    if len(text.encode()) > 320:  # §4.5.3.1.1 and .2: 64 + "@" + 255
        raise AddressError("address is longer than 320 octets")
    found = _MAILBOX.fullmatch(text)
    if found:
        local, domain = found["local"], found["domain"]
    else:
        local, at, domain = text.rpartition("@")
        if not at:
            raise AddressError("address has no @domain")
        if not local:
            raise AddressError("address has nothing before its @")
        if not re.fullmatch(rf"{_DOMAIN}|{_LITERAL}", domain):
            raise AddressError("address has no valid domain after its @")
        if not _LENIENT_LOCAL.fullmatch(local):
            raise AddressError("address has a character before its @ that must be quoted")
    if len(domain.encode()) > 255:
        raise AddressError("domain is longer than 255 octets")
    if len(local.encode()) > 64 and not text.isascii():
        raise AddressError("local part is longer than 64 octets")
    return f"{local}@{domain.lower()}"


def domain_of(address: str) -> str:
    """The part after the last @, in lower case; the empty string for the null reverse-path."""
    return address.rpartition("@")[2].lower()


@lru_cache(maxsize=8192)
def ascii_domain(domain: str) -> str:
    """A domain as DNS has it: lower case, A-labels (RFC 5890), no dot at its end. What is no domain stays as it is."""
    domain = domain.lower().removesuffix(".")
    if domain.isascii():
        return domain
    try:
        return idna.encode(domain, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        return domain


_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})*")


def xtext(text: str) -> str:
    """Printable ASCII as xtext (RFC 3461 §4)."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else f"+{ord(c):02X}" for c in text)


def unxtext(text: str) -> str:
    """What xtext stands for, an octet a character. Raises ValueError."""
    if not _XTEXT.fullmatch(text):
        raise ValueError("not xtext: RFC 3461 section 4 writes + = and blanks as +2B +3D +20")
    return re.sub(r"\+(..)", lambda found: chr(int(found[1], 16)), text)


def queue_id(number: int) -> str:
    """A message's number (a counter that is never reused, below 2**55) as its 11-letter queue id."""
    return (
        f"{_PAIRS[number >> 45 & 1023]}{_PAIRS[number >> 35 & 1023]}{_PAIRS[number >> 25 & 1023]}"
        f"{_PAIRS[number >> 15 & 1023]}{_PAIRS[number >> 5 & 1023]}{_ALPHABET[number & 31]}"
    )


def parse_queue_id(text: str) -> int:
    """The number behind a queue id, however it was typed (lower case, O for 0). Raises ValueError."""
    if len(text) != QUEUE_ID_LENGTH:
        raise ValueError(f"{text!r} is no queue id: one has {QUEUE_ID_LENGTH} letters and digits, such as 1PGWBZ00001")
    number = 0
    # A ligature in upper case is several letters, and they a number that no column holds.
    for c in text.upper() if text.isascii() else text:
        if c not in _VALUE:
            raise ValueError(f"{text!r} is no queue id: {c!r} does not occur in one")
        number = number << 5 | _VALUE[c]
    return number
