"""`accounts` -> upstreams to log in to. Owns what an account is that does not say: by its preset, else by its port and TLS.

Refuses: credentials that would cross a network in clear.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TypeVar

from relay.config import presets
from relay.config.egress import IN_CLEAR, EgressBuilder, largest
from relay.config.oauth2 import OAuth2Builder
from relay.config.problems import Keys
from relay.config.site import no_such
from relay.config.upstream import AccountEntry, TlsSection
from relay.policy.preset import Preset
from relay.secrets import Reference
from relay.settings import Account, Tls, TlsMode, is_loopback

T = TypeVar("T")
_REGION = re.compile("[a-z]{2}(-[a-z]+)+-[0-9]")
NOTHING = Preset("", "", "", {})
NOWHERE = Reference("plain", "localhost")  # in the place of a host that is missing, which is told
BY_ADDRESS = ("gmail-relay",)  # presets of who may know a client by its address, without a login
NOT_EMPTY = ("?*",)  # any sender but the null one


def defaults(mode: TlsMode | None, port: int | None, *, login: bool, loopback: bool) -> tuple[TlsMode, int]:
    """The one rule for what an account leaves out.

    Port: 465 for `implicit`, else 587 with a login, else 25.
    Mode: `implicit` on port 465; `starttls` with a login or on port 587; else `none` to loopback and `opportunistic`
    to all others. RFC 8314 §3.3 prefers TLS from the first byte, but only port 465 promises it.
    """
    if port is None:
        port = 465 if mode == "implicit" else 587 if login else 25
    if mode is None:
        if port == 465:
            mode = "implicit"
        elif login or port == 587:
            mode = "starttls"
        else:
            mode = "none" if loopback else "opportunistic"
    return mode, port


class AccountBuilder(EgressBuilder):
    def build(self, name: str, entry: AccountEntry) -> Account:
        path: Keys = ("accounts", name)
        preset = self.preset(entry, path)
        host = self.host(entry, preset, path)
        oauth2 = OAuth2Builder(self.site).build(name, entry, preset.oauth2.get("provider", ""))
        username = entry.username
        if username is None and preset.username and entry.password is not None:
            username = Reference("plain", preset.username)
        login = username is not None or entry.password is not None or oauth2 is not None
        if entry.password is not None and username is None:
            self.site.wrong((*path, "password"), "a password without a username; say both or neither")
        if entry.username is not None and entry.password is None and entry.oauth2 is None:
            self.site.wrong((*path, "username"), "a username without a password; say both or neither")
        self.login_wanted(entry, preset, host, path)
        if entry.port is None and entry.tls.mode is None and preset.port and preset.tls:
            given: tuple[TlsMode, int] = preset.tls, preset.port
        else:
            given = defaults(entry.tls.mode, entry.port, login=login, loopback=is_loopback(host))
        mode, port = given
        if mode == "opportunistic" and entry.tls.mode is None and preset.tls:
            mode = "starttls"  # another port of a provider that is known to have TLS
        if login and mode in IN_CLEAR and not is_loopback(host):
            text = f"credentials are never sent in clear, as TLS mode `{mode}` could; use starttls or implicit"
            self.site.wrong((*path, "tls"), text)
        elif entry.oauth2 is not None and entry.tls.verify is False and not entry.tls.pin and not is_loopback(host):
            text = "a token is never sent over a connection that nobody vouches for; trust its certificate by `ca` or `pin`"
            self.site.wrong((*path, "tls", "verify"), text)
        resolved = self.site.reference(host, (*path, "host"))
        assert resolved is not None
        limits = self.limits(entry.limits, (*path, "limits")) if entry.limits is not None else preset.limits
        return Account(
            name,
            resolved,
            port,
            self.tls(entry.tls, mode, (*path, "tls")),
            self.site.reference(username, (*path, "username")),
            self.site.reference(entry.password, (*path, "password")),
            self.senders(entry, preset),
            # Where Message-ID is rewritten, no signature of ours survives.
            bool(_first(entry.signs, preset.signs, preset.rewrites_message_id, False)),
            _first(entry.connections, preset.connections, 10),
            _first(entry.messages_per_connection, preset.messages_per_connection, 100),
            largest(_first(entry.recipients_per_message, preset.recipients_per_message, 100), limits),
            limits=limits,
            replies=self.replies(entry.replies, (*path, "replies")) + preset.replies + presets.generic(),
            shaping=preset.shaping,
            preset=preset.name,
            oauth2=oauth2,
            warm_up=self.warm_up(entry.warm_up, (*path, "warm_up")),
        )

    def preset(self, entry: AccountEntry, path: Keys) -> Preset:
        if entry.preset is None:
            if entry.region is not None:
                self.site.wrong((*path, "region"), "a region without a `preset` that has several")
            elif (
                entry.host is not None and entry.host.kind == "plain" and (known := presets.of_host(entry.host.target))
            ):
                text = f"this is {known.title}: `preset: {known.name}` knows its limits and what its replies mean"
                self.site.warn((*path, "host"), text)
            return NOTHING
        if entry.preset.lower() not in presets.names():
            self.site.wrong((*path, "preset"), presets.no_such_preset(entry.preset))
            return NOTHING
        return presets.load_preset(entry.preset.lower())

    def host(self, entry: AccountEntry, preset: Preset, path: Keys) -> Reference:
        """What the account says, else the preset's, by region."""
        regions = preset.regions
        region = entry.region or preset.region
        if (
            entry.region is not None
            and "{region}" in preset.host
            and _REGION.fullmatch(region)
            and region not in regions
        ):
            text = f"not among those that we know; if it is one, the host is {preset.host.format(region=region)}"
            self.site.warn((*path, "region"), text)
            regions = {region: preset.host.format(region=region)}
        if entry.region is not None and preset.name and region not in regions and entry.host is None:
            known = no_such("region", region, regions) if regions else f"{preset.title} has no regions; remove it"
            self.site.wrong((*path, "region"), f"{known} (or name the host yourself)" if regions else known)
            return NOWHERE
        if entry.host is not None:
            return entry.host
        if not preset.host and not regions:
            if entry.preset is None and not self.site.report.is_tainted((*path, "host")):
                self.site.wrong(path, "'host' is missing, or a `preset` that knows it (`relay presets`)", on_key=True)
            return NOWHERE
        if regions and not region:
            text = f"'region' is missing: {preset.title} has {', '.join(regions)}"
            self.site.wrong(path, text, on_key=True)
            return NOWHERE
        return Reference("plain", regions.get(region, preset.host))

    def login_wanted(self, entry: AccountEntry, preset: Preset, host: Reference, path: Keys) -> None:
        """Warns of an account that its provider would refuse at the first message: without a login, or by another name."""
        if "login" not in preset.facts or is_loopback(host):
            return
        wanted = f"{preset.title} wants {preset.facts['login'].value}"
        if (entry.username, entry.password, entry.oauth2) == (None, None, None):
            if preset.name not in BY_ADDRESS:
                self.site.warn(path, f"no login: {wanted}", on_key=True)
        elif preset.username and (name := entry.username) and name.kind == "plain" and name.target != preset.username:
            self.site.warn((*path, "username"), wanted)

    def senders(self, entry: AccountEntry, preset: Preset) -> tuple[str, ...]:
        """A provider that takes nothing from the null sender is not asked to."""
        if "senders" in entry.model_fields_set or preset.null_sender is not False:
            return entry.senders
        return NOT_EMPTY

    def tls(self, section: TlsSection, mode: TlsMode, path: Keys) -> Tls:
        if section.key is not None and section.certificate is None:
            self.site.wrong((*path, "key"), "a key without its certificate; say `certificate` too")
        return replace(
            self.trust(section, mode, path),
            certificate=self.site.existing(section.certificate, (*path, "certificate")),
            key=self.site.reference(section.key, (*path, "key")),
        )


def _first(*values: T | None) -> T:
    """The first that is given; the last is."""
    return next(value for value in values if value is not None)
