"""Header fields that an ASCII path can't carry, or whose lines are too long, written anew. Pure.

What is good stays byte for byte; of a field that is not, its words do. Raw 8-bit text becomes encoded words (RFC 2047) where
words may stand, and extended parameters (RFC 2231) where those do; in an address or anywhere else it is Unconvertible.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from email.base64mime import header_encode
from email.utils import unquote
from typing import NamedTuple
from urllib.parse import quote

from relay.outgoing.headers import MAX_LINE, WIDTH
from relay.outgoing.mailboxes import Unreadable, read
from relay.outgoing.octets import CRLF, Unconvertible, long_line

_FIELDS = re.compile(rb"(?<=\r\n)(?![ \t])")
_NAME = re.compile(rb"([!-9;-~]+)[ \t]*:")
_BLANKS = re.compile(rb"([ \t]*)([^ \t]*)")
# A quoted string that does not close goes to the end: to look for its end from each quote would be quadratic.
_TOKEN = re.compile(rb'([ \t]*+)("(?:[^"\\]|\\.)*+"?|<[^<>]*+>|[(),:;<>]|[^ \t"(),:;<>]++|\Z)')
_PARAMETER = re.compile(rb'((?:"(?:[^"\\]|\\.)*+"?|[^";])*+)(;?)')
_ASSIGNED = re.compile(rb"([!#$&+\-.0-9A-Z^_`a-z{|}~]+)(\*?)[ \t]*=[ \t]*(.*)")
_EXTENDED = re.compile(rb";[ \t]*+([!#$&+\-.0-9A-Z^_`a-z{|}~]++)\*(?:0\*)?=")
_ENCODED = re.compile(rb"=\?[^? ]+\?[BbQq]\?[^? ]*\?=")
_BOUND = (b",", b";", b">")  # behind which a structured field may get a blank
_LONGEST = MAX_LINE - 8
_STEP = 42  # octets of an encoded word: with its charset it stays within 75

_ADDRESSES = frozenset(
    b"from sender reply-to to cc bcc resent-from resent-sender resent-reply-to resent-to resent-cc resent-bcc list-id"
    b" disposition-notification-to return-receipt-to errors-to mail-followup-to mail-reply-to".split()
)
_PARAMETERS = frozenset((b"content-type", b"content-disposition"))
# Encoded words may stand in their comments alone.
_STRUCTURED = frozenset(
    b"date message-id in-reply-to references received return-path resent-date resent-message-id mime-version content-id"
    b" content-transfer-encoding content-location content-base content-language content-md5 dkim-signature"
    b" domainkey-signature arc-seal arc-message-signature arc-authentication-results authentication-results received-spf"
    b" list-help list-unsubscribe list-unsubscribe-post list-subscribe list-post list-owner list-archive autocrypt".split()
)
_NOT_EXTENDED = (b"boundary", b"charset")


class _Word(NamedTuple):
    """A word of a field with the blanks before it. `shown`: it is to be encoded, and says this."""

    blank: bytes
    text: bytes
    shown: bytes | None = None


def bad(head: bytes, seven_bit: bool) -> bool:
    return (seven_bit and not head.isascii()) or long_line(head) or b"\0" in head


def mended(head: bytes, seven_bit: bool, *, plain: bool = False) -> tuple[bytes, list[str]]:
    """A header block with its bad fields written anew, and their names. `plain`: all its fields are free text.

    Raises Unconvertible.
    """
    fields = _FIELDS.split(head)
    names = []
    for i, field in enumerate(fields):
        if bad(field, seven_bit):
            fields[i], name = _field(field, seven_bit, plain)
            names.append(name)
    return b"".join(fields), names


def _field(field: bytes, seven_bit: bool, plain: bool) -> tuple[bytes, str]:
    found = _NAME.match(field)
    if not found or not found[0].isascii() or len(found[0]) > 200:
        raise Unconvertible("the header block has a line that is no field")
    key, name = found[1].lower(), found[1].decode("ascii")
    end = CRLF if field.endswith(CRLF) else b""
    value = field[found.end() : len(field) - len(end)].replace(CRLF, b"")
    try:
        words = list(_words(b"" if plain else key, value, seven_bit))
        written = _folded(found[0], _encoded(words, _charset(value))) + end
    except ValueError as error:
        raise Unconvertible(f"{name}: {error}") from None
    return written, name


def _charset(value: bytes) -> str:
    """UTF-8 where it is; else what at least shows something for each octet (unknown-8bit, RFC 1428, shows none)."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return "iso-8859-1"
    return "utf-8"


def _fits(word: bytes, seven_bit: bool) -> bool:
    return (word.isascii() or not seven_bit) and len(word) < _LONGEST


def _words(key: bytes, value: bytes, seven_bit: bool) -> Iterator[_Word]:
    if key in _PARAMETERS:
        return _parameters(value, seven_bit)
    if key in _ADDRESSES and seven_bit and not value.isascii():
        return _addresses(value)
    if key in _STRUCTURED:
        return _comments(value, seven_bit)
    return _phrases(value, seven_bit) if key == b"keywords" or key in _ADDRESSES else _text(value, seven_bit)


def _text(value: bytes, seven_bit: bool) -> Iterator[_Word]:
    for found in _BLANKS.finditer(value):
        if found[0]:
            yield _Word(found[1], found[2], None if _fits(found[2], seven_bit) else found[2])


def _phrases(value: bytes, seven_bit: bool = True) -> Iterator[_Word]:
    """Words, quoted strings, comments and what stands between them."""
    for found in _TOKEN.finditer(value):
        blank, word = found[1], found[2]
        if word.isascii() or not seven_bit:
            yield from _short(blank, word)
        elif word.startswith(b'"'):
            yield _Word(blank, word, re.sub(rb"\\(.)", rb"\1", word[1:-1]))
        else:
            yield _Word(blank, word, word)


