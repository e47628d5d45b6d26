"""The values that users write: durations, sizes, addresses, names, patterns, references. Pure.

Each parser takes what YAML gave and returns the value that the rooms work with, or raises ValueError with a text in
plain English: what was expected, what was found. A parser of secrets never repeats what it found.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from relay.config.problems import shorten
from relay.envelope import AddressError, parse_address
from relay.policy.rate import Rate
from relay.secrets import Reference
from relay.settings import Activated, Address, is_loopback

DURATIONS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
SIZES = {"B": 1, "kB": 1000, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
SIZES |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
MAX_NAME = 64
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([A-Za-z]+)", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)
_HEADER_NAME = re.compile(r"[!-9;-~]+")  # RFC 5322 §3.6.8: ftext
_SIZE_BOUND = re.compile(r"(>=|<=|>|<) ?(\S.*)")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def describe(value: object) -> str:
    """What was found, for a message. Not for secrets."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            text = str(value)
            return f"the number {text}" if len(text) < 40 else "a very long number"
        case str() if "://" in value and "@" in value:
            return "a URL with a login"  # which may hold a secret
        case str():
            return f"the string '{shorten(value)}'"
        case list() | tuple():
            return "a list"
        case dict():
            return "a map"
    return "something else"


def given(value: Any) -> Any:
    """A key without a value is a mistake, not a default."""
    if value is None:
        raise ValueError("has no value; give it one or remove the key")
    return value


def parse_duration(value: object) -> float:
    """`25s`, `5m`, `500ms` -> seconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"expected a duration such as 5m, found the bare number {describe(value)[11:]}; say the unit")
    if isinstance(value, str) and (found := _NUMBER_AND_UNIT.fullmatch(value)) and found[2] in DURATIONS:
        return float(found[1]) * DURATIONS[found[2]]
    units = ", ".join(DURATIONS)
    raise ValueError(f"expected a duration such as 5m, found {describe(value)}; units are {units}")


def parse_size(value: object) -> int:
    """`25MB`, `256KiB` -> bytes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"expected a size such as 25MB, found the bare number {describe(value)[11:]}; say the unit")
    if isinstance(value, str) and (found := _NUMBER_AND_UNIT.fullmatch(value)) and found[2] in SIZES:
        return int(float(found[1]) * SIZES[found[2]])
    raise ValueError(f"expected a size such as 25MB or 256KiB, found {describe(value)}")


def print_size(size: int) -> str:
    """Bytes as a user writes them, in the largest unit that fits."""
    for unit in ("TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"):
        if size and size % SIZES[unit] == 0:
            return f"{size // SIZES[unit]}{unit}"
    return f"{size}B"


def print_duration(seconds: float) -> str:
    """Seconds as a user writes them, in the largest unit that fits."""
    for unit in ("w", "d", "h", "m", "s"):
        if seconds >= DURATIONS[unit] and seconds % DURATIONS[unit] == 0 and (unit != "w" or seconds > 7 * 86400):
            return f"{seconds / DURATIONS[unit]:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if seconds else "0s"


def parse_address_and_port(value: object) -> Address:
    """`127.0.0.1:2525`, `[::1]:2525`, `localhost:2525`. No other host names: a name may change its meaning."""
    wanted = "expected an address such as 127.0.0.1:2525 or [::1]:2525"
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, found {describe(value)}")
    host, colon, port = value.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or int(port) > 65535:
        raise ValueError(f"{wanted}, found {describe(value)}; the port is a number up to 65535")
    bracketed = host.startswith("[") and host.endswith("]")
    if host == "localhost":
        host = "127.0.0.1"
    try:
        parsed = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        if re.fullmatch(r"[0-9.]+|.*:.*", host):
            raise ValueError(f"{wanted}, found {describe(value)}; no such IP address") from None
        raise ValueError(f"{wanted}, found {describe(value)}; an IP address, or localhost") from None
    if (parsed.version == 6) is not bracketed:
        raise ValueError(f"{wanted}, found {describe(value)}; brackets stand around IPv6 addresses, and only there")
    return Address(str(parsed), int(port))


def parse_listen_address(value: object) -> Address | Activated:
    """As `parse_address_and_port`, or `systemd:NAME`: a socket that systemd hands over."""
    if isinstance(value, str) and value.startswith("systemd:"):
        return Activated(parse_name(value.removeprefix("systemd:")))
    return parse_address_and_port(value)


def parse_name(value: str) -> str:
    if len(value) > MAX_NAME or not _NAME.fullmatch(value):
        raise ValueError(
            f"'{shorten(value)}' is no name; one has up to {MAX_NAME} letters, digits, '_', '.', '-' "
            "and begins with a letter or digit"
        )
    return value


