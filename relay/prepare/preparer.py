"""Who makes messages ready: off the loop where anything is to be done, and at once where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from relay import clock, metrics
from relay.envelope import queue_id
from relay.maillog import MailLog
from relay.policy.alignment import Alignment, Verdict
from relay.prepare.message import CannotLeave, Outbound, Plan, Ready, plan_of
from relay.reply import Reply
from relay.resolver import Resolver
from relay.settings import Account, Config
from relay.signing.rules import why_not
from relay.signing.threads import Threads
from relay.signing.watch import Watch

if TYPE_CHECKING:
    from relay.signing.records import DnsFunc

SIGNATURES = metrics.Counter("relay_signatures_total", "DKIM signatures made", ["algorithm"])
CONVERTED = metrics.Counter("relay_messages_converted_total", "Messages re-encoded for their next hop", ["egress"])
UNALIGNED = metrics.Counter(
    "relay_messages_unaligned_total",
    "Messages that left without a DKIM signature, or that DMARC does not take for their From domain's",
    ["egress", "verdict"],
)
SEALING = 8  # threads
PATIENCE = 3600.0  # seconds that a message waits for the DNS to say what its signatures are worth
MAX_TOLD = 10_000  # senders that are remembered as told

UNSIGNED = Verdict(
    Alignment.UNSIGNED, "there is no `signing`; add it, or say `signs: true` for an account whose server signs"
)


class Preparer:
    """The steps. `watch` knows which keys are published."""

    def __init__(self, config: Config, watch: Watch, log: MailLog) -> None:
        self.watch, self.log = watch, log
        self._signing = Threads()
        self._sealing = Threads(SEALING)  # they wait for the DNS, which must keep nobody from signing
        self._told: dict[tuple[str, str, str], None] = {}
        self.config = config
        self._plans: dict[tuple[str, str], Plan] = {}
        self._resolver = Resolver(config.dns.servers, config.dns.timeout)

    def apply(self, config: Config) -> None:
        """A new configuration."""
        self.config = config
        self._plans.clear()
        self._told.clear()
        self._resolver = Resolver(config.dns.servers, config.dns.timeout)
        self.watch.follow(config.signing.rules, self._resolver)

    def plan(self, route: str, account: Account) -> Plan:
        plan = self._plans.get((route, account.name))
        if plan is None:
            plan = self._plans[route, account.name] = plan_of(self.config, route, account)
        return plan

    async def ready(self, out: Outbound, plan: Plan, route: str, account: Account, *, seven_bit: bool) -> Ready:
        """`seven_bit`: its next hop takes no other. Not for what the plan keeps. Raises CannotLeave, OSError."""
        out.late = clock.now() - out.accepted_at > PATIENCE
        ready = await self._made(out, plan, account, route, seven_bit)
        for algorithm in ready.algorithms:
            SIGNATURES.inc(1, algorithm)
        if ready.converted:
            CONVERTED.inc(1, account.name)
        if plan.tells:
            seen, rules = self.watch.seen, self.config.signing
            self.tell(
                *(out.message, out.sender, account, ready.verdict or UNSIGNED),
                lambda: why_not(rules, ready.from_domain, out.user, route, out.accepted_at, seen),
            )
        return ready

    async def _made(self, out: Outbound, plan: Plan, account: Account, route: str, seven_bit: bool) -> Ready:
        config, seen = plan.config, self.watch.seen

        def steps() -> Ready:
            from relay.prepare.steps import make

            return make(out, plan, config, account, route, seven_bit, seen, self._asking() if plan.seals else None)

        run = self._sealing.run if plan.seals else self._signing.run
        ready = await run(steps, Ready.done)
        if not ready.choice.unknown:
            return ready
        # After a start nobody knows yet: what else may sign then may be a key whose record is gone, or one that few verify.
        again = False
        try:
            for rule in ready.choice.unknown:
                found = await self.watch.known(rule, rule.signs_as(ready.from_domain))
                if found is None and not ready.choice.rules:
                    name = f"{rule.selector}._domainkey.{rule.signs_as(ready.from_domain)}"
                    text = (
                        f"{name} can't be looked up, so nobody knows whether to sign ({rule.origin}); see dns.servers"
                    )
                    raise CannotLeave(Reply(451, text, "4.7.5"))
                again = again or bool(found)
        except BaseException:
            ready.done()
            raise
        if not again:
            return ready
        ready.done()
        return await run(steps, Ready.done)

    def close(self) -> None:
        """The threads end with what they are at."""
        self._signing.close()
        self._sealing.close()

    def _asking(self) -> DnsFunc:
        from relay.signing.records import asking

        return asking(self._resolver)

    def tell(
        self, message: int, sender: str, account: Account, found: Verdict, advice: Callable[[], str] = str
    ) -> None:
        """What a message relies on that leaves: counted, and told once of each sender, where nobody will trust it."""
        if not found.warns:
            return
        what = found.alignment.value
        UNALIGNED.inc(1, account.name, what)
        known = (sender, what, account.name)
        if known in self._told:
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[known] = None
        why = found.mended_by(advice()).why
        self.log.warning("unaligned", id=queue_id(message), sender=sender, egress=account.name, verdict=what, why=why)
