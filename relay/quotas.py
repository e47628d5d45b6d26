"""What is counted as mail is accepted, and refuses it where it is used up: limits with `when_full: reject`.

All other limits are counted as mail leaves (scheduler.bounds): what they hold back is accepted, and waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from relay.envelope import ascii_domain, domain_of
from relay.policy.held import Held
from relay.policy.limits import Meter, Meters, Per, Row
from relay.policy.routing import Facts
from relay.settings import Config
from relay.submission import BadMessage

Full = Callable[[str, int, float], Held]


class Known(Protocol):
    """What is known of senders: the scheduler."""

    def score(self, sender: str) -> float:
        """How the mail of a reverse-path's domain fares, 1 at best (policy.reputation)."""


@dataclass(slots=True)
class Charge:
    """What a message was counted against; `give_back` where it is not accepted in the end."""

    when: float
    size: int
    meters: Counter[Meter] = field(default_factory=Counter)  # recipients

    def rows(self) -> list[Row]:
        """To be kept with the message."""
        return [row for meter in self.meters for row in meter.rows()]

    def give_back(self) -> None:
        for meter, recipients in self.meters.items():
            meter.take_back(self.when, recipients, self.size)


class Quotas:
    """`kept`: what earlier runs have counted, by key."""

    def __init__(self, config: Config, kept: Callable[[str], Sequence[tuple[float, int]]], full: Full) -> None:
        """`full`: how long so many recipients would wait for the limits of an egress (its name) that refuse."""
        self._full, self._kept = full, kept
        self._meters = Meters((), kept)
        self.apply(config)

    def apply(self, config: Config) -> None:
        self._config = config
        self._meters.reload([limit for limit in config.limits if limit.at_the_door])
        self._refusing = frozenset(
            a.name for a in config.accounts.values() if any(rate.when_full == "reject" for rate in a.limits)
        )
        self.none = not self._meters.limits and not self._refusing

    def meters(self) -> Iterable[Meter]:
        """All that count."""
        return self._meters.all()

    def check(self, facts: Facts, counted: dict[Meter, int], now: float) -> BadMessage | None:
        """Why one recipient more is not taken, at RCPT; what hangs on the content is not asked yet. `counted`: the message's
        recipients before him, by who counts them."""
        meters = tuple(self._of(facts, now))
        for meter in meters:
            rate, recipients = meter.limit.rate, counted.get(meter, 0) + 1
            if rate.unit == "recipients" and recipients > rate.count:  # RFC 5321 §4.5.3.1.10: the others come later
                return BadMessage(452, "4.5.3", f"too many recipients: {meter.rule}")
            if refused := _refusal(meter.wait(now, recipients)):
                return refused
        for meter in meters:
            counted[meter] = counted.get(meter, 0) + 1
        return None

    def take(self, wanted: Sequence[tuple[Facts, str]], size: int, now: float) -> Charge:
        """A whole message: each recipient's facts and the egress that it would leave by first. Raises BadMessage."""
        charge = Charge(now, size)
        for facts, _ in wanted:
            charge.meters.update(self._of(facts, now))
        for meter, recipients in charge.meters.items():
            _check(meter.wait(now, recipients, size))
        for egress, recipients in Counter(egress for _, egress in wanted if egress in self._refusing).items():
            held = self._full(egress, recipients, now)
            _check(held._replace(why=f"{egress}: {held.why}"))
        for meter, recipients in charge.meters.items():
            meter.take(now, recipients, size)
        return charge

    def _of(self, facts: Facts, now: float) -> Iterable[Meter]:
        if not self._meters.limits:
            return ()
        return self._meters.of(lambda q: q.ask(facts), self._values(facts), now, door=True)

    def _values(self, facts: Facts) -> Mapping[Per, str | None]:
        return {
            "sender": facts.sender.lower(),
            "from": None if facts.from_ is None else ascii_domain(domain_of(facts.from_)),
            "user": facts.user,
            "tenant": self._config.tenant_of.get(facts.user, ""),
            "class": facts.class_,
            "destination": ascii_domain(domain_of(facts.recipient)),
            "egress": "",
        }


def _refusal(held: Held) -> BadMessage | None:
    if held.seconds <= 0:
        return None
    return BadMessage(452, "4.7.1", f"{held.why}; try again in {max(1, round(held.seconds))} s")


def _check(held: Held) -> None:
    if refused := _refusal(held):
        raise refused
