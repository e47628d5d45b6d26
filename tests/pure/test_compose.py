"""What is composed reads back as what was asked, whatever was asked; and nothing of it begins a field of its own."""

from __future__ import annotations

from email import message_from_bytes, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import getaddresses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.compose import (
    Attachment,
    Draft,
    Mailbox,
    Uncomposable,
    _made,
    _often,
    _plain,
    check_field,
    compose,
    fields_of,
    mailboxes,
    one_line,
)
from relay.envelope import UNSENDABLE

LINES = st.text(max_size=300).filter(lambda text: not UNSENDABLE.search(text)).map(lambda text: " ".join(text.split()))
TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n"), max_size=3000)
ADDRESSES = st.from_regex(r"[a-z][a-z0-9.+-]{0,20}[a-z]@[a-z]{1,10}\.example", fullmatch=True)
BOXES = st.builds(Mailbox, LINES, ADDRESSES)
AUTHOR = Mailbox("", "a@b.example")


def parsed(draft: Draft) -> EmailMessage:
    content = compose(draft)
    assert b"\0" not in content and b"\n" not in content.replace(b"\r\n", b"")
    assert max(map(len, content.split(b"\r\n"))) <= 998
    found = message_from_bytes(content, policy=policy.SMTP)
    assert isinstance(found, EmailMessage) and not found.defects
    return found


def said(part: EmailMessage) -> str:
    text: str = part.get_content()
    return text.replace("\r\n", "\n").rstrip("\n")


@given(LINES)
def test_any_subject(subject: str) -> None:
    found = parsed(Draft(AUTHOR, subject=subject, text="x"))
    assert " ".join(str(found["Subject"]).split()) == subject
    assert {name.lower() for name in found} == {
        "from", "subject", "mime-version", "content-type", "content-transfer-encoding",
    }  # fmt: skip


@given(st.lists(BOXES, min_size=1, max_size=20))
def test_any_recipients(boxes: list[Mailbox]) -> None:
    found = parsed(Draft(boxes[0], to=boxes, cc=boxes[:1], text="x"))
    assert [a.addr_spec for a in found["To"].addresses] == [box.address for box in boxes]
    assert [a.addr_spec for a in found["From"].addresses] == [boxes[0].address]
    # Python's newer reader leaves a space between two encoded words of a name, which RFC 2047 §6.2 does not: so by the older one.
    old = message_from_bytes(compose(Draft(boxes[0], to=boxes)), policy=policy.compat32)
    names = [str(make_header(decode_header(name))) for name, _ in getaddresses([old["To"]])]
    assert [" ".join(name.split()) for name in names] == [box.name for box in boxes]


@given(TEXTS, st.none() | TEXTS)
def test_any_text(text: str, html: str | None) -> None:
    found = parsed(Draft(AUTHOR, text=text, html=html))
    body = found.get_body(("plain",))
    assert body is not None and said(body) == text.rstrip("\n")
    shown = found.get_body(("html",))
    assert (shown is None) == (html is None)
    assert shown is None or html is None or said(shown) == html.rstrip("\n")


@given(LINES.filter(bool), st.binary(max_size=3000), st.booleans())
def test_any_attachment(filename: str, content: bytes, inline: bool) -> None:
    one = Attachment(filename, content, "application/octet-stream", inline, "a@b")
    found = parsed(Draft(AUTHOR, text="x", html="<p>", attachments=[one]))
    (part,) = (p for p in found.walk() if p.get_filename() is not None)
    assert (part.get_content(), part.get_filename(), part["Content-ID"]) == (content, filename, "<a@b>")


def test_the_shape_of_a_message_with_everything() -> None:
    image, file = Attachment("l.png", b"p", "", True, "l"), Attachment("a.pdf", b"p")
    found = parsed(Draft(AUTHOR, text="x", html="<p>", attachments=[file, image]))
    assert [part.get_content_type() for part in found.walk()] == [
        "multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png",
        "application/pdf",
    ]  # fmt: skip


def test_a_message_is_attached_as_a_file_for_base64_is_not_allowed_in_it() -> None:
    found = parsed(Draft(AUTHOR, text="x", attachments=[Attachment("a.eml", b"Subject: x\r\n\r\n")]))
    assert next(found.iter_attachments()).get_content_type() == "application/octet-stream"


def test_addresses() -> None:
    assert mailboxes('"Doe, Jane" <J@X.example>, b@bücher.example') == (
        Mailbox("Doe, Jane", "J@x.example"), Mailbox("", "b@xn--bcher-kva.example"),
    )  # fmt: skip
    assert mailboxes("Jörg <jörg@bücher.example>") == (Mailbox("Jörg", "jörg@bücher.example"),)


@pytest.mark.parametrize(
    "text",
    [
        "", "a", "Doe, Jane <j@x.example>", "g: a@b.c;", "a@b.c\r\nBcc: d@e.f", "a@b.c\0", "<a@b.c", "a@b.c> x", "a b@c.d",
        "a@b.c; d@e.f", "\u2028a@b.c",
    ],
)  # fmt: skip
def test_no_addresses(text: str) -> None:
    with pytest.raises(Uncomposable):
        mailboxes(text)


@given(st.text(max_size=50))
def test_no_text_makes_an_address_that_holds_more(text: str) -> None:
    try:
        found = mailboxes(text)
    except Uncomposable:
        return
    assert all(not UNSENDABLE.search(box.name + box.address) and "@" in box.address for box in found)


@pytest.mark.parametrize(
    "name",
    [
        "From",
        "bcc",
        "Subject",
        "X-Relay-Tag",
        "Content-Type",
        "Resent-To",
        "Received",
        "X A",
        "X:",
        "",
        "X\r\nY",
        "Ü",
        "x" * 71,
    ],
)
def test_no_field_of_that_name(name: str) -> None:
    with pytest.raises(Uncomposable):
        check_field(name)


@pytest.mark.parametrize("text", ["a\nb", "a\rb", "a\0b", "a\x85b", "a\u2028b", "\ud800"])
def test_more_than_a_line(text: str) -> None:
    with pytest.raises(Uncomposable):
        one_line("it", text)


@given(
    st.lists(BOXES, min_size=1, max_size=20),
    st.lists(st.tuples(st.sampled_from(["X-A", "X-Order"]), LINES), max_size=3),
    LINES,
    TEXTS,
    st.sampled_from(["text", "html"]),
)
def test_what_is_written_by_hand_is_what_the_stdlib_would_write(
    boxes: list[Mailbox], headers: list[tuple[str, str]], subject: str, text: str, kind: str
) -> None:
    said = {kind: text}
    draft = Draft(boxes[0], boxes, subject=subject, headers=headers, **said)  # type: ignore[arg-type]
    fields = fields_of(draft)
    plain = _plain(fields, draft)
    assert not plain or plain == _made(fields, draft)


@pytest.mark.parametrize(
    "text", ["", "x", "x\n", "\n\n", "From here\n.\n.."], ids=["none", "open", "line", "blank", "dots"]
)
def test_most_is_written_by_hand(text: str) -> None:
    draft = Draft(AUTHOR, [AUTHOR], subject="A subject", text=text, headers=[("X-A", "")])
    assert _plain(fields_of(draft), draft) == _made(fields_of(draft), draft) != b""


def test_long_lists_are_not_remembered() -> None:
    before = _often.cache_info().currsize
    lists = [",".join(f"{i}x{j}@example.net" for j in range(100)) for i in range(9)]
    assert [len(mailboxes(text)) for text in lists] == [100] * 9
    assert _often.cache_info().currsize == before
