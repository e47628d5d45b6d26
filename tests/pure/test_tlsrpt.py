"""Reports on TLS (RFC 8460): what they say, and what is refused."""

from __future__ import annotations

import base64
import gc
import gzip
import json
from typing import Any

import pytest

from relay.returned import Finding, Kind
from relay.returned.dmarc import read_dmarc
from relay.returned.parts import read
from relay.returned.tlsrpt import read_tlsrpt
from tests.pace import within

REPORT: dict[str, Any] = {
    "organization-name": "Company-X",
    "date-range": {"start-datetime": "2016-04-01T00:00:00Z", "end-datetime": "2016-04-01T23:59:59Z"},
    "contact-info": "sts-reporting@company-x.example",
    "report-id": "5065427c-23d3-47ca-b6e0-946ea0e8c4be",
    "policies": [
        {
            "policy": {
                "policy-type": "sts",
                "policy-string": ["version: STSv1", "mode: testing"],
                "policy-domain": "Company-Y.example",
                "mx-host": ["*.mail.company-y.example"],
            },
            "summary": {"total-successful-session-count": 5326, "total-failure-session-count": 303},
            "failure-details": [
                {"result-type": "certificate-expired", "failed-session-count": 100},
                {"result-type": "starttls-not-supported", "failed-session-count": 200},
                {"result-type": "validation-failure", "failed-session-count": 3},
            ],
        },
        {
            "policy": {"policy-type": "tlsa", "policy-domain": "company-y.example", "mx-host": "mx.company-y.example"},
            "summary": {"total-successful-session-count": "7", "total-failure-session-count": 2},
            "failure-details": [{"result-type": "certificate-expired", "failed-session-count": 2}],
        },
    ],
}


def findings(raw: bytes) -> list[Finding]:
    mail = read(raw)
    return read_tlsrpt(mail, raw) + read_dmarc(mail, raw)


def written(**changed: Any) -> bytes:
    return json.dumps(REPORT | changed).encode()


def mailed(content: bytes, type_: str = "application/tlsrpt+gzip") -> bytes:
    return (
        b"From: tlsrpt@company-x.example\r\nTLS-Report-Domain: company-y.example\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/report; report-type=tlsrpt; boundary=b\r\n\r\n--b\r\n\r\nA report.\r\n--b\r\n"
        b"Content-Type: " + type_.encode() + b'; name="a!b!1!2.json.gz"\r\nContent-Transfer-Encoding: base64\r\n\r\n'
        + base64.encodebytes(content) + b"\r\n--b--\r\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        written(),
        b"\xef\xbb\xbf\n" + written(),
        gzip.compress(written()),
        mailed(gzip.compress(written())),
        mailed(written(), "application/tlsrpt+json"),
        mailed(gzip.compress(written()), "application/gzip"),
    ],
    ids=["bare", "mark", "gzip", "mail", "mail, plain", "mail, gzip"],
)
def test_what_it_says(raw: bytes) -> None:
    (found,) = findings(raw)
    assert (found.kind, found.reason, found.at) == (Kind.TLSRPT, "aggregate", 1459555199.0)
    assert found.reporter in ("tlsrpt@company-x.example", "sts-reporting@company-x.example")
    assert found.detail == {
        "org": "Company-X",
        "contact": "sts-reporting@company-x.example",
        "report_id": "5065427c-23d3-47ca-b6e0-946ea0e8c4be",
        "begin": 1459468800.0,
        "end": 1459555199.0,
        "successes": 5333,
        "failures": 305,
        "failed": {"starttls-not-supported": 200, "certificate-expired": 102, "validation-failure": 3},
        "policy_count": 2,
        "policies": [
            {
                "type": "sts", "domain": "company-y.example", "mx": ["*.mail.company-y.example"], "successes": 5326, "failures": 303,
                "failed": {"certificate-expired": 100, "starttls-not-supported": 200, "validation-failure": 3},
            },
            {
                "type": "tlsa", "domain": "company-y.example", "mx": ["mx.company-y.example"], "successes": 7, "failures": 2,
                "failed": {"certificate-expired": 2},
            },
        ],
    }  # fmt: skip


@pytest.mark.parametrize("odd", [None, 1, "x", [], {}, [[]], [None], True, float("inf"), -1, "9" * 5000, {"policy": 1}])
def test_fields_of_another_type(odd: Any) -> None:
    for name in REPORT:
        for one in findings(written(**{name: odd})):
            json.dumps(one.row(), allow_nan=False)
    (found,) = findings(
        written(policies=[{"policy": odd, "summary": {"total-successful-session-count": odd}, "failure-details": odd}])
    )
    assert found.detail["successes"] in (0, 1)
    json.dumps(found.row(), allow_nan=False)


def test_policies_and_types_are_told_within_bounds() -> None:
    one = REPORT["policies"][0] | {
        "failure-details": [{"result-type": f"t{i}", "failed-session-count": 1} for i in range(100)]
    }
    (found,) = findings(written(policies=[one] * 200))
    assert (len(found.detail["policies"]), found.detail["policy_count"], len(found.detail["failed"])) == (50, 200, 30)
    assert found.detail["successes"] == 200 * 5326


BEGIN = b'{"date-range": {}, "policies": '
HOSTILE = {
    "deep": BEGIN + b"[" * 100_000,
    "deep objects": BEGIN + b'[{"policy":' * 100_000,
    "number": BEGIN + b"[" + b"9" * 1_000_000 + b"]}",
    "broken": BEGIN + b"[}",
    "cut": written()[:-10],
    "policies": BEGIN + b"[" + b"{}," * 1_390_000 + b"{}]}",
    "lists": BEGIN + b"[" + b"[]," * 1_390_000 + b"[]]}",
    "large": BEGIN + b'["' + b"a" * (5 << 20) + b'"]}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused(name: str, request: pytest.FixtureRequest) -> None:
    gc.disable()  # its rounds go over all that the other tests have left, which a worker process does not have
    request.addfinalizer(gc.enable)
    for raw in (HOSTILE[name], mailed(gzip.compress(HOSTILE[name]))):
        (found,) = within(1.0, lambda raw=raw: findings(raw))
        assert found.kind == Kind.TLSRPT
        assert found.reason.startswith("refused: ")


def test_a_bomb_in_a_report_on_tls() -> None:
    (found,) = findings(mailed(gzip.compress(b"\0" * (20 << 20))))
    assert (found.kind, found.reason) == (Kind.TLSRPT, "refused: it has more than 10 MiB")


@pytest.mark.parametrize("raw", [b"{}", b'{"policies": {}}', b'{"policies', b"{", b"[]", b'{"a": ' * 1000, b""])
def test_what_is_no_report(raw: bytes) -> None:
    assert findings(raw) == []
