"""Whether a name with a wildcard means a host. Pure. Certificates and MTA-STS policies have one rule (RFC 8461 §4.1)."""

from __future__ import annotations


def means(pattern: str, host: str) -> bool:
    """`*.` stands for exactly one label, the leftmost (RFC 6125 §6.4.3, RFC 7672 §3.2.2). Both are ASCII; case counts nothing,
    nor a dot at the end."""
    pattern, host = pattern.lower().removesuffix("."), host.lower().removesuffix(".")
    if pattern.startswith("*."):
        label, dot, rest = host.partition(".")
        return bool(label) and bool(dot) and rest == pattern[2:] and "*" not in rest
    return bool(host) and pattern == host
