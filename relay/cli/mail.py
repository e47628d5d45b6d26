"""`relay send`: a first message."""

from __future__ import annotations

import os
import smtplib
import ssl
import sys
from email.message import EmailMessage
from pathlib import Path

import click

from relay.cli import client
from relay.cli.client import Failed, read_password
from relay.policy.networks import is_loopback


def address(text: str) -> tuple[str, int]:
    from relay.config.values import parse_address_and_port

    try:
        found = parse_address_and_port(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    return found.host, found.port


@click.command()
@click.option("--from", "sender", default="app@example.com", show_default=True, help="Sender: MAIL FROM and From.")
@click.option("--to", "recipients", multiple=True, required=True, help="Recipient; may be repeated.")
@click.option("--subject", default="A message from relay send", show_default=True)
@click.option("--body", default="It works: this message came through the relay.\n", help="Text.")
@click.option(
    "--file", "file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Send this .eml instead."
)
@click.option("--tag", help="X-Relay-Tag, to find it again.")
@click.option("--user", help="Log in as; the password is asked for, or read from standard input.")
@click.option("--tls", type=click.Choice(["none", "starttls", "implicit"]), default="none", show_default=True)
@click.option(
    "--ca",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="PEM file of who vouches for the listener.",
)
@click.option("--server", help="The relay's listener; default: the first of the relay that runs, else 127.0.0.1:2525.")
def send(
    sender: str,
    recipients: tuple[str, ...],
    subject: str,
    body: str,
    file: Path | None,
    tag: str | None,
    server: str | None,
    user: str | None,
    tls: str,
    ca: Path | None,
) -> None:
    """Hand the relay a message over SMTP, as an application would."""
    elsewhere = server is not None  # such as a sink
    server = server or _running()
    host, port = address(server if _has_port(server) else f"{server}:2525")
    if user and tls == "none" and not is_loopback(host):
        raise Failed(
            f"the password would cross the network to {host} in clear; say --tls starttls or --tls implicit", 64
        )
    password = read_password() if user else ""
    if file is not None:
        raw = (f"X-Relay-Tag: {tag}\r\n".encode() if tag else b"") + file.read_bytes()
    else:
        raw = _written(sender, recipients, subject, body, tag)
    try:
        with _session(host, port, tls, ca) as smtp:
            smtp.ehlo()
            if user:
                smtp.login(user, password)
            options = ["SMTPUTF8"] if not all(a.isascii() for a in (sender, *recipients)) else []
            _expect(smtp.mail(sender, options))
            refused = _name(smtp, recipients)
            code, text = smtp.data(raw)
            _expect((code, text))
    except smtplib.SMTPAuthenticationError as error:
        said = f"the login was refused: {error.smtp_code} {_text(error.smtp_error)}"
        raise Failed(said, 75 if error.smtp_code < 500 else 77) from None
    except smtplib.SMTPNotSupportedError as error:
        raise Failed(
            f"{server} does not offer that: {error} (`auth` and `tls` of its listener; --tls here)", 69
        ) from None
    except (OSError, smtplib.SMTPException) as error:
        if isinstance(error, ConnectionRefusedError):
            raise Failed(f"no relay listens on {server}; start it with `relay serve`", 69) from None
        raise Failed(str(error), 69) from None
    answer = text.decode(errors="replace")
    click.echo(answer.removeprefix("2.0.0 "))
    number = answer.rpartition(" ")[2]
    if not elsewhere:
        click.echo(f"relay queue show {number}    tells where it is")
    if refused:
        sys.exit(_code(min(refused)))


def _written(sender: str, recipients: tuple[str, ...], subject: str, body: str, tag: str | None) -> bytes:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, ", ".join(recipients), subject
    if tag:
        message["X-Relay-Tag"] = tag
    message.set_content(body)
    return message.as_bytes()


def _name(smtp: smtplib.SMTP, recipients: tuple[str, ...]) -> list[int]:
    """The replies that refused some; where they refused all, that is the end."""
    refused = []
    for recipient in recipients:
        code, text = smtp.rcpt(recipient)
        if code >= 400:
            refused.append(code)
            click.echo(f"refused: {recipient}: {code} {text.decode(errors='replace')}", err=True)
    if len(refused) == len(recipients):
        sys.exit(_code(min(refused)))
    return refused


def _text(said: bytes | str) -> str:
    return said if isinstance(said, str) else said.decode(errors="replace")


def _session(host: str, port: int, tls: str, ca: Path | None) -> smtplib.SMTP:
    context = ssl.create_default_context(cafile=ca) if tls != "none" else None
    if tls == "implicit":
        return smtplib.SMTP_SSL(host, port, timeout=60, context=context)
    smtp = smtplib.SMTP(host, port, timeout=60)
    if tls == "starttls":
        smtp.starttls(context=context)
    return smtp


def _has_port(server: str) -> bool:
    return ":" in server.rpartition("]")[2]


def _running() -> str:
    """Where the relay that runs listens; else where it would by its configuration, else the usual place."""
    from relay.config.load import ConfigError, load
    from relay.config.places import config_file
    from relay.settings import Address

    try:
        listen = client.ask("GET", "/v1/status")["listen"]
        if listen:
            return _dialled(str(listen[0]))
    except Failed:
        pass  # it need not run here, nor by this user
    try:
        addresses = [li.address for li in load(config_file(os.environ)).listen]
        return next((_dialled(str(a)) for a in addresses if isinstance(a, Address)), "127.0.0.1:2525")
    except ConfigError:
        return "127.0.0.1:2525"


def _dialled(address: str) -> str:
    """All addresses are listened on, one is dialled."""
    return address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")


def _code(reply: int) -> int:
    return 75 if reply < 500 else 65


def _expect(reply: tuple[int, bytes]) -> None:
    code, text = reply
    if code >= 400:
        raise Failed(f"{code} {text.decode(errors='replace')}", _code(code))
