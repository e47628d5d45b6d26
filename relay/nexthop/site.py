"""Which lane a domain's mail shares with that of others. Pure but for the table of providers, read once.

A name is for people and for metrics, but also decides whose limits a domain's mail counts towards. Part of it comes from
strangers: what their MX records say, and the domain of a recipient. So no name that is made of the DNS is ever one that is
not: a rule's name, or a provider's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from hashlib import blake2b
from importlib.resources import files
from urllib.parse import quote

import yaml

from relay.nexthop.hops import Hops
from relay.policy.routing import Question, matches_any
from relay.settings import ANYWHERE, Destination

LONGEST = 100  # characters of a name that is made of the DNS
DIGEST = 10  # bytes in one that was too long: nobody finds another set of hosts with the same


@dataclass(frozen=True, slots=True)
class Site:
    """A lane's name, the rule that says how its mail is delivered, and whose hosts they are if we know (`providers.yaml`)."""

    name: str
    rule: Destination
    provider: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """Domains at these hosts (globs) are taken in by the same machines, which remember us by our address."""

    name: str
    mx: tuple[str, ...]


def site_of(hops: Hops, ask: Callable[[Question], bool | None], rules: Sequence[Destination]) -> Site:
    """The lane of a domain whose hosts are `hops`, by the first of `rules` that holds, or else by its hosts.

    All of them count, whatever their preference: what a host says is told of the lane, and a domain can see to it that only
    its last one is reached (by names that lead nowhere, by its MTA-STS policy).

    `ask` answers what is not about the MX. Where it knows no answer, a rule that hangs on it does not hold.
    """
    hosts = frozenset(hops.names) if not hops.refusal and not hops.literal else frozenset()

    def answer(question: Question) -> bool | None:
        if question.fact != "mx":
            return ask(question)
        # Where only some match, neither a rule for them nor one for all others holds: who lists a provider's host beside his
        # own must not spoil that provider's lane.
        found = set(map(question.matches, hosts))
        return None if len(found) == 2 else found == {True}

    provider = provider_of(hosts)
    rule = next((rule for rule in rules if rule.match.test(answer)), ANYWHERE)
    if rule.per in ("egress", "relay"):
        return Site(rule.name, rule, provider)
    names = {rule.name for rule in rules}
    if rule is ANYWHERE and provider:
        # Those of `google` that are not the rule's of this name have other limits: they are another lane.
        return Site(f"{provider}/rest" if provider in names else provider, rule, provider)
    if rule.per == "mx" and hosts:
        text = exchangers(hosts)
    else:
        text = quote(hops.domain, safe="[]:" if hops.literal else "", errors="surrogatepass")
    text = _own(_cut(text), names)
    return Site(f"{rule.name}/{text}" if rule.name else text, rule, provider)


def exchangers(hosts: Collection[str]) -> str:
    """A set of hosts as text: the same in whatever order, another for another set. What is no host name's is escaped (%20).

    Several in one zone are `{mx1,mx2}.example.net`, others `mx.example.net,mx.example.org`.
    """
    written = sorted({quote(host, safe="", errors="surrogatepass") for host in hosts})
    if len(written) == 1:
        return written[0]
    parent = _parent(written)
    if not parent:
        return ",".join(written)
    return "{%s}.%s" % (",".join(host.removesuffix(f".{parent}") for host in written), parent)  # noqa: UP031


def provider_of(hosts: Iterable[str]) -> str:
    """The one provider of all these hosts; empty: there is none, or there are several."""
    found = {_provider(host) for host in hosts}
    return found.pop() if len(found) == 1 else ""


@lru_cache(maxsize=4096)
def _provider(host: str) -> str:
    return next((provider.name for provider in providers() if matches_any(provider.mx, host)), "")


@cache
def providers() -> tuple[Provider, ...]:
    """Those of `providers.yaml`."""
    text = files("relay.nexthop").joinpath("providers.yaml").read_text(encoding="utf-8")
    table = yaml.load(text, yaml.CSafeLoader)
    return tuple(Provider(name, tuple(entry["mx"])) for name, entry in table.items())


def _parent(hosts: Sequence[str]) -> str:
    """The longest zone that all are below; empty: none but a top-level domain, or the root."""
    common: list[str] = []
    for labels in zip(*(reversed(host.split(".")[1:]) for host in hosts), strict=False):
        if len(set(labels)) > 1:
            break
        common.append(labels[0])
    return ".".join(reversed(common)) if len(common) > 1 else ""


def _cut(text: str) -> str:
    """`+` is in no other text: it would be escaped."""
    if len(text) <= LONGEST:
        return text
    digest = blake2b(text.encode(), digest_size=DIGEST).hexdigest()
    return f"{text[: LONGEST - len(digest) - 1]}+{digest}"


def _own(text: str, names: Collection[str]) -> str:
    """Told from a provider's name, which is one label as `localhost` may be, and from a rule's, which may be any host's."""
    return f"dns:{text}" if text in names or re.fullmatch(r"[\w-]+", text, re.ASCII) else text
