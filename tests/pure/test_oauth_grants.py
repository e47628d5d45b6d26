"""What is asked of a token endpoint, what its answers mean, and when a token is renewed."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from relay.deliver.bearer import oauthbearer, xoauth2
from relay.oauth.endpoint import _retry_after
from relay.oauth.grants import Granted, GrantError, Material, Refused, ServiceKey, answered, assertion, form
from relay.oauth.store import Store, fingerprint
from relay.oauth.tokens import early
from relay.secrets import hidden
from relay.settings import OAuth2

RSA = rsa.generate_private_key(65537, 2048)


def service_key(private: Any = RSA, **more: str) -> str:
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return json.dumps({"client_email": "relay@p.example", "private_key": pem, "private_key_id": "k1"} | more)


def test_refresh_token() -> None:
    oauth2 = OAuth2("refresh_token", "https://t.example/token", scope="a b")
    asked = form(oauth2, Material("id", "", "r1"), "u", 0.0)
    assert asked == {"grant_type": "refresh_token", "client_id": "id", "refresh_token": "r1", "scope": "a b"}
    assert form(oauth2, Material("id", "s", "r1"), "u", 0.0)["client_secret"] == "s"


def test_client_credentials() -> None:
    oauth2 = OAuth2("client_credentials", "https://t.example/token", scope="a")
    asked = form(oauth2, Material("id", "s"), "u", 0.0)
    assert asked == {"grant_type": "client_credentials", "client_id": "id", "client_secret": "s", "scope": "a"}


def test_service_account_signs_who_asks_for_whom() -> None:
    """Verified with the public key, as the endpoint does (RFC 7515 §5.2)."""
    oauth2 = OAuth2("service_account", "https://t.example/token", scope="mail")
    asked = form(oauth2, Material(key=service_key()), "box@p.example", 1_800_000_000.7)
    assert asked["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer" and set(asked) == {
        "grant_type",
        "assertion",
    }
    head, claims, signature = asked["assertion"].split(".")
    RSA.public_key().verify(_raw(signature), f"{head}.{claims}".encode(), PKCS1v15(), SHA256())
    assert json.loads(_raw(head)) == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
    assert json.loads(_raw(claims)) == {
        "iss": "relay@p.example",
        "sub": "box@p.example",
        "scope": "mail",
        "aud": "https://t.example/token",
        "iat": 1_800_000_000,
        "exp": 1_800_003_600,
    }


def _raw(text: str) -> bytes:
    assert "=" not in text
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@pytest.mark.parametrize(
    "key",
    [
        "",
        "canary",
        "[]",
        '{"client_email": "a@b"}',
        '{"client_email": "a@b", "private_key": "canary"}',
        '{"client_email": "a@b", "private_key": 7}',
        service_key(ec.generate_private_key(ec.SECP256R1())),
    ],
)
def test_a_key_that_is_none_is_not_quoted(key: str) -> None:
    with pytest.raises(GrantError) as caught:
        assertion(OAuth2("service_account", "https://t.example/token"), key, "u", 0.0)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "life"),
    [
        ({"access_token": "t", "expires_in": 60}, 60.0),
        ({"access_token": "t", "expires_in": "60"}, 60.0),
        ({"access_token": "t", "expires_in": 10**400}, 3600.0),
        ({"access_token": "t"}, 3600.0),
        ({"access_token": "t", "expires_in": 0}, 3600.0),
        ({"access_token": "t", "expires_in": -5}, 3600.0),
        ({"access_token": "t", "expires_in": "soon"}, 3600.0),
        ({"access_token": "t", "expires_in": float("nan")}, 3600.0),
        ({"access_token": "t", "expires_in": True}, 3600.0),
        ({"access_token": "t", "expires_in": 1e12}, 30 * 86400.0),
        ({"access_token": "t", "token_type": "bearer", "refresh_token": "r"}, 3600.0),
    ],
)
def test_granted(body: dict[str, Any], life: float) -> None:
    assert answered(200, body, {}) == Granted("t", life, body.get("refresh_token", ""))


@pytest.mark.parametrize(
    ("status", "body", "passing"),
    [
        (400, {"error": "invalid_grant"}, False),
        (401, {"error": "invalid_client"}, False),
        (429, {"error": "too_many"}, True),
        (503, {}, True),
        (400, {"error": "temporarily_unavailable"}, True),
        (400, {"error": "authorization_pending"}, True),
        (200, {"error": "invalid_grant", "access_token": "t"}, False),
        (200, {"access_token": 5}, False),
        (200, {"access_token": ""}, False),
        (200, {"access_token": "t", "token_type": "mac"}, False),
        (200, {"access_token": "a b"}, False),
        (200, {"access_token": "a\r\nRSET"}, False),
        (200, {"access_token": "ü"}, False),
        (400, {"error": ["x"], "error_description": {"y": 1}}, False),
    ],
)
def test_refused(status: int, body: dict[str, Any], passing: bool) -> None:
    found = answered(status, body, {})
    assert isinstance(found, Refused) and found.passing is passing and found.text


def test_what_is_quoted_is_one_short_clean_line_without_what_was_said() -> None:
    said = {"client_secret": "canary-secret", "refresh_token": "canary-refresh", "client_id": "id", "scope": "mail"}
    words = (
        f"AADSTS1: mail id\r\n{said['client_secret']} {base64.b64encode(b'canary-refresh').decode()} Trace ID: 9"
        + "x" * 999
    )
    found = answered(400, {"error": "invalid_client\n", "error_description": words}, said)
    assert found == Refused("invalid_client", "invalid_client: AADSTS1: mail id *** ***", False)


@given(st.text(min_size=12, alphabet=st.characters(min_codepoint=33, max_codepoint=126)), st.integers(0, 20))
def test_a_secret_is_hidden_in_every_form(secret: str, cut: int) -> None:
    for form_ in (secret, base64.b64encode(secret.encode()).decode()):
        assert form_ not in hidden(f"<{form_}> {form_.rstrip('=')}", secret)


def test_a_long_piece_of_a_secret_is_hidden_and_other_words_stay() -> None:
    token = "ya29.a0AfB_byC-canary0123456789"
    assert hidden(f"token {token[3:18]} of app@example.com is bad", token) == "token *** of app@example.com is bad"
    assert hidden("5.7.8 unauthorized", token) == "5.7.8 unauthorized"
    assert hidden("anything", "") == "anything"


@given(st.floats(0.001, 2_600_000.0), st.floats(0.0, 0.9999))
def test_a_token_is_renewed_before_its_end_and_not_at_once(life: float, chance: float) -> None:
    assert 0.6 * life < early(life, chance) < life
    if 1200 <= life <= 3000:
        assert life - 450 <= early(life, chance) <= life - 300


@pytest.mark.parametrize(
    ("text", "date", "seconds"),
    [
        ("120", None, 120.0),
        ("999999", None, 3600.0),
        ("9" * 400, None, 3600.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 0.0, 60.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", 100.0, 0.0),
        ("Thu, 01 Jan 1970 00:01:00 GMT", None, 0.0),
        ("soon", 0.0, 0.0),
        ("-5", 0.0, 0.0),
        ("٣", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_retry_after(text: str, date: float | None, seconds: float) -> None:
    assert _retry_after(text, date) == seconds


def test_mechanisms() -> None:
    """The examples of the documents: Google's for XOAUTH2, RFC 7628 §4.1 for OAUTHBEARER."""
    google = xoauth2("someuser@example.com", "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg")
    assert google == (
        b"dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJoZG1semRHRXVZMjl0"
        b"Q2cBAQ=="
    )
    rfc = oauthbearer("user@example.com", "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==", "server.example.com", 587)
    assert base64.b64decode(rfc) == (
        b"n,a=user@example.com,\x01host=server.example.com\x01port=587\x01"
        b"auth=Bearer vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg==\x01\x01"
    )
    assert b"n,a=a=2Cb=3Dc@d,\x01" in base64.b64decode(oauthbearer("a,b=c@d", "t", "h", 1))


def test_store(tmp_path: Path) -> None:
    store, mark = Store(tmp_path / "oauth2" / "main.json"), fingerprint("configured", "id")
    assert store.load(mark) == ""
    store.save(mark, "newest")
    store.save(mark, "newer still")
    assert store.load(mark) == "newer still" and store.load(fingerprint("another", "id")) == ""
    assert "configured" not in store.file.read_text()
    assert [f.name for f in store.file.parent.iterdir()] == ["main.json"]
    for damaged in (b"", b"\xff\xff", b"[1]", b'{"of": "x"}', b'{"of": "' + mark.encode() + b'", "refresh_token": 1}'):
        store.file.write_bytes(damaged)
        assert store.load(mark) == ""


def test_the_key_is_in_no_repr() -> None:
    key = ServiceKey.parse(service_key())
    told = repr((key, Material("id", "canary", "canary", "canary"), Granted("canary", 1.0, "canary")))
    assert "BEGIN" not in told and "canary" not in told
