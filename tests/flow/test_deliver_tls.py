"""Deliver: TLS as the account says and never less, and credentials never in clear."""

from __future__ import annotations

import base64
import hashlib
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fakes import DROP, Upstream
from rig import running, write_config

from relay.deliver.connect import connect
from relay.deliver.smtp import Failure
from relay.deliver.tls import PinMismatch, check_pin
from relay.reply import Stage
from relay.secrets import Reference
from relay.settings import Account, Tls

SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"


class Authority:
    """A CA in a folder, and the server contexts that it vouches for."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.folder = trustme.CA(), folder
        self.pem = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.pem)

    def context(self, *names: str, ca: trustme.CA | None = None, expired: bool = False) -> ssl.SSLContext:
        end = datetime.now(UTC) - timedelta(days=1) if expired else None
        leaf = (ca or self.ca).issue_cert(
            *(names or ("127.0.0.1",)), not_after=end, not_before=end and end - timedelta(days=9)
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        leaf.configure_cert(context)
        self.leaf = leaf
        return context

    def pin(self) -> str:
        key = x509.load_pem_x509_certificate(self.leaf.cert_chain_pems[0].bytes()).public_key()
        return base64.b64encode(
            hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
        ).decode()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def account(up: Upstream, tls: str) -> dict[str, str]:
    return {"main": f"port: {up.port}, tls: {tls}"}


async def outcome(folder: Path, up: Upstream, tls: str) -> tuple[str, str]:
    """(state, why) of one message."""
    async with running(write_config(folder, account(up, tls), classes=SLOW)) as rig:
        row = await rig.tried(await rig.send())
        assert row["attempts"] == 1
        return row["state"], row["why"]


@pytest.mark.parametrize("mode", ["starttls", "implicit", "opportunistic"])
async def test_modes_that_encrypt(tmp_path: Path, authority: Authority, mode: str) -> None:
    async with Upstream(tls=authority.context(), implicit=mode == "implicit") as up:
        assert (await outcome(tmp_path, up, f"{{mode: {mode}, ca: {authority.pem}}}"))[0] == "delivered"
        assert up.tls_versions == ["TLSv1.3"]


async def test_large_body_over_tls(tmp_path: Path, authority: Authority) -> None:
    body = b"Subject: big\r\n\r\n" + (b"." + b"x" * 98 + b"\r\n") * 20_000
    async with Upstream(tls=authority.context()) as up:
        file = write_config(tmp_path, account(up, f"{{mode: starttls, ca: {authority.pem}}}"))
        async with running(file) as rig:
            await rig.send(message=body)
            await rig.settled()
            assert up.transactions[0].message.endswith(body.partition(b"\r\n\r\n")[2])


async def test_none_uses_no_tls_though_offered(tmp_path: Path, authority: Authority) -> None:
    async with Upstream(tls=authority.context()) as up:
        assert (await outcome(tmp_path, up, "none"))[0] == "delivered"
        assert up.tls_versions == [] and up.commands("STARTTLS") == []


# name -> (what the upstream does, mode, what `why` says)
REFUSED = {
    "not offered": ("plain", "does not offer STARTTLS"),
    "454": ("454", "454 4.7.0 TLS not available"),
    "dropped": ("drop", "starttls: "),
    "wrong name": ("name", "certificate is not accepted"),
    "expired": ("expired", "certificate has expired"),
    "other authority": ("stranger", "certificate is not accepted"),
    "old version": ("old", "starttls: "),
}


def bad(authority: Authority, how: str) -> Upstream:
    script = {"454": {"STARTTLS": "454 4.7.0 TLS not available"}, "drop": {"STARTTLS": DROP}}.get(how)
    context = {
        "plain": lambda: None,
        "name": lambda: authority.context("other.example"),
        "expired": lambda: authority.context(expired=True),
        "stranger": lambda: authority.context(ca=trustme.CA()),
    }.get(how, authority.context)()
    if how == "old":
        assert context is not None
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return Upstream(script, tls=context)


@pytest.mark.parametrize("name", REFUSED)
async def test_starttls_never_falls_back(tmp_path: Path, authority: Authority, name: str) -> None:
    how, says = REFUSED[name]
    async with bad(authority, how) as up:
        state, why = await outcome(tmp_path, up, f'{{mode: starttls, minimum: "1.3", ca: {authority.pem}}}')
        assert (state, up.transactions) == ("deferred", [])
        assert says in why or says in f"starttls: {why}"
        assert up.commands("MAIL") == []


@pytest.mark.parametrize("name", ["not offered", "454", "dropped", "wrong name", "expired", "other authority"])
async def test_opportunistic_goes_on(tmp_path: Path, authority: Authority, name: str) -> None:
    how = REFUSED[name][0]
    async with bad(authority, how) as up:
        assert (await outcome(tmp_path, up, "opportunistic"))[0] == "delivered"
        assert bool(up.tls_versions) is (how in ("name", "expired", "stranger"))


async def test_verify_false_takes_any_certificate(tmp_path: Path, authority: Authority) -> None:
    async with bad(authority, "stranger") as up:
        assert (await outcome(tmp_path, up, "{mode: starttls, verify: false}"))[0] == "delivered"


@pytest.mark.parametrize(("mode", "how"), [("implicit", "name"), ("implicit", "expired"), ("implicit", "stranger")])
async def test_implicit_verifies(tmp_path: Path, authority: Authority, mode: str, how: str) -> None:
    up = bad(authority, how)
    up.implicit = True
    async with up:
        state, why = await outcome(tmp_path, up, f"{{mode: implicit, ca: {authority.pem}}}")
        assert state == "deferred" and "certificate" in why and up.transactions == []


@pytest.mark.parametrize("how", ["none", "454", "drop"])
async def test_a_pin_is_kept_where_tls_is_only_opportunistic(tmp_path: Path, authority: Authority, how: str) -> None:
    says: dict[str, Any] = {"454": {"STARTTLS": "454 4.7.0 not now"}, "drop": {"STARTTLS": DROP}}.get(how, {})
    context = authority.context()
    async with Upstream(says, tls=None if how == "none" else context) as up:
        state, _ = await outcome(tmp_path, up, f"{{mode: opportunistic, pin: [{authority.pin()}]}}")
        assert state == "deferred" and up.commands("MAIL") == []


def test_a_certificate_that_is_none_has_no_pin() -> None:
    for junk in (b"", b"junk", bytes(100), None):
        with pytest.raises(PinMismatch):
            check_pin(junk, ("x",))


async def test_pin(tmp_path: Path, authority: Authority) -> None:
    """The pinned key is enough, whoever vouches for it; another one is refused before the login."""
    async with Upstream(tls=authority.context(), login=("u", "p")) as up:
        assert (await outcome(tmp_path, up, f"{{mode: starttls, pin: [{authority.pin()}]}}"))[0] == "delivered"
    other = base64.b64encode(b"x" * 32).decode()
    async with Upstream(tls=authority.context(), login=("u", "p")) as up:
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "pw").write_text("p")
        file = write_config(
            tmp_path / "two",
            {"main": f"port: {up.port}, username: u, password: {{file: pw}}, tls: {{mode: starttls, pin: [{other}]}}"},
            classes=SLOW,
        )
        async with running(file) as rig:
            row = await rig.tried(await rig.send())
            assert row["state"] == "deferred" and "not pinned" in row["why"]
            assert up.logins == [] and up.transactions == []


async def test_client_certificate(tmp_path: Path, authority: Authority) -> None:
    context = authority.context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority.ca.configure_trust(context)
    mine = authority.ca.issue_cert("relay.test")
    mine.cert_chain_pems[0].write_to_path(tmp_path / "mine.pem")
    mine.private_key_pem.write_to_path(tmp_path / "mine.key")
    (tmp_path / "mine.key").chmod(0o600)
    tls = (
        f"{{mode: implicit, ca: {authority.pem}, certificate: {tmp_path}/mine.pem, key: {{file: {tmp_path}/mine.key}}}}"
    )
    async with Upstream(tls=context, implicit=True) as up:
        assert (await outcome(tmp_path, up, tls))[0] == "delivered"
        assert up.peer_certificates[0]["subjectAltName"] == (("DNS", "relay.test"),)


async def test_client_certificate_that_is_missing_is_refused(tmp_path: Path, authority: Authority) -> None:
    context = authority.context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority.ca.configure_trust(context)
    async with Upstream(tls=context, implicit=True) as up:
        assert (await outcome(tmp_path, up, f"{{mode: implicit, ca: {authority.pem}}}"))[0] == "deferred"
        assert up.transactions == []


async def test_plain_text_behind_the_220_of_starttls_is_not_believed(tmp_path: Path, authority: Authority) -> None:
    """Command injection into the TLS session (CVE-2011-0411, RFC 3207 §6)."""
    script = {"STARTTLS": b"220 2.0.0 go ahead\r\n250 injected\r\n"}
    async with Upstream(script, tls=authority.context()) as up:
        assert (await outcome(tmp_path, up, f"{{mode: starttls, ca: {authority.pem}}}"))[0] == "delivered"
        assert "SIZE=" in up.transactions[0].mail  # so it was the EHLO inside TLS that counted


# -- credentials and clear text


def _our_address() -> str:
    """An address of this machine that is not a loopback one; what is sent to it does not leave the machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            found: str = probe.getsockname()[0]
        except OSError:
            return ""
    return "" if found.startswith("127.") else found


