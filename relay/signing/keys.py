"""Private keys are read here, once, and made. What signs is cryptography."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from typing import Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa

from relay.secrets import Reference, SecretError
from relay.signing.key import SigningKey

_Private = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
SMALLEST = 1024  # bits; RFC 8301 §3.2: verifiers take no less
USUAL = 2048
_PUBLIC = re.compile(rb"-----BEGIN [A-Z0-9 ]*PUBLIC KEY-----|ssh-(?:rsa|ed25519) ")
_PADDING, _SHA256 = padding.PKCS1v15(), hashes.SHA256()


class KeyProblem(Exception):
    """Why a text is no key that can sign; says nothing of the text itself."""


def _made(private: _Private) -> SigningKey:
    der = private.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    if isinstance(private, rsa.RSAPrivateKey):
        public = private.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return SigningKey(der, "rsa-sha256", private.key_size, base64.b64encode(public).decode())
    raw = private.public_key().public_bytes_raw()
    return SigningKey(der, "ed25519-sha256", 256, base64.b64encode(raw).decode())


def _load(der: bytes) -> _Private:
    private = serialization.load_der_private_key(der, None)
    assert isinstance(private, rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    return private


def signer(der: bytes) -> Callable[[bytes], bytes]:
    """Signs by a key object of its own."""
    private = _load(der)
    if isinstance(private, rsa.RSAPrivateKey):
        rsa_key = private
        return lambda data: rsa_key.sign(data, _PADDING, _SHA256)
    ed25519_key = private
    return lambda data: ed25519_key.sign(hashlib.sha256(data).digest())  # RFC 8463 §3


def pem_of(der: bytes) -> str:
    """PKCS #8, for a file."""
    private = _load(der)
    return private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


def generate(kind: Literal["rsa", "ed25519"], bits: int = USUAL) -> SigningKey:
    """A new one."""
    if kind == "ed25519":
        return _made(ed25519.Ed25519PrivateKey.generate())
    return _made(rsa.generate_private_key(public_exponent=65537, key_size=bits))


def parse(text: str) -> SigningKey:
    """PEM (PKCS #1 or #8, as openssl and opendkim-genkey write it), or the base64 of an Ed25519 seed, as dkimpy's tools
    write it. Raises KeyProblem."""
    raw = text.strip().encode("ascii", "replace")
    if _PUBLIC.match(raw):
        raise KeyProblem("this is a public key; the private one is wanted")
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
    return _made(private)


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
