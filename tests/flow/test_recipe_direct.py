"""README's recipe without an upstream, as it stands there: put in are addresses, a port and a DNS of this machine."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import Certs, certs
from nameserver import Told
from rig import running
from simmx import SimMx

from relay.config.load import load
from relay.signing.keys import generate
from tests.ports import common_port

__all__ = ["certs"]

README = (Path(__file__).parents[2] / "README.md").read_text()
SOURCES = {"203.0.113.5": "127.0.2.5", "203.0.113.6": "127.0.2.6", "2001:db8::5": "::1"}
GOOGLE, BANK = "127.0.1.1", "127.0.1.2"


def installed(folder: Path, dns: Told, port: int) -> Path:
    found = re.search(r"```yaml\n# recipe: direct\n(.*?)```", README, re.DOTALL)
    assert found
    text = found[1]
    for there, here in SOURCES.items():
        assert there in text
        text = text.replace(there, here)
    config: dict[str, Any] = yaml.safe_load(text)
    for rule in config["destinations"]:
        rule |= {"port": port, "allow_private": True}
    config["dns"]["servers"] = [dns.server]
    key = generate("ed25519")
    (folder / "dkim").mkdir()
    (folder / "dkim" / "example.com.s2026.pem").write_text(key.pem())
    (folder / "dkim" / "example.com.s2026.pem").chmod(0o600)
    dns.say("s2026._domainkey.example.com", "TXT", f'"{key.record}"')
    config |= {
        "listen": [{"name": "local", "address": "127.0.0.1:0"}],
        "admin": {"socket": str(folder / "admin.sock"), "address": None},
        "spool": {"path": str(folder / "spool" / "spool.db"), "reserve": "1MB"},
        "classes": {"default": {"retry": {"schedule": ["200ms"], "give_up": "1d"}}},
    }
    file = folder / "relay.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


async def test_without_an_upstream(tmp_path: Path, certs: Certs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred messages to Google's hosts by both sources, signed; the bank's wait until its certificate is right."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certs.bundle))
    port = common_port([GOOGLE, BANK])
    with Told() as dns:
        dns.say("gmail.com", "MX", "5 gmail-smtp-in.l.google.com.")
        dns.say("gmail-smtp-in.l.google.com", "A", GOOGLE)
        dns.say("gmail-smtp-in.l.google.com", "AAAA")
        dns.say("bank.example", "MX", "10 mx.bank.example.")
        dns.say("mx.bank.example", "A", BANK)
        dns.say("mx.bank.example", "AAAA")
        file = installed(tmp_path, dns, port)
        assert load(file).warnings == ()
        wrong, right = certs.right("other.example"), certs.right("mx.bank.example")
        async with SimMx(GOOGLE, port, identity=certs.self_signed("gmail-smtp-in.l.google.com")) as google:
            async with SimMx(BANK, port, identity=wrong) as bank, running(file) as rig:
                mails = [
                    ("a@example.com", (f"u{n}@gmail.com",), b"From: a@example.com\r\nSubject: x\r\n\r\nHello\r\n")
                    for n in range(60)
                ]
                for number in await rig.send_many(mails):
                    row = await rig.reaches(number, "delivered", "failed")
                    assert row["state"] == "delivered", row
                mail = b"From: a@example.com\r\nSubject: x\r\n\r\nHello\r\n"
                (number,) = await rig.send_many([("a@example.com", ("u@bank.example",), mail)])
                row = await rig.tried(number)
                assert row["state"] == "deferred"
                assert "mx.bank.example" in row["why"] and "certificate" in row["why"] and "4.7.5" in row["why"]
                assert not bank.accepted and not any("MAIL" in c for visit in bank.visits for c in visit.commands)
            async with SimMx(BANK, port, identity=right) as bank, running(file) as rig:
                service = rig.app.admin.service
                await service.act("retry", service.parse_filter({"id": number}), dry_run=False)
                assert (await rig.reaches(number, "delivered"))["state"] == "delivered"
    used = Counter(one.visit.source for one in google.accepted)
    assert set(used) == {"127.0.2.5", "127.0.2.6"}
    assert used["127.0.2.5"] > used["127.0.2.6"]
    names = {one.visit.source: one.visit.helo for one in google.accepted}
    assert names == {"127.0.2.5": "mx1.example.com", "127.0.2.6": "mx2.example.com"}
    assert all(b"DKIM-Signature: v=1; a=ed25519-sha256" in one.content for one in google.accepted)
    assert all(one.visit.tls for one in google.accepted) and bank.accepted[0].visit.tls
