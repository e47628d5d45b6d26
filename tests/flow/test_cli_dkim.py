"""`relay dkim`: a key from its making to a signature that verifies, against a real name server; and no private key anywhere."""

from __future__ import annotations

import grp
import io
import json
import os
import pty
import re
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nameserver import Knot, Scripted, knot, strings
from rig import ENV, free_port, write_config

from relay.cli import files, main
from relay.config.load import ConfigError, load
from relay.resolver import Resolver
from relay.secrets import Reference
from relay.signing import arc, keys
from relay.signing.canonical import body_hash
from relay.signing.dkim import Fields, Recipe, signature
from relay.signing.keys import KeyProblem, SigningKey, generate
from relay.signing.records import asking
from relay.signing.rules import Rule
from relay.signing.verify import DkimResult, Verifier

NOW = 1_790_000_000
HEAD = b"From: Ann <ann@example.com>\r\nTo: bob@example.net\r\nSubject: t\r\nDate: Mon, 21 Sep 2026 14:13:20 +0000\r\n"
BODY = b"hello\r\n.\r\n\r\nworld  \r\n"

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(name="call")
def _call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """`relay dkim …` with a configuration folder of its own, in this process: a start takes half a second.

    All that it said is kept in `said`.
    """
    monkeypatch.setenv("RELAY_CONFIG", str(tmp_path / "relay.yaml"))

    def call(*arguments: str, code: int | None = 0, given: bytes = b"") -> subprocess.CompletedProcess[str]:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", ["relay", "dkim", *arguments])
            patched.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            with pytest.raises(SystemExit) as end:
                main()
        texts = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
        done = subprocess.CompletedProcess(arguments, int(str(end.value.code or 0)), *texts)
        assert code is None or done.returncode == code, done
        with (tmp_path / "said").open("a") as file:
            file.write(done.stdout + done.stderr)
        return done

    return call


