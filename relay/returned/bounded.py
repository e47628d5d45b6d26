"""Reading what strangers wrote, in another process with limits: whatever a mail does to its reader, this one goes on.

`parts` and the readers bound what they can count before they begin. What remains (a parser with a fault, a pattern that is
slower than we know) ends the worker and not the relay. The worker has no descriptor but its pipes, no secret in its
environment, and is gone a minute after its last mail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from pathlib import Path
from typing import Any

import relay
from relay.returned import Finding, Kind
from relay.returned.worker import HEADER, TOO_HARD

SECONDS = 5  # of processor time for one mail
PATIENCE = 15.0  # and by the clock, on a machine that has others to serve
START = 60.0  # seconds for the worker to be ready
IDLE = 60.0  # seconds without a mail after which it is ended
GRACE = 2.0  # seconds that one may take to end itself
MEMORY = 512  # MiB of address space
MOST_READ = 12 << 20  # octets of a mail that are handed on; more than any reader takes
MOST_ANSWER = 16 << 20

# It needs to find Python, us and its locale, and is shown nothing else.
_SHOWN = ("PATH", "PYTHONHOME", "VIRTUAL_ENV", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class Unavailable(Exception):
    """No worker can be started (memory, processes, descriptors), or this is closed: what was to be read may come again."""


class _Died(Exception):
    """The worker ended, or had to be; the text says of what."""


class Understanding:
    """`await read(raw)` from anywhere; callers get their turn in the order in which they came."""

    def __init__(
        self,
        *,
        seconds: int = SECONDS,
        patience: float = PATIENCE,
        idle: float = IDLE,
        memory: int = MEMORY,
        module: str = "relay.returned.worker",
    ) -> None:
        self._command = (sys.executable, "-P", "-B", "-m", module, str(memory), str(seconds))
        self._patience = patience
        self._idle = idle
        self._turn = asyncio.Lock()
        self._worker: Process | None = None
        self._fresh = True  # the worker has read nothing yet
        self._ending: asyncio.TimerHandle | None = None
        self._ended: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the worker; None: there is none."""
        return self._worker.pid if self._worker else None

    async def read(self, raw: bytes) -> list[Finding]:
        """What it means, as `understand` has it. A mail that ends the worker, or takes too long, is one Finding `other` with
        the reason `too_hard`, and `why` in its detail. Raises Unavailable."""
        async with self._turn:
            self._stay()
            try:
                rows = await self._rows(raw[:MOST_READ])
            except _Died as died:
                rows = [Finding(Kind.OTHER, reason=TOO_HARD, detail={"why": str(died)}).row()]
            finally:
                self._leave_later()
        return [_finding(row) for row in rows]

    async def close(self) -> None:
        """Ends the worker and waits for it. A read that is under way raises Unavailable."""
        self._closed = True
        self._stay()
        if self._worker is not None:
            await self._end(self._worker)
        await asyncio.gather(*self._ended)

    # -- one mail

    async def _rows(self, raw: bytes) -> list[dict[str, Any]]:
        while True:
            worker = await self._ready()
            fresh, self._fresh = self._fresh, False
            try:
                rows = await self._asked(worker, raw)
            except _Died:
                # One that idled may have been ended by anybody; a mail is judged by a worker that began with it.
                if fresh:
                    raise
                continue
            if any(row["reason"] == TOO_HARD for row in rows):
                await self._end(worker, GRACE)
            return rows

    async def _asked(self, worker: Process, raw: bytes) -> list[dict[str, Any]]:
        assert worker.stdin is not None
        try:
            async with asyncio.timeout(self._patience):
                worker.stdin.write(len(raw).to_bytes(HEADER, "big"))
                worker.stdin.write(raw)
                await worker.stdin.drain()
                answer = json.loads(await self._frame(worker))
            return list(answer)
        except TimeoutError:
            await self._end(worker)
            raise _Died(f"it took more than {self._patience:g} s") from None
        except ValueError:
            await self._end(worker)
            raise _Died("the worker's answer is none") from None
        except (OSError, EOFError):
            code = await self._end(worker, GRACE)
            if self._closed:
                raise Unavailable("it is closed") from None
            raise _Died(_how(code)) from None
        except asyncio.CancelledError:  # the answer to this mail would be taken for that to the next one
            await self._end(worker)
            raise

    async def _frame(self, worker: Process) -> bytes:
        assert worker.stdout is not None
        size = int.from_bytes(await worker.stdout.readexactly(HEADER), "big")
        if size > MOST_ANSWER:
            raise ValueError(f"an answer of {size} octets")
        return await worker.stdout.readexactly(size)

    # -- the worker

    async def _ready(self) -> Process:
        if self._closed:
            raise Unavailable("it is closed")
        if self._worker is not None and self._worker.returncode is None:
            return self._worker
        if self._worker is not None:
            await self._end(self._worker)
        try:
            worker = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=DEVNULL,
                env=environment(),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise Unavailable(f"no worker can be started: {error}") from None
        self._worker, self._fresh = worker, True
        if self._closed:
            await self._end(worker)
            raise Unavailable("it is closed")
        try:
            async with asyncio.timeout(START):
                await self._frame(worker)
        except (OSError, EOFError, ValueError) as error:  # TimeoutError is an OSError
            code = await self._end(worker, GRACE)
            raise Unavailable(
                f"the worker does not start: {_how(code) if isinstance(error, EOFError) else error}"
            ) from None
        except asyncio.CancelledError:
            await self._end(worker)
            raise
        return worker

    async def _end(self, worker: Process, grace: float = 0.0) -> int:
        """Its exit code. `grace`: seconds in which it may end itself, for its input ends."""
        if self._worker is worker:
            self._worker = None
        if worker.stdin is not None:
            worker.stdin.close()
        if grace:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace):
                    return await worker.wait()
        if worker.returncode is None:
            # Not `worker.kill()`: it asks whether the process has ended, and takes its exit code away from who waits for it.
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
        return await worker.wait()

    def _stay(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _leave_later(self) -> None:
        if self._worker is not None and not self._closed:
            self._ending = asyncio.get_running_loop().call_later(self._idle, self._leave)

    def _leave(self) -> None:
        worker = self._worker
        if worker is None or self._turn.locked():
            return
        self._worker = None
        task = asyncio.create_task(self._gone(worker))
        self._ended.add(task)
        task.add_done_callback(self._ended.discard)

    async def _gone(self, worker: Process) -> None:
        await self._end(worker, GRACE)


def _finding(row: dict[str, Any]) -> Finding:
    return Finding(class_=row.pop("class"), kind=Kind(row.pop("kind")), **row)


def _how(code: int) -> str:
    if code >= 0:
        return f"the worker ended with code {code}"
    return (
        "it took more than its processor time" if -code == signal.SIGXCPU else f"the worker was ended by signal {-code}"
    )


def environment() -> dict[str, str]:
    shown = {name: os.environ[name] for name in _SHOWN if name in os.environ}
    own = str(Path(relay.__file__).parent.parent)
    return shown | {"PYTHONPATH": os.pathsep.join(filter(None, (own, os.environ.get("PYTHONPATH", ""))))}
