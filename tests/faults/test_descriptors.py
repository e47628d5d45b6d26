"""More clients than there are descriptors: nobody is harmed for long, deliveries go on, and none leaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from fakes import Upstream
from rig import submit
from service.storm import CLASSES
from service.support import ENV, Relay, config_text, free_port, until

LIMIT, CLIENTS = 128, 500
# `ulimit -n` for it alone, soft and hard.
LIMITED = (sys.executable, "-c", f"import os, resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({LIMIT}, {LIMIT})); "
           "os.execv(sys.argv[1], sys.argv[1:])")  # fmt: skip


RAISE = """
import resource
from relay.runtime import raise_descriptor_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
print(raise_descriptor_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    done = subprocess.run([sys.executable, "-c", RAISE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "512 (512, 512)"


async def test_500_clients_on_128_descriptors(tmp_path: Path) -> None:
    wait = asyncio.to_thread
    well = False
    async with Upstream({"RCPT": lambda _: None if well else "451 4.3.0 not yet"}) as upstream:
        (tmp_path / "relay.yaml").write_text(config_text(tmp_path, upstream.port, extra=CLASSES))
        with Relay(tmp_path / "relay.yaml", env=ENV, prefix=LIMITED) as relay:
            assert relay.process is not None
            await submit(relay.port, [("app@example.com", ("user@example.com",), b"Subject: x\r\n\r\nhi\r\n")] * 10)
            await wait(until, lambda: len(relay.lines("deferred")) >= 10, 60, "ten wait")

            def open_files() -> int:
                assert relay.process is not None
                return len(os.listdir(f"/proc/{relay.process.pid}/fd"))

            before = open_files()
            with crowd(relay.port):
                await wait(until, lambda: open_files() > LIMIT // 2, 60, "they are connected")
                well = True
                # While they sit there what was accepted leaves.
                await wait(until, lambda: len(upstream.delivered()) >= 10, 60, "deliveries go on")
            # Long before any timeout of theirs, which is minutes. A try that meets a full queue hears nothing for 0.5 s.
            await wait(until, lambda: _healthy(relay), 30, "healthy soon after they went")
            await submit(relay.port, [("app@example.com", ("new@example.com",), b"Subject: x\r\n\r\nhi\r\n")])
            await wait(until, lambda: "new@example.com" in upstream.delivered(), 60, "mail goes on")
            # The ten that waited left side by side: so many sessions with the upstream are kept for half a minute.
            await wait(until, lambda: open_files() <= before + 10, 60, "no descriptor leaks")
            assert "Traceback" not in relay.log()
            assert await wait(relay.stop) == 0


async def test_the_operator_is_answered_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "relay.yaml").write_text(config_text(tmp_path, free_port()))
    with Relay(tmp_path / "relay.yaml", env=ENV, prefix=LIMITED) as relay, crowd(relay.port):
        until(lambda: len(os.listdir(f"/proc/{relay.process.pid}/fd")) > LIMIT // 2, 60, "they are connected")  # type: ignore[union-attr]
        assert '"alive": true' in relay.cli("status", "--json")


@contextlib.contextmanager
def crowd(port: int) -> Iterator[None]:
    """CLIENTS that connect and say nothing."""
    with contextlib.ExitStack() as clients:
        for _ in range(CLIENTS):
            client = clients.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield


def _healthy(relay: Relay) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", relay.port), timeout=0.5) as client:
        client.settimeout(0.5)
        return client.recv(100).startswith(b"220")
    return False
