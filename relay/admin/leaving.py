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
from relay.policy.alignment import Verdict, verdict
from relay.policy.routing import Facts
from relay.prepare.message import CannotLeave, Outbound, Plan, Ready, plan_of
from relay.repair import Outcome
from relay.settings import Account, Config
from relay.signing.rules import Seen
from relay.submission import BadMessage, faults, read_head, split

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


def parts(message: bytes | None, facts: Facts | None) -> tuple[bytes, bytes]:
    """(head, body): of the message as intake would keep it, or of one that has what the facts say. Raises ValueError."""
    if message is None:
        assert facts is not None
        fields = [("From", facts.from_ or facts.sender), ("To", facts.recipient)]
        fields += [(name, value) for name, values in (facts.headers or {}).items() for value in values]
        return b"".join(headers.make(name, value).raw for name, value in fields if value) + b"\r\n", b""
    try:
        start = split(message)
        head = read_head(message[:start])
    except BadMessage as error:
        raise ValueError(f"the relay would refuse it: {error.code} {error.enhanced} {error.text}") from None
    for fault in faults(head, message[:start], start < len(message)):
        if fault.outcome is Outcome.REFUSED:
            raise ValueError(f"the relay would refuse it: 554 5.6.0 {fault.text}")
    return head.kept, message[start:]


def leaving(
    config: Config,
    account: Account,
    route: str,
    facts: Facts,
    content: tuple[bytes, bytes],
    seen: Seen,
    *,
    seven_bit: bool,
) -> dict[str, Any]:
    """Envelope, changes, signatures and alignment, by this account."""
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
        ready = make(out, plan, config, account, route, seven_bit, seen, None)
    except CannotLeave as error:
        return {"error": str(error.reply)}
    found = ready.verdict or verdict(
        domain_of(facts.from_ or ""), (), domain_of(ready.sender) or config.hostname, account.signs
    )
    return _told(ready, plan, account, found)


def _told(ready: Ready, plan: Plan, account: Account, found: Verdict) -> dict[str, Any]:
    rules = [*((rule, "") for rule in ready.choice.rules), *ready.choice.waiting]
    return {
        "error": None,
        "reverse_path": ready.sender,
        "changes": list(ready.changes),
        "signatures": [
            {
                "domain": rule.signs_as(ready.from_domain),
                "selector": rule.selector,
                "algorithm": rule.key.algorithm,
                "key": rule.source,
                "origin": rule.origin,
                "waits": why,
            }
            for rule, why in rules
        ],
        "upstream_signs": account.signs,
        "sealed": plan.seals,
        "alignment": found.alignment.value,
        "why": found.why,
    }
