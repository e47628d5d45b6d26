"""Which configuration is in force, told as an event where it is another one than before: a reload, or a start.

The sections are told by name, and a digest of the whole; never a value, for it may be a secret.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

from relay import __version__
from relay.scheduler.journal import Journal, made
from relay.settings import Config

DOCUMENT = "configuration"  # its key in the spool: section -> digest, of the last one that was told


class Generations:
    """`documents`: what the spool remembers; `config`: what the relay starts with; `by`: why a later one came."""

    def __init__(self, journal: Journal, documents: Mapping[str, str], config: Config, by: Callable[[], str]) -> None:
        self.journal, self.by = journal, by
        try:
            found = json.loads(documents.get(DOCUMENT, "{}"))
        except ValueError:
            found = {}  # damaged: then all of it is new
        self._before: dict[str, str] = dict(found) if isinstance(found, dict) else {}
        # Of a start only what differs from what the run before had.
        if dict(config.sections) != self._before:
            self._tell(config, "start")

    def apply(self, config: Config) -> None:
        """A reload was taken, or a change at run time: that is told in any case."""
        self._tell(config, self.by())

    def _tell(self, config: Config, by: str) -> None:
        now, before = dict(config.sections), self._before
        changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
        text = json.dumps(now, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        source = str(config.source) if config.source else "built in"
        event = made("config_changed", by=by, source=source, sections=changed, digest=digest, version=__version__)
        self.journal.keep(event, {DOCUMENT: text})
        self._before = now
