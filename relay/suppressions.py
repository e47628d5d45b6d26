"""Who is suppressed, at hand: asked at RCPT, when a message is accepted, and before it leaves.

The list is the spool's; this keeps its index in memory (8 bytes an entry), in step with what the spool says that it has written.
Nothing is suppressed here that is not durable there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay.policy.suppression import Index, Suppression, Why, refusal, scopes
from relay.reply import Reply
from relay.settings import Config
from relay.spool import Spool


class Suppressions:
    """`load` once, before mail is let in. `config` returns the generation in force."""

    def __init__(self, spool: Spool, config: Callable[[], Config]) -> None:
        self.spool, self.config = spool, config
        self._index = Index()

    def __len__(self) -> int:
        return len(self._index)

    async def load(self) -> None:
        """Raises SpoolError."""
        self._index = Index(await self.spool.suppression_index())

    def changed(self, added: Sequence[Suppression], removed: Sequence[tuple[str, str]]) -> None:
        """What the spool has written, on the loop: `spool.on_suppressed`."""
        for one in added:
            self._index.add(one.scope, one.address, one.why)
        for key in removed:
            self._index.remove(*key)

    def find(self, address: str, class_: str, user: str) -> Why | None:
        """Why nothing may be sent to it; None: it may. An empty class: it is not known yet."""
        if not len(self._index):
            return None
        return self._index.find(address, scopes(class_, self.config().tenant_of.get(user, "")))

    def refusal(self, address: str, class_: str, user: str) -> Reply | None:
        """What a client hears; None: it may be sent."""
        why = self.find(address, class_, user)
        return None if why is None else refusal(address, why)