def _short(blank: bytes, word: bytes) -> Iterator[_Word]:
    """A word that is too long, such as a quoted string, may be folded at its blanks."""
    if len(word) < _LONGEST:
        if blank or word:
            yield _Word(blank, word)
        return
    for found in _BLANKS.finditer(word):
        if found[0]:
            yield _Word(blank + found[1], found[2])
            blank = b""


def _addresses(value: bytes) -> Iterator[_Word]:
    try:
        mailboxes = read(value)
    except Unreadable as error:
        raise ValueError(f"the addresses can't be read: {error}") from None
    at = 0
    for mailbox in mailboxes:
        address = value[mailbox.at : mailbox.to]
        if not mailbox.angled and b"@" not in address:
            continue  # a name alone
        if not address.isascii():
            raise ValueError("an address is not ASCII")
        yield from _phrases(value[at : mailbox.at])
        yield from _short(b"", address)
        at = mailbox.to
    yield from _phrases(value[at:])


def _comments(value: bytes, seven_bit: bool) -> Iterator[_Word]:
    depth = 0
    for word in _phrases(value, seven_bit):
        depth += (word.text == b"(") - (word.text == b")")
        if word.shown is not None and depth <= 0:
            raise ValueError("it has 8-bit octets")
        yield word


def _parameters(value: bytes, seven_bit: bool) -> Iterator[_Word]:
    extended = {name.lower() for name in _EXTENDED.findall(value)}
    for found in _PARAMETER.finditer(value):
        text = found[1].lstrip(b" \t")
        blank = found[1][: len(found[1]) - len(text)]
        if _fits(text, seven_bit):
            if found[0]:
                yield _Word(blank, text + found[2])
        elif text.partition(b"=")[0].strip().lower() not in extended:
            yield from _extended(blank or b" ", text.rstrip(b" \t"), found[2])
        # Else it is there twice, as RFC 6266 Appendix D has it for files, and this is the one for old readers.


def _extended(blank: bytes, text: bytes, end: bytes) -> Iterator[_Word]:
    """RFC 2231: one parameter, in as many pieces as it takes."""
    found = _ASSIGNED.fullmatch(text)
    if not found or found[1].lower() in _NOT_EXTENDED or (found[2] and b"'" not in found[3]):
        raise ValueError("what it says is not ASCII, or has no blank to fold at")
    name, value = found[1], found[3]
    if found[2]:  # it is extended already, and has raw octets all the same
        start, said = value[: value.rfind(b"'") + 1], value[value.rfind(b"'") + 1 :]
        octets = quote(said, safe="%").encode()
    else:
        # Only octets are moved: the charset stands for them.
        said = unquote(value.decode("latin-1")).encode("latin-1")
        start, octets = f"{_charset(said)}''".encode(), quote(said, safe="").encode()
    if len(name) + len(start) + len(octets) < WIDTH:
        yield _Word(blank, name + b"*=" + start + octets + end)
        return
    room = max(WIDTH - len(name) - len(start) - 12, 12)
    pieces = re.findall(rb"(?:%%..|[^%%]){1,%d}" % (room // 3), octets)
    for number, piece in enumerate(pieces):
        last = number == len(pieces) - 1
        yield _Word(
            b" " if number else blank,
            b"%s*%d*=%s%s%s" % (name, number, b"" if number else start, piece, end if last else b";"),
        )


def _encoded(words: list[_Word], charset: str) -> Iterator[_Word]:
    """Each run of words that are to be encoded, as encoded words.

    Blanks between two encoded words are not shown (RFC 2047 §6.2): those that are to be seen are encoded with them.
    """
    before, at = b"", 0
    while at < len(words):
        word = words[at]
        if word.shown is None:
            yield word._replace(blank=b" ") if before == b"?=" and not word.blank and word.text != b")" else word
            before, at = word.text, at + 1
            continue
        end = at + 1
        while end < len(words) and words[end].shown is not None:
            end += 1
        shown = b"".join([w.blank + (w.shown or b"") for w in words[at:end]])[len(word.blank) :]
        if _ENCODED.fullmatch(before):
            shown = word.blank + shown
        if end < len(words) and _ENCODED.fullmatch(words[end].text):
            shown += words[end].blank
        blank = word.blank or (b"" if before == b"(" else b" ")
        for piece in _steps(shown, charset):
            yield _Word(blank, header_encode(piece, charset).encode("ascii"))
            blank = b" "
        before, at = b"?=", end


def _steps(text: bytes, charset: str) -> Iterator[bytes]:
    """No character is cut (RFC 2047 §5)."""
    at = 0
    while at < len(text):
        end = at + _STEP
        while charset == "utf-8" and end < len(text) and text[end] & 0xC0 == 0x80:
            end -= 1
        yield text[at:end]
        at = end


def _folded(name: bytes, words: Iterator[_Word]) -> bytes:
    """`name` ends with its colon."""
    lines, line, before = [], name, b""
    for blank, word, _ in words:
        size = len(line) + len(blank) + len(word)
        wide = size > (MAX_LINE if line == name else WIDTH)
        if word and wide and (blank or not before or before.endswith(_BOUND)):
            lines.append(line)
            line, blank = b"", blank or b" "
        line += blank + word
        before = word
        if len(line) > MAX_LINE:
            raise ValueError("it has a line of more than 998 octets, and no blank to fold it at")
    return CRLF.join([*lines, line])
