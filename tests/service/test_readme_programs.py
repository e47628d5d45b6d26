"""What the README shows to programs runs as it stands there, in its order; only the ports are others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from .support import ENV, ROOT, Recorder, Relay, config_text, free_port, needs, until

README = (ROOT / "README.md").read_text()


@needs("curl")
def test_the_readme_runs_as_written(tmp_path: Path) -> None:
    section = README[README.index("## For programs") : README.index("## Operations")]
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["sh", "python", "python", "sh"]
    port, bin_ = free_port(), tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "relay").write_text(f'#!/bin/sh\nexec {sys.executable} -m relay "$@"\n')
    (bin_ / "relay").chmod(0o755)
    with Recorder() as upstream:
        config = tmp_path / "relay.yaml"
        config.write_text(config_text(tmp_path, upstream.port).replace("address: null", f'address: "127.0.0.1:{port}"'))
        with Relay(config) as relay:
            env = ENV | {
                "PATH": f"{bin_}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "RELAY_ENDPOINT": str(tmp_path / "admin.sock"),
                "RELAY_URL": f"http://127.0.0.1:{port}",
                "RELAY_SMTP": f"127.0.0.1:{relay.port}",
            }
            for kind, text in blocks:
                said = text.replace("127.0.0.1:2580", f"127.0.0.1:{port}").replace(
                    "curl -sS", "curl -sS --fail-with-body"
                )
                program = ["bash", "-eo", "pipefail", "-c", said] if kind == "sh" else [sys.executable, "-c", said]
                if (tmp_path / "token").exists():
                    env["RELAY_TOKEN"] = (tmp_path / "token").read_text().strip()
                done = subprocess.run(
                    program, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
                )
                assert done.returncode == 0, (text, done.stdout, done.stderr)
            upstream.wait(3)
            run = [sys.executable, "-m", "relay", "outbox", "run", "--database", "sqlite:///app.db"]
            reader = subprocess.Popen(run, cwd=tmp_path, env=env)
            try:
                until(lambda: len(upstream.messages) == 4, what="the outbox' mail")
            finally:
                reader.terminate()
                assert reader.wait(60) == 0
    subjects = {re.search(rb"^Subject: (.*)\r$", m.raw, re.MULTILINE)[1] for m in upstream.messages}  # type: ignore[index]
    assert subjects == {b"Your order", b"Hello", b"Booked", b"hello"}
