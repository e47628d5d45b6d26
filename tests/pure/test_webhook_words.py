"""What an answer means, how a batch is signed, and how long a failing endpoint is left alone."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest

from relay.webhooks.words import Batch, Item, Verdict, delay, keys, meant, retry_after, signature

T, REFUSED, TROUBLE, REST, GONE = Verdict.TAKEN, Verdict.REFUSED, Verdict.TROUBLE, Verdict.REST, Verdict.GONE
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        *((200, T), (201, T), (202, T), (204, T), (299, T)),
        *((301, REST), (302, REST), (307, REST), (308, REST), (304, REST)),
        *((400, REFUSED), (413, REFUSED), (415, REFUSED), (422, REFUSED)),
        *((401, REST), (403, REST), (404, REST), (405, REST), (408, REST), (409, REST), (425, REST), (429, REST)),
        *((410, GONE), (500, TROUBLE), (501, TROUBLE), (502, TROUBLE), (503, TROUBLE), (504, TROUBLE), (599, TROUBLE)),
    ],
)
def test_what_a_status_means(status: int, verdict: Verdict) -> None:
    said = meant(status, {}, NOW)
    assert said.verdict is verdict
    assert bool(said.why) is (verdict is not T)


def test_who_names_a_time_is_to_be_left_alone() -> None:
    assert meant(503, {"Retry-After": "120"}, NOW).verdict is REST
    assert meant(503, {"Retry-After": "120"}, NOW).wait == 120.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("", 0.0), ("0", 0.0), ("17", 17.0), (" 17 ", 17.0), ("-5", 0.0), ("1e9", 0.0), ("soon", 0.0), ("٣", 0.0)),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2027 07:59:00 GMT", 0.0),
        ("Fri, 99 Jan 2027 08:01:00 GMT", 0.0),
        ("9" * 60, float("9" * 60)),
    ],
)
def test_retry_after(text: str, seconds: float) -> None:
    assert retry_after(text, NOW) == seconds


def test_waits_double_up_to_the_cap() -> None:
    assert [delay(n, 60.0, 0.999999) for n in (1, 2, 3, 6, 7, 10_000)] == pytest.approx([1, 2, 4, 32, 60, 60], rel=1e-5)
    assert [delay(n, 60.0, 0.0) for n in (1, 2)] == [0.5, 1.0]
    assert delay(1, 60.0, 0.5, wait=30.0) == 30.0
    assert delay(1, 60.0, 0.5, wait=1e300) == 60.0  # whatever was asked for


def test_each_line_of_a_secret_signs() -> None:
    assert keys(" one \n\ntwo\r\n") == ("one", "two")
    assert keys("") == ()
    made = signature(("one", "two"), 1700000000, b"[]")
    first, second = made.split(",")
    assert first == "v1=" + hmac.digest(b"one", b"1700000000.[]", "sha256").hex()
    assert second == "v1=" + hmac.digest(b"two", b"1700000000.[]", hashlib.sha256).hex()


def test_a_batch_is_an_array_and_has_one_id() -> None:
    items = [Item(7, 1, 0.0, json.dumps({"id": 7, "t": "ä\n"})), Item(9, 0, 0.0, json.dumps({"id": 9}))]
    batch = Batch("crm", items)
    assert [event["id"] for event in json.loads(batch.array)] == [7, 9]
    assert [json.loads(line)["id"] for line in batch.lines.splitlines()] == [7, 9]
    assert batch.id == Batch("crm", list(items)).id
    assert len({batch.id, Batch("crn", items).id, Batch("crm", items[:1]).id}) == 3
