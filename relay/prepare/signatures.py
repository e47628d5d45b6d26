"""The last steps: a message is signed for its From domain, and sealed where we forward it."""

from __future__ import annotations

import re

from relay import clock
from relay.envelope import ascii_domain, domain_of
from relay.prepare.message import CannotLeave, Outbound, Ready
from relay.reply import Reply
from relay.settings import Arc
from relay.signing import arc as arcs
from relay.signing.canonical import Form, body_hash
from relay.signing.dkim import Fields, signature
from relay.signing.records import DnsFunc
from relay.signing.rules import Rules, Seen
from relay.signing.verify import Verifier
from relay.submission import from_address

_DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")

LONG = 5 * 86400.0  # seconds that a message usually has, to be delivered


def sign(ready: Ready, out: Outbound, rules: Rules, route: str, seen: Seen) -> None:
    fields = Fields(ready.head)
    domain = ascii_domain(domain_of(from_address(fields.text(b"from"))))
    # Under a wildcard it becomes a tag's value: what no DNS name is must not come that far.
    ready.from_domain = domain if _DOMAIN.fullmatch(domain) else ""
    ready.choice = rules.choose(ready.from_domain, out.user, route, _moment(out, LONG), seen)
    hashes: dict[Form, str] = {}
    made: list[bytes] = []
    for rule in ready.choice.rules:
        step = LONG if rule.expires is None else min(LONG, rule.expires / 2)
        recipe = rule.recipe(ready.from_domain, _moment(out, step))
        if recipe.body_form not in hashes:
            hashes[recipe.body_form] = body_hash(ready.body, recipe.body_form)
        made.append(signature(recipe, fields, hashes[recipe.body_form]))
        ready.domains.append(recipe.domain)
        ready.algorithms.append(rule.key.algorithm)
        ready.signed = (*ready.signed, f"{rule.selector}._domainkey.{recipe.domain}")
    if made:
        ready.head = b"".join([*made, ready.head])


def _moment(out: Outbound, step: float) -> float:
    """When it is signed: when it was accepted, so that a retry is the same bytes, and for what waits longer in steps.

    Else what was held, or is to leave in a month, left by a key that is withdrawn, or with x= over.
    """
    return out.accepted_at + max(0.0, (clock.now() - out.accepted_at) // step * step)


def seal(ready: Ready, out: Outbound, arc: Arc, hostname: str, ask: DnsFunc) -> None:
    """What is said of a message is what it was worth when it came; what is covered is what leaves, our signatures too."""
    came = Verifier(out.head, out.body, ask, out.accepted_at)
    results, chain = came.dkim(), came.arc()
    if (chain.temporary or any(found.result == "temperror" for found in results)) and not out.late:
        raise CannotLeave(Reply(451, "the DNS did not answer, and its seal must say what it is worth", "4.7.5"))
    head = arcs.without_results(ready.head, hostname)
    try:
        made = arcs.seal(
            head, ready.body, arc.key, arc.domain, arc.selector, hostname, results, chain, int(out.accepted_at)
        )
        what = f"sealed as {arc.domain}" if made else "not sealed, for nobody may add to its chain"
    except ValueError as error:  # a rule of ours took the chain away
        made, what = b"", f"not sealed: {error}"
    ready.head = made + head
    ready.changes = (*ready.changes, f"{what}; the chain before: {chain.cv}")
