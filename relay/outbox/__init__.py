"""The transactional outbox: mail exists if and only if the application's transaction committed.

    application ──enqueue──▶ table relay_outbox, in the application's database and transaction
    `relay outbox run` ──────▶ POST /v1/messages/batch, each row with its key as idempotency key

Owns one table in a database that is not ours. `enqueue` writes a row and never commits; the `Reader` submits what was
committed, as often as it must, under the same key: the relay takes each key once. What it could submit twice it leaves to a
person, as `in_doubt`. Imports no database driver: the application brings its own. docs/outbox.md has what is promised.
"""

from relay.outbox.message import wire
from relay.outbox.reader import Reader, Turn
from relay.outbox.store import OutboxError, Store, open_store
from relay.outbox.submit import Refused, Submitter, Waits
from relay.outbox.table import TABLE, ddl
from relay.outbox.write import create, create_async, enqueue, enqueue_async

__all__ = [
    "TABLE",
    "OutboxError",
    "Reader",
    "Refused",
    "Store",
    "Submitter",
    "Turn",
    "Waits",
    "create",
    "create_async",
    "ddl",
    "enqueue",
    "enqueue_async",
    "open_store",
    "wire",
]