def parse_hostname(value: str) -> str:
    if value.startswith("[") and value.endswith("]"):  # RFC 5321 §4.1.3: an address literal
        try:
            ipaddress.ip_address(value[1:-1].removeprefix("IPv6:"))
        except ValueError:
            raise ValueError(f"'{shorten(value)}' is no address literal such as [192.0.2.1]") from None
        return value
    if len(value) > 253 or not HOSTNAME.fullmatch(value):
        raise ValueError(f"expected a host name such as relay.example.com, found {describe(value)}")
    return value


def parse_upstream(value: str) -> str:
    """A host to dial: a name or an IP address, and nothing else in the same text."""
    if "@" in value:  # user:secret@host, as in a URL: not repeated
        raise ValueError("expected a host alone; `username` and `password` stand beside it")
    try:
        return str(ipaddress.ip_address(value.removeprefix("[").removesuffix("]")))
    except ValueError:
        pass
    host, colon, port = value.rpartition(":")
    if colon and port.isdecimal() and HOSTNAME.fullmatch(host):
        raise ValueError(f"expected a host alone, found {describe(value)}; write `port: {shorten(port)}` beside it")
    if len(value) > 253 or not HOSTNAME.fullmatch(value):
        raise ValueError(f"expected a host such as smtp.example.com, found {describe(value)}")
    return value


def _parse_reference(value: object, wrong: str) -> Reference:
    if not isinstance(value, dict) or len(value) != 1:
        raise ValueError(wrong)
    ((kind, target),) = value.items()
    if kind == "command":
        if not isinstance(target, list) or not target or not all(isinstance(t, str) and t for t in target):
            raise ValueError("`command` must be a list of strings, the program first, such as [pass, show, smtp]")
        if any("\0" in t for t in target):
            raise ValueError("`command` has a NUL character")
        return Reference("command", target[0], tuple(target[1:]))
    if kind not in ("file", "env", "credential"):
        raise ValueError(wrong)
    if not isinstance(target, str) or not target or "\0" in target or (kind == "env" and "=" in target):
        raise ValueError(f"`{kind}` must be a string: where the secret is")
    if kind == "credential" and ("/" in target or target in (".", "..")):
        raise ValueError("`credential` must be the name of a systemd credential, not a path")
    return Reference(kind, target)


SECRET_WANTED = (
    "a secret must be a reference: {file: …}, {env: …}, {credential: …} or {command: […]}; move it out of this file"
)


def parse_secret(value: object) -> Reference:
    return _parse_reference(value, SECRET_WANTED)


def _plain_or_reference(value: object, check: Callable[[str], str]) -> Reference:
    if isinstance(value, str):
        return Reference("plain", check(value))
    if isinstance(value, int | float):  # `isinstance(True, int)`: that wants quotes too
        raise ValueError(f"expected a string, found {describe(value)}; write it in quotes")
    wrong = "expected a string or a reference: {file: …}, {env: …}, {credential: …} or {command: […]}"
    return _parse_reference(value, wrong)


def parse_host(value: object) -> Reference:
    return _plain_or_reference(value, parse_upstream)


def parse_username(value: object) -> Reference:
    def check(text: str) -> str:
        if not text or CONTROL.search(text):
            raise ValueError("a username must not be empty or hold control characters")
        return text

    return _plain_or_reference(value, check)


def parse_public_key(value: object) -> Reference:
    def check(text: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9+/=\s]+|-----BEGIN[\s\S]+", text):
            raise ValueError("expected a public key in base64 or PEM, or a reference such as {file: keys/public}")
        return text

    return _plain_or_reference(value, check)


def parse_token_url(value: object) -> str:
    """`https://…`; `http://` to this machine alone. What was found is not repeated where it holds a login."""
    wanted = "expected a URL such as https://login.example.com/token"
    if not isinstance(value, str) or CONTROL.search(value) or " " in value:
        raise ValueError(f"{wanted}, found {describe(value)}")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(wanted) from None
    if not host or "@" in parts.netloc or parts.fragment or parts.scheme not in ("https", "http"):
        raise ValueError(f"{wanted}, found {describe(value)}")
    if parts.scheme == "http" and not is_loopback(Reference("plain", host)):
        raise ValueError("secrets are never sent in clear: `http` is for this machine alone; use https")
    return value


def parse_scope(value: object) -> str:
    """Words with spaces between them, or a list of them (RFC 6749 §3.3)."""
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    if not words or not all(isinstance(word, str) and re.fullmatch(r"[!#-\[\]-~]+", word) for word in words):
        raise ValueError(f"expected a scope, or a list of them, found {describe(value)}")
    return " ".join(words)


