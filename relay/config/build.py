"""A checked shape -> the Config: the rules between keys, the names that refer to one another, and the defaults.

Owns: what follows from several keys together. Promises: goes through everything, tells each problem with its place, and
never raises; what it returns counts only if the Report holds no problem.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from relay.config import places, shaping
from relay.config.accounts import AccountBuilder
from relay.config.attachments import build_attachments
from relay.config.classes import ClassBuilder
from relay.config.direct import BUILT_IN, EGRESSES, DirectBuilder
from relay.config.doors import DoorBuilder, default_listen
from relay.config.drop import build_drop
from relay.config.leaving import DnsSection
from relay.config.limits import LimitsBuilder
from relay.config.matches import MatchSection, build_match
from relay.config.pacing import BreakerSection
from relay.config.problems import Keys, Report
from relay.config.returning import FeedbackBuilder
from relay.config.shape import File, RouteEntry, SpoolSection
from relay.config.shaping import ShapingEntry
from relay.config.signing import SigningBuilder
from relay.config.site import Site, no_such
from relay.config.suppression import build_suppression
from relay.config.tenants import closed
from relay.config.values import parse_hostname, print_duration
from relay.config.warmup import check_overflow
from relay.config.webhooks import build_webhooks
from relay.config.yamltree import Node
from relay.policy.breaker import Health
from relay.policy.classes import DEFAULT_CLASS
from relay.policy.routing import Action, Facts, Match, Question, Route, Table
from relay.policy.shaping import ShapingRule
from relay.resolver import server
from relay.settings import API, Account, Admin, Config, Destination, Dns, Dsn, Log, Pool, Spool


def default_hostname() -> str:
    """The machine's name. Not socket.getfqdn(), which asks the network and can block for long."""
    name = os.uname().nodename
    if "." not in name:  # RFC 5321 §4.1.1.1: EHLO takes a fully-qualified name
        name += ".localdomain"
    try:
        return parse_hostname(name)
    except ValueError:
        return "localhost.localdomain"


def may_report(route: Route) -> bool:
    """Whether it could take a report: from the null sender, by no listener, to a recipient whom nobody knows yet."""
    report = Facts(sender="", recipient="", tag="")
    return route.match.test(lambda q: None if q.fact in ("recipient", "reputation") else q.ask(report)) is not False


