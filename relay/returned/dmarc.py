"""Aggregate reports of DMARC (RFC 7489 §7.2 and appendix C, RFC 9990): what one domain's mail looked like to one receiver. Pure.

Read as a stream of elements by expat, through defusedxml: no document type, no entities. Namespaces and versions are not asked,
elements that nobody knows are passed over, what is missing is empty. What strangers commonly break is mended: octets that are
not UTF-8, `<` and `&` that are not escaped.

`detail` of the finding: `org`, `email`, `report_id`, `domain`, `begin` and `end` (epoch seconds), `policy` (as published),
`messages`, `aligned` and `failed` (of them), `dispositions` (how many met which), `records`, `source_count` and `sources` (the 50
with most messages: `ip`, `messages`, `aligned`, `failed`), `errors`.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax import SAXException
from xml.sax.handler import ContentHandler

from defusedxml.common import DefusedXmlException
from defusedxml.expatreader import create_parser

from relay.returned import Finding, Kind
from relay.returned.original import mailbox
from relay.returned.parts import Mail
from relay.returned.unpack import File, Refused, files, unpacked

MOST_ELEMENTS = 200_000  # a record has 20 or so
MOST_EQUALS = 200_000  # expat makes all attributes of an element before it lets one look
MOST_DEPTH = 30
MOST_TEXT = 300  # characters of a value
MOST_SOURCES = 50  # that are told
MOST_ERRORS = 10
MOST_MENDED = 2 << 20  # octets of a report that is mended

_POLICY = ("p", "sp", "np", "adkim", "aspf", "pct", "fo", "testing", "discovery_method")
_ENCODING = re.compile(rb"<\?xml[^>]{0,100}encoding\s{0,5}=\s{0,5}[\"']([A-Za-z0-9._-]{1,40})")
_CODECS = frozenset({"utf-8", "utf-16", "utf-16-le", "utf-16-be", "iso8859-1", "iso8859-15", "cp1252", "ascii"})
_NO_TAG = re.compile(r"<(?!/?[A-Za-z_][\w.:-]*+(?:\s[^<>]*+)?>|/?[A-Za-z_][\w.:-]*+/>|[!?])")
_NO_ENTITY = re.compile(r"&(?!(?:#\d{1,7}|#x[0-9A-Fa-f]{1,6}|amp|lt|gt|quot|apos);)")
_NO_CHARACTER = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
# RFC 7489 §7.2.1.1: names of files and the subject of the mail.
_NAME = re.compile(r"![^!]{1,255}![0-9]{1,20}![0-9]{1,20}.{0,100}\.(?:xml|gz|zip)", re.IGNORECASE)
_SUBJECT = re.compile(r"report[\s_-]{0,5}domain:|\bdmarc\b.{0,100}\breport", re.IGNORECASE)


def read_dmarc(mail: Mail, raw: bytes) -> list[Finding]:
    """One finding for each report in a mail, or of a bare file; empty where there is none. Never raises.

    One that clearly is a report and cannot be read has the reason `refused: …`.
    """
    found = []
    for file in files(mail, raw):
        try:
            detail = _summary(unpacked(file))
        except Refused as refused:
            if _is_meant(mail, file):
                found.append(Finding(kind=Kind.DMARC, reason=f"refused: {refused}", reporter=_reporter(mail, file)))
        else:
            if detail is not None:
                reporter = _reporter(mail, file) or mailbox(detail["email"]) or detail["org"]
                found.append(
                    Finding(kind=Kind.DMARC, reason="aggregate", reporter=reporter, at=detail["end"], detail=detail)
                )
    return found


def _reporter(mail: Mail, file: File) -> str:
    return mailbox(mail.first("from")) if file.type else ""


def _is_meant(mail: Mail, file: File) -> bool:
    """Somebody wanted it to be one."""
    if not file.packed:
        return b"<feedback" in file.content or b":feedback" in file.content
    if "tlsrpt" in file.type or file.name.lower().endswith((".json", ".json.gz")):
        return False
    return not file.type or bool(_NAME.search(file.name) or _SUBJECT.search(mail.first("subject")[:500]))


def _summary(content: bytes) -> dict[str, Any] | None:
    """None: no report, but something else. Raises Refused."""
    text = _decoded(content)
    if text.lstrip()[:1] != "<":
        return None
    try:
        return _parsed(text)
    except (SAXException, ValueError) as error:
        if isinstance(error, Refused):
            raise
        if isinstance(error, DefusedXmlException):
            raise Refused("its XML declares a document type or entities") from None
        broken = " ".join(str(error).split())[:100]
    if len(text) > MOST_MENDED:
        raise Refused(f"its XML is broken: {broken}")
    text = _NO_ENTITY.sub("&amp;", _NO_TAG.sub("&lt;", _NO_CHARACTER.sub("�", text)))
    try:
        detail = _parsed(text)
    except DefusedXmlException:
        raise Refused("its XML declares a document type or entities") from None
    except (SAXException, ValueError):
        raise Refused(f"its XML is broken: {broken}") from None
    if detail is not None:
        detail["errors"].append(f"its XML is broken and was mended: {broken}")
    return detail


def _decoded(content: bytes) -> str:
    """As the declaration says, or UTF-8; what is not of that encoding becomes U+FFFD."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    declared = _ENCODING.match(content.removeprefix(b"\xef\xbb\xbf").lstrip()[:200])
    try:
        name = codecs.lookup(declared[1].decode("ascii")).name if declared else "utf-8"
    except LookupError:
        name = "utf-8"
    if name not in _CODECS or name.startswith("utf-16"):  # UTF-16 without its mark could not declare itself
        name = "utf-8"
    return content.decode(name, "replace").removeprefix("\ufeff")


