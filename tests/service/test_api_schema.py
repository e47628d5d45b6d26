"""The API against its own description: each operation is called with what is right and with what schemathesis makes of it.

`GOOD` has a call that succeeds for every operation of the table: one that is missing there, or is no more, fails. What the
answers look like is checked against the OpenAPI document that the relay serves.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
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


GOOD: dict[str, Callable[[World], Good]] = {
    "get_status": plain(),
    "get_tokens": plain(),
    "post_tokens": lambda world: Good(body={"name": "crm", "scopes": ["submit"], "expires_in": 3600}),
    "delete_tokens_token": _token,
    "get_audit": plain(act="POST *", limit=5),
}

ROUTES = """  - {name: later, match: {sender: "later@*"}, via: dead}
  - {name: held, match: {sender: "held@*"}, hold: true}
  - {name: all, via: dead}"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, port = tmp_path_factory.mktemp("schema"), free_port()
    file = write_config(folder, {"dead": f"port: {free_port()}, tls: none"}, routes=ROUTES, extra=EXTRA)
    file.write_text(file.read_text().replace("address: null", f'address: "127.0.0.1:{port}"'))
    with process(file) as relay:
        os.environ["RELAY_ENDPOINT"] = str(relay.socket)
        from relay.cli.client import ask

        token = ask("POST", "/v1/tokens", {"name": "all", "scopes": ["admin"]})["token"]
        yield World(f"http://127.0.0.1:{port}", relay, folder, token)


EXTRA = ""


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
        case.validate_response(answer, checks=CHECKS)

    ask()
    assert world.relay.popen.poll() is None


def harmless(name: str, case: Case, world: World) -> None:
    """What is made up must not name folders of this machine."""
    if name == "post_spool_backup" and isinstance(case.body, dict) and "folder" in case.body:
        case.body["folder"] = f"made-up/{case.body['folder']}"


def test_the_document_is_valid(world: World) -> None:
    document = world.call("GET", "/openapi.json").json()
    assert document["openapi"].startswith("3.1") and document["info"]["version"]
    assert not json.dumps(document).count('$ref": "#/$defs')
