"""What a server showed in its TLS handshake, where nothing was verified: DANE needs all of it."""

from __future__ import annotations

import asyncio
import ssl

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from relay.deliver.tls import peer_chain

BOTH_LOOPS = True


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("with_root", [True, False])
async def test_the_whole_chain(version: ssl.TLSVersion, with_root: bool) -> None:
    root = trustme.CA()
    middle = root.create_child_ca()
    leaf = middle.issue_cert("mx.example.org")
    shown = [*leaf.cert_chain_pems, *([root.cert_pem] if with_root else [])]
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with trustme.Blob(leaf.private_key_pem.bytes() + b"".join(p.bytes() for p in shown)).tempfile() as file:
        served.load_cert_chain(file)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode, context.maximum_version = False, ssl.CERT_NONE, version
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=served)
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        session = writer.get_extra_info("ssl_object")
        assert session.version() == version.name.replace("_", ".")
        chain = peer_chain(session)
        writer.transport.abort()
    assert chain == [load_pem_x509_certificate(p.bytes()).public_bytes(Encoding.DER) for p in shown]


def test_nothing_was_shown() -> None:
    context = ssl.create_default_context()
    assert peer_chain(context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="mx.example.org")) == []
