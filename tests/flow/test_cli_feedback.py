"""`relay feedback parse` as a person and a script use it: files, folders, standard input; what cannot be read is told last."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from relay.returned import Finding, Kind

GONE = b"""From: MAILER-DAEMON@mx.example
To: shop@example.com
Subject: Undelivered Mail
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example

Final-Recipient: rfc822; gone@example.net
Action: failed
Status: 5.1.1
Diagnostic-Code: smtp; 550 5.1.1 no such user

Final-Recipient: rfc822; full@example.net
Action: delayed
Status: 4.2.2
--b
Content-Type: text/rfc822-headers

Received: from app (local)
\tby relay.example with ESMTP id 1PGWBZ00001;
\tMon, 23 Nov 2026 01:00:00 +0000
Message-ID: <1@app.example>
--b--
"""
LUNCH = b"From: ann@example.net\nSubject: Lunch?\n\nToday?\n"


def parse(*arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "relay", "feedback", "parse", *map(str, arguments)],
        input=stdin,
        capture_output=True,
        timeout=60,
    )


def rows(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_one_list_with_an_object_for_each_recipient(tmp_path: Path) -> None:
    (tmp_path / "gone.eml").write_bytes(GONE)
    (tmp_path / "lunch.eml").write_bytes(LUNCH)
    done = parse(tmp_path / "gone.eml", tmp_path / "lunch.eml", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    found = rows(done)
    assert [(row["kind"], row["recipient"], row["class"], row["status"], row["reason"]) for row in found] == [
        ("bounce", "gone@example.net", "hard", "5.1.1", "user_unknown"),
        ("bounce", "full@example.net", "soft", "4.2.2", "mailbox_full"),
        ("other", "", "", "", ""),
    ]
    assert [Path(row["file"]).name for row in found] == ["gone.eml", "gone.eml", "lunch.eml"]
    assert {row["queue_id"] for row in found} == {"1PGWBZ00001", ""}
    assert all(set(row) == {"file", *Finding(Kind.OTHER).row()} for row in found)


def test_a_folder_is_walked_and_standard_input_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "1").write_bytes(GONE)
    (tmp_path / ".hidden").write_bytes(GONE)
    assert [Path(row["file"]).name for row in rows(parse(tmp_path, "--json"))] == ["1", "1"]
    done = parse("-", "--json", stdin=GONE)
    assert [row["file"] for row in rows(done)] == ["-", "-"]


def test_what_cannot_be_read_is_told_after_the_others(tmp_path: Path) -> None:
    (tmp_path / "gone.eml").write_bytes(GONE)
    (tmp_path / "empty").mkdir()
    done = parse(tmp_path / "missing.eml", tmp_path / "gone.eml", tmp_path / "empty", "--json")
    assert done.returncode == 65
    assert len(rows(done)) == 2
    assert b"a folder without a file" in done.stderr and b"1 more file could not be read" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    alone = parse(tmp_path / "missing.eml")
    assert (alone.returncode, b"missing.eml: No such file" in alone.stderr) == (65, True)


def test_without_a_file_it_says_how(tmp_path: Path) -> None:
    assert parse().returncode == 64


def test_a_report_as_a_file_is_read(tmp_path: Path) -> None:
    report = {"organization-name": "x", "report-id": "1", "policies": [], "date-range": {
        "start-datetime": "2026-11-22T00:00:00Z", "end-datetime": "2026-11-23T00:00:00Z"}}  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(report))
    assert [row["kind"] for row in rows(parse(tmp_path / "r.json", "--json"))] == ["tlsrpt"]


def test_into_a_pipe_it_is_a_line_for_each(tmp_path: Path) -> None:
    (tmp_path / "gone.eml").write_bytes(GONE)
    lines = [line.split("\t") for line in parse(tmp_path / "gone.eml").stdout.decode().splitlines()]
    assert [line[1:7] for line in lines] == [
        ["bounce", "hard", "gone@example.net", "5.1.1", "user_unknown", "1PGWBZ00001"],
        ["bounce", "soft", "full@example.net", "4.2.2", "mailbox_full", "1PGWBZ00001"],
    ]


def test_on_a_terminal_nothing_steers_it(tmp_path: Path) -> None:
    (tmp_path / "gone.eml").write_bytes(GONE.replace(b"no such user", b"no such user \x1b[2J\x07"))
    for n in range(30):  # a bar for many
        (tmp_path / f"{n}.eml").write_bytes(LUNCH)
    mine, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "relay", "feedback", "parse", str(tmp_path)],
        stdout=theirs,
        stderr=theirs,
        env=os.environ,
    )
    os.close(theirs)
    text = b""
    try:
        while data := os.read(mine, 65536):
            text += data
    except OSError:  # EIO: the child has closed it
        text += b"\n"
    os.close(mine)
    assert child.wait(20) == 0
    shown = re.sub(rb"\x1b\[[0-9;?]*[mhlK]", b"", text)
    assert b"gone@example.net" in shown and b"parse" in shown
    assert b"\x1b[2J" not in text and b"\x07" not in text
