"""What the library writes and reads, without a connection."""

from __future__ import annotations

import base64
import email
import json
import pickle
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from email.mime.text import MIMEText
from pathlib import Path
from typing import Any

import pytest

from relay.client import (
    Attachment,
    Message,
    NotFound,
    Receipt,
    Refused,
    RelayError,
    Unauthorized,
    Unavailable,
    calls,
    wire,
)

TAKEN = {"status": 202, "queue_id": "01H", "message_id": "<1@x>", "repeated": False, "recipients": []}


def answered(told: Any, status: int = 200) -> wire.Answer:
    return wire.Answer(status, json.dumps(told).encode())


def said(call: wire.Call[Any]) -> Any:
    return json.loads(call.request.body or b"null")


def test_a_message_is_written_as_the_wire_has_it(tmp_path: Path) -> None:
    (tmp_path / "bill.pdf").write_bytes(b"%PDF")
    message = Message(
        from_="Shop <shop@example.com>", to="a@example.net", cc=["b@example.net"], bcc="c@example.net", reply_to="d@example.com",
        subject="Bill", text="t", html="<p>", headers={"X-Order": "17", "X-Part": ("a", "b")},
        attachments=[Attachment.from_path(tmp_path / "bill.pdf"), Attachment(b"\0", "logo.png", inline=True, content_id="logo")],
        class_="transactional", priority="high", send_at=datetime(2026, 12, 1, 8, tzinfo=UTC), tag="bill", metadata={"order": 17},
        envelope_from="", user="shop", key="order-17",
    )  # fmt: skip
    assert message.wire() == {
        "from": "Shop <shop@example.com>",
        "to": ["a@example.net"],
        "cc": ["b@example.net"],
        "bcc": ["c@example.net"],
        "reply_to": ["d@example.com"],
        "subject": "Bill",
        "text": "t",
        "html": "<p>",
        "headers": {"X-Order": "17", "X-Part": ["a", "b"]},
        "attachments": [
            {"filename": "bill.pdf", "content_type": "application/pdf", "content": base64.b64encode(b"%PDF").decode()},
            {"filename": "logo.png", "inline": True, "content_id": "logo", "content": "AA=="},
        ],
        "class": "transactional",
        "priority": "high",
        "send_at": "2026-12-01T08:00:00+00:00",
        "tag": "bill",
        "metadata": {"order": 17},
        "envelope_from": "",
        "user": "shop",
        "idempotency_key": "order-17",
    }


def test_what_is_not_said_is_not_written() -> None:
    message = Message(from_="a@example.com", to=["b@example.net"], text="hi", priority=0)
    assert message.wire() == {"from": "a@example.com", "to": ["b@example.net"], "text": "hi", "priority": 0}


@pytest.mark.parametrize("kind", ["modern", "legacy"])
def test_a_message_of_the_standard_library_keeps_its_octets(kind: str) -> None:
    made: Any = EmailMessage()
    if kind == "modern":
        made.set_content("Grüße\nFrom here\n", cte="8bit")
    else:
        made = MIMEText("Grüße\nFrom here\n", _charset="utf-8")
    made["From"], made["To"], made["Subject"] = "a@example.com", "b@example.net", "Grüße"
    message = Message.of(made, tag="t")
    assert message.raw is not None
    assert message.raw.count(b"\n") == message.raw.count(b"\r\n") > 4
    body: Any = email.message_from_bytes(message.raw).get_payload(decode=True)
    assert body.decode().splitlines() == ["Grüße", "From here"]
    assert message.wire() == {"tag": "t", "raw": base64.b64encode(message.raw).decode()}


