"""TLS towards an upstream: contexts, and the check of a pinned key."""

from __future__ import annotations

import base64
import hashlib
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any

from relay.certificate import VERSIONS, Stamps, load_into, stamps
from relay.settings import Tls


class PinMismatch(Exception):
    """The certificate's key is none of the pinned ones."""


def context_for(tls: Tls, *, subject: bool = True) -> ssl.SSLContext:
    """The context of an account. Reads files: call it off the loop. Raises OSError, ssl.SSLError, SecretError.

    `subject`: a certificate without names (SAN) may be for the one in its subject. Kept until a file that it was made of
    changes: the system's store alone takes some 20 ms to load.
    """
    where = None if tls.ca else ssl.get_default_verify_paths().cafile  # by SSL_CERT_FILE, if it is set
    store = Path(where) if where else None
    return _context(tls, subject, store, stamps(tls.ca, tls.certificate, tls.key, store))


@lru_cache(maxsize=256)
def _context(tls: Tls, subject: bool, store: Path | None, changed: Stamps) -> ssl.SSLContext:
    """Opportunistic TLS verifies nothing: whoever could forge the certificate could as well remove STARTTLS."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(tls.ca) if tls.ca else None)
    context.minimum_version = VERSIONS[tls.minimum]
    context.hostname_checks_common_name = subject
    # A pin says which key it must be; then the chain that vouches for it adds nothing.
    if not tls.verify or tls.pin or tls.mode == "opportunistic":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.certificate:
        load_into(context, tls.certificate, tls.key)
    return context


def verifies(tls: Tls) -> bool:
    """Whether an encrypted session with these settings is one with the server that was meant."""
    return tls.mode in ("starttls", "implicit") and (tls.verify or bool(tls.pin))


def check_pin(certificate: bytes | None, pins: tuple[str, ...]) -> None:
    """`certificate` is DER. A pin is the SHA-256 of the public key (SPKI, RFC 7469 §2.4) in base64. Raises PinMismatch."""
    from cryptography import x509  # 8 MiB, for those alone who pin
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    if certificate is None:
        raise PinMismatch("the upstream showed no certificate")
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
        shown = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise PinMismatch("the upstream's certificate cannot be read") from None
    digest = hashlib.sha256(shown).digest()
    found = base64.b64encode(digest).decode()
    if found not in pins:
        raise PinMismatch(f"the upstream's key is {found}, which is not pinned")


def peer_chain(session: Any) -> list[bytes]:
    """What the peer showed, DER, the leaf first, whether it was verified or not; empty: nothing.

    `session`: an `ssl.SSLObject` or SSLSocket after its handshake, such as asyncio's and uvloop's transports have as `ssl_object`.
    """
    shown = getattr(session, "get_unverified_chain", None)  # Python 3.13
    if shown is not None:
        return list(shown())
    # Before it the method is there, but on the object within alone, and gives certificates instead of their octets.
    found = session._sslobj.get_unverified_chain() or ()
    return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in found]
