"""Client addresses, and the networks that rules name."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.listener.proxy import BadProxy, parse_v1, parse_v2
from relay.policy.networks import client_key, in_networks, is_loopback

MAPPED = str(ip_address("::ffff:c000:201"))  # from Python 3.13 on the last four octets have dots


@pytest.mark.parametrize(
    ("client", "networks", "expected"),
    [
        ("10.1.2.3", ("10.0.0.0/8",), True),
        ("11.1.2.3", ("10.0.0.0/8",), False),
        ("::ffff:10.1.2.3", ("10.0.0.0/8",), True),
        ("::ffff:11.1.2.3", ("10.0.0.0/8",), False),
        ("10.1.2.3", ("::/0",), False),
        ("2001:db8::5", ("2001:db8::/32",), True),
        ("2001:db8::5", ("0.0.0.0/0",), False),
        ("fe80::1%eth0", ("fe80::/10",), True),
        ("10.1.2.3", ("192.0.2.0/24", "10.1.2.3"), True),
        ("", ("0.0.0.0/0", "::/0"), False),
        ("nonsense", ("0.0.0.0/0", "::/0"), False),
        ("10.1.2.3", (), False),
    ],
)
def test_in_networks(client: str, networks: tuple[str, ...], expected: bool) -> None:
    assert in_networks(client, networks) is expected


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("127.0.0.1", True), ("127.255.255.254", True), ("::1", True), ("::ffff:127.0.0.1", True), ("", True),
        ("128.0.0.1", False), ("10.0.0.1", False), ("::2", False), ("::ffff:10.0.0.1", False), ("nonsense", False),
        ("0.0.0.0", False), ("::", False),
    ],
)  # fmt: skip
def test_loopback(client: str, expected: bool) -> None:
    assert is_loopback(client) is expected


def test_what_counts_as_one_client() -> None:
    assert client_key("192.0.2.1") == client_key("::ffff:192.0.2.1") != client_key("192.0.2.2")
    assert client_key("2001:db8:1:2::1") == client_key("2001:db8:1:2:ffff::9") != client_key("2001:db8:1:3::1")
    assert client_key("fe80::1%eth0") == client_key("fe80::1")
    assert client_key("") == ""


# -- the PROXY header


@pytest.mark.parametrize(
    ("line", "client"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 25\r\n", "192.0.2.1"),
        (b"PROXY TCP6 2001:db8::1 2001:db8::2 5000 25\r\n", "2001:db8::1"),
        (b"PROXY UNKNOWN\r\n", ""),
        (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", ""),
    ],
)
def test_v1(line: bytes, client: str) -> None:
    assert parse_v1(line) == client


@pytest.mark.parametrize(
    "line",
    [
        b"PROXY TCP4 192.0.2.1 198.51.100.1 5000 25\n",
        b"PROXY TCP4 2001:db8::1 2001:db8::2 5000 25\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.1 5000 25\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.1 5000\r\n",
        b"PROXY TCP4 192.0.2.1  198.51.100.1 5000 25\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.1 5000 25\r\n",
        b"PROXY TCP5 192.0.2.1 198.51.100.1 5000 25\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.1 5000 25\r\n",
        b"PROXY UNKNOWNISH\r\n",
        b"proxy TCP4 192.0.2.1 198.51.100.1 5000 25\r\n",
        b"PROXY TCP4 \xd9\xa1.0.2.1 198.51.100.1 5000 25\r\n",
        b"PROXY TCP6 fe80::1%eth0 2001:db8::2 5000 25\r\n",
        b"PROXY TCP6 fe80::1%\rBcc:x 2001:db8::2 5000 25\r\n",
        b"PROXY TCP6 fe80::1%\x1b[31m 2001:db8::2 5000 25\r\n",
    ],
)
def test_bad_v1(line: bytes) -> None:
    with pytest.raises(BadProxy):
        parse_v1(line)


IPV4 = bytes([192, 0, 2, 1, 198, 51, 100, 1, 0x13, 0x88, 0, 25])


@pytest.mark.parametrize(
    ("fixed", "body", "client"),
    [
        (b"\x21\x11", IPV4, "192.0.2.1"),
        (b"\x21\x11", IPV4 + b"\x04\x00\x03abc", "192.0.2.1"),  # a TLV
        (b"\x21\x21", b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01" + bytes(16) + b"\0\1\0\2", "2001:db8::1"),
        (b"\x21\x21", bytes(10) + b"\xff\xff\xc0\x00\x02\x01" + bytes(16) + b"\0\1\0\2", MAPPED),
        (b"\x20\x11", IPV4, ""),
        (b"\x20\x00", b"", ""),
        (b"\x21\x00", b"", ""),
    ],
)
def test_v2(fixed: bytes, body: bytes, client: str) -> None:
    assert parse_v2(fixed + len(body).to_bytes(2), body) == client


@pytest.mark.parametrize(
    ("fixed", "body"),
    [(b"\x11\x11", IPV4), (b"\x31\x11", IPV4), (b"\x22\x11", IPV4), (b"\x21\x11", IPV4[:-1]), (b"\x21\x21", IPV4)],
)
def test_bad_v2(fixed: bytes, body: bytes) -> None:
    with pytest.raises(BadProxy):
        parse_v2(fixed + len(body).to_bytes(2), body)


@given(st.binary(max_size=120))
def test_whatever_comes_is_an_address_or_refused(data: bytes) -> None:
    for parse in (lambda: parse_v1(b"PROXY TCP6 " + data + b"\r\n"), lambda: parse_v2(b"\x21\x21" + data[:2], data)):
        try:
            found = parse()
        except BadProxy:
            continue
        assert found.isascii() and found.isprintable() and "%" not in found
