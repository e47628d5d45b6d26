"""Aggregate reports of DMARC: what they say, in whatever they are packed; bombs are refused at once."""

from __future__ import annotations

import base64
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from relay.returned import Finding, Kind
from relay.returned.dmarc import read_dmarc
from relay.returned.parts import read
from relay.returned.tlsrpt import read_tlsrpt
from tests.pace import within

RECORD = """
<record><row><source_ip>{ip}</source_ip><count>{count}</count>
<policy_evaluated><disposition>{disposition}</disposition><dkim>{dkim}</dkim><spf>{spf}</spf></policy_evaluated></row>
<identifiers><header_from>example.com</header_from></identifiers>
<auth_results><dkim><domain>example.com</domain><result>pass</result></dkim><spf><domain>x</domain><result>pass</result></spf></auth_results>
</record>"""


def record(
    ip: str = "192.0.2.1", count: object = 1, dkim: str = "fail", spf: str = "fail", disposition: str = "none"
) -> str:
    return RECORD.format(ip=ip, count=count, dkim=dkim, spf=spf, disposition=disposition)


def report(*records: str, root: str = "feedback", org: str = "Receiver", extra: str = "") -> str:
    return (
        f"<{root}><version>1.0</version><report_metadata><org_name>{org}</org_name><email>d@receiver.example</email>"
        f"<report_id>r-1</report_id><date_range><begin>1700000000</begin><end>1700086399</end></date_range>{extra}</report_metadata>"
        "<policy_published><domain>Example.com</domain><adkim>r</adkim><p>quarantine</p><pct>100</pct></policy_published>"
        f"{''.join(records)}</{root.partition(' ')[0]}>"
    )


