"""`relay explain` tells what would be done to a message before it leaves, and does nothing."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fakes import Upstream
from nameserver import Scripted
from rig import Rig, running, write_config
from signatures import signed
from test_signed_mail import FEEDBACK, MAIL, RSA, SIGNING, keys

ROUTES = (
    "  - {name: news, match: {header: {List-Id: '*'}}, via: [own, main], rewrite: {reverse_path: verp, remove: [X-Mailer]}}\n"
    "  - {name: rest, via: main}"
)


def config(folder: Path, up: Upstream) -> Path:
    keys(folder)
    accounts = {"main": f"port: {up.port}, tls: none", "own": f"port: {up.port}, tls: none, signs: true"}
    later = (
        "  - {domain: example.com, subdomains: true, selector: later, key: {file: s1.pem}, not_before: 2099-01-01}\n"
    )
    return write_config(folder, accounts, routes=ROUTES, extra=FEEDBACK + SIGNING + later)


async def explained(rig: Rig, *arguments: str, stdin: bytes = b"") -> str:
    command = [sys.executable, "-m", "relay", "explain", *arguments]
    env = {**os.environ, "RELAY_CONFIG": str(rig.app.config.source)}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=-1, stdout=-1, stderr=-1, env=env
    )  # fmt: skip
    out, err = await process.communicate(stdin)
    assert process.returncode == 0, err.decode()
    return out.decode()


async def test_a_file_with_all_that_is_done_to_it(tmp_path: Path) -> None:
    mail = tmp_path / "mail.eml"
    mail.write_bytes((b"X-Mailer: x\nList-Id: <l.example.com>\n" + MAIL.replace(b"\r\n", b"\n")) + b"y" * 1200 + b"\n")
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        found: dict[str, Any] = json.loads(
            await explained(rig, "--file", str(mail), "--to", "you@example.net", "--json")
        )
        assert (found["route"], found["from"]) == ("news", "app@example.com")
        own, main = found["egresses"]
        assert own["upstream_signs"] and own["signatures"] == [] and own["alignment"] == "unknown"
        assert main["reverse_path"].endswith("@bounces.example.com")
        assert any("X-Mailer: removed" in c for c in main["changes"]) and any("->" in c for c in main["changes"])
        assert [(s["selector"], s["algorithm"], bool(s["waits"])) for s in main["signatures"]] == [
            ("s1", "rsa-sha256", False), ("e1", "ed25519-sha256", False), ("later", "rsa-sha256", True),
        ]  # fmt: skip
        assert main["alignment"] == "aligned_dkim" and main["error"] is None
        text = await explained(rig, "--file", "-", "--to", "you@example.net", stdin=mail.read_bytes())
        for line in (
            "signed by s1._domainkey.example.com",
            "does not sign: later._domainkey",
            "X-Mailer: removed",
            "DMARC: ",
        ):
            assert line in text
        assert "the account signs itself" in text
        assert not up.sessions and await rig.count() == 0 and rig.said("unaligned") == []


async def test_one_that_cannot_leave_and_one_that_nobody_signs(tmp_path: Path) -> None:
    signed = (
        b"From: app@example.com\r\nContent-Type: multipart/signed; boundary=b\r\n\r\n"
        b"--b\r\n\r\n" + b"x" * 1200 + b"\r\n--b\r\n\r\nsig\r\n--b--\r\n"
    )
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        text = await explained(rig, "--file", "-", "--to", "you@example.net", stdin=signed)
        assert "it can't leave: 554 5.6.3" in text
        text = await explained(rig, "--from", "a@other.example", "--to", "you@example.net")
        assert "From other.example is signed by nobody" in text


async def test_a_message_that_would_be_refused(tmp_path: Path) -> None:
    async with Upstream() as up, running(config(tmp_path, up)) as rig:
        two = b"From: a@example.com\r\nFrom: b@example.com\r\n\r\nx\r\n"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "relay", "explain", "--file", "-", "--to", "x@example.net", stdin=-1, stdout=-1, stderr=-1,
            env={**os.environ, "RELAY_CONFIG": str(rig.app.config.source)},
        )  # fmt: skip
        _, err = await process.communicate(two)
        assert process.returncode != 0 and b"554 5.6.0" in err


# -- from the file alone


def asked(file: Path, *arguments: str, stdin: bytes = b"", code: int = 0) -> str:
    """What `relay explain` says where no relay runs."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", "explain", "--config", str(file), *arguments], input=stdin, capture_output=True
    )
    assert done.returncode == code, done.stderr.decode()
    return (done.stderr if code else done.stdout).decode()


