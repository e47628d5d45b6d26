"""The examples of the outbox, and those that stand in its document, run as they are: the mail arrives, or with the rollback not."""

from __future__ import annotations

import asyncio
import email
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from fakes import Upstream
from postgres import pg
from rig import ENV, running, write_config

from relay import outbox
from relay.outbox import Reader, Submitter

__all__ = ["pg"]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
DOCUMENT = (ROOT / "docs/outbox.md").read_text()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        sqlite3.connect(tmp_path / "app.db").execute("VACUUM").connection.close()
        return f"sqlite:///{tmp_path}/app.db"
    found: str = request.getfixturevalue("pg").database()
    return found


async def python(*arguments: str, cwd: Path, code: int = 0, **env: str) -> str:
    """A program to its end; what it said."""
    path = os.pathsep.join(p for p in (str(ROOT), *sys.path) if p)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd, env=ENV | {"PYTHONPATH": path} | env, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    done = await asyncio.to_thread(run)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


async def sent(url: str, folder: Path) -> list[tuple[list[str], email.message.Message]]:
    """What the outbox holds, through a real relay: recipients and message of each mail, by the subject."""
    async with Upstream() as up, running(write_config(folder, {"main": f"port: {up.port}, tls: none"})) as rig:
        reader = Reader(url, Submitter(f"unix:{folder}/admin.sock"))
        found = await asyncio.to_thread(reader.turn, 1_800_000_000.0, 0.5)
        reader.close()
        assert not found.why and not found.refused
        await rig.settled()
        mails = [(t.recipients, email.message_from_bytes(t.message)) for t in up.transactions if t.done]
        return sorted(mails, key=lambda mail: str(mail[1]["Subject"]))


def database(url: str) -> str:
    """As SQLAlchemy names it."""
    return url.replace("postgresql:", "postgresql+psycopg:")


async def test_sqlalchemy(url: str, tmp_path: Path) -> None:
    example = str(EXAMPLES / "outbox_sqlalchemy.py")
    await python(example, "ann@example.net", "bob@example.net", cwd=tmp_path, DATABASE_URL=database(url))
    mails = await sent(url, tmp_path)
    assert [str(m["Subject"]) for _, m in mails] == ["Order 1 is booked", "Order 2 is booked"]
    assert [m["X-Order"] for _, m in mails] == ["1", "2"]


FASTAPI = """
from fastapi.testclient import TestClient
from outbox_fastapi import app
client = TestClient(app)
order = {"number": "17", "customer": "ann@example.net"}
assert client.post("/orders", json=order).status_code == 201
assert client.post("/orders", json={"number": "18", "customer": "x@blocked.example"}).status_code == 409
again = TestClient(app, raise_server_exceptions=False)
assert again.post("/orders", json=order).status_code == 500  # there is one of this number
"""


async def test_fastapi(url: str, tmp_path: Path) -> None:
    await python("-W", "ignore", "-c", f"import sys; sys.path.insert(0, {str(EXAMPLES)!r})\n{FASTAPI}", cwd=tmp_path,
                 DATABASE_URL=database(url))  # fmt: skip
    ((_, message),) = await sent(url, tmp_path)
    assert message["Subject"] == "Order 17"


CURSOR = """
from django.db import connection, transaction
from relay import outbox
message = {"from": "shop@example.com", "to": "cara@example.net", "subject": "By a cursor", "text": "Hi."}
with transaction.atomic(), connection.cursor() as cursor:
    outbox.enqueue(cursor, message)
"""


async def test_django(url: str, tmp_path: Path) -> None:
    if url.startswith("sqlite"):
        env = {"SHOP_DATABASE": url.removeprefix("sqlite:///")}
    else:
        found = re.fullmatch(r"postgresql://(\w+)@/(\w+)\?host=(.*)", url)
        assert found
        env = {"SHOP_POSTGRES": found[2], "PGUSER": found[1], "PGHOST": unquote(found[3])}
    shop = EXAMPLES / "outbox_django"
    await python("manage.py", "migrate", cwd=shop, **env)
    await python("manage.py", "makemigrations", "--check", cwd=shop, **env)
    await python("manage.py", "book", "ann@example.net", cwd=shop, **env)
    await python("manage.py", "book", "bob@blocked.example", cwd=shop, code=1, **env)
    await python("manage.py", "shell", "-c", CURSOR, cwd=shop, **env)
    mails = await sent(url, tmp_path)
    by_cursor = [recipients for recipients, message in mails if message["Subject"] == "By a cursor"]
    assert by_cursor == [["cara@example.net"]]
    mails = [mail for mail in mails if mail[1]["Subject"] != "By a cursor"]
    assert sorted(to for recipients, _ in mails for to in recipients) == ["ann@example.net", "books@example.com"]
    for _, message in mails:
        assert message["Subject"] == "Order 1 is booked" and message["X-Order"] == "1"
        assert message["Bcc"] is None and message["X-Relay-Tag"] is None
        assert message.get_content_type() == "multipart/alternative"
    await python("manage.py", "migrate", "relay_outbox", "zero", cwd=shop, **env)


@pytest.mark.parametrize("name", re.findall(r"^# run: (\w+)$", DOCUMENT, re.MULTILINE))
async def test_document(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    block = re.search(rf"```python\n# run: {name}\n(.*?)```", DOCUMENT, re.DOTALL)
    assert block
    url = f"sqlite:///{tmp_path}/app.db"
    if name == "psycopg":
        url = request.getfixturevalue("pg").database()
    else:
        sqlite3.connect(tmp_path / "app.db").execute("VACUUM").connection.close()
    store = outbox.open_store(url)
    store.create()
    store.close()
    await python("-c", block[1], cwd=tmp_path, APP_DATABASE=url)
    ((_, message),) = await sent(url, tmp_path)
    assert message["Subject"] == "Booked"
