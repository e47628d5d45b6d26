"""The examples run as they stand there, and what the document of the library shows does what it says: mail arrives."""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email import message_from_bytes, policy
from pathlib import Path

import pytest

from .support import ENV, ROOT, Recorder, Relay, config_text, free_port, run, until

EXAMPLES = ROOT / "examples"
CLIENT = (ROOT / "docs" / "client.md").read_text()


class Place:
    def __init__(self, folder: Path, upstream: Recorder) -> None:
        self.folder, self.upstream = folder, upstream
        self.env = ENV | {"RELAY_URL": f"unix:{folder}/admin.sock", "PYTHONPATH": str(ROOT)}

    def arrived(self, count: int) -> list[tuple[str, str]]:
        """(recipient, subject) of each, in no order."""
        got = self.upstream.wait(count)
        return sorted((m.recipients[0], message_from_bytes(m.raw, policy=policy.default)["Subject"]) for m in got)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Recorder() as upstream:
        (tmp_path / "relay.yaml").write_text(config_text(tmp_path, upstream.port))
        with Relay(tmp_path / "relay.yaml"):
            yield Place(tmp_path, upstream)


def test_django(place: Place) -> None:
    manage = (sys.executable, str(EXAMPLES / "django" / "manage.py"))
    env = place.env | {"DATABASE": str(place.folder / "shop.sqlite3"), "PYTHONDONTWRITEBYTECODE": "1"}
    run(*manage, "migrate", "--run-syncdb", env=env)
    port = free_port()
    with (place.folder / "django.log").open("wb") as log:
        server = subprocess.Popen(
            [*manage, "runserver", "--noreload", f"127.0.0.1:{port}"], env=env, stdout=log, stderr=log
        )

    def order(**said: str) -> int:
        data = urllib.parse.urlencode(said).encode()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/orders", data, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError:
            return 0

    try:
        until(lambda: order(email="ann@example.net") == 201, 60, "the site answers")
        assert order(email="nobody@example.net", fail="1") == 201
        assert order(email="bob@example.net") == 201
    finally:
        server.terminate()
        server.wait(20)
    assert place.arrived(2) == [("ann@example.net", "Your order 1"), ("bob@example.net", "Your order 2")]
    assert b"X-Relay" not in b"".join(m.raw for m in place.upstream.messages)


ASK_FASTAPI = """
from fastapi.testclient import TestClient
from fastapi_app import app
with TestClient(app) as client:
    first, again = (client.post("/orders/17", json={"email": "ann@example.net"}) for _ in range(2))
    assert first.status_code == 201 and first.json() == again.json(), first.text
    assert client.get("/orders/17/mail").json() == [first.json()["queue_id"]]
    wrong = client.post("/orders/18", json={"email": "nobody at all"})
    assert wrong.status_code == 422 and "to" in wrong.text, wrong.text
"""


def test_fastapi(place: Place) -> None:
    run(sys.executable, "-c", ASK_FASTAPI, cwd=EXAMPLES, env=place.env | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert place.arrived(1) == [("ann@example.net", "Your order 17")]


def test_sqlalchemy(place: Place) -> None:
    command = (sys.executable, str(EXAMPLES / "sqlalchemy_app.py"), f"sqlite:///{place.folder}/shop.db")
    first = run(*command, "ann@example.net", "bob@example.net", env=place.env)
    assert re.fullmatch(r"1 ann@example.net \w{11}\n2 bob@example.net \w{11}\n", first.stdout)
    second = run(*command, "carol@example.net", "no address", env=place.env)
    assert second.stdout.startswith(first.stdout) and second.stdout.endswith("4 no address None\n")
    assert "order 4: " in second.stderr
    assert [who for who, _ in place.arrived(3)] == ["ann@example.net", "bob@example.net", "carol@example.net"]


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", CLIENT, re.DOTALL)


def test_the_document_as_written(place: Place) -> None:
    """Its blocks in their order, as one program; what it asserts holds."""
    (place.folder / "bill.pdf").write_bytes(b"%PDF-1.4 a bill")
    program = place.folder / "document.py"
    program.write_text("\n".join(blocks()))
    run(sys.executable, str(program), cwd=place.folder, env=place.env | {"PYTHONWARNINGS": "error::ResourceWarning"})
    subjects = {subject for _, subject in place.arrived(7)}
    assert {"Your order 17", "Made by hand", "Hello", "Newsletter"} <= subjects
