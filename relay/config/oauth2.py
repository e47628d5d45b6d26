"""`oauth2` of an account or a mailbox -> where its token comes from. Owns what each grant needs, and what the provider's defaults are.

Refuses: what a grant does not use, a password beside it, and anything by which a secret would leave over an open line.
"""

from __future__ import annotations

import os
from pathlib import Path

from relay.config.feedback import ImapSection
from relay.config.problems import Keys
from relay.config.site import Site
from relay.config.upstream import AccountEntry, OAuth2Section
from relay.oauth.grants import GrantError, ServiceKey
from relay.oauth.providers import PROVIDERS, Provider
from relay.secrets import Reference, SecretError
from relay.settings import OAuth2

_NEEDS = {
    "refresh_token": ("client_id", "refresh_token"),
    "client_credentials": ("client_id", "client_secret"),
    "service_account": ("key",),
}
_MAY = {
    "refresh_token": ("client_secret", "device_url", "authorize_url"),
    "client_credentials": (),
    "service_account": (),
}
_OF_GRANTS = ("client_id", "client_secret", "refresh_token", "key", "device_url", "authorize_url")
_WORDS = {
    "client_id": "the id of the application that is registered at the provider",
    "client_secret": "the secret of the application",
    "refresh_token": "the file that `relay oauth login` is to write",
    "key": "the JSON file of the service account",
}


class OAuth2Builder:
    def __init__(self, site: Site) -> None:
        self.site = site

    def build(self, name: str, entry: AccountEntry, provider: str = "") -> OAuth2 | None:
        """`provider`: whose the account is where the section does not say, such as its preset's."""
        return self._build(name, ("accounts", name), entry, provider)

    def mailbox(self, name: str, entry: ImapSection) -> OAuth2 | None:
        return self._build(f"imap:{name}", ("feedback", "imap", name), entry, "", reads=True)

    def _build(
        self, name: str, above: Keys, entry: AccountEntry | ImapSection, provider: str, *, reads: bool = False
    ) -> OAuth2 | None:
        section = entry.oauth2
        if section is None:
            return None
        path: Keys = (*above, "oauth2")
        if entry.password is not None:
            text = "a password beside `oauth2` would never be used: an account logs in by one of them; remove the other"
            self.site.wrong((*above, "password"), text)
        if entry.username is None:
            self.site.wrong(path, "`oauth2` needs `username` beside it: the mailbox that is logged in to")
        self._grant(section, path)
        # Nobody but Google has them.
        implied = "google" if section.grant == "service_account" and section.token_url is None else ""
        known = PROVIDERS.get(section.provider or provider or implied)
        if known is not None and known.secret_needed and section.grant == "refresh_token" and not section.client_secret:
            self.site.wrong(
                (*path, "grant"), "this provider wants `client_secret` too, of installed applications as well"
            )
        return OAuth2(
            section.grant,
            scope=section.scope or self._scope(section, known, path, reads),
            client_id=self.site.reference(section.client_id, (*path, "client_id")),
            client_secret=self.site.reference(section.client_secret, (*path, "client_secret")),
            refresh_token=self._refresh_token(name, section.refresh_token, (*path, "refresh_token")),
            key=self._key(section.key, (*path, "key")),
            mechanism=section.mechanism or "",
            ca=self.site.existing(section.ca, (*path, "ca")),
            expires=section.expires,
            **self._urls(section, known, path),
        )

    def _grant(self, section: OAuth2Section, path: Keys) -> None:
        """What it needs is there, and nothing that it does not use: that would be another grant's, and meant."""
        needed = _NEEDS[section.grant]
        for key in needed:
            if getattr(section, key) is None:
                self.site.wrong((*path, "grant"), f"grant `{section.grant}` needs `{key}`: {_WORDS[key]}")
        for key in _OF_GRANTS:
            if key not in (*needed, *_MAY[section.grant]) and getattr(section, key) is not None:
                self.site.wrong((*path, key), f"`{key}` has no meaning with grant `{section.grant}`; remove it")
        if section.expires is not None and section.client_secret is None:
            self.site.wrong((*path, "expires"), "`expires` is about `client_secret`, and there is none")

    def _urls(self, section: OAuth2Section, provider: Provider | None, path: Keys) -> dict[str, str]:
        given = {
            "token_url": section.token_url,
            "device_url": section.device_url,
            "authorize_url": section.authorize_url,
        }
        if provider is None:
            if section.token_url is None:
                text = "nothing says where tokens are asked for: name a `provider` (google, microsoft) or a `token_url`"
                self.site.wrong(path, text)
            if section.tenant is not None:
                self.site.wrong((*path, "tenant"), "`tenant` is a word of provider microsoft; remove it")
            return {key: url or "" for key, url in given.items()}
        if provider.tenants and section.tenant is None and section.token_url is None:
            text = "this provider needs `tenant`: the directory's id or domain, or `common` for the login of a person"
            self.site.wrong(path, text)
        if not provider.tenants and section.tenant is not None:
            self.site.wrong((*path, "tenant"), "this provider has no tenants; remove it")
        # Who names another token endpoint does not log in at the provider's.
        own = section.token_url is not None
        return {
            key: url or ("" if own else getattr(provider, key).replace("{tenant}", section.tenant or "common"))
            for key, url in given.items()
        }

    def _scope(self, section: OAuth2Section, provider: Provider | None, path: Keys, reads: bool) -> str:
        if provider is None:
            return ""
        found = (provider.reading if reads else {}).get(section.grant) or provider.scopes.get(section.grant, "")
        if not found and section.token_url is None:
            offered = " or ".join(sorted(provider.scopes))
            self.site.wrong(
                (*path, "grant"), f"this provider gives no tokens for mail by `{section.grant}`; use {offered}"
            )
        return found

    def _refresh_token(self, name: str, given: Reference | None, path: Keys) -> Reference | None:
        """Its file comes with the first login, and a relay without it starts: its other accounts send."""
        if (
            given is not None
            and given.kind == "file"
            and not os.path.lexists(file := str(self.site.path(given.target)))
        ):
            self.site.warn((*path, "file"), f"{Path(file)} is not there yet: relay oauth login {name} makes it")
            return Reference("file", file)
        return self.site.reference(given, path)

    def _key(self, given: Reference | None, path: Keys) -> Reference | None:
        found = self.site.reference(given, path)
        if found is not None and found.kind != "command" and not found.problem():
            try:
                ServiceKey.parse(found.resolve())
            except (GrantError, SecretError) as error:
                self.site.wrong((*path, found.kind), str(error))
        return found
