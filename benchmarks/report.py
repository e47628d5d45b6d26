"""What the runs come to: medians, ratios, goals, a table. Pure.

A ratio is one of medians: the relay's median of all rounds by the other's. Rounds are not paired, for what differs between
two of them is noise of the machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

RELAY = "relay"


@dataclass(frozen=True)
class Run:
    """One server under one load, once. `values`: by names of MEASURES."""

    mode: str
    peer: str
    round: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    title: str
    unit: str
    more: bool = True  # is better


MEASURES = {
    "accepted": Measure("accepted", "messages/s"),
    "relayed": Measure("relayed", "messages/s"),
    "submit_p50": Measure("submit p50", "ms", more=False),
    "submit_p99": Measure("submit p99", "ms", more=False),
    "relay_p50": Measure("relay p50", "ms", more=False),
    "relay_p99": Measure("relay p99", "ms", more=False),
    "peak": Measure("peak PSS", "MiB", more=False),
}


@dataclass(frozen=True)
class Goal:
    """The relay's median is at least (or, where less is better, at most) `factor` times Postfix'."""

    mode: str
    measure: str
    factor: float

    @property
    def text(self) -> str:
        measure = MEASURES[self.measure]
        return f"{self.mode}: {measure.title} {'≥' if measure.more else '≤'} {self.factor:g} × Postfix'"


GOALS = (
    Goal("kept10", "relayed", 5),
    Goal("kept50", "relayed", 5),
    Goal("fresh", "relayed", 3.5),
    Goal("kept50", "accepted", 5),
    Goal("100k", "relayed", 1.7),
    Goal("signed", "relayed", 3.5),
    Goal("latency", "submit_p50", 1),
    Goal("latency", "submit_p99", 1),
    Goal("memory", "peak", 0.5),
)


@dataclass(frozen=True)
class Row:
    """One measure of one mode: of each server the median and the span of its rounds."""

    mode: str
    measure: str
    medians: Mapping[str, float]
    spans: Mapping[str, tuple[float, float]]

    def ratio(self, peer: str) -> float | None:
        """The relay's median by another's; None where either is missing."""
        own, other = self.medians.get(RELAY), self.medians.get(peer)
        return own / other if own is not None and other else None


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least the share `q` of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * round(q * 1000) // 1000)
    return ordered[max(0, rank - 1)]


def rows(runs: Sequence[Run]) -> list[Row]:
    """In the order in which modes and measures were first met."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        for measure, value in run.values.items():
            found.setdefault((run.mode, measure), {}).setdefault(run.peer, []).append(value)
    return [
        Row(
            mode,
            measure,
            {peer: statistics.median(values) for peer, values in by_peer.items()},
            {peer: (min(values), max(values)) for peer, values in by_peer.items()},
        )
        for (mode, measure), by_peer in found.items()
    ]


def peers_of(found: Sequence[Row]) -> list[str]:
    """Who was measured, the relay first."""
    return sorted(dict.fromkeys(p for row in found for p in row.medians), key=lambda p: p != RELAY)


@dataclass(frozen=True)
class Judged:
    """`met` None: it was not measured."""

    goal: Goal
    ratio: float | None
    met: bool | None

    @property
    def text(self) -> str:
        if self.ratio is None:
            return "not measured"
        return f"{self.ratio:.2f}, {'met' if self.met else 'not met'}"


def judge(found: Sequence[Row]) -> list[Judged]:
    by_key = {(row.mode, row.measure): row for row in found}
    judged = []
    for goal in GOALS:
        row = by_key.get((goal.mode, goal.measure))
        ratio = row.ratio("postfix") if row else None
        met = None
        if ratio is not None:
            met = ratio >= goal.factor if MEASURES[goal.measure].more else ratio <= goal.factor
        judged.append(Judged(goal, ratio, met))
    return judged


def number(value: float) -> str:
    """Three figures at least, none that mean nothing."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(found: Sequence[Row], titles: Mapping[str, str]) -> str:
    """Markdown: a row for each measure of each mode, a column for each server and one for each ratio."""
    peers = peers_of(found)
    others = [p for p in peers if p != RELAY]
    head = ["", "load", "measure", *(f"{p}" for p in peers), *(f"relay : {p}" for p in others)]
    lines = [f"| {' | '.join(head)} |", f"|---|---|---|{'---:|' * (len(peers) + len(others))}"]
    for row in found:
        measure = MEASURES[row.measure]
        cells = [row.mode, titles[row.mode], f"{measure.title}, {measure.unit}"]
        cells += [_cell(row, p) for p in peers]
        cells += ["" if (r := row.ratio(p)) is None else f"{r:.2f}" for p in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row, peer: str) -> str:
    if peer not in row.medians:
        return ""
    low, high = row.spans[peer]
    span = "" if low == high else f" ({number(low)}–{number(high)})"
    return number(row.medians[peer]) + span


def bars(found: Sequence[Row], titles: Mapping[str, str], width: int = 40) -> str:
    """For a terminal: each measure's medians as bars, as long as the largest of them allows."""
    lines = []
    for row in found:
        measure = MEASURES[row.measure]
        less = "" if measure.more else "; less is better"
        lines.append(f"  {row.mode}: {titles[row.mode]}; {measure.title}, {measure.unit}{less}")
        most = max(row.medians.values()) or 1.0
        for peer in peers_of([row]):
            value = row.medians[peer]
            ratio = row.ratio(peer)
            told = "" if peer == RELAY or ratio is None else f"   relay : {peer} {ratio:.2f}"
            lines.append(f"    {peer:8} {'█' * round(width * value / most):{width}} {number(value):>8}{told}")
    return "\n".join(lines)


def goals(judged: Sequence[Judged]) -> str:
    """Markdown."""
    lines = ["| goal | relay : Postfix |", "|---|---|"]
    return "\n".join([*lines, *(f"| {j.goal.text} | {j.text} |" for j in judged)])
