"""The admin side in this process: health, metrics, and that whatever is asked gets an answer in one form."""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
import re
import stat
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import Later, Upstream
from prometheus_client.parser import text_string_to_metric_families
from rig import free_port, running, until, write_config

import relay
from relay import clock, metrics

ROOT = Path(__file__).parents[2]
SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"


def listed(folder: Path) -> Path:
    file = write_config(folder, {"main": f"port: {free_port()}, tls: none"}, classes=SLOW)
    file.write_text(file.read_text().replace("address: null", f'address: "127.0.0.1:{free_port()}"'))
    return file


async def get(target: Path | str, path: str, method: str = "GET", body: Any = None) -> tuple[int, str]:
    connector = aiohttp.UnixConnector(str(target)) if isinstance(target, Path) else None
    base = "http://localhost" if connector else f"http://{target}"
    async with aiohttp.ClientSession(connector=connector) as session:
        data = body if isinstance(body, str | bytes | None) else json.dumps(body)
        kind = {"Content-Type": "application/json"} if data is not None else None
        async with session.request(method, base + path, data=data, headers=kind) as answer:
            return answer.status, await answer.text()


async def test_tcp_shows_health_and_metrics_only(tmp_path: Path) -> None:
    async with running(listed(tmp_path)) as rig:
        tcp = str(rig.app.config.admin.address)
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await get(tcp, path))[0] == 200
        for path in ("/v1", "/v1/status", "/v1/queue", "/v1/queue/cancel"):
            for method in ("GET", "POST"):
                status, text = await get(tcp, path, method)
                assert status == 401 and "token" in json.loads(text)["detail"]
        assert (await get(tcp, "/"))[0] == 404
        mode = stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode)
        assert mode == 0o600


async def test_ready_while_an_upstream_is_down_and_not_when_the_spool_refuses(tmp_path: Path) -> None:
    async with running(listed(tmp_path)) as rig:
        socket = tmp_path / "admin.sock"
        rig.egress().breaker.opened, rig.egress().breaker.until = 1, 1e12
        status, text = await get(socket, "/readyz")
        told = json.loads(text)
        assert status == 200 and told["leaving"] is False and told["resting"] == ["main"]
        rig.app.spool.reserve = 1 << 62  # more than any disk has
        rig.app.spool.check_room()
        status, text = await get(socket, "/readyz")
        assert status == 503 and "reserve" in json.loads(text)["why"]
        assert (await get(socket, "/healthz"))[0] == 200


async def test_every_metric_parses_and_is_documented(tmp_path: Path) -> None:
    for module in pkgutil.walk_packages(relay.__path__, "relay."):
        if module.name != "relay.__main__":
            importlib.import_module(module.name)
    rows = re.findall(r"^\| `(relay_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), re.M)
    documented = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _ in rows}
    declared = {
        name: (type(m).__name__.lower(), tuple(getattr(m, "labels", ()))) for name, m in metrics.declared().items()
    }
    assert documented == declared
    assert len(rows) == len(documented)
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        await rig.reaches(await rig.send(), "delivered")
        _, text = await get(tmp_path / "admin.sock", "/metrics")
        families = {f.name: f for f in text_string_to_metric_families(text)}
        assert {n.removesuffix("_total") for n in declared} == set(families)
        delay = {s.name: s.value for s in families["relay_delivery_delay_seconds"].samples}
        assert delay["relay_delivery_delay_seconds_count"] >= 1
        states = {s.labels["state"]: s.value for s in families["relay_queue_recipients"].samples}
        assert states["delivered"] == 1 and states["queued"] == 0


