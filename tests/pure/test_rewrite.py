"""Rules for the envelope and the header block: what they change, what stays, and that nobody's text becomes a line."""

from __future__ import annotations

import re
import time
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.outgoing import headers, verp
from relay.outgoing.check import problems
from relay.outgoing.mailboxes import MAX_MAILBOXES, Unreadable, read
from relay.outgoing.rewrite import About, Rewrite, Unsubscribe, apply, author, reverse_path

TOKEN = verp.make(b"0123456789abcdef", 1, 2)
ABOUT = About("1NG4WK70001", "joe@shop.example", "ann@far.example", "joe@shop.example", "web", "news", "order-7", TOKEN)
SHOP, CORP = Rewrite(from_="sales@corp.example"), Rewrite(from_="*@corp.example")


def parsed(head: bytes) -> EmailMessage:
    return BytesParser(EmailMessage, policy=policy.default).parsebytes(head)


def changed(rule: Rewrite, value: bytes, name: bytes = b"From") -> bytes:
    """What becomes of a message with this one field, by its name."""
    head, _ = apply(rule, name + b":" + value + b"\r\n\r\n", ABOUT)
    found = headers.first(headers.split(head), name.lower())
    assert found is not None
    return found.value


# -- the block


FIELD = st.tuples(
    st.from_regex(rb"[!-9;-~]{1,20}[ \t]{0,2}", fullmatch=True),
    st.lists(st.binary(max_size=30).map(lambda b: re.sub(rb"[\r\n]", b"", b)), min_size=1, max_size=3),
).map(lambda f: f[0] + b":" + b"\r\n ".join(f[1]) + b"\r\n")
JUNK = st.sampled_from(
    [b"From joe Thu Jan 1 00:00:00\r\n", b"no colon\r\n", b":\r\n", b" leading blank\r\n", b"a\rb\nc: d\r\n"]
)
HEAD = (
    st.lists(FIELD | JUNK, max_size=8)
    .map(lambda lines: b"".join(lines) + b"\r\n")
    .filter(lambda h: h.find(b"\r\n\r\n") in (-1, len(h) - 4))
)


@given(HEAD)
def test_a_block_is_split_and_joined_byte_for_byte(head: bytes) -> None:
    fields = headers.split(head)
    assert headers.join(fields) == head
    for f in fields:
        assert f.raw.endswith(b"\r\n") and f.key == f.name.lower()
        if f.key:
            assert f.raw.startswith(f.name) and f.raw.endswith(f.value + b"\r\n")


@pytest.mark.parametrize(
    "head", [b"", b"A: b\r\n", b"A: b\r\n\r\nC: d\r\n\r\n", b"\r\n\r\n", b"\r\nA: b\r\n\r\n", b"A: b\n\n"]
)
def test_what_is_no_block_is_refused(head: bytes) -> None:
    with pytest.raises(ValueError):
        headers.split(head)


@given(st.text(max_size=300))
@example("=?utf-8?q?a=0D=0AX:_y?=")
@example("ä\u2028b")
@example("\x85")
@example("a" * 2000)
@example("x " * 500 + "ü")
def test_a_made_field_is_one_field(value: str) -> None:
    try:
        made = headers.make("X-Test", value)
    except ValueError:
        return
    assert made.raw.isascii() and made.raw.endswith(b"\r\n") and made.key == b"x-test"
    assert headers.split(made.raw + b"\r\n") == [made]
    lines = made.raw.split(b"\r\n")[:-1]
    assert all(line.strip() for line in lines) and all(line[:1] == b" " for line in lines[1:])
    assert all(len(line) <= 76 or b" " not in line.removeprefix(b"X-Test:").strip() for line in lines)
    read_back = str(parsed(made.raw + b"\r\n")["X-Test"])
    assert re.sub(r"\s+", " ", read_back).strip() == re.sub(r"\s+", " ", value).strip()


@pytest.mark.parametrize(
    "value", ["a\r\nB: c", "a\nb", "a\rb", "a\0b", "\x7f", "a\x85b", "\ud800", "", "  ", "x" * 999]
)
def test_a_value_that_could_be_more_than_a_value_is_refused(value: str) -> None:
    with pytest.raises(ValueError):
        headers.make("X-Test", value)


@pytest.mark.parametrize("name", ["", "A b", "A:", "Ä", "A\r\nB", "x" * 76])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        headers.make(name, "value")


# -- addresses and their places


