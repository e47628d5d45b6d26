"""The API against its own description: each operation is called with what is right and with what schemathesis makes of it.

`GOOD` has a call that succeeds for every operation of the table: one that is missing there, or is no more, fails. What the
answers look like is checked against the OpenAPI document that the relay serves.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from rig import Process, free_port, process, write_config
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

EXAMPLES = int(os.environ.get("STORM_EXAMPLES", "12"))  # of each operation
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@dataclass
class World:
    """A relay with a token for all of it."""

    url: str
    relay: Process
    folder: Path
    token: str
    session: requests.Session = field(default_factory=requests.Session)

    def __post_init__(self) -> None:
        self.session.trust_env = False
        self.session.headers["Authorization"] = f"Bearer {self.token}"

    def call(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=60, **arguments)

    def message(self, state: str) -> str:
        """The queue id of a new message that is, and stays, in that state."""
        sender = {"queued": "later@example.com", "held": "held@example.com"}[state]
        body = {"from": sender, "to": "you@example.net", "subject": "t", "text": "hello", "tag": "schema"}
        answer = self.call("POST", "/v1/messages", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["queue_id"])


@dataclass
class Good:
    """What a right call says."""

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    body: Any = None
    raw: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def plain(**query: Any) -> Callable[[World], Good]:
    return lambda world: Good(query=query)


def _token(world: World) -> Good:
    made = world.call("POST", "/v1/tokens", json={"name": "short", "scopes": ["read"]}).json()
    return Good({"token": made["id"]})


def of_message(state: str = "queued", **body: Any) -> Callable[[World], Good]:
    return lambda world: Good({"id": world.message(state)}, body=body or None)


def body(**said: Any) -> Callable[[World], Good]:
    return lambda world: Good(body=said)


def _reports(world: World) -> Good:
    world.message("held")
    assert world.call("GET", "/v1/reports/crm").status_code == 200
    return Good({"consumer": "crm"})


def _acknowledged(world: World) -> Good:
    return Good(_reports(world).path, body={"acknowledged": 1})


def _gone_consumer(world: World) -> Good:
    assert world.call("GET", "/v1/reports/gone").status_code == 200
    return Good({"consumer": "gone"})


def _suspended(world: World) -> Good:
    assert world.call("POST", "/v1/suspend", json={"kind": "tag", "value": "never"}).status_code == 200
    return Good(body={"kind": "tag", "value": "never"})


def _backup(world: World) -> Good:
    return Good(body={"folder": str(world.folder / f"backup-{secrets.token_hex(4)}")})


MAIL = {"from": "later@example.com", "to": ["Ann <ann@example.net>"], "subject": "t", "text": "hello"}
HELD = {"filter": {"sender": "held@*"}, "dry_run": True}
QUEUED = {"filter": {"sender": "later@*"}, "dry_run": True}
GOOD: dict[str, Callable[[World], Good]] = {
    "get_status": plain(),
    "post_messages": lambda world: Good(body=MAIL | {"tag": "t", "metadata": {"order": 17}}),
    "post_messages_batch": lambda world: Good(body={"messages": [MAIL, MAIL | {"to": []}]}),
    "get_messages": plain(tag="schema", limit=5),
    "get_messages_id": of_message(),
    "get_messages_id_raw": of_message(),
    "get_messages_id_trace": of_message(),
    "post_messages_id_resend": of_message(recipients=["you@example.net"]),
    "get_queue": plain(state="queued,held", limit=5),
    "post_queue_retry": body(**QUEUED),
    "post_queue_hold": body(**QUEUED),
    "post_queue_release": body(**HELD),
    "post_queue_cancel": body(**HELD),
    "post_queue_reroute": body(**QUEUED, to="all"),
    "post_messages_id_retry": of_message(),
    "post_messages_id_hold": of_message(),
    "post_messages_id_release": of_message("held"),
    "post_messages_id_cancel": of_message("held"),
    "post_messages_id_reroute": of_message(to="all"),
    "get_lanes": plain(),
    "get_stats": plain(),
    "get_idempotency": plain(),
    "post_explain": body(**{"from": "later@example.com", "to": "ann@example.net"}),
    "get_simulation": plain(),
    "post_simulate": body(
        **{"queue": True, "send": 20, "from": "later@example.com", "to": "example.net", "over": "1h"}
    ),
    "get_events": plain(limit=5),
    "get_events_stream": plain(kind="accepted"),
    "get_reports": plain(),
    "get_reports_consumer": _reports,
    "post_reports_consumer": _acknowledged,
    "delete_reports_consumer": _gone_consumer,
    "get_suspensions": plain(),
    "post_suspend": body(kind="tag", value="never", reason="a test"),
    "post_resume": _suspended,
    "get_suppressions": plain(limit=5),
    "post_suppressions": body(entries=[{"address": "gone@example.net"}]),
    "post_suppressions_remove": body(addresses=["gone@example.net"]),
    "get_accounts": plain(),
    "get_accounts_name": lambda world: Good({"name": "dead"}),
    "patch_accounts_name": lambda world: Good({"name": "dead"}, body={"connections": 5}),
    "get_changes": plain(),
    "get_limits_section_name": lambda world: Good({"section": "classes", "name": "default"}),
    "patch_limits_section_name": lambda world: Good(
        {"section": "classes", "name": "default"}, body={"limits": ["5000/d"]}
    ),
    "post_reload": body(),
    "get_limits": plain(),
    "get_shaping": plain(),
    "get_alarms": plain(),
    "get_reputation": plain(),
    "get_webhooks": plain(),
    "get_webhooks_name_dead": lambda world: Good({"name": "crm"}),
    "post_webhooks_name_replay": lambda world: Good({"name": "crm"}, body={"after": 0, "dry_run": True}),
    "post_webhooks_name_drop": lambda world: Good({"name": "crm"}, body={"dry_run": True}),
    "post_webhooks_name_test": lambda world: Good({"name": "crm"}),
    "get_feedback_stats": plain(),
    "get_tokens": plain(),
    "post_tokens": lambda world: Good(body={"name": "crm", "scopes": ["submit"], "expires_in": 3600}),
    "delete_tokens_token": _token,
    "get_audit": plain(act="POST *", limit=5),
    "post_spool_check": plain(),
    "post_spool_backup": _backup,
}

ROUTES = """  - {name: later, match: {sender: "later@*"}, via: dead}
  - {name: held, match: {sender: "held@*"}, hold: true}
  - {name: all, via: dead}"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, port = tmp_path_factory.mktemp("schema"), free_port()
    extra = f"webhooks:\n  crm: {{file: {folder}/events.jsonl}}"
    file = write_config(folder, {"dead": f"port: {free_port()}, tls: none"}, routes=ROUTES, extra=extra)
    file.write_text(file.read_text().replace("address: null", f'address: "127.0.0.1:{port}"'))
    with process(file) as relay:
        token = relay.cli("token", "add", "all", "--scope", "admin").strip()
        yield World(f"http://127.0.0.1:{port}", relay, folder, token)


