"""Mail by MX: from a listener to the servers of its domains, with a scripted DNS and simulated hosts."""

from __future__ import annotations

from pathlib import Path

from nameserver import Told
from rig import running, write_config
from simmx import SimMx

from tests.ports import common_port


def config(folder: Path, dns: str, port: int, *, routes: str = "  - {name: all, via: direct}", extra: str = "") -> Path:
    lab = f"destinations: [{{name: lab, per: mx, allow_private: true, port: {port}}}]"
    return write_config(folder, {}, routes=routes, extra=f"dns: {{servers: ['{dns}'], timeout: 2s}}\n{lab}\n{extra}")


MAIL = b"From: a@example.com\r\nSubject: x\r\n\r\nHello\r\n"


async def test_a_message_goes_to_the_host_of_its_domain(tmp_path: Path) -> None:
    hosts = ["127.0.1.1", "127.0.1.2"]
    port = common_port(hosts)
    with Told() as dns:
        dns.say("example.net", "MX", "20 mx2.example.net.", "10 mx1.example.net.")
        dns.say("mx1.example.net", "A", hosts[0])
        dns.say("mx2.example.net", "A", hosts[1])
        async with (
            SimMx(hosts[0], port) as first,
            SimMx(hosts[1], port) as second,
            running(config(tmp_path, dns.server, port)) as rig,
        ):
            (number,) = await rig.send_many([("a@example.com", ("b@example.net",), MAIL)])
            row = await rig.reaches(number, "delivered", "failed")
            assert row["state"] == "delivered", row
            assert row["egress"] == "direct"
    assert len(first.accepted) == 1 and not second.accepted