def process(*arguments: str, code: int = 0, **env: str) -> str:
    """As `call`, a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "relay", "dkim", *arguments],
        capture_output=True, text=True, timeout=120, check=False, env=ENV | env,
    )  # fmt: skip
    assert done.returncode == code, done
    return done.stdout + done.stderr


@pytest.fixture(name="zone")
def _zone(tmp_path: Path) -> Iterator[Knot]:
    with knot(tmp_path / "knot") as made:
        made.serve(example_com=[])
        yield made


def config(folder: Path, signing: str, server: str, more: str = "") -> Path:
    section = f"signing:\n{signing}\n" if signing else ""
    return write_config(
        folder, {"main": "port: 1, tls: none"}, extra=f"{section}dns: {{servers: ['{server}'], timeout: 10s}}\n{more}"
    )


def kept(folder: Path, name: str, key: SigningKey) -> Path:
    file = folder / name
    file.write_text(key.pem())
    file.chmod(0o640)
    return file


def signed(key: SigningKey, domain: str = "example.com", selector: str = "s1") -> bytes:
    recipe = Recipe(domain, selector, key, NOW, sign=frozenset({b"from", b"to", b"subject"}), always=(b"from",))
    return signature(recipe, Fields(HEAD), body_hash(BODY, "relaxed")) + HEAD


def rows(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    return [line.split("\t") for line in done.stdout.splitlines()]


# -- the whole way


def test_from_a_key_to_a_signature_that_verifies(call: Call, zone: Knot, tmp_path: Path) -> None:
    environment = {"RELAY_CONFIG": str(tmp_path / "relay.yaml")}
    told = process("keygen", "Example.COM.", "--type", "both", "--selector", "S1", **environment)
    made = sorted((tmp_path / "dkim").iterdir())
    assert [file.name for file in made] == ["example.com.s1-ed25519.pem", "example.com.s1.pem"]
    # What it prints is what is pasted: the records into a zone, the lines into the configuration.
    records = re.findall(r"^s1.* IN TXT \((?:.|\n)*?\)$", told, re.M)
    lines = "\n".join(re.findall(r"^  - \{domain: .*$", told, re.M))
    assert len(records) == 2 and lines.count("\n") == 1
    config(tmp_path, lines, zone.server)
    assert [rule.when_published for rule in load(tmp_path / "relay.yaml").signing.rules] == [True, True]

    done = call("dns", code=65)
    assert [row[:4] for row in rows(done)] == [
        ["example.com", "s1", "rsa-sha256", "absent"],
        ["example.com", "s1-ed25519", "ed25519-sha256", "absent"],
    ]
    assert "_dmarc.example.com: no DMARC record" in done.stderr
    zone.serve(example_com=[*records, '_dmarc TXT "v=DMARC1; p=reject"'])
    config(tmp_path, lines, zone.server)
    done = call("dns")
    assert [row[3] for row in rows(done)] == ["ok", "ok"] and "_dmarc.example.com: v=DMARC1; p=reject" in done.stderr

    rsa, edwards = (
        keys.read(Reference("file", str(tmp_path / f"dkim/example.com.{s}.pem"))) for s in ("s1", "s1-ed25519")
    )
    message = tmp_path / "mail.eml"
    message.write_bytes(signed(edwards, selector="s1-ed25519").removesuffix(HEAD) + signed(rsa) + b"\r\n" + BODY)
    assert [row[:4] for row in rows(call("verify", str(message)))] == [
        ["example.com", "s1-ed25519", "ed25519-sha256", "pass"],
        ["example.com", "s1", "rsa-sha256 2048", "pass"],
    ]
    assert process("dns", **environment).count("\tok\t") == 2
    assert process("verify", str(message), **environment).count("\tpass\t") == 2
    message.write_bytes(message.read_bytes() + b"more\r\n")
    assert process("verify", str(message), code=65, **environment).count("\tfail\t") == 2


# -- keygen


def test_what_is_made_is_the_service_s_to_read(call: Call, tmp_path: Path) -> None:
    call("keygen", "example.com", "--selector", "s1")
    file = tmp_path / "dkim" / "example.com.s1.pem"
    assert stat.S_IMODE(file.stat().st_mode) == (0o640 if os.geteuid() == 0 else 0o600)
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o750
    assert Reference("file", str(file)).exposed() == ("", True)
    assert os.listdir(file.parent) == [file.name], "nothing else is left"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root hands files over")
def test_it_is_handed_to_the_service_s_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GROUP", "daemon")
    files.folder(tmp_path / "dkim", 0o750, "")
    files.write(tmp_path / "dkim" / "one", "text", 0o640, "")
    for path in (tmp_path / "dkim", tmp_path / "dkim" / "one"):
        assert path.stat().st_gid == grp.getgrnam("daemon").gr_gid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's group is nobody else's")
def test_without_the_service_s_group_it_is_root_s(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/operations.md says."""
    monkeypatch.setattr(files, "GROUP", "no-such-group")
    call("keygen", "example.com", "--selector", "s1")
    found = (tmp_path / "dkim" / "example.com.s1.pem").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 0, os.getegid())


def test_a_key_that_few_take_is_warned_of(call: Call) -> None:
    def warned(*how: str) -> str:
        return call("keygen", "example.com", "--force", "--selector", "s1", "--json", *how).stderr

    assert "few receivers verify Ed25519" in warned("--type", "ed25519")
    assert "1024 bits" in warned("--bits", "1024") and "1024 bits" in warned("--bits", "1024", "--type", "both")
    assert warned() == warned("--type", "both") == ""


def test_the_lines_go_below_what_is_there(call: Call) -> None:
    told = call("keygen", "example.com", "--selector", "s1").stdout
    assert "paste the lines below the `signing:` that is there, if there is one:\n\nsigning:\n  - {" in told


