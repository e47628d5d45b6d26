"""Which addresses mail, and a policy's fetch, may be dialled at: in whatever clothes a stranger's DNS dresses one of ours."""

from __future__ import annotations

import pytest

from relay.policy.networks import is_public

PRIVATE = [
    *("0.0.0.0", "0.0.0.1", "10.0.0.1", "100.64.1.1", "127.0.0.1", "169.254.169.254", "172.31.0.1", "192.168.0.1"),
    *("192.0.0.1", "192.0.0.8", "192.0.0.9", "192.0.0.171", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.51.100.1"),
    *("203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255"),
    *("::", "::1", "::7f00:1", "::a00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:0:127.0.0.1"),
    *(
        "64:ff9b::127.0.0.1",
        "64:ff9b::a00:1",
        "64:ff9b:1::7f00:1",
        "2002:7f00:1::",
        "2002:c0a8:1::",
        "2001:0:7f00:1::1",
    ),
    *("2001:4860::5efe:7f00:1", "2001:4860::200:5efe:a00:1", "2001:4860::5efe:192.168.0.1"),
    *("100::1", "2001::1", "2001:2::1", "2001:10::1", "2001:db8::1", "3fff::1", "4000::1", "5f00::1", "8000::1"),
    *("fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1"),
    *("", "localhost", "127.1", "0x7f000001", "2130706433", "1.2.3.4.5"),
]
PUBLIC = [
    *("8.8.8.8", "100.63.0.1", "142.250.27.26", "192.0.1.1", "192.88.98.1", "198.17.0.1"),
    *("::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:4860::5efe:8.8.8.8"),
    *("2001:4860:4864::1", "2a00:1450:4025:401::1a", "2606:4700::1111", "2620:4f:8000::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_is_public(address: str) -> None:
    assert is_public(address)
