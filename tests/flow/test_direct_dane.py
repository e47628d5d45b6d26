"""Mail by MX to hosts with TLSA records (RFC 7672), in a DNS that is signed and validated: what is delivered, and how securely."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes import DROP, Also
from tlslab import CLEAR, OPEN, OTHER, STS, UNVERIFIED, Case, Host, Lab, dane, judge
from world import World, Zone, bogus, plain, signed, world

EE, TA = ("311",), ("211",)
BAD = (f"3 1 1 {OTHER}",)
NOT_OURS = "which no TLSA record promises: 3 1 1 abababababababab…"


def old(context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2


CASES = [
    # The server's own key or certificate: RFC 7672 §3.1.1, neither names nor dates nor authorities count.
    *(Case(f"ee-{kind}", (Host(tlsa=(kind,)),), dane(" ".join(kind))) for kind in ("311", "301", "312", "302")),
    Case("ee-whole", (Host(tlsa=("300",)),), dane("3 0 0")),
    Case("ee-expired", (Host("expired", EE),), dane("3 1 1")),
    Case("ee-wrong-name", (Host("wrong", EE),), dane("3 1 1")),
    Case("ee-self-signed", (Host("self_signed", EE),), dane("3 1 1")),
    Case("ee-stranger", (Host("untrusted", EE),), dane("3 1 1")),
    Case("ee-tls-1-2", (Host(tlsa=EE, tls=old),), r"TLSv1\.2, DANE 3 1 1 [0-9a-f]{16}…"),
    Case("ee-bad", (Host(tlsa=BAD),), why=NOT_OURS, visits=1),
    Case("ee-bad-whole", (Host(tlsa=(f"3 0 1 {OTHER}",)),), why="promises: 3 0 1 abab"),
    Case("ee-rollover", (Host(tlsa=(*BAD, "311")),), dane("3 1 1")),
    Case("ee-next-host", (Host(tlsa=BAD), Host(tlsa=EE)), dane("3 1 1"), by=1, visits=2),
    Case("ee-no-host", (Host(tlsa=BAD), Host("", EE)), why="does not offer STARTTLS", visits=2),
    # An authority: §3.1.2, which is shown as well, and vouches for a name.
    Case("ta", (Host("right_root", TA),), dane("2 1 1")),
    Case("ta-certificate", (Host("right_root", ("201",)),), dane("2 0 1")),
    Case("ta-whole", (Host("right", ("200",)),), dane("2 0 0")),
    Case("ta-stranger", (Host("untrusted_root", TA),), dane("2 1 1")),
    Case("ta-chain", (Host("chained_root", TA),), dane("2 1 1")),
    Case("ta-intermediate", (Host("chained", ("211@1",)),), dane("2 1 1")),
    Case("ta-wildcard", (Host("wild", TA),), dane("2 1 1")),
    Case("ta-domain-name", (Host("domain_root", TA),), dane("2 1 1")),
    Case("ta-wrong-name", (Host("wrong_root", TA),), why="the certificate is for other.example, not for mx1.ta-wrong"),
    Case("ta-expired", (Host("expired_root", TA),), why="does not lead to the authority of the TLSA record"),
    Case("ta-not-sent", (Host("right", TA),), why="no certificate of the server's chain is the authority 2 1 1"),
    Case("ta-bad", (Host("right_root", (f"2 1 1 {OTHER}",)),), why="is the authority 2 1 1 abababababababab…"),
    Case("ta-or-ee", (Host("wrong_root", (f"2 1 1 {OTHER}", "311")),), dane("3 1 1")),
    # Records of no use: §2.2, TLS is still wanted, with any certificate.
    Case("pkix", (Host("self_signed", (f"1 1 1 {OTHER}", f"0 0 1 {OTHER}")),), UNVERIFIED),
    Case("pkix-clear", (Host("", (f"1 1 1 {OTHER}",)),), why="does not offer STARTTLS"),
    Case("pkix-handshake", (Host("right", (f"1 1 1 {OTHER}",), {"HANDSHAKE": DROP}),), why="DANE, none of whose"),
    Case("short-digest", (Host("expired", ("3 1 1 abcd",)),), UNVERIFIED),
    Case("short-digest-clear", (Host("", ("3 1 1 abcd",)),), why="does not offer STARTTLS"),
    Case("unknown-kind", (Host("right", (f"3 1 9 {OTHER}",)),), UNVERIFIED),
    Case("short-and-bad", (Host("right", ("3 1 1 abcd", *BAD)),), why=NOT_OURS),
    Case("short-and-good", (Host("right", ("3 1 1 abcd", "311")),), dane("3 1 1")),
    Case("weak-is-left-out", (Host("right", ("311", "3 1 2 " + OTHER * 2)),), why="3 1 2 abababababababab…"),
    # What can't be looked up makes the host one that is not used: §2.1.1.
    Case("bogus", (Host(tlsa=EE, tlsa_zone="bogus"),), why="DANE: the TLSA records of mx1.bogus", visits=0),
    Case("bogus-next", (Host(tlsa=EE, tlsa_zone="bogus"), Host(tlsa=EE)), dane("3 1 1"), by=1, visits=1),
    # What is not proven does not count.
    Case("insecure-records", (Host(tlsa=BAD, tlsa_zone="plain"),), UNVERIFIED),
    Case("insecure-host", (Host(tlsa=BAD, zone=OPEN),), UNVERIFIED),
    Case("insecure-mx", (Host(tlsa=BAD),), UNVERIFIED, zone=OPEN),
    Case("insecure-all", (Host("", BAD, zone=OPEN),), CLEAR, zone=OPEN),
    Case("no-ad", (Host("", BAD),), CLEAR, dns="unproven"),
    Case("ad-not-trusted", (Host(tlsa=BAD),), UNVERIFIED, dns="untrusted"),
    Case("other-port", (Host(tlsa=BAD, tlsa_at="_25._tcp"),), UNVERIFIED),
    # Whoever takes TLS away gains nothing.
    Case("stripped", (Host("", EE),), why="does not offer STARTTLS", visits=1),
    Case("refused", (Host("right", EE, {"STARTTLS": "454 4.7.0 TLS not available"}),), why="454 4.7.0 TLS not", visits=1),
    Case("refused-for-good", (Host("right", EE, {"STARTTLS": "554 5.7.0 never"}),), why="554 5.7.0 never"),
    Case("handshake-junk", (Host("right", EE, {"HANDSHAKE": b"junk" * 20}),), why="(DANE)", visits=1),
    Case("handshake-cut", (Host("right", EE, {"HANDSHAKE": DROP}),), why="(DANE)", visits=1),
    Case("no-ehlo", (Host("right", EE, {"EHLO": "502 5.5.1 what?"}),), why="does not offer STARTTLS"),
    # What came in clear after the 220 is not heard: RFC 3207 §6.
    Case("injected", (Host("right", EE, {"STARTTLS": Also(b"250 injected\r\n")}),), dane("3 1 1"), visits=1),
    # Aliases: §2.2.3. The name at the end, else the one that MX says.
    Case("alias", (Host(tlsa=EE, alias="safe.example"),), dane("3 1 1")),
    Case("alias-bad", (Host(tlsa=BAD, alias="safe.example"),), why=NOT_OURS),
    Case("alias-at-host", (Host(tlsa=EE, alias="safe.example", tlsa_at="host"),), dane("3 1 1")),
    Case("alias-at-host-bad", (Host(tlsa=BAD, alias="safe.example", tlsa_at="host"),), why=NOT_OURS),
    Case("alias-away", (Host(tlsa=EE, alias=OPEN, tlsa_at="host"),), dane("3 1 1")),
    Case("alias-away-bad", (Host(tlsa=BAD, alias=OPEN, tlsa_at="host"),), why=NOT_OURS),
    Case("alias-away-there", (Host(tlsa=BAD, alias=OPEN),), UNVERIFIED),
    Case("alias-from-away", (Host(tlsa=BAD, zone=OPEN, alias="safe.example"),), UNVERIFIED),
    Case("alias-of-records", (Host(tlsa=EE, tlsa_at="_dane"),), dane("3 1 1")),
    Case("alias-of-records-bad", (Host(tlsa=BAD, tlsa_at="_dane"),), why=NOT_OURS),
    Case("no-mx", (Host(tlsa=EE),), dane("3 1 1"), mx=False),
    Case("no-mx-bad", (Host(tlsa=BAD),), why=NOT_OURS, mx=False),
    # Before MTA-STS, which never makes good what DANE refuses: RFC 8461 §2.
    Case("sts-other-host", (Host("self_signed", EE),), dane("3 1 1"), sts="enforce other.example"),
    Case("sts-good", (Host(tlsa=BAD),), why=NOT_OURS, sts="enforce {0}"),
    Case("sts-none-good", (Host(tlsa=BAD),), why=NOT_OURS, sts="none"),
    Case("sts-testing-good", (Host(tlsa=BAD),), why=NOT_OURS, sts="testing {0}"),
    Case("sts-alone", (Host(),), STS, sts="enforce {0}"),
    Case("sts-bogus", (Host(tlsa=EE, tlsa_zone="bogus"),), why="DANE: the TLSA records", sts="enforce {0}"),
    # Records of no use prove nothing; then MTA-STS has its say.
    Case("pkix-sts", (Host(tlsa=(f"1 1 1 {OTHER}",)),), STS, sts="enforce {0}"),
    Case("pkix-sts-wrong", (Host("wrong", (f"1 1 1 {OTHER}",)),), why="Hostname mismatch", sts="enforce {0}"),
    Case("pkix-sts-other", (Host(tlsa=(f"1 1 1 {OTHER}",)),), why="is none of the hosts", sts="enforce a.example"),
    Case("pkix-sts-testing", (Host("wrong", (f"1 1 1 {OTHER}",)),), UNVERIFIED, sts="testing {0}",
         told="sts_testing_failed: Hostname mismatch"),
    Case("pkix-sts-testing-clear", (Host("", (f"1 1 1 {OTHER}",)),), why="does not offer STARTTLS", sts="testing {0}",
         told="sts_testing_failed: does not offer STARTTLS"),
    # A rule of the configuration before both.
    Case("rule-none", (Host(tlsa=BAD),), CLEAR, rule="none"),
    Case("rule-opportunistic", (Host(tlsa=BAD),), UNVERIFIED, rule="opportunistic"),
    Case("rule-verify", (Host(tlsa=BAD),), r"TLSv1\.3, verified, destinations rule lab", rule="{{verify: true}}"),
    Case("rule-verify-wrong", (Host("wrong", EE),), why="Hostname mismatch", rule="{{verify: true}}"),
]  # fmt: skip


@dataclass
class Made:
    lab: Lab
    dns: World


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("dane")
    lab = Lab(folder, CASES)
    lines: dict[str, list[str]] = {"safe.example": [], OPEN: []}
    zones: dict[str, Zone] = {}
    for case in CASES:
        for zone, line in lab.lines(case):
            lines[zone].append(line)
        for number, host in enumerate(case.hosts):
            if host.tlsa_zone:
                kind = bogus if host.tlsa_zone == "bogus" else plain
                zones[f"_tcp.{case.real(number)}"] = kind(f"_{lab.port} TLSA {lab.records(case, number)[0]}")
    zones |= {"safe.example": signed(*lines["safe.example"]), OPEN: plain(*lines[OPEN])}
    with world(folder / "world", zones) as dns:
        yield Made(lab, dns)


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
async def test_each(case: Case, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dns = made.dns.authority.server if case.dns == "unproven" else made.dns.server
    await judge(case, made.lab, tmp_path, dns, monkeypatch)