def test_json_is_flat_and_public(call: Call, tmp_path: Path) -> None:
    (one,) = json.loads(
        call("keygen", "example.com", "--bits", "1024", "--out", str(tmp_path / "a b"), "--json").stdout
    )
    assert {type(value) for value in one.values()} <= {str, int}
    assert re.fullmatch(r"s20\d\d\d\d", one["selector"]) and one["bits"] == 1024
    assert one["file"] == str(tmp_path / "a b" / f"example.com.{one['selector']}.pem")
    key = keys.read(Reference("file", one["file"]))
    assert one["record"] == key.record and "".join(re.findall(r'"(.*?)"', one["zone"])) == key.record
    assert max(map(len, re.findall(r'"(.*?)"', one["zone"]))) <= 255
    config(tmp_path, "  " + one["signing"], "127.0.0.1")
    assert load(tmp_path / "relay.yaml").signing.rules[0].key == key


def test_nothing_is_written_over(call: Call, tmp_path: Path) -> None:
    call("keygen", "example.com", "--selector", "s1-ed25519", "--type", "ed25519")
    file = tmp_path / "dkim" / "example.com.s1-ed25519.pem"
    before = file.read_bytes()
    done = call("keygen", "example.com", "--selector", "s1", "--type", "both", code=73)
    assert "is there already" in done.stderr and file.read_bytes() == before
    assert not (tmp_path / "dkim" / "example.com.s1.pem").exists(), "all or none"
    call("keygen", "example.com", "--selector", "s1", "--type", "both", "--force")
    assert file.read_bytes() != before
    done = call("keygen", "example.com", "--out", "/proc/nowhere", code=73)
    assert "--out FOLDER" in done.stderr and "Traceback" not in done.stderr
    for wrong in (["ex ample.com"], ["*.example.com"], ["../etc"], ["example.com", "--selector", "a b"], []):
        call("keygen", *wrong, code=64)
    assert call("keygen", "bücher.example", "--selector", "s1").stdout.count("xn--bcher-kva.example") > 3


# -- dns


def entry(domain: str, selector: str, file: Path, more: str = "") -> str:
    return f"  - {{domain: '{domain}', selector: {selector}, key: {{file: {file}}}{more}}}"


def test_what_is_wrong_is_told_with_what_to_do(call: Call, zone: Knot, tmp_path: Path) -> None:
    key, other = generate("rsa", 1024), generate("rsa", 1024)
    file = kept(tmp_path, "key.pem", key)
    zone.serve(
        example_com=[
            f"good._domainkey TXT {strings(key.record)}",
            "alias._domainkey CNAME theirs._domainkey.customer.test.",
            f"other._domainkey TXT {strings(other.record)}",
            'gone._domainkey TXT "v=DKIM1; p="',
            f"two._domainkey TXT {strings(key.record)}",
            'two._domainkey TXT "v=spf1 -all"',
            f"cut._domainkey TXT {strings(key.record[:100])}",
            f"test._domainkey TXT {strings(key.record + '; t=y')}",
        ],
        customer_test=[f"theirs._domainkey TXT {strings(key.record)}"],
    )
    selectors = ["good", "alias", "other", "gone", "two", "cut", "test", "missing"]
    config(tmp_path, "\n".join(entry("example.com", s, file) for s in selectors), zone.server)
    done = call("dns", "--json", code=65)
    found = {row["selector"]: row for row in json.loads(done.stdout)}
    assert {selector: row["verdict"] for selector, row in found.items()} == {
        "good": "ok",
        "alias": "ok",
        "other": "wrong key",
        "gone": "revoked",
        "two": "several",
        "cut": "wrong key",
        "test": "ok",
        "missing": "absent",
    }
    assert all(row["text"] for s, row in found.items() if s not in ("good", "alias"))
    assert all(not isinstance(value, dict | list) for row in found.values() for value in row.values())
    assert {row["record"] for row in found.values()} == {key.record}, "of a key that is there already"
    assert {row["name"] for row in found.values()} == {f"{s}._domainkey.example.com" for s in selectors}
    # What is to be published is said as keygen says it: the zone's file may hold it as it stands.
    told = call("dns", code=65).stderr
    lines = re.findall(r"^[\w.]+ IN TXT \((?:.|\n)*?\)$", told, re.M)
    assert [line.partition(".")[0] for line in lines] == ["other", "two", "cut", "missing"], "a revoked key is over"
    zone.serve(example_com=lines)
    now = {row[1]: row[3] for row in rows(call("dns", "--server", zone.server, code=65))}
    assert [now[selector] for selector in ("other", "two", "cut", "missing")] == ["ok"] * 4
    assert found["good"]["dmarc"] == "" and found["good"]["origin"].startswith(str(tmp_path / "relay.yaml:"))


