"""One recipient under the rules: who may not pass, and how the others begin. Pure.

Shared by what applications hand in (intake) and by what we write ourselves (notices).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from relay.policy.classes import TrafficClass
from relay.policy.lanefacts import lane_facts
from relay.policy.routing import Action, Facts, Question, Route, Table
from relay.policy.suppression import Why
from relay.recipient import State, Verb, move
from relay.spool import NewRecipient
from relay.submission import BadMessage


def refusal(table: Table, route: Route | None, facts: Facts) -> BadMessage | None:
    """Why the rules refuse this recipient; None: they don't."""
    if route is None:
        return BadMessage(550, "5.7.1", "no route for a message from this sender to this recipient")
    if route.action is Action.VIA:
        if table.egresses(route, lambda q: q.ask(facts)):
            return None
        return BadMessage(550, "5.7.1", f"no account of route {route.name} may send as this sender")
    return BadMessage(550, "5.7.1", route.text) if route.action is Action.REJECT else None


def begin(
    table: Table,
    route: Route | None,
    refused: BadMessage | None,
    facts: Facts,
    ask: Callable[[Question], bool | None],
    class_: TrafficClass,
    start: float,
    overrides: Mapping[str, str | bool],
    number: int,
    priority: int | None = None,
) -> NewRecipient:
    """The recipient of message `number` as it is stored first. `ask` answers for `facts`; `overrides`, `priority`: see `lane_facts`."""
    state, why = _first_state(route, refused)
    return NewRecipient(
        address=facts.recipient,
        facts=lane_facts(table, facts, ask, overrides, number, route, priority),
        state=state,
        due_at=start,
        expires_at=start + class_.retry.give_up,
        egress=route.action.value if route and state is State.DELIVERED else "",
        why=why,
    )


def suppress(found: NewRecipient, why: Why) -> None:
    """It fails before anything was tried, whatever its route would do."""
    found.state, found.egress, found.kind = move(State.QUEUED, Verb.SUPPRESS), "", "suppressed"
    found.why = f"suppressed: {why.words}"


def _first_state(route: Route | None, refused: BadMessage | None) -> tuple[State, str]:
    if refused:
        return State.FAILED, f"rejected: {refused.text}"
    assert route is not None
    if route.action is Action.VIA:
        return State.QUEUED, ""
    where = f"route {route.name} ({route.origin})" if route.origin else f"route {route.name}"
    match route.action:
        case Action.HOLD:
            return State.HELD, f"held by {where}"
        case Action.DISCARD:
            return State.DELIVERED, f"discarded by {where}"
        case Action.CAPTURE:
            return State.DELIVERED, route.text
        case _:
            return State.QUEUED, ""
