"""Asking a running relay: HTTP over its UNIX socket, by the standard library."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import click

TIMEOUT = 120.0
PAGE = 1000


class Failed(click.ClickException):
    """With a sysexits code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def endpoint() -> str:
    """The socket: RELAY_ENDPOINT, the one that the configuration names, or where a relay without one puts it."""
    given = os.environ.get("RELAY_ENDPOINT")
    if given:
        return _socket_path(given)
    from relay.config.places import config_file, runtime_folder

    file = config_file(os.environ)
    default = str(runtime_folder(os.environ) / "admin.sock")
    return _socket_of(file, default) if os.path.exists(file) else default


def _socket_path(given: str) -> str:
    """`PATH`, `unix:PATH` or `unix://PATH`."""
    path = given.removeprefix("unix:") if given.startswith("unix:") else given
    path = path.removeprefix("//") if given.startswith("unix://") else path
    if "://" in path or not path or ("/" not in path and re.fullmatch(r".*:[0-9]+|[0-9.]+", path)):
        raise Failed(
            f"RELAY_ENDPOINT={given}: it wants the path of the relay's socket, such as /run/relay/admin.sock", 78
        )
    return path


def _socket_of(file: Path, default: str) -> str:
    """`admin.socket` of a file that may have mistakes elsewhere: they must lock nobody out of a relay that runs.

    Never the default for a file that cannot be read: another relay may answer there.
    """
    from relay.config.include import read_all
    from relay.config.problems import Report

    report = Report()
    root = read_all(file, report)
    admin = root.child("admin") if root else None
    found = admin.child("socket") if admin else None
    if found is not None and isinstance(found.value, str) and found.value and "\0" not in found.value:
        return os.path.normpath(file.absolute().parent / found.value)
    if root is not None and found is None and (admin is None or isinstance(admin.value, dict)):
        return default
    place = f"{file}:{report.problems[0].line}" if report.problems else str(found.mark if found else file)
    raise Failed(
        f"{place}: the file has mistakes, so its admin.socket is not known: mend it (`relay check`), "
        "or set RELAY_ENDPOINT to the path of the socket",
        78,
    )


def _open(method: str, path: str, body: Mapping[str, Any] | None, timeout: float = TIMEOUT) -> http.client.HTTPResponse:
    where = endpoint()
    connection = _Connection(where, timeout)
    try:
        with contextlib.ExitStack() as failed:
            failed.callback(connection.close)
            payload = json.dumps(body) if body is not None else None
            headers = {"Connection": "close"}  # one question each: the socket goes with its answer
            headers |= {"Content-Type": "application/json"} if payload else {}
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            failed.pop_all()
            return response
    except FileNotFoundError:
        raise Failed(
            f"no relay is running at {where}; start it with `relay serve`, or set RELAY_CONFIG or RELAY_ENDPOINT", 69
        ) from None
    except ConnectionRefusedError:
        raise Failed(f"no relay answers at {where}; it has stopped: start it with `relay serve`", 69) from None
    except PermissionError:
        raise Failed(f"no right to use {where}; run as the user that the relay runs as", 77) from None
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"{where}: {getattr(error, 'strerror', '') or error or 'no answer'}", 69) from None


def _checked(response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    if response.status >= 400:
        text = response.read()
        try:
            detail = json.loads(text)
        except ValueError:
            detail = {}
        message = (
            detail.get("detail")
            or "; ".join(detail.get("notes") or [])
            or detail.get("why")
            or f"the relay answered {response.status}"
        )
        raise Failed(message, {400: 64, 404: 65, 409: 65, 422: 78}.get(response.status, 69))
    return response


def message(number: str, rest: str = "") -> str:
    """The path of a message; whatever was typed for its queue id stays one part of it."""
    return f"/v1/messages/{part(number)}{rest}"


def part(text: str) -> str:
    """Of a path: one part, whatever is in it."""
    return quote(text, safe="")


def ask(
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    query: Mapping[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Any:
    """JSON for JSON. Raises Failed with what the relay said."""
    response = _checked(_open(method, f"{path}?{urlencode(query)}" if query else path, body, timeout))
    return json.loads(response.read())


def stream(path: str) -> Iterator[bytes]:
    """The bytes of an answer, in slices."""
    response = _checked(_open("GET", path, None))
    while data := response.read(1 << 16):
        yield data


def recipients(filters: Mapping[str, str], limit: int | None = None) -> Iterator[dict[str, Any]]:
    """All recipients that the filters select, page by page."""
    after, left = "", limit
    while True:
        query = (
            dict(filters)
            | {"limit": str(PAGE if left is None else min(PAGE, left))}
            | ({"after": after} if after else {})
        )
        page = ask("GET", "/v1/queue", query=query)
        yield from page["recipients"]
        after = page["next"]
        if left is not None:
            left -= len(page["recipients"])
        if not after or left == 0:
            return


def read_password(*, new: bool = False) -> str:
    """From the terminal, unseen, or a line of standard input; never an argument, which every user of the machine could read."""
    if sys.stdin.isatty():
        found: str = click.prompt("password", hide_input=True, confirmation_prompt=new)
    else:
        found = sys.stdin.readline().rstrip("\r\n")
    if not found:
        raise Failed("no password was given: type it, or hand it in on standard input", 65)
    return found