def test_which_entries_are_asked_for(call: Call, zone: Knot, tmp_path: Path) -> None:
    key = generate("ed25519")
    file = kept(tmp_path, "key.pem", key)
    lines = [
        entry("example.com", "s1", file, ", users: [shop], subdomains: true"),
        entry("example.com", "s1", file, ", routes: [all]"),
        entry("*.example.com", "w1", file),
        entry("*", "any", file, ", as: example.com"),
    ]
    zone.serve(
        example_com=[
            f"{name}._domainkey TXT {strings(key.record)}" for name in ("s1", "any", "w1")
        ] + [f"w1._domainkey.news TXT {strings(key.record)}", '_dmarc TXT "v=DMARC1; p=none"']
    )  # fmt: skip
    users = "users: {shop: {password_hash: '$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaGhhc2hoYXNoaGFzaA'}}\n"
    config(tmp_path, "\n".join(lines), zone.server, users)
    done = call("dns")
    assert [row[:4] for row in rows(done)] == [
        ["example.com", "s1", "ed25519-sha256", "ok"],
        ["example.com", "any", "ed25519-sha256", "ok"],
    ]
    assert "*.example.com is asked for where a domain is said" in done.stderr
    (row,) = json.loads(call("dns", "example.com", "--json").stdout)
    assert row["selector"] == "s1" and row["origin"].count("relay.yaml:") == 2, "each key and place once"
    table = {"news.example.com": 2, "deep.news.example.com": 2, "elsewhere.test": 1}
    found = {domain: json.loads(call("dns", domain, "--json", code=None).stdout) for domain in table}
    assert {domain: len(asked) for domain, asked in found.items()} == table
    assert {(r["domain"], r["selector"], r["verdict"]) for r in found["news.example.com"]} == {
        ("news.example.com", "w1", "ok"),
        ("example.com", "s1", "ok"),
    }
    assert found["news.example.com"][0]["dmarc"] == "v=DMARC1; p=none", "the organisation's"
    assert [(r["domain"], r["verdict"]) for r in found["elsewhere.test"]] == [("example.com", "ok")]


def test_a_rotation_that_is_over_is_no_fault(call: Call, zone: Knot, tmp_path: Path) -> None:
    key = generate("ed25519")
    file = kept(tmp_path, "key.pem", key)
    old = entry("example.com", "old", file, ", not_after: 2026-01-01")
    zone.serve(example_com=[f"new._domainkey TXT {strings(key.record)}"])
    config(tmp_path, f"{old}\n{entry('example.com', 'new', file)}", zone.server)
    assert [row[3] for row in rows(call("dns"))] == ["over", "ok"]
    config(tmp_path, f"{old}\n{entry('example.com', 'next', file)}", zone.server)
    assert [row[3] for row in rows(call("dns", code=65))] == ["absent", "absent"], "it signs until its successor does"


