"""What a benchmark's runs come to: medians, ratios of medians, goals."""

from __future__ import annotations

import pytest

from benchmarks.bench import steps
from benchmarks.report import GOALS, Run, bars, goals, judge, number, peers_of, quantile, rows, table

TITLES = {"kept10": "ten sessions", "latency": "a steady rate", "memory": "fifty sessions"}


def runs(mode: str, measure: str, **values: list[float]) -> list[Run]:
    return [Run(mode, peer, n, {measure: v}) for peer, found in values.items() for n, v in enumerate(found)]


def test_ratio_is_of_medians() -> None:
    """Not the median of the rounds' ratios, which would be 4."""
    (row,) = rows(runs("kept10", "relayed", relay=[900, 800, 100], postfix=[300, 100, 25]))
    assert row.medians == {"relay": 800, "postfix": 100}
    assert row.spans == {"relay": (100, 900), "postfix": (25, 300)}
    assert row.ratio("postfix") == 8


def test_what_was_not_measured_has_no_ratio() -> None:
    (row,) = rows(runs("kept10", "relayed", relay=[900]))
    assert row.ratio("postfix") is None
    (row,) = rows(runs("kept10", "relayed", postfix=[900]))
    assert row.ratio("postfix") is None
    (row,) = rows(runs("kept10", "relayed", relay=[900], postfix=[0]))
    assert row.ratio("postfix") is None


@pytest.mark.parametrize(
    ("mode", "measure", "relay", "met"),
    [
        ("kept10", "relayed", 500, True),
        ("kept10", "relayed", 499, False),
        ("fresh", "relayed", 350, True),
        ("100k", "relayed", 169, False),
        ("latency", "submit_p99", 100, True),
        ("latency", "submit_p99", 101, False),
        ("memory", "peak", 50, True),
        ("memory", "peak", 51, False),
    ],
)
def test_goals(mode: str, measure: str, relay: float, met: bool) -> None:
    """More is better of a rate, less of a time or a size."""
    judged = judge(rows(runs(mode, measure, relay=[relay], postfix=[100])))
    assert [j.met for j in judged if (j.goal.mode, j.goal.measure) == (mode, measure)] == [met]
    assert sum(j.met is None for j in judged) == len(GOALS) - 1
    assert goals(judged).count("not measured") == len(GOALS) - 1


def test_quantile_is_a_value_that_was_seen() -> None:
    values = [float(n) for n in range(400, 0, -1)]
    assert quantile(values, 0.5) == 200
    assert quantile(values, 0.99) == 396
    assert quantile(values, 1.0) == 400
    assert quantile([7.0], 0.5) == quantile([7.0], 0.99) == 7.0


def test_a_table_for_people() -> None:
    found = rows(
        runs("kept10", "relayed", postfix=[100, 300, 200], relay=[1000], haraka=[50])
        + runs("latency", "submit_p50", relay=[1.234])
    )
    assert peers_of(found) == ["relay", "postfix", "haraka"]
    assert table(found, TITLES).splitlines()[2:] == [
        "| kept10 | ten sessions | relayed, messages/s | 1,000 | 200 (100–300) | 50.0 | 5.00 | 20.00 |",
        "| latency | a steady rate | submit p50, ms | 1.23 |  |  |  |  |",
    ]
    assert "relay : haraka 20.00" in bars(found, TITLES)
    assert [number(v) for v in (12345.6, 99.94, 9.994)] == ["12,346", "99.9", "9.99"]


def test_the_order_is_turned_about() -> None:
    assert steps(["kept10"], ["relay", "postfix"], 3) == [
        (0, "kept10", "relay"),
        (0, "kept10", "postfix"),
        (1, "kept10", "postfix"),
        (1, "kept10", "relay"),
        (2, "kept10", "relay"),
        (2, "kept10", "postfix"),
    ]
    assert steps(["auth"], ["relay", "haraka"], 1) == [(0, "auth", "relay")]  # which has no users of ours
