"""Lists as CSV: ours there and back, those of providers, one address a line, and what is none."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.cli import suppresscsv
from relay.cli.suppresscsv import COLUMNS, MAX_LINE, NoList, quoted, time, unquoted, written

AT = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def read(text: str | bytes, why: str = "manual") -> list[tuple[int, Any]]:
    return list(suppresscsv.entries(io.BytesIO(text.encode() if isinstance(text, str) else text), why))


def good(text: str | bytes, why: str = "manual") -> list[dict[str, Any]]:
    found = read(text, why)
    assert not [entry for _, entry in found if isinstance(entry, str)], found
    return [entry for _, entry in found]


def test_one_address_a_line() -> None:
    found = read("a@x.example\r\n\r\n  b@x.example  \nC@x.example")
    assert [(n, e["address"]) for n, e in found] == [(1, "a@x.example"), (3, "b@x.example"), (4, "C@x.example")]
    assert {e["why"] for _, e in found} == {"manual"} and {e["source"] for _, e in found} == {"import"}


def test_an_address_and_a_reason_without_a_header() -> None:
    """As SES takes them in bulk."""
    assert [e["why"] for e in good("a@x.example,BOUNCE\nb@x.example,COMPLAINT\n")] == ["hard_bounce", "complaint"]


PROVIDERS = {
    "ses": ("EmailAddress,Reason,LastUpdateTime\na@x.example,COMPLAINT,2023-11-14T22:13:20+00:00\n", "complaint", ""),
    "sendgrid bounces": (
        'status,reason,email,created\n5.1.1,"550 5.1.1 no such user, sorry",a@x.example,1700000000\n', "hard_bounce",
        "5.1.1 550 5.1.1 no such user, sorry",
    ),
    "sendgrid spam": ("email,ip,created\na@x.example,192.0.2.1,2023-11-14 22:13:20\n", "unsubscribe", ""),
    "mailgun bounces": (
        "address,code,error,created_at\na@x.example,550,No such mailbox,2023-11-14 22:13:20 UTC\n", "hard_bounce",
        "550 No such mailbox",
    ),
    "mailgun unsubscribes": ("address,tags,created_at\na@x.example,*,\"Tue, 14 Nov 2023 22:13:20 GMT\"\n", "unsubscribe", ""),
    "postmark": (
        "EmailAddress,SuppressionReason,Origin,CreatedAt\na@x.example,HardBounce,Recipient,2023-11-14T17:13:20-05:00\n",
        "hard_bounce", "",
    ),
    "postmark spam": ("EmailAddress,SuppressionReason,CreatedAt\na@x.example,SpamComplaint,2023-11-14T22:13:20Z\n", "complaint", ""),
    "mailjet": ('"Email";"Status";"Date"\n"a@x.example";"blocked";"2023-11-14 22:13:20"\n', "hard_bounce", "blocked"),
    "brevo": (
        "EMAIL,BLOCKED_REASON,BLOCKED_AT\na@x.example,unsubscribedViaEmail,2023-11-14T22:13:20.000+00:00\n", "unsubscribe", "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PROVIDERS)
def test_exports_of_providers(name: str) -> None:
    text, why, evidence = PROVIDERS[name]
    (found,) = good(text, "unsubscribe")
    assert (found["address"], found["why"], found["evidence"], found["at"]) == ("a@x.example", why, evidence, AT)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_as_spreadsheets_write_it(encoding: str) -> None:
    text = "E-Mail\tReason\r\njürgen@x.example\tHard Bounce\r\n"
    if encoding == "utf-16-le":
        text = "\ufeff" + text
    (found,) = good(text.encode(encoding))
    assert (found["address"], found["why"]) == ("jürgen@x.example", "hard_bounce")


def test_what_cannot_be_taken_is_told_with_its_line() -> None:
    text = "address,until\na@x.example,2099-01-01\nb@x.example,soon\n" + "x" * (3 * MAX_LINE) + "\nc@x.example,\n"
    found = read(text)
    assert [(n, isinstance(e, str)) for n, e in found] == [(2, False), (3, True), (4, True), (5, False)]
    assert found[1][1] == "no time that we know: 'soon'" and "longer than" in str(found[2][1])
    assert time("2099-01-01") == found[0][1]["until"]


@pytest.mark.parametrize("text", ["name,phone\nAnn,123\n", "{}\n", '{"a": 1}\n', "name\n"])
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(NoList, match="no column of addresses"):
        read(text)


def test_nothing_at_all() -> None:
    assert read("") == [] and read("\n\n") == [] and read(b"\xef\xbb\xbf") == []


@given(st.binary(max_size=300))
def test_any_bytes_are_lines_or_no_list(data: bytes) -> None:
    try:
        found = read(data)
    except NoList:
        return
    assert all(isinstance(entry, str | dict) for _, entry in found)


@pytest.mark.parametrize(
    "cell", ["=1+1", "+a@x.example", "-x", "@SUM(A1)", "\tx", "'=x", "''+y", "'tis@x.example", "plain", ""]
)
def test_no_cell_is_a_formula_and_each_comes_back(cell: str) -> None:
    assert quoted(cell)[:1] not in ("=", "+", "-", "@", "\t", "\r") and unquoted(quoted(cell)) == cell


@given(st.text(alphabet="='+-@ax\t,\";", max_size=12))
def test_any_cell_comes_back(cell: str) -> None:
    assert unquoted(quoted(cell)) == cell and quoted(cell)[:1] not in tuple("=+-@\t\r")


ROW = {
    "address": "+a@x.example", "scope": "class:news", "why": "complaint", "evidence": '=cmd|"/c calc"!A1, she said',
    "source": "sendgrid", "at": AT + 0.123, "until": None, "queue_id": "1PGWBZ00001",
}  # fmt: skip


def test_ours_there_and_back() -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([COLUMNS, written(ROW), written(ROW | {"address": "b@x.example", "until": AT + 1e9})])
    first, second = good(out.getvalue())
    assert first == {key: value for key, value in ROW.items() if value is not None}
    assert second["until"] == pytest.approx(AT + 1e9, abs=0.001)


def test_a_header_does_not_steer_a_terminal() -> None:
    with pytest.raises(NoList) as told:
        read("add\x1b]0;evil\x07ress,b\n")
    assert str(told.value).isprintable()
