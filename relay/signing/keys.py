"""Private keys: read once, one object of cryptography's a thread, and the DNS record that belongs to each."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import threading
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from relay.secrets import Reference, SecretError

Algorithm = Literal["rsa-sha256", "ed25519-sha256"]
_Private = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
SMALLEST = 1024  # bits; RFC 8301 §3.2: verifiers take no less
USUAL = 2048
_PADDING, _SHA256 = padding.PKCS1v15(), hashes.SHA256()


class KeyProblem(Exception):
    """Why a text is no key that can sign; says nothing of the text itself."""


class SigningKey:
    """One private key. Equal to another one with the same public half; shows that half alone."""

    __slots__ = ("__weakref__", "_der", "_threads", "algorithm", "bits", "public")

    def __init__(self, private: _Private) -> None:
        """`public`: what `p=` of its record holds, base64 (RFC 6376 §3.6.1, RFC 8463 §4)."""
        self._der = private.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._threads = threading.local()
        if isinstance(private, rsa.RSAPrivateKey):
            self.algorithm: Algorithm = "rsa-sha256"
            self.bits = private.key_size
            raw = private.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        else:
            self.algorithm, self.bits = "ed25519-sha256", 256
            raw = private.public_key().public_bytes_raw()
        self.public = base64.b64encode(raw).decode()

    def __repr__(self) -> str:
        return f"SigningKey({self.algorithm}, {self.bits} bits)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigningKey) and other.public == self.public

    def __hash__(self) -> int:
        return hash(self.public)

    @property
    def kind(self) -> str:
        """What `k=` of its record says."""
        return self.algorithm.partition("-")[0]

    @property
    def record(self) -> str:
        """The TXT record to publish at SELECTOR._domainkey.DOMAIN."""
        return f"v=DKIM1; k={self.kind}; p={self.public}"

    def sign(self, data: bytes) -> bytes:
        """The signature over the SHA-256 of `data`. Takes half a millisecond for RSA, in which other threads run.

        Each thread has an object of its own: threads that share one wait for one another.
        """
        private: _Private | None = getattr(self._threads, "private", None)
        if private is None:
            private = self._threads.private = _load(self._der)
        if isinstance(private, rsa.RSAPrivateKey):
            return private.sign(data, _PADDING, _SHA256)
        return private.sign(hashlib.sha256(data).digest())  # RFC 8463 §3

    def pem(self) -> str:
        """The private key itself, PKCS #8: for the file that it is kept in."""
        return str(
            _load(self._der)
            .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            .decode()
        )


def _load(der: bytes) -> _Private:
    private = serialization.load_der_private_key(der, None)
    assert isinstance(private, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    return private


def generate(kind: Literal["rsa", "ed25519"], bits: int = USUAL) -> SigningKey:
    """A new one."""
    if kind == "ed25519":
        return SigningKey(ed25519.Ed25519PrivateKey.generate())
    return SigningKey(rsa.generate_private_key(public_exponent=65537, key_size=bits))


def parse(text: str) -> SigningKey:
    """PEM (PKCS #1 or #8, as openssl and opendkim-genkey write it), or the base64 of an Ed25519 seed, as dkimpy's tools
    write it. Raises KeyProblem."""
    raw = text.strip().encode("ascii", "replace")
    try:
        private = serialization.load_pem_private_key(raw, None) if raw.startswith(b"-----") else _seed(raw)
    except TypeError:
        raise KeyProblem("it is encrypted; write it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        hint = "it begins with -----BEGIN PRIVATE KEY-----" if not raw.startswith(b"-----") else "it is damaged"
        raise KeyProblem(f"no private key in PEM: {hint}; `relay dkim keygen` makes one") from None
    if not isinstance(private, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise KeyProblem("neither an RSA nor an Ed25519 key; DKIM has no other")
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size < SMALLEST:
        raise KeyProblem(f"an RSA key of {private.key_size} bits; receivers take none below {SMALLEST} (RFC 8301)")
    return SigningKey(private)


def _seed(raw: bytes) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(base64.b64decode(raw, validate=True))


def read(reference: Reference) -> SigningKey:
    """The key that a reference names. Raises KeyProblem. Blocks."""
    try:
        return parse(reference.resolve())
    except SecretError as error:
        raise KeyProblem(str(error)) from None
    except KeyProblem as problem:
        raise KeyProblem(f"{reference}: {problem}") from None


def exposed(reference: Reference) -> tuple[str, bool]:
    """(why others may read the key's file, can it be mended): ("", True) where they may not.

    A group may: the service's, or that of a mounted secret. On a read-only mount nobody can change the mode.
    """
    path = reference.path()
    if path is None:
        return "", True
    try:
        mode = path.stat().st_mode
        fixed = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return "", True  # reading it says why
    if not mode & stat.S_IROTH:
        return "", True
    return f"everybody on this machine may read {path}", not fixed
