"""A message is made ready to leave by one egress, written as its steps: rewritten, re-encoded, sealed, signed.

Promises: what `ready` returns is what is sent, byte for byte; the same message by the same route, egress and configuration
gives the same bytes at each try; nothing is done to a message that nothing is to be done to. Whatever takes long is done in
the threads that sign. Refuses, by CannotLeave, what the next hop could not take.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path

from relay import metrics
from relay.envelope import EIGHT_BIT, LONG_LINES, ascii_domain, domain_of, queue_id
from relay.maillog import MailLog
from relay.outgoing import OUT, mime, verp
from relay.outgoing.rewrite import About, Rewrite, apply, reverse_path
from relay.policy.alignment import Alignment, Verdict, verdict
from relay.reply import Reply
from relay.resolver import Resolver
from relay.settings import Account, Config, Feedback, is_loopback
from relay.signing.canonical import Form, body_hash
from relay.signing.dkim import Fields, signature
from relay.signing.rules import Choice, Rules, Seen
from relay.signing.threads import Threads
from relay.signing.watch import Watch
from relay.submission import from_address

SIGNATURES = metrics.Counter("relay_signatures_total", "DKIM signatures made", ["algorithm"])
CONVERTED = metrics.Counter("relay_messages_converted_total", "Messages re-encoded for their next hop", ["egress"])
UNALIGNED = metrics.Counter(
    "relay_messages_unaligned_total",
    "Messages that left without a DKIM signature, or that DMARC does not take for their From domain's",
    ["egress", "verdict"],
)
_DOMAIN = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
MAX_TOLD = 10_000  # senders that are remembered as told


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
    def story(self) -> str:
        """What was done to it, in a line; empty: nothing."""
        signed = [f"signed {name}" for name in self.signed]
        return "; ".join([*self.changes, *signed])

    def done(self) -> None:
        """The try is over."""
        if self.temporary is not None:
            self.temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the configuration wants of a route and an egress."""

    rewrite: Rewrite | None
    signs: bool  # some entry of `signing` may sign
    seals: bool
    tells: bool  # of what leaves unsigned

    @property
    def empty(self) -> bool:
        return self.rewrite is None and not self.signs and not self.seals


_NOBODY = Verdict(
    Alignment.UNSIGNED, "there is no `signing`; add it, or say `signs: true` for an account whose server signs"
)


def plan_of(config: Config, route: str, account: Account) -> Plan:
    signs = bool(config.signing.rules) and not account.signs
    return Plan(
        config.rewrites.get(route),
        signs,
        config.arc is not None and route in config.arc.routes,
        # What goes to a server on this machine has not left it.
        not account.signs and (signs or not is_loopback(account.host)),
    )


class Preparer:
    """The steps. `watch` knows which keys are published."""

    def __init__(self, config: Config, watch: Watch, log: MailLog) -> None:
        self.watch, self.log = watch, log
        self.threads = Threads()
        self._told: dict[tuple[str, str, str], None] = {}
        self.config = config
        self._plans: dict[tuple[str, str], Plan] = {}

    def apply(self, config: Config) -> None:
        """A new configuration."""
        self.config = config
        self._plans.clear()
        self._told.clear()
        self.watch.follow(config.signing.rules, Resolver(config.dns.servers, config.dns.timeout))

    def plan(self, route: str, account: Account) -> Plan:
        plan = self._plans.get((route, account.name))
        if plan is None:
            plan = self._plans[route, account.name] = plan_of(self.config, route, account)
        return plan

    def apart(self, route: str, account: Account) -> bool:
        """Whether each recipient gets a transaction of its own."""
        rewrite = self.plan(route, account).rewrite
        return rewrite is not None and rewrite.per_recipient

    async def ready(self, out: Outbound, route: str, account: Account, *, seven_bit: bool, tell: bool = True) -> Ready:
        """`seven_bit`: its next hop takes no other. `tell` False: nobody sends it, it is only looked at.

        Raises CannotLeave, OSError.
        """
        plan = self.plan(route, account)
        if plan.empty and not _to_convert(out, seven_bit):
            ready = Ready(out.sender, out.head, out.body, out.size, out.needs)
        else:
            ready = await self._made(out, plan, account, route, seven_bit)
        if tell:
            self._count(ready, out, account, plan)
        return ready

    async def _made(self, out: Outbound, plan: Plan, account: Account, route: str, seven_bit: bool) -> Ready:
        config, seen = self.config, self.watch.seen

        def steps() -> Ready:
            return make(out, plan, config, account, route, seven_bit, seen)

        # Sealing asks the DNS, and must not keep the threads from signing meanwhile.
        ready = await (asyncio.to_thread(steps) if plan.seals else self.threads.run(steps))
        if not ready.choice.unknown or ready.choice.rules:
            return ready
        for rule in ready.choice.unknown:
            if await self.watch.known(rule, rule.signs_as(ready.from_domain)) is None:
                ready.done()
                text = f"the DNS does not say whether the key of {rule.selector} ({rule.origin}) is published"
                raise CannotLeave(Reply(451, text, "4.7.5"))
        ready.done()
        return await self.threads.run(steps)

    def _count(self, ready: Ready, out: Outbound, account: Account, plan: Plan) -> None:
        for algorithm in ready.algorithms:
            SIGNATURES.inc(1, algorithm)
        if ready.converted:
            CONVERTED.inc(1, account.name)
        if not plan.tells:
            return
        found = ready.verdict or _NOBODY
        if not found.warns:
            return
        what, why = found.alignment.value, found.why
        UNALIGNED.inc(1, account.name, what)
        known = (out.sender, what, account.name)
        if known in self._told:
            return
        if len(self._told) >= MAX_TOLD:
            self._told.clear()
        self._told[known] = None
        self.log.warning(
            "unaligned", id=queue_id(out.message), sender=out.sender, egress=account.name, verdict=what, why=why
        )


