"""`relay presets` as a person reads it: nothing is broken within a word, whatever the width; and what it says of replies."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys

import pytest

from relay.config import presets


def relay(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "relay", *arguments], capture_output=True, text=True, timeout=120)


def on_terminal(columns: int, *arguments: str) -> list[str]:
    mine, theirs = pty.openpty()
    env = os.environ | {"COLUMNS": str(columns), "LINES": "40"}
    child = subprocess.Popen([sys.executable, "-m", "relay", *arguments], stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    text = b""
    try:
        while data := os.read(mine, 65536):
            text += data
    except OSError:  # EIO: the child has closed it
        text += b"\n"
    os.close(mine)
    assert child.wait(20) == 0, text
    return re.sub(r"\x1b\[[0-9;]*m|\r", "", text.decode()).splitlines()


@pytest.mark.parametrize("columns", [80, 120, 150])
def test_every_host_stands_whole(columns: int) -> None:
    lines = on_terminal(columns, "presets")
    for name in presets.names():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert presets.load_preset(name).host.split(".")[-1] in line and max(map(len, lines)) <= columns


def test_a_source_can_be_copied_from_a_narrow_terminal() -> None:
    lines = on_terminal(80, "presets", "ses")
    for fact in presets.load_preset("ses").facts.values():
        assert f"  {fact.source.url}, {fact.source.seen}" in lines


def test_into_a_pipe_it_is_a_table() -> None:
    rows = [line.split("\t") for line in relay("presets").stdout.splitlines()]
    assert [row[0] for row in rows] == list(presets.names())
    assert {len(row) for row in rows} == {7}


def test_what_is_no_refusal_has_no_meaning() -> None:
    done = relay("presets", "ses", "--reply", "250 ok")
    assert (done.returncode, "250 is no refusal" in done.stderr) == (64, True)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gmial", "did you mean 'gmail'?"),
        ("office365", "did you mean 'microsoft365'?"),
        ("google", "did you mean 'gmail' or 'gmail-relay'?"),
        ("Amazon", "did you mean 'ses'?"),
        ("x", "`relay presets` lists them"),
    ],
)
def test_who_names_the_product_is_led_to_the_preset(name: str, said: str) -> None:
    assert presets.no_such_preset(name).endswith(said)


@pytest.mark.parametrize("columns", [0, 80])
def test_what_is_done_for_a_time_is_shown_with_its_source(columns: int) -> None:
    lines = on_terminal(columns, "presets", "gmail") if columns else relay("presets", "gmail").stdout.splitlines()
    shown = lines[lines.index("What is done for a time when it says") :]
    (rule, blocked), (source, _) = presets.load_preset("gmail").shaping, presets.load_preset("gmail").shaping_sources
    text = " ".join(" ".join(shown).split())
    assert all(
        part in text for part in (rule.pattern.pattern, "slow to 50%", "30m", source.url, blocked.pattern.pattern)
    )
