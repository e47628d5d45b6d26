"""Certificates: for listeners, and good and bad ones for servers that mail is delivered to, with their TLSA records."""

from __future__ import annotations

import hashlib
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from relay.secrets import Reference
from relay.settings import ServerTls


class Authority:
    """A CA, the files that a listener is configured with, and contexts of clients that trust it."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.folder = trustme.CA(), folder
        self.certificate, self.key = folder / "listener.pem", folder / "listener.key"
        self.issue()

    def issue(self, days: int = 30) -> None:
        """New files under the old names, as a renewal makes them."""
        leaf = self.ca.issue_cert("127.0.0.1", "relay.test", not_after=datetime.now(UTC) + timedelta(days=days))
        self.certificate.write_bytes(b"".join(p.bytes() for p in leaf.cert_chain_pems))
        self.key.write_bytes(leaf.private_key_pem.bytes())
        self.key.chmod(0o600)

    def tls(
        self, mode: Literal["starttls", "implicit"] = "starttls", minimum: Literal["1.2", "1.3"] = "1.2"
    ) -> ServerTls:
        return ServerTls(mode, self.certificate, Reference("file", str(self.key)), minimum)

    def client(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def tlsa(certificate: bytes, usage: int = 3, selector: int = 1, matching: int = 1) -> str:
    """What follows TLSA in a zone file (RFC 6698 §2.1), for a certificate as DER: `3 1 1 8bf3…`."""
    if selector:
        key = x509.load_der_x509_certificate(certificate).public_key()
        certificate = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    digest = (bytes, lambda data: hashlib.sha256(data).digest(), lambda data: hashlib.sha512(data).digest())[matching]
    return f"{usage} {selector} {matching} {digest(certificate).hex()}"


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


@dataclass(frozen=True)
class Identity:
    """What a server shows: PEM files. `chain`: as DER, its own certificate first, as far up as it has been issued."""

    file: Path  # what it sends
    key: Path
    chain: tuple[bytes, ...]

    @property
    def context(self) -> ssl.SSLContext:
        """A new one."""
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.file, self.key)
        return made

    @property
    def tls(self) -> ServerTls:
        """For a listener of ours, and for a sink."""
        return ServerTls("starttls", self.file, Reference("file", str(self.key)))

    def tlsa(self, usage: int = 3, selector: int = 1, matching: int = 1, at: int = 0) -> str:
        """`at`: of which one in the chain; -1 is the topmost."""
        return tlsa(self.chain[at], usage, selector, matching)


class Certs:
    """Makes identities. `ca` is the one that is trusted: `bundle` is its certificate, for `ca:` and SSL_CERT_FILE."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.ca, self.stranger = folder, trustme.CA(), trustme.CA()
        self.bundle = folder / "ca.pem"
        self.bundle.write_bytes(self.ca.cert_pem.bytes())
        self._count = 0

    def right(self, *names: str, root: bool = False) -> Identity:
        """`root`: the CA's certificate is sent as well, as RFC 7672 §3.1.2 asks of those who publish it (2 x x)."""
        return self._issued([self.ca], names, root)

    def chained(self, *names: str, root: bool = False) -> Identity:
        """By an intermediate CA, whose certificate is sent too."""
        return self._issued([self.ca.create_child_ca(), self.ca], names, root)

    def expired(self, *names: str, root: bool = False) -> Identity:
        return self._issued([self.ca], names, root, datetime.now(UTC) - timedelta(days=1))

    def untrusted(self, *names: str, root: bool = False) -> Identity:
        """By a CA that nobody knows."""
        return self._issued([self.stranger], names, root)

    def self_signed(self, name: str) -> Identity:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        return self._built(_subject(name), name, key, key, names)

    def nameless(self, name: str) -> Identity:
        """For a name that stands in its subject alone."""
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes()).subject
        signer = load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        return self._built(issuer, name, key, signer, authority)

    def _built(
        self,
        issuer: x509.Name,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
        extension: x509.ExtensionType,
    ) -> Identity:
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder(issuer, _subject(name), key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(extension, critical=False)
            .sign(signer, SHA256())
        )
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return self._written(made.public_bytes(Encoding.PEM), private, (made.public_bytes(Encoding.DER),))

    def _issued(
        self, issuers: list[trustme.CA], names: tuple[str, ...], root: bool = False, ends: datetime | None = None
    ) -> Identity:
        begins = ends - timedelta(days=30) if ends else None
        leaf = issuers[0].issue_cert(*names, not_before=begins, not_after=ends)
        pems = [leaf.cert_chain_pems[0].bytes(), *(issuer.cert_pem.bytes() for issuer in issuers)]
        chain = tuple(ssl.PEM_cert_to_DER_cert(pem.decode()) for pem in pems)
        return self._written(b"".join(pems if root else pems[:-1]), leaf.private_key_pem.bytes(), chain)

    def _written(self, pem: bytes, private: bytes, chain: tuple[bytes, ...]) -> Identity:
        self._count += 1
        file, key = self.folder / f"{self._count}.pem", self.folder / f"{self._count}.key"
        file.write_bytes(pem)
        key.touch(0o600)
        key.write_bytes(private)
        return Identity(file, key, chain)


@pytest.fixture(scope="session")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return Certs(tmp_path_factory.mktemp("certs") / "certs")
