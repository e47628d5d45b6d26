"""Who is told, by which way out: the rules of RFC 3461 and of `dsn`, with time as an argument."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import front
import pytest
from conftest import NOW

from relay.envelope import queue_id
from relay.maillog import MailLog
from relay.notices import Reports
from relay.policy.classes import Priority, TrafficClass
from relay.policy.lanefacts import LaneFacts
from relay.policy.routing import Action, Match, Question, Route
from relay.recipient import News, State
from relay.settings import Config, Dsn
from relay.spool import End, NewMessage, Notify, Original, Report, Tell

F, D, S, NEVER = Notify.FAILURE, Notify.DELAY, Notify.SUCCESS, Notify.NEVER
HEAD = b"Subject: hello\r\nMessage-ID: <1@x>\r\n\r\n"


def original(sender: str = "app@example.com", **more: Any) -> Original:
    known: dict[str, Any] = {"accepted_at": NOW - 5 * 3600, "send_at": 0.0, "size": 100, "smtp": 0, "head": HEAD}
    return Original(7, sender, **(known | {"envid": "", "ret": "", "report": 0} | more))


def end(news: News = News.FAILED, notify: int = 0, address: str = "gone@example.net", **more: Any) -> End:
    known: dict[str, Any] = {
        "orcpt": "",
        "egress": "up",
        "why": "rejected",
        "last_reply": "550 5.1.1 no",
        "in_doubt": False,
    }
    return End(Tell(7, 0, news, NOW, True), address, notify, expires_at=NOW + 9, **(known | more))


class Desk:
    """Reports under one configuration, and what is logged."""

    def __init__(self, folder: Path, dsn: Dsn | None = None, **more: Any) -> None:
        made = front.config(folder, **more)
        self.config: Config = replace(made, dsn=dsn or Dsn())
        self.log, self.lines = MailLog(None), list[tuple[str, dict[str, Any]]]()
        self.log.listeners.append(lambda kind, fields: self.lines.append((kind, fields)))
        self.reports = Reports(lambda: self.config, itertools.count(100).__next__, lambda: "T" * 32, self.log)

    def make(self, original_: Original | None = None, *ends: End) -> Report:
        return self.reports.make(original_ or original(), ends or (end(),), NOW)


def message(report: Report) -> NewMessage:
    assert report.message is not None, report
    return report.message


def test_a_failure_goes_to_the_sender(tmp_path: Path) -> None:
    made = message(Desk(tmp_path).make())
    (to,) = made.recipients
    assert (made.id, made.sender, made.report, made.listener, made.user) == (100, "", 1, "", "")
    assert (to.address, to.state, to.due_at, to.notify) == ("app@example.com", State.QUEUED, NOW, 0)
    assert to.expires_at == NOW + 5 * 86400
    assert made.header_from == "MAILER-DAEMON@relay.test"
    assert isinstance(made.body, bytes) and made.body_size == len(made.body)


@pytest.mark.parametrize("news", list(News))
@pytest.mark.parametrize("notify", [0, NEVER, S, F, D, S | F, S | D, F | D, S | F | D])
def test_notify_decides(tmp_path: Path, news: News, notify: int) -> None:
    told = {
        News.FAILED: notify == 0 or bool(notify & F),
        News.DELAYED: notify == 0 or bool(notify & D),
        News.RELAYED: bool(notify & S),
    }[news]
    found = Desk(tmp_path).make(original(), end(news, notify))
    assert (found.result, found.message is not None) == ("made" if told else "unwanted", told)


def test_a_delay_is_told_once(tmp_path: Path) -> None:
    assert Desk(tmp_path).make(original(), end(News.DELAYED, Notify.TOLD)).result == "unwanted"
    assert Desk(tmp_path).make(original(), end(News.FAILED, Notify.TOLD)).result == "made"


def test_only_those_who_want_it_are_named(tmp_path: Path) -> None:
    made = message(
        Desk(tmp_path).make(original(), end(address="a@x.example"), end(notify=NEVER, address="b@x.example"))
    )
    assert isinstance(made.body, bytes)
    assert b"a@x.example" in made.body and b"b@x.example" not in made.body


@pytest.mark.parametrize(
    ("more", "dsn", "result"),
    [
        ({"accepted_at": NOW - 3 * 3600}, Dsn(), "early"),
        ({"accepted_at": NOW - 5 * 3600}, Dsn(), "made"),
        ({"send_at": NOW - 3600}, Dsn(), "early"),  # it began to wait only then
        ({"accepted_at": NOW - 9 * 86400}, Dsn(delay_after=None), "early"),
        ({"sender": ""}, Dsn(postmaster="pm@example.com"), "unwanted"),
    ],
)
def test_when_a_delay_is_told(tmp_path: Path, more: dict[str, Any], dsn: Dsn, result: str) -> None:
    assert Desk(tmp_path, dsn).make(original(**more), end(News.DELAYED)).result == result


@pytest.mark.parametrize(
    ("dsn", "sender", "report", "to", "kind", "result"),
    [
        (Dsn(), "", 0, "", 0, "null_sender"),
        (Dsn(), "", 1, "", 0, "null_sender"),
        (Dsn(postmaster="pm@example.com"), "", 0, "pm@example.com", 2, "double_bounce"),
        (Dsn(postmaster="pm@example.com"), "", 1, "pm@example.com", 2, "double_bounce"),
        (Dsn(postmaster="pm@example.com"), "", 2, "", 0, "dropped"),
        (Dsn(postmaster="pm@example.com"), "app@example.com", 0, "app@example.com", 1, "made"),
        (Dsn(to="ops@example.com"), "app@example.com", 0, "ops@example.com", 1, "made"),
        (Dsn(to="ops@example.com"), "", 1, "", 0, "null_sender"),
        (Dsn(to="none", postmaster="pm@example.com"), "app@example.com", 0, "", 0, "off"),
        (Dsn(to="none", postmaster="pm@example.com"), "", 1, "", 0, "off"),
    ],
)
def test_to_whom(tmp_path: Path, dsn: Dsn, sender: str, report: int, to: str, kind: int, result: str) -> None:
    found = Desk(tmp_path, dsn).make(original(sender, report=report))
    assert found.result == result
    if to:
        made = message(found)
        assert ([r.address for r in made.recipients], made.report, made.sender) == ([to], kind, "")
    else:
        assert found.message is None


def test_no_chain_of_reports_is_longer_than_two(tmp_path: Path) -> None:
    desk = Desk(tmp_path, Dsn(postmaster="pm@example.com"))
    first = message(desk.make())
    second = message(desk.make(original(first.sender, report=first.report)))
    assert desk.make(original(second.sender, report=second.report)).message is None


# -- the way out

OTHER = Route("null", Action.VIA, Match((Question("sender", ("",)),)), via=("up",))


def test_the_rules_route_it_as_mail_without_a_sender(tmp_path: Path) -> None:
    nothing = Route("apps", Action.VIA, Match((Question("sender", ("*@example.com",)),)), via=("up",))
    desk = Desk(tmp_path, routes=(nothing,))
    found = desk.make()
    assert (found.result, found.message) == ("no_route", None)
    desk.reports.tell([found])
    (line,) = [fields for kind, fields in desk.lines if kind == "not_reported"]
    assert "dsn.via" in line["hint"] and line["id"] == queue_id(7)
    (to,) = message(Desk(tmp_path, routes=(nothing, OTHER)).make()).recipients
    assert LaneFacts.parse(to.facts).via == ""


@pytest.mark.parametrize(
    ("route", "state"),
    [
        (Route("r", Action.HOLD), State.HELD),
        (Route("r", Action.DISCARD), State.DELIVERED),
        (Route("r", Action.VIA, via=("up",), copy=("archive@example.com",)), State.QUEUED),
    ],
)
def test_what_a_rule_makes_of_it(tmp_path: Path, route: Route, state: State) -> None:
    (to,) = message(Desk(tmp_path, routes=(route,)).make()).recipients
    assert to.state is state


def test_a_rule_that_rejects_it(tmp_path: Path) -> None:
    found = Desk(tmp_path, routes=(Route("r", Action.REJECT, text="not here"),)).make()
    assert (found.result, found.why) == ("no_route", "no report to app@example.com: not here")


def test_via_is_above_the_rules(tmp_path: Path) -> None:
    (to,) = message(Desk(tmp_path, Dsn(via="up"), routes=(Route("r", Action.REJECT, text="no"),)).make()).recipients
    assert (LaneFacts.parse(to.facts).via, to.state) == ("up", State.QUEUED)


def test_a_via_that_is_gone_leaves_it_to_the_rules(tmp_path: Path) -> None:
    (to,) = message(Desk(tmp_path, Dsn(via="gone")).make()).recipients
    assert (LaneFacts.parse(to.facts).via, to.state) == ("", State.QUEUED)


def test_an_account_that_may_not_send_it(tmp_path: Path) -> None:
    assert Desk(tmp_path, senders=("*@example.com",)).make().result == "no_route"
    assert Desk(tmp_path, Dsn(via="up"), senders=("*@example.com",)).make().result == "no_route"
    assert Desk(tmp_path, senders=("*@example.com", "")).make().result == "made"


@pytest.mark.parametrize("via", ["", "up"])
def test_capture_keeps_it_here(tmp_path: Path, via: str) -> None:
    allowed = Question("recipient", ("*@allowed.example",))
    (to,) = message(Desk(tmp_path, Dsn(via=via), capture=allowed).make()).recipients
    assert (to.state, to.egress) == (State.DELIVERED, "capture")
    (to,) = message(Desk(tmp_path, Dsn(via=via), capture=allowed).make(original("a@allowed.example"))).recipients
    assert to.state is State.QUEUED


def test_the_rules_give_it_a_class(tmp_path: Path) -> None:
    match = Match((Question("header", ("Auto-Submitted: auto-replied",)),))
    classes = {"robots": TrafficClass("robots", match, Priority.LOW)}
    made = message(Desk(tmp_path, classes=classes).make())
    assert (made.class_, made.priority) == ("robots", Priority.LOW)
    assert LaneFacts.parse(made.recipients[0].facts).class_ == "robots"


# -- what it quotes


@pytest.mark.parametrize(
    ("ret", "body", "news", "kind", "says"),
    [
        ("", b"secret", News.FAILED, b"text/rfc822-headers", False),
        ("HDRS", b"secret", News.FAILED, b"text/rfc822-headers", False),
        ("FULL", b"secret", News.FAILED, b"message/rfc822", False),
        ("FULL", b"secret", News.DELAYED, b"text/rfc822-headers", False),  # RFC 3461 §4.3: of failures alone
        ("FULL", None, News.FAILED, b"text/rfc822-headers", True),
    ],
)
def test_ret(tmp_path: Path, ret: str, body: bytes | None, news: News, kind: bytes, says: bool) -> None:
    made = message(Desk(tmp_path).make(original(ret=ret, body=body), end(news)))
    assert isinstance(made.body, bytes)
    assert b"Content-Type: " + kind + b"\r\n" in made.body
    assert (b"secret" in made.body) is (kind == b"message/rfc822")
    assert (b"too large" in made.body) is says


def test_a_rule_is_told_without_its_file(tmp_path: Path) -> None:
    made = message(Desk(tmp_path).make(original(), end(egress="", why="rejected: use the API", last_reply="")))
    assert isinstance(made.body, bytes)
    assert b"use the API" in made.body and b"Status: 5.7.1" in made.body and b"Remote-MTA" not in made.body


def test_a_fault_of_ours_stops_no_settlement(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.reports._token = lambda: "é"  # what cannot be written into a header
    found = desk.make()
    assert (found.result, found.message) == ("error", None)
    desk.reports.tell([found])
    assert [kind for kind, _ in desk.lines] == ["not_reported"]
