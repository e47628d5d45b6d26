"""One transaction on its way through the carriers: what was claimed, where it may still go, and the message as it leaves."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from relay.deliver.content import Content, ContentError
from relay.deliver.smtp import Failure, Parcel
from relay.envelope import ascii_domain, domain_of
from relay.policy.limits import Meter
from relay.policy.routing import Route
from relay.prepare.message import CannotLeave, Outbound, Plan, Ready
from relay.prepare.preparer import Preparer
from relay.reply import Stage
from relay.settings import Account
from relay.spool import Claim, Claimed, Notify

if TYPE_CHECKING:
    from relay.scheduler.lanes import Lane


@dataclass(slots=True)
class Work:
    """A claim, or the share of its recipients that fits one transaction."""

    claim: Claim
    recipients: list[Claimed]
    route: Route
    egresses: tuple[str, ...]  # still to be tried, the current one first
    tried: list[tuple[str, str]] = field(default_factory=list)
    plan: Plan | None = None  # what is done to it on its way by the current egress
    kept: bool = True  # nothing
    begun: asyncio.Task[Ready] | None = None  # it is being made ready, for the current egress
    seven_bit: bool = False  # as one that takes no other
    began: float = 0.0  # when the last transaction of it began, or the dial for it
    asks: int = 0  # the pace of its account for so many
    paced: bool = False  # it is under way by that
    turn: float = 0.0  # since when
    ends: bool = False  # a rule of `shaping` ends the session that heard the reply to it
    remote: str = ""  # the host that it was said to, where it leaves by MX, and what TLS was had
    security: str = ""
    ready: Ready | None = None  # as it leaves; None: as it is in the spool
    lane: Lane | None = None
    charged: dict[Meter, float] = field(default_factory=dict)  # limits that it was counted against, and when
    shared: frozenset[Meter] = frozenset()  # of those where its message stays counted for its other recipients

    @property
    def domain(self) -> str:
        """Of its recipients, as the DNS has it. Where it leaves by MX it is the same for all."""
        return ascii_domain(domain_of(self.recipients[0].address))

    @property
    def needs(self) -> int:
        return self.claim.smtp if self.ready is None else self.ready.needs

    @property
    def prepared(self) -> tuple[str, ...]:
        """What was done to it, for its story."""
        return self.ready.story if self.ready else ()

    def share(self, recipients: list[Claimed]) -> Work:
        """Some of its recipients, to go a way of their own."""
        return Work(
            self.claim, recipients, self.route, self.egresses, list(self.tried),
            lane=self.lane, charged=dict(self.charged), shared=frozenset(self.charged),
        )  # fmt: skip

    def refund(self) -> list[Meter]:
        """Nothing was said of it: what it was counted against has it back. Returns those."""
        charged, self.charged = self.charged, {}
        for meter, when in charged.items():
            meter.take_back(when, *self._counted(meter))
        return list(charged)

    def move(self, now: float) -> list[Meter]:
        """It is said only now: so are the limits told. Returns those."""
        for meter, when in self.charged.items():
            meter.move(when, now, *self._counted(meter))
            self.charged[meter] = now
        return list(self.charged)

    def _counted(self, meter: Meter) -> tuple[int, int, int]:
        """Recipients, bytes and messages that it counts there."""
        return (len(self.recipients), 0, 0) if meter in self.shared else (len(self.recipients), self.claim.size, 1)

    def begin(self, preparer: Preparer, account: Account, body: bytes | Path, seven_bit: bool) -> None:
        """It is made ready for this account, off the loop; `made` waits for it."""
        assert self.plan is not None
        self.drop()
        claim, first = self.claim, self.recipients[0]
        out = Outbound(
            claim.message,
            first.n,
            claim.sender,
            first.address,
            claim.head,
            body,
            claim.size,
            claim.smtp,
            claim.accepted_at,
            claim.user,
            claim.class_,
            claim.tag,
        )
        self.seven_bit = seven_bit
        steps = preparer.ready(out, self.plan, self.route.name, account, seven_bit=seven_bit)
        self.begun = asyncio.get_running_loop().create_task(steps, name=f"ready-{account.name}")

    async def made(self) -> None:
        """It is ready. Raises Failure where it can't leave, ContentError."""
        assert self.begun is not None
        try:
            self.ready = await self.begun
        except CannotLeave as error:
            raise Failure(Stage.PREPARE, error.reply) from None
        except OSError as error:  # of the body's file; it must not look like one of a connection
            raise ContentError(f"the body can't be read: {error}", isinstance(error, FileNotFoundError)) from None
        finally:
            self.begun = None

    def drop(self) -> None:
        """What was made of it is for nobody."""
        if self.begun is not None:
            self.begun.cancel()  # where it is over, asyncio will not complain that nobody asked for its exception
        if self.ready is not None:
            self.ready.done()
        self.begun = self.ready = None

    def parcel(self, body: bytes | Path) -> Parcel:
        """What a session is given. `body`: as it is in the spool."""
        claim, ready = self.claim, self.ready
        if ready is None:
            sender, content, size, needs = claim.sender, Content(claim.head, body), claim.size, claim.smtp
        else:
            sender, content, size, needs = ready.sender, Content(ready.head, ready.body), ready.size, ready.needs
        addresses = tuple(r.address for r in self.recipients)
        return Parcel(sender, addresses, content, size, needs, claim.envid, claim.ret, self._asked())

    def _asked(self) -> tuple[tuple[str, str], ...]:
        """What each asked for by RFC 3461, for the next hop; most say nothing."""
        if not any(r.notify or r.orcpt for r in self.recipients):
            return ()
        return tuple((Notify(r.notify).words, r.orcpt) for r in self.recipients)
