"""What somebody should look at: told once when it begins and once when it is over, however often it is met meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from relay import clock, metrics
from relay.maillog import MailLog

MOST = 1000  # at once; of more the oldest is forgotten

ALARMS = metrics.Gauge("relay_alarms", "Alarms that are not over, by what they are about", ["what"])


@dataclass(frozen=True, slots=True)
class Alarm:
    what: str  # such as `failed_over`
    about: str  # an egress
    since: float
    why: str


class Alarms:
    def __init__(self, log: MailLog) -> None:
        self.log = log
        self.open: dict[tuple[str, str], Alarm] = {}
        ALARMS.source = self._counts

    def _counts(self) -> list[tuple[tuple[str, ...], float]]:
        kinds = {alarm.what for alarm in self.open.values()}
        return [((kind,), float(sum(alarm.what == kind for alarm in self.open.values()))) for kind in sorted(kinds)]

    def begin(self, what: str, about: str, why: str, **more: Any) -> None:
        if (what, about) in self.open:
            return
        while len(self.open) >= MOST:
            self.open.pop(next(iter(self.open)))
        self.open[what, about] = Alarm(what, about, clock.now(), why)
        self.log.error("alarm", what=what, egress=about, why=why, **more)

    def end(self, what: str, about: str) -> None:
        alarm = self.open.pop((what, about), None)
        if alarm is not None:
            self.log.event("alarm_over", what=what, egress=about, seconds=round(clock.now() - alarm.since, 1))

    def rows(self) -> list[dict[str, Any]]:
        return [{"what": a.what, "egress": a.about, "since": a.since, "why": a.why} for a in self.open.values()]
