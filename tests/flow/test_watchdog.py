"""The watchdog is fed while mail can be kept and moved, and by nothing else (sd_watchdog_enabled(3))."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest
from fakes import Upstream
from rig import Rig, running, until, write_config

from relay import app


class Manager:
    """Stands where systemd does."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(str(self.path))

    def heard(self) -> list[bytes]:
        """What came since the last look."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(1000))
            except BlockingIOError:
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Manager:
    made = Manager(tmp_path)
    monkeypatch.setenv("NOTIFY_SOCKET", str(made.path))
    monkeypatch.setenv("WATCHDOG_USEC", "40000")
    monkeypatch.setattr(app, "STUCK_AFTER", 12.0)  # dispatch looks round every five seconds when nothing is due
    return made


async def fed(manager: Manager, rig: Rig) -> None:
    manager.heard()
    await until(lambda: b"WATCHDOG=1" in manager.heard())
    assert rig.app.health()["alive"]


async def starved(manager: Manager, rig: Rig) -> None:
    await until(lambda: not rig.app.health()["alive"], 60)
    await asyncio.sleep(0)
    manager.heard()
    assert not rig.app.health()["alive"]
    # Ten of its turns.
    end = asyncio.get_running_loop().time() + 0.2
    await until(lambda: asyncio.get_running_loop().time() > end)
    assert b"WATCHDOG=1" not in manager.heard()


async def test_a_stuck_writing_thread_ends_it(tmp_path: Path, manager: Manager) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}"})) as rig:
        await fed(manager, rig)
        goes_on = threading.Event()
        stuck = asyncio.ensure_future(rig.app.spool._writer._connection.call(lambda _: goes_on.wait(90)))
        await starved(manager, rig)
        assert "spool does not run" in rig.app.health()["why"]
        goes_on.set()
        await stuck
        await fed(manager, rig)
    manager.close()


async def test_a_stuck_dispatch_ends_it(tmp_path: Path, manager: Manager) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}"})) as rig:
        await fed(manager, rig)
        loop = rig.app.supervisor.loops["dispatch"]
        await rig.app.supervisor.stop("dispatch")
        await starved(manager, rig)
        assert "dispatch does not run" in rig.app.health()["why"]
        rig.app.supervisor.start("dispatch", loop.run)
        await fed(manager, rig)
    manager.close()