PHRASE = st.sampled_from(
    [
        b"",
        b"Joe ",
        b'"Doe, Joe" ',
        b"J. R. Doe ",
        b"=?utf-8?q?J=C3=B6?= ",
        b"J\xc3\xb6 ",
        b"J\xf6 ",
        b"(pre) ",
        b'"a\\"b" ',
        b"a@b.example ",
        b"Joe\r\n ",
    ]
)
LOCAL = st.from_regex(r"[a-z0-9!#$%&'*+/=?^_`{|}~-]{1,8}(\.[a-z0-9]{1,5})?", fullmatch=True)
BLANK = st.sampled_from([b"", b" ", b"\r\n\t", b" (a (nested) \\) comment) "])


@st.composite
def mailbox(draw: st.DrawFn) -> tuple[bytes, str]:
    address = f"{draw(LOCAL)}@{draw(st.sampled_from(['x.example', 'b.c.example', '[192.0.2.1]']))}"
    if draw(st.booleans()):
        inner = draw(BLANK) + address.replace("@", " @ ").encode() if draw(st.booleans()) else address.encode()
        return draw(PHRASE) + b"<" + inner + b">" + draw(BLANK), address
    return draw(BLANK) + address.encode() + draw(BLANK), address


@given(st.lists(mailbox(), min_size=1, max_size=4), st.sampled_from([b", ", b",", b" ,\r\n ", b" , , "]))
def test_addresses_are_found_where_they_stand(boxes: list[tuple[bytes, str]], comma: bytes) -> None:
    value = b" " + comma.join(raw for raw, _ in boxes)
    found = read(value)
    assert [m.address for m in found] == [address for _, address in boxes]
    for m in found:
        assert 0 <= m.start <= m.at < m.to <= m.end <= len(value)
        assert m.angled is (value[m.at : m.to].startswith(b"<"))


@given(st.lists(mailbox(), min_size=1, max_size=4))
def test_another_domain_changes_the_addresses_alone(boxes: list[tuple[bytes, str]]) -> None:
    value = b" " + b", ".join(raw for raw, _ in boxes)
    new = changed(CORP, value)
    before, after = read(value), read(new)
    assert [m.address for m in after] == [m.address.rpartition("@")[0] + "@corp.example" for m in before]

    def around(text: bytes, places: list[tuple[int, int]]) -> list[bytes]:
        edges = [0, *(edge for place in places for edge in place), len(text)]
        return [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]

    assert around(value, [(m.at, m.to) for m in before]) == around(new, [(m.at, m.to) for m in after])


@pytest.mark.parametrize(
    ("value", "one", "domain"),
    [
        (b" joe@x.example", b" sales@corp.example", b" joe@corp.example"),
        (b"joe@x.example", b"sales@corp.example", b"joe@corp.example"),
        (b' "Doe, Joe" <joe@x.example>', b' "Doe, Joe" <sales@corp.example>', b' "Doe, Joe" <joe@corp.example>'),
        (b" Joe\r\n <joe@x.example>", b" Joe\r\n <sales@corp.example>", b" Joe\r\n <joe@corp.example>"),
        (b" J\xf6 <joe@x.example>", b" J\xf6 <sales@corp.example>", b" J\xf6 <joe@corp.example>"),
        (
            b" =?utf-8?b?SsO2?= <joe@x.example>",
            b" =?utf-8?b?SsO2?= <sales@corp.example>",
            b" =?utf-8?b?SsO2?= <joe@corp.example>",
        ),
        (b" joe@x.example (Joe)", b" sales@corp.example (Joe)", b" joe@corp.example (Joe)"),
        (b' "j d"@x.example', b" sales@corp.example", b' "j d"@corp.example'),
        (b" Doe, Joe <joe@x.example>", b" Doe, Joe <sales@corp.example>", b" Doe, Joe <joe@corp.example>"),
        (
            b" joe@x.example <joe@x.example>",
            b" joe@x.example <sales@corp.example>",
            b" joe@x.example <joe@corp.example>",
        ),
        (b" <@a.example:joe@x.example>", b" <sales@corp.example>", b" <joe@corp.example>"),
        (b" Team: joe@x.example;", b" Team: sales@corp.example;", b" Team: joe@corp.example;"),
        # Several authors: an address leaves the first name, a domain leaves them all.
        (b" A <a@x.example>, (c) b@y.example", b" A <sales@corp.example>", b" A <a@corp.example>, (c) b@corp.example"),
        (b" a@x.example (A), b@y.example", b" sales@corp.example (A)", b" a@corp.example (A), b@corp.example"),
        # Nothing that can be read: what intake read of it counts.
        (b"", b" <sales@corp.example>", b" <joe@corp.example>"),
        (b" Undisclosed: ;", b" <sales@corp.example>", b" <joe@corp.example>"),
        (b' "Joe <joe@x.example>', b" <sales@corp.example>", b" <joe@corp.example>"),
        (b" joe joe@x.example", b" <sales@corp.example>", b" <joe@corp.example>"),
        (b" Joe <joe@x.example> <b@y.example>", b" <sales@corp.example>", b" <joe@corp.example>"),
        # Without a domain.
        (b" Cron Daemon <root>", b" Cron Daemon <sales@corp.example>", b" Cron Daemon <root@corp.example>"),
        (b" root (Cron)", b" root (Cron) <sales@corp.example>", b" root@corp.example (Cron)"),
        (b" Joe Doe", b" Joe Doe <sales@corp.example>", b" Joe Doe <joe@corp.example>"),
        (b" Joe <a b@c.example>", b" Joe <sales@corp.example>", b" Joe <joe@corp.example>"),
        (b" <>", b" <sales@corp.example>", b" <joe@corp.example>"),
        (b" a@x.example, b c@y.example", b" <sales@corp.example>", b" <joe@corp.example>"),
    ],
)
def test_from(value: bytes, one: bytes, domain: bytes) -> None:
    assert changed(SHOP, value) == one
    assert changed(CORP, value) == domain


