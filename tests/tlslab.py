"""Domains with TLS policies, their hosts, and what the relay does with mail to them: a table's cases and how they are judged.

A `Case` says what a domain's DNS, certificates and servers are, and what must become of a message to it. `judge` sends one
through a whole relay and asserts it: state, reply, what operators are told, and that no MAIL was said on any session that did not
meet the policy.
"""

from __future__ import annotations

import base64
import contextlib
import re
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from certificates import Certs, Identity
from nameserver import Told
from rig import Rig, running, write_config
from simmx import SimMx
from stsserver import Policy, StsServer, text

from relay.nexthop import fetch
from tests.ports import common_port

ADDRESSES = ("127.0.3.1", "127.0.3.2", "127.0.3.3")
MAIL = b"From: a@example.com\r\nSubject: x\r\n\r\nHello\r\n"
OTHER = "ab" * 32  # a digest of nobody's
SAFE, OPEN = "safe.example", "open.example"  # a zone that is signed, and one that is not

CLEAR, UNVERIFIED, STS = "clear", r"TLSv1\.[23], not verified", r"TLSv1\.[23], verified, MTA-STS enforce"


def dane(record: str) -> str:
    """What operators are told of a session that matched `3 1 1`."""
    return rf"TLSv1\.[23], DANE {record} [0-9a-f]{{16}}…"


@dataclass(frozen=True)
class Host:
    """One MX host. `shows`: a certificate by its kind, see `shown`; empty: it offers no STARTTLS."""

    shows: str = "right"
    tlsa: tuple[str, ...] = ()  # `311`: of what it shows; or as in a zone file
    script: Mapping[str, Any] = field(default_factory=dict)
    zone: str = SAFE
    alias: str = ""  # the zone of the name that this one is an alias of, which has the address
    tlsa_at: str = ""  # a name other than where it is looked for first: `host`, or as in a zone file
    tlsa_zone: str = ""  # `bogus` or `plain`: of the records alone
    tls: Callable[[ssl.SSLContext], None] | None = None  # what is changed in its TLS


@dataclass(frozen=True)
class Case:
    """`tls`: a pattern of what is told of the session that delivered; empty: it is deferred, and why is in `why`."""

    id: str
    hosts: tuple[Host, ...]
    tls: str = ""
    why: str = ""
    zone: str = SAFE
    mx: bool = True  # False: the domain itself is its host
    by: int = 0  # which host takes it
    sts: str = ""  # mode, and the hosts: `enforce {0}`
    policy: Mapping[str, Any] = field(default_factory=dict)  # of stsserver.Policy, `identity` by its kind
    rule: str = ""  # what `tls` of the destination rule is; `{pin}` is the first host's key
    dns: str = ""  # `unproven`: of a resolver that never says AD; `untrusted`: of one that is not believed to
    told: str = ""  # an event that says more, by its `why`
    visits: int | None = None  # sessions of all hosts together

    @property
    def domain(self) -> str:
        return f"{self.id}.{self.zone}"

    def name(self, number: int) -> str:
        """Of a host, as MX says it."""
        return f"mx{number + 1}.{self.id}.{self.hosts[number].zone}" if self.mx else self.domain

    def real(self, number: int) -> str:
        """The name that has the address."""
        alias = self.hosts[number].alias
        return f"real{number + 1}.{self.id}.{alias}" if alias else self.name(number)

    @property
    def policy_text(self) -> str:
        mode, *hosts = self.sts.split()
        return text(mode, *(host.format(*map(self.name, range(len(self.hosts)))) for host in hosts))


def shown(certs: Certs, kind: str, *names: str) -> Identity | None:
    """What a host of these names shows."""
    made: Identity
    match kind:
        case "":
            return None
        case "wrong":
            return certs.right("other.example")
        case "wrong_root":
            return certs.right("other.example", root=True)
        case "wild":
            return certs.right("*." + names[0].partition(".")[2], root=True)
        case "domain_root":
            return certs.right(names[0], root=True)
        case "self_signed" | "nameless":
            made = getattr(certs, kind)(names[0])
            return made
    how, _, root = kind.partition("_")
    made = getattr(certs, how)(*names, **({"root": True} if root else {}))
    return made