def alone(folder: Path, *, routes: str = "  - {name: all, via: main}", extra: str = "") -> Path:
    keys(folder)
    return write_config(folder, {"main": "port: 9, tls: none"}, routes=routes, extra=FEEDBACK + extra)


TO = ("--to", "you@example.net")


def test_a_file_is_decided_as_intake_would(tmp_path: Path) -> None:
    routes = (
        "  - {name: ours, match: {from: '*@example.com', class: bulk, header: {From: '*@example.com*'}}, via: main}\n"
        "  - {name: rest, via: main}"
    )
    classes = "  bulk: {priority: low}\n  fast: {}"
    keys(tmp_path)
    file = write_config(tmp_path, {"main": "port: 9, tls: none"}, routes=routes, classes=classes)
    mail = (
        b"From: \r\nX-Relay-Class: bulk\r\nX-Relay-Tag: t7\r\nX-Relay-Priority: high\r\n"
        b"X-Relay-Route: rest\r\nSubject : s\r\n\r\nx\r\n"
    )
    found = json.loads(asked(file, "--file", "-", *TO, "--from", "app@example.com", "--json", stdin=mail))
    assert (found["sender"], found["from"]) == ("app@example.com", "app@example.com")
    assert (found["class"], found["tag"], found["route"]) == ("bulk", "t7", "ours")
    assert found["retry"]["priority"] == 1
    assert any("the header has no From" in n for n in found["notes"])
    assert any("x-relay-route: not honoured" in n for n in found["notes"])
    options = ("--class", "fast", "--tag", "t8", "--sender", "b@example.com")
    found = json.loads(asked(file, "--file", "-", *TO, *options, "--json", stdin=mail))
    assert (found["from"], found["class"], found["tag"], found["route"]) == ("b@example.com", "fast", "t8", "rest")
    text = asked(
        file, "--file", "-", *TO, "--from", "bounce@example.org", stdin=mail.replace(b"From: ", b"From: a@b.example")
    )
    assert text.startswith(
        "a message from a@b.example (MAIL FROM <bounce@example.org>) to you@example.net, class bulk:"
    )
    assert "priority: high" in text
    both = ("--from", "a@example.com", "--sender", "b@example.com")
    assert "--from is MAIL FROM" in asked(file, "--file", "-", *TO, *both, stdin=mail, code=64)


def test_a_route_that_is_asked_for_counts_where_it_is_honoured(tmp_path: Path) -> None:
    file = alone(tmp_path, routes="  - {name: rest, via: main}\n  - {name: named, via: main}")
    address = '{name: local, address: "127.0.0.1:0"'
    file.write_text(file.read_text().replace(address, f"{address}, honour: [class, route]"))
    mail = b"From: a@example.com\r\nX-Relay-Route: named\r\n\r\nx\r\n"
    found = json.loads(asked(file, "--file", "-", *TO, "--json", stdin=mail))
    assert (found["route"], [r["name"] for r in found["rules"]]) == ("named", ["named"])
    found = json.loads(asked(file, "--file", "-", *TO, "--json", stdin=mail.replace(b"named", b"gone")))
    assert found["route"] == "rest" and any("no route 'gone'" in n for n in found["notes"])
    assert "no listener 'lokal'" in asked(file, "--from", "a@example.com", *TO, "--listener", "lokal", code=65)


def test_a_listener_that_refuses_what_is_malformed(tmp_path: Path) -> None:
    file = alone(tmp_path)
    address = '{name: local, address: "127.0.0.1:0"'
    file.write_text(file.read_text().replace(address, f"{address}, headers: reject"))
    said = asked(file, "--file", "-", *TO, "--from", "a@example.com", stdin=b"Subject: s\r\n\r\nx\r\n", code=65)
    assert "554 5.6.0 the header has no From" in said


def test_the_verdict_is_of_from_as_it_leaves(tmp_path: Path) -> None:
    rewrite = "{from: '*@example.org', reverse_path: bounce@example.org}"
    file = alone(tmp_path, routes=f"  - {{name: all, via: main, rewrite: {rewrite}}}")
    text = asked(file, "--from", "app@inside.example", *TO)
    assert "From example.org is signed by nobody; the envelope domain example.org is aligned" in text
    assert "reverse-path: <app@inside.example> -> <bounce@example.org>" in text
    assert "From: app@inside.example -> app@example.org" in text and "becomes" not in text


