"""Certificates and their keys for a TLS context, and whether their files have changed since."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

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


def _path_of(file: Path | Reference) -> Path | None:
    if isinstance(file, Path):
        return file
    return Path(file.target) if file.kind == "file" else None
