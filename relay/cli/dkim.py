"""`relay dkim`: keys are made, and messages are verified; what is published is in published.py."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import click

from relay import clock
from relay.cli import files, show
from relay.cli.client import Failed
from relay.cli.published import CONFIG, SERVERS, dns, resolver_for, tell, zone_line

if TYPE_CHECKING:
    from relay.signing.key import SigningKey
    from relay.signing.records import DnsFunc, Given

MOST = 256 << 20  # bytes of a message to verify
ELSEWHERE = "say where: --out FOLDER"


@click.group()
def dkim() -> None:
    """DKIM: make keys, check what is published, verify mail."""


dkim.add_command(dns)


# -- keygen


@dkim.command()
@click.argument("domain")
@click.option("--selector", help="Default: by the month, such as s202612; for Ed25519 s202612-ed25519.")
@click.option("--type", "type_", type=click.Choice(["rsa", "ed25519", "both"]), default="rsa", show_default=True)
@click.option(
    "--bits", type=click.Choice(["1024", "2048", "3072", "4096"]), default="2048", show_default=True, help="Of RSA."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder. Default: dkim, beside the configuration.",
)
@click.option("--force", is_flag=True, help="Write over a key that is there.")
@click.option("--json", "json_", is_flag=True, help="One JSON array of the keys' public sides.")
def keygen(
    domain: str, selector: str | None, type_: str, bits: str, out: Path | None, force: bool, json_: bool
) -> None:
    """Make a key, and print its DNS record.

    And its lines for the configuration. The private key goes into a file that the service may read and others may not; it
    is printed nowhere. RSA is what every receiver verifies; `--type both` adds an Ed25519 key to sign with side by side
    (RFC 8463).
    """
    from relay.config.mailvalues import parse_domain, parse_selector
    from relay.signing.keys import USUAL, generate

    try:
        domain = parse_domain(domain)
        base = parse_selector(selector) if selector else f"s{datetime.fromtimestamp(clock.now(), UTC):%Y%m}"
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    folder = Path(os.path.abspath(out or files.own_config().parent / "dkim"))
    plain = selector is not None and type_ == "ed25519"
    wanted: dict[Literal["rsa", "ed25519"], str] = {}
    if type_ != "ed25519":
        wanted["rsa"] = base
    if type_ != "rsa":
        wanted["ed25519"] = base if plain else f"{base}-ed25519"
    targets = {kind: folder / f"{domain}.{name}.pem" for kind, name in wanted.items()}
    for file in targets.values():
        if file.exists() and not force:
            raise Failed(f"{file} is there already, and mail may be signed by it; --selector names another", 73)
    # The group of root is root's, and may become the service's; that of a user is shared with others.
    mode = 0o640 if os.geteuid() == 0 else 0o600
    files.folder(folder, 0o750, ELSEWHERE)
    made = []
    for kind, name in wanted.items():
        key = generate(kind, int(bits))
        files.write(targets[kind], key.pem(), mode, ELSEWHERE)
        made.append(_made(domain, name, key, targets[kind]))
    if json_:
        show.as_json(made)
    else:
        _tell_made(domain, made)
    if type_ == "ed25519":
        click.echo(
            "warning: few receivers verify Ed25519 yet, and for the others the mail is unsigned; "
            "--type both makes an RSA key to sign beside it",
            err=True,
        )
    elif int(bits) < USUAL:
        click.echo(f"warning: an RSA key of {bits} bits; make one of {USUAL} (RFC 8301)", err=True)


def _made(domain: str, selector: str, key: SigningKey, file: Path) -> dict[str, Any]:
    from relay.signing.published import place

    path = (
        str(file)
        if re.fullmatch(r"[\w./-]+", str(file))
        else '"' + str(file).replace("\\", "\\\\").replace('"', '\\"') + '"'
    )
    name = place(selector, domain)
    return {
        "domain": domain,
        "selector": selector,
        "algorithm": key.algorithm,
        "bits": key.bits,
        "file": str(file),
        "name": name,
        "record": key.record,
        "zone": zone_line(name, key.record),
        "signing": f"- {{domain: {domain}, selector: {selector}, key: {{file: {path}}}, when_published: true}}",
    }


def _tell_made(domain: str, made: Sequence[dict[str, Any]]) -> None:
    for one in made:
        click.echo(f"wrote {one['file']}")
    click.echo(f"\npublish in the zone of {domain}:\n")
    for one in made:
        click.echo(one["zone"])
    click.echo("\nor in a form, as type TXT:\n")
    for one in made:
        click.echo(f"name   {one['name']}\nvalue  {one['record']}\n")
    click.echo("in the configuration (the key signs once its record is seen);")
    click.echo("paste the lines below the `signing:` that is there, if there is one:\n\nsigning:")
    for one in made:
        click.echo(f"  {one['signing']}")
    click.echo(f"\nthen: relay check && relay reload && relay dkim dns {domain}")


# -- verify


@dkim.command()
@click.argument("file", type=click.File("rb"))
@click.option(
    "--key",
    "key_files",
    multiple=True,
    metavar="[SELECTOR:]FILE",
    help="Against this private key, and the DNS is not asked. Repeatable, with --record too.",
)
@click.option("--record", "records", multiple=True, metavar="[SELECTOR:]TEXT", help="Against this TXT record likewise.")
@CONFIG
@SERVERS
@click.option("--json", "json_", is_flag=True, help="One JSON array.")
def verify(
    file: BinaryIO,
    key_files: tuple[str, ...],
    records: tuple[str, ...],
    config_path: Path | None,
    servers: tuple[str, ...],
    json_: bool,
) -> None:
    """Verify a message's signatures and ARC chain.

    FILE is a message (.eml), or - for standard input. A key that is given is for the signatures of its kind, or with a
    selector for those of that selector; a signature that none is for is not checked.

    Exit 0 if all that is checked passes, 65 if one does not or there is none, 75 if the DNS did not answer.
    """
    from relay.signing.verify import Verifier, parts

    raw = file.read(MOST + 1)
    if len(raw) > MOST:
        raise Failed(f"the message is larger than {MOST} bytes", 65)
    given = _given(key_files, records) if key_files or records else None
    verifier = Verifier(*parts(raw), given or _online(config_path, servers), clock.now())
    found = [
        {
            "kind": "dkim",
            "domain": one.domain,
            "selector": one.selector,
            "algorithm": one.algorithm,
            "bits": one.bits,
            "result": one.result,
            "why": one.why,
        }
        for one in verifier.dkim()
    ]
    arc = verifier.arc()
    if arc.cv != "none":
        result = "temperror" if arc.temporary else arc.cv
        found.append({"kind": "arc", "instance": arc.instance, "result": result, "why": arc.why})
    for row in found if given else ():
        if row["result"] == "temperror":  # nobody was asked: its key was not given
            row["result"] = "not checked"
    if json_:
        show.as_json(found)
    elif found:
        tell([_verified(one) for one in found])
    else:
        click.echo("the message has no DKIM signature and no ARC chain", err=True)
    results = {str(one["result"]) for one in found} - {"not checked"}
    if results == {"pass"}:
        sys.exit(0)
    sys.exit(75 if results and results <= {"pass", "temperror"} else 65)


def _verified(one: dict[str, Any]) -> list[str]:
    if one["kind"] == "arc":
        return ["-", f"i={one['instance']}", "ARC", one["result"], one["why"]]
    bits = f" {one['bits']}" if one["bits"] and one["algorithm"].startswith("rsa") else ""
    return [one["domain"] or "-", one["selector"] or "-", (one["algorithm"] or "-") + bits, one["result"], one["why"]]


def _given(key_files: Sequence[str], records: Sequence[str]) -> Given:
    from relay.secrets import Reference
    from relay.signing import keys
    from relay.signing.records import Given

    said = []
    try:
        for text in key_files:
            selector, name = ("", text) if os.path.exists(text) else _of_selector(text)
            said.append((selector, keys.read(Reference("file", name)).record.encode()))
    except keys.KeyProblem as problem:
        raise Failed(str(problem), 65) from None
    for text in records:
        selector, record = _of_selector(text)
        said.append((selector, record.encode("utf-8", "surrogateescape")))
    try:
        return Given(said)
    except ValueError as error:
        raise click.UsageError(f"{error}; say whose each is: SELECTOR:FILE, SELECTOR:TEXT") from None


def _of_selector(text: str) -> tuple[str, str]:
    """`s1:…`. A record has colons as well, but none before its first `=`."""
    selector, colon, rest = text.partition(":")
    return (selector, rest) if colon and re.fullmatch(r"[\w.-]+", selector) else ("", text)


def _online(config_path: Path | None, servers: tuple[str, ...]) -> DnsFunc:
    """By the servers that are named here, else in the configuration, if it can be read; else the system's."""
    from relay.config.load import ConfigError, load
    from relay.config.places import config_file
    from relay.signing.records import asking

    config = None
    file = config_file(os.environ, config_path)
    if not servers and (config_path is not None or os.path.exists(file)):
        try:
            config = load(file)
        except ConfigError as error:
            if config_path is not None:
                raise Failed(str(error), 78) from None
    return asking(resolver_for(servers, config), tells=True)
