"""Cases of delivery by MX: what the DNS says of a domain, which hosts there are, and what becomes of a message to it.

    Case("backup", ["@ MX 10 mx1", "@ MX 20 mx2", "mx1 A 127.0.1.1", "mx2 A 127.0.1.2"], {"127.0.1.2": {}}, took=["127.0.1.2"])

Records are relative to `NAME.lab.example`, a domain of each case's own in a zone that is signed. Nobody listens at an address that
is not among the hosts, so connections to it are refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rig import Rig, running, write_config
from simmx import SimMx
from world import Zone, signed

from relay.reply import Reply
from tests.ports import common_port

ZONE = "lab.example"
ADDRESSES = ["127.0.0.1", "::1", *(f"127.0.1.{n}" for n in range(1, 13))]  # one port is free at all of them
MAIL = b"From: a@example.com\r\nSubject: x\r\n\r\nHello\r\n"
ONCE = "  default: {retry: {schedule: [1h], give_up: 1d}}"
FREELY = "{name: lab, per: mx, allow_private: true, port: PORT}"


@dataclass(frozen=True)
class Case:
    """`hosts`: address -> arguments of SimMx. `reply`: code and enhanced code of the last one. `why`: parts of what operators are
    shown. `took`: the addresses of those that got the message, one after the other; `dialled`: connections to all hosts."""

    name: str
    records: Sequence[str] = ()
    hosts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    state: str = "delivered"
    reply: str = "250 2.0.0"
    why: Sequence[str] = ()
    took: Sequence[str] = ()
    dialled: int | None = None
    to: str = ""
    rule: str = FREELY
    extra: str = ""
    routes: str = "  - {name: all, via: direct}"

    @property
    def recipient(self) -> str:
        return self.to or f"b@{self.name}.{ZONE}"

    def __str__(self) -> str:
        return self.name


def zone(cases: Iterable[Case]) -> Zone:
    """One with the records of all of them."""
    lines: list[str] = []
    for case in (case for case in cases if case.records):
        lines += [f"$ORIGIN {case.name}.{ZONE}.", *case.records]
    return signed(*lines)


def said(row: Mapping[str, Any]) -> str:
    """Code and enhanced code of the last reply."""
    reply = Reply.parse(row["last_reply"])
    return f"{reply.code} {reply.enhanced}".strip()


@dataclass
class Lab:
    """The relay, and the hosts by their addresses."""

    rig: Rig
    hosts: dict[str, SimMx]
    port: int

    @property
    def took(self) -> list[str]:
        """Who got mail, in the order of the messages."""
        found = [(one.at, address) for address, host in self.hosts.items() for one in host.accepted]
        return [address for _, address in sorted(found)]

    @property
    def dialled(self) -> int:
        return sum(len(host.visits) for host in self.hosts.values())

    @property
    def ways(self) -> set[str]:
        """The lanes of sites that there are."""
        return {egress.site for egress in self.rig.app.scheduler.egresses.values()}

    async def send(self, *recipients: str, sender: str = "a@example.com") -> str:
        return (await self.rig.send_many([(sender, recipients, MAIL)]))[0]


@contextlib.asynccontextmanager
async def lab(
    folder: Path,
    dns: str,
    hosts: Mapping[str, Mapping[str, Any]],
    *,
    rules: str = FREELY,
    routes: str = "  - {name: all, via: direct}",
    classes: str = ONCE,
    extra: str = "",
    dsn: str = "to: none",
    timeout: str = "10s",
) -> AsyncIterator[Lab]:

    port = common_port(ADDRESSES)
    text = f"dns: {{servers: ['{dns}'], timeout: {timeout}, trust_ad: true}}\ndestinations: [{rules}]\n{extra}"
    file = write_config(
        folder,
        {},
        routes=routes,
        classes=classes,
        extra=text.replace("PORT", str(port)),
        dsn=dsn,
        port=port if "allow_private" in rules else 0,
    )
    async with contextlib.AsyncExitStack() as stack:
        made = {address: SimMx(address, port, **how) for address, how in hosts.items()}
        for host in made.values():
            await stack.enter_async_context(host)
        yield Lab(await stack.enter_async_context(running(file)), made, port)


async def check(case: Case, folder: Path, dns: str) -> None:
    """One message, one attempt."""
    async with lab(folder, dns, case.hosts, rules=case.rule, routes=case.routes, extra=case.extra) as made:
        number = await made.send(case.recipient)
        row = await made.rig.tried(number)
        assert (row["state"], said(row), row["attempts"], row["egress"].split("-")[0]) == (
            case.state, case.reply, 1, "direct"
        ), row  # fmt: skip
        for part in case.why:
            assert part in row["why"], row["why"]
        assert made.took == list(case.took)
        assert case.dialled is None or made.dialled == case.dialled
        assert await made.rig.count() == 1 and made.rig.app.spool.queued == (case.state == "deferred"), (
            "nothing is lost"
        )
