"""The values that users write about mail that leaves: domains, selectors, times, addresses, texts. See values.py. Pure."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime

from relay.config.values import CONTROL, HOSTNAME, describe, parse_address_and_port, parse_pattern, parse_recipient
from relay.envelope import ascii_domain


def parse_domain(value: object) -> str:
    """A mail domain, in lower case, as DNS has it (IDNA)."""
    if not isinstance(value, str):
        raise ValueError(f"expected a domain such as example.com, found {describe(value)}")
    domain = ascii_domain(value.removesuffix("."))
    if not domain or len(domain) > 253 or not HOSTNAME.fullmatch(domain):
        raise ValueError(f"expected a domain such as example.com, found {describe(value)}")
    return domain


def parse_signing_domain(value: object) -> str:
    """A domain, `*.example.com` or `*`."""
    if value == "*":
        return "*"
    if isinstance(value, str) and value.startswith("*."):
        return "*." + parse_domain(value[2:])
    if isinstance(value, str) and "*" in value:
        raise ValueError(f"expected example.com, *.example.com or *, found {describe(value)}")
    return parse_domain(value)


def parse_selector(value: object) -> str:
    """RFC 6376 §3.1: labels of a domain name; it becomes one before ._domainkey."""
    whole = isinstance(value, str) and "._domainkey" in value.lower()
    if not isinstance(value, str) or whole or len(value) > 120 or not HOSTNAME.fullmatch(value) or value[-1] == ".":
        rule = "only what stands before ._domainkey" if whole else "letters, digits, '-' and dots"
        raise ValueError(f"expected a selector such as s2026, found {describe(value)}; {rule}")
    return value.lower()


def parse_instant(value: object) -> float:
    """`2026-12-01`, midnight UTC, or RFC 3339 with a zone -> epoch seconds."""
    wanted = "expected a date such as 2026-12-01, or 2026-12-01T08:00:00+01:00"
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, found {describe(value)}")
    try:
        when = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(f"{wanted}, found {describe(value)}") from None
    if when.tzinfo is None:
        if len(value) > len("2026-12-01"):
            raise ValueError(f"{wanted}, found {describe(value)}; say the zone, such as Z")
        when = when.replace(tzinfo=UTC)
    return when.timestamp()


def parse_rewritten(value: object) -> str:
    """What an address becomes: another one, or `*@domain`, which keeps what stands before the @."""
    if isinstance(value, str) and value.startswith("*@"):
        return "*@" + parse_domain(value[2:])
    if isinstance(value, str) and "<" in value:
        raise ValueError(f"expected the address alone, found {describe(value)}; a name before it stays as it came")
    return parse_recipient(value)


def parse_reverse_path(value: object) -> str:
    if isinstance(value, str) and value.lower() == "verp" != value:
        raise ValueError(f"did you mean 'verp'? found {describe(value)}")
    return "verp" if value == "verp" else parse_rewritten(value)


def parse_template(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected a text, found {describe(value)}")
    if CONTROL.search(value):
        raise ValueError("a text for a header field is one line, without control characters")
    return value


def parse_server(value: object) -> str:
    """A DNS server: an IP address, or one with a port."""
    try:
        return str(ipaddress.ip_address(value))  # type: ignore[arg-type]
    except ValueError:
        pass
    try:
        address = parse_address_and_port(value)
    except ValueError:
        wanted = "expected an IP address such as 127.0.0.1, with a port where it is not 53 (127.0.0.1:5353)"
        raise ValueError(f"{wanted}, found {describe(value)}") from None
    if not address.port:
        raise ValueError("port 0 is none to ask at; without a port it is 53")
    return str(address)


def parse_source_address(value: object) -> str:
    """An IP address of this machine, which mail leaves from."""
    wanted = "expected an IP address such as 203.0.113.5"
    if not isinstance(value, str):
        raise ValueError(f"{wanted}, found {describe(value)}")
    try:
        ip = ipaddress.ip_address(value)
    except ValueError:
        what = "; a network is none" if "/" in value else ""
        raise ValueError(f"{wanted}, found {describe(value)}{what}") from None
    if ip.is_unspecified:
        raise ValueError(f"{value} is no address; remove `source`, and the kernel chooses one")
    if ip.is_multicast or (ip.version == 6 and (ip.is_link_local or ip.scope_id or ip.ipv4_mapped)):
        raise ValueError(f"{wanted}, found {describe(value)}; nobody could reach that one")
    return str(ip)


def parse_hop_pattern(value: object) -> str:
    """A glob on host names as the DNS has them: ASCII, without a dot at the end."""
    pattern = parse_pattern(value).removesuffix(".")
    if not pattern or "@" in pattern or not pattern.isascii():
        raise ValueError(
            f"expected a host or pattern such as *.google.com, found {describe(value)}; in DNS form (xn--…)"
        )
    return pattern
