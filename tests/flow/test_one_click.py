"""One click, by RFC 8058 and by people: a link that is followed changes nothing, a POST unsubscribes, once and for good."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.feedback.oneclick import meant
from relay.outgoing import verp
from relay.policy.suppression import Why
from relay.spool import SpoolError
from relay.spool.feed import Learnt
from tests.publicside import SUPPRESSION, Bench, configured, public
from tests.rig import running

FORM = {"Content_Type": "application/x-www-form-urlencoded"}
CLICK = b"List-Unsubscribe=One-Click"
MULTIPART = b'--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--b--\r\n'


async def mailed(bench: Bench, *recipients: str) -> str:
    head = b"From: News <news@shop.example>\r\nSubject: news\r\n\r\nhello\r\n"
    return await bench.rig.send(*(recipients or ("you@example.net",)), sender="app@shop.example", message=head)


async def test_a_link_changes_nothing_and_its_button_does(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        token = bench.token(await mailed(bench))
        for _ in range(3):
            page = await bench.ask("GET", f"/unsubscribe/{token}")
            assert page.status == 200 and b'<form method="post">' in page.body and b"shop.example" in page.body
            assert (await bench.ask("HEAD", f"/unsubscribe/{token}")).status == 200
        assert await bench.suppressed("you@example.net") == [] and await bench.events("unsubscribed") == []
        name, value = re.findall(rb'<input type="hidden" name="([^"]+)" value="([^"]+)">', page.body)[0]
        answer = await bench.ask("POST", f"/unsubscribe/{token}", name + b"=" + value, **FORM)
        assert answer.status == 200 and b"You are unsubscribed" in answer.body
        (entry,) = await bench.suppressed("you@example.net")
        assert (entry.why, entry.scope, entry.source, entry.until) == (
            Why.UNSUBSCRIBE,
            "class:default",
            "unsubscribe",
            0.0,
        )
        (event,) = await bench.events("unsubscribed")
        assert (event.recipient, event.n) == ("you@example.net", 0)


async def test_one_click_of_a_mail_program(tmp_path: Path) -> None:
    """RFC 8058 §3.2: either way to write a form, no cookie, no redirect; said twice it is done once."""
    async with public(tmp_path) as bench:
        first, second = [bench.token(await mailed(bench, f"{who}@example.net")) for who in ("a", "b")]
        for _ in range(2):
            assert (await bench.ask("POST", f"/unsubscribe/{first}", CLICK, **FORM)).status == 200
            answer = await bench.ask(
                "POST", f"/unsubscribe/{second.upper()}", MULTIPART, Content_Type="multipart/form-data; boundary=b"
            )
            assert answer.status == 200 and "Set-Cookie" not in answer.headers
        many = (bench.ask("POST", f"/unsubscribe/{first}", CLICK, **FORM) for _ in range(10))
        assert {answer.status for answer in await asyncio.gather(*many)} == {200}
        assert len(await bench.events("unsubscribed")) == 2
        assert len(await bench.suppressed("a@example.net")) == len(await bench.suppressed("b@example.net")) == 1


async def test_of_many_recipients_the_one_that_clicked(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        number = await mailed(bench, "a@example.net", "b@example.net")
        assert (await bench.ask("POST", f"/unsubscribe/{bench.token(number, 1)}", CLICK, **FORM)).status == 200
        assert await bench.suppressed("a@example.net") == [] and len(await bench.suppressed("b@example.net")) == 1


async def test_who_subscribed_again_can_leave_again_by_the_same_link(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        token = bench.token(await mailed(bench))
        assert (await bench.ask("POST", f"/unsubscribe/{token}", CLICK, **FORM)).status == 200
        await bench.spool.learn(Learnt(removed=[("class:default", "you@example.net")]))
        assert await bench.suppressed("you@example.net") == []
        assert (await bench.ask("POST", f"/unsubscribe/{token}", CLICK, **FORM)).status == 200
        assert len(await bench.suppressed("you@example.net")) == 1


async def test_forged_and_forgotten(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        token = bench.token(await mailed(bench))
        forged = [verp.make(b"another key, as long", 5, 0), "a" * 40, token[:-1] + ("a" if token[-1] != "a" else "b"), token[:39],
                  token + "a", "%00" * 40, "x", "%C3%A9" * 40, "1" * 40]  # fmt: skip
        for method in ("GET", "POST"):
            pages = [
                await bench.ask(method, f"/unsubscribe/{one}", CLICK if method == "POST" else None, **FORM)
                for one in forged
            ]
            assert {page.status for page in pages} == {404} and len({page.body for page in pages}) == 1
        never = bench.token(await mailed(bench), 7)
        for method in ("GET", "POST"):
            gone = await bench.ask(method, f"/unsubscribe/{never}", CLICK if method == "POST" else None, **FORM)
            assert gone.status == 410 and b"too old" in gone.body
        assert await bench.events("unsubscribed") == []


async def test_a_post_that_does_not_mean_it(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        token = bench.token(await mailed(bench))
        for body in (b"", b"List-Unsubscribe=No", b"x=y", b"{}", b"\xff", CLICK + b"x"):
            answer = await bench.ask("POST", f"/unsubscribe/{token}", body, **FORM)
            assert answer.status == 400 and b"<form" in answer.body, body
        assert (await bench.ask("POST", f"/unsubscribe/{token}", b"x" * 10_000, **FORM)).status == 413
        assert await bench.suppressed("you@example.net") == []


async def test_the_page_is_whole_in_itself(tmp_path: Path) -> None:
    async with public(tmp_path) as bench:
        head = b'From: "<script>alert(1)</script>" <x@"><img.example>\r\nSubject: t\r\n\r\nhello\r\n'
        number = await bench.rig.send("you@example.net", sender="app@shop.example", message=head)
        for path in (bench.token(number), "a" * 40):
            page = await bench.ask("GET", f"/unsubscribe/{path}")
            text = page.body.decode()
            policy = page.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert page.headers["Cache-Control"] == "no-store" and page.headers["Referrer-Policy"] == "no-referrer"
            assert not re.search(r"<(script|img|link|iframe)|https?:|url\(|\son\w+=|you@example.net", text)
            assert page.headers["Content-Type"] == "text/html; charset=utf-8"


async def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async with public(tmp_path, more="  one_click: false\n") as bench:
        token = bench.token(await mailed(bench))
        for method in ("GET", "POST"):
            answer = await bench.ask(method, f"/unsubscribe/{token}", CLICK if method == "POST" else None, **FORM)
            assert (answer.status, answer.body) == (404, b"")


async def test_whose_mail_it_stops(tmp_path: Path) -> None:
    file = configured(tmp_path, extra=SUPPRESSION.replace("}", ", unsubscribe_scope: all}"))
    async with running(file) as rig:
        bench = Bench(rig)
        assert (
            await bench.ask("POST", f"/unsubscribe/{bench.token(await mailed(bench))}", CLICK, **FORM)
        ).status == 200
        assert [one.scope for one in await bench.suppressed("you@example.net")] == [""]


async def test_what_could_not_be_kept_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with public(tmp_path) as bench:
        token = bench.token(await mailed(bench))

        async def full(learnt: object) -> None:
            raise SpoolError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(bench.spool, "learn", full)
            answer = await bench.ask("POST", f"/unsubscribe/{token}", CLICK, **FORM)
            assert answer.status == 503 and b"nothing was changed" in answer.body
        assert (await bench.ask("POST", f"/unsubscribe/{token}", CLICK, **FORM)).status == 200
        assert len(await bench.suppressed("you@example.net")) == 1


@given(st.text(max_size=80), st.binary(max_size=300))
def test_forms_of_any_kind(content_type: str, body: bytes) -> None:
    assert meant(content_type, body) in (True, False)
    meant("multipart/form-data; boundary=b", b"--b\r\n" + body)


def test_forms() -> None:
    form = "application/x-www-form-urlencoded"
    assert meant(form, CLICK) and meant(form, b"a=b&List-Unsubscribe=One-Click\r\n") and meant("", CLICK)
    assert meant("multipart/form-data; boundary=b", MULTIPART)
    assert meant('multipart/form-data; boundary="b"', b"preamble\r\n" + MULTIPART)
    assert not meant("multipart/form-data", MULTIPART)
    assert not meant("multipart/form-data; boundary=b", MULTIPART.replace(b"One-Click", b"No"))
    assert not meant("multipart/form-data; boundary=b", b"--b\r\n\r\n" * 1000)
    assert not meant(form, b"a=b&" * 20 + CLICK)


@pytest.mark.parametrize("boundary", ["boundary*=x''y; boundary*0=a", "boundary*=a\0''%ff"])
def test_a_boundary_that_the_parser_stumbles_over_is_none(boundary: str) -> None:
    assert not meant(f"multipart/form-data; {boundary}", MULTIPART)
