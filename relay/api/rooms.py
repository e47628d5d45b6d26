"""What operations work on: the rooms, handed in by the composition root."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from relay.admin.events import Stream
from relay.admin.pauses import Pausing
from relay.admin.ports import Control, Folders, Hooks, Outlook, Usage
from relay.admin.service import Service
from relay.admin.simulation import Simulated
from relay.admin.suppress import Suppressing
from relay.api.tokens import Tokens
from relay.attachments import Attaching
from relay.config.overlay import Changes
from relay.intake import Intake
from relay.maillog import MailLog
from relay.policy.access import Principal
from relay.settings import Config
from relay.spool import Spool


class Changing(Protocol):
    """What is changed at run time."""

    changes: Changes

    async def change(self, section: str, name: str, wanted: Mapping[str, Any], who: str) -> list[str]: ...
    async def reset(self, who: str) -> tuple[bool, list[str]]: ...


@dataclass
class Rooms:
    spool: Spool
    intake: Intake
    outlook: Outlook
    control: Control
    log: MailLog
    service: Service
    pausing: Pausing
    usage: Usage
    simulated: Simulated
    hooks: Hooks
    suppressing: Suppressing
    tokens: Tokens
    attaching: Attaching
    drops: Folders
    stream: Stream
    changing: Changing

    @property
    def config(self) -> Config:
        return self.control.config

    def users(self, principal: Principal) -> frozenset[str] | None:
        """Those whose mail it sees; None: everybody's."""
        return principal.users(self.config.tenants)
