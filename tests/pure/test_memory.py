"""What is remembered: written when it changed, and made anew only then."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from relay.maillog import MailLog
from relay.scheduler import memory as module
from relay.scheduler.memory import Memory


class Kept:
    def __init__(self) -> None:
        self.written: list[Mapping[str, str | None]] = []

    async def remember(self, documents: Mapping[str, str | None]) -> None:
        self.written.append(documents)


async def test_what_did_not_change_is_written_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few seconds it is asked what changed, between two passes of the event loop; a document may be megabytes."""
    kept = Kept()
    memory = Memory(kept, {})
    document = {"rows": "x" * 1000}
    memory.sources.append(lambda: [("a", document)])
    made: list[object] = []
    dumps = json.dumps
    monkeypatch.setattr(module.json, "dumps", lambda found, **more: made.append(found) or dumps(found, **more))
    for _ in range(5):
        await memory.save()
    assert len(made) == 1 and len(kept.written) == 1
    memory.sources.clear()
    await memory.save()
    assert kept.written[-1] == {"a": None}


async def test_one_that_cannot_be_read_is_told_of() -> None:
    log, told = MailLog(None), list[object]()
    log.listeners.append(lambda kind, fields: told.append((kind, fields["what"])))
    memory = Memory(Kept(), {"a": "{", "b": "{}"}, log)
    memory.recall("a", lambda found: None)
    memory.recall("b", lambda found: found["x"])
    memory.recall("c", lambda found: None)
    assert told == [("not_remembered", "a"), ("not_remembered", "b")]


async def test_sites_to_which_nobody_sends_are_forgotten_but_not_how_warm_we_are_there() -> None:
    kept = Kept()
    known = {
        "egress mx to a.example": '{"breaker": 1}',
        "egress mx to b.example": '{"pace": {"warm-up": 2}}',
        "egress mx": "{}",
    }
    memory = Memory(kept, known)
    await memory.save()
    assert kept.written == []
    memory.forget_sites()
    await memory.save()
    assert kept.written == [{"egress mx to a.example": None}]
