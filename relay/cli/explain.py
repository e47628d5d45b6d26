"""`relay explain`: which rule takes a message, by which way out, changed how; and where that leads."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from relay import clock
from relay.cli import client, show
from relay.cli.client import Failed
from relay.cli.service import CONFIG, find

if TYPE_CHECKING:
    from relay.policy.routing import Facts
    from relay.settings import Config


@click.command()
@click.option(
    "--from",
    "from_",
    help="The From address (and MAIL FROM, if --sender does not say otherwise). With --file: MAIL FROM, as --sender.",
)
@click.option("--to", required=True, help="The recipient.")
@click.option(
    "--file",
    "message",
    type=click.File("rb"),
    help="A message (.eml), or - for standard input: what it says counts as it would on its way in, X-Relay-* too, unless "
    "an option says otherwise; and what would be done to it.",
)
@click.option("--sender", help="MAIL FROM.")
@click.option("--user", help="Who logged in.")
@click.option("--class", "class_", help="X-Relay-Class.")
@click.option("--tag", help="X-Relay-Tag.")
@click.option("--listener", help="The listener it comes in by.")
@click.option("--client", "client_", help="The client's IP address.")
@click.option("--header", multiple=True, help="A header, as 'Name: value'; may be repeated.")
@click.option("--size", type=int, help="Bytes.")
@CONFIG
@click.option("--json", "json_", is_flag=True, help="One JSON object.")
def explain(
    from_: str | None,
    to: str,
    message: BinaryIO | None,
    config_path: Path | None,
    json_: bool,
    client_: str | None,
    header: tuple[str, ...],
    **given: Any,
) -> None:
    """Which rule takes a message, by which account, changed how?

    And why not the other rules, when it could leave, what is rewritten, which keys sign it, and whether DMARC takes it for its
    author's. Where it leaves by MX: which servers its domain has, and what TLS they must have; for that the DNS is asked. Asks the
    relay that runs; where none does, or with --config, the file.
    """
    if from_ is None and message is None:
        raise click.UsageError("say --from ADDRESS, or --file MESSAGE.eml")
    if from_ and message is not None and given.get("sender"):
        raise click.UsageError("with --file, --from is MAIL FROM: say it, or --sender, and not both")
    for option, address in (("--from", from_), ("--to", to)):
        if address is not None and "@" not in address:
            raise click.UsageError(f"{option} wants a mail address such as user@example.com, not {address!r}")
    headers = {}
    for line in header:
        name, colon, value = line.partition(":")
        if not colon:
            raise click.UsageError(f"--header wants 'Name: value', not {line!r}")
        headers[name.strip()] = value.strip()
    asked: dict[str, Any] = {"from": from_, "to": to, "headers": headers}
    if message is not None:
        asked["message"] = base64.b64encode(message.read()).decode()
    asked |= {"client": client_, "class": given.pop("class_")} | given
    asked = {k: v for k, v in asked.items() if v}
    found = _explain_file(config_path, asked) if config_path else _explain_running(asked)
    if json_:
        show.as_json(found)
        return
    _tell_explained(found, asked)


def _tell_explained(found: dict[str, Any], asked: dict[str, Any]) -> None:
    envelope = f" (MAIL FROM <{found['sender']}>)" if found["sender"] != found["from"] else ""
    author = found["from"] or "nobody who can be read"
    click.echo(f"a message from {author}{envelope} to {found['recipient']}, class {found['class']}:")
    for note in found["notes"]:
        click.secho(f"  {note}", fg="yellow")
    for rule in found["rules"]:
        hit = rule["verdict"].startswith("matches")
        click.secho(
            f"  {'→' if hit else ' '} {rule['name']:20} {rule['origin']:24} {rule['verdict']}",
            fg="green" if hit else None,
        )
    if not asked.get("user") and any(r["verdict"].startswith("does not match: user: ") for r in found["rules"]):
        click.echo("  no login was assumed; --user NAME says who logged in")
    if not found["route"]:
        click.secho(f"  no rule matches: {found['text']}", fg="red")
    elif found["before_capture"]:
        click.echo(f"  {found['text']}; by route {found['before_capture']} it would leave so:")
    elif not found["egresses"]:
        click.echo(f"  {found['text']}")
    for one in found["suppressed"]:
        said = f": {one['evidence']}" if one["evidence"] else ""
        click.secho(f"  it would not be sent: suppressed for {one['scope']}, {one['why']}{said}", fg="red")
    if waits := found.get("held"):
        until = f" until {show.clock_time(waits['until'], clock.now())}" if waits["until"] else ""
        click.secho(f"  it would wait{until}: {waits['why']}", fg="yellow")
    pool, before = "", list[tuple[str, str | None]]()
    for i, e in enumerate(found["egresses"], 1):
        if e["pool"] and e["pool"] != pool:
            click.echo(
                f"    pool {e['pool']}: each message draws one by weight and keeps to it; where that rests, by the others"
            )
        pool = e["pool"]
        share = f"  {e['share']:.0%} of {pool} " if pool else ""
        click.echo(f"    {i}. {e['egress']:20}{share} {e['when']}")
        if e["mx"]:
            source = " or ".join(e["source"]) or "any address of this machine"
            click.echo(f"       by MX, from {source}, as {e['hostname']}")
        done = list(show.leaving(e, found["sender"]))
        for text, colour in [("as above", None)] if done and done == before else done:
            click.secho(f"       {text}", fg=colour)
        before = done
    if found["destination"]:
        for text, colour in destination(found["destination"]):
            click.secho(f"  {text}", fg=colour)
    if found["action"] == "via":
        from relay.config.values import print_duration
        from relay.policy.classes import Priority

        give_up, priority = print_duration(found["retry"]["give_up"]), Priority(found["retry"]["priority"])
        click.echo(f"  tried for {give_up}; in doubt: {found['retry']['in_doubt']}; priority: {priority.name.lower()}")


def _explain_running(asked: dict[str, Any]) -> Any:
    """By the relay that runs; where none does, by the file that it would read."""
    try:
        return client.ask("POST", "/v1/explain", asked)
    except Failed as error:
        file = find(None)
        if error.exit_code != 69 or not os.path.exists(file):
            raise
        click.echo(f"no relay is running: by {file}", err=True)
        return _explain_file(file, asked)


def _explain_file(path: Path, asked: dict[str, Any]) -> Any:
    """Without a running relay: from the file alone."""
    from relay.admin.explain import explain as explain_
    from relay.admin.explain import facts_from
    from relay.admin.reach import by_mx, told_of
    from relay.config.load import ConfigError, load

    try:
        config = load(path)
    except ConfigError as error:
        raise Failed(str(error), 78) from None
    try:
        facts = facts_from(asked, config)
        found = explain_(config, facts, asked, lambda _: None)
    except ValueError as error:
        raise Failed(str(error), 65) from None
    if names := by_mx(found):
        told_of(found, asyncio.run(_looked_up(config, facts, names)), None)
    return found


async def _looked_up(config: Config, facts: Facts, names: list[str]) -> dict[str, Any]:
    """By questions of our own; which policies the relay remembers, and who is dead for it, is not known here."""
    from relay.deliver.network import Network
    from relay.deliver.survey import survey
    from relay.maillog import MailLog

    return await survey(Network(config, MailLog(None), keep=False), config, facts, names)


# -- where it leads by MX


def destination(told: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    """(line, colour) of what `explain` says of a domain's servers."""
    if not told["lane"]:
        yield f"{told['domain']}: {told['trouble']}", "yellow"
        return
    shared = {"egress": "", "mx": "", "domain": "", "relay": ", whose limits hold over all egresses"}[told["per"]]
    rule = f"rule {told['rule']} {told['origin']}".rstrip() if told["rule"] else ""
    known = "; ".join(filter(None, (rule, told["provider"] and f"hosts of {told['provider']}")))
    yield f"{told['domain']}: lane {told['lane']}{f' ({known})' if known else ''}{shared}", None
    if told["refusal"]:
        soft = told["refusal"].startswith("4")
        yield (
            f"  {'it would be deferred' if soft else 'the sender would hear'}: {told['refusal']}",
            "yellow" if soft else "red",
        )
        return
    kind = "no MX record: the domain is its own host" if told["implicit"] else "MX"
    yield (
        f"  {kind}{', proved by the DNS (DNSSEC)' if told['secure'] else ''}; port {told['port']}; TLS: {told['policy']}",
        None,
    )
    for text in filter(None, (told["trouble"], told["loop"])):
        yield f"  {text}", "yellow"
    for host in told["hosts"]:
        yield from _host(host)
    if told["more_hosts"]:
        yield f"  … and {show.plural(told['more_hosts'], 'host')} more", None


def _host(host: dict[str, Any]) -> Iterator[tuple[str, str | None]]:
    from relay.admin.words import clock_time

    addresses = " ".join([*host["v4"], *host["v6"]])
    by = f" ({host['by']})" if host["by"] and host["tls"] != "dane" else ""
    tls = {"dane": "DANE", None: "not to be used"}.get(host["tls"], host["tls"])
    line = f"  {host['preference']}. {host['host']}  {addresses}  {tls}{by}"
    yield line, "green" if host["dialled"] and not host["dead"] else "yellow"
    for record in host["records"]:
        yield f"     TLSA {record}", None
    now = clock.now()
    for dead in host["dead"]:
        yield f"     {dead['what']} {dead['means']} until {clock_time(dead['until'], now)}", "yellow"
    for text in host["trouble"]:
        yield f"     {text}", "yellow"
