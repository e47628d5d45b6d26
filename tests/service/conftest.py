"""Fixtures of the service tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A temporary folder that daemons and users other than ours may enter, as pytest's own may not be."""
    with tempfile.TemporaryDirectory(prefix="relay-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
