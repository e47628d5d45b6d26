"""What would be done to a message before it leaves by an egress: for `explain`. Sends nothing and tells nobody."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from relay import clock
from relay.envelope import EIGHT_BIT, LONG_LINES, NUL, domain_of
from relay.outgoing import headers
from relay.outgoing.mime import long_line
from relay.policy.alignment import verdict
from relay.policy.routing import Facts
from relay.prepare.message import CannotLeave, Outbound, Ready, plan_of
from relay.settings import Account, Config
from relay.signing.rules import Rule, Seen, bound, why_not
from relay.submission import from_address

MAX_SIGNATURES = 10  # of the application's own that are looked at
MAX_MESSAGE = 3 << 20  # bytes of a file; larger ones make the same decisions


def message_from(asked: Mapping[str, Any]) -> bytes | None:
    """The message that the question brought along, or None. Raises ValueError."""
    given = asked.get("message")
    if given is None:
        return None
    try:
        raw = base64.b64decode(str(given), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("message wants base64") from None
    if len(raw) > MAX_MESSAGE:
        raise ValueError(f"message is larger than {MAX_MESSAGE} bytes")
    return b"\r\n".join(raw.splitlines()) + b"\r\n"


def made_from(author: str, recipient: str, more: Mapping[str, str]) -> bytes:
    """A message that has what somebody says of it, and no text. Raises ValueError."""
    addresses = [(name, value) for name, value in (("From", author), ("To", recipient)) if value]
    for name, value in addresses:
        if not value.isprintable():
            raise ValueError(f"{name}: the address has a control character")
    # As with SMTPUTF8: an encoded word is no address.
    written = [f"{name}: {value}\r\n".encode() for name, value in addresses]
    return b"".join([*written, *(headers.make(name, value).raw for name, value in more.items() if value), b"\r\n"])


def leaving(
    config: Config,
    account: Account,
    route: str,
    facts: Facts,
    content: tuple[bytes, bytes],
    seen: Seen | None,
    *,
    seven_bit: bool,
) -> dict[str, Any]:
    """Envelope, changes, signatures and alignment, by this account. `seen` None: nobody here knows of any record."""
    head, body = content
    needs = 0 if head.isascii() and body.isascii() else EIGHT_BIT
    needs |= LONG_LINES if long_line(head) or long_line(body) else 0
    needs |= NUL if b"\0" in body else 0
    now = clock.now()
    out = Outbound(
        0, 0, facts.sender, facts.recipient, head, body, len(head) + len(body), needs, now, facts.user,
        facts.class_ or "", facts.tag or "",
    )  # fmt: skip
    plan = plan_of(config, route, account)
    from relay.prepare.steps import make  # late, for what it loads

    try:
        ready = make(out, plan, config, account, route, seven_bit, seen or _nobody_knows, None)
    except CannotLeave as error:
        return _account(account) | {"error": str(error.reply)}
    found = ready.verdict or verdict(
        _from_domain(ready.head), (), domain_of(ready.sender) or config.hostname, account.signs
    )
    if plan.signs:
        found = found.mended_by(
            why_not(config.signing, ready.from_domain, facts.user, route, now, seen or _nobody_knows)
        )
    return _account(account) | {
        "error": None,
        "reverse_path": ready.sender,
        "changes": list(ready.changes),
        "samples": plan.rewrite is not None and (plan.rewrite.needs_token or "id" in plan.rewrite.names),
        "broken": _broken(out, ready),
        "signatures": _signatures(ready, bound(config.signing, ready.from_domain, facts.user, route), seen is not None),
        "upstream_signs": account.signs,
        "sealed": plan.seals,
        "alignment": found.alignment.value,
        "why": found.why,
    }


def _account(account: Account) -> dict[str, Any]:
    return {"preset": account.preset, "limits": [str(rate) for rate in account.limits]}


def _nobody_knows(rule: Rule, domain: str) -> None:
    return None


def _from_domain(head: bytes) -> str:
    """Of From as it leaves, which a rule may have rewritten."""
    field = headers.first(headers.split(head), b"from")
    return domain_of(from_address(field.value.replace(b"\r\n", b"").decode("utf-8", "replace"))) if field else ""


def _signatures(ready: Ready, others: list[tuple[Rule, str]], running: bool) -> list[dict[str, Any]]:
    """Of each entry for its From domain, whether it signs, and why not. `others`: for whom else."""
    rules = [(rule, "") for rule in ready.choice.rules]
    for rule, why in ready.choice.waiting:
        here = running or rule not in ready.choice.unknown
        rules.append((rule, why if here else "not known here whether its record was seen (when_published)"))
    rules += [(rule, f"it is for {whose} only") for rule, whose in others]
    return [
        {
            "domain": rule.signs_as(ready.from_domain),
            "selector": rule.selector,
            "algorithm": rule.key.algorithm,
            "key": rule.source,
            "origin": rule.origin,
            "waits": why,
        }
        for rule, why in rules
    ]


def _broken(out: Outbound, ready: Ready) -> list[str]:
    """Signatures that the message came with and that are worth nothing once it leaves, and what breaks each."""
    if not ready.changes or b"dkim-signature" not in out.head.lower():
        return []
    from relay.signing import dkim, tags  # late, for what they load
    from relay.signing.canonical import body_hash

    before, after = dkim.Fields(out.head), dkim.Fields(ready.head)

    def changed(signature: tags.Field) -> str:
        found = tags.parse(signature)
        names, (form, body_form) = tags.field_names(found), tags.forms(found, b"simple/simple")

        def covered(fields: dkim.Fields, name: bytes) -> list[bytes]:
            return list(dkim.selected([n for n in names if n == name], fields.of(form)))

        what = [
            n.decode("ascii", "replace").title()
            for n in dict.fromkeys(names)
            if covered(before, n) != covered(after, n)
        ]
        if ready.converted and body_hash(out.body, body_form) != body_hash(ready.body, body_form):
            what.append("its text")
        name = f"{tags.domain_name(found[b's'])}._domainkey.{tags.domain_name(found[b'd'])}"
        return f"{name}: it covers {', '.join(what)}" if what else ""

    given = [one for one in dkim.split_fields(out.head) if one[0].strip().lower() == b"dkim-signature"]
    texts = [tags.attempt(changed, one) for one in given[:MAX_SIGNATURES]]
    return [tags.clean(text) for text in texts if text and not isinstance(text, tags.Refused)]
