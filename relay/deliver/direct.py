"""Reaching a domain's own servers: its hosts in their order, their addresses, and TLS as its policy wants it.

Promises: no mail is said on a session that does not meet what is required of it for this domain; no address is dialled that is
ours, or that is not of the public network (unless a rule allows it). A host that could not be reached is tried after the others
for a while. Every failure is a `Failure` with its stage; `OfDomain` where it says nothing about the hosts that other domains share.
"""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace

from relay import clock, metrics
from relay.deliver.connect import Client, NoTls, converse, dialled, words
from relay.deliver.dead import FIRST, Dead
from relay.deliver.dialogue import SILENT
from relay.deliver.ours import Ours
from relay.deliver.smtp import Failure, Upstream
from relay.deliver.tls import context_for, peer_chain
from relay.deliver.tried import Tried, at
from relay.envelope import ascii_domain
from relay.maillog import MailLog
from relay.nexthop.dane import Mismatch, verify
from relay.nexthop.hops import Addresses, Hops
from relay.nexthop.mx import Mx
from relay.nexthop.policy import DomainPolicy, Level, Requirement, Security, Unsafe
from relay.policy.networks import is_public
from relay.reply import Reply, Stage
from relay.resolver import DnsTrouble
from relay.settings import Account, Destination, Tls

MOST_ADDRESSES = 5  # that are dialled in one attempt, as Postfix does (smtp_mx_address_limit)
MOST_HOSTS = 20  # that are looked at for that
MOST_LOOKED_AT = 50  # addresses of each kind of a host; an answer of the DNS has room for thousands
LONG = 60.0  # seconds of an attempt after which no further address is dialled: it has a place that others may wait for
SET_UP = 300.0  # seconds for a session up to its first MAIL, however many replies that takes; RFC 5321 §4.5.3.2.1 for the first
PATIENCE = 3.0  # seconds for what a domain's policy is; who asks again later finds it
BY_SOURCE = "family"
SERVES = 2.0  # seconds that a session is good for a domain's next message without a look at its MX, policy and records
OF_OURS = (errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EAFNOSUPPORT)  # no such source, no route

SECURITY = metrics.Counter(
    "relay_direct_sessions_total",
    "Sessions with the servers of recipients' domains, by the TLS that they have",
    ["egress", "tls"],
)
TESTING = metrics.Counter(
    "relay_sts_testing_failures_total", "Sessions that an MTA-STS policy would have refused, were it enforced"
)


class OfDomain(Failure):
    """It is about this domain alone: its DNS, its policy. Other domains of the same hosts are none the worse."""


class NoSource(OfDomain):
    """It has no address of the family that the domain's hosts have; another egress may."""


class OfOurs(Failure):
    """It is about this machine: its routes, its addresses. Nothing is known of the host."""


