"""How a domain's mail would be delivered by MX, for operators: its hosts, its lane, what their TLS must be, who is dead for now.

Asks the DNS and MTA-STS as a delivery does, and dials nobody. Bounded in time; never raises: trouble is part of the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from relay import clock
from relay.deliver.direct import MOST_HOSTS, Direct
from relay.deliver.network import Network
from relay.deliver.tried import Tried, at
from relay.envelope import ascii_domain, domain_of
from relay.nexthop.hops import Addresses, Hops
from relay.nexthop.policy import DomainPolicy, Unsafe
from relay.nexthop.site import Site, site_of
from relay.policy.routing import Facts
from relay.resolver import DnsTrouble
from relay.settings import ANYWHERE, Config

PATIENCE = 10.0  # seconds for all of it
NOBODY = 1 << 20  # a place that no host has


async def survey(
    network: Network, config: Config, facts: Facts, names: Sequence[str], seconds: float = PATIENCE
) -> dict[str, Any]:
    """By the direct entries of these names. `hosts`: one object each, the best preference first; empty where `refusal` is what
    the sender would hear. Times are epoch seconds."""
    domain, late = ascii_domain(domain_of(facts.recipient)), clock.monotonic() + seconds
    told = _nothing(domain)
    try:
        async with asyncio.timeout(seconds):
            hops = await network.mx.find(domain)
    except TimeoutError:
        return told | {"trouble": f"the DNS has not said within {seconds:g} s where mail for {domain} goes"}
    site = site_of(hops, lambda question: question.ask(facts), config.destinations)
    told |= _found(hops, site)
    if hops.refusal is not None:
        return told
    ways = [network.direct(config.accounts[name], site.rule) for name in names]
    try:
        async with asyncio.timeout(max(0.0, late - clock.monotonic())):
            policy = await network.security.of_domain(hops, site.rule)
    except TimeoutError:
        policy = DomainPolicy(hops, site.rule)
        told["trouble"] = f"whether {domain} has an MTA-STS policy was not to be learnt within {seconds:g} s"
    told["policy"], told["sts"] = policy.told, policy.sts.mode if policy.sts else None
    tried = Tried(domain)
    ways[0].order(hops, tried)
    shown = hops.names[:MOST_HOSTS]
    tasks = [asyncio.create_task(_host(ways, policy, host), name="survey") for host in shown]
    _, pending = await asyncio.wait(tasks, timeout=max(0.0, late - clock.monotonic()))
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    rows = [
        _row(hops, host) | (_unheard(host, seconds) if task in pending else task.result())
        for host, task in zip(shown, tasks, strict=True)
    ]
    ours = min([tried.ours + 1, *(row.pop("ours") for row in rows)])
    for row in rows:
        row["dialled"] = row["dialled"] and row["preference"] < ours
    return told | {"loop": tried.text, "more_hosts": len(hops.names) - len(shown), "hosts": rows}


def _nothing(domain: str) -> dict[str, Any]:
    return {
        "domain": domain, "lane": "", "rule": "", "origin": "", "per": "", "provider": "", "port": 0, "implicit": False,
        "secure": False, "refusal": None, "policy": "", "sts": None, "trouble": "", "loop": "", "hosts": [], "more_hosts": 0,
    }  # fmt: skip


def _found(hops: Hops, site: Site) -> dict[str, Any]:
    rule = site.rule
    return {
        "lane": site.name,
        "rule": "" if rule is ANYWHERE else rule.name,
        "origin": rule.origin,
        "per": rule.per,
        "provider": site.provider,
        "port": rule.port,
        "implicit": hops.implicit,
        "secure": hops.secure,
        "refusal": None if hops.refusal is None else str(hops.refusal),
    }


def _row(hops: Hops, host: str) -> dict[str, Any]:
    return {
        "host": host, "preference": _place(hops, host), "v4": [], "v6": [], "secure": False, "tls": None, "by": "",
        "records": [], "sts_allows": None, "dialled": False, "dead": [], "trouble": [], "ours": NOBODY,
    }  # fmt: skip


def _place(hops: Hops, host: str) -> int:
    """Among the preferences; 1 is the best."""
    return next(i for i, group in enumerate(hops.hosts, 1) if host in group)


def _unheard(host: str, seconds: float) -> dict[str, Any]:
    return {"trouble": [f"{host}: the DNS has not answered within {seconds:g} s"]}


async def _host(ways: Sequence[Direct], policy: DomainPolicy, host: str) -> dict[str, Any]:
    """`dialled`: one address of it at least would be. `ours`: the place where we stand ourselves, if it is there."""
    way, tried, told = ways[0], Tried(policy.hops.domain), dict[str, Any]()
    place, addresses = _place(policy.hops, host), Addresses()
    if policy.sts is not None:
        told["sts_allows"] = policy.sts.matches(host)
    try:
        addresses = await way.mx.addresses(host)
        told |= {"v4": list(addresses.v4), "v6": list(addresses.v6), "secure": addresses.secure}
        required = await way.security.of_host(policy, host, addresses)
    except (DnsTrouble, Unsafe) as error:
        tried.notes.append(str(error) if host in str(error) else f"{host}: {error}")
    else:
        told |= {"tls": required.level.value, "by": required.by, "records": list(map(str, required.records))}
        usable = [way.usable(host, addresses, tried, place - 1) for way in ways]  # each says why not
        told["dialled"] = any(usable)
        told["ours"] = tried.ours + 1
    return told | {"dead": _dead(ways, host, addresses), "trouble": list(dict.fromkeys(tried.notes))}


def _dead(ways: Sequence[Direct], host: str, addresses: Addresses) -> list[dict[str, Any]]:
    """What of it failed of late, and what that means `until` when."""
    now, mono, dead = clock.now(), clock.monotonic(), ways[0].dead
    every, after, key = (*addresses.v4, *addresses.v6), "did not answer: tried after others", ways[0].key
    what = {key(host): (host, after)}
    if not dead.until(key(host), mono):
        what = {key(one): (at(host, one), after) for one in every}
    for one in every:
        what[ways[0].broken_tls(host, one)] = (
            at(host, one),
            "fails at STARTTLS: in clear text, where nothing asks for more",
        )
        for way in ways:
            what[way.family(one)] = (
                f"IPv{6 if ':' in one else 4} from {way.account.name}",
                "finds no way out: tried after others",
            )
    return [
        {"what": name, "means": means, "until": round(now + until - mono, 1)}
        for key, (name, means) in what.items()
        if (until := dead.until(key, mono))
    ]
