"""What would leave when, asked over HTTP: as the command line tells it, in a process of its own, one at a time and bounded."""

from __future__ import annotations

import asyncio
import pickle
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from tenancy import tenancy

from relay.admin.simulation import Unready, Workshop
from relay.api.simulate import Simulation
from relay.config.load import load
from relay.simulate import worker

PLAN = {"send": 30, "from": "a@example.com", "to": "gmail.com=2,example.net=1", "over": "1m"}
SAID: dict[str, Any] = dict.fromkeys(("sender", "class", "user", "tag", "size", "over", "start", "until", "plan"), "")
SAID |= {"queue": False, "send": 5, "recipient": "example.net", "seconds": 0.1}


async def none() -> AsyncIterator[dict[str, Any]]:
    for page in list[dict[str, Any]]():
        yield page


async def test_a_plan_and_the_queue_are_one_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        waits = await at.send("ann", sender="a@example.com")
        await at.send("ann")  # held
        status, told = await at.ask("all", "/v1/simulate", "POST", PLAN | {"queue": True})
        assert status == 200, told
        Simulation.model_validate(told)
        assert sum(row["count"] for row in told["messages"]) == 31 and told["waiting"] == 0
        assert [row["queue_id"] for row in told["messages"] if row["queue_id"]] == [waits]
        assert {row["route"] for row in told["messages"]} == {"all"} and not told["refused"]


async def test_what_is_changed_at_run_time_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration in force goes to the process, not its file."""
    async with tenancy(tmp_path, monkeypatch) as at:
        (tmp_path / "relay.yaml").write_text("no configuration")
        status, told = await at.ask("all", "/v1/simulate", "POST", PLAN)
        assert status == 200 and len(told["messages"]) == 30


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "simulate what?"),
        ({"send": 0}, "send"),
        ({"send": 5, "to": "=3"}, "expected a domain or an address"),
        ({"send": 5, "start": "someday"}, "expected a time"),
        ({"plan": "a,b\n1,2\n"}, "line 1: expected a header"),
    ],
    ids=["nothing", "none", "no_domain", "no_time", "no_plan"],
)
async def test_what_makes_no_sense_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], says: str
) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        status, told = await at.ask("all", "/v1/simulate", "POST", body)
        assert status == 400 and says in told["detail"], told


def test_no_more_is_told_than_fits_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MOST_LEFT", 4)
    with pytest.raises(ValueError, match="more than 4 messages leave"):
        worker.simulated(load(ROOT / "etc" / "relay.yaml"), SAID | {"now": 1.8e9}, None)


async def test_it_is_about_the_whole_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with tenancy(tmp_path, monkeypatch) as at:
        assert (await at.ask("red", "/v1/simulate", "POST", PLAN))[0] == 403


async def test_one_at_a_time_and_no_longer_than_it_may() -> None:
    config = load(ROOT / "etc" / "relay.yaml")
    shop = Workshop(none, lambda: config, longest=0.05)
    first = asyncio.create_task(shop.run(SAID))
    await asyncio.sleep(0)
    with pytest.raises(Unready, match="another simulation is under way"):
        await shop.run(SAID)
    with pytest.raises(Unready, match="it takes longer than 0"):
        await first
    with pytest.raises(Unready, match="longer"):  # the turn was given back
        await shop.run(SAID)


async def test_one_that_breaks_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    config = load(ROOT / "etc" / "relay.yaml")
    with pytest.raises(Unready, match="broke off"):
        await Workshop(none, lambda: config, longest=60.0).run(SAID)


def test_every_example_of_a_configuration_can_be_handed_on() -> None:
    config = load(ROOT / "etc" / "relay.yaml")
    assert pickle.loads(pickle.dumps(config)).accounts == config.accounts
