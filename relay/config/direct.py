"""`direct`, `pools`, `destinations` -> delivery by MX: from where, shared by whom, and how to whom."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence

from relay.config import presets
from relay.config.egress import EgressBuilder, largest
from relay.config.matches import build_hop_match
from relay.config.mx import DestinationEntry, DirectEntry, HopTlsSection, PoolEntry
from relay.config.overlay import PLACE
from relay.config.problems import Keys, Mark
from relay.config.site import no_such
from relay.policy.routing import Match
from relay.secrets import Reference
from relay.settings import Account, Destination, Pool, Source, Tls

BUILT_IN = "direct"
EGRESSES = ("accounts", "direct", "pools")  # the sections whose names a `via` may hold
_BY_MX = Reference("plain", "mx")  # in the place of a host: the recipients' domains name theirs
_TO_ANYBODY = Tls("opportunistic", verify=False)


class DirectBuilder(EgressBuilder):
    def names(self) -> None:
        """That a `via` means one thing."""
        first: dict[str, tuple[str, Mark]] = {}
        for section in EGRESSES:
            node = self.site.root.find((section,))
            for name, mark in node.keys.items() if node and isinstance(node.value, dict) else ():
                if name == BUILT_IN and mark == PLACE:
                    continue  # its limits, changed at run time
                if name == BUILT_IN:
                    text = "`direct` is the name of delivery by MX from the kernel's address; choose another"
                    self.site.wrong((section, name), text, on_key=True)
                elif name in first:
                    other, where = first[name]
                    text = (
                        f"{other}.{name} at {where.seen_from(mark)} has this name already; a `via` must mean one thing"
                    )
                    self.site.wrong((section, name), text, on_key=True)
                else:
                    first[name] = (section, mark)

    def entry(self, name: str, entry: DirectEntry) -> Account:
        path: Keys = ("direct", name)
        limits = self.limits(entry.limits, (*path, "limits"))
        if entry.hostname is not None and "." not in entry.hostname:
            text = f"'{entry.hostname}' is not fully qualified (RFC 5321 §2.3.5): many receivers refuse it in EHLO"
            self.site.warn((*path, "hostname"), text)
        return Account(
            name,
            _BY_MX,
            25,
            _TO_ANYBODY,
            senders=entry.senders,
            connections=entry.connections,
            recipients_per_message=largest(100, limits),
            limits=limits,
            replies=self.replies(entry.replies, (*path, "replies")) + presets.generic(),
            shaping=presets.receivers(),
            source=self.source(entry, (*path, "source")),
            warm_up=self.warm_up(entry.warm_up, (*path, "warm_up")),
        )

    def built_in(self, entry: DirectEntry | None) -> Account:
        """What `direct` means where nobody says more than was changed at run time."""
        return self.entry(BUILT_IN, entry or DirectEntry())

    def source(self, entry: DirectEntry, path: Keys) -> Source:
        given = {"v4": "", "v6": ""}
        for number, address in enumerate(entry.source or ()):
            where, family = (*path, number), "v6" if ":" in address else "v4"
            if given[family]:
                kind = "IPv6" if family == "v6" else "IPv4"
                text = f"a second {kind} address; an entry has one of each at most: make two, and a pool of them"
                self.site.wrong(where, text)
            elif is_missing(address):
                self.site.warn(where, f"this machine has no address {address} now; nothing leaves from it until it has")
            given[family] = address
        return Source(given["v4"], given["v6"], entry.hostname or "")

    # Pools

    def pool(self, name: str, entry: PoolEntry) -> Pool:
        path: Keys = ("pools", name, "members")
        pools = self.site.names("pools") or set()
        known = self.site.names("accounts", "direct", also=(BUILT_IN,))
        node = self.site.root.find(path)
        listed = node is not None and isinstance(node.value, list)
        for number, member in enumerate(entry.members):
            where: Keys = (*path, number if listed else member)
            if member in pools and (known is None or member not in known):
                text = f"'{member}' is a pool; the members of one are accounts and direct entries"
                self.site.wrong(where, text, on_key=True)
            elif known is not None and member not in known:
                self.site.wrong(where, no_such("account", member, known), on_key=True)
        return Pool(name, tuple(entry.members.items()))

    # Destinations

    def destinations(self, entries: Iterable[DestinationEntry], numbers: Sequence[int]) -> tuple[Destination, ...]:
        self.site.names_once("destinations", "destination")
        made = tuple(self.destination(n, entry) for n, entry in zip(numbers, entries, strict=True))
        last: Destination | None = None
        for number, one in zip(numbers, made, strict=True):
            if last is not None:
                text = f"unreachable: destination '{last.name}' before it takes everything"
                self.site.warn(("destinations", number), text)
            elif one.match == Match():
                last = one
        return made

    def destination(self, number: int, entry: DestinationEntry) -> Destination:
        path: Keys = ("destinations", number)
        limits = self.limits(entry.limits, (*path, "limits"))
        for n, limit in enumerate(entry.limits):
            if limit.when_full == "reject" and limit.rate.unit != "connections":
                text = "whose MX it is nobody knows yet when mail is handed in; use defer or next, or a limit with `per: destination`"
                self.site.wrong((*path, "limits", n, "when_full"), text)
        mark = self.site.root.mark_of(path)
        if entry.warm_up is not None and entry.warm_up.overflow is not None:
            text = "what a destination has in excess waits; `overflow` is of the warm-up of an account or direct entry"
            self.site.wrong((*path, "warm_up", "overflow"), text)
        return Destination(
            entry.name or f"destination-{number + 1}",
            Match() if entry.match is None else build_hop_match(entry.match),
            entry.per,
            entry.connections,
            entry.messages_per_connection,
            largest(entry.recipients_per_message, limits),
            limits,
            None if entry.tls is None else self.tls(entry.tls, (*path, "tls")),
            entry.port,
            entry.allow_private,
            self.warm_up(entry.warm_up, (*path, "warm_up")),
            f"{mark.file}:{mark.line}",
        )

    def tls(self, section: HopTlsSection, path: Keys) -> Tls:
        """Whoever says how a certificate is checked wants TLS."""
        return self.trust(section, section.mode or "starttls", path)


def is_missing(address: str) -> bool:
    """Whether this machine certainly has no such address now."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
    return False
