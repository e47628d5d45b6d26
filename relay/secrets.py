"""References to secrets: where they are, never what they are.

A reference is resolved each time it is needed, so that a rotated secret counts without a reload. Its repr shows the
reference only; errors name the reference and never a value.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

MAX_SECRET = 64 * 1024
COMMAND_TIMEOUT = 10.0
_RUN = re.compile(r"[A-Za-z0-9._~+/=-]{12,}")  # as a token, or base64, is written


class SecretError(Exception):
    """A reference that cannot be read; the text says which and why, and holds no secret."""


@dataclass(frozen=True, slots=True)
class Reference:
    """`{file: …}`, `{env: …}`, `{credential: …}`, `{command: […]}`, or a plain value where plain is allowed."""

    kind: Literal["file", "env", "credential", "command", "plain"]
    target: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.target if self.kind == "plain" else f"{{{self.kind}: {self.target}}}"

    def resolve(self) -> str:
        """The value, without its trailing newline. Blocks (a file, a command): call it off the loop."""
        match self.kind:
            case "plain":
                return self.target
            case "env":
                value = os.environ.get(self.target)
                if value is None:
                    raise SecretError(f"environment variable {self.target} is not set")
                try:
                    value.encode()
                except UnicodeEncodeError:  # it quotes the whole value: nobody after us shall meet it
                    raise SecretError(f"environment variable {self.target} is not UTF-8 text") from None
                return value
            case "command":
                return self._run()
            case "credential":
                return self._read(self._credential_path())
            case "file":
                return self._read(Path(self.target))

    def problem(self) -> str:
        """What is wrong with the reference before it is used; empty if nothing. Runs no command."""
        if self.kind == "command":
            return "" if shutil.which(self.target) else f"command {self.target} is not found or not executable"
        try:
            return "" if self.resolve() else f"{self.kind} {self.target} is empty"
        except SecretError as error:
            return str(error)

    def path(self) -> Path | None:
        """The file that it is read from; None: there is none, or none can be named."""
        if self.kind == "file":
            return Path(self.target)
        return self._credential_path() if self.kind == "credential" and "CREDENTIALS_DIRECTORY" in os.environ else None

    def exposed(self) -> tuple[str, bool]:
        """(why others may read its file, can it be mended): ("", True) where they may not.

        A group may: the service's, or that of a mounted secret. On a read-only mount nobody can change the mode.
        """
        path = self.path()
        if path is None:
            return "", True
        try:
            mode = path.stat().st_mode
            fixed = bool(os.statvfs(path).f_flag & os.ST_RDONLY)
        except OSError:
            return "", True  # reading it says why
        return (f"everybody on this machine may read {path}", not fixed) if mode & stat.S_IROTH else ("", True)

    def _credential_path(self) -> Path:
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise SecretError(f"credential {self.target}: $CREDENTIALS_DIRECTORY is not set (systemd sets it)")
        return Path(folder) / self.target

    def _read(self, path: Path) -> str:
        try:
            # A FIFO waits at the opening for who writes, and would hold up a start or a reload for good.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise SecretError(f"{self.kind} {path}: not a regular file")
                raw = file.read(MAX_SECRET + 1)
        except OSError as error:
            raise SecretError(f"{self.kind} {path}: {error.strerror}") from None
        if len(raw) > MAX_SECRET:
            raise SecretError(f"{self.kind} {path} is longer than {MAX_SECRET} bytes: not a secret")
        try:
            return raw.decode().rstrip("\r\n")
        except UnicodeDecodeError:
            raise SecretError(f"{self.kind} {path} is not UTF-8 text") from None

    def _run(self) -> str:
        try:
            done = subprocess.run(
                [self.target, *self.arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=COMMAND_TIMEOUT,
                check=False,
            )
        except OSError as error:
            raise SecretError(f"command {self.target}: {error.strerror}") from None
        except subprocess.TimeoutExpired:
            raise SecretError(f"command {self.target} did not end within {COMMAND_TIMEOUT:.0f} s") from None
        if done.returncode:
            # Its output may hold the secret: only the exit code is told.
            raise SecretError(f"command {self.target} ended with exit code {done.returncode}")
        return done.stdout[:MAX_SECRET].decode(errors="replace").rstrip("\r\n")


def hidden(text: str, *secrets: str) -> str:
    """What a stranger said, without what we had said to him: each secret as it is, in base64, or a long piece of either.

    What holds a name beside the secret is handed in as it was said, in base64: the name alone may be told.
    """
    forms = [form for secret in secrets if secret for form in (base64.b64encode(secret.encode()).decode(), secret)]
    for form in forms:
        text = text.replace(form, "***")
        if len(form) > 12 and form.endswith("="):
            text = text.replace(form.rstrip("="), "***")
    return _RUN.sub(lambda run: "***" if any(run[0].strip("=") in form for form in forms) else run[0], text)
