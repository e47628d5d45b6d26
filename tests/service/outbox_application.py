"""An application that books orders until it is killed: each in one transaction with its mails, and one in three taken back.

python outbox_application.py DATABASE
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
import uuid
from typing import Any

import psycopg

from relay import outbox


def connected(url: str) -> tuple[Any, str]:
    """The connection, and how it marks a parameter."""
    if url.startswith("sqlite:///"):
        return sqlite3.connect(url.removeprefix("sqlite:///"), timeout=60), "?"
    return psycopg.connect(url), "%s"


def book(connection: Any, mark: str) -> None:
    for _ in range(random.randint(1, 3)):
        name = uuid.uuid4().hex
        connection.execute(f"INSERT INTO booked (name) VALUES ({mark})", (name,))
        outbox.enqueue(
            connection,
            {"from": "shop@example.com", "to": f"{name}@example.net", "subject": name, "text": "Thank you.\n"},
        )
    if random.random() < 1 / 3:
        connection.rollback()
    else:
        connection.commit()


if __name__ == "__main__":
    database, mark = connected(sys.argv[1])
    print("books", flush=True)
    while True:
        book(database, mark)
        time.sleep(random.random() / 50)
