"""Which rule would take a message, and why not the others. Looks at the clock only to tell the time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from relay import clock
from relay.admin.leaving import leaving, made_from, message_from
from relay.admin.ports import Outlook
from relay.admin.words import clock_time
from relay.envelope import queue_id
from relay.policy.classes import TrafficClass, choose_class
from relay.policy.gate import EgressView
from relay.policy.lanefacts import lane_facts
from relay.policy.routing import CAPTURED, Action, Facts, Route, Table, Undecided, matches_any
from relay.repair import Outcome
from relay.settings import Account, Config, Listen, User
from relay.signing.rules import Seen
from relay.submission import BadMessage, Head, Options, authors, faults, from_address, read_head, read_options, split
from relay.trace import prefix

SAMPLE = 0  # the number of a message that nobody sent


def explain(
    config: Config,
    facts: Facts,
    asked: Mapping[str, Any],
    view: Callable[[str], EgressView | None],
    seen: Seen | None = None,
) -> dict[str, Any]:
    """Class, rules in order with what each lacks, the rule that takes it, and its egresses in order.

    For each egress: what would be done to the message before it leaves, also where `capture` keeps it here. Signs, and reads
    keys' records from `seen` alone; None: no relay runs that could know. Raises ValueError.
    """
    case = _case(asked, config)
    user, options = config.users.get(facts.user), case.options
    class_ = choose_class(config.classes, options.class_, facts, user.classes if user else ())
    facts = replace(facts, class_=class_.name)
    no = _may_not(user, facts, case.authors) if user else ""
    rules = [{"name": f"user {user.name}", "origin": "users", "verdict": no or "may send this"}] if user else []
    taking, walked = (None, []) if no else _walk(config.table, facts, options.route)
    found = config.table.unless_captured(taking, lambda q: q.ask(facts)) if taking else None
    chosen = None if isinstance(found, Undecided) else found
    rules += walked
    if chosen is CAPTURED:
        rules.append(_rule(CAPTURED, "matches: the recipient is not in capture.allow, so it is kept here instead"))
    return {
        "sender": facts.sender,
        "from": facts.from_,
        "recipient": facts.recipient,
        "class": class_.name,
        "tag": facts.tag,
        "notes": case.notes,
        "route": chosen.name if chosen else None,
        "origin": chosen.origin if chosen else None,
        "action": chosen.action.value if chosen else "reject",
        "text": no or _text(chosen, facts),
        "rules": rules,
        "before_capture": taking.name if taking and chosen is CAPTURED else None,
        "egresses": _egresses(config, taking, facts, case.content, view, seen, captured=chosen is CAPTURED),
        "suppressed": [],  # what a running relay has listed, as `relay suppress list` shows it
        "destination": None,  # where it leaves by MX: `admin.reach`
        "retry": _retry(class_, options),
    }


def held(config: Config, facts: Facts, found: Mapping[str, Any], outlook: Outlook) -> dict[str, Any] | None:
    """What would hold it back beside its egress: a limit of its mail, the hours of its class, or a hand. `until` None: nobody
    knows; None at all: nothing would."""
    route = config.table.by_name.get(found["route"] or "")
    if route is None or route.action is not Action.VIA:
        return None
    mine, now = replace(facts, class_=found["class"]), clock.now()
    why, until, _ = outlook.forecast_facts(lane_facts(config.table, mine, lambda q: q.ask(mine), by=route), now)
    return (
        {"why": why, "until": until}
        if why and not any(why.startswith(e["egress"]) for e in found["egresses"])
        else None
    )


def _walk(table: Table, facts: Facts, asked_route: str) -> tuple[Route | None, list[dict[str, Any]]]:
    """The rule that takes it, `capture` aside, and those that were asked, with what each lacks."""
    if named := table.named(asked_route, lambda q: q.ask(facts)):
        return named, [_rule(named, "matches: X-Relay-Route names it")]
    rules: list[dict[str, Any]] = []
    for rule in table.routes:
        if tenant := rule.closed_to(lambda q: q.ask(facts)):
            rules.append(_rule(rule, f"not for tenant {tenant}: tenants.{tenant}.routes does not name it"))
            continue
        if rule.match.test(lambda q: q.ask(facts)):
            return rule, [*rules, _rule(rule, "matches")]
        rules.append(_rule(rule, f"does not match: {rule.match.first_no(facts)}"))
    return None, rules


def _retry(class_: TrafficClass, options: Options) -> dict[str, Any]:
    return {
        "give_up": class_.retry.give_up,
        "in_doubt": class_.in_doubt.value,
        "priority": int(class_.priority if options.priority is None else options.priority),
    }


def _may_not(user: User, facts: Facts, named: tuple[str, ...]) -> str:
    """What a user would hear who may not send this; empty where he may. `named`: all its authors."""
    if not matches_any(user.senders, facts.sender):
        return f"553 5.7.1 user {user.name} may not send as <{facts.sender}>"
    if not matches_any(user.recipients, facts.recipient):
        return f"550 5.7.1 user {user.name} may not send to <{facts.recipient}>"
    if "*" in user.senders:
        return ""
    for author in named:
        if not author:
            return "550 5.7.1 From or Sender cannot be read"
        if not matches_any(user.senders, author):
            return f"550 5.7.1 user {user.name} may not send as {author}"
    return ""


# -- the message, as intake would take it


@dataclass(frozen=True, slots=True)
class _Case:
    facts: Facts
    options: Options  # those of the command line and, where it is silent, the honoured ones of the message
    content: tuple[bytes, bytes]  # (head, body) as they would be kept
    authors: tuple[str, ...]
    notes: list[str]  # for people: what was put right, and what is ignored


def facts_from(asked: Mapping[str, Any], config: Config) -> Facts:
    """The facts of a message that somebody describes, or brings along. Raises ValueError."""
    return _case(asked, config).facts


def _case(asked: Mapping[str, Any], config: Config) -> _Case:
    """What intake would make of it. What is asked for in so many words counts more than what the message says.

    `from` is From, and MAIL FROM where `sender` is silent; of a message that is brought along it is MAIL FROM alone.
    """
    given = asked.get("headers") or {}
    if not isinstance(given, Mapping):
        raise ValueError("headers wants an object")
    said = {str(name): str(value) for name, value in given.items()}
    listen, user = _listener(asked, config), _user(asked, config)
    from_ = str(asked.get("from") or "")
    address = from_address(from_) or from_
    brought, recipient = message_from(asked), str(asked.get("to") or "")
    raw = brought if brought is not None else made_from(address or str(asked.get("sender") or ""), recipient, said)
    now = clock.now()
    try:
        start = split(raw)
        head = read_head(raw[:start])
        notes = _put_right(head, raw[:start], start < len(raw), listen)
        options, ignored = read_options(head, listen.honour | (user.honour if user else frozenset()), now)
    except BadMessage as error:
        raise ValueError(f"the relay would refuse it: {error.code} {error.enhanced} {error.text}") from None
    sender = str(asked.get("sender") or address or head.from_)
    if not head.has_from:
        head.add_from(sender or f"MAILER-DAEMON@{config.hostname}")
    options = replace(
        options, class_=str(asked.get("class") or options.class_), tag=str(asked.get("tag") or options.tag)
    )
    notes += [f"ignored: {text}" for text in [*ignored, *_unknown(options, config, user)]]
    if options.send_at and options.send_at > now:
        notes.append(f"X-Relay-Send-At: it does not leave before {clock_time(options.send_at, now)}")
    client = str(asked.get("client") or "127.0.0.1")
    top = prefix(
        head, queue_id=queue_id(SAMPLE), hostname=config.hostname, helo="client", client=client, protocol="ESMTP", now=now
    )  # fmt: skip
    facts = Facts(
        sender=sender,
        recipient=recipient,
        listener=listen.name,
        client=client,
        user=user.name if user else "",
        from_=head.from_ if brought is not None or not address else address,
        tag=options.tag,
        size=int(asked.get("size") or (4096 if brought is None else len(raw))),
        headers={**head.headers(), **{name.lower(): (value,) for name, value in said.items()}},
    )
    return _Case(facts, options, (top + head.kept, raw[start:]), tuple(authors(head)), notes)


def _put_right(head: Head, raw: bytes, more: bool, listen: Listen) -> list[str]:
    """What the listener would put right, for people. Raises BadMessage where it would refuse."""
    found = faults(head, raw, more)
    for fault in found:
        if listen.headers == "reject" or fault.outcome is Outcome.REFUSED:
            raise BadMessage(554, "5.6.0", fault.text)
    return [f"{'put right' if fault.outcome is Outcome.REPAIRED else 'odd'}: {fault.text}" for fault in found]


def _unknown(options: Options, config: Config, user: User | None) -> list[str]:
    """Names that choose nothing."""
    found = []
    allowed = user.classes if user else ()
    if options.class_ and options.class_ not in config.classes:
        found.append(f"x-relay-class: no class {options.class_!r} in the configuration")
    elif options.class_ and allowed and options.class_ not in allowed:
        found.append(f"x-relay-class: class {options.class_!r} is none of this user's")
    if options.route and options.route not in config.table.by_name:
        found.append(f"x-relay-route: no route {options.route!r} in the configuration")
    elif options.route and user and options.route not in config.table.open_to([user.name]):
        found.append(f"x-relay-route: route {options.route!r} is not for tenant {user.tenant}")
    return found


def _listener(asked: Mapping[str, Any], config: Config) -> Listen:
    name = str(asked.get("listener") or config.listen[0].name)
    found = next((listen for listen in config.listen if listen.name == name), None)
    if found is None:
        raise ValueError(f"no listener '{name}'; there is {', '.join(listen.name for listen in config.listen)}")
    return found


def _user(asked: Mapping[str, Any], config: Config) -> User | None:
    name = str(asked.get("user") or "")
    if name and name not in config.users:
        raise ValueError(f"no user '{name}'; there is {', '.join(config.users) or 'none'}")
    return config.users.get(name)


# -- the answer


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
    seen: Seen | None,
    *,
    captured: bool,
) -> list[dict[str, Any]]:
    """Each egress of the route in order, and whether and when it could leave by it now."""
    if route is None or route.action is not Action.VIA:
        return []
    allowed = config.table.egresses(route, lambda q: q.ask(facts))
    rows = []
    for name, shared in _ways(config, route):
        account, seen_egress = config.accounts[name], view(name)
        skipped = name not in allowed
        if skipped:
            leaves: dict[str, Any] = {"when": f"skipped: may not send as {facts.sender}", "wait": None}
        elif captured:
            leaves = {"when": "not dialled", "wait": None}
        else:
            leaves = when(seen_egress)
        row: dict[str, Any] = {"egress": name, **leaves, "skipped": skipped, **shared, **_source(config, account)}
        if not skipped:
            seven_bit = seen_egress is not None and seen_egress.seven_bit
            row |= leaving(config, account, route.name, facts, content, seen, seven_bit=seven_bit)
        rows.append(row)
    return rows


def _ways(config: Config, route: Route) -> list[tuple[str, dict[str, Any]]]:
    """Each egress of a route once, in order; of a pool its members by falling weight, for a message draws its own first."""
    ways: dict[str, dict[str, Any]] = {}
    for name in _with_overflow(config.table, route):
        pool = config.pools.get(name)
        if pool is None:
            ways.setdefault(name, {"pool": "", "weight": None, "share": None})
            continue
        whole = sum(weight for _, weight in pool.members)
        for member, weight in sorted(pool.members, key=lambda m: -m[1]):
            ways.setdefault(member, {"pool": name, "weight": weight, "share": round(weight / whole, 4)})
    return list(ways.items())


def _with_overflow(table: Table, route: Route) -> Iterator[str]:
    """Those of the route, each with what takes its excess behind it, unless the route names that elsewhere."""
    for name in route.via:
        yield name
        yield from (other for other in table.behind(name) if other not in route.via)


def _source(config: Config, account: Account) -> dict[str, Any]:
    """`mx`: it delivers to the recipients' own servers, from `source`, calling itself `hostname`."""
    source = account.source
    if source is None:
        return {"mx": False, "source": [], "hostname": ""}
    addresses = [address for address in (source.v4, source.v6) if address]
    return {"mx": True, "source": addresses, "hostname": source.hostname or config.hostname}


def when(view: EgressView | None) -> dict[str, Any]:
    """When it could leave by an egress, and in how many seconds."""
    if view is None:
        return {"when": "no relay is running to ask", "wait": None}
    if view.wait > 0:
        now = clock.now()
        word = "rests" if view.probing else "waits"  # for its end, or for a limit
        return {"when": f"{word} until {clock_time(now + view.wait, now)}: {view.why}", "wait": round(view.wait, 1)}
    return {"when": "now" if view.room > 0 else "as soon as a connection is free", "wait": 0.0}
