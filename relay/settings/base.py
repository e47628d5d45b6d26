"""Addresses, TLS and tokens: what several sections mean the same by."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from relay.secrets import Reference

TlsMode = Literal["none", "opportunistic", "starttls", "implicit"]


def is_loopback(host: Reference) -> bool:
    """Whether a host is certainly this machine. A reference may name anything."""
    if host.kind != "plain":
        return False
    try:
        return ipaddress.ip_address(host.target).is_loopback
    except ValueError:
        return host.target.rstrip(".").lower() == "localhost"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: an IP address and a TCP port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Activated:
    """A socket that systemd hands us, by its FileDescriptorName (systemd.socket(5))."""

    descriptor: str

    def __str__(self) -> str:
        return f"systemd:{self.descriptor}"


@dataclass(frozen=True, slots=True)
class ServerTls:
    """What a listener shows to its clients."""

    mode: Literal["starttls", "implicit"]
    certificate: Path  # PEM, the whole chain
    key: Reference | None = None  # if it is not in the same file
    minimum: Literal["1.2", "1.3"] = "1.2"


@dataclass(frozen=True, slots=True)
class Tls:
    mode: TlsMode = "starttls"
    verify: bool = True
    ca: Path | None = None
    pin: tuple[str, ...] = ()  # SHA-256 of the certificate's public key (SPKI), base64; any of them
    certificate: Path | None = None  # client certificate, PEM
    key: Reference | None = None
    minimum: Literal["1.2", "1.3"] = "1.2"


@dataclass(frozen=True, slots=True)
class OAuth2:
    """Where the token comes from that an account logs in with, instead of a password (RFC 6749)."""

    grant: Literal["refresh_token", "client_credentials", "service_account"]
    token_url: str
    scope: str = ""
    client_id: Reference | None = None
    client_secret: Reference | None = None
    refresh_token: Reference | None = None
    key: Reference | None = None  # of a service account: Google's JSON
    device_url: str = ""  # for `relay oauth login` (RFC 8628)
    authorize_url: str = ""  # as well, where there is no `device_url`
    mechanism: Literal["", "xoauth2", "oauthbearer"] = ""  # none: what the server offers
    ca: Path | None = None  # of the token endpoint; None: the system's
    expires: float | None = None  # when the client secret ends, epoch seconds
