"""A load that is a process of its own, so that it waits for nobody but the relay. Only the standard library.

load.py sink                    an upstream that keeps nothing; says its port
load.py small PORT RATE         small messages, a connection each, begun at that rate whatever the last one does,
                                until its input ends; says "begun" after the first 250, and
                                [[when the dot was sent, seconds until 250], …]
load.py large PORT BYTES COUNT SESSIONS
load.py odd PORT ROUNDS SESSIONS
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from odd import HEAD, LINE, ODD, hand_in

ANSWERS = {b"EHLO": b"250 sink\r\n", b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}


class Sink(asyncio.Protocol):
    """Answers each line of a dialogue without pipelining; of a message it looks for the end alone."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.data, self.held = transport, False, b""
        self.say(b"220 sink\r\n")

    def say(self, answer: bytes) -> None:
        assert isinstance(self.transport, asyncio.WriteTransport)
        self.transport.write(answer)

    def data_received(self, data: bytes) -> None:
        self.held = self.held[-4:] + data if self.data else self.held + data
        if self.data:
            if self.held.endswith(b"\r\n.\r\n"):
                self.data, self.held = False, b""
                self.say(b"250 ok\r\n")
            return
        while not self.data and b"\n" in self.held:
            line, _, self.held = self.held.partition(b"\n")
            self.data = line[:4].upper() == b"DATA"
            self.say(ANSWERS.get(line[:4].upper(), b"250 ok\r\n"))


async def sink() -> None:
    server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def small(port: int, rate: float) -> None:
    told: list[tuple[float, float]] = []
    message = HEAD + LINE * 50

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def heard(code: bytes) -> None:
            while (line := await reader.readline())[3:4] == b"-":
                continue
            assert line.startswith(code), line

        await heard(b"220")
        for said, code in (
            (b"EHLO x", b"250"),
            (b"MAIL FROM:<a@b.c>", b"250"),
            (b"RCPT TO:<d@e.f>", b"250"),
            (b"DATA", b"354"),
        ):
            writer.write(said + b"\r\n")
            await heard(code)
        sent = time.time()
        writer.write(message + b".\r\n")
        await heard(b"250")
        told.append((sent, time.time() - sent))
        if len(told) == 1:
            print("begun", flush=True)
        writer.write(b"QUIT\r\n")
        await reader.read()
        writer.close()

    loop = asyncio.get_running_loop()
    ended = loop.run_in_executor(None, sys.stdin.read)
    begun, due = [], time.monotonic()
    while not ended.done():
        begun.append(loop.create_task(one()))
        due += 1 / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
    await asyncio.wait_for(asyncio.gather(*begun), 60)
    print(json.dumps(told))


def each(works: list[Callable[[], str]], sessions: int) -> None:
    """All of them, so many at a time; says how often each answer came."""
    waiting: queue.SimpleQueue[Callable[[], str]] = queue.SimpleQueue()
    for work in works:
        waiting.put(work)
    answers: list[str] = []

    def worker() -> None:
        while not waiting.empty():
            try:
                answers.append(waiting.get_nowait()()[:3])
            except queue.Empty:
                return

    threads = [threading.Thread(target=worker) for _ in range(sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(json.dumps({code: answers.count(code) for code in sorted(set(answers))}))


def main(role: str, *numbers: str) -> None:
    port, *rest = (int(n) for n in numbers) if numbers else (0,)
    if role == "sink":
        asyncio.run(sink())
    elif role == "small":
        asyncio.run(small(port, rest[0]))
    elif role == "large":
        size, count, sessions = rest
        message = HEAD + LINE * (size // len(LINE))
        each([lambda: hand_in(port, message)] * count, sessions)
    elif role == "odd":
        made = [(make(), 1000 if "recipients" in name else 1) for name, make in ODD.items()]
        each([lambda m=m, n=n: hand_in(port, m, n) for m, n in made] * rest[0], rest[1])  # type: ignore[misc]


if __name__ == "__main__":
    main(*sys.argv[1:])
