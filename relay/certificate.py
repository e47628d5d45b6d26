"""Certificates and their keys for a TLS context, and whether their files have changed since."""

from __future__ import annotations

import base64
import os
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Any

from relay.secrets import Reference

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
Stamps = tuple[tuple[int, int], ...]


def load_into(context: ssl.SSLContext, certificate: Path, key: Reference | None) -> None:
    """OpenSSL wants its key in a file; one that is a secret is shown to it in memory only.

    Reads files: call it off the loop. Raises OSError, ssl.SSLError, SecretError.
    """
    if key is None:
        context.load_cert_chain(str(certificate), password=_no_passphrase)
        return
    memory = os.memfd_create("key", os.MFD_CLOEXEC)
    try:
        os.write(memory, key.resolve().encode())
        context.load_cert_chain(str(certificate), keyfile=f"/proc/self/fd/{memory}", password=_no_passphrase)
    finally:
        os.close(memory)


def _no_passphrase() -> str:
    """Without this OpenSSL asks on the terminal, and waits."""
    raise ValueError("the key has a passphrase; `openssl pkey` writes it without one")


def complaint(error: Exception) -> str:
    """What is wrong with a certificate that could not be loaded, without OpenSSL's own shorthand."""
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not the one of this certificate; the two are issued together"
    if isinstance(error, ssl.SSLError):
        detail = f" ({error.reason.replace('_', ' ').lower()})" if error.reason else ""
        return f"no certificate and its key were found, in PEM{detail}"
    return getattr(error, "strerror", "") or str(error)


def stamps(*files: Path | Reference | None) -> Stamps:
    """Modification time and size of each that is a file, to be compared later. Raises OSError."""
    paths = [path for file in files if file is not None and (path := _path_of(file))]
    return tuple((status.st_mtime_ns, status.st_size) for status in (path.stat() for path in paths))


def trusted(ca: Path | None = None) -> ssl.SSLContext:
    """For a client: trusts whom the system trusts, and `ca` (PEM). Kept until the files change.

    Names count as DNS-IDs alone (RFC 9525 §6.3). Reads files: call it off the loop. Raises OSError; an SSLError is one.
    """
    where = ssl.get_default_verify_paths()  # by SSL_CERT_FILE and SSL_CERT_DIR, if they are set
    paths = tuple(Path(path) for path in (where.cafile, where.capath) if path)
    return _trusting(ca, stamps(*paths, ca))


@lru_cache(maxsize=16)
def _trusting(ca: Path | None, changed: Stamps) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.hostname_checks_common_name = False
    if ca is not None:
        context.load_verify_locations(ca)
    return context


def _path_of(file: Path | Reference) -> Path | None:
    if isinstance(file, Path):
        return file
    return Path(file.target) if file.kind == "file" else None


def ec_public_key(text: str) -> Any:
    """Of base64 (DER) or PEM, for the curve P-256. Raises ValueError in words."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key

    try:
        if "BEGIN" in text:
            found: object = load_pem_public_key(text.encode())
        else:
            found = load_der_public_key(base64.b64decode("".join(text.split()), validate=True))
    except (ValueError, TypeError):
        raise ValueError("no public key, in base64 or PEM, was found") from None
    if not isinstance(found, ec.EllipticCurvePublicKey) or not isinstance(found.curve, ec.SECP256R1):
        raise ValueError("a key of another kind: an ECDSA key of the curve P-256 is wanted")
    return found
