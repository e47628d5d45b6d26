"""How much a client or a user may send, counted at the door. Counts outlive a reload; rules are looked up anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.policy.rate import Rate, Spent

MAX_KEPT = 10_000  # counters, before those that are empty are thrown away
_NOTHING = Spent()


@dataclass(frozen=True, slots=True)
class Allowance:
    """A rate and whose it is, such as `user shop` or `client 192.0.2.1`."""

    whose: str
    rate: Rate


class Full(Exception):
    """The rate that is spent, and when there is room again; the text is for the client."""

    def __init__(self, allowance: Allowance, seconds: float) -> None:
        super().__init__(f"{allowance.whose} has sent its {allowance.rate}; try again in {max(1, round(seconds))} s")


class Allowances:
    """Counters by whose they are and which rate."""

    def __init__(self) -> None:
        self._spent: dict[Allowance, Spent] = {}

    def check(self, allowances: Sequence[Allowance], recipients: int, now: float) -> None:
        """Raises Full where one message more, or so many recipients, do not fit now. Spends nothing."""
        for allowance in allowances:
            spent = self._spent.get(allowance, _NOTHING)
            if seconds := spent.wait(allowance.rate, _count(allowance.rate, recipients), now):
                raise Full(allowance, seconds)

    def take(self, allowances: Sequence[Allowance], recipients: int, now: float) -> None:
        """Spend one message with so many recipients; all or nothing. Raises Full."""
        self.check(allowances, recipients, now)
        if len(self._spent) > MAX_KEPT:
            self._spent = {key: spent for key, spent in self._spent.items() if not spent.empty(now)}
        for allowance in allowances:
            spent = self._spent.setdefault(allowance, Spent())
            spent.add(allowance.rate, _count(allowance.rate, recipients), now)

    def give_back(self, allowances: Sequence[Allowance], recipients: int, when: float) -> None:
        """What was taken at `when` for a message that was not accepted."""
        for allowance in allowances:
            if spent := self._spent.get(allowance):
                spent.take_back(allowance.rate, _count(allowance.rate, recipients), when)


def _count(rate: Rate, recipients: int) -> int:
    return 1 if rate.unit == "messages" else recipients
