"""A picture of what leaves when, as SVG 1.1: above messages by egress, one on the other, and below how many wait."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape

from relay.simulate.result import Series

WIDTH, HEIGHT = 960, 560
LEFT, RIGHT, TOP, BETWEEN, BOTTOM = 70, 50, 70, 46, 40
# Okabe and Ito's colours, which people who see few colours tell apart.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#999999")
MOST = len(COLOURS)  # egresses; more of them are drawn as one


def svg(series: Series, title: str) -> str:
    """The document."""
    rows = _most(series)
    half = (HEIGHT - TOP - BOTTOM - BETWEEN) / 2
    above, below = TOP + half, TOP + half + BETWEEN + half
    sums = [sum(column) for column in zip(*rows.values(), strict=True)] or [0]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
        *_axis(above, half, max(sums), f"leave in {_span(series.step)}"),
        *_axis(below, half, max(series.waiting, default=0), "wait"),
        *_bars(rows, above, half, _top(max(sums))),
        *_line(series.waiting, below, half, _top(max(series.waiting, default=0))),
        *_times(series, above, below, half),
    ]
    x = float(LEFT)
    for (name, _), colour in zip(rows.items(), COLOURS, strict=False):
        parts.append(f'<rect x="{x:.1f}" y="30" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14:.1f}" y="39">{escape(name[:40])}</text>')
        x += 26 + 6.5 * min(40, len(name))
    return "\n".join([*parts, "</svg>\n"])


def _most(series: Series) -> dict[str, Sequence[int]]:
    names = sorted(series.left, key=lambda name: -sum(series.left[name]))
    rows: dict[str, Sequence[int]] = {name: series.left[name] for name in names[:MOST]}
    if len(names) > MOST:
        last = names[MOST - 1 :]
        del rows[last[0]]
        rows[f"{len(last)} others"] = [sum(column) for column in zip(*(series.left[n] for n in last), strict=True)]
    return rows


def _top(most: int) -> int:
    """The end of an axis: 1, 2 or 5 with zeros."""
    unit = 1
    while True:
        for times in (1, 2, 5):
            if times * unit >= max(1, most):
                return times * unit
        unit *= 10


def _axis(base: float, height: float, most: int, label: str) -> list[str]:
    top, end = _top(most), WIDTH - RIGHT
    lines = [f'<text x="{LEFT}" y="{base - height - 6:.1f}" fill="#555555">{escape(label)}</text>']
    for share in (0.0, 0.5, 1.0):
        y = base - height * share
        lines.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}" stroke="#dddddd"/>')
        lines.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * share:g}</text>')
    return lines


def _bars(rows: dict[str, Sequence[int]], base: float, height: float, top: int) -> list[str]:
    count = max((len(row) for row in rows.values()), default=1)
    width, under, made = (WIDTH - LEFT - RIGHT) / count, [0] * count, []
    for row, colour in zip(rows.values(), COLOURS, strict=False):
        for i, value in enumerate(row):
            if value:
                tall, y = height * value / top, base - height * (under[i] + value) / top
                x = LEFT + i * width
                made.append(f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{tall:.2f}" fill="{colour}"/>')
                under[i] += value
    return made


def _line(values: Sequence[int], base: float, height: float, top: int) -> list[str]:
    width = (WIDTH - LEFT - RIGHT) / max(1, len(values))
    points = " ".join(f"{LEFT + (i + 1) * width:.2f},{base - height * v / top:.2f}" for i, v in enumerate(values))
    return [f'<polyline points="{points}" fill="none" stroke="#333333" stroke-width="1.5"/>']


def _times(series: Series, above: float, below: float, height: float) -> list[str]:
    count = len(series.waiting)
    span, made = count * series.step, []
    form = "%H:%M:%S" if span < 600 else "%H:%M" if span < 2 * 86400 else "%m-%d %H:%M"
    for i in range(7):
        x = LEFT + (WIDTH - LEFT - RIGHT) * i / 6
        at = datetime.fromtimestamp(series.start + span * i / 6).astimezone()
        for base in (above, below):
            made.append(f'<line x1="{x:.1f}" y1="{base:.1f}" x2="{x:.1f}" y2="{base + 4:.1f}" stroke="#555555"/>')
        made.append(f'<text x="{x:.1f}" y="{below + 17:.1f}" text-anchor="middle">{at.strftime(form)}</text>')
    return made


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s"
