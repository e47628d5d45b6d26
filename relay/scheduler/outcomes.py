"""What a reply comes to for the mail that heard it, and whether its lane bears less than it gets."""

from __future__ import annotations

from relay.deliver.pool import Egress
from relay.reply import Reply, Result, Scope, Stage, Trouble
from relay.scheduler.work import Work
from relay.settle import Outcome

REST = 3600.0  # seconds an account rests where nobody says for how long
AGAIN = 60.0  # seconds after which the message that heard of the rest may ask whether it is over


def strains(trouble: Trouble, reply: Reply) -> bool:
    """Whether it says that a lane bears less than it gets. A full mailbox does not, nor does greylisting."""
    if trouble.result is not Result.SOFT:
        return False
    if trouble.scope is not Scope.RECIPIENT or reply.code == 421:
        return True
    if trouble.means:
        return False
    return reply.enhanced.startswith(("4.3.", "4.4.", "4.7.")) or (not reply.enhanced and reply.code in (451, 452))


def outcome_of(
    egress: Egress[Work], work: Work, stage: Stage, reply: Reply, trouble: Trouble, seconds: float
) -> Outcome:
    wait = trouble.wait
    if trouble.scope is Scope.EGRESS and trouble.means:
        # It is the account that is waited for: once that is well this message is as good as any, and must not sleep on.
        wait = min(AGAIN, REST if wait is None else wait)
    outcome = Outcome(
        trouble.result, egress.name, stage, reply, seconds, tuple(work.tried), rule=trouble.means, wait=wait
    )
    outcome.scope, outcome.suppress = trouble.scope, trouble.suppress
    outcome.remote, outcome.site = work.remote, egress.site
    return outcome