def zipped(*files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    to = io.BytesIO()
    with zipfile.ZipFile(to, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return to.getvalue()


def mailed(content: bytes, type_: str = "application/gzip", name: str = "r.example!example.com!1!2.xml.gz") -> bytes:
    return (
        b"From: DMARC <reports@receiver.example>\r\nTo: d@example.com\r\nMIME-Version: 1.0\r\n"
        b"Subject: Report Domain: example.com Submitter: receiver.example Report-ID: <r-1>\r\n"
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nThis is a report.\r\n--b\r\n"
        + f'Content-Type: {type_}\r\nContent-Disposition: attachment; filename="{name}"\r\n'.encode()
        + b"Content-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(content)
        + b"\r\n--b--\r\n"
    )


def findings(raw: bytes) -> list[Finding]:
    mail = read(raw)
    return read_dmarc(mail, raw) + read_tlsrpt(mail, raw)


def test_what_it_says() -> None:
    (found,) = findings(
        report(
            record("192.0.2.1", 5, dkim="pass", disposition="none"),
            record("192.0.2.2", 7, spf="Pass", disposition="none"),
            record("2001:db8::1", 11, disposition="reject"),
            record("192.0.2.1", 13, disposition="quarantine"),
            extra="<error>one</error><error>two</error>",
        ).encode()
    )
    assert (found.kind, found.reason, found.recipient, found.at) == (Kind.DMARC, "aggregate", "", 1700086399)
    assert found.reporter == "d@receiver.example"
    assert found.detail == {
        "org": "Receiver",
        "email": "d@receiver.example",
        "report_id": "r-1",
        "domain": "example.com",
        "begin": 1700000000,
        "end": 1700086399,
        "policy": {"adkim": "r", "p": "quarantine", "pct": "100"},
        "messages": 36,
        "aligned": 12,
        "failed": 24,
        "dispositions": {"none": 12, "reject": 11, "quarantine": 13},
        "records": 4,
        "source_count": 3,
        "sources": [
            {"ip": "192.0.2.1", "messages": 18, "aligned": 5, "failed": 13},
            {"ip": "2001:db8::1", "messages": 11, "aligned": 0, "failed": 11},
            {"ip": "192.0.2.2", "messages": 7, "aligned": 7, "failed": 0},
        ],
        "errors": ["one", "two"],
    }


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "bare": lambda xml: xml,
    "declared": lambda xml: b'<?xml version="1.0" encoding="UTF-8"?>\n' + xml,
    "mark of byte order": lambda xml: b"\xef\xbb\xbf" + xml,
    "UTF-16": lambda xml: xml.decode().encode("utf-16"),
    "Latin-1": lambda xml: b'<?xml version="1.0" encoding="ISO-8859-1"?>' + xml,
    "an encoding that is none": lambda xml: b'<?xml version="1.0" encoding="zlib"?>' + xml,
    "gzip": gzip.compress,
    "gzip in members": lambda xml: gzip.compress(xml[:100]) + gzip.compress(xml[100:]),
    "gzip without its checksum": lambda xml: gzip.compress(xml)[:-8],
    "gzip and something": lambda xml: gzip.compress(xml) + b"\0\0\0",
    "zip": lambda xml: zipped(("r.xml", xml)),
    "stored": lambda xml: zipped(("r.xml", xml), method=zipfile.ZIP_STORED),
    "zip of a Macintosh": lambda xml: zipped(("__MACOSX/._r.xml", b"\0\5\x16\7"), ("d/", b""), ("d/r.xml", xml)),
    "mail": lambda xml: mailed(gzip.compress(xml)),
    "mail, zip": lambda xml: mailed(zipped(("r.xml", xml)), "application/zip", "a.zip"),
    "mail, octets": lambda xml: mailed(gzip.compress(xml), "application/octet-stream", ""),
    "mail, text": lambda xml: mailed(xml, "text/xml", "a.xml"),
    "mail, nothing else": lambda xml: (
        b"Subject: x\r\nContent-Type: application/gzip\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(gzip.compress(xml))
    ),
}


@pytest.mark.parametrize("way", PACKED)
def test_ways_to_pack_it(way: str) -> None:
    (found,) = findings(PACKED[way](report(record(count=3)).encode()))
    assert found.reason == "aggregate"
    assert found.detail["messages"] == 3
    assert found.detail["errors"] == []


@pytest.mark.parametrize(
    "root",
    [
        "feedback",
        'feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0"',
        'd:feedback xmlns:d="http://dmarc.org/dmarc-xml/0.1"',
    ],
)
def test_versions_and_namespaces_are_not_asked(root: str) -> None:
    (found,) = findings(report(record(count=3), root=root).encode())
    assert found.detail["messages"] == 3


@pytest.mark.parametrize(
    ("org", "read_as"),
    [
        ("AT&T <post@att.example>", "AT&T <post@att.example>"),
        ("a < b", "a < b"),
        ("R&amp;D &unknown; \x01", "R&D &unknown; �"),
    ],
)
def test_what_is_commonly_broken_is_mended_and_told(org: str, read_as: str) -> None:
    (found,) = findings(report(record(count=3), org=org).encode())
    assert found.detail["org"] == read_as
    assert found.detail["messages"] == 3
    assert "was mended" in found.detail["errors"][0]


def test_octets_that_are_not_utf_8() -> None:
    (found,) = findings(report(record(), org="Gr\xfcn").encode("latin-1"))
    assert found.detail["org"] == "Gr�n"


@pytest.mark.parametrize(
    ("count", "messages"), [("", 0), ("-5", 0), ("x", 0), ("9" * 30, 0), ("1e9", 1), ("7.0", 7), (" 8 ", 8)]
)
def test_counts_that_are_none(count: str, messages: int) -> None:
    (found,) = findings(report(record(count=count)).encode())
    assert found.detail["messages"] == messages


def test_an_empty_report() -> None:
    (found,) = findings(b"<feedback/>")
    assert (found.detail["messages"], found.detail["begin"], found.detail["sources"]) == (0, None, [])


def test_sources_are_told_up_to_fifty() -> None:
    (found,) = findings(report(*(record(f"192.0.2.{i}", i) for i in range(1, 201))).encode())
    assert found.detail["source_count"] == 200
    assert [one["messages"] for one in found.detail["sources"]] == list(range(200, 150, -1))


def test_a_large_report_is_read() -> None:
    (found,) = findings(gzip.compress(report(*(record(f"192.0.2.{i % 256}", 2) for i in range(9_000))).encode()))
    assert found.detail["messages"] == 18_000


@pytest.mark.parametrize(
    "raw",
    [b"", b"<html><body>feed</body></html>", b"<?xml version='1.0'?><rss/>", b"{}", b"From: a@b.example\r\n\r\n<p>feedback</p>",
     mailed(b"%PDF-1.4", "application/pdf", "a.pdf"), mailed(gzip.compress(b"a,b,c"), "application/gzip", "data.csv.gz")],
)  # fmt: skip
def test_what_is_no_report(raw: bytes) -> None:
    assert findings(raw) == []


def gzip_bomb(size: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    begin = packer.compress(b"<feedback>") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)  # depends on nothing before it
    return begin + block * (size >> 20)


def laughs() -> bytes:
    entities = '<!ENTITY l0 "lol">' + "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 10))
    return f'<?xml version="1.0"?><!DOCTYPE feedback [{entities}]><feedback>&l9;</feedback>'.encode()


def overlapping() -> bytes:
    """Many entries of one directory for the same octets, each of which unpacks to 100 MB."""
    one = zipped(("a.xml", b"<feedback>" + b" " * (100 << 20)))
    start, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    tail = one[end : end + 8] + (2000).to_bytes(2, "little") * 2
    tail += ((end - start) * 2000).to_bytes(4, "little") + start.to_bytes(4, "little") + b"\0\0"
    return one[:start] + one[start:end] * 2000 + tail


def lying() -> bytes:
    """The size that it claims is 10 octets."""
    honest = bytearray(zipped(("a.xml", b"<feedback>" + b" " * (100 << 20))))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        place = honest.index(mark) + at
        honest[place : place + 4] = (10).to_bytes(4, "little")
    return bytes(honest)


TEN = 10 << 20
BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip, 10 GiB": lambda: gzip_bomb(10 << 30),
    "gzip of gzip": lambda: gzip.compress(gzip.compress(report().encode())),
    "gzip that is broken": lambda: b"\x1f\x8b\x08\x00" + b"x" * 1000,
    "gzip that ends early": lambda: gzip.compress(report(record()).encode() * 50)[:200],
    "zip, 100 MB": lambda: zipped(("a.xml", b"<feedback>" + b" " * (100 << 20))),
    "zip of zip": lambda: zipped(("a.zip", zipped(("a.xml", report().encode())))),
    "zip with many files": lambda: zipped(*((f"{i}.xml", b"<feedback/>") for i in range(20_000))),
    "zip with overlapping files": overlapping,
    "zip that lies": lying,
    "zip that ends early": lambda: zipped(("a.xml", report(record()).encode()))[:-30],
    "zip in LZMA": lambda: zipped(("a.xml", report().encode()), method=zipfile.ZIP_LZMA),
    "zip that is empty": lambda: zipped(("a/", b"")),
    "a billion laughs": laughs,
    "quadratic entities": lambda: (
        b'<!DOCTYPE f [<!ENTITY a "' + b"a" * 100_000 + b'">]><feedback>' + b"&a;" * 10_000 + b"</feedback>"
    ),
    "external entity": lambda: b'<!DOCTYPE f [<!ENTITY x SYSTEM "file:///etc/hostname">]><feedback>&x;</feedback>',
    "external document type": lambda: b'<!DOCTYPE feedback SYSTEM "http://127.0.0.1:9/x"><feedback/>',
    "parameter entity": lambda: b'<!DOCTYPE f [<!ENTITY % x SYSTEM "http://127.0.0.1:9/x"> %x;]><feedback/>',
    "deep": lambda: b"<feedback>" + b"<a>" * 100_000,
    "elements": lambda: gzip.compress(b"<feedback>" + b"<a/>" * (TEN // 4 - 100) + b"</feedback>"),
    "records": lambda: gzip.compress(b"<feedback>" + b"<record/>" * 1_000_000 + b"</feedback>"),
    "names": lambda: gzip.compress(b"<feedback>" + b"".join(b"<a%d/>" % i for i in range(900_000)) + b"</feedback>"),
    "one attribute, 50 MB": lambda: b"<feedback a='" + b"x" * (50 << 20) + b"'/>",
    "attributes": lambda: gzip.compress(b"<feedback " + b"".join(b"a%d='' " % i for i in range(900_000)) + b"/>"),
    "no end": lambda: b"<feedback>" + b"<a\n" * (1 << 20),
    "no ends": lambda: b"<feedback>" + b"<<&a " * 400_000,
    "comment": lambda: b"<feedback><!--" + b"-" * (2 << 20),
}  # fmt: skip


def in_time(raw: bytes) -> Any:
    (found,) = within(1.5, lambda: findings(raw))  # what is quadratic takes a minute
    return found


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused(name: str) -> None:
    raw = BOMBS[name]()
    found = in_time(raw)
    assert found.kind == Kind.DMARC
    assert found.reason.startswith("refused: ")
    if len(raw) < 1 << 20:
        (again,) = findings(mailed(raw, "application/octet-stream"))
        assert again.reason == found.reason
        assert again.reporter == "reports@receiver.example"


HEAVY: dict[str, Callable[[], bytes]] = {
    "one attribute": lambda: gzip.compress(b"<feedback a='" + b"x" * (TEN - 100) + b"'/>"),
    "lines": lambda: gzip.compress(b"<feedback>" + b"x\n" * (TEN // 2 - 100) + b"</feedback>"),
    "escapes": lambda: gzip.compress(b"<feedback>" + b"&lt;" * (TEN // 4 - 100) + b"</feedback>"),
    "a long name": lambda: gzip.compress(b"<feedback><" + b"a" * (TEN - 100) + b"/></feedback>"),
    "addresses": lambda: gzip.compress(
        b"<feedback>"
        + b"".join(b"<record><row><source_ip>%d</source_ip></row></record>" % i for i in range(60_000))
        + b"</feedback>"
    ),
}


@pytest.mark.parametrize("name", HEAVY)
def test_what_is_heavy_is_read_in_time(name: str) -> None:
    raw = HEAVY[name]()
    found = in_time(raw)
    assert found.reason == "aggregate"
    assert len(str(found.detail)) < 20_000
