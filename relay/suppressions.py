"""Who is suppressed, at hand: asked at RCPT, when a message is accepted, and before it leaves.

The list is the spool's; this keeps its index in memory (8 bytes an entry), in step with what the spool says that it has written.
Nothing is suppressed here that is not durable there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any, Literal

from relay import metrics
from relay.envelope import AddressError, parse_address
from relay.maillog import MailLog
from relay.policy.suppression import NOT_OF_REPORTS, Index, Suppression, Why, plain, scopes
from relay.reply import clean
from relay.settings import Config
from relay.spool import Spool
from relay.spool.feed import Learnt

At = Literal["rcpt", "accept", "claim"]
FORMER = "suppressed"  # the document in which an earlier version kept who was suppressed by a rule of `shaping`
SLICE = 500  # entries that are written at once
_BY_HAND = ("hand", "import")  # who does it tells himself, once for all of them

LISTED = metrics.Gauge("relay_suppressions", "Addresses that are suppressed, by why", ["why"])
SUPPRESSED = metrics.Counter(
    "relay_suppressed_total", "Recipients that were not sent to, by when that was found", ["at"]
)


class Suppressions:
    """`load` once, before mail is let in. `config` returns the generation in force."""

    def __init__(self, spool: Spool, config: Callable[[], Config], log: MailLog) -> None:
        self.spool, self.config, self._log = spool, config, log
        self._index = Index()
        LISTED.source = lambda: [((why.word,), float(self._index.counts[why])) for why in Why]

    def __len__(self) -> int:
        return len(self._index)

    @property
    def none(self) -> bool:
        return not self._index

    async def load(self) -> None:
        """Raises SpoolError. From now on it keeps in step."""
        self._index = Index(await self.spool.suppression_index())
        self.spool.on_suppressed = self.changed

    def changed(self, added: Sequence[Suppression], removed: Sequence[tuple[str, str]]) -> None:
        """What the spool has written, on the loop: `spool.on_suppressed`."""
        for one in added:
            self._index.add(one.scope, one.address, one.why)
            if one.source not in _BY_HAND:
                self._log.event(
                    "suppression_added",
                    recipient=one.address,
                    scope=one.scope or None,
                    why=one.why.word,
                    source=one.source,
                    evidence=one.evidence,
                )
        for key in removed:
            self._index.remove(*key)

    def find(self, address: str, class_: str, user: str, sender: str) -> Why | None:
        """Why nothing may be sent to it; None: it may. An empty class: it is not known yet.

        `sender`: the reverse-path; a report, which has none, is bound by what is said of the mailbox alone.
        """
        if not self._index:
            return None
        bind = scopes(class_, self.config().tenant_of.get(user, ""))
        return self._index.find(address, bind, () if sender else NOT_OF_REPORTS)

    def at_rcpt(self, address: str, user: str, sender: str) -> Why | None:
        """Why a recipient is refused before the message is there. What is suppressed for a class alone is found later."""
        if not self._index or self.config().suppression.at_rcpt == "accept":
            return None
        if (why := self.find(address, "", user, sender)) is not None:
            SUPPRESSED.inc(1, "rcpt")
        return why

    async def told(self, address: str, class_: str, user: str, sender: str) -> list[Suppression]:
        """The entries that bind, for people."""
        if self.find(address, class_, user, sender) is None:
            return []
        found = await self.spool.suppressed(plain(address), scopes(class_, self.config().tenant_of.get(user, "")))
        return [one for one in found if sender or one.why not in NOT_OF_REPORTS]

    async def over(self, now: float) -> None:
        """Forgets those that have come to their end. Raises SpoolError."""
        await self.spool.suppressions_over(now)

    async def migrate(self, documents: MutableMapping[str, str], now: float) -> None:
        """Takes what an earlier version remembered out of `documents` and onto the list. Raises SpoolError.

        Cut off in the middle it is done once more: what is listed already stays as it is.
        """
        text = documents.pop(FORMER, None)
        if text is None:
            return
        entries = list(self._former(text, now))
        for start in range(0, len(entries), SLICE):
            await self.spool.learn(Learnt(suppressions=entries[start : start + SLICE]))
        await self.spool.learn(Learnt(documents={FORMER: None}))

    def _former(self, text: str, now: float) -> Iterator[Suppression]:
        """What cannot be read is no reason not to start: it is told, and forgotten."""
        try:
            rows = json.loads(json.loads(text)["rows"])
            found = [one for row in rows if (one := _row(row, now)) is not None]
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            self._log.error("not_remembered", what=FORMER, error=repr(error))
            return
        yield from found


def _row(row: dict[str, Any], now: float) -> Suppression | None:
    """None: it is over. Raises what reading a stranger's document raises."""
    at, until = float(row["at"]), float(row["until"])
    if not (math.isfinite(at) and math.isfinite(until)):
        raise ValueError(f"no time: {row}")
    try:
        address = plain(parse_address(str(row["address"])))
    except AddressError as error:
        raise ValueError(str(error)) from None
    made = Suppression(address, "", Why.SHAPING, clean(str(row["why"])), "shaping", at, until)
    return made if until > now else None