class Direct:
    """One direct entry's way to one lane's domains. Shared: `mx`, `security`, `dead`, `ours`."""

    def __init__(
        self,
        account: Account,
        rule: Destination,
        hostname: str,
        *,
        mx: Mx,
        security: Security,
        dead: Dead,
        ours: Ours,
        log: MailLog,
    ) -> None:
        assert account.source is not None
        self.account, self.rule, self.source = account, rule, account.source
        self.hostname = account.source.hostname or hostname
        self.mx, self.security, self.dead, self.ours, self.log = mx, security, dead, ours, log

    # -- a session that is open already

    async def serves(self, session: Upstream, domain: str) -> bool:
        """Whether mail to this domain may go on it. Raises Failure."""
        now = clock.monotonic()
        if session.served.get(domain, 0.0) <= now:
            if not await self._may_serve(session, await self._hops(domain)):
                return False
            session.served[domain] = now + SERVES
        return True

    async def _policy(self, hops: Hops) -> DomainPolicy:
        """Where its server takes its time, what held before: a session, or the place of one, is not kept for that. Raises OfDomain
        where nothing did; the next attempt has the answer."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self.security.of_domain(hops, self.rule)
        except TimeoutError:
            if (known := self.security.meanwhile(hops, self.rule)) is not None:
                return known
            text = f"whether {hops.domain} has an MTA-STS policy is not known yet"
            raise OfDomain(Stage.RESOLVE, Reply(451, text, "4.7.5")) from None

    async def _may_serve(self, session: Upstream, hops: Hops) -> bool:
        if session.requirement is None or not self._is_next(session, hops):
            return False
        try:
            addresses = await self.mx.addresses(session.host)
            policy = await self._policy(hops)
            return await self.security.of_host(policy, session.host, addresses) == session.requirement
        except (DnsTrouble, Unsafe):
            return False

    # -- a new one

    async def reach(self, domain: str, dials: Callable[[], None] = lambda: None) -> Upstream:
        """`dials` is asked before each connection. Raises Failure, and what `dials` raises."""
        hops = await self._hops(domain)
        policy = await self._policy(hops)
        tried, late = Tried(domain, dials), clock.monotonic() + LONG
        order, left = self.order(hops, tried), MOST_ADDRESSES
        for number, (place, host) in enumerate(order):
            if left <= 0 or number == MOST_HOSTS or clock.monotonic() > late:
                tried.more(f"{len(order) - number} more hosts")
                break
            if place >= tried.ours:
                continue
            found = await self.required(policy, host, tried)
            if found is None:
                continue
            addresses, requirement = found
            usable = self.usable(host, addresses, tried, place)
            if not addresses.v4 and not addresses.v6:
                self.dead.note(self.key(host), clock.monotonic())
            for dialled_, address in enumerate(usable):
                if dialled_ == left or clock.monotonic() > late:
                    tried.more(f"{len(usable) - dialled_} more addresses of {host}")
                    break
                session = await self._one(host, address, requirement, tried, place)
                if session is not None:
                    return session
            left -= len(usable)
        raise self._failure(domain, tried)

    async def _hops(self, domain: str) -> Hops:
        hops = await self.mx.find(domain)
        if hops.refusal is not None:
            raise OfDomain(Stage.RESOLVE, hops.refusal)
        return hops

    def _is_next(self, session: Upstream, hops: Hops) -> bool:
        """Whether its host is one of the best that can be reached: RFC 5321 §5.1 wants them in their order."""
        now = clock.monotonic()
        for group in hops.hosts:
            if session.host in group:
                return True
            if session.domain != hops.domain and not all(self.dead.until(self.key(name), now) for name in group):
                return False
        return False

    def order(self, hops: Hops, tried: Tried) -> list[tuple[int, str]]:
        """With their places. Best preference first, in no order among equals; what is dead for now after the others."""
        names: list[tuple[int, str]] = []
        for place, group in enumerate(hops.hosts):
            if ours := [name for name in group if self.ours.is_named(name)]:
                # RFC 5321 §5.1: we are one of them, so those from here on would only hand it back to us.
                tried.notes.append(f"{' and '.join(ours)}: that is this relay")
                tried.ours = place
                break
            names += [(place, name) for name in random.sample(group, len(group))]
        now = clock.monotonic()
        return sorted(names, key=lambda found: self.dead.until(self.key(found[1]), now))

    async def required(self, policy: DomainPolicy, host: str, tried: Tried) -> tuple[Addresses, Requirement] | None:
        try:
            addresses = await self.mx.addresses(host)
            return addresses, await self.security.of_host(policy, host, addresses)
        except DnsTrouble as error:
            tried.passing = True
            tried.notes.append(f"{host}: {error}")
        except Unsafe as unsafe:
            tried.unsafe = unsafe
            tried.notes.append(str(unsafe))
        return None

    def usable(self, host: str, addresses: Addresses, tried: Tried, place: int) -> list[str]:
        """Those that may be dialled, of the two families in turn."""
        if not addresses.v4 and not addresses.v6:
            tried.notes.append(f"{host}: it has no address")
        found: list[str] = []
        v6, v4 = list(addresses.v6[:MOST_LOOKED_AT]), list(addresses.v4[:MOST_LOOKED_AT])
        if max(len(addresses.v6), len(addresses.v4)) > MOST_LOOKED_AT:
            tried.more(f"addresses of {host} beyond {MOST_LOOKED_AT}")
        for i in range(max(len(v6), len(v4))):
            found += [*v6[i : i + 1], *v4[i : i + 1]]
        kept = []
        for address in found:
            if self.ours.hears(address, self.rule.port):
                tried.notes.append(f"{at(host, address)}: that is this relay")
                tried.ours = min(tried.ours, place)
            elif not self.rule.allow_private and not is_public(address):
                tried.notes.append(f"{at(host, address)}: not an address of the public network (allow_private)")
            elif not self._leaves_by(address):
                kind = 6 if ":" in address else 4
                tried.notes.append(f"{at(host, address)}: {self.account.name} has no IPv{kind} source")
                tried.sourceless = True
            else:
                kept.append(address)
        if place >= tried.ours:
            return []
        now = clock.monotonic()
        return sorted(kept, key=lambda a: (self.dead.until(self.family(a), now), self.dead.until(self.key(a), now)))

    def _leaves_by(self, address: str) -> bool:
        source = self.source
        return bool(source.v6 if ":" in address else source.v4) or not (source.v4 or source.v6)

    async def _one(
        self, host: str, address: str, requirement: Requirement, tried: Tried, place: int
    ) -> Upstream | None:
        """A session with this address; None: why not is in `tried`."""
        where = at(host, address)
        try:
            session = await self._session(host, address, requirement, tried)
        except Unsafe as unsafe:
            tried.unsafe = unsafe
            tried.notes.append(f"{where}: {unsafe}")
            return None
        except Failure as failure:
            if failure.reply.enhanced == "5.4.6":
                tried.ours = min(tried.ours, place)
            elif failure.reply.code == 521:  # RFC 7504 §3: it takes no mail, today and tomorrow
                tried.refused += 1
            else:
                tried.network = failure
            if failure.reply.code in (0, 521) and not isinstance(failure, OfOurs):
                self.dead.note(self.key(address), clock.monotonic())
                self.dead.note(self.key(host), clock.monotonic())
            tried.notes.append(f"{where}: {failure.reply}")
            return None
        self.dead.forget(self.key(host), self.key(address), self.family(address))
        session.domain = tried.domain
        return session

    async def _session(self, host: str, address: str, requirement: Requirement, tried: Tried) -> Upstream:
        """Raises Unsafe, Failure."""
        if requirement.tests:
            try:
                session = await self._as_if_enforced(host, address, requirement, tried)
            except Unsafe as unsafe:
                TESTING.inc()
                self.log.warning("sts_testing_failed", domain=tried.domain, host=host, why=str(unsafe))
            else:
                session.requirement = requirement
                return session
        # One whose TLS is broken is not asked for it with each session, for each time would be a connection more; but after a
        # minute again, for somebody on the way may have broken it. What a rule or a policy asks for is asked for each time.
        broken, may = self.broken_tls(host, address), requirement.level is Level.MAY
        if may and self.dead.until(broken, clock.monotonic()):
            return await self._opened(host, address, requirement, Tls("none"), tried)
        try:
            session = await self._opened(host, address, requirement, requirement.tls, tried)
        except NoTls as error:
            # Opportunistic and only that: RFC 3207 §4.1 lets the client go on without.
            if not may:
                raise Unsafe(f"STARTTLS: {error.reply} ({requirement.by})") from None
            self.dead.note(broken, clock.monotonic(), FIRST)
            return await self._opened(host, address, requirement, Tls("none"), tried)
        self.dead.forget(broken)
        return session

    async def _as_if_enforced(self, host: str, address: str, requirement: Requirement, tried: Tried) -> Upstream:
        """Raises Unsafe, Failure."""
        if requirement.refused:
            raise Unsafe(requirement.refused)
        tls = Tls("starttls")
        return await self._opened(host, address, replace(requirement, level=Level.VERIFY, tls=tls), tls, tried)

    async def _opened(self, host: str, address: str, requirement: Requirement, tls: Tls, tried: Tried) -> Upstream:
        """Raises Unsafe, Failure, NoTls."""
        # RFC 8461 §4.2 wants the name among those of the certificate (SAN); a rule may trust older ones.
        subject = self.rule.tls is not None
        try:
            context = await asyncio.to_thread(context_for, tls, subject=subject) if tls.mode != "none" else None
        except (OSError, ssl.SSLError) as error:
            raise OfOurs(Stage.STARTTLS, Reply(0, f"TLS set-up for {self.rule.name}: {error}")) from None
        tried.dials()
        sock = await self._dial(address)
        # An address is no name to ask for (RFC 6066 §3).
        matched, name = "", address if host.startswith("[") else requirement.base or host

        async def check(client: Client) -> None:
            nonlocal matched
            self._not_ourselves(client, host)
            if requirement.level is Level.DANE:
                matched = await _proven(client, requirement)

        try:
            async with asyncio.timeout(SET_UP):
                session = await converse(self.account, self.hostname, sock, name, tls, context, check)
        except TimeoutError:
            raise Failure(Stage.EHLO, SILENT) from None
        except NoTls as error:
            if tls.mode == "starttls":
                raise Unsafe(f"STARTTLS: {error.reply} ({requirement.by})") from None
            raise
        except Failure as failure:
            if failure.stage is Stage.STARTTLS:
                raise Unsafe(f"{failure.reply} ({requirement.by})") from None
            raise
        session.host, session.requirement = host, requirement
        session.remote = f"{at(host, address)}:{self.rule.port}"
        session.security = _told(session.tls_version, requirement, matched)
        SECURITY.inc(1, self.account.name, requirement.level.value if session.tls_version else "clear")
        return session

    async def _dial(self, address: str) -> socket.socket:
        v6 = ":" in address
        try:
            return await dialled(
                socket.AF_INET6 if v6 else socket.AF_INET,
                (address, self.rule.port),
                self.source.v6 if v6 else self.source.v4,
            )
        except OSError as error:
            reply = Reply(0, words(error))
            if error.errno not in OF_OURS:
                raise Failure(Stage.CONNECT, reply) from None
            self.dead.note(self.family(address), clock.monotonic())
            raise OfOurs(Stage.CONNECT, reply) from None

    def key(self, what: str) -> str:
        """What is dead: a host, or an address. At another port it may be another one's."""
        return what if self.rule.port == 25 else f"{what}:{self.rule.port}"

    def broken_tls(self, host: str, address: str) -> str:
        """What is dead where TLS is offered and can't be had: of an address by this name (SNI), as the rule asks for it."""
        return f"TLS {self.rule.tls.minimum if self.rule.tls else ''} of {at(host, self.key(address))}"

    def family(self, address: str) -> str:
        """What is dead where we have no way out by IPv4, or by IPv6."""
        return f"{self.account.name} {BY_SOURCE} {6 if ':' in address else 4}"

    def _not_ourselves(self, client: Client, host: str) -> None:
        """A server that greets with our own name is us, or would hand it back to us. Raises Failure."""
        said = client.last_ehlo_response
        name = said.message.split(maxsplit=1)[:1] if said is not None else []
        if name and self.ours.is_named(ascii_domain(name[0])):
            raise Failure(Stage.EHLO, Reply(0, f"{host} greets with our own name {name[0]}", "5.4.6"))

    def _failure(self, domain: str, tried: Tried) -> Failure:
        """What the attempt came to: what may pass before what will not."""
        if tried.unsafe is not None:
            # Before all else: a policy that leaves out good hosts must not make bad ones out of those that others share.
            return OfDomain(Stage.STARTTLS, Reply(451, tried.text, "4.7.5"))
        if tried.network is not None:
            return Failure(
                tried.network.stage, Reply(tried.network.reply.code, tried.text, tried.network.reply.enhanced)
            )
        if tried.passing:
            return OfDomain(Stage.RESOLVE, Reply(451, tried.text, "4.4.3"))
        if tried.sourceless:
            return NoSource(Stage.RESOLVE, Reply(451, tried.text, "4.4.4"))
        if tried.ours == 0:
            return OfDomain(Stage.RESOLVE, Reply(554, f"mail for {domain} loops back to us: {tried.text}", "5.4.6"))
        if tried.refused:
            return OfDomain(Stage.RESOLVE, Reply(556, f"{domain} takes no mail: {tried.text}", "5.1.10"))
        return OfDomain(Stage.RESOLVE, Reply(550, f"no host of {domain} can be dialled: {tried.text}", "5.4.4"))


async def _proven(client: Client, requirement: Requirement) -> str:
    """By which record. Raises Unsafe."""
    chain = peer_chain(client.get_transport_info("ssl_object"))
    try:
        # Off the loop: a chain of RSA keys takes milliseconds, and a hostile one more.
        return await asyncio.to_thread(verify, chain, requirement.records, requirement.names, clock.now())
    except Mismatch as error:
        raise Unsafe(f"DANE: {error}") from None


def _told(version: str, requirement: Requirement, matched: str) -> str:
    if not version:
        return "clear"
    how = {Level.DANE: f"DANE {matched}", Level.VERIFY: f"verified, {requirement.by}"}.get(
        requirement.level, "not verified"
    )
    return f"{version}, {how}"
