"""MTA-STS policies and records as domains write them."""

from __future__ import annotations

import contextlib

import pytest
from conftest import NOW
from hypothesis import given
from hypothesis import strategies as st

from relay.nexthop.sts import StsPolicy, parse_policy, parse_record
from relay.nexthop.stspolicy import LONGEST, MAX_AGE, MAX_HOSTS

# RFC 8461 §3.2 and appendix A.
EXAMPLE = b"version: STSv1\nmode: enforce\nmx: mail.example.com\nmx: *.example.net\nmx: backupmx.example.com\nmax_age: 604800\n"
RECORD = b"v=STSv1; id=20160831085700Z;"


def read(raw: bytes) -> StsPolicy:
    return parse_policy(raw, "1", NOW)


def test_the_examples_of_the_rfc() -> None:
    assert parse_record([RECORD]) == "20160831085700Z"
    policy = parse_policy(EXAMPLE, "20160831085700Z", NOW)
    hosts = ("mail.example.com", "*.example.net", "backupmx.example.com")
    assert policy == StsPolicy("20160831085700Z", "enforce", hosts, 604800, NOW)
    assert policy.ends == NOW + 604800
    assert read(EXAMPLE.replace(b"\n", b"\r\n")) == read(EXAMPLE)
    assert policy.matches("MAIL.example.com.") and policy.matches("mx1.example.net")
    for host in ("example.net", "a.b.example.net", "mail.example.com.evil.example", "mx.example.com", ""):
        assert not policy.matches(host)


@pytest.mark.parametrize(
    ("texts", "id_"),
    [
        ([b"v=STSv1; id=1"], "1"),
        ([b"v=STSv1;id=1;"], "1"),
        ([b"v=STSv1;\t id=1 ; more=x:y ;"], "1"),
        ([b"v=STSv1; more=x; id=A1"], "A1"),
        ([b"v=spf1 -all", b"v=STSv1; id=1", b"other"], "1"),  # others are left out
        ([b"v=STSv10; id=1", b"v=STSv1; id=2"], "2"),
        ([b"v=STSv1; id=1; id=2"], "1"),
        ([b"v=STSv1; id=" + b"x" * 32], "x" * 32),
        ([], None),
        ([b"v=STSv1; id=1", b"v=STSv1; id=2"], None),  # which of them?
        ([b"v=STSv1; id=1", b"v=STSv1; bad"], None),
        ([b"v=STSv1"], None),
        ([b"v=STSv1;"], None),
        ([b"v=STSv1; more=x"], None),
        ([b"v=stsv1; id=1"], None),
        ([b" v=STSv1; id=1"], None),
        ([b"id=1; v=STSv1"], None),
        ([b"v=STSv1; id="], None),
        ([b"v=STSv1; id=a-b"], None),
        ([b"v=STSv1; id=" + b"x" * 33], None),
        ([b"v=STSv1; id=1 2"], None),
        ([b"v=STSv1; id=1;;"], None),
        ([b"v=STSv1; id=1; more"], None),
        ([b"v=STSv1; id=1; more=a=b"], None),
        ([b"v=STSv1; id=\xff"], None),
        ([b"v=STSv1; id=\xd9\xa1"], None),  # a digit, but none of ASCII
    ],
)
def test_records(texts: list[bytes], id_: str | None) -> None:
    assert parse_record(texts) == id_


@pytest.mark.parametrize(
    "raw",
    [
        EXAMPLE.rstrip(),
        EXAMPLE + b"\n\r\n",
        EXAMPLE.replace(b": ", b":"),
        EXAMPLE.replace(b": ", b":\t  ").replace(b"\n", b" \t\r\n"),
        b"more: to come \xc3\xa9\n" + EXAMPLE,
        EXAMPLE + b"mode: none\nmax_age: 1\nversion: STSv2\n",  # the first one counts
        EXAMPLE.replace(b"mail.example.com", b"MAIL.Example.COM"),
        b"".join(reversed(EXAMPLE.splitlines(True)[:2])) + b"".join(EXAMPLE.splitlines(True)[2:]),
    ],
)
def test_policies_that_say_the_same(raw: bytes) -> None:
    assert read(raw) == read(EXAMPLE)


def test_a_policy_that_takes_itself_back_names_no_host() -> None:
    """RFC 8461 §8.3."""
    assert read(b"version: STSv1\nmode: none\nmax_age: 86400") == StsPolicy("1", "none", (), 86400, NOW)
    assert read(EXAMPLE.replace(b"enforce", b"testing")).mode == "testing"


