"""What the well-known providers want, so that nobody has to copy it. Pure.

Google: developers.google.com/workspace/gmail/imap/xoauth2-protocol, developers.google.com/identity/protocols/oauth2.
Microsoft: learn.microsoft.com/exchange/client-developer/legacy-protocols/how-to-authenticate-an-imap-pop-smtp-application-by-using-oauth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Provider:
    """Addresses, of which `{tenant}` is a part where the provider knows tenants, and the scope of each grant."""

    token_url: str
    scopes: Mapping[str, str]  # by grant; a grant that is not there is not offered
    authorize_url: str = ""
    device_url: str = ""  # where its device flow may ask for mail
    secret_needed: bool = False  # by the grant `refresh_token` too
    reading: Mapping[str, str] = field(default_factory=dict)  # scopes for IMAP, where they are others

    @property
    def tenants(self) -> bool:
        return "{tenant}" in self.token_url


_GOOGLE_MAIL = "https://mail.google.com/"
_MICROSOFT = "https://login.microsoftonline.com/{tenant}/oauth2/v2.0"
PROVIDERS: Mapping[str, Provider] = {
    # Its device flow knows a few scopes, of which mail is none: developers.google.com/identity/protocols/oauth2/limited-input-device
    "google": Provider(
        "https://oauth2.googleapis.com/token",
        {"refresh_token": _GOOGLE_MAIL, "service_account": _GOOGLE_MAIL},
        authorize_url="https://accounts.google.com/o/oauth2/v2/auth",
        secret_needed=True,
    ),
    "microsoft": Provider(
        f"{_MICROSOFT}/token",
        {
            "refresh_token": "https://outlook.office.com/SMTP.Send offline_access",
            "client_credentials": "https://outlook.office365.com/.default",
        },
        device_url=f"{_MICROSOFT}/devicecode",
        authorize_url=f"{_MICROSOFT}/authorize",
        reading={"refresh_token": "https://outlook.office.com/IMAP.AccessAsUser.All offline_access"},
    ),
}
