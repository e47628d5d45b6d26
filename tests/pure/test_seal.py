"""ARC: chains that we extend, chains that we end, and what strangers put where a chain should be."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import authres
import dkim as dkimpy
import pytest
from conftest import NOW
from hypothesis import given, settings
from hypothesis import strategies as st
from signatures import BODY, DOMAIN, HEAD, SIGNED_AT, published, signed

from relay.signing.arc import Sealer, seal, sealed, without_results
from relay.signing.canonical import body_hash
from relay.signing.dkim import Fields, split_fields
from relay.signing.key import SigningKey
from relay.signing.keys import generate
from relay.signing.verify import ArcResult, DkimResult, Verifier, arc_result, dkim_results
from tests.pace import within

KEY = generate("rsa", 1024)
OTHER = generate("rsa", 1024)
ASK = published(s=KEY, o=OTHER)
OURS = "mx.example.com"


def hop(head: bytes, body: bytes | Path = BODY, key: SigningKey = KEY, selector: str = "s") -> bytes:
    """The head as it leaves a relay that judged it and sealed what it found."""
    verifier = Verifier(head, body, ASK, NOW)
    made = seal(head, body, key, DOMAIN, selector, OURS, verifier.dkim(), verifier.arc(), SIGNED_AT)
    return made + head


def judged(head: bytes, body: bytes = BODY) -> ArcResult:
    return arc_result(head, body, ASK, NOW)


def results(head: bytes) -> str:
    """The topmost ARC-Authentication-Results, in one line."""
    value = next(value for name, value in split_fields(head) if name == b"ARC-Authentication-Results")
    return re.sub(r"\s+", " ", value.decode()).strip()


def by_dkimpy(head: bytes, body: bytes = BODY) -> bytes | None:
    cv: bytes | None = dkimpy.arc_verify(head + b"\r\n" + body, dnsfunc=ASK)[0]
    return cv


# -- chains that we make


def test_what_we_seal_verifies_here_and_in_dkimpy() -> None:
    head = hop(HEAD)
    assert judged(HEAD).cv == "none"
    assert judged(head) == ArcResult("pass", 1)
    assert by_dkimpy(head) == dkimpy.CV_Pass
    assert [name for name, _ in split_fields(head)][:3] == [
        b"ARC-Seal",
        b"ARC-Message-Signature",
        b"ARC-Authentication-Results",
    ]
    assert results(head) == f"i=1; {OURS}; arc=none; dkim=none"
    assert all(len(line) <= 78 for line in head.split(b"\r\n"))


def test_two_hops_and_more() -> None:
    head = hop(hop(signed(KEY)), key=OTHER, selector="o")
    assert judged(head) == ArcResult("pass", 2)
    assert by_dkimpy(head) == dkimpy.CV_Pass
    assert results(head).startswith(f"i=2; {OURS}; arc=pass; dkim=pass header.d=example.com header.s=s")
    for _ in range(3):
        head = hop(head)
    assert judged(head) == ArcResult("pass", 5)
    assert by_dkimpy(head) == dkimpy.CV_Pass


def test_a_body_in_a_file_is_sealed_as_well(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(BODY)
    assert hop(HEAD, tmp_path / "body") == hop(HEAD)


def test_fields_that_others_put_on_top_or_between_do_no_harm() -> None:
    first = hop(HEAD)
    head = hop(b"Received: from c\r\n\tby d; Tue, 14 Nov 2023 22:13:21 +0000\r\n" + first)
    assert judged(b"X-Any: 1\r\n" + head) == ArcResult("pass", 2)
    # The order of sets is that of their numbers, wherever they stand (RFC 8617 §5.1.1).
    fields = split_fields(head)
    fields = fields[3:] + fields[:3]
    assert judged(b"".join(name + b":" + value for name, value in fields)) == ArcResult("pass", 2)


def test_what_a_list_altered_may_be_sealed_again_before_it_is() -> None:
    first = hop(signed(KEY))
    altered = BODY + b"-- \r\nA list.\r\n"
    assert judged(first, altered).cv == "fail"
    # The older message signature need not fit any more, only the newest one must (RFC 8617 §5.2).
    verifier = Verifier(first, BODY, ASK, NOW)
    made = seal(first, altered, KEY, DOMAIN, "s", OURS, verifier.dkim(), verifier.arc(), SIGNED_AT) + first
    assert judged(made, altered) == ArcResult("pass", 2)
    assert by_dkimpy(made, altered) == dkimpy.CV_Pass


def test_a_chain_that_failed_is_ended_once() -> None:
    altered = BODY + b"more\r\n"
    first = hop(HEAD)
    second = hop(first, altered)
    assert results(second) == f"i=2; {OURS}; arc=fail; dkim=none"
    found = judged(second, altered)
    assert (found.cv, found.instance, found.ended) == ("fail", 2, True)
    assert found.why == "ARC-Seal 2 says cv=fail"
    assert by_dkimpy(second, altered) is None  # "the chain is terminated"
    assert hop(second, altered) == second
    # RFC 8617 §5.1.2: it covers its own set alone, so that it stays good whatever there was before.
    own = b"".join(name + b":" + value for name, value in split_fields(second)[:3]) + HEAD
    assert seal_is_good(own)


def seal_is_good(head: bytes) -> bool:
    """By dkimpy alone: the topmost seal over the set that it stands on."""
    top, message, results = split_fields(head)[:3]
    checker = dkimpy.DomainSigner()
    checker.headers = [message, results]
    checker.pk, checker.keysize, checker.ktag, _ = dkimpy.load_pk_from_dns(f"s._domainkey.{DOMAIN}.".encode(), ASK)
    tags = dkimpy.parse_tag_value(top[1]) | {b"c": b"relaxed/relaxed"}
    names = [b"arc-authentication-results", b"arc-message-signature"]
    return bool(checker.verify_sig_process(tags, names, top, None))


def test_a_chain_that_is_not_whole_is_ended_once_as_well() -> None:
    whole = split_fields(hop(HEAD))
    broken = b"".join(name + b":" + value for name, value in whole[1:])  # without its seal
    found = judged(broken)
    assert (found.cv, found.instance, found.ended, found.why) == ("fail", 1, False, "set 1 is not whole")
    head = hop(broken)
    assert results(head).startswith("i=2;")
    assert (judged(head).cv, judged(head).ended) == ("fail", True)
    assert hop(head) == head


def test_there_is_room_for_fifty() -> None:
    head = HEAD
    for _ in range(50):
        head = hop(head)
    assert judged(head) == ArcResult("pass", 50, "", ended=True)
    assert by_dkimpy(head) == dkimpy.CV_Pass
    assert hop(head) == head


def test_a_seal_that_somebody_believed_in_is_looked_at_again() -> None:
    first = hop(HEAD)
    at = first.index(b" b=") + 3
    forged = first[:at] + (b"A" if first[at : at + 1] != b"A" else b"B") + first[at + 1 :]
    head = seal(forged, BODY, OTHER, DOMAIN, "o", OURS, [], ArcResult("pass", 1), SIGNED_AT) + forged
    assert (judged(head).cv, judged(head).why) == (
        "fail",
        "ARC-Seal 1: the chain was altered, or another key signed it",
    )


def test_a_message_signature_from_the_future_fails() -> None:
    assert arc_result(hop(HEAD), BODY, ASK, SIGNED_AT - 1800).cv == "pass"
    found = arc_result(hop(HEAD), BODY, ASK, SIGNED_AT - 7200)
    assert found.why == f"ARC-Message-Signature 1: it was signed in the future [t={SIGNED_AT}]"


def test_older_results_may_be_covered_too() -> None:
    names = [b"from", b"arc-authentication-results", b"arc-authentication-results"]
    sealer = Sealer(KEY, DOMAIN, "s", SIGNED_AT)
    first = sealed(sealer, Fields(HEAD), body_hash(BODY, "relaxed"), names, f"{OURS}; arc=none", [], 1, "none") + HEAD
    assert judged(first) == ArcResult("pass", 1)
    assert by_dkimpy(first) == dkimpy.CV_Pass
    before = split_fields(first)[:3][::-1]
    hashed = body_hash(BODY, "relaxed")
    head = sealed(sealer, Fields(first), hashed, names, f"{OURS}; arc=pass", before, 2, "pass") + first
    assert judged(head) == ArcResult("pass", 2)
    assert by_dkimpy(head) == dkimpy.CV_Pass


def test_an_author_can_not_be_added_behind_a_seal() -> None:
    head = hop(HEAD)
    said = re.sub(r"\s", "", dict(split_fields(head))[b"ARC-Message-Signature"].decode())
    assert ";h=from:to:subject:date:message-id:from;" in said
    for other in (b"From: evil@example.org\r\n" + head, head + b"From: evil@example.org\r\n"):
        assert judged(other).cv == "fail"
        assert by_dkimpy(other) == dkimpy.CV_Fail


def test_many_fields_of_one_name_leave_a_signature_that_can_be_read() -> None:
    head = hop(HEAD + b"Subject: x\r\n" * 3000)
    assert judged(head) == ArcResult("pass", 1)


def test_ed25519_seals_as_well_for_those_who_verify_it() -> None:
    key = generate("ed25519")
    verifier = Verifier(HEAD, BODY, ASK, NOW)
    head = seal(HEAD, BODY, key, DOMAIN, "e", OURS, verifier.dkim(), verifier.arc(), SIGNED_AT) + HEAD
    assert arc_result(head, BODY, published(e=key), NOW) == ArcResult("pass", 1)
    assert arc_result(head, BODY + b"x", published(e=key), NOW).cv == "fail"


def test_a_chain_that_is_not_the_verified_one_is_not_sealed() -> None:
    head = hop(HEAD)
    verifier = Verifier(head, BODY, ASK, NOW)
    for other in (HEAD, head + b"ARC-Seal: i=9\r\n", hop(head)):
        with pytest.raises(ValueError, match="the chain"):
            seal(other, BODY, KEY, DOMAIN, "s", OURS, verifier.dkim(), verifier.arc(), SIGNED_AT)


def test_what_is_said_can_be_read_by_others() -> None:
    found = [
        DkimResult("example.org", "sel", "rsa-sha256", "pass", "", 2048, "ab/+cdef"),
        DkimResult("", "", "rsa-sha1", "policy", "no proof; at all", 0, ""),
        DkimResult("example.net", "s" * 60, "rsa-sha256", "fail", "the body was altered", 0, "abcdefgh"),
    ]
    made = seal(HEAD, BODY, KEY, DOMAIN, "s", OURS, found, ArcResult("none"), SIGNED_AT)
    text = results(made).removeprefix("i=1; ")
    assert ' header.b="ab/+cdef"' in text  # no token (RFC 2045 §5.1)
    read = authres.AuthenticationResultsHeader.parse(f"Authentication-Results: {text}")
    assert read.authserv_id == OURS
    assert [(one.method, one.result) for one in read.results] == [
        ("arc", "none"),
        ("dkim", "pass"),
        ("dkim", "policy"),
        ("dkim", "fail"),
    ]
    assert [(p.name, p.value) for p in read.results[1].properties] == [
        ("d", "example.org"),
        ("s", "sel"),
        ("a", "rsa-sha256"),
        ("b", "ab/+cdef"),
    ]
    assert read.results[2].reason == "no proof, at all"


# -- chains that others made


def test_one_altered_byte_anywhere_in_a_chain_is_found() -> None:
    head = hop(hop(HEAD))
    end = head.index(b"Received:")
    for at in range(0, end, 7):
        if not head[at : at + 1].isalnum():
            continue
        altered = head[:at] + bytes([head[at] ^ 1]) + head[at + 1 :]
        if canonical(altered) != canonical(head):
            assert judged(altered).cv != "pass", altered[at - 20 : at + 20]


def canonical(head: bytes) -> list[tuple[bytes, bytes]]:
    return [(name.lower(), b" ".join(value.split())) for name, value in split_fields(head)]


def replaced(old: bytes, new: bytes) -> bytes:
    head = hop(HEAD)
    assert old in head
    return head.replace(old, new, 1)


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (hop(HEAD) + b"ARC-Seal: i=1; a=rsa-sha256; b=AAAA; cv=none; d=a; s=b\r\n", "arc-seal 1 is there twice"),
        (b"ARC-Seal: nothing\r\n" + HEAD, "arc-seal: the signature can't be read: InvalidTagSpec"),
        (b"ARC-Authentication-Results: i=0; a\r\n" + HEAD, "arc-authentication-results: i= is no number from 1 to 50"),
        (b"ARC-Authentication-Results: i=51; a\r\n" + HEAD, "arc-authentication-results: i= is no number from 1 to 50"),
        (b"ARC-Authentication-Results: i=50; a\r\n" + HEAD, "set 1 is not whole"),
        (b"ARC-Authentication-Results: i=1; a\r\n" * 151 + HEAD, "more ARC fields than 50 sets have"),
        (replaced(b" cv=none;", b" cv=pass;"), "ARC-Seal 1 says cv=pass"),
        (replaced(b" cv=none;", b" cv=fine;"), "arc-seal: cv= value is not valid ['fine']"),
        (replaced(b" cv=none;", b" cv=none; h=from;"), "arc-seal: it has h="),
        (replaced(b" s=s;", b" s=gone;"), "ARC-Seal 1: its key: no key is published"),
        (replaced(b" d=example.com;", b" d=exa/mple.com;"), "ARC-Seal 1: d= is no domain name"),
        (replaced(b"a=rsa-sha256;", b"a=rsa-sha1;"), "arc-seal: rsa-sha1 is no proof any more [RFC 8301]"),
    ],
)
def test_what_is_no_chain_is_told(head: bytes, why: str) -> None:
    assert (judged(head).cv, judged(head).why) == ("fail", why)


def test_what_has_more_fields_than_a_chain_leaves_no_room() -> None:
    found = judged(b"ARC-Authentication-Results: i=1; a\r\n" * 151 + HEAD)
    assert (found.cv, found.instance, found.ended) == ("fail", 50, True)


def test_a_dns_that_does_not_answer_is_told_apart() -> None:
    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        raise TimeoutError

    found = arc_result(hop(HEAD), BODY, ask, NOW)
    assert (found.cv, found.temporary, found.ended) == ("fail", True, False)
    assert not judged(hop(HEAD), b"altered\r\n").temporary
    # What could not be judged is not ended by a seal of ours.
    assert seal(hop(HEAD), BODY, KEY, DOMAIN, "s", OURS, [], found, SIGNED_AT) == b""


def test_a_length_in_a_message_signature_that_leaves_something_out_fails() -> None:
    assert judged(replaced(b" h=from", b" l=1; h=from")).cv == "fail"


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"ARC-Seal: i=%d; cv=none; a=rsa-sha256; d=a; s=b; b=AAAA\r\n" % (i % 60) for i in range(100_000)),
        b"".join(b"ARC-Seal: i=%d; cv=fail; a=rsa-sha256; d=a; s=b; b=AAAA;x=" % i + b" x" * 7000 + b"\r\n" for i in range(150)),
        (b"ARC-Authentication-Results:" + b" " * 20_000 + b"i=1\r\n") * 140,
        (b"ARC-Authentication-Results:" + (b";" + b" " * 20) * 20_000 + b"i=1\r\n") * 10,
        (b"ARC-Seal:" + (b"; cv =" + b" " * 20) * 20_000 + b"i=1\r\n") * 10,
        b"ARC-Authentication-Results: i=1; " + b"(" * 500_000 + b"\r\n",
    ],
    ids=range(6),
)  # fmt: skip
def test_nothing_costs_much(head: bytes) -> None:
    assert within(2.0, lambda: judged(head + HEAD)).cv == "fail"


def test_a_chain_of_fifty_costs_little_to_judge() -> None:
    head = HEAD
    for _ in range(50):
        head = hop(head)
    asked: list[bytes] = []

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        asked.append(name)
        return ASK(name)

    def judge() -> ArcResult:
        asked.clear()
        return arc_result(head, BODY, ask, NOW)

    assert within(2.0, judge).cv == "pass"
    assert len(asked) == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"ARC-Seal", b"arc-message-signature", b"ARC-Authentication-Results", b"From"]),
            st.lists(
                st.one_of(
                    st.sampled_from([b"i=1", b"i=2", b" i = 1 ", b"cv=none", b"cv=pass", b"cv=fail", b"a=rsa-sha256"]),
                    st.sampled_from([b"b=AAAA", b"bh=AAAA", b"d=a.b", b"s=s", b"h=from", b"c=relaxed", b"\r\n\t"]),
                    st.binary(max_size=8),
                ),
                max_size=9,
            ),
        ),
        max_size=8,
    )
)
def test_whatever_they_write_there_is_a_result(fields: list[tuple[bytes, list[bytes]]]) -> None:
    head = b"".join(name + b": " + b";".join(tags) + b"\r\n" for name, tags in fields)
    found = judged(head + HEAD)
    assert found.cv in ("none", "fail")
    made = seal(head + HEAD, BODY, KEY, DOMAIN, "s", OURS, [], found, SIGNED_AT)
    assert bool(made) is not found.ended
    if found.cv == "fail" and made:
        assert judged(made + head + HEAD).ended


# -- results that only we may write


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example.com; dkim=pass",
        b" MX.Example.COM ; dkim=pass",
        b"mx.example.com; none",
        b" mx.example.com 1; dkim=pass",
        b" (a (nested) \\) comment) mx.example.com; dkim=pass",
        b"\r\n\t(folded)\r\n mx.example.com;\r\n\tdkim=pass",
        b' "mx.example.com"; dkim=pass',
        b' "mx.exam\\ple.com"; dkim=pass',
        b" mx.example.com(comment); dkim=pass",
        b" (never closed mx.example.com; dkim=pass",
        b' "never closed; dkim=pass',
        b" ; dkim=pass",
        b"",
    ],
)
@pytest.mark.parametrize("name", [b"Authentication-Results", b"authentication-results ", b"AUTHENTICATION-RESULTS"])
def test_a_forged_result_is_removed(name: bytes, value: bytes) -> None:
    assert without_results(name + b":" + value + b"\r\n" + HEAD, OURS) == HEAD
    assert without_results(HEAD + name + b":" + value + b"\r\n" + b"\r\n", OURS) == HEAD + b"\r\n"


@pytest.mark.parametrize(
    "value",
    [
        b" mx.example.org; dkim=pass",
        b" example.com; dkim=pass reason=mx.example.com",
        b" (mx.example.com) mx.example.org; dkim=pass",
        b" mx.example.com.evil.example; dkim=pass",
        b" b\xc3\xbccher.example; dkim=pass",
    ],
)
def test_what_others_found_stays(value: bytes) -> None:
    head = b"Authentication-Results:" + value + b"\r\n" + HEAD
    assert without_results(head, OURS) == head
    assert without_results(head + b"\r\n", OURS) == head + b"\r\n"


def test_nothing_else_is_touched() -> None:
    head = b"no field\r\n:nor this\r\nX-Authentication-Results: mx.example.com; a\r\n" + HEAD
    assert without_results(head, OURS) == head
    arc = b"ARC-Authentication-Results: i=1; mx.example.com; dkim=pass\r\n" + HEAD
    assert without_results(arc, OURS) == arc


@pytest.mark.parametrize("value", [b"(" * 300_000, b'"' + b"\\a" * 300_000, b" " * 300_000, b"(\\" * 300_000])
def test_removing_costs_little(value: bytes) -> None:
    assert within(2.0, lambda: without_results(b"Authentication-Results: " + value + b"\r\n", OURS)) == b""


def test_a_result_of_ours_is_told_whole() -> None:
    [found] = dkim_results(signed(KEY), BODY, ASK, NOW)
    said = results(hop(signed(KEY)))
    assert said.endswith(f"header.a=rsa-sha256 header.b={found.mark}") or f'header.b="{found.mark}"' in said
    assert dataclasses.astuple(found)[:4] == (DOMAIN, "s", "rsa-sha256", "pass")