def test_a_key_that_is_over_and_has_no_successor_is_a_fault(call: Call, zone: Knot, tmp_path: Path) -> None:
    key = generate("ed25519")
    file = kept(tmp_path, "key.pem", key)
    old = entry("example.com", "old", file, ", not_after: 2026-01-01")
    zone.serve(example_com=[f"{name}._domainkey TXT {strings(key.record)}" for name in ("old", "new")])
    told = "over, and no other key signs: example.com leaves unsigned"
    config(tmp_path, old, zone.server)
    assert [row[3:] for row in rows(call("dns", code=65))] == [["over", told]]
    config(tmp_path, f"{old}\n{entry('example.com', 'new', file, ', not_before: 2126-01-01')}", zone.server)
    assert [row[3:] for row in rows(call("dns", code=65))] == [["over", told], ["ok", ""]]
    config(tmp_path, f"{old}\n{entry('example.org', 'new', file)}", zone.server)
    assert ["over", told] in [row[3:] for row in rows(call("dns", code=65))], "another domain's"


def test_a_dmarc_record_that_can_not_be_read_is_remarked(call: Call, tmp_path: Path) -> None:
    key = generate("ed25519")
    config(tmp_path, entry("example.com", "s1", kept(tmp_path, "key.pem", key)), "127.0.0.1")
    answers = {"s1._domainkey.example.com": [key.record], "_dmarc.example.com": ["v=spf1 -all", "v=DMARC1 p=none"]}
    with Scripted(lambda name, tcp: answers.get(name, "NXDOMAIN")) as up:
        done = call("dns", "--server", up.server)
        (row,) = json.loads(call("dns", "--server", up.server, "--json").stdout)
    assert "_dmarc.example.com: v=DMARC1 p=none\n_dmarc.example.com: receivers can't read this" in done.stderr
    assert row["dmarc"] == "v=DMARC1 p=none" and "can't read" in row["dmarc_remark"]


def test_trouble_is_75_and_a_fault_goes_before_it(call: Call, tmp_path: Path) -> None:
    key = generate("ed25519")
    file = kept(tmp_path, "key.pem", key)
    two = f"{entry('example.com', 's1', file)}\n{entry('example.org', 's1', file)}"
    with Scripted(lambda name, tcp: "SERVFAIL") as up:
        config(tmp_path, two, up.server)
        done = call("dns", code=75)
        assert [row[3] for row in rows(done)] == ["unknown", "unknown"] and "SERVFAIL" in done.stdout
        assert {row["dmarc"] for row in json.loads(call("dns", "--json", code=75).stdout)} == {None}
    with Scripted(lambda name, tcp: "SERVFAIL" if "example.org" in name else "NXDOMAIN") as up:
        call("dns", "--server", up.server, code=65)
    with Scripted(lambda name, tcp: [key.record]) as up:
        call("dns", "--server", up.server)


def test_nothing_to_ask_for(call: Call, tmp_path: Path) -> None:
    assert "relay init" in call("dns", code=78).stderr
    config(tmp_path, "", "127.0.0.1")
    assert "there is no `signing`" in call("dns", code=65).stderr
    file = kept(tmp_path, "key.pem", generate("ed25519"))
    config(tmp_path, entry("*.example.com", "s1", file), "127.0.0.1")
    assert "say a domain" in call("dns", code=65).stderr
    assert "no entry of `signing` is for example.org" in call("dns", "example.org", code=65).stderr
    call("dns", "no domain", code=64)
    call("dns", "a.example.com", "--server", "dns.example", code=64)
    (tmp_path / "relay.yaml").write_text("nonsense: 1\n")
    assert "nonsense" in call("dns", code=78).stderr


