"""The steps, in their order: rewritten, re-encoded, signed, sealed. They block.

What signs is loaded with the first message that is signed: the libraries take 15 MiB, which nobody pays for who signs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from relay.envelope import EIGHT_BIT, LONG_LINES, NUL, domain_of, queue_id
from relay.outgoing import OUT, mime, verp
from relay.outgoing.rewrite import About, Rewrite, apply, author, reverse_path
from relay.policy.alignment import verdict
from relay.prepare.message import CannotLeave, Outbound, Plan, Ready, to_convert
from relay.reply import Reply
from relay.settings import Account, Config, Feedback
from relay.signing.rules import Seen

if TYPE_CHECKING:
    from relay.signing.records import DnsFunc


def make(
    out: Outbound,
    plan: Plan,
    config: Config,
    account: Account,
    route: str,
    seven_bit: bool,
    seen: Seen,
    ask: DnsFunc | None,
) -> Ready:
    """See Preparer.ready. `ask` None: no seal is made, which wants the DNS. Raises CannotLeave, OSError."""
    ready = Ready(out.sender, out.head, out.body, out.size, out.needs)
    try:
        if plan.rewrite is not None:
            _rewrite(ready, out, plan.rewrite, config.feedback)
        if to_convert(out.needs, seven_bit):
            _convert(ready, out, account, seven_bit)
        if plan.signs:
            from relay.prepare.signatures import sign

            sign(ready, out, config.signing, route, seen)
            # SPF asks for our own name where the envelope has none (RFC 7208 §2.4).
            envelope = domain_of(ready.sender) if ready.sender else config.hostname
            ready.verdict = verdict(ready.from_domain, ready.domains, envelope)
        if config.arc is not None and plan.seals and ask is not None:
            from relay.prepare.signatures import seal

            seal(ready, out, config.arc, config.hostname, ask)
        size = ready.body.stat().st_size if isinstance(ready.body, Path) else len(ready.body)
        ready.size = len(ready.head) + size
    except BaseException:
        ready.done()  # a file that it was re-encoded into
        raise
    return ready


def _rewrite(ready: Ready, out: Outbound, rewrite: Rewrite, feedback: Feedback) -> None:
    token = verp.make(feedback.token_key, out.message, out.n) if rewrite.needs_token else ""
    try:
        about = About(
            id=queue_id(out.message),
            sender=out.sender,
            recipient=out.recipient,
            from_=author(out.head),
            user=out.user,
            class_=out.class_,
            tag=out.tag,
            token=token,
        )
        ready.sender = reverse_path(rewrite, about, feedback.domain)
        ready.head, changes = apply(rewrite, ready.head, about)
    except ValueError as error:
        raise CannotLeave(Reply(554, f"it can't be rewritten: {error}", "5.6.0")) from None
    if ready.sender != out.sender:
        changes = [f"reverse-path: <{out.sender}> -> <{ready.sender}>", *changes]
    ready.changes = (*ready.changes, *changes)


def _convert(ready: Ready, out: Outbound, account: Account, seven_bit: bool) -> None:
    try:
        if isinstance(ready.body, bytes):
            made = mime.convert(ready.head, ready.body, seven_bit=seven_bit)
            ready.head, ready.body, done = made.head, made.body, made.done
        else:
            # Its name is its own: recipients of one message may leave by several egresses at once.
            target = ready.body.with_name(f"{ready.body.name}-{out.n}-{account.name}{OUT}")
            target.unlink(missing_ok=True)
            try:
                ready.head, done = mime.convert_file(ready.head, ready.body, target, seven_bit=seven_bit)
            except BaseException:
                target.unlink(missing_ok=True)
                raise
            if target.exists():
                ready.body = ready.temporary = target
    except mime.Unconvertible as error:
        what = (
            "it has a NUL"
            if out.needs & NUL
            else "the next hop takes no 8-bit content"
            if seven_bit
            else "it has a line of more than 998 octets"
        )
        raise CannotLeave(Reply(554, f"{what}, and it can't be re-encoded: {error}", "5.6.3")) from None
    ready.changes = (*ready.changes, *done)
    ready.converted = bool(done)
    ready.needs &= ~(LONG_LINES | NUL | (EIGHT_BIT if seven_bit else 0))
