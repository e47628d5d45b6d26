"""Where the relay is, and where a token may go."""

from __future__ import annotations

import pytest

from relay.client import AsyncRelay, Relay
from relay.client.where import where
from relay.outbox import Submitter


def test_where_the_relay_is() -> None:
    assert str(where(None, None, None, {})) == "http://127.0.0.1:2580"
    found = where(None, None, None, {"RELAY_URL": "https://mail.example/relay/", "RELAY_TOKEN": "relay_x"})
    assert (str(found), found.token) == ("https://mail.example:443/relay", "relay_x") and "relay_x" not in repr(found)
    assert (
        where("unix:/run/a.sock", None, None, {}).socket
        == where("unix:///run/a.sock", "", None, {}).socket
        == "/run/a.sock"
    )
    assert str(where("http://[::1]:2580", None, None, {})) == "http://[::1]:2580"


@pytest.mark.parametrize(
    "url", ["127.0.0.1:2580", "ftp://x", "http://", "unix:", "unix:relative", "http://u:pw@h/", "http://h/?a=b"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError) as told:
        where(url, None, None, {})
    assert "pw" not in str(told.value)


def test_a_token_is_one_word() -> None:
    with pytest.raises(ValueError) as told:
        where(None, "relay_secret\r\nX: y", None, {})
    assert "secret" not in str(told.value)


FAR = [
    "relay.example",
    "10.0.0.7",
    "relay",
    "127.0.0.1.example",
    "localhost.example",
    "[::ffff:10.0.0.7]",
    "[2001:db8::1]",
]
NEAR = ["localhost", "LOCALHOST", "app.localhost", "127.0.0.1", "127.8.0.1", "[::1]", "[::ffff:127.0.0.1]"]


@pytest.mark.parametrize("host", FAR)
def test_a_token_does_not_go_to_another_machine_in_the_clear(host: str) -> None:
    url = f"http://{host}:2580"
    assert where("https://relay.example", "t", None, {"RELAY_CA": "/etc/ca.pem"}).ca == "/etc/ca.pem"
    assert where("https://relay.example", "t", "/own.pem", {"RELAY_CA": "/etc/ca.pem"}).ca == "/own.pem"
    for given, env in (("relay_secret", {}), (None, {"RELAY_TOKEN": "relay_secret", "RELAY_ALLOW_HTTP": "0"})):
        with pytest.raises(ValueError, match="in the clear") as told:
            where(url, given, None, env)
        assert "https" in str(told.value) and "unix:" in str(told.value) and "RELAY_ALLOW_HTTP" in str(told.value)
        assert "secret" not in str(told.value)
    with pytest.raises(ValueError, match="in the clear"):
        where(url, "relay_secret", None, {"RELAY_ALLOW_HTTP": "1"}, allow_http=False)
    assert where(url, "relay_secret", None, {}, allow_http=True).token == "relay_secret"
    assert where(url, "relay_secret", None, {"RELAY_ALLOW_HTTP": "1"}).token == "relay_secret"
    assert where(url, None, None, {}).token == ""
    assert where(url.replace("http:", "https:"), "relay_secret", None, {}).tls


@pytest.mark.parametrize("host", NEAR)
def test_a_token_goes_to_this_machine(host: str) -> None:
    assert where(f"http://{host}:2580", "relay_secret", None, {}).token == "relay_secret"


def test_a_switch_that_is_neither_on_nor_off() -> None:
    with pytest.raises(ValueError, match="RELAY_ALLOW_HTTP is 1 or 0"):
        where("http://relay.example", "relay_x", None, {"RELAY_ALLOW_HTTP": "maybe"})


def test_each_client_keeps_the_token() -> None:
    for make in (Relay, AsyncRelay, Submitter):
        with pytest.raises(ValueError, match="in the clear"):
            make("http://relay.example:2580", token="relay_secret")
        make("http://relay.example:2580", token="relay_secret", allow_http=True)
