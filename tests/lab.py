"""Domains with servers of their own on loopback, and a relay that delivers to them by MX.

async with lab(tmp_path, {"a.test": "127.0.1.1", "b.test": "127.0.1.2"}) as here, running(here.config()) as rig:
    await rig.send("x@a.test")
    ... here.mx["a.test"].accepted
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

from nameserver import Told
from rig import FAST, Rig, write_config
from simmx import SimMx

from tests.ports import common_port

ALL = "  - {name: all, via: direct}"


class Lab:
    """`mx`: the host of each domain that has one of its own. All listen on `port`."""

    def __init__(self, folder: Path, dns: Told, port: int) -> None:
        self.folder, self.dns, self.port = folder, dns, port
        self.mx: dict[str, SimMx] = {}

    def domain(self, name: str, *addresses: str, ttl: int = 300) -> None:
        """A domain with a host for each address, the best first."""
        self.dns.say(name, "MX", *(f"{n} mx{n}.{name}." for n, _ in enumerate(addresses, 1)), ttl=ttl)
        for n, address in enumerate(addresses, 1):
            v6 = ":" in address
            self.dns.say(f"mx{n}.{name}", "AAAA" if v6 else "A", address, ttl=ttl)
            self.dns.say(f"mx{n}.{name}", "A" if v6 else "AAAA", ttl=ttl)

    def config(
        self,
        rule: str = "per: mx",
        *,
        rules: str = "",
        direct: str = "",
        pools: str = "",
        routes: str = ALL,
        classes: str = FAST,
        accounts: Mapping[str, str] | None = None,
        extra: str = "",
        dsn: str = "to: none",
        spool: str = "",
    ) -> Path:
        """`direct`, `pools`: what stands in the braces; `rule`: of the rule `lab` for all else than `rules` take."""
        lines = [f"dns: {{servers: ['{self.dns.server}'], timeout: 10s}}", "destinations:"]
        lines += [f"  - {{{one}, allow_private: true, port: {self.port}}}" for one in rules.split("\n") if one]
        lines.append(f"  - {{name: lab, {rule}, allow_private: true, port: {self.port}}}")
        lines += [f"direct: {{{direct}}}"] if direct else []
        lines += [f"pools: {{{pools}}}"] if pools else []
        made = "\n".join([*lines, extra])
        return write_config(
            self.folder, dict(accounts or {}), routes=routes, classes=classes, extra=made, dsn=dsn, spool=spool
        )

    @property
    def delivered(self) -> list[str]:
        return [recipient for host in self.mx.values() for recipient in host.delivered()]

    @property
    def open(self) -> int:
        """Sessions at all hosts together."""
        return sum(host.open for host in self.mx.values())


@contextlib.asynccontextmanager
async def lab(
    folder: Path, hosts: Mapping[str, str], script: dict[str, Any] | None = None, also: Iterable[str] = (), **more: Any
) -> AsyncIterator[Lab]:
    """`hosts`: domain -> the address of its host; `also`: addresses at which the port is kept free; `more`: of SimMx."""
    with Told() as dns:
        here = Lab(folder, dns, common_port([*hosts.values(), *also]))
        async with contextlib.AsyncExitStack() as stack:
            for name, address in hosts.items():
                here.domain(name, address)
                here.mx[name] = await stack.enter_async_context(SimMx(address, here.port, script, **more))
            yield here


async def burst(rig: Rig, recipients: Iterable[str]) -> list[str]:
    """One message for each."""
    return await rig.send_many([("app@example.com", (to,), b"Subject: t\r\n\r\nhello\r\n") for to in recipients])


async def soon(condition: Any, deadline: float = 30.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, "not in time"
        await asyncio.sleep(0.01)


def trunk(rig: Rig, name: str = "direct") -> Any:
    return rig.app.scheduler.carriers.egresses.trunks[name]


def sites(rig: Rig, name: str = "direct") -> list[Any]:
    """The ways of an entry."""
    return rig.app.scheduler.carriers.egresses.of(name)
