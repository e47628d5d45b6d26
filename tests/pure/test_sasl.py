"""PLAIN and LOGIN as they are written (RFC 4616, RFC 4954 §4)."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.listener.command import BadCommand
from relay.listener.sasl import Credentials, Exchange


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


@pytest.mark.parametrize(
    ("said", "user", "password"),
    [
        ("\0shop\0secret", "shop", "secret"),
        ("shop\0shop\0secret", "shop", "secret"),
        ("\0jürgen\0größe", "jürgen", "größe"),
        ("\0a\0 blank ", "a", " blank "),
        ("\0" + "u" * 255 + "\0" + "p" * 1024, "u" * 255, "p" * 1024),
    ],
)
def test_plain(said: str, user: str, password: str) -> None:
    assert Exchange("PLAIN").step(b64(said)) == Credentials(user, password)
    later = Exchange("PLAIN")
    assert later.step(None) == ""
    assert later.step(b64(said)) == Credentials(user, password)


@pytest.mark.parametrize(
    ("response", "code"),
    [
        ("=", 501),
        ("*", 501),
        ("", 501),
        ("!!!", 501),
        ("AGE=AGI=", 501),
        (b64("\0a\0b")[:-1], 501),
        (b64(b"\0a\0\xff"), 501),
        (b64("a\0b"), 501),
        (b64("\0\0"), 501),
        (b64("\0a\0"), 501),
        (b64("\0\0b"), 501),
        (b64("\0a\0b\0c"), 501),
        (b64("other\0a\0b"), 535),
        (b64("\0" + "u" * 256 + "\0b"), 501),
        (b64("\0a\0" + "p" * 1025), 501),
        ("ÄÖÜ", 501),
        ("AGEA Yg==", 501),
    ],
)
def test_bad_plain(response: str, code: int) -> None:
    with pytest.raises(BadCommand) as told:
        Exchange("PLAIN").step(response)
    assert told.value.code == code


def test_login_in_both_forms() -> None:
    asked = Exchange("LOGIN")
    assert asked.step(None) == b64("Username:")
    assert asked.step(b64("shop")) == b64("Password:")
    assert asked.step(b64("secret")) == Credentials("shop", "secret")
    initial = Exchange("LOGIN")
    assert initial.step(b64("shop")) == b64("Password:")
    assert initial.step(b64("secret")) == Credentials("shop", "secret")


@pytest.mark.parametrize(
    "responses", [("*",), (b64("shop"), "*"), ("=", "="), (b64("a\0b"), b64("c")), (b64("a"), "=")]
)
def test_bad_login(responses: tuple[str, ...]) -> None:
    exchange = Exchange("LOGIN")
    for response in responses[:-1]:
        assert isinstance(exchange.step(response), str)
    with pytest.raises(BadCommand) as told:
        exchange.step(responses[-1])
    assert told.value.code == 501


@pytest.mark.parametrize("mechanism", ["", "CRAM-MD5", "XOAUTH2", "plain", "PLAIN\t"])
def test_other_mechanisms(mechanism: str) -> None:
    with pytest.raises(BadCommand) as told:
        Exchange(mechanism)
    assert told.value.code == 504


def refused(exchange: Exchange, response: str) -> str | Credentials | BadCommand:
    try:
        return exchange.step(response)
    except BadCommand as told:
        return told


@given(st.sampled_from(["PLAIN", "LOGIN"]), st.lists(st.one_of(st.text(max_size=30), st.binary(max_size=30).map(b64))))
def test_whatever_is_said_ends_in_credentials_a_challenge_or_a_refusal(mechanism: str, responses: list[str]) -> None:
    exchange = Exchange(mechanism)
    for response in responses:
        said = refused(exchange, response)
        if isinstance(said, BadCommand):
            assert said.code in (501, 535) and said.text.isascii() and said.text.isprintable()
            return
        if isinstance(said, Credentials):
            assert said.user and said.password and "\0" not in said.user + said.password
            return
        assert base64.b64decode(said, validate=True) in (b"Username:", b"Password:")


def test_a_password_is_not_shown() -> None:
    assert "canary" not in repr(Credentials("shop", "canary"))