@pytest.mark.parametrize("age", [0, 1, MAX_AGE, MAX_AGE + 1, 9_999_999_999])
def test_a_policy_lasts_a_year_at_most(age: int) -> None:
    assert read(EXAMPLE.replace(b"604800", str(age).encode())).max_age == min(age, MAX_AGE)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "is no field"),
        (b"<html>Not found</html>", "is no field"),
        (EXAMPLE.replace(b"version: STSv1\n", b""), "has no version"),
        (EXAMPLE.replace(b"STSv1", b"STSv2"), "version is 'STSv2', not STSv1"),
        (EXAMPLE.replace(b"version", b"Version"), "has no version"),
        (EXAMPLE.replace(b"mode: enforce\n", b""), "has no mode"),
        (EXAMPLE.replace(b"enforce", b"Enforce"), "mode is 'Enforce'"),
        (EXAMPLE.replace(b"enforce", b"report"), "mode is 'report'"),
        (EXAMPLE.replace(b"max_age: 604800\n", b""), "has no max_age"),
        (EXAMPLE.replace(b"604800", b"-1"), "max_age is '-1'"),
        (EXAMPLE.replace(b"604800", b"1w"), "max_age is '1w'"),
        (EXAMPLE.replace(b"604800", b"10000000000"), "max_age is '10000000000'"),
        (EXAMPLE.replace(b"604800", "٦٠".encode()), "no number of seconds"),
        (b"version: STSv1\nmode: enforce\nmax_age: 1\n", "has no mx"),
        (b"version: STSv1\nmode: testing\nmax_age: 1\n", "has no mx"),
        (EXAMPLE.replace(b"*.example.net", b"*"), "mx is '*', no host"),
        (EXAMPLE.replace(b"*.example.net", b"a.*.example.net"), "no host"),
        (EXAMPLE.replace(b"*.example.net", b"*.*.example.net"), "no host"),
        (EXAMPLE.replace(b"*.example.net", b".example.net"), "no host"),
        (EXAMPLE.replace(b"*.example.net", b"a..example.net"), "no host"),
        (EXAMPLE.replace(b"*.example.net", b"m\xc3\xbcller.example"), "no host"),
        (EXAMPLE.replace(b"*.example.net", b"a.example b.example"), "no host"),
        (EXAMPLE.replace(b"*.example.net", b"-a.example"), "no host"),
        (EXAMPLE.replace(b"*.example.net", b"x" * 64 + b".example"), "no host"),
        (EXAMPLE.replace(b"*.example.net", b"a." * 140 + b"example"), "no host"),
        (EXAMPLE.replace(b"mx:", b"mx :"), "is no field"),
        (EXAMPLE.replace(b"mx:", b" mx:"), "is no field"),
        (EXAMPLE.replace(b"mail.example.com", b""), "is no field"),
        (EXAMPLE.replace(b"mail.example.com", b"mail\x00.example.com"), "is no field"),
        (EXAMPLE.replace(b"\n", b"\r"), "is no field"),
        (EXAMPLE.replace(b"\n", b"\n\n"), "is no field"),
        (EXAMPLE + b"no colon\n", "'no colon' is no field"),
        (EXAMPLE + b"\xff: x\n", "not UTF-8"),
        (EXAMPLE + b"x" * 33 + b": y\n", "is no field"),
        (EXAMPLE + b"x: " + b"y" * LONGEST + b"\n", f"longer than {LONGEST} bytes"),
        (EXAMPLE + b"mx: a.example\n" * MAX_HOSTS, f"more than {MAX_HOSTS} mx"),
    ],
)
def test_policies_that_are_none(raw: bytes, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(raw)
    assert why in str(caught.value) and len(str(caught.value)) < 200 and str(caught.value).isprintable()


@given(st.binary(max_size=400))
def test_whatever_comes_is_a_policy_or_refused(raw: bytes) -> None:
    parse_record([raw, RECORD[:8] + raw])
    for one in (raw, EXAMPLE + raw, EXAMPLE[:60] + raw + EXAMPLE[60:]):
        with contextlib.suppress(ValueError):
            policy = read(one)
            assert (policy.mode == "none" or policy.mx) and 0 <= policy.max_age <= MAX_AGE
