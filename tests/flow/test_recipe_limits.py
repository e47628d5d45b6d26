"""README's recipe for limits, as it stands there: put in are this machine's ports, and days that do not hang on the calendar."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from rig import running, until
from sinks import Bench, sink

from relay import clock
from relay.config.load import load
from relay.policy.hours import DAYS
from tests.pace import jerks

README = (Path(__file__).parents[2] / "README.md").read_text()


def recipe(folder: Path) -> dict[str, Any]:
    """With its secrets."""
    found = re.search(r"```yaml\n# recipe: never too fast\n(.*?)```", README, re.DOTALL)
    assert found
    for secret in re.findall(r"file: (secrets/[a-z]+)", found[1]):
        (folder / secret).parent.mkdir(exist_ok=True)
        (folder / secret).write_text("secret\n")
    made: dict[str, Any] = yaml.safe_load(found[1])
    return made


def installed(folder: Path, config: dict[str, Any], old: Bench, new: Bench, today: datetime) -> Path:
    for name, up in (("old", old), ("new", new)):
        account = config["accounts"][name]
        account |= {"host": "127.0.0.1", "port": up.port, "tls": "none"}
    config["accounts"]["new"]["warm_up"] |= {
        "start": (today - timedelta(1)).date().isoformat(), "first": "24/d", "spread": "none",
    }  # fmt: skip
    config |= {
        "listen": [{"name": "local", "address": "127.0.0.1:0"}],
        "admin": {"socket": str(folder / "admin.sock"), "address": None},
        "spool": {"path": str(folder / "spool" / "spool.db"), "reserve": "1MB"},
        "dsn": {"to": "none"},
    }
    file = folder / "relay.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def mail(who: str, number: int) -> tuple[str, tuple[str, ...], bytes]:
    sender = f"{who}@shop.example"
    head = f"From: {sender}\r\nMessage-ID: <{who}{number}@shop.example>\r\n\r\nx\r\n"
    return sender, (f"r{number}@example.net",), head.encode()


def test_it_is_good_as_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(yaml.safe_dump(recipe(tmp_path)))
    assert load(file).warnings == ()


async def test_each_keeps_its_pace_and_news_leave_by_day(tmp_path: Path) -> None:
    """By night news wait and nobody behind them; by day as much as the warm-up allows leaves by the new account, the rest by the
    old one at its 14 a second."""
    config, today = recipe(tmp_path), datetime.now(UTC)
    window = config["classes"]["news"]["window"]
    other = [DAYS[(today.weekday() + n) % 7] for n in (2, 3)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        sink(tmp_path / "a", "hostname: old.example\n") as old,
        sink(tmp_path / "b", "hostname: new.example\n") as new,
    ):
        window |= {"days": ",".join(other)}
        file = installed(tmp_path, config, old, new, today)
        async with running(file) as rig:
            await rig.send_many([mail("news", n) for n in range(44)])
            await rig.send_many([mail("login", 0), mail("billing", 0)])
            await until(lambda: len(old.kept) == 2)
            assert new.kept == []
        config["classes"]["news"]["window"] = {"hours": "00:00-24:00"}
        file.write_text(yaml.safe_dump(config))
        async with running(file) as rig, jerks() as felt:
            await rig.settled()
            rows = {row["whose"]: row for row in rig.app.scheduler.usage.limits(clock.now())}
        assert len(new.kept) == 24 and len(old.kept) == 22
        assert rows["account old"]["spent"] == 22 and rows["class news"]["spent"] == 44
        at = sorted(kept.path.stat().st_mtime for kept in old.kept if "news" in kept.sender)
        assert all(at[n + 14] - at[n] > 0.7 - 2 * felt.worst for n in range(len(at) - 14))
