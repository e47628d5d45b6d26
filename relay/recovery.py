"""What earlier runs left: mail that was in flight, what was spent and learnt, who is suppressed. Before anything moves."""

from __future__ import annotations

import random
from collections.abc import Callable

from relay import clock
from relay.envelope import queue_id
from relay.maillog import MailLog
from relay.policy import poison
from relay.settings import Config
from relay.spool import Spool
from relay.suppressions import Suppressions


async def recover(spool: Spool, config: Config, log: MailLog) -> None:
    """Raises SpoolError."""
    rules = {n: c.in_doubt for n, c in config.classes.items()}
    doubtful, held = await spool.recover(rules, clock.now(), random.random())
    if doubtful:
        log.warning("recovered", in_doubt=doubtful, hint="they were in flight when the relay died")
    for message in held:
        why = f"in flight at {poison.MOST} crashes in a row"
        log.error("held", id=queue_id(message), why=why, hint=poison.WHAT_TO_DO)
    for message in await spool.sweep():
        log.error("body_missing", id=queue_id(message), hint="its body file is gone; restore it from a backup")


async def suppressions(
    spool: Spool, config: Callable[[], Config], log: MailLog, documents: dict[str, str]
) -> Suppressions:
    """Who gets nothing, known before anybody may be sent to. Raises SpoolError."""
    found = Suppressions(spool, config, log)
    await found.load()
    await found.migrate(documents, clock.now())
    return found
