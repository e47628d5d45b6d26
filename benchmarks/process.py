"""What a process costs, read from /proc, and what the relay tells of itself."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(root: int) -> set[int]:
    """A process and all that it started."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            children.setdefault(int(_stat(int(name))[1]), []).append(int(name))
        except OSError:  # it has just ended
            continue
    found, todo = set[int](), [root]
    while todo:
        pid = todo.pop()
        found.add(pid)
        todo += children.get(pid, [])
    return found


def cpu_seconds(root: int) -> float:
    """User and system time of a process."""
    fields = _stat(root)
    return (int(fields[11]) + int(fields[12])) / TICK


def memory_mib(root: int) -> float:
    """PSS of a process tree: shared pages are divided among those who share them."""
    kib = 0
    for pid in tree(root):
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        found = re.search(r"^Pss: +(\d+) kB", text, re.MULTILINE)
        kib += int(found[1]) if found else 0
    return kib / 1024


class Peak:
    """The most memory that a process tree had, looked at twice a second."""

    def __init__(self, root: int) -> None:
        self.root, self.mib = root, 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.mib = max(self.mib, memory_mib(self.root))
            if self._end.wait(0.5):
                return


class Metrics:
    """/metrics of a relay, by its socket."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def sum(self, name: str) -> float:
        """Over all labels."""
        connection = http.client.HTTPConnection("localhost", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.sock.connect(str(self.path))
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{[^\n]*}})? (\S+)$", text, re.MULTILINE))
