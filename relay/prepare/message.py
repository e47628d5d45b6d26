"""A message on its way out: what is asked of it, and what it became."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from relay.envelope import EIGHT_BIT, LONG_LINES, NUL
from relay.outgoing.rewrite import Rewrite
from relay.policy.alignment import Verdict
from relay.reply import Reply
from relay.settings import Account, Config, is_loopback
from relay.signing.rules import Choice

_NEVER_TAKEN = LONG_LINES | NUL


class CannotLeave(Exception):
    """Why it can't be sent by this egress: code 5xx, never; 4xx, not now."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


@dataclass(slots=True)
class Outbound:
    """One transaction's message as the spool keeps it."""

    message: int
    n: int  # its first recipient's
    sender: str
    recipient: str  # the first
    head: bytes
    body: bytes | Path
    size: int
    needs: int  # EIGHT_BIT | UTF8 | LONG_LINES
    accepted_at: float
    user: str = ""
    class_: str = ""
    tag: str = ""
    late: bool = False  # it has waited long enough for the DNS to say what its signatures are worth


@dataclass(slots=True)
class Ready:
    """As it leaves."""

    sender: str
    head: bytes
    body: bytes | Path
    size: int
    needs: int
    changes: tuple[str, ...] = ()  # for people, in the order in which they were made
    signed: tuple[str, ...] = ()  # SELECTOR._domainkey.DOMAIN of each signature
    temporary: Path | None = None  # the body, where it was re-encoded into a file: to be removed after the try
    converted: bool = False
    from_domain: str = ""
    domains: list[str] = field(default_factory=list)  # d= of each signature
    algorithms: list[str] = field(default_factory=list)
    choice: Choice = field(default_factory=Choice)
    verdict: Verdict | None = None

    @property
    def story(self) -> tuple[str, ...]:
        """What was done to it, a line each."""
        return (*self.changes, *(f"signed by {name}" for name in self.signed))

    def done(self) -> None:
        """The try is over."""
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the configuration wants of a route and an egress."""

    config: Config
    rewrite: Rewrite | None
    signs: bool  # some entry of `signing` may sign
    seals: bool
    tells: bool  # of what leaves unsigned

    @property
    def apart(self) -> bool:
        """Whether each recipient gets a message of his own."""
        return self.rewrite is not None and self.rewrite.per_recipient

    def keeps(self, needs: int, seven_bit: bool) -> bool:
        """Whether a message with such `needs` leaves as it is."""
        return self.rewrite is None and not self.signs and not self.seals and not to_convert(needs, seven_bit)


def plan_of(config: Config, route: str, account: Account) -> Plan:
    signs = bool(config.signing.rules) and not account.signs
    return Plan(
        config,
        config.rewrites.get(route),
        signs,
        config.arc is not None and route in config.arc.routes,
        # What goes to a server on this machine has not left it.
        not account.signs and (signs or not is_loopback(account.host)),
    )


def to_convert(needs: int, seven_bit: bool) -> bool:
    """Whether its next hop does not take it as it is."""
    return bool(needs & (_NEVER_TAKEN | EIGHT_BIT if seven_bit else _NEVER_TAKEN))
