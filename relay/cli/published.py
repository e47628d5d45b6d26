"""`relay dkim dns`: what is published, held against the keys of the configuration."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from relay import clock
from relay.cli import show
from relay.cli.client import Failed

if TYPE_CHECKING:
    from relay.resolver import Resolver
    from relay.settings import Config
    from relay.signing.key import SigningKey
    from relay.signing.rules import Rule

STRING = 255  # octets of one string of a TXT record (RFC 1035 §3.3.14)
RIGHT = (
    "ok",
    "over",
    "unknown",
    "revoked",
)  # there is nothing to publish, or nobody knows; a revoked key does not come back
WIDE = 120  # columns; on a narrower terminal a row takes two lines

SERVERS = click.option("--server", "servers", multiple=True, help="Ask this DNS server, such as 9.9.9.9 or [::1]:5353.")
CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="Default: $RELAY_CONFIG, then /etc/relay/relay.yaml.",
)


@dataclass(slots=True)
class _Asked:
    """One key and its place, for as many entries as name them."""

    from_domain: str  # whose DMARC record counts
    domain: str  # d=
    selector: str
    key: SigningKey
    origin: str
    over: bool  # its time is (not_after)
    waits: bool = False  # its time has not come (not_before), or it is no entry of `signing`
    verdict: str = ""
    text: str = ""
    missed: bool = False  # its time is over, and nothing signs in its place
    dmarc: str | None = None

    @property
    def good(self) -> bool:
        return self.verdict in ("ok", "over") and not self.missed

    @property
    def sender(self) -> str:
        return self.from_domain or self.domain

    @property
    def name(self) -> str:
        from relay.signing.published import place

        return place(self.selector, self.domain)

    def row(self) -> dict[str, Any]:
        from relay.signing.published import dmarc_remark

        return {
            "domain": self.domain,
            "selector": self.selector,
            "algorithm": self.key.algorithm,
            "verdict": self.verdict,
            "text": self.text,
            "origin": self.origin,
            "name": self.name,
            "record": self.key.record,
            "dmarc": self.dmarc,
            "dmarc_remark": dmarc_remark(self.dmarc) if self.dmarc else "",
        }


@click.command()
@click.argument("domain", required=False)
@CONFIG
@SERVERS
@click.option("--json", "json_", is_flag=True, help="One JSON array.")
def dns(domain: str | None, config_path: Path | None, servers: tuple[str, ...], json_: bool) -> None:
    """Is what is published right, for each key?

    Holds the DNS against the keys of the configuration: all entries of `signing`, or those that sign for DOMAIN. Exit 0 if
    every record is right, 65 if one is not, 75 if the DNS could not be asked.
    """
    from relay.config.load import ConfigError, load
    from relay.config.mailvalues import parse_domain
    from relay.config.places import config_file

    file = config_file(os.environ, config_path)
    if not os.path.exists(file):
        raise Failed(f"{file}: no such file; `relay init {file}` writes a first one", 78)
    try:
        config = load(file)
        domain = parse_domain(domain) if domain else ""
    except ConfigError as error:
        raise Failed(str(error), 78) from None
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    found, left_out = _entries(config, domain, clock.now())
    if not found:
        raise Failed(_nothing(file, domain, left_out), 65)
    asyncio.run(_compare(found, resolver_for(servers, config)))
    if json_:
        show.as_json([one.row() for one in found])
    else:
        tell([[one.domain, one.selector, one.key.algorithm, one.verdict, one.text] for one in found])
        for line in _notes(found, left_out):
            click.echo(line, err=True)
    if all(one.good for one in found):
        sys.exit(0)
    sys.exit(75 if all(one.good or one.verdict == "unknown" for one in found) else 65)


def _nothing(file: Path, domain: str, left_out: Sequence[Rule]) -> str:
    if left_out:
        return "every entry of `signing` is for a wildcard; say a domain: relay dkim dns DOMAIN"
    return (
        f"{file}: no entry of `signing` is for {domain}"
        if domain
        else f"{file}: there is no `signing`; `relay dkim keygen`"
    )


def _entries(config: Config, domain: str, now: float) -> tuple[list[_Asked], list[Rule]]:
    """What to ask for, and the entries that have no domain until one is said."""
    found: dict[tuple[str, str, str], _Asked] = {}
    left_out = []
    rules = config.signing.rules
    for rule in _most_specific(rules, domain) if domain else rules:
        from_domain = domain or rule.domain
        if "*" in from_domain:
            if not rule.sign_as:
                left_out.append(rule)
                continue
            from_domain = ""  # as many as there are below it
        asked = _Asked(from_domain, rule.signs_as(domain), rule.selector, rule.key, rule.origin, False)
        asked.over = rule.not_after is not None and rule.not_after <= now
        asked.waits = rule.not_before is not None and rule.not_before > now
        known = found.setdefault((asked.domain, asked.selector, rule.key.public), asked)
        if known is not asked:
            known.origin += f", {asked.origin}"
            known.over, known.waits = known.over and asked.over, known.waits and asked.waits
    if config.arc is not None and domain in ("", config.arc.domain):
        arc = config.arc
        asked = _Asked("", arc.domain, arc.selector, arc.key, "arc", False, True)
        found.setdefault((arc.domain, arc.selector, arc.key.public), asked)
    return list(found.values()), left_out


def _most_specific(rules: Sequence[Rule], domain: str) -> list[Rule]:
    """Those that sign for a domain, for some user and by some route."""
    fitting = []
    for rule in rules:
        user, route = (rule.users or ("",))[0], (rule.routes or ("",))[0]
        if (rank := rule.rank(domain, user, route)) is not None:
            fitting.append((rank[0], rule))
    best = max((rank for rank, _ in fitting), default=0)
    return [rule for rank, rule in fitting if rank == best]


async def _compare(found: Sequence[_Asked], resolver: Resolver) -> None:
    from relay.resolver import DnsTrouble
    from relay.signing.published import compare

    async def ask(one: _Asked) -> None:
        try:
            published = compare(one.key, await resolver.txt(one.name))
            one.verdict, one.text = published.verdict, published.text
        except DnsTrouble as trouble:
            one.verdict, one.text = "unknown", f"DNS could not be asked: {trouble}"

    domains = {one.from_domain for one in found if one.from_domain}
    policies = asyncio.gather(*(_dmarc(domain, resolver) for domain in sorted(domains)))
    await asyncio.gather(*map(ask, found))
    dmarc = dict(zip(sorted(domains), await policies, strict=True))
    signing = {one.sender for one in found if not one.over and not one.waits}
    good = {(one.domain, one.key.kind) for one in found if one.good and not one.over and not one.waits}
    for one in found:
        one.dmarc = dmarc.get(one.from_domain)
        if one.over and one.sender not in signing:
            one.verdict, one.missed = "over", True
            one.text = f"over, and no other key signs: {one.sender} leaves unsigned"
        elif one.over and (one.domain, one.key.kind) in good:
            one.verdict, one.text = "over", "its time is over (not_after) and another key signs: the entry can go"


async def _dmarc(domain: str, resolver: Resolver) -> str | None:
    """The policy that counts for a From domain (RFC 7489 §6.6.3); empty: none; None: nobody knows."""
    from relay.policy.alignment import organizational_domain
    from relay.resolver import DnsTrouble
    from relay.signing.published import meant_for_dmarc

    try:
        for name in dict.fromkeys((domain, organizational_domain(domain))):
            for record in await resolver.txt(f"_dmarc.{name}") or ():
                if meant_for_dmarc(record):
                    return "".join(c if c.isprintable() else "?" for c in record.decode("ascii", "replace")[:500])
    except DnsTrouble:
        return None
    return ""


def _notes(found: Sequence[_Asked], left_out: Sequence[Rule]) -> list[str]:
    from relay.signing.published import dmarc_remark

    lines = [
        f"{rule.origin}: {rule.domain} is asked for where a domain is said: relay dkim dns DOMAIN" for rule in left_out
    ]
    for domain, dmarc in {one.from_domain: one.dmarc for one in found if one.from_domain}.items():
        if dmarc == "":
            lines.append(f"_dmarc.{domain}: no DMARC record; large receivers want one, such as v=DMARC1; p=none")
        elif dmarc:
            lines += [f"_dmarc.{domain}: {one}" for one in (dmarc, dmarc_remark(dmarc)) if one]
    for one in found:
        if one.verdict not in RIGHT:
            lines.append(f"\npublish in the zone of {one.domain}:\n{zone_line(one.name, one.key.record)}")
    return lines


def resolver_for(servers: tuple[str, ...], config: Config | None) -> Resolver:
    from relay.resolver import Resolver

    try:
        if config is None:
            return Resolver(servers)
        return Resolver(servers or config.dns.servers, config.dns.timeout)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def tell(rows: Sequence[Sequence[str]]) -> None:
    columns = ("DOMAIN", "SELECTOR", "ALGORITHM", "RESULT", "WHAT TO KNOW")
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < WIDE:
        show.pairs(columns[:-1], ((row[:-1], row[-1]) for row in rows), 3)
    else:
        show.table(columns, rows, 3)


def zone_line(name: str, record: str) -> str:
    """As a zone file has it (RFC 1035 §5.1), in strings of 255 octets at most."""
    strings = [f'"{record[at : at + STRING]}"' for at in range(0, len(record), STRING)]
    return f"{name}. IN TXT ( {' '.join(strings)} )" if len(strings) == 1 else _lines(name, strings)


def _lines(name: str, strings: Sequence[str]) -> str:
    return f"{name}. IN TXT (\n" + "".join(f"    {one}\n" for one in strings) + ")"
