"""`accounts` -> upstreams to log in to. Owns which port and which TLS an account has when it does not say.

Refuses: credentials that would cross a network in clear.
"""

from __future__ import annotations

from relay.config.problems import Keys
from relay.config.shape import AccountEntry, TlsSection
from relay.config.site import Site
from relay.settings import Account, Tls, TlsMode, is_loopback

IN_CLEAR = ("none", "opportunistic")  # opportunistic falls back to clear text


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


class AccountBuilder:
    def __init__(self, site: Site) -> None:
        self.site = site

    def build(self, name: str, entry: AccountEntry) -> Account:
        path: Keys = ("accounts", name)
        if name == "direct":
            self.site.wrong(path, "`direct` is the name of delivery by MX; name the account otherwise")
        login = entry.username is not None or entry.password is not None
        if login and entry.username is None:
            self.site.wrong((*path, "password"), "a password without a username; say both or neither")
        if login and entry.password is None:
            self.site.wrong((*path, "username"), "a username without a password; say both or neither")
        mode, port = defaults(entry.tls.mode, entry.port, login=login, loopback=is_loopback(entry.host))
        if login and mode in IN_CLEAR and not is_loopback(entry.host):
            text = f"credentials are never sent in clear, as TLS mode `{mode}` could; use starttls or implicit"
            self.site.wrong((*path, "tls"), text)
        host = self.site.reference(entry.host, (*path, "host"))
        assert host is not None
        return Account(
            name,
            host,
            port,
            self.tls(entry.tls, mode, (*path, "tls")),
            self.site.reference(entry.username, (*path, "username")),
            self.site.reference(entry.password, (*path, "password")),
            entry.senders,
            entry.signs,
            entry.connections,
            entry.messages_per_connection,
            entry.recipients_per_message,
        )

    def tls(self, section: TlsSection, mode: TlsMode, path: Keys) -> Tls:
        if mode == "none":
            for key in sorted(section.model_fields_set - {"mode"}):
                self.site.wrong((*path, key), f"`{key}` has no meaning without TLS (mode none); remove it")
        # RFC 7435 §3: opportunistic TLS takes any certificate, since the alternative is none at all.
        verify = mode not in IN_CLEAR if section.verify is None else section.verify
        if mode not in IN_CLEAR and not verify and not section.pin:
            self.site.warn((*path, "verify"), "any server can pose as this one; trust its certificate by `ca` or `pin`")
        if section.key is not None and section.certificate is None:
            self.site.wrong((*path, "key"), "a key without its certificate; say `certificate` too")
        return Tls(
            mode,
            verify,
            self.site.existing(section.ca, (*path, "ca")),
            section.pin or (),
            self.site.existing(section.certificate, (*path, "certificate")),
            self.site.reference(section.key, (*path, "key")),
            section.minimum,
        )