class Lab:
    """Certificates, ports and names of a table's cases; the DNS is whoever's who makes one."""

    def __init__(self, folder: Path, cases: Sequence[Case]) -> None:
        self.certs = Certs(folder / "certs")
        self.strangers = folder / "strangers.pem"  # the CA that nobody else trusts
        self.strangers.write_bytes(self.certs.stranger.cert_pem.bytes())
        self.port = common_port(ADDRESSES)
        self.cases = cases
        self.identities = {
            (case.id, number): self._shown(case, number) for case in cases for number in range(len(case.hosts))
        }

    def _shown(self, case: Case, number: int) -> Identity | None:
        kind, names = case.hosts[number].shows, dict.fromkeys((case.real(number), case.name(number)))
        return shown(self.certs, kind, case.domain) if kind == "domain_root" else shown(self.certs, kind, *names)

    def records(self, case: Case, number: int) -> list[str]:
        """What TLSA says of a host."""
        identity = self.identities[case.id, number]
        made = []
        for record in case.hosts[number].tlsa:
            if " " in record:
                made.append(record)
                continue
            shows = identity or self.certs.right("nobody.example")
            usage, selector, matching = map(int, record[:3])
            at = int(record[4:] or -1) if usage == 2 else 0  # `211@1`: of the second one in the chain
            made.append(shows.tlsa(usage, selector, matching, at))
        return made

    def pin(self, case: Case) -> str:
        identity = self.identities[case.id, 0]
        key = identity.tlsa(3, 1, 1).rpartition(" ")[2] if identity else OTHER
        return base64.b64encode(bytes.fromhex(key)).decode()

    def tell(self, dns: Told, *cases: Case, ad: bool = False) -> None:
        """A name server what `lines` says; `ad`: as if it were proven."""
        said: dict[tuple[str, str], list[str]] = {}
        for case in cases:
            for _, line in self.lines(case):
                name, kind, value = line.split(" ", 2)
                said.setdefault((name.removesuffix("."), kind), []).append(value)
            said.setdefault((case.domain, "MX"), [])
            for number in range(len(case.hosts)):
                said.setdefault((case.real(number), "AAAA"), [])
        for (name, kind), values in said.items():
            dns.say(name, kind, *values, ad=ad)

    def lines(self, case: Case) -> Iterator[tuple[str, str]]:
        """(zone, line) of all that the DNS holds of a case, but for the records in zones of their own."""
        for number, host in enumerate(case.hosts):
            name, real = case.name(number), case.real(number)
            if case.mx:
                yield case.zone, f"{case.domain}. MX {10 * (number + 1)} {name}."
            if host.alias:
                yield host.zone, f"{name}. CNAME {real}."
            yield host.alias or (host.zone if case.mx else case.zone), f"{real}. A {ADDRESSES[number]}"
            if host.tlsa and not host.tlsa_zone:
                where = f"_{self.port}._tcp.{name if host.tlsa_at == 'host' else real}"
                zone = host.zone if host.tlsa_at == "host" else host.alias or host.zone
                if host.tlsa_at not in ("", "host"):
                    other = f"{host.tlsa_at}.{case.id}.{zone}"
                    if host.tlsa_at.startswith("_dane"):  # one set of records for many services
                        yield zone, f"{where}. CNAME {other}."
                        where = other
                    else:
                        where = f"{host.tlsa_at}.{real}"
                for record in self.records(case, number):
                    yield zone, f"{where}. TLSA {record}"
        if case.sts:
            yield case.zone, f'_mta-sts.{case.domain}. TXT "v=STSv1; id=1;"'
            yield case.zone, f"mta-sts.{case.domain}. A 127.0.0.1"

    def config(
        self, folder: Path, dns: str, *, rule: str = "", trust_ad: bool = True, extra: str = "", timeout: str = "10s"
    ) -> Path:
        tls = f", tls: {rule}" if rule else ""
        lab = f"destinations: [{{name: lab, per: mx, allow_private: true, port: {self.port}{tls}}}]"
        servers = f"dns: {{servers: ['{dns}'], timeout: {timeout}, trust_ad: {str(trust_ad).lower()}}}"
        routes = "  - {name: all, via: direct}"
        return write_config(folder, {}, routes=routes, extra=f"{servers}\n{lab}\n{extra}")

    @contextlib.asynccontextmanager
    async def hosts(self, case: Case) -> Any:
        async with contextlib.AsyncExitStack() as stack:
            made = []
            for number, host in enumerate(case.hosts):
                mx = SimMx(ADDRESSES[number], self.port, dict(host.script), identity=self.identities[case.id, number])
                if host.tls is not None:
                    assert mx.tls is not None
                    host.tls(mx.tls)
                made.append(await stack.enter_async_context(mx))
            yield made