@given(st.binary(max_size=120).map(lambda b: re.sub(rb"[\r\n]", b"", b)))
@example(b"(" * 100)
@example(b'"' * 99)
@example(b"<" * 99)
@example(b"a@x.example\0")
@example(b".")
@example(b"..@")
def test_no_from_survives_a_rule(value: bytes) -> None:
    for rule, new in ((SHOP, "sales@corp.example"), (CORP, None)):
        head, changes = apply(rule, b"From:" + value + b"\r\nSubject: x\r\n\r\n", ABOUT)
        fields = headers.split(head)
        assert [f.key for f in fields] == [b"from", b"subject"]
        for m in read(fields[0].value):
            if m.address:
                assert m.address.endswith("@corp.example") and new in (None, m.address)
        assert all(c.isprintable() for line in changes for c in line)


def test_every_from_is_changed_and_a_missing_one_added() -> None:
    head, _ = apply(SHOP, b"From: a@x\r\nTo: b@y\r\nfrom : Joe <c@z>\r\n\r\n", ABOUT)
    assert head == b"From: sales@corp.example\r\nTo: b@y\r\nfrom : Joe <sales@corp.example>\r\n\r\n"
    assert apply(CORP, b"To: b@y\r\n\r\n", ABOUT) == (
        b"To: b@y\r\nFrom: <joe@corp.example>\r\n\r\n",
        ["From: added joe@corp.example"],
    )


def test_a_rule_that_cannot_be_obeyed_lets_nothing_out() -> None:
    nobody = About("1", "", "b@y.example", "")
    for head in (b"To: b@y\r\n\r\n", b"From: undisclosed:;\r\n\r\n"):
        with pytest.raises(ValueError, match=r"\*@corp\.example"):
            apply(CORP, head, nobody)


def test_whose_mail_it_is_then() -> None:
    assert author(b"Subject: x\r\nFrom: A <a@X.example>, b@y\r\n\r\n") == "a@x.example"
    assert author(b"\r\n") == author(b"From: nobody\r\n\r\n") == author(b'From: "a@b\r\n\r\n') == ""


def test_lines_stay_within_their_limit() -> None:
    name = b"x" * 960
    value = changed(SHOP, b" " + name + b"\r\n <j@x>")
    assert value == b" " + name + b"\r\n <sales@corp.example>"
    assert changed(SHOP, b" " + name + b" <joe@x.example>") == b" " + name + b" \r\n <sales@corp.example>"
    head, _ = apply(Rewrite(reply_to="{from}"), b"From:" + b"x" * 983 + b" <a@x.de>\r\n\r\n", ABOUT)
    assert max(map(len, head.split(b"\r\n"))) <= 998
    assert headers.split(head)[1].value.split() == [b"x" * 983, b"<a@x.de>"]
    many = b", ".join(b"a%d@x.y" % n for n in range(80))
    assert max(map(len, changed(Rewrite(from_="*@a-much-longer-domain.example"), b" " + many).split(b"\r\n"))) <= 998