def _parsed(text: str) -> dict[str, Any] | None:
    if text.count("=") > MOST_EQUALS:
        raise Refused("it has too many attributes")
    report = _Report()
    parser = create_parser(forbid_dtd=True)
    parser.setContentHandler(report)
    try:
        # At once: expat reads a long token anew with each piece that it is given.
        parser.feed(text.lstrip())
        parser.close()
    except _Another:
        return None
    return report.summary()


class _Another(Exception):
    """The root element is not that of a report."""


@dataclass(slots=True)
class _Count:
    messages: int = 0
    aligned: int = 0


@dataclass
class _Report(ContentHandler):
    """Takes elements; holds one record at a time, and sums."""

    path: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    length: int = 0  # of `text`
    elements: int = 0
    values: dict[str, str] = field(default_factory=dict)  # of metadata and policy: path below the root -> text
    row: dict[str, str] = field(default_factory=dict)  # of the record: path below it -> text
    records: int = 0
    total: _Count = field(default_factory=_Count)
    sources: dict[str, _Count] = field(default_factory=lambda: defaultdict(_Count))
    dispositions: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def startElement(self, name: str, attrs: object) -> None:
        del attrs
        name = name.rpartition(":")[2]
        if not self.path and name != "feedback":
            raise _Another
        self.elements += 1
        self.path.append(name[:60])
        self._clear()
        if self.elements > MOST_ELEMENTS:
            raise Refused(f"it has more than {MOST_ELEMENTS} elements")
        if len(self.path) > MOST_DEPTH:
            raise Refused(f"its elements are nested deeper than {MOST_DEPTH}")

    def characters(self, content: str) -> None:
        if self.length < MOST_TEXT:
            self.text.append(content[:MOST_TEXT])
            self.length += len(content)

    def endElement(self, name: str) -> None:
        del name
        value = " ".join("".join(self.text).split())[:MOST_TEXT]
        self._clear()
        where = self.path[1:]
        self.path.pop()
        if where == ["record"]:
            self._count()
        elif where[:1] == ["record"]:
            if value:
                self.row.setdefault("/".join(where[1:]), value)
        elif value and where == ["report_metadata", "error"]:
            if len(self.errors) < MOST_ERRORS:
                self.errors.append(value)
        elif value and len(self.values) < 100:
            self.values.setdefault("/".join(where), value)

    def _clear(self) -> None:
        self.text.clear()
        self.length = 0

    def _count(self) -> None:
        row, self.row = self.row, {}
        self.records += 1
        count = _number(row.get("row/count", "")) or 0
        aligned = "pass" in (
            row.get("row/policy_evaluated/dkim", "").lower(),
            row.get("row/policy_evaluated/spf", "").lower(),
        )
        for sum_ in (self.total, self.sources[row.get("row/source_ip", "")]):
            sum_.messages += count
            sum_.aligned += count if aligned else 0
        disposition = row.get("row/policy_evaluated/disposition", "").lower()[:20] or "none"
        if disposition in self.dispositions or len(self.dispositions) < 10:
            self.dispositions[disposition] += count

    def summary(self) -> dict[str, Any]:
        most = sorted(self.sources.items(), key=lambda one: -one[1].messages)[:MOST_SOURCES]
        metadata = {name: self.values.get(f"report_metadata/{name}", "") for name in ("org_name", "email", "report_id")}
        published = self.values
        return {
            "org": metadata["org_name"],
            "email": metadata["email"],
            "report_id": metadata["report_id"],
            "domain": published.get("policy_published/domain", "").lower(),
            "begin": _number(self.values.get("report_metadata/date_range/begin", "")),
            "end": _number(self.values.get("report_metadata/date_range/end", "")),
            "policy": {name: value for name in _POLICY if (value := published.get(f"policy_published/{name}"))},
            **_told(self.total),
            "dispositions": dict(self.dispositions),
            "records": self.records,
            "source_count": len(self.sources),
            "sources": [{"ip": ip, **_told(count)} for ip, count in most],
            "errors": self.errors,
        }


def _told(count: _Count) -> Mapping[str, int]:
    return {"messages": count.messages, "aligned": count.aligned, "failed": count.messages - count.aligned}


def _number(text: str) -> int | None:
    found = re.match(r"[0-9]{1,15}(?![0-9])", text)
    return int(found[0]) if found else None
