"""Certificates for listeners."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest
import trustme

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
