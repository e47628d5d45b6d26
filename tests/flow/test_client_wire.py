"""The library before servers that fail, over real sockets: both clients, each through the same misfortunes."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import trustme
from conftest import free_port

from relay.client import AsyncRelay, Message, Receipt, Refused, Relay, RelayError, Unavailable

MESSAGE = Message(from_="a@example.com", to="b@example.net", subject="s", text="t")
TAKEN = {"status": 202, "queue_id": "01H", "message_id": "<1@x>", "repeated": False, "recipients": []}
CLOSE, GARBAGE = b"", b"220 smtp.example ESMTP\r\n"


def http(status: int, told: Any, *headers: str) -> bytes:
    body = json.dumps(told).encode()
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Server:
    """Answers the requests that come with what `plan` says, in turn, and then with the last of it. Bytes; CLOSE hangs up."""

    def __init__(self, *plan: bytes, context: ssl.SSLContext | None = None, path: Path | None = None) -> None:
        self.plan, self.context = list(plan), context
        self.requests: list[tuple[str, Any, str]] = []  # (request line, JSON, the header)
        self.connections = 0
        self.lock = threading.Lock()
        self.listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self.listener.bind(str(path) if path else ("127.0.0.1", 0))
        self.listener.listen(50)
        self.url = f"unix:{path}" if path else f"http{'s' * bool(context)}://localhost:{self.listener.getsockname()[1]}"
        self.threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Server:
        self.threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.threads[0].join(10)
        self.listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            if self.context:
                sock = self.context.wrap_socket(sock, server_side=True)
            with sock, sock.makefile("rb") as file:
                while line := file.readline():
                    head = b"".join(iter(file.readline, b"\r\n")).decode()
                    length = next(
                        (int(x.split(":")[1]) for x in head.splitlines() if x.lower().startswith("content-length")), 0
                    )
                    body = file.read(length)
                    with self.lock:
                        self.requests.append((line.decode().strip(), json.loads(body or b"null"), head))
                        answer = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
                    sock.sendall(answer)
                    if answer in (CLOSE, GARBAGE) or b"Connection: close" in answer:
                        return
        except OSError:
            return


Ask = Callable[..., Any]


@pytest.fixture(params=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`ask(url, lambda relay: relay.send(…), **given)`: the result, of a client that is made for it and closed."""

    def sync(url: str, what: Callable[[Relay], Any], **given: Any) -> Any:
        with Relay(url, **given) as relay:
            return what(relay)

    def awaited(url: str, what: Callable[[AsyncRelay], Any], **given: Any) -> Any:
        async def run() -> Any:
            async with AsyncRelay(url, **given) as relay:
                return await what(relay)

        return asyncio.run(run())

    return sync if request.param == "sync" else awaited


def keys(server: Server) -> set[str]:
    return {told["idempotency_key"] for _, told, _ in server.requests}


def test_a_lost_answer_is_asked_for_again_with_the_same_key(ask: Ask) -> None:
    with Server(CLOSE, GARBAGE, http(503, {"detail": "full"}), http(202, TAKEN | {"repeated": True})) as server:
        receipt = ask(server.url, lambda relay: relay.send(MESSAGE))
    assert isinstance(receipt, Receipt) and receipt.repeated
    assert len(server.requests) == 4 and keys(server) == {receipt.key}


def test_a_listener_is_no_api_and_the_error_says_so(ask: Ask) -> None:
    with Server(GARBAGE) as server, pytest.raises(Unavailable, match=r"`admin\.address`"):
        ask(server.url, lambda relay: relay.send(MESSAGE), attempts=1)


def test_tries_end_and_the_key_is_told(ask: Ask) -> None:
    with Server(http(503, {"detail": "the spool is full", "code": 452})) as server, pytest.raises(Unavailable) as told:
        ask(server.url, lambda relay: relay.send(MESSAGE), attempts=2)
    error = told.value
    assert (error.safe, error.status, error.code, str(error)) == (True, 503, 452, "the spool is full")
    assert len(server.requests) == 2 and keys(server) == {error.key}


def test_the_relay_says_when_to_come_again_and_nobody_waits_beyond_patience(ask: Ask) -> None:
    with Server(http(503, {"detail": "full"}, "Retry-After: 3600")) as server, pytest.raises(Unavailable) as told:
        ask(server.url, lambda relay: relay.send(MESSAGE))
    assert told.value.retry_after == 3600 and len(server.requests) == 1


def test_a_verb_whose_answer_was_lost_is_not_repeated(ask: Ask) -> None:
    with Server(CLOSE) as server, pytest.raises(Unavailable) as told:
        ask(server.url, lambda relay: relay.cancel(tag="x"))
    assert not told.value.safe and len(server.requests) == 1


def test_nobody_there(ask: Ask, tmp_path: Path) -> None:
    for url in (f"http://127.0.0.1:{free_port()}", f"unix:{tmp_path}/none.sock"):
        with pytest.raises(Unavailable, match="is the relay running") as told:
            ask(url, lambda relay: relay.cancel(tag="x"), attempts=2)
        assert told.value.safe and told.value.status == 0


def test_half_an_answer_is_none(ask: Ask) -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\n{}"
    with Server(half) as server, pytest.raises(Unavailable):
        ask(server.url, lambda relay: relay.stats(), attempts=1)


