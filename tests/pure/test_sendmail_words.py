"""sendmail(8)'s command line, its input as a message, and whom a header names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import submission
from relay.addressees import Unreadable, destinations, mailboxes, read
from relay.sendmail import content
from relay.sendmail.content import Message, normalised, stuffed
from relay.sendmail.mailq import listing
from relay.sendmail.main import author, mail_domain, verdict, whole
from relay.sendmail.options import Failed, Options, parse
from relay.sendmail.submit import exit_code, server

# -- options


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-t -i", Options(from_header=True, dot_ends=False)),
        ("-ti", Options(from_header=True, dot_ends=False)),
        ("-oi -t", Options(from_header=True, dot_ends=False)),
        ("-o i x@y", Options(dot_ends=False, recipients=["x@y"])),
        ("-i -FCronDaemon -B8BITMIME -oem root", Options(dot_ends=False, name="CronDaemon", recipients=["root"])),
        ("-f a@b x@y", Options(sender="a@b", recipients=["x@y"])),
        ("-fa@b x@y", Options(sender="a@b", recipients=["x@y"])),
        ("-r a@b x@y", Options(sender="a@b", recipients=["x@y"])),
        ("-tfa@b", Options(from_header=True, sender="a@b")),
        ("-f<> x@y", Options(sender="<>", recipients=["x@y"])),
        ("-N success,delay -R hdrs -V id=1 x@y", Options(notify="SUCCESS,DELAY", ret="HDRS", envid="id=1", recipients=["x@y"])),
        ("-Nnever x@y", Options(notify="NEVER", recipients=["x@y"])),
        ("-bm -odb -oem -O QueueDirectory=/x -C /etc/x -Lmail -h 5 -v x@y", Options(verbose=True, recipients=["x@y"])),
        ("-O IgnoreDots=true x@y", Options(dot_ends=False, recipients=["x@y"])),
        ("-- -x@y", Options(recipients=["-x@y"])),
        ("x@y -- z", Options(recipients=["x@y", "--", "z"])),
        ("-bs", Options(mode="smtp")),
        ("-bp", Options(mode="queue")),
        ("-bi", Options(mode="aliases")),
        ("-I", Options(mode="aliases")),
        ("-q", Options(mode="flush")),
        ("-q30m", Options(mode="flush")),
        ("-q x@y", Options(recipients=["x@y"])),
    ],
)  # fmt: skip
def test_options(line: str, expected: Options) -> None:
    if line.startswith("x@y --"):
        with pytest.raises(Failed, match="options come before"):
            parse(line.split())
    else:
        assert parse(line.split()) == expected


def test_an_empty_sender_is_said_apart() -> None:
    assert parse(["-f", "", "x@y"]) == Options(sender="", recipients=["x@y"])


@pytest.mark.parametrize(("name", "mode"), [("mailq", "queue"), ("newaliases", "aliases"), ("sendmail", "send")])
def test_by_its_name(name: str, mode: str) -> None:
    assert parse([], name).mode == mode


@pytest.mark.parametrize(
    "line",
    [
        "-y",
        "-bd",
        "-bt",
        "-bv",
        "-bx",
        "-N often",
        "-N never,delay",
        "-R all",
        "-f",
        "-s hello",
        "--help",
        "x@y -Xlog",
        "-V \x01",
    ],
)
def test_refused_options(line: str) -> None:
    with pytest.raises(Failed) as caught:
        parse(line.split(" "))
    assert caught.value.code == 64


@given(st.lists(st.text(alphabet="-tifFNRVbqosvOB@=x, ", max_size=8), max_size=6))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    with contextlib.suppress(Failed):
        assert "--" in words or not any(word.startswith("-") for word in parse(words).recipients)


# -- line ends, dots


def message(text: bytes, dot_ends: bool = False) -> Message:
    return Message(normalised([text], dot_ends))


@pytest.mark.parametrize(
    ("raw", "dot_ends", "expected"),
    [
        (b"", True, b""),
        (b".", True, b""),
        (b".\n", True, b""),
        (b".\r\nmore", True, b""),
        (b"a", True, b"a\r\n"),
        (b"a\nb\r\nc\rd", True, b"a\r\nb\r\nc\r\nd\r\n"),
        (b"a\n.\nb\n", True, b"a\r\n"),
        (b"a\n.\nb\n", False, b"a\r\n.\r\nb\r\n"),
        (b"a\n..\nb", True, b"a\r\n..\r\nb\r\n"),
        (b"a\n.b\n", True, b"a\r\n.b\r\n"),
        (b"a\r", True, b"a\r\n"),
        (b"a\r\r\n", True, b"a\r\n\r\n"),
        (b"a\0\xff\n", True, b"a\0\xff\r\n"),
        (b"a\r.\r", True, b"a\r\n"),
        (b"a\n.", True, b"a\r\n"),
    ],
)
def test_normalised(raw: bytes, dot_ends: bool, expected: bytes) -> None:
    assert b"".join(normalised([raw], dot_ends)) == expected
    assert b"".join(normalised([raw[i : i + 1] for i in range(len(raw))], dot_ends)) == expected


PIECES = st.lists(st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\r\n", b"\n."])).map(b"".join))


@given(PIECES, st.booleans())
def test_however_it_is_cut(pieces: Sequence[bytes], dot_ends: bool) -> None:
    whole_ = b"".join(normalised([b"".join(pieces)], dot_ends))
    cut = list(normalised(pieces, dot_ends))
    assert b"".join(cut) == whole_
    lines = re.split(rb"\r\n|\r|\n", b"".join(pieces))
    lines = lines if lines[-1] else lines[:-1]
    lines = lines[: lines.index(b".")] if dot_ends and b"." in lines else lines
    assert whole_ == b"".join(line + b"\r\n" for line in lines)
    wire = b"".join(stuffed(cut))
    assert wire == re.sub(rb"(?m)^\.", b"..", whole_)


def test_what_is_large_goes_into_a_file() -> None:
    text = b"Subject: large\n\n" + b"x" * 70 + b"\n"
    made = Message(normalised([text, *[b"y" * 70 + b"\n"] * 60_000], True))
    assert made._file is not None
    body = b"".join(made.body())
    assert body == b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 60_000
    assert made.text_size == len(body)
    made.close()


# -- the header


@pytest.mark.parametrize(
    ("raw", "head", "text"),
    [
        (b"From: a@b\nSubject: x\n\nhi\n", b"From: a@b\r\nSubject: x\r\n\r\n", b"hi\r\n"),
        (b"hi\n", b"From: Z <z@h>\r\n\r\n", b"hi\r\n"),
        (b"\nhi\n", b"From: Z <z@h>\r\n\r\n", b"hi\r\n"),
        (b"", b"From: Z <z@h>\r\n\r\n", b""),
        (b"Subject: x", b"From: Z <z@h>\r\nSubject: x\r\n\r\n", b""),
        (b"From:\nSubject: x\n\n", b"From: Z <z@h>\r\nSubject: x\r\n\r\n", b""),
        (b"From a@b Mon\nFrom: a@b\n\nx", b"From: a@b\r\n\r\n", b"x\r\n"),
        (b"From: a@b\nBCC : x@y,\n\tz@y\nTo: c@d\n\n", b"From: a@b\r\nTo: c@d\r\n\r\n", b""),
        (b"From: a@b\nbcc:\nResent-Bcc: q\nTo: c@d\n\n", b"From: a@b\r\nTo: c@d\r\n\r\n", b""),
        (b"From: a@b\r\rBcc: x", b"From: a@b\r\n\r\n", b"Bcc: x\r\n"),
        (b"From: root (Cron Daemon)\nTo: root, x@y\n\n", b"From: root@h (Cron Daemon)\r\nTo: root@h, x@y\r\n\r\n", b""),
        (b"From: \xff <root>\n\n", b"From: \xff <root@h>\r\n\r\n", b""),
        (b"From: a@b\nSubject: x\ntext without an empty line\n", b"From: a@b\r\nSubject: x\r\n\r\n", b"text without an empty line\r\n"),
        (b"From: a@b\nX-Long: " + b"x" * 3000 + b"\n\n", b"From: a@b\r\nX-Long: " + b"x" * 3000 + b"\r\n\r\n", b""),
    ],
)  # fmt: skip
def test_head(raw: bytes, head: bytes, text: bytes) -> None:
    made = message(raw)
    assert (made.head("Z <z@h>", "h"), b"".join(made.body())) == (head, text)


def test_what_would_be_shown_is_refused() -> None:
    with pytest.raises(Failed, match="Bcc in line 3") as caught:
        message(b"To: a@b\nno field\nBcc: secret@b\n\nhi\n")
    assert caught.value.code == 65


@pytest.mark.parametrize("raw", [b"X: " + b"x" * 300_000 + b"\n\nhi\n", b"To: a@b\n" * 60_000], ids=["one", "many"])
def test_an_endless_header_is_refused(raw: bytes) -> None:
    with pytest.raises(Failed, match="256 KiB"):
        message(raw)


def test_a_long_line_of_text_is_none() -> None:
    assert message(b"x" * 600_000).text_size == 600_002


def test_the_limit_is_the_relays() -> None:
    assert content.HEAD == submission.MAX_HEAD


@given(
    st.lists(st.sampled_from([b"To: a@b\r\n", b"\r\n", b" x\r\n", b"text\r\n", b"From x\r\n", b"A :b\r\n", b":\r\n"]))
)
def test_the_text_begins_where_the_relay_has_it(lines: list[bytes]) -> None:
    raw = b"".join(lines)
    assert read(raw)[1] == submission.split(raw)


# -- whom it names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@x", ["a@x"]),
        ('A <a@x>, "B, C <q@q>" <b@y>, c@z (a comment, (in it))', ["a@x", "b@y", "c@z"]),
        ("a@x,, b@y,", ["a@x", "b@y"]),
        ("Team: A <a@x>, b@y;, d@e", ["a@x", "b@y", "d@e"]),
        ("undisclosed-recipients:;", []),
        ("a@x; b@y", ["a@x", "b@y"]),
        ("a@x,\r\n b@y", ["a@x", "b@y"]),
        ('"q r"@x.y, u@[IPv6:2001:db8::1]', ['"q r"@x.y', "u@[IPv6:2001:db8::1]"]),
        ("<@r,@s:a@b.c>", ["a@b.c"]),
        ("zoé@exämple.de", ["zoé@exämple.de"]),
        ("root (Cron Daemon)", ["root"]),
    ],
)
def test_mailboxes(text: str, expected: list[str]) -> None:
    assert [mailbox.address for mailbox in mailboxes(text)] == expected


@pytest.mark.parametrize(
    "text",
    ["a@x b@y", "a@x)b@y", "(a@x", "<a@x", "A <>", "<a@x><b@y>", "<a@x> b@y", '"a@x', "a (c) b@y", "<a@x\r\nb@y>"],
)
def test_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        mailboxes(text)


@given(st.text(alphabet='ab@.,;:<>()"\\[] \r\n\0é', max_size=60))
def test_what_is_read_is_one_word_each(text: str) -> None:
    try:
        found = mailboxes(text)
    except Unreadable:
        return
    for mailbox in found:
        assert mailbox.address.isprintable() and text[: mailbox.end].rstrip().endswith(mailbox.address[-1])


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"To: a@x\r\nCC: b@y\r\nBcc: c@z,\r\n a@x\r\n", ["a@x", "b@y", "c@z"]),
        (b"Resent-To: r@x\r\nTo: a@x\r\nBcc: b@y\r\n", ["r@x"]),
        (b"Received: by x\r\nResent-From: q@x\r\nResent-Bcc: r@x\r\nResent-From: o@x\r\nResent-To: old@x\r\nTo: a@x\r\n", ["r@x"]),
        (b"Resent-To: r@x\r\nX: y\r\nResent-Cc: old@x\r\n", ["r@x"]),
        (b"Subject: To: a@x\r\n", []),
    ],
)  # fmt: skip
def test_destinations(head: bytes, expected: list[str]) -> None:
    assert destinations(read(head + b"\r\n")[0]) == expected


@pytest.mark.parametrize("head", [b"Bcc: a@x b@y\r\n", b"To: \xff@x\r\n"])
def test_destinations_that_nobody_can_read(head: bytes) -> None:
    with pytest.raises(Unreadable, match=head[:2].decode()):
        destinations(read(head + b"\r\n")[0])


# -- who, where, and how it ended


def test_the_name_of_the_machine(tmp_path) -> None:  # type: ignore[no-untyped-def]
    file = tmp_path / "mailname"
    file.write_text("mail.example.org\n")
    assert mail_domain(str(file)) == "mail.example.org"
    file.write_text("<evil>\n")
    assert "." in mail_domain(str(file)) and mail_domain(str(file)) == mail_domain(str(tmp_path / "none"))


def test_a_name_is_only_a_name() -> None:
    assert author("X\r\nBcc: y@z", "a@b") == '"X Bcc: y@z" <a@b>'
    assert author("Zoë", "a@b") == "=?utf-8?q?Zo=C3=AB?= <a@b>"
    assert author("", "a@b") == "a@b"
    assert author("Z \udcff", "ä@b") == "<ä@b>"


def test_an_address_is_only_an_address() -> None:
    assert whole("root", "h") == "root@h"
    for odd in ("a@b> SIZE=1", "a@b\r\nRCPT TO:<c@d"):
        with pytest.raises(Failed):
            whole(odd, "h")


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [(451, "4.3.0 x", 75), (550, "5.7.1 no", 77), (530, "log in", 77), (552, "5.3.4 large", 65), (554, "no", 65), (500, "what", 69)],
)  # fmt: skip
def test_exit_codes(code: int, text: str, expected: int) -> None:
    assert exit_code(code, text, 69) == expected


def test_verdict() -> None:
    assert verdict([], True) == 0
    assert verdict([(67, "x")], True) == 0
    assert verdict([(67, "x")], False) == 67
    assert verdict([(67, "x"), (75, "y")], True) == 75


@pytest.mark.parametrize(
    ("given_", "expected"),
    [("", ("127.0.0.1", 2525)), ("[::1]:2526", ("::1", 2526)), ("mail.lab", ("mail.lab", 2525)), ("h:25", ("h", 25))],
)
def test_server(given_: str, expected: tuple[str, int]) -> None:
    assert server({"RELAY_SMTP": given_}) == expected


@pytest.mark.parametrize("given_", ["::1:25", "a b", "x:99999", "http://x"])
def test_no_server(given_: str) -> None:
    with pytest.raises(Failed, match="RELAY_SMTP"):
        server({"RELAY_SMTP": given_})


def test_mailq() -> None:
    assert listing([]) == ["Mail queue is empty"]
    row = {
        "queue_id": "A",
        "size": 1500,
        "accepted_at": 0.0,
        "sender": "",
        "state": "held",
        "recipient": "x@y\x1b",
        "why": "",
        "last_reply": "no",
    }
    lines = listing([row, row | {"recipient": "z@y", "last_reply": ""}])
    assert lines[1].startswith("A!     1500") and lines[1].endswith("MAILER-DAEMON")
    assert lines[2:] == ["(no)", " " * 43 + "x@y?", " " * 43 + "z@y", "", "-- 2 Kbytes in 1 Request."]
