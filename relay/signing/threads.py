"""Threads that sign. A private key's work takes half a millisecond, in which the interpreter is free: never on the loop.

A job costs one wake-up of a thread; those that end while the loop is busy share one of the loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
MOST = 4


@dataclass(slots=True)
class _Job:
    function: Callable[[], Any]
    future: asyncio.Future[Any]
    lost: Callable[[Any], None]


class Threads:
    """`count`, or as many as there are processors, up to MOST; begun with the first job."""

    def __init__(self, count: int = 0) -> None:
        self._count = count
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[tuple[_Job, Any, BaseException | None]] = deque()
        self._woken = False
        self._threads: list[Thread] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, job: Callable[[], T], lost: Callable[[T], None]) -> T:
        """What `job` returns or raises, in one of the threads. `lost`: gets it where nobody waits for it any more."""
        if self._loop is None:
            self._start()
        assert self._loop is not None
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put(_Job(job, future, lost))
        return await future

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        processors = sorted(os.sched_getaffinity(0))
        # On a small machine each has a processor of its own. Left alone they wake each other on one of two while the other one
        # is idle, which costs a tenth of the messages; where a processor is busy elsewhere, its thread takes fewer jobs.
        own = not self._count and len(processors) <= MOST
        places: Sequence[int | None] = processors if own else [None] * (self._count or MOST)
        # Daemons: a large message that is being read for its signature must not hold up the end of the process.
        self._threads = [
            Thread(target=self._work, args=[place], name=f"sign-{n}", daemon=True) for n, place in enumerate(places)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, processor: int | None) -> None:
        if processor is not None:
            with contextlib.suppress(OSError):  # it has been taken from us
                os.sched_setaffinity(0, {processor})  # of this thread alone
        while (job := self._jobs.get()) is not None:
            if job.future.cancelled():
                continue
            try:
                result, error = job.function(), None
            except Exception as found:  # noqa: BLE001 - it is raised where the job was asked for
                result, error = None, found
            except BaseException as found:  # noqa: BLE001 - a panic in cryptography: nobody would hear of this job again
                result, error = None, RuntimeError(f"{type(found).__name__} in a thread that signs")
            self._done.append((job, result, error))
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver)  # type: ignore[union-attr]
                except RuntimeError:  # the loop is closed: nobody waits any more
                    return

    def _deliver(self) -> None:
        # Before the first is taken: what ends from here on wakes the loop again.
        self._woken = False
        while self._done:
            job, result, error = self._done.popleft()
            if not job.future.done():
                if error is not None:
                    job.future.set_exception(error)
                else:
                    job.future.set_result(result)
            elif error is None:
                job.lost(result)  # who waited was cancelled

    def close(self) -> None:
        """No job more; does not wait for those under way."""
        for _ in self._threads:
            self._jobs.put(None)
        self._threads = []
