"""kill -9 between 202 and delivery: what was answered 202 is delivered, and the same key again is the same message.

Short as part of the tests; `make storm` runs it long. API_KILLS sets how often.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from .support import Recorder, Relay, config_text, until

AT_ONCE = 20  # messages of a batch


def post(path: Path, body: Any) -> dict[str, Any]:
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.connect(str(path))
        connection.request("POST", "/v1/messages/batch", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told: dict[str, Any] = json.loads(answer.read())
        assert answer.status == 202, told
        return told
    finally:
        connection.close()


@pytest.mark.storm
def test_what_was_answered_is_delivered(tmp_path: Path) -> None:
    kills = int(os.environ.get("API_KILLS", "5"))
    draw = random.Random(int(os.environ.get("STORM_SEED") or 1))
    accepted: dict[str, str] = {}  # key -> queue id
    with Recorder() as upstream:
        config = tmp_path / "relay.yaml"
        config.write_text(config_text(tmp_path, upstream.port))
        with Relay(config) as relay:
            for kill in range(kills):
                messages = [
                    {
                        "from": "app@example.org",
                        "to": f"k{kill}-{n}@example.net",
                        "subject": "one",
                        "text": f"message {kill}-{n}\n",
                        "idempotency_key": f"{kill}/{n}",
                    }
                    for n in range(AT_ONCE)
                ]
                told = post(tmp_path / "admin.sock", {"messages": messages[: draw.randint(1, AT_ONCE)]})
                accepted |= {f"{kill}/{n}": one["queue_id"] for n, one in enumerate(told["results"])}
                relay.kill()
                relay.start()
                # A client that does not know how far it came says all of it again.
                again = post(tmp_path / "admin.sock", {"messages": messages})
                for n, one in enumerate(again["results"]):
                    assert accepted.setdefault(f"{kill}/{n}", one["queue_id"]) == one["queue_id"]
            # What was in flight at three kills in a row is held as poison: an operator's word lets it go.
            if json.loads(relay.cli("status", "--json"))["held"]:
                relay.cli("queue", "release", "--error", "3 times in a row")
            wanted = {f"k{kill}-{n}@example.net" for kill in range(kills) for n in range(AT_ONCE)}
            until(lambda: wanted <= {r for m in upstream.messages for r in m.recipients}, 120, "all are delivered")
            assert len(accepted) == kills * AT_ONCE
