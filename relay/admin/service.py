"""What the admin side can see and do, in terms of the rooms. Opens nothing; `api` puts HTTP around it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relay import __version__, clock
from relay.admin.explain import explain, facts_from, held
from relay.admin.figures import breathe, lane_name, leaving, stats
from relay.admin.ports import BadRequest, Control, NotFound, Outlook
from relay.admin.reach import by_mx, told_of
from relay.admin.selection import said, selection
from relay.admin.suppress import row as suppressed_row
from relay.admin.words import joined, plural, rests
from relay.deliver.pool import name_of
from relay.envelope import parse_queue_id, queue_id
from relay.intake import Intake
from relay.maillog import MailLog
from relay.policy.access import yields
from relay.recipient import FINAL, State, Verb, states_before
from relay.resend import resend
from relay.spool import Filter, Place, Spool

MAX_ROWS = 1000
VERBS = {v.value: v for v in (Verb.RETRY, Verb.HOLD, Verb.RELEASE, Verb.CANCEL)} | {"reroute": None}
PAST = {"retry": "retried", "hold": "held", "release": "released", "cancel": "cancelled", "reroute": "rerouted"}
LETS_GO = ("release", "reroute")  # of what is held
NOT_THEIRS = "a rule or an operator of the relay holds it, who alone lets it go"
MAX_NOTES = 5
MAX_SKIPPED = 1000


Eta = tuple[float | None, str, int]  # when, by which rule, behind how many
Forecast = tuple[str, float | None, tuple[str, ...]]  # see `Outlook`
Users = frozenset[str] | None  # whose mail who asks may see; None: everybody's


@dataclass
class Service:
    spool: Spool
    intake: Intake
    outlook: Outlook
    control: Control
    log: MailLog

    # -- look

    def parse_filter(self, asked: Mapping[str, str], users: Users = None) -> Filter:
        """From a query string. Raises BadRequest naming the key."""
        wanted = selection(asked, self.outlook, clock.now())
        wanted.users = users
        return wanted

    async def rows(
        self, wanted: Filter, after: tuple[int, int] | None, limit: int
    ) -> tuple[list[dict[str, Any]], str | None]:
        """(recipients, cursor of the next page or None)."""
        limit = max(1, min(limit, MAX_ROWS))
        found: list[dict[str, Any]] = []
        async for row in self.spool.find(wanted, after, limit + 1):
            found.append(row)
            if len(found) > limit:
                break
        more = len(found) > limit
        found = found[:limit]
        cursor = f"{found[-1]['message']}.{found[-1]['n']}" if more else None
        now = clock.now()
        forecasts, rows = dict[int, Forecast](), list[dict[str, Any]]()
        for i, row in enumerate(found):
            await breathe(i)
            rows.append(self.told(row, now, forecasts))
        return rows, cursor

    async def messages(
        self, wanted: Filter, after: str, limit: int, *, newest: bool
    ) -> tuple[list[dict[str, Any]], str | None]:
        """(one row a message, cursor of the next page or None). Raises BadRequest."""
        limit, tenants = max(1, min(limit, MAX_ROWS)), self.control.config.tenant_of
        found = await self.spool.messages(wanted, self.number(after) if after else None, limit + 1, newest=newest)
        more, found = len(found) > limit, found[:limit]
        for row in found:
            del row["number"]
            row["tenant"] = tenants.get(row["user"], "")
        return found, found[-1]["queue_id"] if more else None

    def told(self, row: dict[str, Any], now: float, forecasts: dict[int, Forecast]) -> dict[str, Any]:
        """A recipient as the operator sees it: with why it waits and when it moves next. `forecasts`: of lanes, made here."""
        lane = row["lane"]
        if lane not in forecasts:
            forecasts[lane] = self.outlook.forecast(lane, now)
        row["lane_id"], row["lane"] = lane, lane_name(self.outlook, lane, row["class"])
        row["route"], row["destination"] = self.outlook.route_name(lane), self.outlook.destination(lane)
        row["next_at"] = None
        if row["state"] in ("queued", "deferred"):
            why, until, egresses = forecasts[lane]
            if row["due_at"] > now:
                row["next_at"] = max(row["due_at"], until or 0.0)
                row["why"] = row["why"] or "it is to be sent later"
                if why and until is not None and until > row["due_at"]:
                    row["why"] = joined(row["why"], why)
            else:
                row["next_at"] = until
                row["why"] = why or "its turn comes next"
            row["egress"] = row["egress"] or (name_of(egresses[0]) if egresses else "")
        elif row["state"] == "active":
            _, _, egresses = forecasts[lane]
            row["egress"] = row["egress"] or (name_of(egresses[0]) if egresses else "")
            row["why"], row["next_at"] = f"it is being delivered{f' via {egresses[0]}' if egresses else ''}", now
        elif row["state"] == "held" and "relay queue release" not in row["why"]:
            row["why"] = f"{row['why'] or 'held'}; `relay queue release {row['queue_id']}` lets it go"
        del row["message"]
        return row

    async def message(self, text: str, users: Users = None) -> dict[str, Any]:
        """One message: facts, header block, recipients, events."""
        found = await self._message(text, users)
        now, foreseen, forecasts = clock.now(), dict[tuple[Any, ...], Eta](), dict[int, Forecast]()
        for i, row in enumerate(found["recipients"]):
            await breathe(i)
            eta = await self._eta(row, now, foreseen)
            found["recipients"][i] = self.told(row, now, forecasts) | dict(
                zip(("eta", "rule", "before"), eta, strict=True)
            )
        found["head"] = found["head"].decode("utf-8", "replace")
        found["body"] = {0: "kept", 1: "kept", 2: "dropped"}[found.pop("place")]
        found["tenant"] = self.control.config.tenant_of.get(found["user"], "")
        return found

    async def _eta(self, row: dict[str, Any], now: float, known: dict[tuple[Any, ...], Eta]) -> Eta:
        """When it leaves, about, by which rule, and behind how many of its lane.

        `known`: of a message to a thousand most are at the same place, and who is before them is counted once.
        """
        if row["state"] not in ("queued", "deferred"):
            return None, "", 0
        place = row["lane"], row["priority"], row["due_at"]
        if place not in known:
            known[place] = await self.outlook.eta(row, now)
        return known[place]

    def number(self, text: str) -> int:
        """Raises BadRequest."""
        try:
            return parse_queue_id(text)
        except ValueError as error:
            raise BadRequest(str(error)) from None

    async def _message(self, text: str, users: Users) -> dict[str, Any]:
        """Raises NotFound: for what is another tenant's in the same words."""
        number = self.number(text)
        found = await self.spool.message(number)
        if found is None or (users is not None and found["user"] not in users):
            raise _no_such(number)
        return found

    async def must_be(self, text: str, users: Users) -> None:
        """Raises NotFound, BadRequest."""
        if not await self.spool.messages(Filter(ids=(self.number(text),), users=users), None, 1):
            raise _no_such(self.number(text))

    async def stats(self, users: Users = None) -> dict[str, Any]:
        """Counts by state, by lane, and what each egress does; of some users: their mail alone."""
        return await stats(self.spool, self.outlook, users)

    async def explain(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """Off the loop: it signs, and may re-encode a whole message. Where it leaves by MX the DNS is asked."""
        config = self.control.config
        try:
            facts = await asyncio.to_thread(facts_from, asked, config)
            if "@" not in facts.recipient:
                raise BadRequest("explain wants a recipient: --to user@example.com")
            if self.intake.known is not None:
                facts.reputation = self.intake.known.score(facts.sender)
            found = await asyncio.to_thread(explain, config, facts, asked, self.outlook.view, self.control.published)
            found["held"] = held(config, facts, found, self.outlook)
            bound = await self.intake.suppressions.told(facts.recipient, found["class"], facts.user, facts.sender)
            found["suppressed"] = [suppressed_row(one) for one in bound]
        except (TypeError, ValueError) as error:
            raise BadRequest(f"explain: {error}") from None
        if names := by_mx(found):
            told_of(found, await self.outlook.survey(facts, names), self.outlook)
        return found

    # -- act

    async def act(self, verb: str, wanted: Filter, to: str = "", *, dry_run: bool, owner: str = "") -> dict[str, Any]:
        """An operator's verb on a selection. `to`: the route or account that `reroute` sends to; `owner`: whose token asks."""
        if verb not in VERBS:
            raise BadRequest(f"unknown verb {verb!r}; verbs are {', '.join(sorted(VERBS))}")
        if replace(wanted, users=None) == Filter():
            raise BadRequest(f"{verb} wants queue ids or a filter; all mail is sender '*', in so many words")
        action = VERBS[verb] or Verb.RETRY
        override = self._override(verb, to, wanted.users)
        told, knows = said(wanted), _states(verb)
        wanted.states = tuple(s for s in (wanted.states or tuple(State)) if s in knows)
        count, sample, part = 0, list[str](), list[dict[str, Any]]()
        touched, lanes, bound = set[str](), Counter[int](), set[str]()
        if wanted.states:
            async for row in self.spool.find(wanted):
                if row["state"] == "held" and verb in LETS_GO and not yields(row["held_by"], owner):
                    if len(bound) < MAX_SKIPPED:
                        bound.add(row["queue_id"])
                    continue
                count += 1
                lanes[row["lane"]] += 1
                if wanted.ids:
                    touched.add(row["queue_id"])
                if len(sample) < 20:
                    sample.append(f"{row['queue_id']} {row['recipient']}")
                part.append(row)
                if len(part) == MAX_ROWS:  # a part at a time: a million recipients never lie in memory
                    if not dry_run:
                        await self._change(verb, action, part, override, owner)
                    part = []
        if part and not dry_run:
            await self._change(verb, action, part, override, owner)
        if not dry_run:
            self.log.event("operator", verb=verb, filter=told, to=to, recipients=count)
        return {
            "verb": verb,
            "recipients": count,
            "dry_run": dry_run,
            "sample": sample,
            "skipped": [f"{name}: {NOT_THEIRS}" for name in sorted(bound)]
            + await self._skipped(verb, wanted, touched | bound),
            "notes": await self._notes(lanes, override) if verb in ("retry", "release", "reroute") else [],
        }

    async def _skipped(self, verb: str, wanted: Filter, touched: set[str]) -> list[str]:
        """Why each message that was named and not acted on was not."""
        left = [number for number in dict.fromkeys(wanted.ids) if queue_id(number) not in touched][:MAX_SKIPPED]
        states: dict[str, list[str]] = {}
        if left:
            async for row in self.spool.find(Filter(ids=tuple(left), users=wanted.users)):
                states.setdefault(row["queue_id"], []).append(row["state"])
        lines = []
        for name in map(queue_id, left):
            found = sorted(set(states.get(name, ())))
            knows = {s.label for s in _states(verb)}
            if not found:
                lines.append(f"{name}: no such message")
            elif knows & set(found):
                lines.append(f"{name}: {' and '.join(found)}, but the other filters leave it out")
            else:
                lines.append(f"{name}: {' and '.join(found)}, which {verb} does not change")
        return lines

    async def _notes(self, lanes: Mapping[int, int], override: dict[str, str | bool]) -> list[str]:
        """What still keeps waiting what was just made due."""
        now = clock.now()
        counts = Counter[str]()
        for i, (number, count) in enumerate(lanes.items()):
            await breathe(i)
            facts = self.outlook.lane_facts_of(number)
            if facts is None:
                continue
            named = self.control.config.table.by_name.get(str(override.get("route", "")))
            if named and (tenant := named.closed_to(facts.ask)):
                counts[f"route {named.name} is not for tenant {tenant}: the rules decide"] += count
                continue
            why, _, egresses = self.outlook.forecast_facts(facts.with_overrides(override), now)
            views = [v for v in map(self.outlook.view, egresses) if v is not None]
            if why and views and all(v.wait > 0 for v in views):
                why = "; ".join(rests(v.name, now + v.wait, now, v.why) for v in views)
            if why:
                counts[why] += count
        return [
            f"{plural(n, 'recipient')} {'is' if n == 1 else 'are'} due, but {why}"
            for why, n in counts.most_common(MAX_NOTES)
        ]

    def _override(self, verb: str, to: str, users: frozenset[str] | None) -> dict[str, str | bool]:
        """`users`: of whose mail. Who is not of the whole relay names no account: which he may use, his routes say."""
        if verb != "reroute":
            return {"released": True} if verb == "release" else {}
        config = self.control.config
        if not to:
            return {"route": "", "via": ""}
        if users is None and to in config.table.ways:
            return {"via": to, "route": ""}
        routes = [*config.table.by_name] if users is None else config.table.open_to(users)
        if to in routes:
            return {"route": to, "via": ""}
        if users is not None:
            raise BadRequest(f"reroute: {to!r} is no route of yours; there are {', '.join(routes)}")
        names = ", ".join([*config.accounts, *config.pools, *routes])
        raise BadRequest(f"reroute: {to!r} is no account, direct entry, pool or route; there are {names}")

    def _must_be_open(self, to: str, users: frozenset[str] | None) -> None:
        """Raises BadRequest where one of the users who are asked for may not send by it."""
        for user in sorted(users or ()) if to else ():
            ways = self.control.config.table.open_to(user)
            if ways is not None and to not in ways:
                raise BadRequest(f"reroute: {to!r} is not open to this tenant; there are {', '.join(sorted(ways))}")

    async def _change(
        self, verb: str, action: Verb, found: Sequence[dict[str, Any]], override: dict[str, str | bool], owner: str
    ) -> None:
        now, why = clock.now(), f"{PAST[verb]} by an operator"
        facts = self._moves({row["lane"] for row in found}, override) if override else {}
        if verb != "reroute":
            await self.spool.change([(r["message"], r["n"]) for r in found], action, now, why, facts, owner=owner)
            return
        held = [(r["message"], r["n"]) for r in found if r["state"] == "held"]
        rest = [(r["message"], r["n"]) for r in found if r["state"] != "held"]
        await self.spool.change(held, Verb.RELEASE, now, why, facts, "rerouted")
        await self.spool.change(rest, Verb.RETRY, now, why, facts, "rerouted")

    def _moves(self, lanes: Iterable[int], override: dict[str, str | bool]) -> dict[int, str]:
        """To lanes whose facts carry the override; every other fact stays."""
        found = {number: self.outlook.lane_facts_of(number) for number in lanes}
        return {number: facts.with_overrides(override) for number, facts in found.items() if facts is not None}

    async def export(self, text: str, users: Users = None) -> AsyncIterator[bytes]:
        """The message as it leaves, in slices. Raises SpoolError where the body is not kept."""
        found = await self._message(text, users)
        body = await self.spool.read(found["id"], Place(found["place"]))
        yield bytes(found["head"])
        if isinstance(body, bytes):
            yield body
            return
        with body.open("rb") as file:
            while data := await asyncio.to_thread(file.read, 1 << 18):
                yield data

    async def resend(
        self, text: str, recipients: Sequence[str], users: Users = None, owner: str = ""
    ) -> dict[str, Any]:
        """The same message as a new one of the same user, to all its recipients or those named, routed by the rules in force.

        `owner`: whose token asks. Of what is held and does not yield to him no copy leaves: PermissionError.
        """
        found = await self._message(text, users)
        known = {r["recipient"] for r in found["recipients"]}
        strangers = [r for r in recipients if r not in known]
        if strangers:
            raise BadRequest(f"{strangers[0]} is no recipient of {text}; it has {', '.join(sorted(known))}")
        chosen = set(recipients) or known
        for row in found["recipients"]:
            if row["recipient"] in chosen and row["state"] == "held" and not yields(row["held_by"], owner):
                raise PermissionError(f"{row['recipient']} of {found['queue_id']}: {NOT_THEIRS}; name others only")
        number = await resend(self.intake, found, recipients or sorted(known))
        self.log.event(
            "operator", verb="resend", filter=f"id={found['queue_id']}", to=queue_id(number),
            recipients=len(recipients or known),
        )  # fmt: skip
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
            "config": str(config.source.absolute()) if config.source else None,
            "spool": str(self.spool.path),
            "hostname": config.hostname,
            "capture": list(config.routes.capture.patterns) if config.routes.capture else None,
            "listen": self.control.listening(),
            "feedback": self.control.coming_back(),
            **self.control.health(),
            "waiting": sum(self.spool.counts[s] for s in State if s not in (*FINAL, State.HELD)),
            "held": self.spool.counts[State.HELD],
            **leaving(self.outlook),
        }


def _no_such(number: int) -> NotFound:
    return NotFound(f"no message {queue_id(number)}: it was never here, or `spool.keep` is over")


def _states(verb: str) -> tuple[State, ...]:
    """The states that a verb changes."""
    return states_before(Verb(verb)) if verb != "reroute" else (*states_before(Verb.RETRY), State.HELD)