def test_why_nobody_signs_is_told_by_the_entry(tmp_path: Path) -> None:
    signing = (
        "users: {shop: {password: {env: PATH}}}\n"
        "signing:\n"
        "  - {domain: over.example, selector: s1, key: {file: s1.pem}, not_after: 2025-11-20}\n"
        "  - {domain: shop.example, selector: s1, key: {file: s1.pem}, users: [shop]}\n"
        "  - {domain: example.org, selector: s1, key: {file: s1.pem}}\n"
        "  - {domain: new.example, selector: s1, key: {file: s1.pem}, when_published: true}\n"
    )
    file = alone(tmp_path, extra=signing)
    line = {
        n: i for i, text in enumerate(file.read_text().splitlines(), 1) for n in ("over", "shop", "org") if n in text
    }
    for author, expected in {
        "over.example": f"its only key is over since 2025-11-20 (relay.yaml:{line['over']}); give it a successor",
        "shop.example": f"relay.yaml:{line['shop']} signs for user shop only",
        "sub.example.org": f"or `subdomains: true` at relay.yaml:{line['org']}",
        "new.example": "whether s1._domainkey.new.example is published is not known yet",
    }.items():
        text = asked(file, "--from", f"a@{author}", *TO)
        assert expected in text, text
    text = asked(file, "--from", "a@shop.example", *TO)
    place = f"rsa (relay.yaml:{line['shop']})"
    assert f"does not sign: s1._domainkey.shop.example, {place}\n         it is for user shop only\n" in text
    text = asked(file, "--from", "a@new.example", *TO)
    assert "not known here whether its record was seen" in text and "has not been seen" not in text
    text = asked(file, "--from", "a@shop.example", "--user", "shop", *TO)
    assert f"signed by s1._domainkey.shop.example, {place}\n" in text and "s1.pem" not in text


async def test_a_running_relay_that_has_no_answer_yet(tmp_path: Path) -> None:
    keys(tmp_path)
    entry = "  - {domain: example.com, selector: s1, key: {file: s1.pem}, when_published: true}\n"
    with Scripted(lambda name, tcp: "SERVFAIL") as dns:
        more = f"signing:\n{entry}dns: {{servers: ['{dns.server}'], timeout: 1s}}\n"
        async with running(write_config(tmp_path, {"main": "port: 9, tls: none"}, extra=more)) as rig:
            text = await explained(rig, "--from", "a@example.com", *TO)
    assert "waits: the DNS has not answered yet" in text
    assert "whether s1._domainkey.example.com is published is not known yet" in text


def test_staging_shows_what_would_leave(tmp_path: Path) -> None:
    routes = "  - {name: news, via: main, rewrite: {reverse_path: verp, add: {X-Id: '{id}'}}}"
    file = alone(tmp_path, routes=routes, extra=SIGNING + "capture: {allow: ['*@ours.example']}\n")
    found = json.loads(asked(file, "--from", "app@example.com", *TO, "--json"))
    assert (found["route"], found["action"], found["before_capture"]) == ("capture", "capture", "news")
    assert found["egresses"][0]["alignment"] == "aligned_dkim"
    text = asked(file, "--from", "app@example.com", *TO)
    assert "→ capture" in text and "by route news it would leave so:" in text and "not dialled" in text
    assert "signed by s1._domainkey.example.com, rsa (relay.yaml:" in text and "tried for" not in text
    assert "X-Id: added" in text and "(the id and the tokens shown are samples)" in text


def test_a_signature_of_the_application_that_breaks(tmp_path: Path) -> None:
    routes = (
        "  - {name: new, match: {recipient: you@example.net}, via: main, rewrite: {from: '*@example.org'}}\n"
        "  - {name: rest, via: main, rewrite: {add: {X-Id: a}}}"
    )
    file = alone(tmp_path, routes=routes)
    mail = (
        signed(RSA, b"From: app@example.com\r\nTo: you@example.net\r\nSubject: t\r\n", b"hello\r\n", selector="own")
        + b"\r\nhello\r\n"
    )
    text = asked(file, "--file", "-", *TO, stdin=mail)
    assert "breaks its own signature own._domainkey.example.com: it covers From\n" in text
    text = asked(file, "--file", "-", "--to", "other@example.net", stdin=mail)
    assert "X-Id: added" in text and "breaks" not in text


def test_an_address_beyond_ascii(tmp_path: Path) -> None:
    users = "users: {shop: {password: {env: PATH}, senders: ['*@exämple.org']}}\n"
    file = alone(tmp_path, extra=users)
    found = json.loads(asked(file, "--from", "jörg@exämple.org", "--user", "shop", *TO, "--json"))
    assert (found["from"], found["route"]) == ("jörg@exämple.org", "all")
    assert found["egresses"][0]["why"].startswith("From exämple.org is signed by nobody")
