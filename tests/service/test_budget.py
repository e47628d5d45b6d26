"""What one message costs stays within its budget: instructions of the whole process, which no other load changes."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import budget

from .support import needs


@needs("valgrind", "smtp-source", "smtp-sink")
def test_a_message_costs_what_is_recorded(tmp_path: Path) -> None:
    recorded = json.loads(budget.RECORDED.read_text())
    found = budget.measure(tmp_path)
    assert found.keys() == recorded.keys() == budget.LOADS.keys()
    for load, value in found.items():
        assert abs(value / recorded[load] - 1) <= budget.MARGIN, (
            f"{load}: {value} yardsticks a message, recorded are {recorded[load]}; if that is meant: "
            "python -m benchmarks.budget --write, and say why in the commit"
        )
