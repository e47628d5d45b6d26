"""Real bounces: what each means agrees with what its origin says of it, and whom it is about is found.

The origin's `hardbounce` is hard; all else that failed is not. Complaints, automatic replies and deliveries are no bounces. The
figures of both halves and of both forms are held apart: the rules were made with one half (the even ones by hash), and the
other must not be far behind.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.returned import Finding, Kind, parts
from relay.returned.understand import understand
from tests.pace import within

NO_BOUNCE = ("feedback", "delivered", "vacation")
STATUS_PARTS = ("message/delivery-status", "message/global-delivery-status")
# Of reports without fields, as a reader finds him in the text; with X-Failed-Recipients that field is the truth.
RECIPIENTS: dict[str, list[str]] = json.loads(Path(__file__).with_name("bounce_recipients.json").read_text())


@lru_cache(maxsize=1)
def samples(corpora: Path) -> dict[str, tuple[bytes, list[dict[str, Any]]]]:
    expected = json.loads((corpora / "bounces" / "expected.json").read_text())
    return {name: ((corpora / "bounces" / name).read_bytes(), rows) for name, rows in sorted(expected.items())}


def half(name: str) -> str:
    return "odd" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 2 else "even"


def form(raw: bytes) -> str:
    return "dsn" if any(part.type in STATUS_PARTS for part in parts.read(raw).parts) else "other"


def wanted(rows: list[dict[str, Any]]) -> set[str]:
    return {"none" if row["reason"] in NO_BOUNCE else "hard" if row["hardbounce"] else "soft" for row in rows}


def told(findings: list[Finding]) -> set[str]:
    def word(one: Finding) -> str:
        if one.kind is not Kind.BOUNCE or not one.class_:
            return "none"
        return "hard" if one.class_ == "hard" else "soft"

    return {word(one) for one in findings}


def recipients(name: str, raw: bytes) -> set[str]:
    if name in RECIPIENTS:
        return {one.lower() for one in RECIPIENTS[name]}
    fields = re.findall(
        r"(?im)^(?:(?:final|original)-recipient:\s*(?:rfc822\s*;)?|x-failed-recipients:|x-actual-recipient:\s*rfc822;)([^\r\n]*)",
        raw.decode("latin-1"),
    )
    return {one.lower() for text in fields for one in re.findall(r"[^\s<>,;:]+@[^\s<>,;:]+", text)}


def test_what_a_bounce_means(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count: dict[str, int] = defaultdict(int)
    good: dict[str, int] = defaultdict(int)
    differ: list[str] = []
    for name, (raw, rows) in samples(corpora).items():
        fits = told(understand(raw)) == wanted(rows)
        for key in ("all", half(name), form(raw)):
            count[key] += 1
            good[key] += fits
        if not fits:
            differ.append(name)
    share = {key: good[key] / count[key] for key in count}
    with capsys.disabled():
        print(f"\nbounces: {', '.join(f'{key} {share[key]:.1%} of {count[key]}' for key in sorted(count))}")
    assert count["all"] == 317 and count["dsn"] > 150 and count["other"] > 120
    assert share["all"] >= 0.95, differ
    assert min(share.values()) >= 0.93, share


def test_whom_a_bounce_is_about(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    count: dict[str, int] = defaultdict(int)
    good: dict[str, int] = defaultdict(int)
    missed: dict[str, list[str]] = {}
    for name, (raw, rows) in samples(corpora).items():
        if wanted(rows) == {"none"} and rows[0]["reason"] != "delivered":
            continue
        found = [one.recipient.lower() for one in understand(raw)]
        truth = recipients(name, raw)
        fits = bool(truth) and set(found) <= truth and (form(raw) == "dsn" or set(found) == truth)
        for key in ("all", half(name), form(raw)):
            count[key] += 1
            good[key] += fits
        if not fits:
            missed[name] = found
    share = {key: good[key] / count[key] for key in count}
    with capsys.disabled():
        print(f"\nrecipients: {', '.join(f'{key} {share[key]:.1%} of {count[key]}' for key in sorted(count))}")
    assert min(share.values()) >= 0.97, missed


def test_what_is_no_bounce_is_none(corpora: Path) -> None:
    found = {path.name: understand(path.read_bytes()) for path in sorted((corpora / "not_bounces").glob("*.eml"))}
    assert len(found) == 3
    assert {name for name, one in found.items() if any(finding.kind is Kind.BOUNCE for finding in one)} == set()


@pytest.mark.parametrize("folder", ["mime", "arc", "dkim", "addresses", "fuzz_seeds", "dmarc", "arf"])
def test_ordinary_mail_is_no_bounce(corpora: Path, folder: str) -> None:
    files = [path for path in sorted((corpora / folder).rglob("*")) if path.is_file()]
    assert files
    bounces = [path.name for path in files for one in understand(path.read_bytes()[:1_000_000]) if one.class_ == "hard"]
    # Of the samples for MIME some are bounces, and say so.
    assert len(set(bounces)) <= (8 if folder == "mime" else 0), bounces


CUTS = ("truncate", "shuffle", "splice", "repeat", "bytes", "ends")


def broken(raw: bytes, other: bytes, how: str, seed: int) -> bytes:
    draw = random.Random(seed)
    lines = raw.split(b"\n")
    match how:
        case "truncate":
            return raw[: draw.randrange(len(raw) + 1)]
        case "shuffle":
            draw.shuffle(lines)
            return b"\n".join(lines)
        case "splice":
            return raw[: draw.randrange(len(raw) + 1)] + other[draw.randrange(len(other) + 1) :]
        case "repeat":
            at = draw.randrange(len(lines))
            return b"\n".join([*lines[:at], *lines[at : at + 3] * draw.randrange(1, 3000), *lines[at:]])
        case "bytes":
            made = bytearray(raw)
            for _ in range(draw.randrange(1, 200)):
                made[draw.randrange(len(made))] = draw.randrange(256)
            return bytes(made)
        case _:
            return raw.replace(b"\n", draw.choice([b"\r", b"\r\n", b"\n\n", b" ", b"\0"]))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 316), st.integers(0, 316), st.sampled_from(CUTS), st.integers(0, 2**32))
def test_broken_ones_break_nothing(corpora: Path, one: int, other: int, how: str, seed: int) -> None:
    names = list(samples(corpora))
    raw = broken(samples(corpora)[names[one]][0], samples(corpora)[names[other]][0], how, seed)
    found = within(1.0, lambda: understand(raw), (names[one], how, seed))
    assert found
    json.dumps([finding.row() for finding in found], ensure_ascii=False).encode()
