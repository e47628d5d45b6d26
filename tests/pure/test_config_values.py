"""The values that users write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from relay.config import values
from relay.settings import Address


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("25s", 25.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("7d", 604800.0),
        ("1w", 604800.0),
        ("500ms", 0.5),
        ("1.5 h", 5400.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert values.parse_duration(text) == seconds
    assert values.parse_duration(values.print_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"), [("100B", 100), ("25MB", 25_000_000), ("256KiB", 262_144), ("1GB", 10**9), ("1.5MiB", 1_572_864)]
)
def test_sizes(text: str, size: int) -> None:
    assert values.parse_size(text) == size
    assert values.parse_size(values.print_size(size)) == size


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:25", Address("127.0.0.1", 25)),
        ("[::1]:0", Address("::1", 0)),
        ("[0:0::1]:1", Address("::1", 1)),
        ("localhost:65535", Address("127.0.0.1", 65535)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert values.parse_address_and_port(text) == address


@pytest.mark.parametrize(
    ("parse", "bad"),
    [
        (values.parse_duration, ["5", "m", "5 parsecs", "-5m", "5M", "1h30m", "٥m", 5, 5.0, True, None, [], ""]),
        (values.parse_size, ["5", "5mb", "-5MB", "5m", 5, 0.5, False, None, {}]),
        (
            values.parse_address_and_port,
            ["1.2.3.4", "1.2.3.4:", ":25", "1.2.3.4:65536", "[1.2.3.4]:1", "::1:1", 25, None],
        ),
        (values.parse_name, ["", "-a", "a b", "a" * 65, "ä", "a\n"]),
        (values.parse_hostname, ["", "a b", "a..b", "-a", "[x]", "a" * 300]),
        (values.parse_upstream, ["", "a:25", "a b", "smtp://a", "u@a", "a\n"]),
        (values.parse_network, ["10.0.0.1/8", "10.0.0.0/33", "x", 5]),
        (values.parse_size_bound, ["10MB", "=10MB", ">10", ">", "> ", 5, None]),
        (values.parse_header_name, ["", "A:", "A B", "X-*", "ä"]),
        (values.parse_recipient, ["a", "@b", "a@b c", 5, None, "a@b\n"]),
        (values.parse_pin, ["x", "eA==", 5]),
        (values.parse_reply_text, ["", " ", "a\nb", "ä", "x" * 500, 5, None]),
        (values.parse_pattern, [5, None, True, "a\nb"]),
        (values.only_true, [False, 1, "true", None]),
    ],
)
def test_refused(parse: Callable[[Any], object], bad: list[Any]) -> None:
    for value in bad:
        with pytest.raises(ValueError) as caught:
            parse(value)
        assert "\n" not in str(caught.value)
