"""An application that takes webhooks, and fails half the time."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Application:
    """Takes webhooks, and fails half the time: refuses, or takes it and does not come to say so. In threads of its own."""

    def __init__(self, secret: str = "a secret of the receiver, long enough") -> None:
        self.secret = secret
        self.events: dict[int, dict[str, Any]] = {}  # what was taken, by its id
        self.order: list[int] = []
        self.failed = self.forged = 0
        dice, lock, outer = random.Random(9), threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # who said it was killed meanwhile
                with lock:
                    outer.forged += not outer.genuine(self.headers, body)
                    fails, silent = dice.random() < 0.5, dice.random() < 0.5
                    outer.failed += fails
                    if not fails or silent:
                        outer.take(json.loads(body))
                if fails and silent:
                    return self.connection.close()
                self.send_response(503 if fails else 204)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing on the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/mail"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def genuine(self, headers: Any, body: bytes) -> bool:
        made = hmac.new(self.secret.encode(), headers["X-Relay-Timestamp"].encode() + b"." + body, hashlib.sha256)
        return hmac.compare_digest("v1=" + made.hexdigest(), headers["X-Relay-Signature"])

    def take(self, events: list[dict[str, Any]]) -> None:
        for event in events:
            assert self.events.setdefault(event["id"], event) == event, "what comes twice is the same"
            self.order.append(event["id"])

    def kinds(self, number: str) -> list[str]:
        """Of a message, in the order of their first arrival."""
        found = dict.fromkeys(one for one in self.order if self.events[one].get("queue_id") == number)
        return [self.events[one]["event"] for one in found]

    @property
    def heard(self) -> set[str]:
        """Of what kinds events came. More may come meanwhile."""
        return {event["event"] for event in list(self.events.values())}

    def __enter__(self) -> Application:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
