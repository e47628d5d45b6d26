"""What the relay has learnt, over restarts: documents by key, written when they have changed.

Counts that must not be lost are not here (scheduler.ledger): what is written every few seconds may be older than a crash.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from relay.maillog import MailLog
from relay.policy.pace import WARM_UP

Document = Mapping[str, Any]
Source = Callable[[], Iterable[tuple[str, Document]]]


# What reading a document comes to that another version wrote, or nobody we know.
NOT_OURS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Kept(Protocol):
    """What of the spool is asked."""

    async def remember(self, documents: Mapping[str, str | None]) -> None: ...


class Memory:
    """`save` from time to time, and at a stop."""

    def __init__(self, spool: Kept, documents: Mapping[str, str], log: MailLog | None = None) -> None:
        """`documents`: as the spool has them."""
        self.spool, self.log = spool, log
        self._known: dict[str, str] = dict(documents)
        self._untaken = set(documents)
        self._texts: dict[str, tuple[Document, str]] = {}
        self.sources: list[Source] = []  # (key, document) of what is worth to be remembered; an empty one is not

    def recall(self, key: str, load: Callable[[dict[str, Any]], object]) -> None:
        """Hands over what the last run knew, if it did; once, for what is learnt since counts.

        What another version wrote, or nobody we know, is no reason not to start: it is told, and learnt anew.
        """
        if key not in self._untaken:
            return
        self._untaken.discard(key)
        try:
            load(dict(json.loads(self._known[key])))
        except NOT_OURS as error:
            if self.log is not None:
                self.log.error("not_remembered", what=key, error=repr(error))

    def forget_sites(self) -> None:
        """What was learnt of sites to which nobody has sent since the start, but how warm we are there: strangers name them."""
        for key in [key for key in self._untaken if " to " in key and WARM_UP not in self._known[key]]:
            self._untaken.discard(key)

    def _text(self, key: str, found: Document) -> str:
        """As it is kept. A source whose document is large yields the same object while nothing changed."""
        if (last := self._texts.get(key)) is not None and last[0] is found:
            return last[1]
        self._texts[key] = found, json.dumps(found)
        return self._texts[key][1]

    async def save(self) -> None:
        """Raises SpoolError."""
        now = {key: self._text(key, found) for source in self.sources for key, found in source() if found}
        changed: dict[str, str | None] = {key: text for key, text in now.items() if self._known.get(key) != text}
        gone = self._known.keys() - now.keys() - self._untaken
        changed.update(dict.fromkeys(gone))
        if changed:
            await self.spool.remember(changed)
            self._texts = {key: self._texts[key] for key in now}
            self._known = now | {key: self._known[key] for key in self._untaken}
