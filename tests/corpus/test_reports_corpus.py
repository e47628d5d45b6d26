"""Real complaints, reports and auto-replies: what is expected was read in the files by eye, apart from the code under test."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from relay.returned import Finding, Kind
from relay.returned.arf import read_arf
from relay.returned.autoreply import read_auto_reply
from relay.returned.dmarc import read_dmarc
from relay.returned.parts import read
from relay.returned.tlsrpt import read_tlsrpt
from relay.returned.understand import understand
from tests.pace import within

# file -> feedback type, recipients, sender, Message-ID of the message
COMPLAINTS: dict[str, tuple[str, list[str], str, str]] = {
    "kumomta-1": ("abuse", [""], "somespammer@example.net", "8787KJKJ3K4J3K4J3K4J3.mail@example.net"),
    "kumomta-2": ("abuse", ["user@example.com"], "somespammer@example.net", "8787KJKJ3K4J3K4J3K4J3.mail@example.net"),
    "kumomta-3": ("abuse", ["user@example.com"], "test1@example.com", ""),
    "kumomta-4": ("abuse", ["cb4a01a48251d4765f489076aa81e2a4@comcast.net"], "foo@bounce.example.com", ""),
    "sisimai-arf-01": ("abuse", ["redacted@example.net"], "support@example.ed.jp", ""),
    "sisimai-arf-12": ("opt-out", ["user@example.com"], "shironeko@example.net", "0000000000000000000000000@example.net"),
    "sisimai-arf-15": ("abuse", [""], "kijitora@example.net", "<ffffffffffffffffffffffff00000000@example.net>"),
    "sisimai-arf-17": (
        "abuse",
        ["kijitora@example.com", "sabatora@example.net"],
        "sironeko@example.jp",
        "<EEEEEEEE-0000-0000-0000-EEEEEEEE2222@example.net>",
    ),
    "sisimai-arf-19": (
        "auth-failure",
        ["kijitora@example.org"],
        "sironeko@neko.example.com",
        "<000000000.2222222.0000000000002@example.net>",
    ),
    "sisimai-arf-24": ("abuse", ["kijitora@example.com"], "sironeko@example.com", "<0000000000fffffffff0000000000000@example.com>"),
    "sisimai-arf-25": ("abuse", ["hashed@example.com"], "alice@example.com", ""),
    "sisimai-arf-26": ("opt-out", ["example@icloud.com"], "", ""),
}  # fmt: skip

FAILURES: dict[str, tuple[list[str], str]] = {
    "[Netease DMARC Failure Report] Rent Reminder": (
        ["redacted@163.com"],
        "<oguVx1AxQayV5Sv2nYK-rA@ismtpd0007p1las1.sendgrid.net>",
    ),
    "exim_plain_text_only_no_arf_part": (["user@example.com"], "<134117F8-2145-AECE-9CCA-25FC98731341@example.com>"),
}

# file -> who reports, report id, domain, begin, end, policy, messages, aligned, addresses, records
AGGREGATES: dict[str, tuple[str, str, str, int, int, str, int, int, int, int]] = {
    "!example.com!1538204542!1538463818.xml": ("", "example.com:1538463741", "example.com", 1538413632, 1538413632, "none", 1, 0, 1, 1),
    "addisonfoods.com!example.com!1536105600!1536191999.xml": (
        "addisonfoods.com", "3ceb5548498640beaeb47327e202b0b9", "example.com", 1536105600, 1536191999, "none", 1, 0, 1, 1,
    ),
    "empty_reason.xml": ("example.org", "20240125141224705995", "example.com", 1706159544, 1706185733, "quarantine", 2, 2, 1, 1),
    "estadocuenta1.infonacot.gob.mx!example.com!1536853302!1536939702!2940.xml.zip": (
        "XYZ Corporation", "2940", "example.com", 1536853302, 1536939702, "none", 1, 0, 1, 1,
    ),
    "fastmail.com!example.com!1516060800!1516147199!102675056.xml.gz": (
        "FastMail Pty Ltd", "102675056", "indemed.com", 1516060800, 1516147199, "none", 1, 0, 1, 1,
    ),
    "invalid_utf_8.xml": ("", "example.com:1538463741", "example.com", 1538413632, 1538413632, "none", 1, 0, 1, 1),
    "invalid_xml.xml": ("veeam.com", "sonexushealth.com:1530233361", "example.com", 1530133200, 1530219600, "none", 1, 0, 1, 1),
    "old_draft_from_wiki.xml": ("acme.com", "9391651994964116463", "example.com", 1335571200, 1335657599, "none", 2, 2, 1, 1),
    "protection.outlook.com!example.com!1711756800!1711843200.xml": (
        "Outlook.com", "cfeafefe4129445e8c81018bd9177197", "example.com", 1711756800, 1711843200, "none", 1, 0, 1, 1,
    ),
    "rfc9990-sample.xml": (
        "Sample Reporter", "3v98abbp8ya9n3va8yr8oa3ya", "example.com", 302832000, 302918399, "quarantine", 123, 123, 1, 1,
    ),
    "twilight.eml": ("google.com", "1627703331531660819", "twlnet.com", 1549756800, 1549843199, "reject", 1, 1, 1, 1),
    "veeam.com!example.com!1530133200!1530219600.xml": (
        "veeam.com", "sonexushealth.com:1530233361", "example.com", 1530133200, 1530219600, "none", 1, 0, 1, 1,
    ),
    "changed-input.xml": ("fred.com", "11038226378739404135", "example.com", 1718236800, 1718323199, "none", 3047, 3047, 15, 20),
    "nice-input.xml.gz": ("google.com", "11038226378739404135", "example.com", 1718236800, 1718323199, "none", 3047, 3047, 15, 20),
}  # fmt: skip


def reports(raw: bytes) -> list[Finding]:
    mail = read(raw)
    return read_dmarc(mail, raw) + read_tlsrpt(mail, raw)


def test_every_complaint_is_understood(corpora: Path) -> None:
    found = {}
    for path in sorted((corpora / "arf").glob("*.eml")):
        raw = path.read_bytes()
        mail = read(raw)
        one = read_arf(mail, raw)
        assert {finding.kind for finding in one} == {Kind.COMPLAINT}, path.name
        assert understand(raw) == one
        found[path.stem] = (one[0].reason, [each.recipient for each in one], one[0].sender, one[0].message_id)
    assert found == COMPLAINTS


def test_addresses_that_their_provider_hid_are_told_apart(corpora: Path) -> None:
    hidden = set()
    for path in (corpora / "arf").glob("*.eml"):
        raw = path.read_bytes()
        hidden |= {path.stem for one in read_arf(read(raw), raw) if one.detail.get("redacted")}
    assert hidden == {"sisimai-arf-01", "sisimai-arf-25"}


def test_failure_reports_of_dmarc(corpora: Path) -> None:
    found = {}
    for path in sorted((corpora / "dmarc" / "failure").glob("*.eml")):
        one = understand(path.read_bytes())
        assert {(each.kind, each.reason, each.detail["report"]) for each in one} == {
            (Kind.COMPLAINT, "auth-failure", "failure")
        }
        found[path.stem] = ([each.recipient for each in one], one[0].message_id)
    assert found == FAILURES


def test_every_aggregate_report_is_understood(corpora: Path) -> None:
    found, mended = {}, set()
    for path in sorted(
        [*(corpora / "dmarc" / "aggregate").iterdir(), *(corpora / "dmarc" / "extract_report").iterdir()]
    ):
        (one,) = reports(path.read_bytes())
        assert (one.kind, one.reason) == (Kind.DMARC, "aggregate"), path.name
        assert understand(path.read_bytes()) == [one]
        detail = one.detail
        assert (
            detail["aligned"] + detail["failed"]
            == detail["messages"]
            == sum(each["messages"] for each in detail["sources"])
        )
        if detail["errors"]:
            mended.add(path.name)
        found[path.name] = (
            detail["org"], detail["report_id"], detail["domain"], detail["begin"], detail["end"], detail["policy"]["p"],
            detail["messages"], detail["aligned"], detail["source_count"], detail["records"],
        )  # fmt: skip
    assert found == AGGREGATES
    assert mended == {"invalid_xml.xml"}


def test_reports_on_tls(corpora: Path) -> None:
    folder = corpora / "dmarc" / "smtp_tls"
    (google,) = understand((folder / "google.com_smtp_tls_report.eml").read_bytes())
    (bare,) = understand((folder / "smtp_tls.json").read_bytes())
    assert google.kind == bare.kind == Kind.TLSRPT
    assert (google.detail["org"], google.detail["successes"], google.detail["failures"]) == ("Google Inc.", 48, 0)
    assert [one["domain"] for one in google.detail["policies"]] == ["cardinalhealth.ca"]
    assert (bare.detail["org"], bare.detail["successes"], bare.detail["failures"]) == ("Example Inc.", 0, 3)
    assert bare.detail["failed"] == {"validation-failure": 3}


def test_an_empty_file_is_nothing(corpora: Path) -> None:
    assert [one.kind for one in understand((corpora / "dmarc" / "empty.xml").read_bytes())] == [Kind.OTHER]


def test_auto_replies_and_nothing_else_are_auto_replies(corpora: Path) -> None:
    found = {}
    for folder in ("bounces", "not_bounces", "dmarc/failure", "dmarc/smtp_tls", "dmarc/aggregate"):
        for path in sorted((corpora / folder).glob("*.eml")):
            if one := read_auto_reply(read(path.read_bytes())):
                found[path.stem] = one.recipient
    apple = {"arf-26": "example@icloud.com"}  # a complaint, which is asked first
    assert found == {"rfc3834-02": "nekonyaan@example.org", "rfc3834-05": "foo@bar.net"} | apple


def test_no_bounce_is_a_complaint_or_a_report(corpora: Path) -> None:
    for path in sorted([*(corpora / "bounces").glob("*.eml"), *(corpora / "not_bounces").glob("*.eml")]):
        raw = path.read_bytes()
        assert reports(raw) == []
        assert bool(read_arf(read(raw), raw)) == path.stem.startswith("arf-"), path.name


def _broken(raw: bytes, draw: random.Random) -> bytes:
    """As lines of others break mails: cut, octets changed, pieces repeated or gone."""
    changed = bytearray(raw)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(changed) + 1)
        to = min(len(changed), at + draw.randint(1, 200))
        match draw.randrange(5):
            case 0:
                changed[at:to] = draw.randbytes(draw.randint(0, 20))
            case 1:
                changed[at:at] = changed[at:to] * draw.randint(1, 50)
            case 2:
                del changed[at:to]
            case 3:
                del changed[at:]
            case _:
                changed[at:at] = draw.choice(
                    [b"\n\n", b"\r", b"\0", b"--", b"=?utf-8?b?", b"<", b"\x1f\x8b", b"PK\x03\x04", b'"', b"("]
                )
    return bytes(changed)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_that_is_broken_raises_or_takes_long(corpora: Path, seed: int) -> None:
    draw = random.Random(seed)
    files = [
        path for folder in ("arf", "dmarc", "mime") for path in sorted((corpora / folder).rglob("*")) if path.is_file()
    ]
    for path in files:
        raw = path.read_bytes()
        for _ in range(3):
            broken = _broken(raw[:200_000], draw)
            found = within(1.0, lambda broken=broken: understand(broken), path.name)
            assert found
            assert all(isinstance(one.row()["reason"], str) for one in found)