def test_what_hangs_is_given_up(ask: Ask) -> None:
    with Server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{") as server, pytest.raises(Unavailable):
        ask(server.url, lambda relay: relay.stats(), timeout=0.2, attempts=1)


def test_a_refusal_is_final_and_tells_the_fields(ask: Ask) -> None:
    problem = {
        "detail": "to[0]: no address",
        "errors": [{"field": "to[0]", "message": "no address"}],
        "request_id": "r1",
    }
    with Server(http(400, problem)) as server, pytest.raises(Refused) as told:
        ask(server.url, lambda relay: relay.send(MESSAGE))
    error = told.value
    assert error.errors[0].field == "to[0]" and error.request_id == "r1" and len(server.requests) == 1 and error.key


def test_a_redirect_is_not_followed_with_our_token(ask: Ask) -> None:
    with Server(http(200, {})) as other, Server(http(307, {}, f"Location: {other.url}/v1/stats")) as server:
        url = server.url
        with pytest.raises(RelayError, match="no relay"):
            ask(url, lambda relay: relay.stats(), token="relay_secret")
    assert other.requests == [] and "Authorization: Bearer relay_secret" in server.requests[0][2]


def test_over_a_unix_socket(ask: Ask, tmp_path: Path) -> None:
    with Server(http(200, {"here": 1}), path=tmp_path / "a.sock") as server:
        assert ask(server.url, lambda relay: relay.stats()) == {"here": 1}


def test_below_a_prefix(ask: Ask) -> None:
    with Server(http(200, {})) as server:
        ask(f"{server.url}/mail/", lambda relay: relay.message("a/b"))
    assert server.requests[0][0] == "GET /mail/v1/messages/a%2Fb HTTP/1.1"


def test_tls_is_verified(ask: Ask, tmp_path: Path) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with Server(http(200, {"here": 1}), context=context) as server:
        assert ask(server.url, lambda relay: relay.stats(), ca=str(tmp_path / "ca.pem")) == {"here": 1}
        with pytest.raises(RelayError, match="certificate is not trusted") as told:
            ask(server.url, lambda relay: relay.stats())
    assert not isinstance(told.value, Unavailable) and len(server.requests) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_says_nothing_is_told_of_as_such(ask: Ask, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Unavailable, match="timed out"):
            ask(url, lambda relay: relay.stats(), timeout=0.2, attempts=1)


def test_https_to_a_port_without_tls_is_told(ask: Ask) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            with server.accept()[0] as sock:
                sock.recv(1 << 16)
                sock.sendall(http(400, {}))

        threading.Thread(target=refuse, daemon=True).start()
        with pytest.raises(RelayError, match="speaks no TLS; write http://") as told:
            ask(f"https://127.0.0.1:{server.getsockname()[1]}", lambda relay: relay.stats())
    assert not isinstance(told.value, Unavailable)


def test_a_batch_that_is_lost_is_sent_again_as_it_was(ask: Ask) -> None:
    with Server(CLOSE, http(202, {"accepted": 3, "refused": 0, "results": [TAKEN] * 3})) as server:
        results = ask(server.url, lambda relay: relay.send_many(MESSAGE for _ in range(3)))
    assert [type(one) for one in results] == [Receipt] * 3 and len({one.key for one in results}) == 3
    assert server.requests[0][1] == server.requests[1][1]


def test_after_the_relay_went_away_the_rest_is_told_so_without_asking(ask: Ask) -> None:
    with Server(http(202, {"accepted": 1000, "refused": 0, "results": [TAKEN] * 1000}), CLOSE) as server:
        results = ask(server.url, lambda relay: relay.send_many(MESSAGE for _ in range(3001)), attempts=1)
    assert len(results) == 3001 and all(isinstance(one, Receipt) for one in results[:1000])
    assert all(isinstance(one, Unavailable) and one.safe for one in results[1000:])
    assert len({one.key for one in results}) == 3001 and len(server.requests) == 2


def test_connections_are_kept_and_a_dead_one_costs_nothing() -> None:
    plan = http(200, {}), http(200, {}), http(200, {}, "Connection: close"), http(200, {})
    with Server(*plan) as server, Relay(server.url, attempts=1) as relay:
        for _ in range(4):
            relay.stats()
    assert len(server.requests) == 4 and server.connections == 2


def test_threads_share_a_client() -> None:
    with Server(http(200, {"here": 1})) as server, Relay(server.url) as relay, ThreadPoolExecutor(16) as threads:
        assert list(threads.map(lambda _: relay.stats(), range(400))) == [{"here": 1}] * 400
    assert len(server.requests) == 400


def _in_child(relay: Relay, answers: Any) -> None:
    answers.put([relay.stats() for _ in range(20)])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_connections_of_its_own() -> None:
    with Server(http(200, {"here": 1})) as server, Relay(server.url) as relay:
        relay.stats()
        context = multiprocessing.get_context("fork")
        answers = context.Queue()
        child = context.Process(target=_in_child, args=(relay, answers))
        child.start()
        mine = [relay.stats() for _ in range(20)]
        assert answers.get(timeout=30) == mine == [{"here": 1}] * 20
        child.join(30)
    assert server.connections == 2


def test_reports_are_acknowledged_as_far_as_they_were_given() -> None:
    plan = http(200, {"reports": [{"id": 3}, {"id": 5}], "cursor": 5, "more": False}), http(200, {"acknowledged": 5})
    with Server(*plan) as server, Relay(server.url) as relay:
        reports = relay.reports("c/r m")
        assert [one["id"] for one in reports] == [3, 5] and reports
        reports.ack()
    assert [line for line, _, _ in server.requests] == [
        "GET /v1/reports/c%2Fr%20m HTTP/1.1",
        "POST /v1/reports/c%2Fr%20m HTTP/1.1",
    ]
    assert server.requests[1][1] == {"acknowledged": 5}
