"""What is asked of a simulation, as the command line and the API say it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from relay.policy.gate import FOREVER
from relay.settings import Config
from relay.simulate.plans import wave
from relay.simulate.run import Left, Simulation
from relay.simulate.snapshot import Snapshot
from relay.simulate.traffic import Traffic, Wave


def many(given: Mapping[str, str], count: int, start: float) -> Wave:
    """So many messages of one kind; `given`: by the columns of a plan, but `over` for `spread`. Raises ValueError."""
    return wave({"spread": given.get("over", ""), **given, "count": str(count)}, start)


def made(
    config: Config, start: float, seconds: float, waves: Sequence[Wave], snapshot: Snapshot | None
) -> tuple[Simulation, Traffic]:
    """It begins when the queue was looked at; without one with the first of what is planned."""
    if snapshot is None:
        simulation = Simulation(config, min([each.at for each in waves], default=start), seconds)
    else:
        simulation = Simulation(config, snapshot.now, seconds, snapshot.spent, snapshot.documents, snapshot.hosts)
        snapshot.put(simulation)
    return simulation, Traffic(simulation)


def leaving(
    simulation: Simulation, traffic: Traffic, waves: Iterable[Wave], until: float | None = None
) -> Iterator[Left]:
    """What leaves, in order, as it leaves; it ends at `until` at the latest."""
    return simulation.run(traffic.arrivals(waves), FOREVER if until is None else until)
