"""What the admin side can see and do, in terms of the rooms. Opens nothing; `api` puts HTTP around it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relay import __version__, clock
from relay.admin.explain import explain, facts_from
from relay.envelope import parse_queue_id, queue_id
from relay.intake import Intake
from relay.policy.gate import EgressView
from relay.policy.routing import LaneFacts
from relay.recipient import State, Verb, states_before
from relay.settings import Config
from relay.spool import Filter, Place, Spool

MAX_ROWS = 1000
VERBS = {v.value: v for v in (Verb.RETRY, Verb.HOLD, Verb.RELEASE, Verb.CANCEL)} | {"reroute": None}


class BadRequest(Exception):
    """What was asked makes no sense; the text says what was meant."""


class NotFound(Exception):
    """No such message."""


class Outlook(Protocol):
    """What the scheduler tells of what waits."""

    def forecast(self, lane_id: int, now: float) -> tuple[str, float | None, tuple[str, ...]]: ...
    def route_name(self, lane_id: int) -> str: ...
    def lanes_of_route(self, name: str) -> tuple[int, ...]: ...
    def lane_facts_of(self, lane_id: int) -> LaneFacts | None: ...
    def view(self, egress: str) -> EgressView | None: ...
    def egress_rows(self) -> list[dict[str, Any]]: ...


class Control(Protocol):
    """What the composition root offers."""

    @property
    def config(self) -> Config: ...
    def reload(self) -> tuple[bool, list[str]]: ...
    def health(self) -> dict[str, Any]: ...


@dataclass
class Service:
    spool: Spool
    intake: Intake
    outlook: Outlook
    control: Control

    # -- look

    def parse_filter(self, asked: Mapping[str, str]) -> Filter:
        """From a query string. Raises BadRequest naming the key."""
        known = {
            "id",
            "sender",
            "recipient",
            "domain",
            "egress",
            "route",
            "class",
            "tag",
            "user",
            "state",
            "error",
            "older_than",
        }
        unknown = set(asked) - known
        if unknown:
            raise BadRequest(f"unknown filter {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
        wanted = Filter(
            sender=asked.get("sender", ""),
            recipient=asked.get("recipient", ""),
            domain=asked.get("domain", ""),
            egress=asked.get("egress", ""),
            class_=asked.get("class", ""),
            tag=asked.get("tag", ""),
            user=asked.get("user", ""),
            error=asked.get("error", ""),
        )
        try:
            wanted.ids = tuple(parse_queue_id(t) for t in asked.get("id", "").replace(",", " ").split())
            wanted.states = tuple(State[t.strip().upper()] for t in asked.get("state", "").split(",") if t.strip())
            if asked.get("older_than"):
                wanted.accepted_before = clock.now() - float(asked["older_than"])
        except KeyError as error:
            names = ", ".join(s.label for s in State)
            raise BadRequest(f"unknown state {str(error).lower()}; states are {names}") from None
        except ValueError as error:
            raise BadRequest(str(error)) from None
        if asked.get("route"):
            wanted.lanes = self.outlook.lanes_of_route(asked["route"])
        return wanted

    async def rows(self, wanted: Filter, after: tuple[int, int] | None, limit: int) -> tuple[list[dict[str, Any]], str]:
        """(recipients, cursor of the next page or empty)."""
        limit = max(1, min(limit, MAX_ROWS))
        found: list[dict[str, Any]] = []
        async for row in self.spool.find(wanted, after, limit + 1):
            found.append(row)
            if len(found) > limit:
                break
        more = len(found) > limit
        found = found[:limit]
        cursor = f"{found[-1]['message']}.{found[-1]['n']}" if more else ""
        now = clock.now()
        return [self.told(row, now) for row in found], cursor

    def told(self, row: dict[str, Any], now: float) -> dict[str, Any]:
        """A recipient as the operator sees it: with why it waits and when it moves next."""
        lane = row["lane"]
        row["lane_id"], row["lane"] = lane, f"{row['class']}/{self.outlook.route_name(lane) or '?'}"
        row["route"] = self.outlook.route_name(lane)
        row["next_at"] = None
        if row["state"] in ("queued", "deferred"):
            why, until, egresses = self.outlook.forecast(lane, now)
            if row["due_at"] > now:
                row["next_at"] = max(row["due_at"], until or 0.0)
                if not row["why"]:
                    row["why"] = "it is to be sent later"
                if why and until is not None and until > row["due_at"]:
                    row["why"] = f"{row['why']}; besides, {why}"
            else:
                row["next_at"] = until
                row["why"] = why or "its turn comes next"
            row["egress"] = row["egress"] or (egresses[0] if egresses else "")
        elif row["state"] == "active":
            row["why"], row["next_at"] = "it is being delivered", now
        elif row["state"] == "held":
            row["why"] = f"{row['why'] or 'held'}; `relay queue release {row['queue_id']}` lets it go"
        del row["message"]
        return row

    async def message(self, text: str) -> dict[str, Any]:
        """One message: facts, header block, recipients, events."""
        found = await self._message(text)
        now = clock.now()
        found["recipients"] = [self.told(r, now) for r in found["recipients"]]
        found["head"] = found["head"].decode("utf-8", "replace")
        found["body"] = {0: "kept", 1: "kept", 2: "dropped"}[found.pop("place")]
        return found

    async def _message(self, text: str) -> dict[str, Any]:
        try:
            number = parse_queue_id(text)
        except ValueError as error:
            raise BadRequest(str(error)) from None
        found = await self.spool.message(number)
        if found is None:
            raise NotFound(f"no message {queue_id(number)}: it was never here, or `spool.keep` is over")
        return found

    async def stats(self) -> dict[str, Any]:
        """Counts by state, by lane, and the state of each egress."""
        now = clock.now()
        lanes: dict[int, dict[str, Any]] = {}
        for row in await self.spool.stats():
            facts = LaneFacts.parse(row["facts"])
            route = self.outlook.route_name(row["lane"])
            lane = lanes.setdefault(
                row["lane"], {"lane": f"{facts.class_}/{route or '?'}", "lane_id": row["lane"], "facts": row["facts"]}
            )
            lane[row["state"]] = row["recipients"]
            if row["state"] not in ("delivered", "failed"):
                lane["oldest_age"] = max(lane.get("oldest_age", 0.0), now - row["oldest"])
        for number, lane in lanes.items():
            why, until, egresses = self.outlook.forecast(number, now)
            lane |= {"why": why, "next_at": until, "egresses": list(egresses)}
        states = {s.label: n for s, n in self.spool.counts.items()}
        return {"states": states, "lanes": list(lanes.values()), "egresses": self.outlook.egress_rows()}

    def explain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        try:
            facts = facts_from(asked, self.control.config)
        except (TypeError, ValueError) as error:
            raise BadRequest(f"explain: {error}") from None
        if "@" not in facts.recipient:
            raise BadRequest("explain wants a recipient: --to user@example.com")
        return explain(self.control.config, facts, str(asked.get("class") or ""), self.outlook.view)

    # -- act

    async def act(self, verb: str, wanted: Filter, to: str = "", *, dry_run: bool) -> dict[str, Any]:
        """An operator's verb on a selection. `to`: the route or account that `reroute` sends to."""
        if verb not in VERBS:
            raise BadRequest(f"unknown verb {verb!r}; verbs are {', '.join(sorted(VERBS))}")
        if wanted == Filter():
            raise BadRequest(f"{verb} wants queue ids or a filter; to select all, use --sender '*'")
        action = VERBS[verb] or Verb.RETRY
        override = self._override(verb, to)
        knows = states_before(action) if verb != "reroute" else (*states_before(Verb.RETRY), State.HELD)
        wanted.states = tuple(s for s in (wanted.states or tuple(State)) if s in knows)
        count, sample, part = 0, list[str](), list[dict[str, Any]]()
        if wanted.states:
            async for row in self.spool.find(wanted):
                count += 1
                if len(sample) < 20:
                    sample.append(f"{row['queue_id']} {row['recipient']}")
                part.append(row)
                if len(part) == MAX_ROWS:  # a part at a time: a million recipients never lie in memory
                    if not dry_run:
                        await self._change(verb, action, part, override)
                    part = []
        if part and not dry_run:
            await self._change(verb, action, part, override)
        return {"verb": verb, "recipients": count, "dry_run": dry_run, "sample": sample}

    def _override(self, verb: str, to: str) -> dict[str, str | bool]:
        if verb != "reroute":
            return {"released": True} if verb == "release" else {}
        config = self.control.config
        if not to:
            return {"route": "", "via": ""}
        if to in config.accounts:
            return {"via": to, "route": ""}
        if to in config.table.by_name:
            return {"route": to, "via": ""}
        names = ", ".join([*config.accounts, *config.table.by_name])
        raise BadRequest(f"reroute: {to!r} is neither an account nor a route; there are {names}")

    async def _change(
        self, verb: str, action: Verb, found: Sequence[dict[str, Any]], override: dict[str, str | bool]
    ) -> None:
        now, why = clock.now(), f"{verb} by an operator"
        if override:
            await self._move(found, override)
        if verb != "reroute":
            await self.spool.change([(r["message"], r["n"]) for r in found], action, now, why)
            return
        held = [(r["message"], r["n"]) for r in found if r["state"] == "held"]
        rest = [(r["message"], r["n"]) for r in found if r["state"] != "held"]
        await self.spool.change(held, Verb.RELEASE, now, why)
        await self.spool.change(rest, Verb.RETRY, now, why)

    async def _move(self, found: Sequence[dict[str, Any]], override: dict[str, str | bool]) -> None:
        """Into lanes whose facts carry the override; every other fact stays."""
        moves = []
        for row in found:
            facts = self.outlook.lane_facts_of(row["lane"])
            if facts is not None:
                moves.append((row["message"], row["n"], row["lane"], facts.with_overrides(override)))
        for start in range(0, len(moves), 200):
            await self.spool.relane(moves[start : start + 200])

    async def export(self, text: str) -> AsyncIterator[bytes]:
        """The message as it leaves, in slices. Raises SpoolError where the body is not kept."""
        found = await self._message(text)
        body = await self.spool.read(found["id"], Place(found["place"]))
        yield bytes(found["head"])
        if isinstance(body, bytes):
            yield body
            return
        with body.open("rb") as file:
            while data := file.read(1 << 18):
                yield data

    async def resend(self, text: str, recipients: Sequence[str]) -> dict[str, Any]:
        """The same message as a new one, to all its recipients or those named, routed by the rules in force."""
        found = await self._message(text)
        known = {r["recipient"] for r in found["recipients"]}
        strangers = [r for r in recipients if r not in known]
        if strangers:
            raise BadRequest(f"{strangers[0]} is no recipient of {text}; it has {', '.join(sorted(known))}")
        number = await self.intake.resend(found, recipients or sorted(known))
        return {"queue_id": queue_id(number), "resent": found["queue_id"], "recipients": len(recipients or known)}

    # -- the rest

    async def check(self) -> dict[str, Any]:
        problems = await self.spool.check()
        return {"spool": str(self.spool.path), "ok": not problems, "problems": problems}

    async def backup(self, folder: str) -> dict[str, Any]:
        if not Path(folder).is_absolute():
            raise BadRequest("backup wants an absolute folder")
        return await self.spool.backup(Path(folder))

    def status(self) -> dict[str, Any]:
        config = self.control.config
        return {
            "version": __version__,
            "config": str(config.source) if config.source else None,
            "spool": str(self.spool.path),
            "hostname": config.hostname,
            "listen": [str(listen.address) for listen in config.listen],
            **self.control.health(),
        }
