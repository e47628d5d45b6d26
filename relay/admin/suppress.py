"""Who is suppressed, as an operator sees and changes it: pages of the list, additions, removals."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relay import clock
from relay.admin.ports import BadRequest, Control
from relay.envelope import AddressError, parse_address, parse_queue_id, queue_id
from relay.maillog import MailLog
from relay.policy.suppression import Suppression, Why, outweighs, plain
from relay.reply import clean
from relay.spool import Spool
from relay.spool.feed import Learnt, SuppressionFilter
from relay.suppressions import SLICE, Suppressions

MOST = 1000  # entries of one question, and of one page
SAMPLE = 20
ALL = "all"  # how the scope of all mail is said
_SCOPE = re.compile(r"(?:tenant|class):[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_FAR = 1e11  # no time of ours: the year 5138

Key = tuple[str, str]


@dataclass
class Suppressing:
    spool: Spool
    suppressions: Suppressions
    control: Control
    log: MailLog

    async def page(self, asked: Mapping[str, str]) -> dict[str, Any]:
        """`address` (a glob), `scope`, `why`, `source`; `after`, `limit`. {suppressions, next}; `next` None: no more."""
        given = dict(asked)
        limit, after = given.pop("limit", "500"), given.pop("after", "")
        if not limit.isdecimal():
            raise BadRequest("limit wants a number")
        most = max(1, min(int(limit), MOST))
        scope, _, address = after.partition(" ")
        found = await self.spool.suppressions(wanted(given), (scope, address) if after else None, most + 1)
        following = " ".join(found[most - 1].key) if len(found) > most else None
        return {"suppressions": [row(one) for one in found[:most]], "next": following}

    async def add(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """`entries`: each with `address` and, where they are known, `scope`, `why`, `evidence`, `source`, `at`, `until`, `queue_id`.

        `{listed, kept, refused}`: rows that are new or changed; rows of those that stay as they are, for they end later or are
        the stronger ones; {number, why} of entries that make no sense. `dry_run`: nothing is changed.
        """
        entries, dry_run = asked.get("entries"), bool(asked.get("dry_run"))
        if not isinstance(entries, list) or len(entries) > MOST:
            raise BadRequest(f"entries wants a list of at most {MOST} objects")
        now, made, refused = clock.now(), dict[Key, Suppression](), []
        for number, entry in enumerate(entries):
            try:
                one = suppression(entry, now)
            except ValueError as error:
                refused.append({"number": number, "why": str(error)})
                continue
            if one.key not in made or outweighs(one, made[one.key]):
                made[one.key] = one
        if not asked.get("any_scope"):
            self._must_exist({one.scope for one in made.values()})
        listed = await self._list(list(made.values()), dry_run)
        changed = {one.key for one in listed}
        kept = [one for one in await self._known(made) if one.key not in changed] if len(listed) < len(made) else []
        if listed and not dry_run:
            self.log.event("operator", verb="suppress add", recipients=len(listed), source=listed[0].source)
        return {"listed": [row(one) for one in listed], "kept": [row(one) for one in kept], "refused": refused}

    async def _list(self, entries: Sequence[Suppression], dry_run: bool) -> list[Suppression]:
        """Those that are new or changed."""
        if dry_run:
            known = {one.key: one for one in await self._known({one.key: one for one in entries})}
            return [one for one in entries if one.key not in known or outweighs(one, known[one.key])]
        listed: list[Suppression] = []
        for start in range(0, len(entries), SLICE):
            listed += await self.spool.learn(Learnt(suppressions=entries[start : start + SLICE])) or ()
        return listed

    async def _known(self, made: Mapping[Key, Suppression]) -> list[Suppression]:
        """What is listed under these keys already."""
        found: list[Suppression] = []
        for scope, address in made:
            found += await self.spool.suppressed(address, [scope])
        return found

    async def remove(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """`addresses`, or a `filter` as of `page`; `scope`: there alone. {removed, count, missing}: `removed` is a sample of them."""
        addresses, scope = asked.get("addresses"), asked.get("scope")
        if scope is not None:
            scope = parse_scope(scope)
        removed, count, missing = list[Suppression](), 0, list[str]()
        if isinstance(addresses, list) and addresses and len(addresses) <= MOST:
            for address in addresses:
                found = await self.spool.suppressed(str(address), () if scope is None else [scope])
                removed += found
                missing += [] if found else [str(address)]
            count = len(removed)
            await self._remove(removed, bool(asked.get("dry_run")))
        elif isinstance(given := asked.get("filter"), dict) and given:
            async for part in self._found(wanted({str(k): str(v) for k, v in given.items()})):
                removed += part[: SAMPLE - len(removed)]
                count += len(part)
                await self._remove(part, bool(asked.get("dry_run")))
        else:
            raise BadRequest(f"remove wants addresses, a list of at most {MOST}, or a filter")
        if count and not asked.get("dry_run"):
            self.log.event("operator", verb="suppress remove", recipients=count)
        return {"removed": [row(one) for one in removed], "count": count, "missing": missing}

    async def _found(self, which: SuppressionFilter) -> AsyncIterator[list[Suppression]]:
        """A part at a time: a million never lie in memory."""
        after: Key | None = None
        while part := await self.spool.suppressions(which, after, SLICE):
            after = part[-1].key
            yield part

    async def _remove(self, which: Sequence[Suppression], dry_run: bool) -> None:
        for start in range(0, 0 if dry_run else len(which), SLICE):
            await self.spool.learn(Learnt(removed=[one.key for one in which[start : start + SLICE]]))

    def _must_exist(self, scopes: set[str]) -> None:
        """What is said by hand about a tenant or a class that there is not is a slip of the pen."""
        config = self.control.config
        known = {"tenant": config.tenants, "class": {"default", *config.classes}}
        for scope in scopes:
            kind, _, name = scope.partition(":")
            if kind and name not in known[kind]:
                raise BadRequest(f"no {kind} {name!r}; there are: {', '.join(sorted(known[kind])) or 'none'}")


def row(one: Suppression) -> dict[str, Any]:
    """Flat. `until` null: without an end."""
    return {
        "address": one.address,
        "scope": one.scope or ALL,
        "why": one.why.word,
        "evidence": one.evidence,
        "source": one.source,
        "at": round(one.at, 3),
        "until": round(one.until, 3) or None,
        "queue_id": queue_id(one.message) if one.message else "",
    }


def wanted(asked: Mapping[str, str]) -> SuppressionFilter:
    """Raises BadRequest."""
    known = ("address", "scope", "why", "source")
    if unknown := sorted(asked.keys() - set(known)):
        raise BadRequest(f"unknown filter {unknown[0]!r}; known are {', '.join(known)}")
    found = SuppressionFilter(address=asked.get("address", ""), source=asked.get("source", ""))
    if asked.get("scope"):
        found.scope = parse_scope(asked["scope"])
    if asked.get("why"):
        found.why = _why(asked["why"])
    return found


def parse_scope(text: object) -> str:
    """As it is stored. Raises BadRequest."""
    if text == ALL:
        return ""
    if not isinstance(text, str) or not _SCOPE.fullmatch(text):
        raise BadRequest(f"scope wants all, tenant:NAME or class:NAME, not {clean(str(text))!r}")
    return text


def _why(word: object) -> Why:
    found = next((why for why in Why if why.word == word), None)
    if found is None:
        raise BadRequest(f"why wants one of {', '.join(why.word for why in Why)}, not {clean(str(word))!r}")
    return found


def suppression(entry: object, now: float) -> Suppression:
    """One entry, from whatever somebody sent. Raises ValueError in words."""
    if not isinstance(entry, Mapping):
        raise ValueError("no object")
    try:
        address = plain(parse_address(str(entry.get("address") or "").strip()))
        scope, why = parse_scope(entry.get("scope") or ALL), _why(entry.get("why") or Why.MANUAL.word)
    except (AddressError, BadRequest) as error:
        raise ValueError(str(error)) from None
    source = str(entry.get("source") or "hand")
    if not _SOURCE.fullmatch(source):
        raise ValueError(f"source wants a word, not {clean(source)!r}")
    until = _time(entry, "until", 0.0)
    if 0 < until <= now:
        raise ValueError("it has come to its end already")
    message = str(entry.get("queue_id") or "")
    return Suppression(
        address,
        scope,
        why,
        clean(str(entry.get("evidence") or "")),
        source,
        min(now, _time(entry, "at", now)),
        until,
        parse_queue_id(message) if message else 0,
    )


def _time(entry: Mapping[str, Any], key: str, default: float) -> float:
    value = entry.get(key)
    if value is None:
        return default
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not math.isfinite(value)
        or not 0 <= value < _FAR
    ):
        raise ValueError(f"{key} wants epoch seconds")
    return float(value)
