"""`listen` and `users`: who may hand in mail. Owns that no configuration makes an open relay, or asks for passwords in clear."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from relay.certificate import complaint, load_into
from relay.config.feedbackhttp import HttpTlsSection
from relay.config.problems import Keys
from relay.config.shape import File, ListenEntry, UserEntry
from relay.config.site import Site, no_such
from relay.config.upstream import ListenTlsSection
from relay.secrets import Reference, SecretError
from relay.settings import Activated, Address, Admin, Listen, ServerTls, User

EVERYBODY = ("0.0.0.0/0", "::/0")


def default_listen() -> tuple[Listen, ...]:
    return (
        Listen("local", Address("127.0.0.1", 2525)),
        Listen("local6", Address("::1", 2525), optional=True),
    )


def is_loopback(address: Address) -> bool:
    return ipaddress.ip_address(address.host).is_loopback


class DoorBuilder:
    def __init__(self, site: Site) -> None:
        self.site = site
        self._taken: list[tuple[Address, str]] = []

    def listen(self, file: File, kept: Mapping[str, list[int]]) -> tuple[Listen, ...]:
        self.site.names_once("listen", "listener")
        if file.listen is None:
            return default_listen()
        if not file.listen and not kept.get("listen") and self.site.length("listen") == 0:
            self.site.wrong(("listen",), "an empty list; without the key it listens on 127.0.0.1:2525 and [::1]:2525")
        return tuple(self.listener(n, entry) for n, entry in zip(kept["listen"], file.listen, strict=True))

    def listener(self, number: int, entry: ListenEntry) -> Listen:
        path: Keys = ("listen", number)
        clients = entry.clients or ()
        # Whether a socket of systemd is local is looked at once it is there: listener/activation.py.
        activated = isinstance(entry.address, Activated)
        local = not entry.proxy and (isinstance(entry.address, Activated) or is_loopback(entry.address))
        if not local:
            self.closed(path, entry, clients)
        if (not local or activated) and entry.auth != "required":
            self.not_everybody((*path, "clients"), clients)
        if entry.clients is not None and not clients:
            self.site.wrong((*path, "clients"), "an empty list would serve nobody; name networks or remove the key")
        for key in ("idle_timeout", "transaction_timeout"):
            if getattr(entry, key) <= 0:
                self.site.wrong((*path, key), f"`{key}` must be longer than nothing")
        if entry.max_messages.user and entry.auth == "none":
            self.site.warn(
                (*path, "max_messages", "user"), "it binds nobody: `auth: none` lets nobody log in here", on_key=True
            )
        # One address is one application on loopback no more than elsewhere: there, all of them are one.
        per_client = entry.max_connections.client
        if not local and "client" not in entry.max_connections.model_fields_set:
            per_client = min(50, entry.max_connections.total)
        return Listen(
            entry.name or f"listener-{number + 1}",
            entry.address,
            frozenset(entry.honour),
            entry.line_endings,
            entry.max_recipients,
            entry.max_connections.total,
            per_client,
            tls=self.tls(entry.tls, (*path, "tls")),
            auth=entry.auth,
            clients=clients,
            proxy=entry.proxy,
            client_rate=entry.max_messages.client,
            user_rate=entry.max_messages.user,
            idle_timeout=entry.idle_timeout,
            transaction_timeout=entry.transaction_timeout,
            min_rate=entry.min_rate,
            headers=entry.headers,
        )

    def closed(self, path: Keys, entry: ListenEntry, clients: tuple[str, ...]) -> None:
        """Of one that others than this machine can reach: that it serves nobody whom it does not know."""
        if entry.auth != "required" and not clients:
            text = (
                "a listener beyond loopback would relay for everybody; say `auth: required`, or `clients: [10.0.0.0/8]`"
            )
            self.site.wrong((*path, "address"), text)
        if entry.auth != "none" and entry.tls is None:
            text = "logins would cross the network in clear; say `tls: {mode: starttls, certificate: …, key: …}`"
            self.site.wrong((*path, "auth"), text)

    def not_everybody(self, path: Keys, clients: tuple[str, ...]) -> None:
        for n, network in enumerate(clients):
            if network in EVERYBODY:
                text = (
                    f"{network} is everybody: that would be an open relay; say `auth: required`, or name your networks"
                )
                return self.site.wrong((*path, n), text)
        # More than half of IPv4, or all of IPv6 that is given out (2000::/3), in however many pieces.
        for version, many in ((4, 1 << 31), (6, 1 << 125)):
            networks: list[Any] = [ip for ip in map(ipaddress.ip_network, clients) if ip.version == version]
            if sum(ip.num_addresses for ip in ipaddress.collapse_addresses(networks)) >= many:
                self.site.wrong(path, "together these are everybody: that would be an open relay; name your networks")

    def tls(self, section: ListenTlsSection | HttpTlsSection | None, path: Keys) -> ServerTls | None:
        """A server of HTTP speaks it from the first byte."""
        if section is None:
            return None
        certificate = self.site.existing(section.certificate, (*path, "certificate"))
        assert certificate is not None
        key = self.site.reference(section.key, (*path, "key"))
        self.fits(certificate, key, (*path, "certificate"))
        mode = section.mode if isinstance(section, ListenTlsSection) else "implicit"
        return ServerTls(mode, certificate, key, section.minimum)

    def fits(self, certificate: Path, key: Reference | None, path: Keys) -> None:
        """That a listener could start with these. One that can't be read was told already; no command is run."""
        if key is not None and (key.kind == "command" or key.problem()):
            return
        try:
            load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, key)
        except (ssl.SSLError, ValueError) as error:
            self.site.wrong(path, f"{certificate}: {complaint(error)}")
        except (OSError, SecretError):
            return

    # -- addresses

    def addresses(self, listen: Iterable[Listen], numbers: list[int], admin: Admin, probes: Address | None) -> None:
        for place, one in enumerate(listen):
            path: Keys = ("listen", numbers[place], "address") if numbers else ("listen",)
            if isinstance(one.address, Address):
                self.take(one.address, f"listener '{one.name}'", path)
        if admin.address:
            if admin.tls is None and not is_loopback(admin.address):
                text = "tokens would cross the network in clear; say `tls: {certificate: …, key: …}`, or use 127.0.0.1"
                self.site.wrong(("admin", "address"), text)
            self.take(admin.address, "admin", ("admin", "address"))
        if probes:
            self.take(probes, "probes", ("probes", "address"))

    def take(self, address: Address, who: str, path: Keys) -> None:
        """It is `who`'s from now on; a problem where it was somebody's already."""
        for other, owner in self._taken:
            if address.port and _overlap(address, other):
                self.site.wrong(path, f"{address} is taken by {owner} ({other}); choose another port")
                break
        self._taken.append((address, who))

    # -- users

    def user(self, name: str, entry: UserEntry) -> User:
        path: Keys = ("users", name)
        if entry.password is not None and entry.password_hash is not None:
            self.site.wrong(path, "a user has one of password, password_hash; found both")
        for number, class_ in enumerate(entry.classes):
            known = self.site.names("classes", also=("default",))
            self.site.known((*path, "classes", number), "class", class_, known)
        tenants = self.site.names("tenants")
        if entry.tenant is not None and tenants is not None and entry.tenant not in tenants:
            self.site.wrong((*path, "tenant"), no_such("tenant", entry.tenant, tenants))
        return User(
            name,
            self.site.reference(entry.password, (*path, "password")),
            entry.password_hash or "",
            entry.senders,
            entry.recipients,
            entry.classes,
            frozenset(entry.honour),
            entry.tenant or "",
        )

    def logins(self, listen: Iterable[Listen], numbers: list[int], users: Mapping[str, User]) -> None:
        asking = [place for place, one in enumerate(listen) if one.auth != "none"]
        known, able = self.site.names("users"), [user for user in users.values() if user.logs_in]
        for place in asking if not known else []:
            self.site.wrong(("listen", numbers[place], "auth"), "clients are to log in, but there are no `users`")
        for place in asking if known and users.keys() == known and not able else []:
            text = "clients are to log in, but no user has a password; give one `password` or `password_hash`"
            self.site.wrong(("listen", numbers[place], "auth"), text)
        if able and not asking:
            self.site.warn(("users",), "no listener asks for a login; say `auth: required` there", on_key=True)


def _overlap(one: Address, other: Address) -> bool:
    if one.port != other.port or (":" in one.host) is not (":" in other.host):
        return False
    return one.host == other.host or {one.host, other.host} & {"0.0.0.0", "::"} != set()
