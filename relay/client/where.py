"""Where the relay is and who we are to it: from arguments, else from RELAY_URL, RELAY_TOKEN and RELAY_ALLOW_HTTP.

A token is a password: over http it goes to this machine alone, unless somebody says that the network may read it (RFC 6750 §5.2).
"""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

DEFAULT = "http://127.0.0.1:2580"
_TOKEN = re.compile(r"[!-~]{1,500}")


@dataclass(frozen=True)
class Where:
    """Exactly one of `socket` and `host`."""

    socket: str = ""  # the path of a UNIX socket
    host: str = ""
    port: int = 0
    prefix: str = ""  # of the path, where a proxy in between puts one; without a slash at its end
    tls: bool = False
    ca: str = ""  # a file of certificates to trust instead of the system's
    token: str = field(default="", repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix:{self.socket}" if self.socket else f"http{'s' * self.tls}://{host}:{self.port}{self.prefix}"

    def context(self) -> ssl.SSLContext | None:
        """Raises OSError where `ca` cannot be read."""
        return ssl.create_default_context(cafile=self.ca or None) if self.tls else None


def where(
    url: str | None,
    token: str | None,
    ca: str | None,
    env: Mapping[str, str] = os.environ,
    *,
    allow_http: bool | None = None,
) -> Where:
    """Raises ValueError."""
    url, ca = url or env.get("RELAY_URL") or DEFAULT, ca or env.get("RELAY_CA") or ""
    token = (env.get("RELAY_TOKEN") or "") if token is None else token
    if token and not _TOKEN.fullmatch(token):
        raise ValueError(
            "the token has blanks or other strange characters: it is one word, as `relay token add` shows it"
        )
    if url.startswith("unix:"):
        path = "/" + url.removeprefix("unix:").lstrip("/") if url.startswith("unix:/") else ""
        if not path.strip("/"):
            raise ValueError(f"{url!r} wants the absolute path of a socket, such as unix:/run/relay/admin.sock")
        return Where(socket=path, token=token)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None or parts.query:
        raise ValueError(f"{_shown(url)!r} is no address of a relay; such are {DEFAULT} and unix:/run/relay/admin.sock")
    tls = parts.scheme == "https"
    if allow_http is None:
        allow_http = _switch(env, "RELAY_ALLOW_HTTP")
    if token and not tls and not allow_http and not _is_loopback(parts.hostname):
        raise ValueError(
            f"a token would go to {parts.hostname} in the clear, by http: use https (the relay's `admin.tls`), or on its own "
            "machine the socket (unix:/run/relay/admin.sock); where nobody else reads the network, RELAY_ALLOW_HTTP=1 allows it"
        )
    port = parts.port or (443 if tls else 80)
    return Where("", parts.hostname, port, parts.path.rstrip("/"), tls, ca, token)


def _switch(env: Mapping[str, str], name: str) -> bool:
    """Raises ValueError: what is misread must not turn a protection off, nor keep it on without a word."""
    said = env.get(name, "").strip().lower()
    if said in ("1", "true", "yes", "on"):
        return True
    if said in ("", "0", "false", "no", "off"):
        return False
    raise ValueError(f"{name} is 1 or 0, not {said[:20]!r}")


def _is_loopback(host: str) -> bool:
    """A name is not looked up: who answers for it could say anything. `localhost` and what ends in it is (RFC 6761 §6.3)."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _shown(url: str) -> str:
    """Without a password that somebody may have written into it."""
    return re.sub(r"//[^/@]*@", "//…@", url)
