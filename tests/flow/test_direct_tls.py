"""Mail by MX and TLS that nobody proves by DNSSEC: opportunistic, by an MTA-STS policy (RFC 8461), by a rule of ours."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import DROP, RESET, Also
from nameserver import Told
from tlslab import CLEAR, OPEN, STS, UNVERIFIED, Case, Host, Lab, judge

BY_RULE = r"TLSv1\.[23], verified, destinations rule lab"
TESTED = r"TLSv1\.[23], verified, MTA-STS testing"
NOT_LISTED = "is none of the hosts that the MTA-STS policy of"
NO_TLS = "does not offer STARTTLS"
REFUSED = {"STARTTLS": "454 4.7.0 TLS not available"}
LATE = {"EHLO": [None, DROP, None]}  # TLS is there, and then nothing


def old(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


def case(id_: str, host: Host, tls: str = "", why: str = "", *others: Host, **more: Any) -> Case:
    return Case(id_, tuple(Host(h.shows, script=h.script, zone=OPEN, tls=h.tls) for h in (host, *others)), tls, why,
                zone=OPEN, **more)  # fmt: skip


def enforced(id_: str, host: Host, tls: str = "", why: str = "", *others: Host, **more: Any) -> Case:
    return case(f"enforce-{id_}", host, tls, why, *others, **{"sts": "enforce {0}"} | more)


def tried(id_: str, host: Host, tls: str, told: str, **more: Any) -> Case:
    """Delivered all the same, and told."""
    told = f"sts_testing_failed: {told}" if told else ""
    return case(f"testing-{id_}", host, tls, **{"sts": "testing {0}", "told": told} | more)


def unfetched(id_: str, why: str, **policy: Any) -> Case:
    """There is no policy then, and that is told."""
    return case(
        f"policy-{id_}", Host("wrong"), UNVERIFIED, sts="enforce {0}", policy=policy, told=f"sts_fetch_failed: {why}"
    )


def ruled(id_: str, rule: str, host: Host, tls: str = "", why: str = "", **more: Any) -> Case:
    return case(f"rule-{id_}", host, tls, why, rule=rule, **more)


CASES = [
    # Opportunistic: any certificate, and clear text rather than no mail (RFC 3207 §4.1).
    *(case(f"any-{kind}", Host(kind), UNVERIFIED, visits=1)
      for kind in ("right", "self_signed", "expired", "wrong", "untrusted", "nameless")),
    case("none-offered", Host(""), CLEAR, visits=1),
    case("refused", Host("right", script=REFUSED), CLEAR, visits=2),
    case("refused-421", Host("right", script={"STARTTLS": "421 4.3.0 not now"}), CLEAR, visits=2),
    case("handshake-cut", Host("right", script={"HANDSHAKE": DROP}), CLEAR, visits=2),
    case("handshake-reset", Host("right", script={"HANDSHAKE": RESET}), CLEAR, visits=2),
    case("handshake-junk", Host("right", script={"HANDSHAKE": b"220 junk\r\n" * 20}), CLEAR, visits=2),
    case("nothing-after-tls", Host("right", script=LATE), CLEAR, visits=2),
    case("injected", Host("right", script={"STARTTLS": Also(b"250 injected\r\n")}), UNVERIFIED, visits=1),
    # MTA-STS enforce: RFC 8461 §5.
    enforced("right", Host(), STS, visits=1),
    enforced("chained", Host("chained"), STS),
    enforced("old", Host("right", tls=old), r"TLSv1\.2, verified, MTA-STS enforce"),
    enforced("wild-certificate", Host("wild"), STS),
    enforced("wild-policy", Host(), STS, sts="enforce a.example *.enforce-wild-policy.open.example"),
    enforced("two-labels", Host(), why=NOT_LISTED, sts="enforce *.open.example", visits=0),
    enforced("wrong-name", Host("wrong"), why="Hostname mismatch, certificate is not valid for 'mx1.", visits=1),
    enforced("subject", Host("nameless"), why="Hostname mismatch"),
    enforced("expired", Host("expired"), why="certificate has expired (MTA-STS enforce)", visits=1),
    enforced("self-signed", Host("self_signed"), why="self-signed certificate (MTA-STS enforce)"),
    enforced("stranger", Host("untrusted"), why="unable to get local issuer certificate (MTA-STS enforce)"),
    enforced("other-host", Host(), why=NOT_LISTED, sts="enforce mx.example", visits=0),
    enforced("second-host", Host(), STS, "", Host(), sts="enforce {1}", by=1, visits=1),
    enforced("second-good", Host("wrong"), STS, "", Host(), sts="enforce {0} {1}", by=1, visits=2),
    enforced("both-bad", Host("wrong"), "", NO_TLS, Host(""), sts="enforce {0} {1}", visits=2),
    enforced("stripped", Host(""), why=NO_TLS, visits=1),
    enforced("refused", Host("right", script=REFUSED), why="454 4.7.0 TLS not available (MTA-STS", visits=1),
    enforced("cut", Host("right", script={"HANDSHAKE": DROP}), why="]: STARTTLS: connection lost (MTA-STS enforce)", visits=1),
    enforced("junk", Host("right", script={"HANDSHAKE": b"junk" * 50}), why="]: STARTTLS: TLS failed: ", visits=1),
    enforced("late", Host("right", script=LATE), why="]: STARTTLS: connection lost (MTA-STS enforce)", visits=1),
    enforced("no-ehlo", Host("right", script={"EHLO": "502 5.5.1 what?"}), why=NO_TLS, visits=1),
    enforced("injected", Host("right", script={"STARTTLS": Also(b"250 injected\r\n")}), STS, visits=1),
    enforced("no-mx", Host(), STS, mx=False, sts="enforce {0}"),
    # Testing: what `enforce` would refuse.
    tried("right", Host(), TESTED, "", visits=1),
    tried("wrong-name", Host("wrong"), UNVERIFIED, "Hostname mismatch", visits=2),
    tried("expired", Host("expired"), UNVERIFIED, "certificate has expired", visits=2),
    tried("stripped", Host(""), CLEAR, NO_TLS, visits=2),
    tried("refused", Host("right", script=REFUSED), CLEAR, "454 4.7.0", visits=3),
    tried("other-host", Host(), UNVERIFIED, NOT_LISTED, sts="testing mx.example", visits=1),
    case("mode-none", Host("wrong"), UNVERIFIED, sts="none", visits=1),
    case("mode-none-stripped", Host(""), CLEAR, sts="none"),
    # No policy can be had: RFC 8461 §3.3, none applies.
    unfetched("missing", "it answered 404", status=404),
    unfetched("moved", "it answered 301, a redirect, which is not followed", status=301,
              headers={"Location": "https://a.example/"}),
    unfetched("wrong-name", "its certificate is not accepted: Hostname mismatch", identity="wrong"),
    unfetched("expired", "its certificate is not accepted: certificate has expired", identity="expired"),
    unfetched("stranger", "its certificate is not accepted: unable to get", identity="untrusted"),
    unfetched("long", "is longer than 65536 bytes", body="mx: a.example\r\n" * 5000),
    unfetched("page", "its Content-Type is text/html, not text/plain", content_type="text/html"),
    unfetched("malformed", "is no field", body="<html>\r\n"),
    unfetched("no-hosts", "the policy has no mx", body="version: STSv1\r\nmode: enforce\r\nmax_age: 9999\r\n"),
    unfetched("cut", "", down=True),
    # A rule of the configuration before all.
    ruled("verify", "{{verify: true}}", Host(), BY_RULE),
    ruled("verify-subject", "{{verify: true}}", Host("nameless"), BY_RULE),
    ruled("verify-wrong", "{{verify: true}}", Host("wrong"), why="Hostname mismatch"),
    ruled("verify-stripped", "{{verify: true}}", Host(""), why=NO_TLS, visits=1),
    ruled("verify-none", "{{verify: true}}", Host("wrong"), why="Hostname mismatch", sts="none"),
    ruled("encrypt", "{{verify: false}}", Host("self_signed"), UNVERIFIED),
    ruled("encrypt-stripped", "{{verify: false}}", Host(""), why=NO_TLS, visits=1),
    ruled("encrypt-refused", "starttls", Host("right", script=REFUSED), why="454 4.7.0", visits=1),
    ruled("none", "none", Host(), CLEAR, visits=1),
    ruled("none-enforce", "none", Host(), CLEAR, sts="enforce mx.example"),
    ruled("opportunistic-enforce", "opportunistic", Host("wrong"), UNVERIFIED, sts="enforce mx.example"),
    ruled("verify-enforce", "{{verify: true}}", Host(), BY_RULE, sts="enforce mx.example"),
    ruled("ca", "{{ca: '{lab.strangers}'}}", Host("untrusted"), BY_RULE),
    ruled("ca-other", "{{ca: '{lab.strangers}'}}", Host(), why="unable to get local issuer certificate"),
    ruled("pin", "{{pin: '{pin}'}}", Host("self_signed"), BY_RULE),
    ruled("pin-other", "{{pin: 'q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s='}}", Host(), why="which is not pinned"),
    ruled("pin-stripped", "{{pin: '{pin}'}}", Host(""), why=NO_TLS, visits=1),
    *(ruled(f"pin-may-{id_}", "{{mode: opportunistic, pin: '{pin}'}}", host, why=why, visits=1)
      for id_, host, why in (("stripped", Host(""), "no certificate"), ("refused", Host("right", script=REFUSED), "454"),
                             ("cut", Host("right", script={"HANDSHAKE": DROP}), "lost"))),
    ruled("minimum", "{{minimum: '1.3'}}", Host(), r"TLSv1\.3, verified, destinations rule lab"),
    ruled("minimum-old", "{{minimum: '1.3'}}", Host("right", tls=old), why="]: STARTTLS: "),
]  # fmt: skip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("tls"), CASES)


@pytest.fixture(scope="module")
def dns(lab: Lab) -> Iterator[Told]:
    with Told() as dns:
        lab.tell(dns, *CASES)
        yield dns


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
async def test_each(case: Case, lab: Lab, dns: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await judge(case, lab, tmp_path, dns.server, monkeypatch)
