"""Reports to senders, over real sockets: who is told, of what, by which way, and who never is."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
import functools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conftest import until
from fakes import DROP, RESET, SILENT, Transaction, Upstream
from front import Client
from rig import Process, Rig, running, submit, write_config

from relay import clock
from relay.deliver import smtp
from relay.envelope import parse_queue_id
from relay.recipient import Verb
from relay.reply import Stage
from relay.scheduler import housekeeping

NO_SUCH = "550 5.1.1 no such user"
SENT = b"Subject: the bill\r\nMessage-ID: <bill@shop.example>\r\n\r\nPay, please.\r\n"
SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}"
CAPABLE = ("PIPELINING", "8BITMIME", "SMTPUTF8", "DSN")
ASKED = (
    "",
    "NEVER",
    "SUCCESS",
    "FAILURE",
    "DELAY",
    "SUCCESS,FAILURE",
    "SUCCESS,DELAY",
    "FAILURE,DELAY",
    "SUCCESS,FAILURE,DELAY",
)


def refuses(address: str) -> str | None:
    return NO_SUCH if address.startswith("gone") else None


def config(folder: Path, main: Upstream, reports: Upstream, dsn: str = "via: reports", **more: str) -> Path:
    """Mail goes to `main`, reports leave by `reports`."""
    accounts = {"main": f"port: {main.port}, tls: none", "reports": f"port: {reports.port}, tls: none"}
    routes = more.pop("routes", '  - {name: all, match: {not: {sender: ""}}, via: main}')
    return write_config(folder, accounts, routes=routes, dsn=dsn, **more)


@contextlib.asynccontextmanager
async def relay(
    folder: Path,
    script: dict[str, Any] | None = None,
    dsn: str = "via: reports",
    *,
    hop: tuple[str, ...] = (),
    **more: Any,
) -> AsyncIterator[tuple[Rig, Upstream, Upstream]]:
    """A relay between an application, `main` that takes its mail and `reports` that takes what is told."""
    extensions = hop or ("PIPELINING", "8BITMIME", "SMTPUTF8")
    async with (
        Upstream(script, extensions=extensions) as main,
        Upstream(more.pop("answers", None)) as reports,
        running(config(folder, main, reports, dsn, **more)) as rig,
    ):
        yield rig, main, reports


class Told:
    """A report as it arrived, and read as RFC 3464 has it."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.raw = transaction.message
        self.message = email.message_from_bytes(self.raw, policy=email.policy.default)
        assert self.message.get_content_type() == "multipart/report"
        assert self.message.get_param("report-type") == "delivery-status"
        assert not self.message.defects
        text, status, self.original = self.message.iter_parts()
        self.text = " ".join(text.get_content().split())
        assert status.get_content_type() == "message/delivery-status"
        self.about, *self.recipients = status.get_payload()

    @property
    def named(self) -> list[tuple[str, str]]:
        return [(r["Final-Recipient"].removeprefix("rfc822; "), r["Action"]) for r in self.recipients]


def told(reports: Upstream) -> list[Told]:
    return [Told(t) for t in reports.done]


async def send(rig: Rig, *to: str, sender: str = "app@shop.example", mail: str = "", message: bytes = SENT) -> str:
    """One message with parameters: `to` is what follows `RCPT TO:`; its queue id."""
    client = Client(*await asyncio.open_connection("127.0.0.1", rig.port))
    try:
        await client.reply()
        _, offered = await client.say("EHLO app.example")
        assert "DSN" in offered.splitlines()
        for line in (f"MAIL FROM:<{sender}> {mail}", *(f"RCPT TO:{t}" for t in to)):
            assert (await client.say(line))[0] == 250, line
        assert (await client.say("DATA"))[0] == 354
        await client.raw(message + b".\r\n")
        code, text = await client.reply()
        assert code == 250, text
        return text.split()[-1]
    finally:
        await client.close()


# -- failures