def parse_tenant(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9.-]{1,253}", value):
        raise ValueError(f"expected a tenant: the id of a directory, or its domain, found {describe(value)}")
    return value


def parse_password_hash(value: object) -> str:
    """Argon2 in the PHC string format. What was found is not repeated: it may be a password."""
    import argon2

    try:
        argon2.extract_parameters(value)  # type: ignore[arg-type]
    except (argon2.exceptions.InvalidHashError, TypeError, AttributeError):
        raise ValueError("expected an argon2 hash, $argon2id$… in quotes, as `relay password hash` makes one") from None
    return str(value)


def parse_pattern(value: object) -> str:
    """A glob. The empty pattern is the empty text: for `sender`, the null reverse-path."""
    if not isinstance(value, str):
        raise ValueError(f"expected a pattern such as *@example.com, found {describe(value)}; put it in quotes")
    if CONTROL.search(value):
        raise ValueError("a pattern must not hold control characters")
    return value


def parse_address_pattern(value: object) -> str:
    pattern = parse_pattern(value)
    if "<" in pattern or ">" in pattern:
        raise ValueError(f"'{shorten(pattern)}' can match nothing: write the address alone; \"\" is the null sender")
    # Other servers' tables write a domain so. A rule that silently took nothing would let its mail out without its TLS.
    domain = pattern.removeprefix("@").removeprefix(".")
    if "." in domain and not set("@*?") & set(domain):
        meant = f"*@*.{domain}" if pattern.startswith(".") else f"*@{domain}"
        raise ValueError(
            f"'{shorten(pattern)}' can match nothing: it is no address; did you mean \"{shorten(meant)}\"?"
        )
    return pattern


def parse_network(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a network such as 10.0.0.0/8, found {describe(value)}")
    try:
        return str(ipaddress.ip_network(value))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise ValueError(f"expected a network such as 10.0.0.0/8, found {describe(value)}") from None
    raise ValueError(f"'{value}' is an address within a network; did you mean {meant}?")


def parse_mail_rate(value: object) -> Rate:
    """As `Rate.parse`, but of what comes in: that is never counted by connections."""
    rate = Rate.parse(value)
    if rate.unit == "connections":
        raise ValueError("this rate counts mail; connections are limited at accounts, direct entries and destinations")
    return rate


def parse_message_rate(value: object) -> Rate:
    rate = Rate.parse(value, "messages")
    if rate.unit != "messages":
        raise ValueError(f"this rate counts messages, such as {rate.count}/{rate.text.rpartition('/')[2]}")
    return replace(rate, when_full="reject")


def parse_size_bound(value: object) -> tuple[str, str, int]:
    """`>10MB` -> (as written, operator, bytes)."""
    found = _SIZE_BOUND.fullmatch(value) if isinstance(value, str) else None
    if not found:
        raise ValueError(f'expected a bound such as ">10MB" with one of > >= < <=, found {describe(value)}')
    return found[0], found[1], parse_size(found[2])


def parse_header_name(value: str) -> str:
    if not _HEADER_NAME.fullmatch(value) or "*" in value or "?" in value:
        hint = "; patterns stand on the right" if "*" in value or "?" in value else ""
        raise ValueError(f"'{shorten(value)}' is no name of a header field{hint}")
    return value


def parse_recipient(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a mail address, found {describe(value)}")
    try:
        return parse_address(value)
    except AddressError as error:
        raise ValueError(f"expected a mail address, found {describe(value)}: {error}") from None


def parse_report_to(value: object) -> str:
    """`sender`, `none`, or an address."""
    if value in ("sender", "none"):
        return str(value)
    wanted = "expected sender, none or a mail address"
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, found {describe(value)}")
    try:
        return parse_address(value)
    except AddressError as error:
        raise ValueError(f"{wanted}, found {describe(value)}: {error}") from None


def parse_pin(value: object) -> str:
    wanted = "expected a pin: the base64 of the SHA-256 of the public key, 44 characters"
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, found {describe(value)}")
    try:
        raw = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(wanted) from None
    if len(raw) != 32:
        raise ValueError(f"{wanted}; this one holds {len(raw)} bytes instead of 32")
    return value


def parse_reply_text(value: object) -> str:
    """RFC 5321 §4.2: textstring is printable ASCII; §4.5.3.1.5: a reply line has up to 512 octets."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected the text of the reply, found {describe(value)}")
    if not re.fullmatch(r"[ -~]{1,450}", value):
        raise ValueError("the text of a reply is one line of ASCII, up to 450 characters")
    return value


def only_true(value: object) -> bool:
    if value is not True:
        raise ValueError(f"expected true, found {describe(value)}; to do nothing, remove the key")
    return True


def parse_path(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"expected a path, found {describe(value)}")
    return value
