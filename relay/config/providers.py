"""`feedback.http` and `feedback.providers` -> the public side, and who is believed there.

Refuses: a provider that nobody could verify, or that has nowhere to call; a key that verifies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from relay.certificate import ec_public_key
from relay.config.direct import BUILT_IN
from relay.config.doors import DoorBuilder, is_loopback
from relay.config.feedback import FeedbackSection
from relay.config.feedbackhttp import ProviderEntry, ProviderKind
from relay.config.problems import Keys
from relay.config.site import Site, no_such
from relay.secrets import Reference, SecretError
from relay.settings import FeedbackHttp, Provider

KINDS: tuple[ProviderKind, ...] = get_args(ProviderKind)
_LOGIN = ("username", "password")
# What each kind is verified by; of several ways one.
_NEEDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "ses": (("topics",),),
    "sendgrid": (("public_key",),),
    "mailgun": (("signing_key",),),
    "postmark": (_LOGIN,),
    "brevo": (("token",), _LOGIN),
    "mailjet": (_LOGIN,),
    "sparkpost": (_LOGIN,),
}
_ALL = ("topics", "public_key", "signing_key", "username", "password", "token")


class ProvidersBuilder:
    """`doors` knows which addresses are taken."""

    def __init__(self, site: Site, doors: DoorBuilder) -> None:
        self.site, self.doors = site, doors

    def http(self, section: FeedbackSection) -> FeedbackHttp | None:
        http, path = section.http, ("feedback", "http")
        if http is None:
            if section.providers and self.site.absent("feedback", ("http",)):
                text = "they call by HTTP; say `feedback.http: {address: …}` too"
                self.site.wrong(("feedback", "providers"), text, on_key=True)
            return None
        self.doors.take(http.address, "feedback.http", (*path, "address"))
        if http.tls is None and not is_loopback(http.address):
            text = (
                "without `tls` what comes here can be read and forged on its way; a proxy with TLS must stand before it"
            )
            self.site.warn((*path, "address"), text)
        if not section.providers and (section.token_key is None or not section.one_click):
            text = "nothing comes in by it: there are no `providers`, and one-click unsubscription wants `feedback.token_key`"
            self.site.warn(path, text, on_key=True)
        return FeedbackHttp(http.address, self.doors.tls(http.tls, (*path, "tls")), http.proxy)

    def providers(self, section: FeedbackSection) -> dict[str, Provider]:
        made = {name: self.provider(name, entry) for name, entry in section.providers.items()}
        return {name: one for name, one in made.items() if one is not None}

    def provider(self, name: str, entry: ProviderEntry) -> Provider | None:
        path: Keys = ("feedback", "providers", name)
        kind = entry.kind or next((one for one in KINDS if one == name), None)
        if kind is None:
            self.site.wrong(
                path, f"{no_such('provider', name, KINDS)} (an entry of another name says its `kind`)", on_key=True
            )
            return None
        self.verified(kind, entry, path)
        known = self.site.names("accounts", "direct", also=(BUILT_IN,))
        if entry.egress is not None:
            self.site.known((*path, "egress"), "account", entry.egress, known)
        references = {key: self.site.reference(getattr(entry, key), (*path, key)) for key in _ALL[1:]}
        self.public_key(references["public_key"], (*path, "public_key"))
        return Provider(name, kind, topics=entry.topics, egress=entry.egress or "", clients=entry.clients, **references)

    def verified(self, kind: str, entry: ProviderEntry, path: Keys) -> None:
        """That it has all by which it is verified, and nothing that would never be looked at."""
        ways, given = _NEEDS[kind], [key for key in _ALL if getattr(entry, key)]
        if not any(all(key in given for key in way) for way in ways):
            wanted = ", or ".join(" and ".join(f"`{key}`" for key in way) for way in ways)
            self.site.wrong(path, f"without {wanted} anybody could report in its name", on_key=True)
        for key in given:
            if not any(key in way for way in ways):
                self.site.wrong((*path, key), f"`{key}` is nothing by which {kind} is known; remove it")
        if "token" in given and any(key in given for key in _LOGIN):
            self.site.wrong((*path, "token"), "it is known by a token or by a login; remove one of them")

    def public_key(self, reference: Reference | None, path: Keys) -> None:
        """One that can't be read was told already; no command is run."""
        if reference is None or reference.kind == "command" or reference.problem():
            return
        try:
            ec_public_key(reference.resolve())
        except ValueError as error:
            self.site.wrong(path if reference.kind == "plain" else (*path, reference.kind), str(error))
        except SecretError:
            return