@pytest.mark.parametrize(
    "unit", [b"(", b'"', b"[\\", b"<", b"a.", b"a,", b"()", b":", b'"a" ', b"a@b,", b"\\", b"[a", b"\r\n "]
)
def test_reading_addresses_takes_linear_time(unit: bytes) -> None:
    took = []
    for size in (2_000, 16_000):
        value, best = unit * (size // len(unit)), 9.0
        for _ in range(3):
            started = time.process_time()
            try:
                assert len(read(value)) <= MAX_MAILBOXES
            except Unreadable:
                best = min(best, time.process_time() - started)
                continue
            best = min(best, time.process_time() - started)
        took.append(best)
    assert took[1] < 8 * 6 * took[0] + 0.005
    with pytest.raises(Unreadable):
        read(b"a" * 40_000)


# -- the other fields


HEAD_AS_CAME = b'Received: x\r\n\tby y\r\nFROM: "Doe, Joe"\r\n <joe@shop.example>,a@b.example\r\nx-mailer: 1\r\nSubject: hi\r\n\r\n'


def test_answers_go_to_the_author_as_he_wrote_himself() -> None:
    rule = Rewrite(from_="*@corp.example", reply_to="{from}", sender="{from}")
    head, changes = apply(rule, HEAD_AS_CAME, ABOUT)
    assert head == (
        b'Received: x\r\n\tby y\r\nFROM: "Doe, Joe"\r\n <joe@corp.example>,a@corp.example\r\nx-mailer: 1\r\nSubject: hi\r\n'
        b'Reply-To: "Doe, Joe"\r\n <joe@shop.example>,a@b.example\r\nSender: "Doe, Joe"\r\n <joe@shop.example>\r\n\r\n'
    )
    assert changes == [
        "From: joe@shop.example, a@b.example -> joe@corp.example, a@corp.example",
        "Reply-To: added joe@shop.example, a@b.example",
        "Sender: added joe@shop.example",
    ]


@pytest.mark.parametrize(
    ("template", "before", "after"),
    [
        ("help@shop.example", b"", b" help@shop.example"),
        ("help@shop.example", b" A <a@b.example>, c@d.example", b" help@shop.example"),
        ("*@corp.example", b" A <a@b.example>, c@d.example", b" A <a@corp.example>, c@corp.example"),
        ("*@corp.example", b"", b" Joe <joe@corp.example>"),
        ("*@corp.example", b" nonsense", b" Joe <joe@corp.example>"),
        ("{from}", b" a@b.example", b" Joe <joe@shop.example>"),
        ("{sender}", b"", b" joe@shop.example"),
        ("re+{id}@shop.example", b"", b" re+1NG4WK70001@shop.example"),
        ("re+{recipient}@shop.example", b"", b' "re+ann@far.example"@shop.example'),
        ("x@{from_domain}", b"", b" x@shop.example"),
        ("{token}@b.example", b"", b" " + TOKEN.encode() + b"@b.example"),
    ],
)
def test_reply_to(template: str, before: bytes, after: bytes) -> None:
    own = b"Reply-To:" + before + b"\r\n" if before else b""
    head, _ = apply(Rewrite(reply_to=template), own + b"From: Joe <joe@shop.example>\r\n\r\n", ABOUT)
    assert [f.value for f in headers.split(head) if f.key == b"reply-to"] == [after]


def test_of_several_answers_one_is_left() -> None:
    head = b"Reply-To: a@b\r\nFrom: x@y\r\nREPLY-TO: c@d\r\n\r\n"
    assert apply(Rewrite(reply_to="a@b"), head, ABOUT) == (
        b"Reply-To: a@b\r\nFrom: x@y\r\n\r\n",
        ["Reply-To: a@b, c@d -> a@b"],
    )


def test_an_empty_placeholder_changes_nothing() -> None:
    report = About("1", "", "joe@shop.example", "MAILER-DAEMON@relay.example")
    head = b"From: MAILER-DAEMON@relay.example\r\n\r\n"
    assert apply(Rewrite(reply_to="{sender}", add=(("X-Tag", "{tag}"),)), head, report) == (head, [])


def test_an_address_that_comes_of_nothing_is_refused() -> None:
    for about in (
        About("1", "a@b", "ann@far.example", "", tag="no address"),
        About("1", "a@b", "änn@far.example", "", tag="x@y\r\nZ"),
    ):
        for template in ("{tag}", "{recipient}"):
            if (template, about.recipient) != ("{recipient}", "ann@far.example"):
                with pytest.raises(ValueError):
                    apply(Rewrite(reply_to=template), b"From: a@b\r\n\r\n", about)


def test_fields_are_removed_by_name_and_glob_and_all_else_stays() -> None:
    head = b"X-Mailer: 1\r\nX-Internal-Id: 2\r\n 3\r\nSubject: x-mailer: 4\r\nx-MAILER : 5\r\nX-Internals: 6\r\nno field\r\n\r\n"
    new, changes = apply(Rewrite(remove=("x-mailer", "X-Internal-*")), head, ABOUT)
    assert new == b"Subject: x-mailer: 4\r\nX-Internals: 6\r\nno field\r\n\r\n"
    assert changes == ["x-MAILER: removed", "X-Internal-Id: removed"]
    assert apply(Rewrite(remove=("X-None",)), head, ABOUT) == (head, [])


def test_what_is_added_stands_at_the_end_beside_its_like_unless_that_is_removed() -> None:
    head = b"X-A: 1\r\nTo: b\r\n\r\n"
    assert apply(Rewrite(add=(("X-A", "{id}-{class}-{user}"),)), head, ABOUT) == (
        b"X-A: 1\r\nTo: b\r\nX-A: 1NG4WK70001-news-web\r\n\r\n",
        ["X-A: added 1NG4WK70001-news-web"],
    )
    assert apply(Rewrite(remove=("X-A",), add=(("X-A", "2"),)), head, ABOUT)[0] == b"To: b\r\nX-A: 2\r\n\r\n"


def test_a_header_may_be_json() -> None:
    rule = Rewrite(add=(("X-SMTPAPI", '{"category": ["{tag}"], "x": {}}'),))
    assert problems(rule) == []
    assert b'X-SMTPAPI: {"category": ["order-7"], "x": {}}\r\n' in apply(rule, b"To: b\r\n\r\n", ABOUT)[0]


@given(HEAD)
def test_nothing_is_touched_but_what_is_named(head: bytes) -> None:
    rule = Rewrite(from_="a@b.example", reply_to="c@d.example", remove=("X-*",), add=(("Y", "1"),))
    before = [f for f in headers.split(head) if f.key not in (b"from", b"reply-to") and not f.key.startswith(b"x-")]
    new, _ = apply(rule, head, ABOUT)
    after = [f for f in headers.split(new) if f.key not in (b"from", b"reply-to")]
    assert after == [*before, headers.make("Y", "1")]
    assert apply(rule, head, ABOUT)[0] == new
    assert apply(Rewrite(), head, ABOUT) == (head, [])


# -- injection


EVIL = st.text(max_size=30) | st.sampled_from(
    [
        "a\r\nBcc: x@y",
        "a\nX: y",
        "a\r\n\r\nbody",
        "\0",
        "=?utf-8?q?=0D=0ABcc:_x?=",
        '"@x.example>, <evil@x.example',
        "><",
        "a@b\u2028c",
        "\ud800",
    ]
)


@given(EVIL, EVIL, EVIL, EVIL)
def test_nobody_injects_anything(sender: str, recipient: str, from_: str, tag: str) -> None:
    about = About("1NG", sender, recipient, from_, "u", "c", tag, TOKEN)
    every = "{sender} {recipient} {recipient_domain} {from} {from_domain} {tag}"
    rule = Rewrite(
        add=(("X-Add", every),),
        unsubscribe=Unsubscribe(
            "https://u.example/{token}?r={recipient}&t={tag}&f={from}", "u+{tag}-{recipient}@b.example?subject={from}"
        ),
    )
    head, changes = apply(rule, b"From: a@b.example\r\n\r\n", about)
    fields = headers.split(head)
    assert [f.name for f in fields if f.name not in (b"X-Add", b"List-Unsubscribe", b"List-Unsubscribe-Post")] == [
        b"From"
    ]
    assert head.isascii() and len(fields) <= 4
    urls = b"".join(f.value for f in fields if f.key == b"list-unsubscribe").replace(b"\r\n", b"")
    if urls:
        assert re.fullmatch(
            rb" <https://u\.example/[a-z2-7]{40}\?r=[\w.~%-]*&t=[\w.~%-]*&f=[\w.~%-]*>,"
            rb" <mailto:u\+[\w.~%-]*@b\.example\?subject=[\w.~%-]*>",
            urls,
        )
    assert all(c.isprintable() for line in changes for c in line)


@given(EVIL)
def test_no_address_is_more_than_an_address(text: str) -> None:
    about = About("1NG", text, text, text, tag=text)
    for template in ("{sender}", "{tag}", "re+{tag}@b.example", "{tag}@b.example", "x@{recipient_domain}"):
        for rule in (Rewrite(reply_to=template), Rewrite(sender=template)):
            try:
                head, _ = apply(rule, b"From: a@b.example\r\n\r\n", about)
            except ValueError:
                continue
            fields = headers.split(head)
            assert len(fields) <= 2
            for f in fields[1:]:
                found = read(f.value)
                assert len(found) == 1 and found[0].address == f.value.decode().strip()
                if template.endswith("@b.example"):
                    assert found[0].address.endswith("@b.example")


# -- List-Unsubscribe


BOTH = Unsubscribe("https://u.example/{token}", "off+{token}@b.example?subject=off%20{id}")


def test_unsubscribe_by_click_and_by_mail() -> None:
    head, changes = apply(Rewrite(unsubscribe=BOTH), b"From: a@b\r\n\r\n", ABOUT)
    assert head == (
        b"From: a@b\r\n"
        b"List-Unsubscribe: <https://u.example/" + TOKEN.encode() + b">,\r\n"
        b" <mailto:off+" + TOKEN.encode() + b"@b.example?subject=off%201NG4WK70001>\r\n"
        b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\n"
    )
    assert len(changes) == 2


@pytest.mark.parametrize(
    ("given_", "post"),
    [
        (Unsubscribe("https://u.example/{id}"), True),
        (Unsubscribe("HTTPS://u.example/{id}"), True),
        (Unsubscribe("https://u.example/", one_click=False), False),
        (Unsubscribe("http://u.example/", one_click=False), False),
        (Unsubscribe(mailto="off@b.example"), False),
        (Unsubscribe(mailto="mailto:off@b.example"), False),
    ],
)
def test_one_click_is_promised_with_https_alone(given_: Unsubscribe, post: bool) -> None:
    rule = Rewrite(unsubscribe=given_)
    assert problems(rule) == []
    # A Post without its List-Unsubscribe means nothing, and beside ours would promise too much.
    head, _ = apply(rule, b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n\r\n", ABOUT)
    names = [f.name for f in headers.split(head)]
    assert names == [b"List-Unsubscribe", b"List-Unsubscribe-Post"][: 1 + post]
    assert headers.split(head)[0].value.count(b"mailto:") == (1 if given_.mailto else 0)


def test_the_application_keeps_its_own() -> None:
    own = b"list-unsubscribe: <mailto:x@y>\r\nFrom: a@b\r\n\r\n"
    assert apply(Rewrite(unsubscribe=BOTH), own, ABOUT) == (own, [])
    replaced, _ = apply(Rewrite(remove=("List-Unsubscribe*",), unsubscribe=BOTH), own, ABOUT)
    assert b"x@y" not in replaced and b"u.example" in replaced


def test_a_way_that_no_line_holds_is_left_out() -> None:
    about = About("1", "a@b", "ü" * 200 + "@x.example", "", token=TOKEN)
    rule = Rewrite(unsubscribe=Unsubscribe("https://u.example/{recipient}", "off+{token}@b.example"))
    head, _ = apply(rule, b"From: a@b\r\n\r\n", about)
    assert b"List-Unsubscribe: <mailto:off+" in head and b"Post" not in head
    rule = Rewrite(unsubscribe=Unsubscribe("https://u.example/{recipient}"))
    assert apply(rule, b"From: a@b\r\n\r\n", about) == (
        b"From: a@b\r\n\r\n",
        ["List-Unsubscribe: left out, it is longer than a line"],
    )


def test_a_url_is_never_an_encoded_word() -> None:
    rule = Rewrite(unsubscribe=Unsubscribe("https://u.example/{id}?a=?b?=", one_click=False))
    assert b"<https://u.example/1NG4WK70001?a=?b?=>" in apply(rule, b"\r\n", ABOUT)[0]


# -- the envelope


@pytest.mark.parametrize(
    ("rule", "sender", "expected"),
    [
        ("", "joe@shop.example", "joe@shop.example"),
        ("bounces@corp.example", "joe@shop.example", "bounces@corp.example"),
        ("*@corp.example", "Joe+x@shop.example", "Joe+x@corp.example"),
        ("*@corp.example", '"j d"@shop.example', '"j d"@corp.example'),
        ("verp", "joe@shop.example", f"bounce+{TOKEN}@b.example"),
        ("verp", "", ""),
        ("*@corp.example", "", ""),
        ("bounces@corp.example", "", ""),
        ("", "", ""),
    ],
)
def test_reverse_path(rule: str, sender: str, expected: str) -> None:
    about = About("1", sender, "ann@far.example", "", token=TOKEN)
    assert reverse_path(Rewrite(reverse_path=rule), about, "b.example") == expected


def test_who_needs_a_transaction_of_his_own() -> None:
    shared = [
        Rewrite(),
        Rewrite("*@x.example", "a@b.example", "{from}", "{sender}", ("X-*",), (("X-A", "{id} {tag}"),)),
        Rewrite(unsubscribe=Unsubscribe("https://u.example/{id}")),
    ]
    own = [
        Rewrite("verp"),
        Rewrite(reply_to="{token}@x.example"),
        Rewrite(add=(("X-A", "a"), ("X-B", "{recipient}"))),
        Rewrite(add=(("X-A", "{recipient_domain}"),)),
        Rewrite(unsubscribe=Unsubscribe(mailto="off+{token}@x.example")),
    ]
    assert not any(r.per_recipient or r.needs_token for r in shared)
    assert all(r.per_recipient for r in own)
    assert [r.needs_token for r in own] == [True, True, False, False, True]


# -- what the checker says


def test_good_rules_have_no_problems() -> None:
    for rule in (
        Rewrite(),
        Rewrite(
            "verp",
            "*@corp.example",
            "{from}",
            "a@b.example",
            ("X-*", "Received", "DKIM-Signature"),
            (("Precedence", "bulk"),),
            BOTH,
        ),
        Rewrite("bounces@corp.example", "a@b.example", "re+{tag}@b.example", "*@corp.example"),
        Rewrite(reply_to="{sender}", sender="{from}"),
        Rewrite(add=(("Feedback-ID", "{class}:{user}:relay"), ("X-Ü".replace("Ü", "U"), "grün {tag}"))),
    ):
        assert problems(rule) == []


@pytest.mark.parametrize(
    ("rule", "key", "text"),
    [
        (Rewrite("verb"), ("reverse_path",), "expected verp, an address or *@domain, found 'verb'"),
        (Rewrite("{from}"), ("reverse_path",), "it takes no placeholder"),
        (Rewrite(from_="{user}@x.example"), ("from",), "it takes no placeholder"),
        (Rewrite(from_="Joe <joe@x.example>"), ("from",), "expected an address or *@domain"),
        (Rewrite(from_="*@"), ("from",), "no valid domain"),
        (Rewrite(from_="*x@b.example"), ("from",), "`*` stands alone"),
        (Rewrite(from_="*@*.example"), ("from",), "no valid domain"),
        (Rewrite(from_="a@bücher.example"), ("from",), "xn--"),
        (Rewrite(from_="a@b\r\nBcc: x"), ("from",), "control character"),
        (Rewrite(reply_to="{form}"), ("reply_to",), "unknown placeholder {form}; there are {id}, {sender}"),
        (Rewrite(reply_to="{tag}"), ("reply_to",), "no @domain"),
        (Rewrite(reply_to="nobody"), ("reply_to",), "no @domain"),
        (Rewrite(sender="*@{tag}"), ("sender",), "it takes no placeholder"),
        (Rewrite(remove=("X-A", "from")), ("remove", 1), "would remove From"),
        (Rewrite(remove=("*",)), ("remove", 0), "would remove From, Date, Message-ID, MIME-Version, Content-Type"),
        (Rewrite(remove=("M*",)), ("remove", 0), "would remove Message-ID, MIME-Version"),
        (Rewrite(remove=("X A",)), ("remove", 0), "no name of a header field"),
        (Rewrite(remove=("",)), ("remove", 0), "no name of a header field"),
        (Rewrite(add=(("From", "a@b"),)), ("add", "From"), "key of its own"),
        (Rewrite(add=(("BCC", "a@b"),)), ("add", "BCC"), "nobody shall see"),
        (Rewrite(add=(("Subject", "a"),)), ("add", "Subject"), "stands once"),
        (Rewrite(add=(("List-Unsubscribe", "<x>"),)), ("add", "List-Unsubscribe"), "`list_unsubscribe`"),
        (Rewrite(add=(("Content-Language", "de"),)), ("add", "Content-Language"), "how the body is read"),
        (Rewrite(add=(("X-Relay-Tag", "de"),)), ("add", "X-Relay-Tag"), "for us"),
        (Rewrite(add=(("DKIM-Signature", "de"),)), ("add", "DKIM-Signature"), "made by signing"),
        (Rewrite(add=(("X A", "de"),)), ("add", "X A"), "no name"),
        (Rewrite(add=(("X-A", "a\nb"),)), ("add", "X-A"), "control character"),
        (Rewrite(add=(("X-A", " "),)), ("add", "X-A"), "blank"),
        (Rewrite(add=(("X-A", "{tags}"),)), ("add", "X-A"), "unknown placeholder {tags}"),
        (Rewrite(add=(("X-A", "x" * 1000),)), ("add", "X-A"), "longer than a line"),
        (Rewrite(unsubscribe=Unsubscribe()), ("list_unsubscribe",), "is empty"),
        (Rewrite(unsubscribe=Unsubscribe("http://u.example/{id}")), ("list_unsubscribe", "url"), "https (RFC 8058"),
        (Rewrite(unsubscribe=Unsubscribe("https://u.example/")), ("list_unsubscribe", "url"), "who unsubscribes"),
        (Rewrite(unsubscribe=Unsubscribe("https://{tag}.example/{id}")), ("list_unsubscribe", "url"), "the host"),
        (Rewrite(unsubscribe=Unsubscribe("https:///{id}")), ("list_unsubscribe", "url"), "expected a URL"),
        (Rewrite(unsubscribe=Unsubscribe("https://[x/{id}")), ("list_unsubscribe", "url"), "no URL"),
        (Rewrite(unsubscribe=Unsubscribe("ftp://u.example/{id}")), ("list_unsubscribe", "url"), "expected a URL"),
        (Rewrite(unsubscribe=Unsubscribe("https://u.example/a b{id}")), ("list_unsubscribe", "url"), "percent-encode"),
        (Rewrite(unsubscribe=Unsubscribe("https://u.example/>{id}")), ("list_unsubscribe", "url"), "percent-encode"),
        (Rewrite(unsubscribe=Unsubscribe("https://u.example/{id}{idd}")), ("list_unsubscribe", "url"), "unknown placeholder"),
        (Rewrite(unsubscribe=Unsubscribe(mailto="off")), ("list_unsubscribe", "mailto"), "no @domain"),
        (Rewrite(unsubscribe=Unsubscribe(mailto="off@{recipient_domain}")), ("list_unsubscribe", "mailto"), "the domain"),
        (Rewrite(unsubscribe=Unsubscribe(mailto="off@b.example?subject=a b")), ("list_unsubscribe", "mailto"), "percent-encode"),
        (Rewrite(unsubscribe=Unsubscribe(mailto="<off@b.example>")), ("list_unsubscribe", "mailto"), "percent-encode"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_its_place(rule: Rewrite, key: tuple[str | int, ...], text: str) -> None:
    found = problems(rule)
    assert len(found) == 1, found
    assert found[0][0] == key
    assert text in found[0][1]


# -- real mail


def test_real_mail_is_rewritten_and_else_unchanged(corpora: Path) -> None:
    rule = Rewrite(
        "verp", "*@corp.example", "{from}", "relay@corp.example", ("X-Mailer",), (("X-A", "{recipient}"),), BOTH
    )
    seen = 0
    for path in sorted(p for f in ("mime", "bounces", "arf") for p in (corpora / f).rglob("*") if p.is_file()):
        content = re.sub(rb"\r\n|\r|\n", b"\r\n", path.read_bytes())
        head, end, _ = content.partition(b"\r\n\r\n")
        if not end or not head or head.startswith(b"\r\n"):
            continue
        seen += 1
        fields = headers.split(head + end)
        new, _ = apply(rule, head + end, ABOUT)
        ours = (b"from", b"reply-to", b"sender", b"x-mailer", b"x-a", b"list-unsubscribe", b"list-unsubscribe-post")
        assert [f for f in headers.split(new) if f.key not in ours] == [f for f in fields if f.key not in ours], path
        author = headers.first(headers.split(new), b"from")
        assert author is not None
        assert all(
            m.address.endswith("@corp.example") or b"@" not in author.value[m.at : m.to] for m in read(author.value)
        ), path
    assert seen > 400