@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal(tmp_path: Path, columns: int) -> None:
    file = kept(tmp_path, "key.pem", generate("rsa", 1024))
    with Scripted(lambda name, tcp: "NXDOMAIN") as up:
        made = config(tmp_path, entry("a-long-name.of-a-customer.example.com", "s202612-ed25519", file), up.server)
        mine, theirs = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-m", "relay", "dkim", "dns", "--config", str(made)],
            stdout=theirs, stderr=theirs, env=ENV | {"COLUMNS": str(columns), "LINES": "50", "NO_COLOR": "1"},
        )  # fmt: skip
        os.close(theirs)
        text = b""
        try:
            while data := os.read(mine, 65536):
                text += data
        except OSError:
            text += b""  # EIO: the child has closed it
        finally:
            os.close(mine)
        assert child.wait(30) == 65
    lines = re.sub(r"\x1b\[[0-9;]*m|\r", "", text.decode()).splitlines()
    assert lines[0].split()[:4] == ["DOMAIN", "SELECTOR", "ALGORITHM", "RESULT"]
    assert lines[1].split()[:4] == ["a-long-name.of-a-customer.example.com", "s202612-ed25519", "rsa-sha256", "absent"]
    assert "publish the record" in (lines[2] if columns == 80 else lines[1])


# -- verify