def make(out: Outbound, plan: Plan, config: Config, account: Account, route: str, seven_bit: bool, seen: Seen) -> Ready:
    """The steps. Blocks; see Preparer.ready."""
    ready = Ready(out.sender, out.head, out.body, out.size, out.needs)
    if plan.rewrite is not None:
        _rewrite(ready, out, plan.rewrite, config.feedback)
    if _to_convert(out, seven_bit):
        _convert(ready, out, account, seven_bit)
    if plan.signs:
        _sign(ready, out, config.signing, route, seen)
        # SPF asks for our own name where the envelope has none (RFC 7208 §2.4).
        envelope = domain_of(ready.sender) if ready.sender else config.hostname
        ready.verdict = verdict(ready.from_domain, ready.domains, envelope)
    size = ready.body.stat().st_size if isinstance(ready.body, Path) else len(ready.body)
    ready.size = len(ready.head) + size
    return ready


def _to_convert(out: Outbound, seven_bit: bool) -> bool:
    return bool(out.needs & (LONG_LINES | EIGHT_BIT if seven_bit else LONG_LINES))


def _rewrite(ready: Ready, out: Outbound, rewrite: Rewrite, feedback: Feedback) -> None:
    token = verp.make(feedback.token_key, out.message, out.n) if rewrite.needs_token else ""
    about = About(
        id=queue_id(out.message),
        sender=out.sender,
        recipient=out.recipient,
        from_=_author(Fields(out.head)),
        user=out.user,
        class_=out.class_,
        tag=out.tag,
        token=token,
    )
    try:
        ready.sender = reverse_path(rewrite, about, feedback.domain)
        ready.head, changes = apply(rewrite, ready.head, about)
    except ValueError as error:
        raise CannotLeave(Reply(554, f"it can't be rewritten: {error}", "5.6.0")) from None
    if ready.sender != out.sender:
        changes = [f"reverse-path: <{out.sender}> becomes <{ready.sender}>", *changes]
    ready.changes = (*ready.changes, *changes)


def _convert(ready: Ready, out: Outbound, account: Account, seven_bit: bool) -> None:
    try:
        if isinstance(ready.body, bytes):
            made = mime.convert(ready.head, ready.body, seven_bit=seven_bit)
            ready.head, ready.body, done = made.head, made.body, made.done
        else:
            # Its name is its own: recipients of one message may leave by several egresses at once.
            target = ready.body.with_name(f"{ready.body.name}-{out.n}-{account.name}{OUT}")
            try:
                ready.head, done = mime.convert_file(ready.head, ready.body, target, seven_bit=seven_bit)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
            if target.exists():
                ready.body = ready.temporary = target
    except mime.Unconvertible as error:
        what = "the next hop takes no 8-bit content" if seven_bit else "it has a line of more than 998 octets"
        raise CannotLeave(Reply(554, f"{what}, and it can't be re-encoded: {error}", "5.6.3")) from None
    ready.changes = (*ready.changes, *done)
    ready.converted = bool(done)
    ready.needs &= ~(LONG_LINES | EIGHT_BIT if seven_bit else LONG_LINES)


def _sign(ready: Ready, out: Outbound, rules: Rules, route: str, seen: Seen) -> None:
    fields = Fields(ready.head)
    domain = ascii_domain(domain_of(_author(fields)))
    # Under a wildcard it becomes a tag's value: what no DNS name is must not come that far.
    ready.from_domain = domain if _DOMAIN.fullmatch(domain) else ""
    ready.choice = rules.choose(ready.from_domain, out.user, route, out.accepted_at, seen)
    hashes: dict[Form, str] = {}
    made: list[bytes] = []
    for rule in ready.choice.rules:
        recipe = rule.recipe(ready.from_domain, out.accepted_at)
        if recipe.body_form not in hashes:
            hashes[recipe.body_form] = body_hash(ready.body, recipe.body_form)
        made.append(signature(recipe, fields, hashes[recipe.body_form]))
        ready.domains.append(recipe.domain)
        ready.algorithms.append(rule.key.algorithm)
        ready.signed = (*ready.signed, f"{rule.selector}._domainkey.{recipe.domain}")
    if made:
        ready.head = b"".join([*made, ready.head])


def _author(fields: Fields) -> str:
    """The address in From; empty where none can be read."""
    return from_address(fields.text(b"from"))