@pytest.fixture(scope="module")
def schema(world: World) -> Any:
    return schemathesis.openapi.from_dict(world.call("GET", "/openapi.json").json())


def operations(schema: Any) -> dict[str, Any]:
    found = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        found[operation.definition.raw["operationId"]] = operation
    return found


def test_every_operation_has_a_good_call(schema: Any) -> None:
    assert set(operations(schema)) == set(GOOD)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_reaches_success(world: World, schema: Any, name: str) -> None:
    operation, good = operations(schema)[name], GOOD[name](world)
    path = operation.path.format(**good.path)
    body: dict[str, Any] = {"json": good.body} if good.body is not None else {"data": good.raw} if good.raw else {}
    answer = world.call(
        operation.method.upper(),
        path,
        params=good.query,
        headers=dict(good.headers),
        stream=name.endswith("stream"),
        **body,
    )
    assert 200 <= answer.status_code < 300, (answer.status_code, answer.text)
    assert answer.headers["X-Request-Id"]
    case = operation.Case(path_parameters=dict(good.path), query=dict(good.query))
    if name == "get_events_stream":
        assert next(answer.iter_lines())  # it has no end of its own
        return answer.close()
    case.validate_response(answer, checks=CHECKS)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_no_trouble_of_ours_whatever_is_said(world: World, schema: Any, name: str) -> None:
    operation = operations(schema)[name]
    known = GOOD[name](world)

    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None,
        phases=[Phase.explicit, Phase.generate],
    )  # fmt: skip
    @hypothesis.seed(len(name))
    @hypothesis.given(case=operation.as_strategy(), there=hypothesis.strategies.booleans())
    def ask(case: Case, there: bool) -> None:
        if there and known.path:
            case.path_parameters = dict(known.path)
        harmless(name, case, world)
        answer = case.call(base_url=world.url, session=world.session, timeout=60)
        streamed = name == "get_events_stream" and answer.status_code == 200
        if streamed:
            told(answer.text, world)  # schemathesis would ask of each event what is said of the whole stream
        case.validate_response(
            answer, checks=CHECKS, excluded_checks=[response_schema_conformance] if streamed else None
        )

    ask()
    assert world.relay.popen.poll() is None


def told(stream: str, world: World) -> list[Any]:
    """The events of a stream, each as the document has it."""
    document = world.call("GET", "/openapi.json").json()
    event = {"$ref": "#/components/schemas/EventRow", "components": document["components"]}
    found = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: ")]
    for one in found:
        jsonschema_rs.validate(event, one)
    return found


def test_the_stream_tells_events_as_described(world: World) -> None:
    number = world.message("held")
    answer = world.call("GET", "/v1/events/stream", params={"message": number, "since": 0, "lasts": 1})
    assert [event["event"] for event in told(answer.text, world)][:1] == ["accepted"]


def harmless(name: str, case: Case, world: World) -> None:
    """What is made up must not name folders of this machine, nor wait for what does not come."""
    if name == "post_spool_backup" and isinstance(case.body, dict) and "folder" in case.body:
        case.body["folder"] = f"made-up/{case.body['folder']}"
    for key in {"wait", "lasts"} & set(case.query or {}):
        case.query[key] = 1
    if name == "post_simulate" and isinstance(case.body, dict) and isinstance(case.body.get("send"), int):
        case.body["send"] %= 1000  # more may take longer than a simulation may, which is 503
    if name == "get_events_stream":
        case.query = {**(case.query or {}), "lasts": 1}


def test_the_document_is_valid(world: World) -> None:
    document = world.call("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1") and document["info"]["version"]
    assert not json.dumps(document).count('$ref": "#/$defs')
