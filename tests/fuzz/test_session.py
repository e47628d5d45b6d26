"""The session against whatever comes: no exception, one well-formed reply for each command, nothing left behind.

CI runs this for some seconds; `make storm` a million inputs (STORM_INPUTS), and coverage-guided where atheris is.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from grammar import ENDINGS, ENVELOPE, OPENING, OTHER, Sessions, from_corpora
from harness import Harness, judge
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def harness() -> Iterator[Harness]:
    with Harness() as made:
        yield made


COMMANDS = st.sampled_from([*OPENING, *ENVELOPE, *OTHER, *ENDINGS, b"Subject: x\r\n\r\nbody"])
CHUNKS = st.lists(st.one_of(COMMANDS, COMMANDS, st.binary(max_size=40)), max_size=14)


@settings(max_examples=1500, deadline=None)
@given(chunks=CHUNKS)
def test_grammar(harness: Harness, chunks: list[bytes]) -> None:
    harness.check(chunks)


@settings(max_examples=300, deadline=None)
@given(said=CHUNKS.map(b"".join), cut=st.integers(0, 300))
def test_cuts_change_nothing(harness: Harness, said: bytes, cut: int) -> None:
    """Except where STARTTLS is: what comes with it in one segment is refused."""
    if b"STARTTLS" not in said.upper():
        harness.done += harness.done % 2
        whole = harness.check([said])
        harness.done += 1
        pieces = harness.check([said[:cut], said[cut:]])
        assert without_ids(pieces) == without_ids(whole)


def without_ids(out: bytes) -> list[bytes]:
    return [line.partition(b" queued as ")[0] for line in out.splitlines()]


def share(seed: int, corpora: Path, count: int) -> int:
    """So many sessions in this process; how many messages came of them."""
    with Harness() as harness:
        try:
            assert harness.many(Sessions(seed, from_corpora(corpora), count)) == count
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from None
        return harness.accepted


@pytest.mark.storm
def test_many_at_random(corpora: Path) -> None:
    count = int(os.environ.get("STORM_INPUTS", "6000"))
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    workers = min(8, os.cpu_count() or 1)
    began = time.monotonic()
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        shares = [pool.submit(share, seed + i, corpora, count // workers) for i in range(workers)]
        accepted = sum(done.result() for done in shares)
    seconds = time.monotonic() - began
    if os.environ.get("STORM_SHOW"):
        print(f"\nfuzz: {count} sessions, {accepted} messages, {count / seconds:.0f} a second, seed {seed}")
    assert accepted > count // 50  # else they end too soon to say much


@pytest.mark.parametrize(
    ("said", "out"),
    [
        (b"NOOP\r\n", b""),
        (b"NOOP\r\n", b"250 Ok\r\n250 Ok\r\n"),
        (b"NOOP\r\n", b"250 Ok\n"),
        (b"NOOP\r\n", b"250 \x1b[31m\r\n"),
        (b"NOOP\r\n", b"250-a\r\n251 b\r\n"),
        (b"NOOP\r\n", b"451 ValueError('x')\r\n"),
        (b"NOOP\r\n", b"250 " + b"x" * 509 + b"\r\n"),
        (b"", b"250 Ok\r\n"),
        (b"DATA\r\nx\r\n.\r\n", b"354 go\r\n"),
        (b"DATA\r\nx\r\n.\r\nNOOP\r\n", b"354 go\r\n250 Ok\r\n"),
        (b"x" * 5000, b""),
    ],
)
def test_the_judge_sees_what_is_wrong(said: bytes, out: bytes) -> None:
    with pytest.raises(AssertionError):
        judge(said, b"220 x\r\n" + out, b"220 x\r\n")