@contextlib.asynccontextmanager
async def policies(lab: Lab, monkeypatch: pytest.MonkeyPatch, *cases: Case) -> Any:
    """Where the policies of these cases are fetched; without any, nobody answers there. The tests' CA is the system's."""
    monkeypatch.setenv("SSL_CERT_FILE", str(lab.certs.bundle))
    async with StsServer(lab.certs) as server:
        monkeypatch.setattr(fetch, "PORT", server.port)
        for case in cases:
            if case.sts:
                more = dict(case.policy)
                if "identity" in more:
                    more["identity"] = shown(lab.certs, more["identity"], f"mta-sts.{case.domain}")
                server.policies[case.domain] = Policy(**{"body": case.policy_text} | more)
        yield server


async def judge(case: Case, lab: Lab, folder: Path, dns: str, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A message to the domain of a case ends as it says."""
    file = lab.config(folder, dns, rule=case.rule.format(lab=lab, pin=lab.pin(case)), trust_ad=case.dns != "untrusted")
    async with policies(lab, monkeypatch, case), lab.hosts(case) as mxs, running(file) as rig:
        (number,) = await rig.send_many([("a@example.com", (f"b@{case.domain}",), MAIL)])
        row = await rig.reaches(number, "delivered", "deferred", "failed")
        assert row["attempts"] == 1
        if case.tls:
            delivered(case, rig, row, mxs)
        else:
            deferred(case, rig, row, mxs)
        if case.visits is not None:
            assert sum(len(mx.visits) for mx in mxs) == case.visits
        story = await rig.message(number)
        last = story["events"][-1]
        assert last.get("tls", "") == (rig.said("delivered")[0]["tls"] if case.tls else ""), last
        if case.told:
            kind, _, why = case.told.partition(": ")
            (event,) = rig.said(kind)
            assert why in event["why"], event
        for egress in rig.app.scheduler.egresses.values():
            assert not egress.breaker.failures and not egress.breaker.is_open
    return rig


def said_mail(mxs: Sequence[SimMx]) -> list[tuple[int, int]]:
    """(host, visit) of all sessions on which mail was said."""
    return [
        (at, number)
        for at, mx in enumerate(mxs)
        for number, visit in enumerate(mx.visits)
        if any(line.upper().startswith("MAIL") for line in visit.commands)
    ]


def delivered(case: Case, rig: Rig, row: dict[str, Any], mxs: Sequence[SimMx]) -> None:
    """By one session, that had the TLS that is told."""
    assert row["state"] == "delivered", row
    (event,) = rig.said("delivered")
    assert re.fullmatch(case.tls, event["tls"]), event["tls"]
    assert event["host"] == f"{case.name(case.by)}[{ADDRESSES[case.by]}]:{mxs[0].port}"
    ((at, number),) = said_mail(mxs)
    assert at == case.by
    (taken,) = mxs[at].accepted
    assert taken.content.endswith(MAIL) and taken.visit is mxs[at].visits[number]
    assert (taken.visit.tls or "clear") == event["tls"].partition(",")[0]
    assert row["last_reply"] == "250 2.0.0 Ok: queued as FAKE00001"  # and no other
    # RFC 7671 §3: of an alias the name whose records count is asked for.
    based = case.real(case.by) if "DANE" in case.tls and case.hosts[case.by].tlsa_at != "host" else case.name(case.by)
    assert taken.visit.sni == (based if taken.visit.tls else None)


def deferred(case: Case, rig: Rig, row: dict[str, Any], mxs: Sequence[SimMx]) -> None:
    """Nobody heard of the mail; it waits, and the whole domain with it."""
    assert row["state"] == "deferred", row
    assert not said_mail(mxs)
    assert row["last_reply"].startswith("451 4.7.5 "), row["last_reply"]
    assert case.why in row["last_reply"], row["last_reply"]
    (event,) = rig.said("deferred")
    assert (event["stage"], event["reply"]) == ("starttls", row["last_reply"])
    assert 290 < event["next_in"] < 500
    (rest,) = rig.said("destination_rests")
    assert rest["domain"] == case.domain and 290 < rest["seconds"] <= 300