WRONG = {
    "no author": ({"to": "a@b.c"}, "from_"),
    "no recipient": ({"from_": "a@b.c"}, "recipient"),
    "naive time": ({"from_": "a@b.c", "to": "a@b.c", "send_at": datetime(2026, 12, 1)}, "time zone"),
    "raw and text": ({"raw": b"x", "text": "y", "cc": "a@b.c"}, "without cc, text"),
    "half a character": ({"from_": "a@b.c", "to": "a@b.c", "text": "x\ud800"}, "no Unicode"),
    "half in a list": ({"from_": "a@b.c", "to": ["\udcff@b.c"]}, "no Unicode"),
    "half in a name": (
        {"from_": "a@b.c", "to": "a@b.c", "attachments": [Attachment(b"x", "\udcff.pdf")]},
        "no Unicode",
    ),
    "no number": ({"from_": "a@b.c", "to": "a@b.c", "metadata": {"a": float("nan")}}, "JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_message_that_makes_no_sense_is_told_at_once(name: str) -> None:
    given, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        Message(**given)


def test_characters_beyond_sixteen_bits_are_whole() -> None:
    assert Message(from_="a@b.c", to="a@b.c", text="\U0001f600 \\ud800").text == "\U0001f600 \\ud800"


def test_an_attachment_is_of_one_source_and_has_a_name() -> None:
    for given in ({}, {"content": b"", "path": "x"}, {"path": "x", "url": "https://e.example/x"}):
        with pytest.raises(ValueError, match="exactly one"):
            Attachment(**given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="filename"):
        Attachment(b"x")
    assert Attachment(path="bills/17.pdf").wire() == {"filename": "17.pdf", "path": "bills/17.pdf"}
    assert Attachment(url="https://e.example/a/b.png?c=d/e").filename == "b.png"
    assert "secret" not in repr(Attachment(b"secret", "x")) + repr(Message(raw=b"secret"))


def test_every_submission_has_a_key() -> None:
    message = Message(from_="a@example.com", to="b@example.net")
    first, second = calls.submit(message), calls.submit(message)
    assert first.key and second.key and first.key != second.key and said(first)["idempotency_key"] == first.key
    assert calls.submit(Message(from_="a@example.com", to="b@example.net", key="k")).key == "k"
    receipt = first.result(
        answered(TAKEN | {"recipients": [{"recipient": "b@example.net", "state": "queued", "why": ""}]})
    )
    assert receipt == Receipt("01H", "<1@x>", False, (calls.Recipient("b@example.net", "queued", ""),), first.key)


# -- batches


def messages(count: int, text: str = "") -> Any:
    return (Message(from_="a@example.com", to="b@example.net", key=f"k{i}", text=text) for i in range(count))


def test_batches_are_full_and_no_more_is_taken_than_they_need() -> None:
    taken = 0

    def counted() -> Any:
        nonlocal taken
        for one in messages(2500):
            taken += 1
            yield one

    found = calls.Bulk(counted()).batches()
    sizes = []
    for keys, call in found:
        assert [one["idempotency_key"] for one in said(call)["messages"]] == list(keys)
        sizes.append(len(keys))
        assert taken <= sum(sizes) + 1
    assert sizes == [1000, 1000, 500]
    assert list(calls.Bulk([]).batches()) == []


def test_a_batch_is_bounded_in_octets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "BATCH_BYTES", 1000)
    found = list(calls.Bulk(messages(4, "x" * 400)).batches())
    assert [len(keys) for keys, _ in found] == [1, 1, 1, 1] or [len(keys) for keys, _ in found] == [2, 2]
    assert [len(keys) for keys, _ in calls.Bulk(messages(2, "x" * 4000)).batches()] == [1, 1]


def test_each_of_a_batch_has_its_own_result() -> None:
    ((_, call),) = calls.Bulk(messages(3)).batches()
    refused = {
        "status": 422,
        "detail": "no",
        "code": 550,
        "enhanced": "5.7.1",
        "errors": [{"field": "to", "message": "what"}],
    }
    later = {"status": 503, "detail": "later", "code": 452, "enhanced": "4.3.1"}
    one, two, three = call.result(answered({"accepted": 1, "refused": 2, "results": [TAKEN, refused, later]}))
    assert isinstance(one, Receipt) and one.key == "k0"
    assert isinstance(two, Refused) and (two.code, two.enhanced, two.errors[0].field, two.key) == (
        550,
        "5.7.1",
        "to",
        "k1",
    )
    assert isinstance(three, Unavailable) and three.safe and three.key == "k2" and three.code == 452
    with pytest.raises(RelayError, match="no relay"):
        call.result(answered({"accepted": 1, "refused": 0, "results": [TAKEN]}))


def test_what_a_whole_batch_suffers_each_of_it_suffers() -> None:
    bulk = calls.Bulk([])
    with pytest.raises(Unauthorized):
        bulk.failed(["a"], Unauthorized("no", 401))
    bulk.taken()
    assert [str(one) for one in bulk.failed(["a", "b"], Unauthorized("no", 401))] == ["no", "no"]
    assert bulk.lost(["c"]) == []
    gone = bulk.failed(["a", "b"], Unavailable("gone"))
    assert [(one.key, one.safe) for one in gone if isinstance(one, Unavailable)] == [("a", True), ("b", True)]
    assert [one.key for one in bulk.lost(["c"]) if isinstance(one, Unavailable)] == ["c"]


# -- questions


def test_filters_are_asked_as_the_relay_names_them() -> None:
    call = calls.find({"class_": "bulk", "state": ["queued", "held"], "older_than": timedelta(hours=2), "tag": ""}, "c")
    assert call.request.path == "/v1/messages?class=bulk&state=queued%2Cheld&older_than=7200.0&limit=1000&after=c"
    assert calls.message("../x").request.path == "/v1/messages/..%2Fx"
    call2 = calls.act("hold", ("1", "2"), {}, dry_run=True)
    assert said(call2) == {"filter": {"id": "1,2"}, "dry_run": True} and call2.safe
    assert not calls.act("cancel", (), {"tag": "x"}, dry_run=False).safe
    for ids, filters in (((), {}), (("1",), {"id": "2"})):
        with pytest.raises(ValueError, match="ids"):
            calls.act("cancel", ids, filters, dry_run=False)  # type: ignore[arg-type]


def test_pages_lead_to_each_other() -> None:
    page = calls.find({"tag": "t"}).result(answered({"messages": [{"id": 1}], "next": "c"}))
    assert page.items == [{"id": 1}] and page.following is not None and "after=c" in page.following.request.path
    assert page.following.result(answered({"messages": [], "next": None})).following is None


@pytest.mark.parametrize("follow", [False, True])
def test_events_end_unless_they_are_followed(follow: bool) -> None:
    call = calls.events({"kind": ["bounced", "delivered"]}, None, None, follow=follow)
    assert "kind=bounced%2Cdelivered" in call.request.path and ("wait=" in call.request.path) is follow
    page = call.result(answered({"events": [{"id": 7}], "next": 7, "more": False}))
    assert (page.following is not None) is follow
    if page.following:
        assert "after=7" in page.following.request.path and page.following.wait > 0


# -- errors and tries


@pytest.mark.parametrize(
    ("status", "kind"), [(400, Refused), (401, Unauthorized), (404, NotFound), (422, Refused), (500, Unavailable), (503, Unavailable)]
)  # fmt: skip
def test_an_error_is_of_its_kind_and_can_be_pickled(status: int, kind: type[RelayError]) -> None:
    answer = wire.Answer(
        status, json.dumps({"detail": "why", "errors": [{"field": "to", "message": "m"}]}).encode(), "7", "id"
    )
    with pytest.raises(kind) as told:
        calls.stats().result(answer)
    error = told.value
    error.key = "k"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and str(again) == "why" and vars(again) == vars(error)


BROKEN = {
    "html": (200, b"<html>"),
    "other json": (200, b"[]"),
    "redirect": (302, b""),
    "page": (404, b"<html>"),
    "deep": (200, b"[" * 99999),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_relay_is_told_so(name: str) -> None:
    status, body = BROKEN[name]
    with pytest.raises(RelayError, match="no relay") as told:
        calls.find({}).result(wire.Answer(status, body))
    assert type(told.value) is RelayError


def tries(call: wire.Call[Any], **given: Any) -> wire.Tries:
    return wire.Tries(call, **({"attempts": 4, "patience": 30.0, "began": 0.0} | given))


def test_pauses_grow_and_end() -> None:
    made, error = tries(calls.stats()), Unavailable("x")
    assert [made.pause(error, 0.0, 1.0) for _ in range(3)] == [0.2, 0.4, 0.8]
    with pytest.raises(Unavailable) as told:
        made.pause(error, 0.0, 1.0)
    assert told.value.safe
    assert tries(calls.stats()).pause(error, 0.0, 0.0) == 0.1


def test_the_relay_says_when() -> None:
    assert tries(calls.stats()).pause(Unavailable("x", retry_after=7), 0.0, 1.0) == 7
    with pytest.raises(Unavailable):
        tries(calls.stats()).pause(Unavailable("x", retry_after=31), 0.0, 1.0)
    with pytest.raises(Unavailable):
        tries(calls.stats()).pause(Unavailable("x"), 29.9, 1.0)


def test_what_may_have_been_done_is_not_done_again() -> None:
    act = calls.act("cancel", ("1",), {}, dry_run=False)
    with pytest.raises(Unavailable) as told:
        tries(act).pause(Unavailable("x", sent=True), 0.0, 1.0)
    assert not told.value.safe
    assert tries(act).pause(Unavailable("x", sent=False), 0.0, 1.0) == 0.2


def test_importing_it_imports_no_server() -> None:
    code = "import sys, relay.client; print(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    heavy = {
        "aiohttp",
        "aiosmtpd",
        "aiosmtplib",
        "asyncio",
        "pydantic",
        "yaml",
        "click",
        "sqlite3",
        "cryptography",
        "django",
    }
    assert heavy.isdisjoint(found)
    ours = {name for name in found if name.startswith("relay")} - {"relay", "relay.clock"}
    assert all(name.startswith("relay.client") for name in ours)