def verdicts(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    return [(row["kind"], row["result"]) for row in json.loads(done.stdout)]


def test_verify_without_the_dns(call: Call, tmp_path: Path) -> None:
    key, other = generate("ed25519"), generate("ed25519")
    file = kept(tmp_path, "key.pem", key)
    message = signed(key) + b"\r\n" + BODY
    eml = tmp_path / "mail.eml"
    eml.write_bytes(message)
    for how in (("--key", str(file)), ("--record", key.record)):
        assert verdicts(call("verify", str(eml), *how, "--json")) == [("dkim", "pass")]
        assert verdicts(call("verify", "-", *how, "--json", given=message.replace(b"\r\n", b"\n"))) == [
            ("dkim", "pass")
        ]
    altered = call("verify", "-", "--key", str(file), given=message.replace(b"hello", b"hallo"), code=65)
    assert rows(altered)[0][3] == "fail" and "body" in altered.stdout
    assert verdicts(call("verify", str(eml), "--record", other.record, "--json", code=65)) == [("dkim", "fail")]
    assert verdicts(call("verify", str(eml), "--record", "v=spf1 -all", "--json", code=65)) == [("dkim", "permerror")]
    one_bad = signed(other, selector="s2").removesuffix(HEAD) + message
    assert [r for _, r in verdicts(call("verify", "-", "--key", str(file), "--json", given=one_bad, code=65))] == [
        "fail",
        "pass",
    ]
    for nothing in (HEAD + b"\r\n" + BODY, b"", b"\r\n", b"\0\xff" * 100):
        assert "no DKIM signature" in call("verify", "-", "--key", str(file), given=nothing, code=65).stderr
    assert call("verify", "-", "--key", str(file), "--json", given=b"", code=65).stdout == "[]\n"
    assert "two ed25519 keys" in call("verify", str(eml), "--key", str(file), "--record", key.record, code=64).stderr
    call("verify", str(tmp_path / "none.eml"), code=64)
    assert "no private key" in call("verify", str(eml), "--key", str(eml), code=65).stderr


def test_each_signature_is_held_against_the_key_that_is_for_it(call: Call, tmp_path: Path) -> None:
    rsa, edwards, old = generate("rsa", 1024), generate("ed25519"), generate("rsa", 1024)
    r, e, o = (kept(tmp_path, name, key) for name, key in (("r:1", rsa), ("e", edwards), ("o", old)))
    both = signed(edwards, selector="S1-ed25519").removesuffix(HEAD) + signed(rsa) + b"\r\n" + BODY

    def results(*how: str, code: int = 0, given: bytes = both) -> list[str]:
        return [result for _, result in verdicts(call("verify", "-", "--json", *how, given=given, code=code))]

    assert results("--key", str(r), "--key", str(e)) == ["pass", "pass"]
    assert results("--key", str(r), "--record", edwards.record) == ["pass", "pass"]
    assert results("--key", str(e)) == ["pass", "not checked"]
    assert results("--key", str(r)) == ["not checked", "pass"]
    assert results("--key", f"other:{r}", code=65) == ["not checked", "not checked"], "nothing was proved"
    assert results("--key", f"s1:{r}", "--key", f"old:{o}") == ["not checked", "pass"]
    assert results("--key", f"S1:{r}", "--record", f"v=DKIM1; h=sha256:x; p={old.public}") == ["not checked", "pass"]
    assert results("--key", f"s1:{o}", "--key", str(e), code=65) == ["pass", "fail"]
    assert results("--record", f"s1-ed25519:{edwards.record}") == ["pass", "not checked"]
    assert results("--key", str(e), given=both.replace(b"hello", b"hallo"), code=65)[0] == "fail"
    assert "two rsa keys are for any selector" in call("verify", "-", "--key", str(r), "--key", str(o), code=64).stderr
    (_, unchecked) = rows(call("verify", "-", "--key", str(e), given=both))
    assert unchecked[3:] == ["not checked", "no rsa key for it was given"]


def test_verify_by_the_dns(call: Call, tmp_path: Path) -> None:
    key = generate("rsa", 1024)
    message = signed(key) + b"\r\n" + BODY
    answer: Any = [key.record]
    with Scripted(lambda name, tcp: answer) as up:
        config(tmp_path, "", up.server)
        assert verdicts(call("verify", "-", "--json", given=message)) == [("dkim", "pass")]
        answer = ["v=spf1 -all", key.record]
        assert verdicts(call("verify", "-", "--json", given=message)) == [("dkim", "pass")]
        answer = "NXDOMAIN"
        assert verdicts(call("verify", "-", "--json", given=message, code=65)) == [("dkim", "permerror")]
        answer = "SERVFAIL"
        assert verdicts(call("verify", "-", "--json", given=message, code=75)) == [("dkim", "temperror")]
        answer = [key.record]
        (tmp_path / "relay.yaml").write_text("nonsense: 1\n")
        assert verdicts(call("verify", "-", "--server", up.server, "--json", given=message)) == [("dkim", "pass")]
        call("verify", "-", "--config", str(tmp_path / "relay.yaml"), given=message, code=78)
        assert {name for name, _ in up.asked} == {"s1._domainkey.example.com"}
    silent = f"127.0.0.1:{free_port()}"
    (row,) = rows(call("verify", "-", "--server", silent, given=message, code=75))
    assert row[3] == "temperror" and row[4].startswith(f"127.0.0.1 port {silent.rpartition(':')[2]}: "), row


def test_a_mail_is_not_told_which_server_was_silent() -> None:
    """What is said of a signature stands in the seal of a mail."""
    ask = asking(Resolver((f"127.0.0.1:{free_port()}",), 0.5))
    (found,) = Verifier(signed(generate("ed25519")), BODY, ask, NOW).dkim()
    assert found.result == "temperror" and "127.0.0.1" not in found.why


def test_verify_a_chain(call: Call, tmp_path: Path) -> None:
    key = generate("rsa", 1024)
    file = kept(tmp_path, "key.pem", key)
    head = signed(key)
    verifier = Verifier(head, BODY, lambda name, timeout=0: key.record.encode(), NOW)
    assert [one.result for one in verifier.dkim()] == ["pass"] and isinstance(verifier.dkim()[0], DkimResult)
    sealed = (
        arc.seal(head, BODY, key, "example.net", "a1", "mx.example.net", verifier.dkim(), verifier.arc(), NOW) + head
    )
    done = call("verify", "-", "--key", str(file), "--json", given=sealed + b"\r\n" + BODY)
    assert verdicts(done) == [("dkim", "pass"), ("arc", "pass")]
    assert rows(call("verify", "-", "--key", str(file), given=sealed + b"\r\n" + BODY))[1][1:4] == [
        "i=1",
        "ARC",
        "pass",
    ]
    broken = sealed.replace(b"cv=none", b"cv=pass") + b"\r\n" + BODY
    assert verdicts(call("verify", "-", "--key", str(file), "--json", given=broken, code=65))[1] == ("arc", "fail")


def test_what_a_stranger_wrote_steers_no_terminal(call: Call, tmp_path: Path) -> None:
    file = kept(tmp_path, "key.pem", generate("ed25519"))
    evil = b"DKIM-Signature: v=1; a=\x1b[31mred; d=ex\x07ample.com; s=\x1b]0;t\x07; h=from; bh=x; b=y\r\n" + HEAD
    done = call("verify", "-", "--key", str(file), given=evil + b"\r\n" + BODY, code=65)
    assert re.fullmatch(r"[\x20-\x7e\t\n]*", done.stdout + done.stderr), done


# -- secrets


CANARY = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnk"  # it is base64


@pytest.mark.parametrize(
    "text",
    [
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----\n",
        f"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,{CANARY}\n\n{CANARY}\n",
        f"-----BEGIN ENCRYPTED PRIVATE KEY-----\n{CANARY}\n-----END ENCRYPTED PRIVATE KEY-----\n",
        f"-----BEGIN EC PRIVATE KEY-----\n{CANARY}\n-----END EC PRIVATE KEY-----\n",
        CANARY,
        f"{CANARY}\xff",
        f"k: {CANARY}",
        "\x00" + CANARY,
    ],
    ids=range(8),
)
def test_a_bad_key_is_quoted_nowhere(call: Call, tmp_path: Path, text: str) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(text.encode("latin-1"))
    file.chmod(0o640)
    config(tmp_path, entry("example.com", "s1", file), "127.0.0.1")
    call("dns", code=78)
    call("dns", "example.com", "--json", code=78)
    call("verify", "-", "--key", str(file), code=65)
    call("verify", "-", "--config", str(tmp_path / "relay.yaml"), code=78)
    call("keygen", "example.com", "--selector", "s1", "--out", str(tmp_path))
    with pytest.raises(KeyProblem) as problem:
        keys.read(Reference("file", str(file)))
    with pytest.raises(ConfigError) as refused:
        load(tmp_path / "relay.yaml")
    told = (tmp_path / "said").read_text()
    for error in (problem.value, refused.value):
        told += "".join(traceback.format_exception(error)) + repr(error)
    assert CANARY not in told and CANARY[:12] not in told and "Traceback (most" not in (tmp_path / "said").read_text()


def test_a_good_key_is_printed_nowhere(call: Call, tmp_path: Path) -> None:
    """Not by the verb that makes it, nor by those that use it, nor in what stands for it."""
    call("keygen", "example.com", "--type", "both", "--selector", "s1", "--bits", "1024")
    call("keygen", "example.com", "--type", "both", "--selector", "s1", "--bits", "1024", code=73)
    call("keygen", "example.com", "--type", "both", "--selector", "s2", "--bits", "1024", "--json")
    made = sorted((tmp_path / "dkim").iterdir())
    assert len(made) == 4
    lines = "\n".join(entry("example.com", f"s{n}", file) for n, file in enumerate(made))
    told = ""
    with Scripted(lambda name, tcp: "NXDOMAIN") as up:
        config(tmp_path, lines, up.server)
        call("dns", code=65)
        call("dns", "--json", code=65)
        for file in made:
            key = keys.read(Reference("file", str(file)))
            message = signed(key) + b"\r\n" + BODY
            call("verify", "-", "--key", str(file), given=message)
            call("verify", "-", "--json", given=message, code=65)
            rule = Rule("example.com", "s1", key)
            told += repr(key) + repr(rule) + repr(rule.recipe("example.com", NOW)) + str(key)
            try:
                raise ValueError(key, rule)
            except ValueError:
                told += traceback.format_exc()
    told += (tmp_path / "said").read_text()
    for file in made:
        private = "".join(file.read_text().splitlines()[1:-1])
        # RSA's file begins with its public modulus; what is private comes after.
        secret = private if "ed25519" in file.name else private[len(private) // 2 :]
        assert "BEGIN" not in told
        assert all(secret[at : at + 16] not in told for at in range(0, len(secret) - 16, 4)), file
