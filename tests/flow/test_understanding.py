"""The worker that reads what strangers wrote: its limits hold, its end is noticed, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from conftest import until

from relay.returned import Kind
from relay.returned.bounded import Unavailable, Understanding

BOTH_LOOPS = True

COMPLAINT = b"""From: a@b.example\r
Content-Type: multipart/report; report-type=feedback-report; boundary=b\r
\r
--b\r
Content-Type: message/feedback-report\r
\r
Feedback-Type: abuse\r
Original-Rcpt-To: %s\r
\r
--b--\r
"""

# Stands for `understand`, and does what the mail says: how a reader breaks that nobody knew to be broken.
BREAKING = """\
import os, signal, sys, time
import relay.returned.understand
from relay.returned import Finding, Kind, worker

def understand(raw):
    match raw.split():
        case [b"raise"]: raise KeyError("x")
        case [b"deep"]: return understand(raw)
        case [b"memory"]: return [bytes(2 << 30)]
        case [b"exit"]: os._exit(3)
        case [b"kill"]: os.kill(os.getpid(), signal.SIGKILL)
        case [b"loop"]:
            while True: pass
        case [b"busy"]:
            end = time.process_time() + 0.7
            while time.process_time() < end: pass
        case [b"sleep"]: time.sleep(60)
        case [b"garbage"]: os.write(1, b"\\xff" * 1000)
        case [b"file"]: os.write(os.open(__file__ + ".out", os.O_CREAT | os.O_WRONLY), b"x")
        case [b"many"]: return [Finding(Kind.OTHER, diagnostic="x" * 1000)] * 5000
    return [Finding(Kind.OTHER, reason="read", diagnostic=raw.decode("latin-1"))]

