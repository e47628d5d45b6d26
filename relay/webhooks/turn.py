"""One turn of an endpoint: some events are handed over, and the one that it does not take is found. Nothing is kept here."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from relay.webhooks.words import Item, Said, Verdict

Send = Callable[[Sequence[Item]], Awaitable[Said]]
SUSPECTS = 2  # events of different messages that are refused alone before all of it is the endpoint's fault


@dataclass(slots=True)
class Turn:
    """What became of the items of one turn; each is in one of the lists, in order."""

    taken: list[Item] = field(default_factory=list)
    refused: list[tuple[Item, str]] = field(default_factory=list)  # alone, while the endpoint took others
    behind: list[Item] = field(default_factory=list)  # their message waits for one of `refused`
    left: list[Item] = field(default_factory=list)  # not taken, for `said`
    said: Said | None = None
    largest: int = 0  # as many were taken at once
    split: bool = False  # it had trouble with more


async def take_turn(items: Sequence[Item], send: Send, *, doubt: bool, credit: int) -> Turn:
    """Hands `items` over in order, halving what is refused.

    That one event is bad is believed only where the endpoint takes another one in the same turn, or has a `credit`: so many
    may be refused without, for it was well until now. `doubt`: that it has had trouble with these for some time may be the
    fault of one of them; else trouble is the endpoint's.
    """
    turn, held, suspects = Turn(), set[int](), list[tuple[Item, Said]]()
    parts = deque(_alone_first(items) if doubt else [list(items)])
    while parts:
        whole = parts.popleft()
        part = [item for item in whole if item.message not in held]
        turn.behind += [item for item in whole if item.message in held]
        if not part:
            continue
        said = await send(part)
        believed = doubt and (len(part) == 1 or bool(turn.taken))
        if said.verdict is Verdict.TAKEN:
            turn.taken += part
            turn.largest = max(turn.largest, len(part))
        elif said.verdict is Verdict.REFUSED or (said.verdict is Verdict.TROUBLE and believed):
            if len(part) > 1:
                turn.split |= said.verdict is Verdict.TROUBLE
                parts.extendleft((part[len(part) // 2 :], part[: len(part) // 2]))
                continue
            suspects.append((part[0], said))
            held |= {part[0].message} - {0}
            most = max(SUSPECTS, credit + 1) if _refused(suspects) else SUSPECTS
            if not turn.taken and len(suspects) >= most:
                turn.said = said
                break
        else:
            turn.said = said
            turn.left = part
            break
    turn.left += [item for part in parts for item in part]
    if turn.taken or (_refused(suspects) and len(suspects) <= credit):
        turn.refused = [(item, said.why) for item, said in suspects]
    elif suspects:
        # It took nothing: nobody can say that these are the bad ones.
        turn.said = turn.said or suspects[-1][1]
        turn.left = [item for item in items if item not in turn.taken]
        turn.behind = []
    return turn


def _refused(suspects: Sequence[tuple[Item, Said]]) -> bool:
    """Whether that was said in words that are about the event."""
    return all(said.verdict is Verdict.REFUSED for _, said in suspects)


def _alone_first(items: Sequence[Item]) -> list[list[Item]]:
    """The first; then up to the next one of another message, which is to bear witness; then the others."""
    first = items[0]
    other = next((n for n, item in enumerate(items) if n and (item.message != first.message or not item.message)), None)
    if other is None:
        return [[first], list(items[1:])] if len(items) > 1 else [[first]]
    return [[first], list(items[1 : other + 1]), list(items[other + 1 :])]
