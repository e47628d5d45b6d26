"""Pools: by weight, sticky, and who goes moves nobody else's mail."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.draw import draw, order

POOL = (("mx-1", 3), ("mx-2", 1), ("mx-3", 4))
KEYS = [b"1PGWBZ%05d" % n for n in range(100_000)]

members = st.lists(
    st.tuples(st.text(min_size=1, max_size=8), st.integers(1, 100)), min_size=1, max_size=8, unique_by=lambda m: m[0]
)


def test_each_gets_its_share() -> None:
    drawn = Counter(draw(POOL, key) for key in KEYS)
    for name, weight in POOL:
        assert drawn[name] / len(KEYS) == pytest.approx(weight / 8, rel=0.03)


def test_who_comes_or_goes_moves_its_own_share_alone() -> None:
    before = [draw(POOL, key) for key in KEYS[:20_000]]
    after = [draw(POOL[:2], key) for key in KEYS[:20_000]]
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "mx-3")
    moved = Counter(new for old, new in zip(before, after, strict=True) if old == "mx-3")
    assert moved["mx-1"] / moved.total() == pytest.approx(0.75, abs=0.02), "what it had is shared by weight too"


def test_a_greater_weight_only_takes() -> None:
    heavier = (("mx-1", 6), *POOL[1:])
    for key in KEYS[:20_000]:
        assert draw(heavier, key) in (draw(POOL, key), "mx-1")


@given(members, st.binary(max_size=40), st.randoms())
def test_the_same_in_any_order_and_one_of_them(pool: list[tuple[str, int]], key: bytes, lot: object) -> None:
    shuffled = list(pool)
    lot.shuffle(shuffled)  # type: ignore[attr-defined]
    assert draw(pool, key) == draw(shuffled, key)
    assert draw(pool, key) in dict(pool)


@given(st.binary(max_size=40))
def test_a_weight_of_nothing_is_drawn_by_nobody(key: bytes) -> None:
    assert draw((("off", 0), ("on", 1)), key) == "on"


def test_the_choice_is_the_same_in_every_version() -> None:
    # Were it another, an update would send mail that waits from other addresses than those that greylists know by now.
    assert "".join(draw(POOL, b"1PGWBZ%05d" % n)[-1] for n in range(12)) == "112333333111"


def test_nobody_to_draw() -> None:
    with pytest.raises(ValueError):
        draw((), b"key")


def test_who_takes_over() -> None:
    assert order(POOL, "mx-2") == ("mx-2", "mx-3", "mx-1")
    assert order(POOL, "mx-3") == ("mx-3", "mx-1", "mx-2")
    assert order((("a", 1), ("b", 1), ("c", 1)), "b") == ("b", "a", "c")