@pytest.mark.parametrize("mode", ["none", "opportunistic"])
async def test_credentials_are_never_sent_in_clear(mode: str) -> None:
    """The configuration refuses it already; the code that logs in does so too, whatever it was given."""
    host = _our_address()
    if not host:
        pytest.skip("this machine has loopback addresses only")
    async with Upstream(login=("user", "canary"), host=host) as up:
        made = Account(
            "main", Reference("plain", host), up.port, Tls(mode), Reference("plain", "user"), Reference("plain", "canary")
        )  # fmt: skip
        with pytest.raises(Failure) as caught:
            await connect(made, "relay.test")
        assert caught.value.stage is Stage.AUTH and "never sent in clear" in caught.value.reply.text
        assert up.logins == [] and up.commands("AUTH") == []


async def test_credentials_go_to_loopback_in_clear_and_over_tls_anywhere(authority: Authority) -> None:
    host = _our_address() or "127.0.0.1"
    async with Upstream(login=("user", "pw"), tls=authority.context(host), host=host) as up:
        made = Account(
            "main", Reference("plain", host), up.port, Tls("starttls", ca=authority.pem),
            Reference("plain", "user"), Reference("plain", "pw"),
        )  # fmt: skip
        session = await connect(made, "relay.test")
        await session.quit()
        assert up.logins == [("user", "pw")]
