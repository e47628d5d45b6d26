"""Suspend and resume, as an operator asks for it: which names there are, and what it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from relay import clock
from relay.admin.ports import BadRequest, Control, NotFound, Outlook, Pauses
from relay.policy.suspend import KINDS


@dataclass
class Pausing:
    pauses: Pauses
    outlook: Outlook
    control: Control

    def list(self) -> list[dict[str, Any]]:
        return self.pauses.suspensions()

    async def suspend(self, asked: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
        """`kind` and `value`, and for how many seconds (`for`; none: until it is resumed) and why (`reason`)."""
        kind, value = self._selector(asked)
        seconds = asked.get("for")
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
            raise BadRequest("for wants a number of seconds")
        self._must_exist(kind, value)
        until = None if seconds is None else clock.now() + seconds
        try:
            notes = await self.pauses.suspend(kind, value, until, str(asked.get("reason") or ""), owner)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        return {"kind": kind, "value": value, "until": until, "notes": notes}

    async def resume(self, asked: Mapping[str, Any], owner: str = "") -> dict[str, Any]:
        """`kind` and `value`, or `all`. Of an egress its breaker is asked again as well."""
        if asked.get("all"):
            resumed, again = 0, list[str]()
            for row in self.list():
                resumed += await self.pauses.resume(row["kind"], row["value"])
                again += self.pauses.ask_again(row["value"]) if row["kind"] == "egress" else []
            return {"resumed": resumed, "asked_again": again}
        kind, value = self._selector(asked)
        resumed = await self.pauses.resume(kind, value, owner)
        if not resumed and kind == "egress":
            self._must_exist(kind, value)
        elif not resumed:
            there = ", ".join(f"{row['kind']} {row['value']}".rstrip() for row in self.list()) or "none"
            raise NotFound(f"no suspension of {kind} {value or '<>'} is in force; there are: {there}")
        return {"resumed": resumed, "asked_again": self.pauses.ask_again(value) if kind == "egress" else []}

    def _selector(self, asked: Mapping[str, Any]) -> tuple[str, str]:
        kind, value = asked.get("kind"), asked.get("value")
        if kind not in KINDS or not isinstance(value, str):
            raise BadRequest(f"kind wants one of {', '.join(KINDS)}, and value a text")
        return kind, value

    def _must_exist(self, kind: str, value: str) -> None:
        """A plain name that the configuration does not know is a slip of the pen; a pattern may be for what is to come."""
        if "*" in value or "?" in value:
            return
        config = self.control.config
        match kind:
            case "egress":
                name = value.partition(" to ")[0]
                members = next((p.members for n, p in config.pools.items() if n.lower() == name.lower()), ())
                if members:
                    raise BadRequest(f"{value} is a pool; suspend its members: {', '.join(n for n, _ in members)}")
                _one_of("account or direct entry", name, config.accounts)
            case "class":
                _one_of("class", value, {"default", *config.classes})
            case "user":
                _one_of("user", value, config.users)
            case "destination" if "." not in value:
                _one_of("destination", value, [rule.name for rule in config.destinations])
            case "lane" if value.isdecimal() and self.outlook.lane_facts_of(int(value)) is None:
                raise BadRequest(f"no lane {value}; lane_id in `relay queue list --json` names them")


def _one_of(what: str, value: str, names: Iterable[str]) -> None:
    if value.lower() not in {name.lower() for name in names}:
        there = ", ".join(sorted(name for name in names if name)) or "none"
        raise BadRequest(f"no {what} {value!r}; there are: {there}")