class Builder:
    """Builds one Config from one tree."""

    def __init__(self, root: Node, report: Report, source: Path, env: Mapping[str, str]) -> None:
        self.site = Site(root, report, source.absolute().parent)
        self.report = report
        self.source = source
        self.env = env

    def config(self, file: File, kept: Mapping[str, list[int]]) -> Config:
        """`kept` says which elements of the tree's lists those of `file` are."""
        doors = DoorBuilder(self.site)
        socket = self.site.path(file.admin.socket) or places.runtime_folder(self.env) / "admin.sock"
        admin = Admin(socket, file.admin.address, doors.tls(file.admin.tls, ("admin", "tls")), file.admin.audit)
        listen = doors.listen(file, kept)
        doors.addresses(listen, kept.get("listen", []), admin, file.probes.address)
        class_builder = ClassBuilder(self.site, self.match)
        classes = {name: class_builder.build(name, entry) for name, entry in file.classes.items()}
        routes = self.routes(file.routes, kept.get("routes", []))
        capture = None if file.capture is None else Question("recipient", file.capture.allow)
        accounts, pools, destinations = self.egresses(file, kept.get("destinations", []))
        users = {name: doors.user(name, entry) for name, entry in file.users.items()}
        doors.logins(listen, kept.get("listen", []), users)
        tenants = {name: frozenset(user for user in users if users[user].tenant == name) for name in file.tenants}
        routes = closed(file, routes, tenants, self.site)
        limits = LimitsBuilder(self.site, self.match).build(file, kept.get("limits", []), tenants)
        dsn = self.dsn(file, routes, accounts, pools)
        signing = SigningBuilder(self.site)
        named = self.site.list_names("routes", "route")
        feedback = FeedbackBuilder(self.site, doors).build(file, signing.feedback(file.feedback))
        self.unused(file, routes, accounts, pools)
        dns = self.dns(file.dns)
        return Config(
            source=self.source,
            hostname=file.hostname or default_hostname(),
            listen=listen,
            spool=self.spool(file.spool),
            admin=admin,
            routes=Table(routes, capture),
            accounts=accounts,
            pools=pools,
            destinations=destinations,
            classes={"default": DEFAULT_CLASS} | classes,
            users=users,
            tenants=tenants,
            limits=limits,
            breaker=self.breaker(file.breaker),
            shaping=self.shaping(file.shaping, kept.get("shaping", [])),
            dsn=dsn,
            rewrites=signing.rewrites(file.routes, kept.get("routes", [])),
            signing=signing.rules(file.signing, kept.get("signing", []), named),
            arc=signing.arc(file.arc, named),
            feedback=feedback,
            suppression=build_suppression(file.suppression, self.site),
            webhooks=build_webhooks(file, self.site),
            attachments=build_attachments(file.attachments, self.site),
            drop=build_drop(file, self.site),
            dns=dns,
            log=Log(file.log.format, file.log.redact),
            probes=file.probes.address,
            stop_timeout=file.stop_timeout,
            files=tuple(self.report.files),
            sections=self.sections(),
            tree=self.site.root,
            warnings=tuple(str(w) for w in self.report.ordered(self.report.warnings)),
        )

    def sections(self) -> dict[str, str]:
        """So that two generations can be told apart without showing either."""
        found = {
            str(name): json.dumps(value, sort_keys=True, default=str) for name, value in self.site.root.plain().items()
        }
        return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in found.items()}

    def spool(self, section: SpoolSection) -> Spool:
        return Spool(
            self.site.path(section.path) or places.state_folder(self.env) / "spool.db",
            section.max_message_size,
            section.reserve,
            section.max_queued,
            section.keep,
            section.keep_bodies,
        )

    def dns(self, section: DnsSection) -> Dns:
        if section.timeout <= 0:
            self.site.wrong(("dns", "timeout"), "`timeout` must be longer than nothing")
        far = [text for text in section.servers if not ipaddress.ip_address(server(text)[0]).is_loopback]
        if section.trust_ad and (far or not section.servers):
            # RFC 7672 §2.1: DANE is worth no more than the way by which a validating resolver's word comes to us.
            text = (
                f"anybody between us and {far[0] if far else 'the servers of /etc/resolv.conf'} could set the AD bit "
                "(RFC 4035 §4.9.3); name a validating resolver on this machine, such as servers: [127.0.0.1]"
            )
            self.site.warn(("dns", "trust_ad"), text)
        return Dns(section.servers, section.timeout, section.trust_ad)

    # Ways out

    def egresses(
        self, file: File, numbers: list[int]
    ) -> tuple[dict[str, Account], dict[str, Pool], tuple[Destination, ...]]:
        """`numbers`: which elements of the tree's destinations those of `file` are."""
        upstream, direct = AccountBuilder(self.site), DirectBuilder(self.site)
        direct.names()
        accounts = {name: upstream.build(name, entry) for name, entry in file.accounts.items()}
        accounts |= {name: direct.entry(name, entry) for name, entry in file.direct.items() if name != BUILT_IN}
        pools = {name: direct.pool(name, entry) for name, entry in file.pools.items()}
        named = {name for route in file.routes for name in route.via or ()} | {file.dsn.via}
        named |= overflows(accounts.values())
        if BUILT_IN in named | members(pools.values()):
            accounts[BUILT_IN] = direct.built_in(file.direct.get(BUILT_IN))
        plans = {
            name: (account.warm_up, ("direct" if account.source else "accounts", name, "warm_up"))
            for name, account in accounts.items()
            if account.warm_up is not None
        }
        pool_names = self.site.names("pools") or set()
        check_overflow(plans, pool_names, self.site.names("accounts", "direct", also=(BUILT_IN,)), self.site)
        return accounts, pools, direct.destinations(file.destinations, numbers)

    # What rules ask

    def match(self, path: Keys, section: MatchSection) -> Match:
        for part, where in ((section, path), (section.not_, (*path, "not"))):
            if part is None:
                continue
            self.dangling((*where, "class"), "class", part.class_, self.class_names())
            self.dangling((*where, "listener"), "listener", part.listener, self.listener_names())
            self.dangling((*where, "user"), "user", part.user, self.site.names("users", also=("",)))
        return build_match(section)

    def class_names(self) -> set[str] | None:
        return self.site.names("classes", also=("default",))

    def listener_names(self) -> set[str] | None:
        folders = {f"drop:{name}" for name in self.site.names("drop") or ()}
        if self.site.root.find(("listen",)) is None:
            return {API.name, *(one.name for one in default_listen())} | folders
        found = self.site.list_names("listen", "listener")
        return None if found is None else found | folders | {API.name}

    def dangling(self, path: Keys, what: str, patterns: tuple[str, ...] | None, known: set[str] | None) -> None:
        for number, pattern in enumerate(patterns or ()):
            self.site.known((*path, number), what, pattern, known)

    # What is done about failures

    def breaker(self, section: BreakerSection) -> Health:
        for key in ("cool_down", "max"):
            if getattr(section, key) <= 0:
                self.site.wrong(("breaker", key), f"`{key}` must be longer than nothing")
        if 0 < section.max < section.cool_down:
            named = "max" if "max" in section.model_fields_set else "cool_down"
            text = f"`max` ({print_duration(section.max)}) is shorter than `cool_down` ({print_duration(section.cool_down)})"
            self.site.wrong(("breaker", named), text)
        return Health(section.failures, section.cool_down, section.max)

    def shaping(self, entries: Iterable[ShapingEntry], numbers: list[int]) -> tuple[ShapingRule, ...]:
        self.site.names_once("shaping", "shaping")
        made = []
        for number, entry in zip(numbers, entries, strict=True):
            path: Keys = ("shaping", number)
            key, wrong = shaping.problem(entry)
            if wrong:
                self.site.wrong((*path, key) if key else path, wrong)
            self.dangling((*path, "match", "class"), "class", entry.match.class_, self.class_names())
            known = self.site.names("accounts", "direct", also=(BUILT_IN,))
            self.dangling((*path, "match", "egress"), "account", entry.match.egress, known)
            mark = self.site.root.mark_of(path)
            made.append(shaping.rule(entry, f"shaping-{number + 1}", f"{mark.file}:{mark.line}"))
        return tuple(made)

    # Routes

    def routes(self, entries: Iterable[RouteEntry], numbers: list[int]) -> tuple[Route, ...]:
        node = self.site.root.find(("routes",))
        if node is None:
            self.site.wrong(("routes",), "'routes' is missing; the least is `routes: [{via: NAME}]` and an account")
        elif node.value == []:
            self.site.wrong(("routes",), "an empty list would refuse all mail; the least is `[{via: NAME}]`")
        self.site.names_once("routes", "route")
        routes = tuple(self.route(n, entry) for n, entry in zip(numbers, entries, strict=True))
        last: Route | None = None
        for number, route in zip(numbers, routes, strict=True):
            if last is not None:
                self.site.warn(("routes", number), f"unreachable: route '{last.name}' before it takes everything")
            elif route.match == Match():
                last = route
        return routes

    def route(self, number: int, entry: RouteEntry) -> Route:
        path: Keys = ("routes", number)
        name = entry.name or f"route-{number + 1}"
        given = [a for a in ("via", "reject", "hold", "discard") if getattr(entry, a) is not None]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none"
            self.site.wrong(path, f"a route does exactly one of via, reject, hold, discard; {found}")
        via = entry.via or ()
        self.via((*path, "via"), via)
        match = Match() if entry.match is None else self.match((*path, "match"), entry.match)
        mark = self.site.root.mark_of(path)
        return Route(
            name,
            Action(given[0]) if given else Action.HOLD,
            match,
            via,
            entry.reject or "",
            entry.copy_ or (),
            f"{mark.file}:{mark.line}",
        )

    def via(self, path: Keys, names: tuple[str, ...], *, alone: bool = False) -> None:
        """`alone`: the key holds one name and no list."""
        known = self.site.names(*EGRESSES, also=(BUILT_IN,))
        for number, name in enumerate(names):
            where = path if alone else (*path, number)
            if name in names[:number]:
                self.site.wrong(where, f"'{name}' is named twice; fail-over tries each once")
            elif known is not None and name not in known:
                self.site.wrong(where, no_such("account", name, known))

    # Reports

    def dsn(
        self, file: File, routes: Iterable[Route], accounts: Mapping[str, Account], pools: Mapping[str, Pool]
    ) -> Dsn:
        via = file.dsn.via or ""
        if via:
            self.via(("dsn", "via"), (via,), alone=True)
        able = {name for name, account in accounts.items() if Question("sender", account.senders).matches("")}
        if via in accounts and via not in able:
            section = "direct" if via in file.direct else "accounts"
            text = f"'{via}' may not send reports, which have the null sender; add \"\" to {section}.{via}.senders"
            self.site.wrong(("dsn", "via"), text)
        elif via in pools and not any(name in able or name not in accounts for name, _ in pools[via].members):
            text = f"no member of '{via}' may send reports, which have the null sender; add \"\" to the senders of one"
            self.site.wrong(("dsn", "via"), text)
        elif file.dsn.to != "none" and accounts and not able:
            text = 'none may send reports, which have the null sender; add "" to the senders of one, or say dsn: {to: none}'
            self.site.warn(("accounts" if file.accounts else "direct",), text, on_key=True)
        elif file.dsn.to != "none" and not via and not self.report.problems and not any(map(may_report, routes)):
            text = (
                "none takes reports, which have the null sender and no user: senders will not hear of what failed; "
                'name an account in dsn.via, add a rule for `sender: ""`, or say dsn: {to: none}'
            )
            self.site.warn(("routes",), text, on_key=True)
        return Dsn(file.dsn.to, via, file.dsn.delay_after, file.dsn.postmaster or "")

    def unused(
        self, file: File, routes: Iterable[Route], accounts: Mapping[str, Account], pools: Mapping[str, Pool]
    ) -> None:
        if self.report.problems:
            return  # a route that was left out may use it
        used = {name for route in routes for name in route.via} | {file.dsn.via or ""}
        used |= members(pool for name, pool in pools.items() if name in used) | overflows(accounts.values())
        for section, kind in (("accounts", "account"), ("direct", "entry"), ("pools", "pool")):
            for name in getattr(file, section):
                if name not in used | members(pools.values()) | {BUILT_IN}:  # that one is in no file
                    self.site.warn((section, name), f"no route uses this {kind}", on_key=True)
        if file.destinations and not any(accounts[name].source for name in used if name in accounts):
            self.site.warn(("destinations",), "no route leaves by MX, so nothing uses them", on_key=True)


def overflows(accounts: Iterable[Account]) -> set[str]:
    return {account.warm_up.overflow for account in accounts if account.warm_up}


def members(pools: Iterable[Pool]) -> set[str]:
    return {name for pool in pools for name, _ in pool.members}
