"""Every curl example of docs/http-api.md runs as it is written, against a relay; only its port is another one."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
from pathlib import Path

from .support import ROOT, Recorder, Relay, config_text, free_port, needs

pytestmark = needs("curl")


def add_token(path: Path) -> str:
    connection = http.client.HTTPConnection("localhost", timeout=60)
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.sock.connect(str(path))
        connection.request("POST", "/v1/tokens", json.dumps({"name": "app", "scopes": ["submit", "operate"]}))
        made: str = json.loads(connection.getresponse().read())["token"]
        return made
    finally:
        connection.close()


def test_every_example_runs(tmp_path: Path) -> None:
    examples = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs" / "http-api.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(examples) >= 6
    port = free_port()
    with Recorder() as upstream:
        config = tmp_path / "relay.yaml"
        config.write_text(config_text(tmp_path, upstream.port).replace("address: null", f'address: "127.0.0.1:{port}"'))
        with Relay(config):
            (tmp_path / "token").write_text(add_token(tmp_path / "admin.sock"))
            for example in examples:
                text = example.replace("127.0.0.1:2580", f"127.0.0.1:{port}").replace(
                    "curl -sS", "curl -sS --fail-with-body"
                )
                done = subprocess.run(
                    ["bash", "-eo", "pipefail", "-c", text], cwd=tmp_path, env=dict(os.environ), capture_output=True,
                    text=True, timeout=120, check=False,
                )  # fmt: skip
                assert done.returncode == 0, (example, done.stdout, done.stderr)
            upstream.wait(5)
