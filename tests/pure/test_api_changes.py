"""Whose fault it is that a configuration with a change in it can't be built."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.api.changes import _refused
from relay.config.overlay import PLACE
from relay.config.problems import ConfigError, Problem

OWN = Problem(PLACE.file, 1, 1, "accounts.main.limits[1]", "no rate")
ELSEWHERE = Problem(Path("relay.yaml"), 7, 3, "pools.bulk.members", "more than all of them may")
GONE = Problem(Path("relay.yaml"), 9, 3, "users.app.password.file", "no such file")
AT_FAULT = {
    "its value": ([OWN], [], ["limits[1]"]),
    "another place": ([ELSEWHERE], [], ["pools.bulk.members"]),
    "another place too": ([GONE, ELSEWHERE], [GONE], ["pools.bulk.members"]),
    "not the change": ([GONE], [GONE], []),
    "not the change, but one before": ([OWN], [OWN], []),
}


@pytest.mark.parametrize("name", AT_FAULT)
def test_a_change_answers_for_what_it_makes_wrong(name: str) -> None:
    problems, before, fields = AT_FAULT[name]
    told = _refused(ConfigError(problems), before, "accounts.main.")
    assert (told.status, [one.field for one in told.errors]) == (400 if fields else 409, fields)
