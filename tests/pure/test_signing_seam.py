"""What we rely on in dkimpy, and that our signatures are what it and RFC 6376 say: a failure here is a moved seam."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path

import dkim as dkimpy
import pytest
from dkim import canonicalization, util
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from signatures import DOMAIN, SIGNED_AT, published

from relay.signing import canonical as ours
from relay.signing.canonical import Form, body_hash, canonical, prefix_hashes
from relay.signing.dkim import Fields, canonical_fields, signature, split_fields
from relay.signing.key import SigningKey
from relay.signing.keys import generate
from relay.signing.rules import Recipe
from relay.signing.verify import dkim_results
from tests.pace import within

KEYS = {"rsa": generate("rsa", 1024), "ed25519": generate("ed25519")}
ASK = published(rsa=KEYS["rsa"], ed25519=KEYS["ed25519"])

# -- what is where


def parameters(function: object) -> list[str]:
    return list(inspect.signature(function).parameters)  # type: ignore[arg-type]


def test_the_functions_are_where_they_were() -> None:
    assert parameters(dkimpy.fold) == ["header", "namelen", "linesep"]
    assert parameters(util.parse_tag_value) == ["tag_list"]
    assert parameters(dkimpy.validate_signature_fields) == ["sig", "mandatory_fields", "arc"]
    assert parameters(dkimpy.evaluate_pk) == ["name", "s"]
    assert parameters(dkimpy.DomainSigner.verify_sig_process) == [
        "self", "sig", "include_headers", "sig_header", "dnsfunc",
    ]  # fmt: skip
    assert {"message", "logger", "minkey"} <= set(parameters(dkimpy.DomainSigner))
    assert parameters(dkimpy.DKIM.verify) == ["self", "idx", "dnsfunc"]
    assert set(canonicalization.ALGORITHMS) == {b"simple", b"relaxed"}
    assert issubclass(dkimpy.ValidationError, dkimpy.DKIMException)
    assert issubclass(util.DuplicateTag, util.InvalidTagValueList)
    assert issubclass(util.InvalidTagSpec, util.InvalidTagValueList)


def test_a_public_key_is_what_it_was() -> None:
    key, bits, kind, tls = dkimpy.evaluate_pk(b"", KEYS["rsa"].record.encode())
    assert (set(key), bits, kind, tls) == ({"modulus", "publicExponent"}, 1024, b"rsa", False)
    key, bits, kind, tls = dkimpy.evaluate_pk(b"", KEYS["ed25519"].record.encode())
    assert (hasattr(key, "verify"), bits, kind, tls) == (True, 256, b"ed25519", False)


def test_fold_breaks_at_blanks_alone_and_leaves_the_text() -> None:
    text = b"v=1; a=rsa-sha256; h=" + b": ".join([b"content-transfer-encoding"] * 9) + b"; x=" + b"y" * 60 + b";"
    folded = dkimpy.fold(text, namelen=16)
    assert folded.replace(b"\r\n ", b" ") == text
    assert max(map(len, folded.split(b"\r\n"))) <= 72
    assert folded.index(b"\r\n") <= 72 - 16


def test_fields_in_canonical_form() -> None:
    fields = [(b"SubJect \t", b" A\t \tb \r\n\t c\t\r\n"), (b"X", b"\r\n"), (b"X", b"  \xff \r\n")]
    assert canonical_fields(fields, "relaxed") == [b"subject:A b c\r\n", b"x:\r\n", b"x:\xff\r\n"]
    assert canonical_fields(fields, "simple") == [name + b":" + value for name, value in fields]


NAMES = st.text("aZ-\t ", min_size=1).map(str.encode)
VALUES = st.lists(st.sampled_from([b" ", b"\t", b"\r\n ", b"\r\n\t", b"\r", b"\n", b"\v", b"a", b"\xff"])).map(b"".join)


@given(fields=st.lists(st.tuples(NAMES, VALUES.map(lambda value: value + b"\r\n"))))
def test_ours_are_its_canonical_fields(fields: list[tuple[bytes, bytes]]) -> None:
    for form, its in (("relaxed", canonicalization.Relaxed), ("simple", canonicalization.Simple)):
        expected = [name + b":" + value for name, value in its.canonicalize_headers(fields)]
        assert canonical_fields(fields, form) == expected  # type: ignore[arg-type]


class Untouched:
    """A body that nobody may look at."""


def checker(head: bytes) -> tuple[dkimpy.DomainSigner, dict[bytes, bytes], tuple[bytes, bytes]]:
    top, *rest = split_fields(head)
    made = dkimpy.DomainSigner()
    made.headers, made.body = rest, Untouched()
    made.pk, made.keysize, made.ktag, _ = dkimpy.evaluate_pk(b"", KEYS["rsa"].record.encode())
    tags = util.parse_tag_value(top[1])
    del tags[b"bh"]
    return made, tags, top


HEAD = b"From: a@example.com\r\nX: 1\r\nX: 2\r\n"


def head_signed(names: frozenset[bytes] = frozenset([b"from", b"x"]), head: bytes = HEAD) -> bytes:
    recipe = Recipe(DOMAIN, "rsa", KEYS["rsa"], SIGNED_AT, None, sign=names)
    return signature(recipe, Fields(head), body_hash(b"", "relaxed")) + head


def test_without_bh_it_leaves_the_body_alone_and_judges_the_fields_it_is_given() -> None:
    made, tags, top = checker(head_signed())
    assert made.verify_sig_process(tags, [b"from", b"x", b"x"], top, None) is True
    made.headers = [(b"X", b" 0\r\n"), *made.headers]
    assert made.verify_sig_process(tags, [b"from", b"x", b"x"], top, None) is True  # from the bottom up
    assert made.verify_sig_process(tags, [b"from", b"x", b"x", b"x"], top, None) is False
    made.headers = made.headers[::-1]
    assert made.verify_sig_process(tags, [b"from", b"x", b"x"], top, None) is False


def test_it_asks_for_one_from_more_than_is_signed() -> None:
    made, tags, top = checker(head_signed())
    made.headers = [(b"From", b" evil@example.org\r\n"), *made.headers]
    assert made.verify_sig_process(tags, [b"from", b"x", b"x"], top, None) is False


def test_its_own_logger_reaches_the_root(caplog: pytest.LogCaptureFixture) -> None:
    """Why ours gives it another one."""
    made, tags, top = checker(head_signed())
    with caplog.at_level("DEBUG"):
        made.verify_sig_process(tags, [b"from"], top, None)
    assert caplog.records


def test_it_reads_a_clock_of_its_own() -> None:
    """Why t= and x= are kept from it."""
    tags = dict.fromkeys((b"v", b"b", b"bh", b"h", b"s"), b"1") | {b"a": b"rsa-sha256", b"d": b"a", b"b": b"AAAA"}
    tags[b"bh"] = b"AAAA"
    dkimpy.validate_signature_fields(tags)
    for times in ({b"t": b"99999999999"}, {b"x": b"1"}):
        with pytest.raises(dkimpy.ValidationError):
            dkimpy.validate_signature_fields(tags | times)


def test_verify_asks_with_a_name_and_a_timeout() -> None:
    asked: list[tuple[bytes, int]] = []

    def ask(name: bytes, timeout: int) -> bytes:
        asked.append((name, timeout))
        return KEYS["rsa"].record.encode()

    assert dkimpy.DKIM(head_signed() + b"\r\n").verify(dnsfunc=ask) is True
    assert asked == [(b"rsa._domainkey.example.com.", 5)]


# -- bodies

LINES = st.lists(
    st.one_of(
        st.sampled_from([b"", b" ", b"\t", b"  \t ", b".", b"a", b"a  b\t", b" a ", b"\xff \x00", b"a" * 1000]),
        st.binary(max_size=6).map(lambda line: line.replace(b"\r", b" ").replace(b"\n", b"\t")),
    ),
    max_size=12,
)
BODIES = st.tuples(LINES, st.booleans()).map(lambda b: b"\r\n".join(b[0]) + b"\r\n" * b[1])
FORMS: list[Form] = ["relaxed", "simple"]


def dkimpys(body: bytes, form: Form) -> bytes:
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"  # as it goes over the wire
    return bytes(canonicalization.ALGORITHMS[form.encode()].canonicalize_body(body))


def slices(body: bytes, size: int) -> Iterator[bytes]:
    lines = [line + b"\r\n" for line in body.split(b"\r\n")[:-1]] + [body.split(b"\r\n")[-1]]
    lines = [line for line in lines if line]
    for at in range(0, len(lines), size):
        yield b"".join(lines[at : at + size])


@settings(max_examples=400, deadline=None)
@given(BODIES, st.sampled_from(FORMS), st.integers(1, 4))
def test_bodies_are_dkimpys_whole_and_in_slices(body: bytes, form: Form, size: int) -> None:
    expected = dkimpys(body, form)
    assert b"".join(canonical([body], form)) == expected
    assert b"".join(canonical(slices(body, size), form)) == expected


@settings(max_examples=100, deadline=None)
@given(BODIES, st.sampled_from(FORMS), st.integers(1, 9))
def test_bodies_in_files_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, body: bytes, form: Form, size: int
) -> None:
    path = tmp_path_factory.mktemp("body") / "body"
    path.write_bytes(body)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours, "SLICE", size)
        assert body_hash(path, form) == body_hash(body, form)
        expected = dkimpys(body, form)
        length, hashes = prefix_hashes(path, form, range(0, 20, 3))
        assert length == len(expected)
        for upto, found in hashes.items():
            assert found == hashlib.sha256(expected[:upto]).digest()
        assert set(hashes) == {n for n in range(0, 20, 3) if n < length} | {length}


# -- whole messages

NAMES = st.sampled_from([b"From", b"To", b"subject", b"X-A", b"RECEIVED", b"Cc", b"b", b"dkim", b"List-Id", b"h"])
VALUES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"a", b" ", b"\t", b"\r\n ", b"\r\n\t", b"  ", b"b=x", b"; b=", b":", b"\xc3\xa9", b"\x00", b""]
        ),
        st.binary(max_size=5).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"")),
    ),
    max_size=8,
).map(b"".join)
HEADS = st.lists(st.tuples(NAMES, VALUES), max_size=8).map(
    lambda fields: b"".join(name + b":" + value + b"\r\n" for name, value in [*fields, (b"From", b" a@example.com")])
)
SETS = st.frozensets(st.sampled_from([b"to", b"subject", b"x-a", b"received", b"cc", b"b", b"list-id", b"h"]))


def made(kind: str, head: bytes, body: bytes, header: Form, text: Form, sign: frozenset[bytes], always: bool) -> bytes:
    recipe = Recipe(
        DOMAIN,
        kind,
        KEYS[kind],
        SIGNED_AT,
        None,
        header,
        text,
        sign | {b"from"},
        frozenset([b"subject"]),
        (b"from", b"cc", b"date") if always else (),
    )
    return signature(recipe, Fields(head), body_hash(body, text))


def verifies(content: bytes) -> bool:
    try:
        return bool(dkimpy.DKIM(content).verify(dnsfunc=ASK))
    except Exception:  # noqa: BLE001 - dkimpy raises much for what is no signature any more
        return False


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(sorted(KEYS)), HEADS, BODIES, st.sampled_from(FORMS), st.sampled_from(FORMS), SETS, st.booleans()
)
def test_what_we_sign_verifies_in_dkimpy_and_here(
    kind: str, head: bytes, body: bytes, header: Form, text: Form, sign: frozenset[bytes], always: bool
) -> None:
    if body and not body.endswith(b"\r\n"):
        body += b"\r\n"
    top = made(kind, head, body, header, text, sign, always)
    authors = sum(name.lower() == b"from" for name, _ in split_fields(head))
    assert verifies(top + head + b"\r\n" + body)
    [found] = dkim_results(top + head, body, ASK, SIGNED_AT)
    assert found.result == ("pass" if authors == 1 else "policy")


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from(sorted(KEYS)), HEADS, BODIES, st.sampled_from(FORMS), st.sampled_from(FORMS), SETS)
def test_one_other_byte_in_what_is_signed_and_it_does_not(
    data: st.DataObject, kind: str, head: bytes, body: bytes, header: Form, text: Form, sign: frozenset[bytes]
) -> None:
    body = body.removesuffix(b"\r\n") + b"end\r\n"
    top = made(kind, head, body, header, text, sign, False)
    whole = head + b"\r\n" + body
    at = data.draw(st.integers(0, len(whole) - 1).filter(lambda place: whole[place] not in b"\r\n"))
    byte = data.draw(st.integers(0, 255).filter(lambda new: new != whole[at] and new not in b"\r\n"))
    altered = whole[:at] + bytes([byte]) + whole[at + 1 :]
    assume(
        what_is_signed(altered, len(head), header, text, sign) != what_is_signed(whole, len(head), header, text, sign)
    )
    assert not verifies(top + altered)
    found = dkim_results(top + altered[: len(head)], altered[len(head) + 2 :], ASK, SIGNED_AT)
    assert all(one.result != "pass" for one in found)


def what_is_signed(whole: bytes, end: int, header: Form, text: Form, sign: frozenset[bytes]) -> object:
    fields = Fields(whole[:end]).of(header)
    return {name: fields.get(name) for name in sign | {b"from"}}, dkimpys(whole[end + 2 :], text)


def test_a_field_that_was_signed_once_more_can_not_be_added() -> None:
    head = b"From: a@example.com\r\nSubject: b\r\n"
    top = made("rsa", head, b"", "relaxed", "relaxed", frozenset([b"subject"]), True)
    assert verifies(top + head + b"\r\n")
    for name in (b"From", b"Subject", b"Cc", b"Date"):
        assert not verifies(top + head + name + b": c\r\n\r\n")
        assert not verifies(name + b": c\r\n" + top + head + b"\r\n")
    assert verifies(top + head + b"To: c\r\n\r\n")


def test_a_key_of_another_is_another_key() -> None:
    other = generate("rsa", 1024)
    assert isinstance(other, SigningKey)
    assert other != KEYS["rsa"]
    assert not dkimpy.DKIM(head_signed() + b"\r\n").verify(dnsfunc=published(rsa=other))


def test_many_lines_of_one_field_take_linear_time(tmp_path: Path) -> None:
    head = b"From: a\r\nX: a\r\n" + (b" " + b"y" * 60 + b"\r\n") * 40_000
    within(1.0, lambda: Fields(head).of("relaxed"))


@pytest.mark.parametrize("form", ["relaxed", "simple"])
@pytest.mark.parametrize("selector", ["s", "x" * 60 + "." + "y" * 59])
def test_a_name_that_is_longer_than_a_line_is_not_broken(form: Form, selector: str) -> None:
    """No blank may stand in d= and s= (RFC 6376 §3.5), and dkimpy's fold puts one there."""
    domain, key = ".".join(["a" * 60] * 4), KEYS["rsa"]
    head = b"From: a@" + domain.encode() + b"\r\nSubject: x\r\n"
    recipe = Recipe(domain, selector, key, SIGNED_AT, header_form=form, sign=frozenset([b"from"]))
    made = signature(recipe, Fields(head), body_hash(b"", "relaxed")) + head
    assert f"d={domain};".encode() in made and f"s={selector};".encode() in made
    assert max(map(len, made.split(b"\r\n"))) <= 300
    assert dkimpy.verify(made + b"\r\n", dnsfunc=lambda name, timeout=5: key.record.encode())
    (found,) = dkim_results(made, b"", lambda name, timeout=5: key.record.encode(), SIGNED_AT)
    assert found.result == "pass"