relay.returned.understand.understand = understand
worker.main(int(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.fixture
async def reader() -> AsyncIterator[Understanding]:
    made = Understanding()
    yield made
    await made.close()


@pytest.fixture
async def breaking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Understanding]:
    (tmp_path / "breaking.py").write_text(BREAKING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    made = Understanding(seconds=1, patience=120, module="breaking")
    yield made
    await made.close()


async def why(reader: Understanding, raw: bytes) -> str:
    (found,) = await reader.read(raw)
    assert (found.kind, found.reason) == (Kind.OTHER, "too_hard")
    return str(found.detail["why"])


def runs(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()


async def test_a_mail_is_understood(reader: Understanding) -> None:
    assert reader.pid is None  # nobody has asked
    (found,) = await reader.read(COMPLAINT % "é@example.com".encode())
    assert (found.kind, found.reason, found.recipient) == (Kind.COMPLAINT, "abuse", "é@example.com")
    first = reader.pid
    assert [one.kind for one in await reader.read(b"hello")] == [Kind.OTHER]
    assert reader.pid == first


async def test_callers_at_once_get_their_own(reader: Understanding) -> None:
    found = await asyncio.gather(*(reader.read(COMPLAINT % f"r{i}@example.com".encode()) for i in range(50)))
    assert [one[0].recipient for one in found] == [f"r{i}@example.com" for i in range(50)]


async def test_they_are_served_in_the_order_in_which_they_came(breaking: Understanding) -> None:
    done: list[int] = []

    async def one(i: int) -> None:
        await breaking.read(b"loop" if i == 1 else b"x")
        done.append(i)

    await asyncio.gather(*map(one, range(6)))
    assert done == list(range(6))


async def test_it_has_no_descriptor_and_no_secret_of_ours(
    reader: Understanding, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELAY_TEST_SECRET", "s3cret")
    kept = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(kept, True)
    try:
        await reader.read(b"x")
        there = Path(f"/proc/{reader.pid}")
        opened = {int(fd.name): os.readlink(fd) for fd in (there / "fd").iterdir()}
        assert set(opened) == {0, 1, 2}
        assert opened[2] == "/dev/null"
        assert b"s3cret" not in (there / "environ").read_bytes()
        assert os.getsid(reader.pid or 0) == reader.pid  # Ctrl-C at our terminal is ours alone
    finally:
        os.close(kept)


async def test_it_is_ended_when_it_idles() -> None:
    reader = Understanding(idle=3.0)
    await reader.read(b"x")
    pid = reader.pid
    await asyncio.sleep(0.1)
    await reader.read(b"x")
    assert reader.pid == pid
    await until(lambda: not runs(pid))
    assert reader.pid is None
    await reader.read(b"x")
    assert runs(reader.pid)
    pid = reader.pid
    await reader.close()
    assert not runs(pid)


@pytest.mark.parametrize(
    ("mail", "told"),
    [
        (b"raise", "KeyError: 'x'"),
        (b"deep", "RecursionError: maximum recursion depth exceeded"),
        (b"memory", "MemoryError: "),
        (b"exit", "the worker ended with code 3"),
        (b"kill", "the worker was ended by signal 9"),
        (b"garbage", "the worker's answer is none"),
        (b"file", "OSError: [Errno 27] File too large"),
    ],
)
async def test_a_mail_that_breaks_its_reader(breaking: Understanding, mail: bytes, told: str) -> None:
    await breaking.read(b"x")
    before = breaking.pid
    assert (await why(breaking, mail)).startswith(told)
    assert not runs(before)
    assert [one.diagnostic for one in await breaking.read(b"the next one")] == ["the next one"]
    assert runs(breaking.pid)


async def test_processor_time_is_limited_for_each_mail(breaking: Understanding) -> None:
    for mail in (b"x", b"busy", b"busy", b"busy"):  # together more than one may have
        assert [one.reason for one in await breaking.read(mail)] == ["read"]
    assert await why(breaking, b"loop") == "it took more than its processor time"
    assert [one.reason for one in await breaking.read(b"x")] == ["read"]


@pytest.mark.usefixtures("breaking")
async def test_time_is_limited() -> None:
    hasty = Understanding(patience=0.5, module="breaking")
    assert await why(hasty, b"sleep") == "it took more than 0.5 s"
    hasty._patience = 30.0
    assert [one.reason for one in await hasty.read(b"x")] == ["read"]
    await hasty.close()


async def test_one_that_was_ended_while_it_idled_is_no_fault_of_the_mail(reader: Understanding) -> None:
    await reader.read(b"x")
    for kill in (signal.SIGKILL, signal.SIGTERM):
        os.kill(reader.pid or 0, kill)
        (found,) = await reader.read(COMPLAINT % b"a@example.com")
        assert found.recipient == "a@example.com"


async def test_a_caller_that_gives_up_does_not_confuse_the_next_one(breaking: Understanding) -> None:
    await breaking.read(b"x")
    pid = breaking.pid
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(breaking.read(b"sleep"), 0.3)
    assert not runs(pid)
    assert [one.diagnostic for one in await breaking.read(b"mine")] == ["mine"]


async def test_a_caller_that_gives_up_while_it_waits_takes_no_turn(breaking: Understanding) -> None:
    first = asyncio.create_task(breaking.read(b"loop"))
    await asyncio.sleep(0)
    second = asyncio.create_task(breaking.read(b"x"))
    await asyncio.sleep(0)
    second.cancel()
    assert [one.reason for one in await first] == ["too_hard"]
    assert [one.diagnostic for one in await breaking.read(b"mine")] == ["mine"]


async def test_closing_ends_what_is_under_way(breaking: Understanding) -> None:
    await breaking.read(b"x")
    pid = breaking.pid
    reading = asyncio.create_task(breaking.read(b"sleep"))
    await asyncio.sleep(0.1)
    await breaking.close()
    with pytest.raises(Unavailable):
        await reading
    assert not runs(pid)
    with pytest.raises(Unavailable):
        await breaking.read(b"x")
    await breaking.close()


async def test_one_that_does_not_start_is_told() -> None:
    for module in ("relay.returned.no_such", "relay.returned"):
        reader = Understanding(module=module)
        with pytest.raises(Unavailable):
            await reader.read(b"x")
        assert reader.pid is None
        await reader.close()


async def test_much_goes_both_ways(breaking: Understanding) -> None:
    assert len(await breaking.read(b"many")) == 5_000
    (found,) = await breaking.read(b"x" * (5 << 20))
    assert len(found.diagnostic) == 5 << 20
    (found,) = await breaking.read(b"x" * (20 << 20))  # more than any reader takes is not handed on
    assert len(found.diagnostic) == 12 << 20


async def test_it_ends_with_the_process_that_started_it() -> None:
    script = (
        "import asyncio, os\nfrom relay.returned.bounded import Understanding\n"
        "async def main():\n    u = Understanding()\n    await u.read(b'x')\n    print(u.pid, flush=True)\n    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    pid = int(out)
    await until(lambda: not runs(pid))
