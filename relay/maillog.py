"""The mail log: one line an event, logfmt or JSON, in one voice.

Lines are collected and written together, fifty times a second at most: a `logging` call costs 23 µs. No body and no secret ever comes
here; with `redact` an address becomes a keyed hash, the same within a run. Under systemd a line starts with its priority.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from relay import clock

INFO, WARNING, ERROR = 6, 4, 3  # syslog's
_NAMES = {INFO: "info", WARNING: "warning", ERROR: "error"}
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+")  # needs no quotes in logfmt
_ADDRESSES = ("sender", "recipient")
_ADDRESS = re.compile(r'(?:"[^"@]{1,64}"|[^\s<>",:;()]+)@[^\s<>",:;()]+')
MAX_VALUE = 1000
GATHER = 0.02  # seconds
MAX_REMEMBERED = 2000

Listener = Callable[[str, dict[str, Any]], None]


class MailLog:
    """Where lines go. `stream` None: nowhere (listeners still hear)."""

    def __init__(self, stream: TextIO | None = None, format_: str = "logfmt", redact: bool = False) -> None:
        self.stream, self.format, self.redact = stream, format_, redact
        self.listeners: list[Listener] = []
        self._lines: list[str] = []
        self._scheduled, self._flushed = False, 0.0
        self._lost = 0
        self._second, self._until_second = -1, ""
        self._key = secrets.token_bytes(16)
        self._journal = "JOURNAL_STREAM" in os.environ

    def event(self, kind: str, level: int = INFO, **fields: Any) -> None:
        """One event; fields that are None or empty are left out."""
        for listener in self.listeners:
            listener(kind, fields)
        if self.stream is None:
            return
        if self.redact:
            fields = self._redacted(fields)
        self._lines.append(self._line(kind, level, fields))
        if not self._scheduled or level < INFO:
            self._schedule(level)

    def _schedule(self, level: int) -> None:
        """A first line is written at once, and what is no mere news; what follows it a little later together."""
        self._scheduled = True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return self.flush()
        wait = self._flushed + GATHER - clock.monotonic()
        if wait > 0 and level == INFO:
            loop.call_later(wait, self.flush)
        else:
            loop.call_soon(self.flush)

    def warning(self, kind: str, **fields: Any) -> None:
        self.event(kind, WARNING, **fields)

    def error(self, kind: str, **fields: Any) -> None:
        self.event(kind, ERROR, **fields)

    def flush(self) -> None:
        self._scheduled, self._flushed = False, clock.monotonic()
        lines, self._lines = self._lines, []
        if not lines or self.stream is None:
            return
        if self._lost:
            lines.insert(0, self._line("log_lines_lost", WARNING, {"lines": self._lost}))
        try:
            self.stream.write("".join(lines))
            self.stream.flush()
            self._lost = 0
        except BrokenPipeError:
            self.stream = None  # whoever read it has gone; mail goes on
        except OSError:
            # A full disk must not stop mail; the next line that can be written says how many could not.
            self._lost += len(lines)

    def _line(self, kind: str, level: int, fields: dict[str, Any]) -> str:
        head = f"<{level}>" if self._journal else ""
        when = self._time(clock.now())
        if self.format == "json":
            record = {name.rstrip("_"): value for name, value in fields.items() if value is not None and value != ""}
            return (
                head + json.dumps({"time": when, "level": _NAMES[level], "event": kind, **record}, default=str) + "\n"
            )
        parts = [f"{head}time={when} level={_NAMES[level]} event={kind}"]
        for name, value in fields.items():
            if value is None or value == "":
                continue
            if name[-1] == "_":
                name = name[:-1]
            parts.append(f"{name}={_QUOTED[value] if type(value) is str else _quoted(value)}")
        return " ".join(parts) + "\n"

    def _time(self, now: float) -> str:
        """UTC in RFC 3339, to the millisecond; many lines share a second."""
        second = int(now)
        if second != self._second:
            self._second, self._until_second = second, datetime.fromtimestamp(second, UTC).isoformat()[:19]
        return f"{self._until_second}.{int(now % 1 * 1000):03}Z"

    def _redacted(self, record: dict[str, Any]) -> dict[str, Any]:
        """Addresses as hashes: whole fields that are one, and wherever they are quoted, as in a reply."""
        whole = [str(record[name]) for name in _ADDRESSES if record.get(name)]
        found: dict[str, Any] = {}
        for name, value in record.items():
            if value is None or value == "":
                continue
            if name in _ADDRESSES:
                value = self._hashed(str(value))
            elif isinstance(value, str) and "@" in value:
                for address in whole:
                    value = value.replace(address, self._hashed(address))
                value = _ADDRESS.sub(lambda match: self._hashed(match[0]), value)
            found[name] = value
        return found

    def _hashed(self, address: str) -> str:
        return "#" + hashlib.blake2b(address.lower().encode(), key=self._key, digest_size=8).hexdigest()


def _quoted(value: Any) -> str:
    if isinstance(value, int):
        return str(value).lower()  # of a bool too: true, as in JSON
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)[:MAX_VALUE]
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class _Quoted(dict[str, str]):
    """What was written before: most values come again."""

    def __missing__(self, text: str) -> str:
        quoted = _quoted(text)
        if len(text) < 100:
            if len(self) >= MAX_REMEMBERED:
                self.clear()
            self[text] = quoted
        return quoted


_QUOTED = _Quoted()
