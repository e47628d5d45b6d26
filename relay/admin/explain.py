"""Which rule would take a message, and why not the others. Looks at the clock only to tell the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from relay import clock
from relay.admin.leaving import leaving, message_from, parts
from relay.admin.words import clock_time
from relay.policy.classes import choose_class
from relay.policy.gate import EgressView
from relay.policy.routing import CAPTURED, Action, Facts, Route, Undecided, matches_any
from relay.settings import Config, User
from relay.signing.rules import Seen
from relay.submission import from_address, read_head


def explain(
    config: Config,
    facts: Facts,
    asked: Mapping[str, Any],
    view: Callable[[str], EgressView | None],
    seen: Seen = lambda rule, domain: None,
) -> dict[str, Any]:
    """Class, rules in order with what each lacks, the rule that takes it, and its egresses in order.

    For each egress: what would be done to the message before it leaves. Signs, and reads keys' records from `seen` alone.
    Raises ValueError.
    """
    asked_class = str(asked.get("class") or "")
    content = parts(message_from(asked), facts)
    user = config.users.get(facts.user)
    class_ = choose_class(config.classes, asked_class, facts, user.classes if user else ())
    facts = Facts(
        facts.sender, facts.recipient, facts.listener, facts.client, facts.user, facts.from_, class_.name, facts.tag,
        facts.size, facts.headers,
    )  # fmt: skip
    table = config.table
    no = _may_not(user, facts) if user else ""
    route = None if no else table.pick_for(facts)
    chosen = None if isinstance(route, Undecided) else route
    rules = [{"name": f"user {user.name}", "origin": "users", "verdict": no or "may send this"}] if user else []
    for rule in table.routes if not no else ():
        if rule.match.test(lambda q: q.ask(facts)):
            rules.append(_rule(rule, "matches"))
            break
        rules.append(_rule(rule, f"does not match: {rule.match.first_no(facts)}"))
    if chosen is CAPTURED:
        rules.append(_rule(CAPTURED, "matches: the recipient is not in capture.allow, so it is kept here instead"))
    return {
        "sender": facts.sender,
        "from": facts.from_,
        "recipient": facts.recipient,
        "class": class_.name,
        "route": chosen.name if chosen else None,
        "origin": chosen.origin if chosen else None,
        "action": chosen.action.value if chosen else "reject",
        "text": no or _text(chosen, facts),
        "rules": rules,
        "egresses": _egresses(config, chosen, facts, content, view, seen),
        "retry": {
            "give_up": class_.retry.give_up,
            "in_doubt": class_.in_doubt.value,
            "priority": int(class_.priority),
        },
    }


def _may_not(user: User, facts: Facts) -> str:
    """What a user would hear who may not send this; empty where he may."""
    if not matches_any(user.senders, facts.sender):
        return f"553 5.7.1 user {user.name} may not send as <{facts.sender}>"
    if not matches_any(user.recipients, facts.recipient):
        return f"550 5.7.1 user {user.name} may not send to <{facts.recipient}>"
    if facts.from_ and not matches_any(user.senders, facts.from_):
        return f"550 5.7.1 user {user.name} may not send as {facts.from_}"
    return ""


def facts_from(asked: Mapping[str, Any], config: Config) -> Facts:
    """The facts of a message that somebody describes, or brings along. Raises ValueError."""
    given = asked.get("headers") or {}
    if not isinstance(given, Mapping):
        raise ValueError("headers wants an object")
    headers: Mapping[str, tuple[str, ...]] = {str(k).lower(): (str(v),) for k, v in given.items()}
    from_, size, message = str(asked.get("from") or ""), int(asked.get("size") or 4096), message_from(asked)
    if message is not None:
        kept, body = parts(message, None)
        head = read_head(kept)
        from_, size, headers = from_ or head.from_, len(kept) + len(body), {**head.headers(), **headers}
    address = from_address(from_) or from_
    user = str(asked.get("user") or "")
    if user and user not in config.users:
        raise ValueError(f"no user '{user}'; there is {', '.join(config.users) or 'none'}")
    return Facts(
        sender=str(asked.get("sender") or address),
        recipient=str(asked.get("to") or ""),
        listener=str(asked.get("listener") or config.listen[0].name),
        client=str(asked.get("client") or "127.0.0.1"),
        user=user,
        from_=address,
        tag=str(asked.get("tag") or ""),
        size=size,
        headers=headers,
    )


def _rule(rule: Route, verdict: str) -> dict[str, Any]:
    return {"name": rule.name, "origin": rule.origin, "verdict": verdict}


def _text(route: Route | None, facts: Facts) -> str:
    if route is None:
        return "550 5.7.1 no route for a message from this sender to this recipient"
    match route.action:
        case Action.REJECT:
            return f"550 5.7.1 {route.text}"
        case Action.HOLD:
            return "held until an operator releases it"
        case Action.DISCARD:
            return "accepted and discarded"
        case Action.CAPTURE:
            return route.text
        case _:
            return f"via {', '.join(route.via)}"


def _egresses(
    config: Config,
    route: Route | None,
    facts: Facts,
    content: tuple[bytes, bytes],
    view: Callable[[str], EgressView | None],
    seen: Seen,
) -> list[dict[str, Any]]:
    """Each egress of the route in order, and whether and when it could leave by it now."""
    if route is None or route.action is not Action.VIA:
        return []
    allowed = config.table.egresses(route, lambda q: q.ask(facts))
    rows = []
    for name in route.via:
        seen_egress = view(name)
        if name not in allowed:
            when, wait = f"skipped: may not send as {facts.sender}", None
        elif seen_egress is None:
            when, wait = "no relay is running to ask", None
        elif seen_egress.wait > 0:
            now = clock.now()
            when, wait = (
                f"rests until {clock_time(now + seen_egress.wait, now)}: {seen_egress.why}",
                round(seen_egress.wait, 1),
            )
        else:
            when, wait = "now" if seen_egress.room > 0 else "as soon as a connection is free", 0.0
        row: dict[str, Any] = {"egress": name, "when": when, "wait": wait}
        if name in allowed:
            seven_bit = seen_egress is not None and seen_egress.seven_bit
            row |= leaving(config, config.accounts[name], route.name, facts, content, seen, seven_bit=seven_bit)
        rows.append(row)
    return rows
