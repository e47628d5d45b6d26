"""The manual page and the completions: every verb and option is there, and what formats and loads them has nothing to complain of."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest

from relay.cli import cli, manual

NOW = 1_790_000_000.0


def shown(text: str) -> str:
    """As the page shows it, without the breaking of lines."""
    for roff, plain in (
        (r"\(aq", "'"),
        (r"\(ha", "^"),
        (r"\(ti", "~"),
        (r"\-", "-"),
        (r"\e", "\\"),
        (r"\fB", ""),
        (r"\fR", ""),
    ):
        text = text.replace(roff, plain)
    return re.sub(r"\\\[u([0-9A-F]+)\]", lambda found: chr(int(found[1], 16)), text)


def test_every_verb_and_option_is_in_it() -> None:
    page = manual.page(NOW)
    sections = {part.split("\n", 1)[0]: part for part in re.split(r"^\.SS ", page, flags=re.MULTILINE)[1:]}
    found = list(manual.commands(cli, click.Context(cli, info_name="relay")))
    assert [path for path, *_ in found] == list(sections) and len(found) > 50
    for path, command, _ in found:
        text = shown(sections[path])
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert all(name in text for name in (*parameter.opts, *parameter.secondary_opts)), (
                    path,
                    parameter.opts,
                )
        assert not command.help or " ".join(command.help.split("\n\n")[0].split()).replace("`", "") in text


def test_nothing_in_a_text_is_taken_for_roff() -> None:
    assert manual._rich(".TH `x`-y \\n 'q' é") == r"\&.TH \fBx\fR\-y \en \(aqq\(aq \[u00E9]"


@pytest.mark.parametrize("command", ["groff -man -ww -Tutf8 -z", "mandoc -T lint -W warning"], ids=["groff", "mandoc"])
def test_formats_without_a_warning(tmp_path: Path, command: str) -> None:
    if not shutil.which(command.split()[0]):
        pytest.skip(f"no {command.split()[0]}; tests/service/install-programs")
    manual.write(tmp_path, NOW)
    done = subprocess.run(
        [*command.split(), str(tmp_path / manual.PAGE)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("shell", sorted(manual.COMPLETIONS))
def test_completions_parse(tmp_path: Path, shell: str) -> None:
    text = manual.completion(shell)
    assert "_RELAY_COMPLETE" in text and "relay" in text
    if not shutil.which(shell):
        pytest.skip(f"no {shell}")
    done = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_build_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1790000000")
    assert manual.page(manual.built_at()) == manual.page(NOW) and '"2026-09-21"' in manual.page(NOW)


def test_it_is_made_with_what_a_build_has(tmp_path: Path) -> None:
    """`pip install .` builds where pyproject.toml's `build-system.requires` are, and nothing else."""
    code = (
        "import sys, pathlib; before = set(sys.modules)\n"
        "from relay.cli import manual; manual.write(pathlib.Path(sys.argv[1]), 0.0)\n"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert set(done.stdout.split()) == {"click", "relay"}
