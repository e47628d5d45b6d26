"""`relay oauth`: a person's login for an account, and what the running relay knows of its tokens."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay import clock
from relay.cli import client, files, show
from relay.cli.client import Failed

if TYPE_CHECKING:
    from relay.oauth.login import Client
    from relay.settings import Account

REDIRECT = "http://127.0.0.1:8585/"


@click.group()
def oauth() -> None:
    """Accounts that log in with a token (OAuth2)."""


@oauth.command()
@click.argument("account")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="Default: as for `relay serve`.")
@click.option(
    "--redirect",
    default=REDIRECT,
    show_default=True,
    help="Where the browser ends, where no code can be entered; nobody need listen there.",
)
def login(account: str, config_path: Path | None, redirect: str) -> None:
    """Log in to ACCOUNT (or a mailbox of `feedback`: imap:NAME) as a person, in a browser anywhere.

    Shows an address, and a code to enter there. What comes of it is written to the file that the account's `refresh_token` names.
    """
    from relay.config.places import writable
    from relay.oauth.login import LoginError

    found, file = _account(account, config_path)
    asking = _client(found)
    where = "name another file in `refresh_token`, or run it as who may write there"
    if not writable(file.parent):  # before anybody logs in for nothing
        raise Failed(f"{file}: we may not write there; {where}", 73)
    try:
        token = _by_device(asking) if found.oauth2 and found.oauth2.device_url else _by_address(asking, found, redirect)
    except LoginError as error:
        raise Failed(str(error), 75 if error.again else 77) from None
    except KeyboardInterrupt:
        raise click.exceptions.Abort from None
    files.folder(file.parent, 0o750, where)
    files.write(file, token + "\n", 0o640, where)
    click.echo(f"wrote {file}")
    click.echo("A relay that waits for it takes it within half a minute; `relay reload` makes it do so at once.")


def _account(name: str, config_path: Path | None) -> tuple[Account, Path]:
    from relay.config.load import ConfigError, load
    from relay.config.places import config_file
    from relay.settings import Account

    try:
        config = load(config_file(os.environ, config_path))
    except ConfigError as error:
        raise Failed(str(error), 78) from None
    accounts = {account.name: account for account in config.accounts.values() if account.source is None}
    # A mailbox is `imap:NAME`: a login like an account's.
    for box in config.feedback.imap.values():
        accounts[box.login] = Account(box.login, box.host, box.port, box.tls, box.username, oauth2=box.oauth2)
    account = accounts.get(name)
    if account is None:
        raise Failed(f"no account '{name}'; there is {', '.join(accounts) or 'none'}", 65)
    if account.oauth2 is None:
        raise Failed(f"account {name} has no `oauth2`: it logs in with a password, or not at all", 65)
    if account.oauth2.grant != "refresh_token":
        raise Failed(f"account {name} needs no login of a person: its grant is {account.oauth2.grant}", 65)
    token = account.oauth2.refresh_token
    if token is None or token.kind != "file":
        raise Failed(f"{name}: oauth2.refresh_token is {token}, which cannot be written: name a file", 65)
    if not account.oauth2.device_url and not account.oauth2.authorize_url:
        raise Failed(f"{name}: oauth2 names neither `device_url` nor `authorize_url`: where to log in?", 78)
    return account, Path(token.target)


def _client(account: Account) -> Client:
    from relay.oauth.login import Client
    from relay.secrets import SecretError

    assert account.oauth2 is not None
    try:
        id_, secret = (r.resolve() if r else "" for r in (account.oauth2.client_id, account.oauth2.client_secret))
    except SecretError as error:
        raise Failed(str(error), 78) from None
    return Client(account.oauth2, id_, secret)


def _by_device(asking: Client) -> str:
    from relay.oauth.login import begin, entered

    async def run() -> str:
        shown = await begin(asking)
        click.echo(f"Open  {shown.address}\nand enter  {shown.code}\n")
        click.echo("Log in as the mailbox that mail is to leave by. Waiting …")
        return await entered(asking, shown)

    return asyncio.run(run())


def _by_address(asking: Client, account: Account, redirect: str) -> str:
    from relay.oauth.login import ask, pasted

    asked = ask(asking, account.username.resolve() if account.username else "", redirect)
    click.echo(f"Open this address, and log in as the mailbox that mail is to leave by:\n\n{asked.address}\n")
    click.echo(
        f"The browser ends at an address that begins with {redirect} and may show an error there. Paste that address:"
    )
    address = sys.stdin.readline() if not sys.stdin.isatty() else click.prompt("address")
    return asyncio.run(pasted(asking, asked, address))


@oauth.command()
@click.argument("account", required=False)
@click.option("--json", "json_", is_flag=True, help="One JSON array.")
def status(account: str | None, json_: bool) -> None:
    """The tokens of the relay that runs: until when, and what is wrong with them. Exit 0, or 75 where one can't be renewed."""
    found = [t for t in client.ask("GET", "/v1/status").get("tokens", ()) if account in (None, t["egress"])]
    if account is not None and not found:
        raise Failed(f"no account '{account}' that logs in with a token", 65)
    if json_:
        show.as_json(found)
    else:
        for token in found:
            click.echo(f"{token['egress']:20} {told(token)}")
        if not found:
            click.echo("no account logs in with a token")
    sys.exit(75 if any(token["why"] for token in found) else 0)


def told(token: dict[str, Any]) -> str:
    """One token's state in words."""
    from relay.admin.words import clock_time

    good = f"good until {clock_time(token['expires_at'], clock.now())}" if token["state"] == "good" else "no token"
    return f"{good}; {token['why']}" if token["why"] else good
