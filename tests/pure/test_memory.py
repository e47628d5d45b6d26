"""What is remembered: written when it changed, and made anew only then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from conftest import NOW
from planning import Queue, config_of

from relay.maillog import MailLog
from relay.scheduler import memory as module
from relay.scheduler.alarms import Alarms
from relay.scheduler.journal import Journal
from relay.scheduler.memory import Memory
from relay.scheduler.shape import Shaping


class Kept:
    def __init__(self) -> None:
        self.written: list[Mapping[str, str | None]] = []

    async def remember(self, documents: Mapping[str, str | None]) -> None:
        self.written.append(documents)


class Silent:
    """A spool that nobody has anything to tell."""

    async def learn(self, learnt: Learnt) -> list[Suppression] | None:
        raise AssertionError(learnt)


async def test_many_suppressed_are_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few seconds it is asked what changed, between two passes of the event loop."""
    kept = Kept()
    memory = Memory(kept, {})
    log = MailLog(None)
    shaping = Shaping(Queue(config_of(tmp_path)).lanes.sites, log, memory, Alarms(log), Journal(Silent(), log))
    for n in range(1000):
        shaping.suppressed.add(f"r{n}@x.example", "550 gone", NOW, NOW + 60)
    made: list[object] = []
    dumps = json.dumps
    monkeypatch.setattr(module.json, "dumps", lambda found, **more: made.append(found) or dumps(found, **more))
    for _ in range(5):
        await memory.save()
    assert (
        len([found for found in made if found]) == 2 and len(kept.written) == 1
    )  # the list, and the document that it stands in
    assert shaping.suppressed.remove("r5@x.example")
    await memory.save()
    text = kept.written[-1]["suppressed"]
    assert text is not None and "r4@x" in text and "r5@x" not in text
    shaping.suppressed.over(NOW + 61)
    await memory.save()
    assert kept.written[-1] == {"suppressed": None}


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
