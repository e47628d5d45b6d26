"""What became of a domain's hosts in one attempt to reach them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from relay.deliver.smtp import Failure
from relay.nexthop.policy import Unsafe
from relay.reply import clean


@dataclass(slots=True)
class Tried:
    """What became of the hosts of one attempt. `dials` is asked before each connection."""

    domain: str
    dials: Callable[[], None] = lambda: None
    notes: list[str] = field(default_factory=list)
    network: Failure | None = None  # of a host that could be reached another time
    unsafe: Unsafe | None = None
    passing: bool = False  # the DNS had no answer for a host, or it was not its turn
    sourceless: bool = False  # there is one, and no source for its family
    refused: int = 0  # hosts that take no mail at all (RFC 7504)
    ours: int = 1 << 16  # the place among the preferences where we stand ourselves

    def more(self, what: str) -> None:
        """Not all was tried that can be: nothing is settled yet."""
        self.passing = True
        self.notes.append(f"{what} are left for the next attempt")

    @property
    def text(self) -> str:
        return clean("; ".join(dict.fromkeys(self.notes)))


def at(host: str, address: str) -> str:
    """A host at one of its addresses; an address literal is both."""
    return host if host.startswith("[") else f"{host}[{address}]"