async def test_a_failure_is_told(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": refuses}) as (rig, _, reports):
        number = await rig.send("gone@example.net", "there@example.net", sender="app@shop.example", message=SENT)
        await until(lambda: reports.done)
        await rig.settled()
        (report,) = told(reports)
        assert report.transaction.sender == ""
        assert report.transaction.recipients == ["app@shop.example"]
        assert report.message["To"] == "app@shop.example"
        assert report.message["From"] == "Mail Delivery System <MAILER-DAEMON@relay.test>"
        assert report.message["Auto-Submitted"] == "auto-replied"
        assert report.message["References"] == "<bill@shop.example>"
        (fate,) = report.recipients
        assert fate["Final-Recipient"] == "rfc822; gone@example.net"
        assert (fate["Action"], fate["Status"]) == ("failed", "5.1.1")
        assert fate["Diagnostic-Code"] == f"smtp; {NO_SUCH}"
        assert fate["Remote-MTA"] == "dns; 127.0.0.1"
        assert report.about["Reporting-MTA"] == "dns; relay.test"
        assert b"there@example.net" not in report.raw
        assert report.original.get_content_type() == "text/rfc822-headers"
        assert "Subject: the bill" in report.original.get_content()
        assert b"Pay, please." not in report.raw
        assert "the bill" in report.text and number in report.text
        # Both stories name each other.
        event = next(e for e in (await rig.message(number))["events"] if e["kind"] == "reported")
        row = await rig.message(event["report"])
        assert (row["sender"], row["report"]) == ("", 1)
        assert [e["message"] for e in row["events"] if e["kind"] == "report_on"] == [number]
        assert (await rig.row(event["report"]))["report"] == 1
        assert [e["report"] for e in rig.said("reported")] == [event["report"]]


async def test_without_a_section_the_rules_route_it(tmp_path: Path) -> None:
    async with Upstream({"RCPT": refuses}) as up:
        file = write_config(tmp_path, {"main": f"port: {up.port}, tls: none"}, dsn="")
        async with running(file) as rig:
            await send(rig, "<gone@example.net>")
            await until(lambda: up.done)
            (report,) = told(up)
            assert report.transaction.recipients == ["app@shop.example"]


async def test_envid_and_orcpt_come_back(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": refuses}) as (rig, _, reports):
        await send(rig, "<gone@example.net> ORCPT=rfc822;old+2Bname@example.net", mail="ENVID=order+20314")
        await until(lambda: reports.done)
        (report,) = told(reports)
        assert report.about["Original-Envelope-Id"] == "order 314"
        assert report.recipients[0]["Original-Recipient"] == "rfc822; old+name@example.net"


@pytest.mark.parametrize(
    ("ret", "size", "kind"),
    [
        ("", 10, "text/rfc822-headers"),
        ("RET=HDRS", 10, "text/rfc822-headers"),
        ("RET=FULL", 10, "message/rfc822"),
        ("RET=FULL", 60_000, "text/rfc822-headers"),
        ("RET=FULL", 400_000, "text/rfc822-headers"),
    ],
)
async def test_ret(tmp_path: Path, ret: str, size: int, kind: str) -> None:
    async with relay(tmp_path, {"RCPT": refuses}) as (rig, _, reports):
        await send(rig, "<gone@example.net>", mail=ret, message=SENT + b"x" * size + b"\r\n")
        await until(lambda: reports.done)
        (report,) = told(reports)
        assert report.original.get_content_type() == kind
        assert (b"Pay, please.\r\n" + b"x" * 10 in report.raw) is (kind == "message/rfc822")
        assert ("it is too large" in report.text) is (size > 50_000)


@pytest.mark.parametrize("body", ["\u00e4".encode() * 10, b"x" * 2000])
async def test_what_can_never_be_re_encoded_is_told_without_its_body(tmp_path: Path, body: bytes) -> None:
    """The report with it could not be re-encoded either, and its sender would never hear of the failure."""
    message = (
        b"Content-Type: multipart/signed; boundary=b; protocol=x/y\r\n\r\n"
        b"--b\r\n\r\n" + body + b"\r\n--b\r\n\r\nsig\r\n--b--\r\n"
    )
    seven_bit = ("PIPELINING", "SIZE 1000000")
    async with Upstream(extensions=seven_bit) as up:
        accounts = {"main": f"port: {up.port}, tls: none"}
        async with running(write_config(tmp_path, accounts, dsn="to: sender")) as rig:
            await send(rig, "<you@example.net>", mail="RET=FULL", message=message)
            await rig.settled()
            (report,) = told(up)
            assert report.recipients[0]["Status"] == "5.6.3"
            assert report.original.get_content_type() == "text/rfc822-headers"


async def test_a_long_line_that_is_quoted_is_re_encoded(tmp_path: Path) -> None:
    message = SENT + b"x" * 3000 + b"\r\n"
    async with relay(tmp_path, {"RCPT": refuses}) as (rig, _, reports):
        await send(rig, "<gone@example.net>", mail="RET=FULL", message=message)
        await rig.settled()
        (report,) = told(reports)
        assert max(map(len, report.transaction.wire.split(b"\r\n"))) <= 998
        assert "x" * 3000 in report.original.get_content().get_content()


async def test_an_expired_one_is_told(tmp_path: Path) -> None:
    classes = "  default: {retry: {schedule: [100ms], give_up: 3s}}"
    async with relay(tmp_path, {"RCPT": "451 4.7.1 greylisted"}, classes=classes) as (rig, _, reports):
        await send(rig, "<slow@example.net>")
        await until(lambda: reports.done)
        (report,) = told(reports)
        assert report.named == [("slow@example.net", "failed")]
        assert report.recipients[0]["Status"] == "4.7.1"
        assert "Its time to be delivered is over." in report.text and "greylisted" in report.text


async def test_what_only_waited_is_told_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EXPIRE_EVERY", 0.5)
    classes = "  default: {retry: {schedule: [1500ms], give_up: 2s}}"
    async with relay(tmp_path, {"BANNER": DROP}, classes=classes) as (rig, _, reports):
        for n in range(6):  # five failures, and the account rests
            await send(rig, f"<r{n}@example.net>")
        await until(lambda: len(reports.done) == 6, 60)
        assert sorted(a for report in told(reports) for a, _ in report.named) == [f"r{n}@example.net" for n in range(6)]
        assert rig.said("expired")
        assert {report.recipients[0]["Status"] for report in told(reports)} == {"4.4.7"}


async def test_in_doubt_that_fails_says_that_it_may_have_arrived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(smtp.TIMEOUTS, Stage.DOT, 0.5)
    classes = "  default: {in_doubt: fail, retry: {schedule: [1h], give_up: 1d}}"
    async with relay(tmp_path, {"DOT": SILENT}, classes=classes) as (rig, _, reports):
        await send(rig, "<r@example.net>")
        await until(lambda: reports.done)
        (report,) = told(reports)
        assert "It may have been delivered all the same" in report.text
        assert report.recipients[0]["Status"] == "4.4.2"


async def test_a_crash_in_flight_that_fails_is_told_at_the_next_start(tmp_path: Path) -> None:
    classes = "  default: {in_doubt: fail, retry: {schedule: [1h], give_up: 1d}}"
    async with Upstream({"DOT": SILENT}) as main, Upstream() as reports:
        file = config(tmp_path, main, reports, classes=classes)
        made = Process(file)
        try:
            await asyncio.to_thread(made.ready)
            client = Client(*await asyncio.open_connection("127.0.0.1", made.port))
            await client.reply()
            await client.say("EHLO app.example")
            assert (await client.mail(SENT, "r@example.net", sender="app@shop.example"))[0] == 250
            await client.close()
            await until(lambda: main.transactions and main.transactions[0].wire)
        finally:
            await asyncio.to_thread(made.close)  # SIGKILL
        async with running(file):
            await until(lambda: reports.done)
            (report,) = told(reports)
            assert "It may have been delivered all the same" in report.text


async def test_refused_after_data_while_others_passed(tmp_path: Path) -> None:
    routes = (
        '  - {name: old, match: {from: "*@old.example", recipient: "*@no.example"}, reject: "use the API"}\n'
        '  - {name: all, match: {not: {sender: ""}}, via: main, copy: archive@example.com}'
    )
    async with relay(tmp_path, routes=routes) as (rig, main, reports):
        await send(rig, "<a@no.example>", "<b@yes.example>", message=b"From: x@old.example\r\n" + SENT)
        await until(lambda: reports.done)
        await rig.settled()
        (report,) = told(reports)
        assert report.named == [("a@no.example", "failed")]
        assert report.recipients[0]["Status"] == "5.7.1" and "use the API" in report.text
        assert sorted(main.delivered()) == ["archive@example.com", "b@yes.example"]
        assert b"yes.example" not in report.raw and b"archive" not in report.raw and b"relay.yaml" not in report.raw


async def test_rejected_by_a_rule_since_a_reload(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": "451 later"}, classes=SLOW) as (rig, main, reports):
        number = await send(rig, "<r@example.net>")
        await rig.tried(number)
        rule = (
            '  - {name: stop, match: {recipient: "*@example.net"}, reject: "not any more"}\n  - {name: all, via: main}'
        )
        config(tmp_path, main, reports, routes=rule, classes=SLOW)
        assert rig.app.reload()[0]
        service = rig.app.admin.service
        await service.act("retry", service.parse_filter({"id": number}), dry_run=False)
        await until(lambda: reports.done)
        (report,) = told(reports)
        assert "not any more" in report.text and b"relay.yaml" not in report.raw
        assert "relay.yaml" in (await rig.row(number))["why"]  # the operator sees which rule it was


async def test_the_senders_copy_is_nobodys_news(tmp_path: Path) -> None:
    routes = '  - {name: all, match: {not: {sender: ""}}, via: main, copy: gone@archive.example}'
    async with relay(tmp_path, {"RCPT": refuses}, routes=routes) as (rig, _, reports):
        number = await send(rig, "<r@example.net> NOTIFY=FAILURE")
        await rig.settled()
        assert [r["state"] for r in await rig.rows(number)] == ["delivered", "failed"]
        assert reports.done == []


async def test_cancelled_by_an_operator_is_told_by_nobody(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": "451 later"}, classes=SLOW) as (rig, _, reports):
        number = await send(rig, "<r@example.net>")
        await rig.tried(number)
        service = rig.app.admin.service
        await service.act("cancel", service.parse_filter({"id": number}), dry_run=False)
        assert (await rig.row(number))["state"] == "failed"
        assert await rig.count() == 1 and reports.transactions == []


# -- NOTIFY, whole


async def matrix(rig: Rig) -> dict[str, str]:
    """One message for each NOTIFY; queue ids by what it asked for."""
    return {
        asked: await send(
            rig, f"<{asked.replace(',', '-').lower() or 'nothing'}@example.net>{asked and ' NOTIFY=' + asked}"
        )
        for asked in ASKED
    }


def of(*asked: str, action: str) -> list[tuple[str, str]]:
    return sorted((f"{a.replace(',', '-').lower() or 'nothing'}@example.net", action) for a in asked)


def all_named(reports: Upstream) -> list[tuple[str, str]]:
    return sorted(pair for report in told(reports) for pair in report.named)


async def test_notify_where_the_next_hop_reports_itself(tmp_path: Path) -> None:
    async with relay(tmp_path, hop=CAPABLE) as (rig, main, reports):
        await matrix(rig)
        await rig.settled()
        assert await rig.count() == len(ASKED) and reports.transactions == []
        said = sorted(line.partition(">")[2].strip() for line in main.commands("RCPT"))
        assert said == sorted(f"NOTIFY={asked}" if asked else "" for asked in ASKED)


async def test_notify_where_the_next_hop_does_not(tmp_path: Path) -> None:
    async with relay(tmp_path) as (rig, main, reports):
        await matrix(rig)
        await rig.settled()
        assert all_named(reports) == of(*(a for a in ASKED if "SUCCESS" in a), action="relayed")
        assert not [line for line in main.commands("RCPT") if "NOTIFY" in line]


@pytest.mark.parametrize("hop", [CAPABLE, ("8BITMIME",)])
async def test_notify_of_a_failure(tmp_path: Path, hop: tuple[str, ...]) -> None:
    async with relay(tmp_path, {"RCPT": NO_SUCH}, hop=hop) as (rig, _, reports):
        await matrix(rig)
        await rig.settled()
        assert all_named(reports) == of("", *(a for a in ASKED if "FAILURE" in a), action="failed")


@pytest.mark.parametrize("waits", ["deferred", "resting"])
async def test_notify_of_a_delay(tmp_path: Path, waits: str) -> None:
    """Told when an attempt is deferred after that age, and of what only waits for an account that rests."""
    script = {"RCPT": "451 4.2.1 later"} if waits == "deferred" else {"BANNER": RESET}
    classes = "  default: {retry: {schedule: [300ms], give_up: 1d}}" if waits == "deferred" else SLOW
    async with relay(tmp_path, script, "via: reports, delay_after: 1s", classes=classes) as (rig, _, reports):
        numbers = await matrix(rig)
        wanted = of("", *(a for a in ASKED if "DELAY" in a), action="delayed")
        await until(lambda: len(reports.done) >= len(wanted), 60)
        # Once: a whole time later, and further attempts, nothing more was told.
        last = (await rig.row(numbers[ASKED[-1]]))["accepted_at"]
        await until(lambda: clock.now() > last + 3.5)
        assert all_named(reports) == wanted
        report = told(reports)[0]
        assert report.recipients[0]["Will-Retry-Until"] and "You need not do anything" in report.text
        if waits == "deferred":
            await rig.tried(numbers[""], 4)
            assert all_named(reports) == wanted


async def test_held_ones_are_not_told_as_delayed(tmp_path: Path) -> None:
    routes = (
        '  - {name: hold, match: {recipient: "h*"}, hold: true}\n  - {name: all, match: {not: {sender: ""}}, via: main}'
    )
    script, dsn = {"RCPT": "451 later"}, "via: reports, delay_after: 1s"
    async with relay(tmp_path, script, dsn, routes=routes, classes=SLOW) as (rig, _, reports):
        await send(rig, "<held@example.net>")
        await send(rig, "<waits@example.net>")  # younger: when it is told, the other could have been
        await until(lambda: reports.done)
        assert all_named(reports) == [("waits@example.net", "delayed")]


async def test_never_a_delay_where_it_is_switched_off(tmp_path: Path) -> None:
    script, classes = {"RCPT": "451 later"}, "  default: {retry: {schedule: [200ms], attempts: 5, give_up: 1d}}"
    async with relay(tmp_path, script, "via: reports, delay_after: null", classes=classes) as (rig, _, reports):
        await send(rig, "<r@example.net>")
        await until(lambda: reports.done)
        assert all_named(reports) == [("r@example.net", "failed")]


async def test_what_is_passed_on(tmp_path: Path) -> None:
    """RFC 3461 §5.2.1: what was said, and nothing that was not."""
    async with relay(tmp_path, hop=CAPABLE) as (rig, main, _):
        await send(
            rig, "<a@x.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bb@x.example", "<b@x.example>",
            mail="RET=HDRS ENVID=a+20b+3D",
        )  # fmt: skip
        await rig.settled()
        await send(rig, "<c@x.example>")
        await rig.settled()
        first, second = main.commands("MAIL")
        assert " RET=HDRS" in first and " ENVID=a+20b+3D" in first
        assert "RET" not in second and "ENVID" not in second
        assert main.commands("RCPT") == [
            "RCPT TO:<a@x.example> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;a+2Bb@x.example",
            "RCPT TO:<b@x.example>",
            "RCPT TO:<c@x.example>",
        ]


async def test_the_first_of_two_counts(tmp_path: Path) -> None:
    async with relay(tmp_path, hop=CAPABLE) as (rig, main, _):
        await send(rig, "<a@x.example> NOTIFY=NEVER", "<a@x.example> NOTIFY=SUCCESS")
        await rig.settled()
        assert main.commands("RCPT") == ["RCPT TO:<a@x.example> NOTIFY=NEVER"]


async def test_what_never_leaves_is_no_success(tmp_path: Path) -> None:
    routes = '  - {name: gone, match: {recipient: "d*"}, discard: true}\n  - {name: all, match: {not: {sender: ""}}, via: main}'
    extra = 'capture: {allow: ["*@shop.example"]}'
    async with relay(tmp_path, routes=routes, extra=extra) as (rig, _, reports):
        await send(rig, "<d@example.net> NOTIFY=SUCCESS", "<captured@example.net> NOTIFY=SUCCESS")
        await rig.settled()
        assert await rig.count() == 2 and reports.transactions == []


async def test_capture_keeps_reports_too(tmp_path: Path) -> None:
    extra = 'capture: {allow: ["gone@example.net"]}'
    async with relay(tmp_path, {"RCPT": refuses}, extra=extra) as (rig, _, reports):
        await send(rig, "<gone@example.net>")
        await until(lambda: rig.said("reported"))
        row = await rig.row(rig.said("reported")[0]["report"])
        assert (row["state"], row["egress"], row["recipient"]) == ("delivered", "capture", "app@shop.example")
        assert reports.transactions == []


async def test_a_resent_message_keeps_what_was_asked(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": NO_SUCH}) as (rig, _, reports):
        number = await send(rig, "<r@example.net> NOTIFY=NEVER")
        await rig.reaches(number, "failed")
        again = await rig.app.admin.service.resend(number, [])
        row = await rig.reaches(again["queue_id"], "failed")
        assert row["notify"] == "NEVER"
        assert await rig.count() == 2 and reports.transactions == []


# -- no loop


async def test_no_report_for_the_null_sender(tmp_path: Path) -> None:
    routes = "  - {name: all, via: main}"
    async with relay(tmp_path, {"RCPT": NO_SUCH}, routes=routes) as (rig, _, reports):
        number = await send(rig, "<r@example.net>", sender="")
        await rig.reaches(number, "failed")
        assert await rig.count() == 1 and reports.transactions == []
        (line,) = rig.said("not_reported")
        assert line["id"] == number and "dsn.postmaster" in line["hint"]
        assert "not_reported" in await rig.story(number)


async def test_a_report_that_fails_goes_to_the_postmaster(tmp_path: Path) -> None:
    answers = {"RCPT": lambda address: NO_SUCH if address.startswith("app") else None}
    dsn = "via: reports, postmaster: postmaster@relay.example"
    async with relay(tmp_path, {"RCPT": refuses}, dsn, answers=answers) as (rig, _, reports):
        await send(rig, "<gone@example.net>")
        await until(lambda: reports.done)
        await rig.settled()
        (report,) = told(reports)
        assert report.transaction.recipients == ["postmaster@relay.example"]
        assert "A message without a sender could not be delivered" in report.text
        assert report.named == [("app@shop.example", "failed")]
        assert [r["report"] for r in await rig.rows()] == [0, 1, 2]


async def test_a_report_that_fails_twice_is_dropped(tmp_path: Path) -> None:
    dsn = "via: reports, postmaster: postmaster@relay.example"
    async with relay(tmp_path, {"RCPT": refuses}, dsn, answers={"RCPT": NO_SUCH}) as (rig, _, _):
        await send(rig, "<gone@example.net>")
        await until(lambda: rig.said("not_reported"))
        await rig.settled()
        assert [(r["report"], r["state"]) for r in await rig.rows()] == [(0, "failed"), (1, "failed"), (2, "failed")]


@pytest.mark.parametrize("postmaster", ["", ", postmaster: postmaster@relay.example"])
async def test_refused_for_its_null_sender_it_ends_as_an_event(tmp_path: Path, postmaster: str) -> None:
    answers = {"MAIL": lambda argument: "550 5.7.60 null sender is not allowed" if "<>" in argument else None}
    async with relay(tmp_path, {"RCPT": refuses}, f"via: reports{postmaster}", answers=answers) as (rig, _, reports):
        await send(rig, "<gone@example.net>")
        await until(lambda: rig.said("not_reported"))
        await rig.settled()
        count = 3 if postmaster else 2
        assert [r["state"] for r in await rig.rows()] == ["failed"] * count
        assert reports.done == []
        refused = rig.said("dsn_refused")
        assert len(refused) == count - 1 and "dsn.via" in refused[0]["hint"] and refused[0]["egress"] == "reports"
        report = rig.said("reported")[0]["report"]
        story = await rig.story(report)
        assert story[:4] == ["accepted", "report_on", "failed", "dsn_refused"]


async def test_no_way_out_is_told_to_the_operator(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": refuses}, "to: sender") as (rig, _, reports):
        number = await send(rig, "<gone@example.net>")
        await until(lambda: rig.said("not_reported"))
        (line,) = rig.said("not_reported")
        assert line["id"] == number and "dsn.via" in line["hint"]
        assert await rig.count() == 1 and reports.transactions == []


async def test_a_report_that_cannot_be_stored_is_not_forgotten(tmp_path: Path) -> None:
    """The failure is recorded with its report or not at all; it is not tried upstream again meanwhile."""
    async with relay(tmp_path, {"RCPT": refuses}) as (rig, main, reports):
        connection = rig.app.spool._writer._connection
        trigger = "CREATE TRIGGER no BEFORE INSERT ON message WHEN NEW.report BEGIN SELECT RAISE(ABORT, 'no'); END"
        await connection.call(lambda c: c.execute(trigger).close())
        number = await send(rig, "<gone@example.net>")
        await until(lambda: len(rig.said("record_failed")) > 1)
        assert (await rig.row(number))["state"] == "active" and not rig.said("reported")
        await connection.call(lambda c: c.execute("DROP TRIGGER no").close())
        await until(lambda: reports.done)
        assert (await rig.row(number))["state"] == "failed"
        await rig.settled()
        assert len(reports.done) == 1 and len(main.transactions) == 1 and len(rig.said("reported")) == 1


# -- the rest of `dsn`


async def test_to_one_address_for_all(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": refuses}, "via: reports, to: ops@relay.example") as (rig, _, reports):
        await send(rig, "<gone@example.net>")
        await until(lambda: reports.done)
        (report,) = told(reports)
        assert report.transaction.recipients == ["ops@relay.example"]
        assert "The message from <app@shop.example> could not be delivered" in report.text


async def test_to_none_is_neither_offered_nor_sent(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": refuses}) as (rig, main, reports):
        config(tmp_path, main, reports, "to: none")
        assert rig.app.reload()[0]
        client = Client(*await asyncio.open_connection("127.0.0.1", rig.port))
        await client.reply()
        assert "DSN" not in (await client.say("EHLO x"))[1].splitlines()
        assert (await client.say("MAIL FROM:<a@b.example> RET=FULL"))[0] == 555
        assert (await client.say("MAIL FROM:<a@b.example>"))[0] == 250
        assert (await client.say("RCPT TO:<a@b.example> NOTIFY=NEVER"))[0] == 555
        await client.close()
        number = await rig.send("gone@example.net")
        await rig.reaches(number, "failed")
        assert await rig.count() == 1 and reports.transactions == []


@pytest.mark.parametrize(
    "said",
    [
        "550 5.1.1 no\tsuch\x0b\x0c user \x1b[31m\x85--=_",
        b"550-5.1.1 first\r\n550-Action: delivered\r\n550 5.1.1 Final-Recipient: rfc822; evil@example.net\r\n",
        b"550-\r\n550-\r\n550 \r\n",
        b"550 5.1.1 " + b"\xff\xfe" * 200 + b"\r\n",
    ],
)
async def test_what_a_server_says_starts_nothing(tmp_path: Path, said: str | bytes) -> None:
    async with relay(tmp_path, {"RCPT": said}) as (rig, _, reports):
        await send(rig, "<r@example.net>", message=b"Subject: a\r\n\tX-Evil: 1\r\nMessage-ID: <a b\r\n c>\r\n\r\nx\r\n")
        await until(lambda: reports.done)
        (report,) = told(reports)
        assert report.named == [("r@example.net", "failed")]
        assert len(report.recipients) == 1 and "X-Evil" not in report.message
        assert report.message["References"] is None


async def test_expiry_of_many_is_one_report(tmp_path: Path) -> None:
    async with relay(tmp_path, {"RCPT": "451 later"}, classes=SLOW) as (rig, _, reports):
        number = await send(rig, *(f"<r{n}@example.net>" for n in range(150)))
        await until(lambda: len(rig.said("deferred")) == 150)
        await rig.tried(number)
        keys = [(parse_queue_id(number), n) for n in range(150)]
        await until(lambda: rig.app.scheduler.recorder.unrecorded == 0)
        assert await rig.app.spool.change(keys, Verb.EXPIRE, clock.now(), "expired") == 150
        await until(lambda: reports.done)
        await rig.settled()
        (report,) = told(reports)
        assert len(report.recipients) == 150


async def test_operators_recognise_a_report(tmp_path: Path) -> None:
    async with Upstream({"RCPT": refuses}) as main, Upstream() as reports:
        made = Process(config(tmp_path, main, reports))
        try:
            await asyncio.to_thread(made.ready)
            (number,) = await submit(made.port, [("app@shop.example", ("gone@example.net",), SENT)])
            await until(lambda: reports.done)
            cli = functools.partial(asyncio.to_thread, made.cli)
            listed = (await cli("queue", "list", "--all")).splitlines()
            assert len(listed) == 2
            original, report = (line.split("\t") for line in listed)
            assert original[:4] == [number, "failed", "gone@example.net", "<app@shop.example>"]
            assert report[2:4] == ["app@shop.example", "a report"]
            assert f"report on  {number}" in await cli("queue", "show", report[0])
            assert f"report {report[0]}: failed, to app@shop.example" in await cli("queue", "show", number)
        finally:
            await asyncio.to_thread(made.close)


async def test_a_delay_that_nobody_was_told_of_is_told_once_reports_are_wanted(tmp_path: Path) -> None:
    delay = "via: reports, delay_after: 300ms"
    async with relay(tmp_path, {"RCPT": "451 4.3.0 later"}, f"to: none, {delay}") as (rig, main, reports):
        (number,) = await submit(rig.port, [("app@shop.example", ("you@example.net",), SENT)])
        began = clock.now()
        await until(lambda: clock.now() > began + 0.5)
        await rig.tried(number, (await rig.row(number))["attempts"] + 2)
        config(tmp_path, main, reports, delay)
        assert rig.app.reload()[0]
        await until(lambda: reports.done)
        assert told(reports)[0].named == [("you@example.net", "delayed")]
