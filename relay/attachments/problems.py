"""Why there is no content."""

from __future__ import annotations


class NotAttached(Exception):
    """The text says why, and what to do. `later`: another try may have it."""

    def __init__(self, text: str, *, later: bool = False) -> None:
        super().__init__(text)
        self.later = later
