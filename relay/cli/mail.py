"""`relay send` and `relay sink`: a first message, and somewhere for it to go."""

from __future__ import annotations

import asyncio
import smtplib
from email.message import EmailMessage
from pathlib import Path

import click

from relay.cli.client import Failed


def _address(text: str) -> tuple[str, int]:
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
@click.option("--server", default="127.0.0.1:2525", show_default=True, help="The relay's listener.")
def send(
    sender: str, recipients: tuple[str, ...], subject: str, body: str, file: Path | None, tag: str | None, server: str
) -> None:
    """Hand the relay a message over SMTP, as an application would."""
    host, port = _address(server)
    if file is not None:
        raw = file.read_bytes()
        if tag:
            raw = f"X-Relay-Tag: {tag}\r\n".encode() + raw
    else:
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = sender, ", ".join(recipients), subject
        if tag:
            message["X-Relay-Tag"] = tag
        message.set_content(body)
        raw = message.as_bytes()
    try:
        with smtplib.SMTP(host, port, timeout=60) as smtp:
            smtp.ehlo()
            options = ["SMTPUTF8"] if not all(a.isascii() for a in (sender, *recipients)) else []
            _expect(smtp.mail(sender, options))
            for recipient in recipients:
                _expect(smtp.rcpt(recipient))
            code, text = smtp.data(raw)
            _expect((code, text))
    except (OSError, smtplib.SMTPException) as error:
        if isinstance(error, ConnectionRefusedError):
            raise Failed(f"no relay listens on {server}; start it with `relay serve`", 69) from None
        raise Failed(str(error), 69) from None
    answer = text.decode(errors="replace")
    click.echo(answer.removeprefix("2.0.0 "))
    number = answer.rpartition(" ")[2]
    click.echo(f"relay queue show {number}    tells where it is")


def _expect(reply: tuple[int, bytes]) -> None:
    code, text = reply
    if code >= 400:
        raise Failed(f"{code} {text.decode(errors='replace')}", 75 if code < 500 else 65)


@click.command()
@click.option("--listen", default="127.0.0.1:2526", show_default=True, help="Address and port.")
@click.option(
    "--keep", "folder", type=click.Path(file_okay=False, path_type=Path), default=Path("sink"), show_default=True
)
@click.option("--delay", type=float, default=0.0, help="Seconds before each 250 to the final dot.")
def sink(listen: str, folder: Path, delay: float) -> None:
    """A small upstream that keeps what it gets, one .eml file a message, and sends nothing on."""
    from relay.listener.front import ListenError
    from relay.settings import Address
    from relay.sink import Kept, Sink

    host, port = _address(listen)

    def arrived(kept: Kept) -> None:
        click.echo(
            f"{kept.id}  <{kept.sender}> -> {', '.join(kept.recipients)}  {kept.size} bytes  {kept.subject!r}  {kept.path}"
        )

    async def run() -> None:
        made = Sink(Address(host, port), folder, arrived, delay=delay)
        try:
            bound = await made.open()
        except ListenError as error:
            raise Failed(str(error), 69) from None
        click.echo(f"sink listens on {host}:{bound} and keeps mail in {folder.resolve()}; stop it with Ctrl-C")
        await asyncio.Event().wait()

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return
