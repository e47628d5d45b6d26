"""`relay suppress` against the real process: by hand, as files, and what is told of it elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import Upstream
from rig import Process, process, submit, write_config

from relay.cli.suppresscsv import COLUMNS
from relay.config.load import load

TEXT = b"From: app@example.com\r\nSubject: t\r\n\r\nhello\r\n"
HASH = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$Qh2lr6WXtkL0NDQr0lHRaTGxqfD0bmYmkE9IA/4RPA4"
EXTRA = f"""tenants: {{shop: {{}}}}
users: {{web: {{password_hash: "{HASH}", tenant: shop}}}}
suppression: {{on: [hard_bounce]}}"""


@dataclass
class Bench:
    relay: Process
    up: Upstream

    async def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = await asyncio.to_thread(self.relay.call, "suppress", *arguments)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    async def do(self, *arguments: str, code: int = 0) -> str:
        done = await self.call(*arguments)
        assert done.returncode == code, (arguments, done.returncode, done.stdout, done.stderr)
        return done.stdout

    async def json(self, *arguments: str) -> Any:
        return json.loads(await self.do(*arguments, "--json"))

    async def listed(self, *arguments: str) -> list[tuple[str, str, str]]:
        return [(r["address"], r["scope"], r["why"]) for r in await self.json("list", *arguments)]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with Upstream() as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, extra=EXTRA)
        with process(file) as relay:
            yield Bench(relay, up)


async def test_add_list_remove(bench: Bench) -> None:
    out = await bench.do("add", "Ann@Example.NET", "bob@example.net", "--reason", "asked by telephone", "--for", "30d")
    assert out.splitlines()[0].startswith("suppressed: ann@example.net (all, manual, until ")
    rows = await bench.json("list")
    assert set(rows[0]) == set(COLUMNS) and [row["address"] for row in rows] == ["ann@example.net", "bob@example.net"]
    assert rows[0]["evidence"].startswith("asked by telephone (by ") and rows[0]["source"] == "hand"
    assert rows[0]["until"] == pytest.approx(rows[0]["at"] + 30 * 86400, abs=60)
    with pytest.raises(AssertionError, match=r"ann@example[.]net> is suppressed"):
        await submit(bench.relay.port, [("app@example.com", ("ann@example.net",), TEXT)])
    assert (await bench.do("remove", "ANN@example.net")).startswith("removed: ann@example.net (all, manual")
    await submit(bench.relay.port, [("app@example.com", ("ann@example.net",), TEXT)])
    gone = await bench.call("remove", "ann@example.net", "bob@example.net")
    assert gone.returncode == 65 and gone.stderr == "ann@example.net: is not suppressed\n"
    assert gone.stdout.startswith("removed: bob@example.net") and await bench.listed() == []
    assert await bench.do("list", "ann@example.net") == ""


async def test_scopes(bench: Bench) -> None:
    await bench.do("add", "a@x.example", "--scope", "tenant:shop")
    await bench.do("add", "a@x.example", "--scope", "class:default")
    await bench.do("add", "a@x.example")
    assert [scope for _, scope, _ in await bench.listed("a@x.example")] == ["all", "class:default", "tenant:shop"]
    await bench.do("remove", "a@x.example", "--scope", "tenant:shop")
    assert [scope for _, scope, _ in await bench.listed("--scope", "class:default")] == ["class:default"]
    await bench.do("remove", "a@x.example")
    assert await bench.listed() == []


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("add", "nobody"), 65, "address has no @domain"),
        (("add", "a@x.example", "--scope", "tenant:shopp"), 64, "no tenant 'shopp'; there are: shop"),
        (("add", "a@x.example", "--scope", "everybody"), 65, "scope wants all, tenant:NAME or class:NAME"),
        (("add", "a@x.example", "--for", "soon"), 64, "soon"),
        (("add", "*@x.example"), 64, "a pattern would be nobody's"),
        (("add",), 64, "Missing argument"),
        (("remove",), 64, "remove whom?"),
        (("remove", "a@x", "*@y"), 64, "a pattern stands alone"),
        (("list", "--why", "anger"), 64, "anger"),
        (("import", "/nowhere.csv"), 64, "No such file"),
    ],
)
async def test_slips_of_the_pen(bench: Bench, arguments: tuple[str, ...], code: int, told: str) -> None:
    done = await bench.call(*arguments)
    assert done.returncode == code and told in done.stderr, (done.returncode, done.stderr)


async def test_one_that_is_stronger_stays(bench: Bench) -> None:
    await bench.do("add", "a@x.example")
    again = await bench.call("add", "a@x.example", "--for", "1h")
    assert again.returncode == 0 and "a@x.example: is suppressed already (all, manual)" in again.stderr


async def test_in_bulk_only_with_yes(bench: Bench) -> None:
    await bench.do("add", *(f"r{n}@x.example" for n in range(30)), "z@y.example")
    out = await bench.do("remove", "*@x.example", code=64)
    assert out == "30 entries; --yes removes them\n" and len(await bench.listed()) == 31
    out = await bench.do("remove", "*@x.example", "--yes")
    assert len(out.splitlines()) == 21 and out.splitlines()[-1] == "and 10 more"
    assert await bench.listed("--source", "hand", "--why", "manual") == [("z@y.example", "all", "manual")]
    assert await bench.do("remove", "*@x.example") == "0 entries; --yes removes them\n"


async def test_import_and_export(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "bounces.csv"
    file.write_text(
        "status,reason,email,created\n"
        '5.1.1,"550 no such user",gone@x.example,1700000000\n'
        '5.1.1,"=HYPERLINK(""http://x"")",+tag@x.example,1700000000\n'
        ",,not an address,\n"
    )
    dry = await bench.call("import", str(file), "--dry-run")
    assert dry.returncode == 65 and dry.stdout == "would be suppressed: 2; already: 0; not taken: 1 (of 3 lines)\n"
    assert await bench.listed() == []
    done = await bench.call("import", str(file))
    assert done.returncode == 65 and done.stderr == "line 4: address has no @domain\n"
    assert done.stdout == "suppressed: 2; already: 0; not taken: 1 (of 3 lines)\n"
    rows = {row["address"]: row for row in await bench.json("list")}
    assert rows["gone@x.example"]["why"] == "hard_bounce" and rows["gone@x.example"]["at"] == 1_700_000_000
    assert rows["gone@x.example"]["evidence"] == "5.1.1 550 no such user"

    out = tmp_path / "list.csv"
    await bench.do("export", str(out))
    assert out.stat().st_mode & 0o777 == 0o600
    text = out.read_text()
    assert "\n'+tag@x.example," in text.replace("\r\n", "\n")
    assert await bench.do("export") == text.replace("\r\n", "\n")
    await bench.do("remove", "*", "--yes")
    assert "suppressed: 2; already: 0" in await bench.do("import", str(out))
    assert "suppressed: 0; already: 2" in await bench.do("import", str(out))
    again = tmp_path / "again.csv"
    await bench.do("export", str(again))
    assert again.read_bytes() == out.read_bytes()


async def test_import_from_standard_input_with_what_the_lines_do_not_say(bench: Bench) -> None:
    lines = "a@x.example\nb@x.example\n"
    arguments = (
        "import",
        "-",
        "--scope",
        "class:default",
        "--why",
        "unsubscribe",
        "--reason",
        "old list",
        "--for",
        "1d",
    )
    done = await asyncio.to_thread(
        lambda: subprocess.run(
            [sys.executable, "-m", "relay", "suppress", *arguments, "--json"], input=lines, capture_output=True, text=True,
            timeout=120, check=False, env=bench.relay.env | {"RELAY_ENDPOINT": str(bench.relay.socket)},
        )
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["listed"], found["kept"], found["refused"], found["lines"], found["bad"]) == (2, 0, 0, 2, [])
    first, _ = await bench.json("list")
    assert (first["scope"], first["why"], first["evidence"]) == ("class:default", "unsubscribe", "old list")
    assert first["source"] == "import" and first["until"] is not None


async def test_many_lines_in_bounded_memory(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "many.txt"
    file.write_text("".join(f"r{n}@x.example\n" for n in range(5000)))
    assert "suppressed: 5000" in await bench.do("import", str(file))
    assert len(await bench.listed()) == 5000, "page after page"
    with pytest.raises(AssertionError, match="is suppressed"):
        await submit(bench.relay.port, [("app@example.com", ("r4999@x.example",), TEXT)])
    assert bench.relay.log.count("suppression_added") == 0, "an import is one line of the log for each part"


async def test_what_is_learnt_is_told_by_list_explain_and_show(bench: Bench) -> None:
    bench.up.script["RCPT"] = lambda a: "550 5.1.1 no such user" if "gone" in a else "250 ok"
    (number,) = await submit(bench.relay.port, [("app@example.com", ("gone@example.net",), TEXT)])
    for _ in range(200):
        if rows := await bench.json("list"):
            break
    (row,) = rows
    assert (row["why"], row["source"], row["queue_id"]) == ("hard_bounce", "smtp", number)
    table = await bench.do("list")
    assert "gone@example.net\tall\thard_bounce\tsmtp\t" in table and f"{number} 550 5.1.1 no such user" in table
    told = await asyncio.to_thread(bench.relay.cli, "explain", "--from", "app@example.com", "--to", "gone@example.net")
    assert "it would not be sent: suppressed for all, hard_bounce: 550 5.1.1 no such user" in told
    found = await asyncio.to_thread(
        bench.relay.json, "explain", "--from", "app@example.com", "--to", "gone@example.net"
    )
    assert [one["address"] for one in found["suppressed"]] == ["gone@example.net"]


async def test_nothing_in_a_cell_steers_a_terminal(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "odd.csv"
    file.write_text('address,evidence\na@x.example,"\x1b[2J\x07 =cmd|calc"\n')
    await bench.do("import", str(file))
    assert "\x1b" not in await bench.do("list") and "\x07" not in await bench.do("list")


async def test_the_examples_of_the_document(bench: Bench, tmp_path: Path) -> None:
    """Each command of docs/suppression.md, as it stands there, one after another."""
    page = (Path(__file__).parents[2] / "docs" / "suppression.md").read_text()
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    lines = [line.removeprefix("$ relay suppress ") for block in blocks for line in block.splitlines()]
    assert len(lines) == 10
    for line in lines:
        await bench.do(*(str(tmp_path / word) if word == "list.csv" else word for word in shlex.split(line)))
    (section,) = re.findall(r"```yaml\n(suppression:.*?)```", page, re.DOTALL)
    file = write_config(
        tmp_path, {"main": f"port: {bench.up.port}, tls: none"}, extra=section, path=tmp_path / "b.yaml"
    )
    found = load(file).suppression
    assert found.on == {"hard_bounce", "complaint", "unsubscribe"} and found.soft_count == 5 and found.scope == "tenant"


async def test_an_address_is_whole_on_a_narrow_terminal(bench: Bench) -> None:
    address, said = "somebody.with.a.long.name@department.example.net", "he wrote \x1b[31mthat he wants no more of it"
    await bench.do("add", address, "--reason", said, "--for", "30d")
    screen, tty = pty.openpty()
    with os.fdopen(screen, "rb", buffering=0) as read:
        with os.fdopen(tty, "wb") as write:
            command = [sys.executable, "-m", "relay", "suppress", "list"]
            env = bench.relay.env | {"RELAY_ENDPOINT": str(bench.relay.socket), "COLUMNS": "80", "NO_COLOR": "1"}
            done = await asyncio.to_thread(subprocess.run, command, stdout=write, env=env, timeout=120, check=True)
        text = ""
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while data := read.read(65536):
                text += data.decode()
    lines = text.splitlines()
    assert done.returncode == 0 and any(line.startswith(f"{address}  all  ") for line in lines), text
    assert "until " in text and "he wants no more of it" in " ".join(text.split()) and "\x1b[31mthat" not in text
