"""A session's wire by itself: whole replies out of any bytes, one timer, bounded memory, on both event loops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.deliver.dialogue import LOST, MAX_LINE, MAX_REPLY, SILENT, TOO_LONG, TOO_MANY, Dialogue

BOTH_LOOPS = True


class Wire(asyncio.Transport):
    """Keeps what is written. Tells nobody anything by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.limits = high, low

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True


async def test_a_timer_that_rings_a_moment_too_early_may_be_moved() -> None:
    """What is due at once is no timer to uvloop, and cannot say when it rings."""
    talk, loop = Dialogue(Wire()), asyncio.get_running_loop()
    talk.say(b"MAIL\r\n", b"RCPT\r\n", replies=2)

    async def both() -> list[int]:
        return [(await talk.reply(60.0)).code, (await talk.reply(60.0)).code]

    waiting = asyncio.ensure_future(both())
    await asyncio.sleep(0)
    talk._deadline = loop.time() + 0.0001
    talk.data_received(b"250 ok\r\n")
    talk._ring()  # in the same step of the loop
    await asyncio.sleep(0.005)
    talk.data_received(b"251 ok\r\n")
    assert await waiting == [250, 251]


# -- the same replies, however they come


class Plain(Dialogue):
    """Without the short way for what is usual."""

    def _usual(self, data: bytes) -> bytes:
        return data


TEXT = st.text(alphabet=st.sampled_from("aZ 5.-~\t\r\x00\x7f\xe9"), max_size=6).map(lambda t: t.encode("latin-1"))
LINE = st.builds(
    lambda code, gap, text, end: code + gap + text + end,
    st.sampled_from([b"250", b"354", b"421", b"550", b"199", b"600", b"25", b"2500", b"-50", b"abc", b""]),
    st.sampled_from([b" ", b" ", b" ", b"-", b"-", b"", b"  ", b"\t"]),
    TEXT,
    st.sampled_from([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\r\r\n"]),
)
USUAL = st.sampled_from([b"250 2.0.0 Ok\r\n", b"354 go on\r\n", b"250-a\r\n250 b\r\n", b"550 5.1.1 no such user\r\n"])


def heard(make: type[Dialogue], pieces: Sequence[bytes], owed: int) -> tuple[list[tuple[int, str]], str]:
    """(replies, why it ended)."""

    async def run() -> tuple[list[tuple[int, str]], str]:
        talk = make(Wire())
        talk.say(replies=owed)
        for piece in pieces:
            talk.data_received(piece)
        return [(said.code, str(said.reply)) for said in talk._replies], str(talk.ended)

    return asyncio.run(run())


@settings(deadline=None, max_examples=300)
@given(st.lists(st.one_of(USUAL, LINE), max_size=6), st.integers(0, 5), st.lists(st.integers(0, 60), max_size=4))
def test_what_is_usual_is_read_as_anything_else(lines: list[bytes], owed: int, cuts: list[int]) -> None:
    text = b"".join(lines)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(places)]
    whole = heard(Plain, [text], owed)
    assert heard(Dialogue, pieces, owed) == whole
    assert heard(Dialogue, [text], owed) == whole
    assert heard(Dialogue, [bytes([b]) for b in text], owed) == whole


# -- floods, and the end


@pytest.mark.parametrize(
    ("flood", "why"),
    [
        (b"250-" + b"x" * 1000 + b"\r\n", TOO_LONG),
        (b"250-\r\n", TOO_LONG),
        (b"x" * 1000, TOO_LONG),
        (b"250 ok\r\n", TOO_MANY),
        (b"250 " + b"x" * 9000 + b"\r\n", TOO_LONG),
    ],
    ids=["lines", "empty lines", "no end", "replies", "long line"],
)
async def test_what_does_not_end_ends_the_session_in_bounded_memory(flood: bytes, why: object) -> None:
    wire = Wire()
    talk = Dialogue(wire)
    talk.say(b"x", replies=3)
    fed = 0
    while talk.ended is None:
        talk.data_received(flood)
        fed += len(flood)
        kept = len(talk._part) + sum(map(len, talk._lines)) + sum(len(said.text) for said in talk._replies)
        assert kept <= MAX_REPLY + MAX_LINE + 2 * len(flood) and fed < 200_000
    assert talk.ended is why and wire.aborted
    talk.data_received(flood)
    assert len(talk._replies) <= 3 and not talk._part and not talk._lines


async def test_what_was_said_before_the_end_is_heard_and_nothing_after() -> None:
    talk = Dialogue(Wire())
    talk.say(b"x", replies=3)
    talk.data_received(b"250 one\r\n421 going\r\n25")
    talk.connection_lost(None)
    talk.data_received(b"0 three\r\n")
    assert [(await talk.reply(1.0)).code for _ in range(3)] == [250, 421, 0]
    assert talk.ended is LOST and (await talk.drained(1.0)) is LOST


async def test_one_timer_for_every_wait_and_none_after_the_end() -> None:
    talk = Dialogue(Wire())
    talk.say(b"x", replies=9)
    loop, rang = asyncio.get_running_loop(), []
    for timeout in (300.0, 0.02, 200.0, 0.03):
        started = loop.time()
        said = await talk.reply(timeout) if timeout < 1 else None
        if said is None:
            waiting = asyncio.ensure_future(talk.reply(timeout))
            await asyncio.sleep(0.005)
            talk.data_received(b"250 ok\r\n")
            assert (await waiting).code == 250
        else:
            assert said.trouble is SILENT
            rang.append(loop.time() - started)
    assert all(0.015 < seconds < 100.0 for seconds in rang)
    waiting = asyncio.ensure_future(talk.reply(60.0))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert talk._heard is None
    talk.pause_writing()
    assert await talk.drained(0.01) is SILENT
    draining = asyncio.ensure_future(talk.drained(60.0))
    await asyncio.sleep(0)
    talk.resume_writing()
    assert await draining is None
    talk.end()
    assert talk._alarm is None
