"""The results as one picture; needs matplotlib (`pip install .[bench]`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import MEASURES, RELAY, Row, number, peers_of

_COLOURS = {"relay": "#2f6fb0", "postfix": "#d98032", "haraka": "#5b9a57", "exim": "#8a6db1"}
_COLUMNS = 4
_WIDE = 20.0  # times the smallest bar; beyond it the axis is logarithmic


def draw(found: Sequence[Row], titles: Mapping[str, str], caption: str, file: Path) -> bool:
    """A panel for each mode, a group of bars for each measure, a whisker for the span of the rounds. False: no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    modes = list(dict.fromkeys(row.mode for row in found))
    columns = min(_COLUMNS, len(modes))
    lines = -(-len(modes) // columns)
    figure, axes = pyplot.subplots(lines, columns, figsize=(4.3 * columns, 3.6 * lines + 0.6), squeeze=False)
    for mode, axis in zip(modes, axes.flat, strict=False):
        _panel(axis, [row for row in found if row.mode == mode], titles[mode])
    for axis in axes.flat[len(modes) :]:
        axis.axis("off")
    peers = peers_of(found)
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=_COLOURS.get(p, "#444444")) for p in peers]
    figure.legend(handles, peers, loc="upper right", ncols=len(peers), frameon=False)
    figure.suptitle("Medians; whiskers span the rounds", x=0.01, ha="left", fontsize=11)
    figure.text(0.01, 0.008, caption, fontsize=7, color="#555555", wrap=True)
    figure.tight_layout(rect=(0, 0.03, 1, 0.97))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True


def _panel(axis, found: Sequence[Row], title: str) -> None:  # type: ignore[no-untyped-def] # matplotlib need not be there
    peers = peers_of(found)
    width = 0.8 / len(peers)
    for i, peer in enumerate(peers):
        for x, row in enumerate(found):
            if peer not in row.medians:
                continue
            value, (low, high) = row.medians[peer], row.spans[peer]
            place = x - 0.4 + width * (i + 0.5)
            span = [[value - low], [high - value]]
            axis.bar(place, value, width * 0.92, color=_COLOURS.get(peer, "#444444"), yerr=span, ecolor="#333333")
            axis.annotate(number(value), (place, high), (0, 2), textcoords="offset points", ha="center", fontsize=7)
    measures = [MEASURES[row.measure] for row in found]
    others = [p for p in peers if p != RELAY]
    labels = [m.title for m in measures]
    if len(others) == 1:  # with more there is no room
        ratios = [row.ratio(others[0]) for row in found]
        labels = [f"{text}\n{r:.2f} × {others[0]}" if r else text for text, r in zip(labels, ratios, strict=True)]
    axis.set_xticks(range(len(found)), labels, fontsize=8)
    better = "" if measures[0].more else " (less is better)"
    axis.set_ylabel(f"{measures[0].unit}{better}", fontsize=8)
    axis.set_title(title, fontsize=9)
    medians = [value for row in found for value in row.medians.values()]
    if max(medians) > _WIDE * min(medians):
        axis.set_yscale("log")
    axis.margins(y=0.15)
    axis.tick_params(axis="y", labelsize=7)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
