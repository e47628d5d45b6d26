"""What the admin side asks of the other rooms, and what it says where it can't do what it is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from relay.policy.gate import EgressView
from relay.policy.routing import LaneFacts
from relay.settings import Config


class BadRequest(Exception):
    """What was asked makes no sense; the text says what was meant."""


class NotFound(Exception):
    """No such message."""


class Outlook(Protocol):
    """What the scheduler tells of what waits."""

    def forecast(self, lane_id: int, now: float) -> tuple[str, float | None, tuple[str, ...]]: ...
    def forecast_facts(self, facts: str, now: float) -> tuple[str, float | None, tuple[str, ...]]: ...
    def route_name(self, lane_id: int) -> str: ...
    def lanes_by_first(self, wanted: Callable[[str], bool]) -> frozenset[int]: ...
    def lanes_of_route(self, name: str) -> tuple[int, ...]: ...
    def lane_facts_of(self, lane_id: int) -> LaneFacts | None: ...
    def view(self, egress: str) -> EgressView | None: ...
    def egress_rows(self) -> list[dict[str, Any]]: ...


class Control(Protocol):
    """What the composition root offers."""

    @property
    def config(self) -> Config: ...
    def reload(self) -> tuple[bool, list[str]]: ...
    def health(self) -> dict[str, Any]: ...
    def listening(self) -> list[str]: ...
