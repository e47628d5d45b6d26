"""Direct delivery while some MX hosts are dead and others slow: do the live ones get their mail as soon as if they were alone?

    python -m benchmarks.direct [--messages 5000] [--domains 500] [--rounds 3] [--connections 20] [--handed-in] [--json]

20 hosts with 25 domains each: 15 live ones, that take 20 to 50 ms at the final dot; two that take 2 s there and before they greet;
one refuses connections, one accepts them and never greets, one drops SYNs. *Alone*: only the mail of the live hosts. *All*: that
of all, in a random order. Rounds of both take turns.

All messages are stored first and due at one moment, from which the clock runs until the last has come to each live host. With
`--handed-in` it runs from the first submission; what then takes the time is mostly that there is a third more to accept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.bench import OUT
from benchmarks.lab import Outcome, Plan, run, shuffled

KINDS = ("live",) * 15 + ("slow", "slow", "refuses", "silent", "blackhole")
GOAL = 1.2  # times what the live hosts need alone


@dataclass(frozen=True)
class Row:
    """A live host, or all of them: seconds until the last message, medians of the rounds, and the least and the most."""

    host: str
    alone: float
    all: float
    spans: tuple[tuple[float, float], tuple[float, float]]

    @property
    def ratio(self) -> float:
        return self.all / self.alone


def measure(plan: Plan, rounds: int, stored: bool, progress: Callable[[str], None]) -> dict[str, list[Outcome]]:
    """The runs of `alone` and of `all`."""
    loads = {"alone": plan.to(plan.those("live")), "all": list(range(plan.messages))}
    found: dict[str, list[Outcome]] = {name: [] for name in loads}
    for number in range(rounds):
        for name in list(loads)[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory(prefix="direct-") as folder:
                done = run(plan, shuffled(loads[name], number), Path(folder), stored=stored)
            found[name].append(done)
            progress(
                f"  {name:5} {done.seconds:7.2f} s, CPU {done.cpu:.2f} s, missing {done.missing}, lost {done.lost}, "
                f"doubled {done.doubled}"
            )
    return found


def rows(found: dict[str, list[Outcome]]) -> list[Row]:
    """All live hosts, then each."""
    made = [_row("all live hosts", *([run.seconds for run in found[name]] for name in ("alone", "all")))]
    for host in found["alone"][0].last:
        made.append(_row(f"mx{host:02}", *([run.last[host] for run in found[name]] for name in ("alone", "all"))))
    return made


def _row(host: str, alone: Sequence[float], every: Sequence[float]) -> Row:
    spans = (min(alone), max(alone)), (min(every), max(every))
    return Row(host, statistics.median(alone), statistics.median(every), spans)


def table(made: Sequence[Row], found: dict[str, list[Outcome]]) -> str:
    lines = ["| | alone, s | all, s | ratio |", "|---|---:|---:|---:|"]
    lines += [f"| {row.host} | {row.alone:.2f} | {row.all:.2f} | {row.ratio:.2f} |" for row in made]
    cpu = {name: statistics.median(run.cpu for run in runs) for name, runs in found.items()}
    runs = [run for several in found.values() for run in several]
    counts = ", ".join(f"{name} {sum(getattr(run, name) for run in runs)}" for name in ("missing", "lost", "doubled"))
    met = "met" if made[0].ratio <= GOAL else "NOT MET"
    return "\n".join(
        [
            *lines,
            "",
            f"CPU of the relay: {cpu['alone']:.2f} s alone, {cpu['all']:.2f} s with all. Of all runs: {counts}.",
            f"Goal: live hosts within {GOAL:g} × the time that they need alone: {made[0].ratio:.2f}, {met}.",
        ]
    )


def draw(made: Sequence[Row], caption: str, file: Path) -> bool:
    """Two bars for each host, a whisker for the span of the rounds. False: no matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(10, 4.2))
    for i, (name, colour) in enumerate((("alone", "#5b9a57"), ("all", "#2f6fb0"))):
        values = [getattr(row, name) for row in made]
        spans = [
            [v - row.spans[i][0] for v, row in zip(values, made, strict=True)],
            [row.spans[i][1] - v for v, row in zip(values, made, strict=True)],
        ]
        places = [x - 0.2 + 0.4 * i for x in range(len(made))]
        label = "the mail of the live hosts alone" if name == "alone" else "with that of three dead and two slow hosts"
        axis.bar(places, values, 0.37, color=colour, yerr=spans, ecolor="#333333", label=label)
    for x, row in enumerate(made):
        axis.annotate(f"{row.ratio:.2f}", (x, max(high for _, high in row.spans)), (0, 2), textcoords="offset points",
                      ha="center", fontsize=7)  # fmt: skip
    axis.set_xticks(range(len(made)), [row.host.replace(" ", "\n") for row in made], fontsize=7)
    axis.set_ylabel("seconds until the last message", fontsize=8)
    axis.tick_params(axis="y", labelsize=7)
    axis.margins(y=0.2)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.legend(frameon=False, fontsize=8, ncols=2, loc="upper right")
    axis.set_title("Medians and ratios; whiskers span the rounds", fontsize=9, loc="left")
    figure.text(0.01, 0.008, caption, fontsize=6, color="#555555", wrap=True)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=5000)
    parser.add_argument("--domains", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=20, help="that the relay may have to a host")
    parser.add_argument("--handed-in", action="store_true", help="the clock begins with the first submission")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of direct.json, direct.md and direct.png")
    given = parser.parse_args()
    plan = Plan(KINDS, given.domains, given.messages, given.connections)
    known = machine.facts(None) | {"messages": plan.messages, "domains": plan.domains, "rounds": given.rounds}
    known |= {"connections": plan.connections, "clock": "from hand-in" if given.handed_in else "from due"}
    found = measure(
        plan, given.rounds, not given.handed_in, lambda line: None if given.json else print(line, flush=True)
    )
    made = rows(found)
    told = ", ".join(f"{k} {v}" for k, v in known.items())
    text = f"{table(made, found)}\n\n{told}\n"
    runs = {name: [asdict(run) | {"arrived": len(run.arrived), "rows": len(run.rows)} for run in several]
            for name, several in found.items()}  # fmt: skip
    data = {"facts": known, "rows": [asdict(row) | {"ratio": row.ratio} for row in made], "runs": runs}
    print(json.dumps(data) if given.json else f"\n{text}")
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "direct.md").write_text(text)
    (given.out / "direct.json").write_text(json.dumps(data, indent=2) + "\n")
    draw(made, told, given.out / "direct.png")
    bad = sum(run.missing + run.lost + run.doubled for several in found.values() for run in several)
    if bad or made[0].ratio > GOAL:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
