"""A private key, as the rooms hand it about: it signs, and shows its public half alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

Algorithm = Literal["rsa-sha256", "ed25519-sha256"]


class SigningKey:
    """One private key. Equal to another one with the same public half.

    cryptography is loaded when it signs, so that who signs nothing does without its 8 MiB.
    """

    __slots__ = ("__weakref__", "_der", "_threads", "algorithm", "bits", "public")

    def __init__(self, der: bytes, algorithm: Algorithm, bits: int, public: str) -> None:
        """`der`: PKCS #8. `public`: what `p=` of its record holds, base64 (RFC 6376 §3.6.1, RFC 8463 §4)."""
        self._der, self._threads = der, threading.local()
        self.algorithm, self.bits, self.public = algorithm, bits, public

    def __repr__(self) -> str:
        return f"SigningKey({self.algorithm}, {self.bits} bits)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SigningKey) and other.public == self.public

    def __hash__(self) -> int:
        return hash(self.public)

    def __reduce__(self) -> str:
        raise TypeError("a private key is not copied out of the process")

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
        sign: Callable[[bytes], bytes] | None = getattr(self._threads, "sign", None)
        if sign is None:
            from relay.signing.keys import signer

            sign = self._threads.sign = signer(self._der)
        return sign(data)

    def pem(self) -> str:
        """The private key itself, PKCS #8: for the file that it is kept in."""
        from relay.signing.keys import pem_of

        return pem_of(self._der)
