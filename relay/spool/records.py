"""What is kept for programs, as functions on a connection's thread, and as rooms ask for it: `Access`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from relay.policy.access import SCOPES, Token
from relay.spool.access import Audit, AuditFilter, Consumer
from relay.spool.feeding import PAGE, Feeding
from relay.spool.listing import like
from relay.spool.writer import ACT, each_of

_TOKEN = "id, digest, name, scopes, user, tenant, created_at, created_by, expires_at, revoked_at"
_AUDIT = "at, who, tenant, request, act, asked, status, result, id"


def tokens(connection: sqlite3.Connection) -> list[Token]:
    rows = connection.execute(f"SELECT {_TOKEN} FROM token ORDER BY created_at, id").fetchall()
    return [Token(row[0], row[1], row[2], tuple(s for s in SCOPES if s in row[3].split()), *row[4:]) for row in rows]


def keep_token(connection: sqlite3.Connection, t: Token) -> None:
    connection.execute(
        f"INSERT OR REPLACE INTO token ({_TOKEN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            *(t.id, t.digest, t.name, " ".join(t.scopes), t.user, t.tenant),
            *(t.created_at, t.created_by, t.expires_at, t.revoked_at),
        ),
    )


def begin_audit(connection: sqlite3.Connection, a: Audit) -> int:
    number: int = connection.execute(
        "INSERT INTO audit (at, who, tenant, request, act, asked, status, result) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
        "RETURNING id",
        (a.at, a.who, a.tenant, a.request, a.act, json.dumps(a.asked), a.status, json.dumps(a.result)),
    ).fetchone()[0]
    return number


def end_audit(connection: sqlite3.Connection, end: tuple[int, int, Mapping[str, Any]]) -> None:
    number, status, result = end
    connection.execute("UPDATE audit SET status = ?, result = ? WHERE id = ?", (status, json.dumps(result), number))


def audits(connection: sqlite3.Connection, wanted: AuditFilter, before: int | None, limit: int) -> list[Audit]:
    parts = ["id < ?", "at >= ?"]
    values: list[Any] = [before or 1 << 62, wanted.since]
    for column, pattern in (("who", wanted.who), ("act", wanted.act)):
        if pattern:
            parts.append(f"lower({column}) GLOB ?")
            values.append(like(pattern))
    if wanted.tenant is not None:
        parts.append("tenant = ?")
        values.append(wanted.tenant)
    rows = connection.execute(
        f"SELECT {_AUDIT} FROM audit WHERE {' AND '.join(parts)} ORDER BY id DESC LIMIT ?", (*values, limit)
    )
    return [
        Audit(at, who, tenant, request, act, json.loads(asked), status, json.loads(result), number)
        for at, who, tenant, request, act, asked, status, result, number in rows
    ]


def old_audits(connection: sqlite3.Connection, before: float, limit: int) -> list[tuple[int]]:
    """The newest stays: SQLite would give its id to the next one."""
    return connection.execute(
        "SELECT id FROM audit WHERE at < ? AND id < (SELECT max(id) FROM audit) LIMIT ?", (before, limit)
    ).fetchall()


def forget_audits(connection: sqlite3.Connection, rows: Sequence[tuple[int]]) -> None:
    connection.executemany("DELETE FROM audit WHERE id = ?", rows)


def metadata(connection: sqlite3.Connection, messages: Sequence[int]) -> dict[int, dict[str, Any]]:
    rows = connection.execute(
        "SELECT message, data FROM metadata WHERE message IN (SELECT value FROM json_each(?))",
        (json.dumps(list(messages)),),
    )
    return {message: json.loads(data) for message, data in rows}


def key_of(connection: sqlite3.Connection, owner: str, key: str) -> tuple[int, str] | None:
    row: tuple[int, str] | None = connection.execute(
        "SELECT message, digest FROM idempotency WHERE user = ? AND key = ?", (owner, key)
    ).fetchone()
    return row


def consumers(connection: sqlite3.Connection, tenant: str | None) -> list[Consumer]:
    which, values = ("tenant = ?", (tenant,)) if tenant is not None else ("1", ())
    rows = connection.execute(f"SELECT tenant, name, cursor, at FROM consumer WHERE {which} ORDER BY 1, 2", values)
    return [Consumer(*row) for row in rows]


def acknowledge(connection: sqlite3.Connection, c: Consumer) -> int:
    cursor: int = connection.execute(
        "INSERT INTO consumer (tenant, name, cursor, at) VALUES (?, ?, ?, ?) ON CONFLICT (tenant, name) DO UPDATE "
        "SET cursor = max(cursor, excluded.cursor), at = excluded.at RETURNING cursor",
        (c.tenant, c.name, c.cursor, c.at),
    ).fetchone()[0]
    return cursor


def forget_consumer(connection: sqlite3.Connection, which: tuple[str, str]) -> bool:
    return connection.execute("DELETE FROM consumer WHERE tenant = ? AND name = ?", which).rowcount > 0


class Records(Feeding):
    """What it works on is SqliteSpool's."""

    async def tokens(self) -> list[Token]:
        return await self._ask(tokens)

    async def keep_token(self, token: Token) -> None:
        await self._writer.submit(each_of(keep_token), token, ACT)

    async def begin_audit(self, entry: Audit) -> int:
        number: int = await self._writer.submit(each_of(begin_audit), entry, ACT)
        return number

    async def end_audit(self, number: int, status: int, result: Mapping[str, Any]) -> None:
        await self._writer.submit(each_of(end_audit), (number, status, result), ACT)

    async def audits(self, wanted: AuditFilter, before: int | None = None, limit: int = 100) -> list[Audit]:
        return await self._aside(audits, wanted, before, limit)

    async def forget_audits(self, before: float) -> None:
        async def page() -> list[tuple[int]]:
            return await self._ask(old_audits, before, PAGE)

        await self._forget("forget_audits", page, forget_audits)

    async def metadata(self, messages: Sequence[int]) -> dict[int, dict[str, Any]]:
        return await self._ask(metadata, messages)

    async def key_of(self, owner: str, key: str) -> tuple[int, str] | None:
        return await self._ask(key_of, owner, key)

    async def consumers(self, tenant: str | None = None) -> list[Consumer]:
        return await self._ask(consumers, tenant)

    async def acknowledge(self, consumer: Consumer) -> int:
        cursor: int = await self._writer.submit(each_of(acknowledge), consumer, ACT)
        return cursor

    async def forget_consumer(self, tenant: str, name: str) -> bool:
        gone: bool = await self._writer.submit(each_of(forget_consumer), (tenant, name), ACT)
        return gone
