"""Reports on TLS of those who send to us (RFC 8460): sessions that went well, and why others did not. Pure.

`detail` of the finding: `org`, `contact`, `report_id`, `begin` and `end` (epoch seconds), `successes`, `failures` (sessions),
`failed` (result type -> sessions), `policies` (50 at most: `type`, `domain`, `mx`, `successes`, `failures`, `failed`), `policy_count`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from relay.returned import Finding, Kind
from relay.returned.original import mailbox
from relay.returned.parts import Mail
from relay.returned.unpack import File, Refused, files, unpacked

MOST_BYTES = 4 << 20  # of JSON: a few octets of it become a hundred of memory
MOST_POLICIES = 10_000
TOLD_POLICIES = 50
MOST_TYPES = 30
MOST_TEXT = 300  # characters of a value
MOST_SESSIONS = 10**15


def read_tlsrpt(mail: Mail, raw: bytes) -> list[Finding]:
    """One finding for each report in a mail, or of a bare file; empty where there is none. Never raises.

    One that clearly is a report and cannot be read has the reason `refused: …`.
    """
    found = []
    for file in files(mail, raw):
        try:
            report = _loaded(unpacked(file))
        except Refused as refused:
            if _is_meant(mail, file):
                reporter = mailbox(mail.first("from")) if file.type else ""
                found.append(Finding(kind=Kind.TLSRPT, reason=f"refused: {refused}", reporter=reporter))
        else:
            if report is not None:
                found.append(_finding(mail, file, report))
    return found


def _is_meant(mail: Mail, file: File) -> bool:
    """Somebody wanted it to be one: RFC 8460 §5.3 and §5.4."""
    if file.type.startswith("application/tlsrpt") or mail.parameters.get("report-type", "").lower() == "tlsrpt":
        return True
    return not file.packed and b'"policies"' in file.content[:65536] and b'"date-range"' in file.content[:65536]


def _loaded(content: bytes) -> Mapping[str, Any] | None:
    """None: no report, but something else. Raises Refused."""
    text = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not text.startswith(b"{"):
        return None
    if len(text) > MOST_BYTES:
        raise Refused(f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        found = json.loads(text.decode("utf-8", "replace"))
    except RecursionError:
        raise Refused("its JSON is nested too deep") from None
    except ValueError as error:  # a number of thousands of digits, too
        raise Refused(f"its JSON is broken: {str(error)[:100]}") from None
    if not isinstance(found, dict) or not isinstance(found.get("policies"), list):
        return None
    if len(found["policies"]) > MOST_POLICIES:
        raise Refused(f"it has more than {MOST_POLICIES} policies")
    return found


def _finding(mail: Mail, file: File, report: Mapping[str, Any]) -> Finding:
    dates = _mapping(report.get("date-range"))
    end = _time(dates.get("end-datetime"))
    policies = [_policy(_mapping(one)) for one in report["policies"]]
    failed: Counter[str] = Counter()
    for one in policies:
        failed.update(one["failed"])
    detail = {
        "org": _text(report.get("organization-name")),
        "contact": _text(report.get("contact-info")),
        "report_id": _text(report.get("report-id")),
        "begin": _time(dates.get("start-datetime")),
        "end": end,
        "successes": sum(one["successes"] for one in policies),
        "failures": sum(one["failures"] for one in policies),
        "failed": dict(failed.most_common(MOST_TYPES)),
        "policy_count": len(policies),
        "policies": policies[:TOLD_POLICIES],
    }
    reporter = (mailbox(mail.first("from")) if file.type else "") or mailbox(detail["contact"]) or detail["org"]
    return Finding(kind=Kind.TLSRPT, reason="aggregate", reporter=reporter, at=end, detail=detail)


def _policy(given: Mapping[str, Any]) -> dict[str, Any]:
    policy, summary = _mapping(given.get("policy")), _mapping(given.get("summary"))
    failed: Counter[str] = Counter()
    for one in map(_mapping, _list(given.get("failure-details"))):
        type_ = _text(one.get("result-type"))[:60] or "unknown"
        if type_ in failed or len(failed) < MOST_TYPES:
            failed[type_] += _count(one.get("failed-session-count"))
    mx = policy.get("mx-host")  # RFC 8460 §4.4: a string in its text, a list in its example
    return {
        "type": _text(policy.get("policy-type")),
        "domain": _text(policy.get("policy-domain")).lower(),
        "mx": [_text(one) for one in (_list(mx) or ([mx] if isinstance(mx, str) else []))[:10]],
        "successes": _count(summary.get("total-successful-session-count")),
        "failures": _count(summary.get("total-failure-session-count")),
        "failed": dict(failed),
    }


def _mapping(given: object) -> Mapping[str, Any]:
    return given if isinstance(given, dict) else {}


def _list(given: object) -> list[Any]:
    return given if isinstance(given, list) else []


def _text(given: object) -> str:
    found = given if isinstance(given, str) else ""
    return " ".join(found[: 4 * MOST_TEXT].split())[:MOST_TEXT].encode("utf-8", "replace").decode("utf-8")


def _count(given: object) -> int:
    """Of sessions. Some write a number in quotes."""
    if isinstance(given, str) and re.fullmatch(r"[0-9]{1,15}", given):
        return int(given)
    return given if isinstance(given, int) and 0 <= given <= MOST_SESSIONS and given is not True else 0


def _time(given: object) -> float | None:
    """RFC 3339."""
    try:
        found = datetime.fromisoformat(given[:40]) if isinstance(given, str) else None
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() if found else None
    except (ValueError, OverflowError):
        return None
