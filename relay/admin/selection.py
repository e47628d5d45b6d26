"""What an operator, or a program, selects mail by: words into a filter, and a filter into words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from math import isfinite

from relay.admin.ports import BadRequest, Outlook
from relay.envelope import parse_queue_id, queue_id
from relay.policy.routing import glob
from relay.recipient import State
from relay.spool import Filter

_GLOBS = {"sender": "sender", "recipient": "recipient", "domain": "domain", "egress": "egress", "class": "class_",
          "tag": "tag", "user": "user"}  # fmt: skip
_KNOWN = (*_GLOBS, "id", "state", "error", "older_than", "route", "key")


def selection(asked: Mapping[str, str], outlook: Outlook, now: float) -> Filter:
    """From names and texts, as a query string has them. Raises BadRequest naming the key."""
    if unknown := asked.keys() - set(_KNOWN):
        raise BadRequest(f"unknown filter {sorted(unknown)[0]!r}; known are {', '.join(sorted(_KNOWN))}")
    wanted = Filter(error=asked.get("error", ""), key=asked.get("key", ""))
    for name, field in _GLOBS.items():
        setattr(wanted, field, asked.get(name, ""))
    try:
        wanted.ids = tuple(parse_queue_id(t) for t in asked.get("id", "").replace(",", " ").split())
        wanted.states = tuple(State[t.strip().upper()] for t in asked.get("state", "").split(",") if t.strip())
    except KeyError as error:
        names = ", ".join(s.label for s in State)
        raise BadRequest(f"unknown state {str(error).lower()}; states are {names}") from None
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if asked.get("older_than"):
        wanted.accepted_before = now - _seconds(asked["older_than"])
    if asked.get("route"):
        wanted.lanes = outlook.lanes_of_route(asked["route"])
    if wanted.egress:
        wanted.ahead = tuple(sorted(outlook.lanes_by_first(glob(wanted.egress))))
    return wanted


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not isfinite(found):
        raise BadRequest(f"older_than wants seconds, not {text!r}")
    return found


def said(wanted: Filter) -> str:
    """A filter as the log tells it."""
    names = {"ids": "id", "states": "state", "class_": "class", "lanes": "lane"}
    words = []
    for field in fields(wanted):
        value = getattr(wanted, field.name)
        match field.name:
            case "ahead":
                continue  # what `egress` comes to
            case "ids":
                value = ",".join(map(queue_id, value))
            case "states":
                value = ",".join(s.label for s in value)
            case "users" if value is not None:
                value = ",".join(sorted(value)) or "none"
            case "lanes" if value is not None:
                value = ",".join(map(str, value)) or "none"
        if value:
            words.append(f"{names.get(field.name, field.name)}={value}")
    return " ".join(words)
