"""Reports to senders, over real sockets: who is told, of what, by which way, and who never is."""

from __future__ import annotations

import email
import email.message
import email.policy
from pathlib import Path

import pytest
from conftest import until
from fakes import Transaction, Upstream
from rig import running, write_config

NO_SUCH = "550 5.1.1 no such user"
SENT = b"Subject: the bill\r\nMessage-ID: <bill@shop.example>\r\n\r\nPay, please.\r\n"


def refuses(address: str) -> str | None:
    return NO_SUCH if address.startswith("gone") else None


def dsn(more: str = "") -> str:
    return f"via: reports{', ' + more if more else ''}"


def config(folder: Path, main: Upstream, reports: Upstream, more: str = "", **rest: str) -> Path:
    """Mail goes to `main`, reports leave by `reports`."""
    accounts = {"main": f"port: {main.port}, tls: none", "reports": f"port: {reports.port}, tls: none"}
    return write_config(folder, accounts, routes="  - {name: all, via: main}", dsn=dsn(more), **rest)


class Told:
    """A report as it arrived, and read as RFC 3464 has it."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction = transaction
        self.message = email.message_from_bytes(transaction.message, policy=email.policy.default)
        assert self.message.get_content_type() == "multipart/report"
        assert self.message.get_param("report-type") == "delivery-status"
        assert not self.message.defects
        text, status, self.original = self.message.iter_parts()
        self.text = text.get_content()
        assert status.get_content_type() == "message/delivery-status"
        self.about, *self.recipients = status.get_payload()


@pytest.mark.parametrize("extensions", [("PIPELINING",), ("8BITMIME", "DSN", "SMTPUTF8")])
async def test_a_failure_is_told(tmp_path: Path, extensions: tuple[str, ...]) -> None:
    async with Upstream({"RCPT": refuses}, extensions=extensions) as main, Upstream() as reports:
        async with running(config(tmp_path, main, reports)) as rig:
            number = await rig.send("gone@example.net", "there@example.net", sender="app@shop.example", message=SENT)
            await until(lambda: reports.done)
            await rig.settled()
            (told,) = [Told(t) for t in reports.done]
            assert told.transaction.sender == ""
            assert told.transaction.recipients == ["app@shop.example"]
            assert told.message["To"] == "app@shop.example"
            assert told.message["From"] == "Mail Delivery System <MAILER-DAEMON@relay.test>"
            assert told.message["Auto-Submitted"] == "auto-replied"
            assert told.message["References"] == "<bill@shop.example>"
            (fate,) = told.recipients
            assert fate["Final-Recipient"] == "rfc822; gone@example.net"
            assert (fate["Action"], fate["Status"]) == ("failed", "5.1.1")
            assert fate["Diagnostic-Code"] == f"smtp; {NO_SUCH}"
            assert fate["Remote-MTA"] == "dns; 127.0.0.1"
            assert told.about["Reporting-MTA"] == "dns; relay.test"
            assert "there@example.net" not in told.transaction.message.decode()
            assert told.original.get_content_type() == "text/rfc822-headers"
            assert "Subject: the bill" in told.original.get_content()
            assert "Pay, please." not in told.transaction.message.decode()
            assert "the bill" in told.text and number in told.text
            # Both stories name each other.
            event = next(e for e in (await rig.message(number))["events"] if e["kind"] == "reported")
            report = await rig.message(event["report"])
            assert (report["sender"], report["report"]) == ("", 1)
            assert [e["message"] for e in report["events"] if e["kind"] == "report_on"] == [number]
            assert (await rig.row(event["report"]))["report"] == 1
            assert [e["report"] for e in rig.said("reported")] == [event["report"]]