BAD = [
    ("GET", "/v1/queue?limit=x", None, 400),
    ("GET", "/v1/queue?after=x", None, 400),
    ("GET", "/v1/queue?after=99999999999999999999999.0", None, 400),
    ("GET", "/v1/queue?after=-1.0", None, 400),
    ("GET", "/v1/messages?after=x", None, 400),
    ("GET", "/v1/messages?order=best", None, 400),
    ("GET", "/v1/messages?state=lost", None, 400),
    ("GET", "/v1/lanes?after=x", None, 400),
    ("POST", "/v1/messages/00000000001/cancel", {}, 404),
    ("POST", "/v1/messages/00000000001/explode", {}, 404),
    ("GET", "/v1/queue?nonsense=1", None, 400),
    ("GET", "/v1/queue?state=lost", None, 400),
    ("GET", "/v1/queue?older_than=soon", None, 400),
    ("GET", "/v1/queue?id=not!an!id", None, 400),
    ("GET", "/v1/messages/xyz", None, 400),
    ("GET", "/v1/messages/00000000001", None, 404),
    ("GET", "/v1/messages/00000000001/raw", None, 404),
    ("POST", "/v1/messages/00000000001/resend", {}, 404),
    ("POST", "/v1/messages/00000000001/resend", {"recipients": 3}, 400),
    ("POST", "/v1/queue/explode", {"filter": {"sender": "*"}}, 404),
    ("POST", "/v1/queue/cancel", {}, 400),
    ("POST", "/v1/queue/cancel", {"filter": [1]}, 400),
    ("POST", "/v1/queue/cancel", b"{not json", 400),
    ("POST", "/v1/queue/cancel", [1], 400),
    ("POST", "/v1/queue/reroute", {"filter": {"sender": "*"}, "to": "nowhere"}, 400),
    ("POST", "/v1/explain", {"from": "a@b.example"}, 400),
    ("POST", "/v1/explain", {"to": "a@b.example", "headers": "x"}, 400),
    ("POST", "/v1/explain", {"to": "a@b.example", "size": "large"}, 400),
    ("POST", "/v1/spool/backup", {"folder": "relative"}, 400),
    ("GET", "/v1/nothing", None, 404),
    ("DELETE", "/v1/status", None, 405),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status"), BAD, ids=lambda v: str(v)[:40])
async def test_bad_questions_are_told_so(tmp_path: Path, method: str, path: str, body: Any, status: int) -> None:
    async with running(listed(tmp_path)):
        got, text = await get(tmp_path / "admin.sock", path, method, body)
        told = json.loads(text)
        assert got == status == told["status"] and told["detail"] and "Traceback" not in text


async def test_trouble_of_ours_has_the_same_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with running(listed(tmp_path)) as rig:
        rig.app.admin.service.control = None  # type: ignore[assignment]
        status, text = await get(tmp_path / "admin.sock", "/v1/status")
        assert status == 500 and "NoneType" not in text and json.loads(text)["status"] == 500
        assert "/v1/status" in caplog.text


async def test_whoever_waits_has_a_why_and_a_when(tmp_path: Path) -> None:
    """Deferred, due later, behind a busy account, behind a resting one, held, sent to an account that may not."""
    gate = Later(0, "250 ok", asyncio.Event())
    routes = '  - {match: {recipient: "*@hold.example"}, hold: true}\n  - {name: all, via: [main]}'
    async with Upstream({"DOT": gate}) as up:
        accounts = {
            "main": f"port: {up.port}, tls: none, connections: 1",
            "other": 'port: 1, tls: none, senders: ["*@other.example"]',
        }
        async with running(write_config(tmp_path, accounts, routes=routes)) as rig:
            service = rig.app.admin.service
            held = await rig.send("a@hold.example")
            tomorrow = formatdate(clock.now() + 86400, usegmt=True)
            late = await rig.send(message=f"X-Relay-Send-At: {tomorrow}\r\n\r\nx\r\n".encode())
            ids = await rig.send_many([("a@example.com", (f"r{i}@example.net",), b"\r\nx\r\n") for i in range(8)])
            await until(lambda: rig.egress().busy == 2)
            await until(lambda: rig.app.scheduler.lanes.by_id)
            wrong = ids[-1]
            await service.act("reroute", service.parse_filter({"id": wrong}), "other", dry_run=False)
            found = {r["queue_id"]: r for r in await rig.rows()}
            for row in found.values():
                assert row["why"], row
                forever = row["state"] == "held" or "busy" in row["why"] or "no account" in row["why"]
                assert row["next_at"] is not None or forever, row
            assert "release" in found[held]["why"]
            assert found[late]["next_at"] > clock.now() + 86000 and "later" in found[late]["why"]
            assert any("busy" in r["why"] for r in found.values())
            assert "may send" in found[wrong]["why"]
            rig.egress().breaker.opened, rig.egress().breaker.until = 1, 1e12
            rig.egress().breaker.why = "connect: 127.0.0.1:25: Connection refused"
            row = await rig.row(ids[-2])
            assert "main rests: connect" in row["why"] and row["next_at"] is not None
