"""Reports beside a real Postfix: it understands what we pass on, and takes what we write."""

from __future__ import annotations

import email
import email.policy
import smtplib
from email.message import EmailMessage
from pathlib import Path

import pytest

from .postfix import Postfix
from .support import Received, Recorder, Relay, config_text, needs, needs_root

pytestmark = pytest.mark.clients
SENT = b"Subject: the bill\r\nMessage-ID: <bill@shop.example>\r\n\r\nPay, please.\r\n"
REFUSED = "check_recipient_access inline:{gone@example.com=REJECT}, permit"


def fates(received: Received) -> tuple[EmailMessage, EmailMessage, list[EmailMessage]]:
    """A report whole, its fields of the message, and those of each recipient."""
    message = email.message_from_bytes(received.raw, policy=email.policy.default)
    assert isinstance(message, EmailMessage) and not message.defects
    assert message.get_content_type() == "multipart/report"
    about, *recipients = list(message.iter_parts())[1].get_payload()
    return message, about, recipients


@needs("postfix")
@needs_root
def test_reports_through_and_of_a_postfix(tmp_path: Path, open_folder: Path) -> None:
    """Postfix refuses one recipient, which we tell through it; and takes the other with what was asked, which it tells."""
    with Recorder() as last, Postfix(open_folder, last.port, smtpd_recipient_restrictions=REFUSED) as postfix:
        file = tmp_path / "relay.yaml"
        file.write_text(config_text(tmp_path, postfix.port))
        with Relay(file) as relay:
            with smtplib.SMTP("127.0.0.1", relay.port, timeout=120) as smtp:
                smtp.ehlo()
                assert smtp.has_extn("dsn")
                smtp.sendmail(
                    "app@shop.example",
                    ["gone@example.com", "there@example.com"],
                    SENT,
                    ["ENVID=order+20314", "RET=HDRS"],
                    ["NOTIFY=SUCCESS,FAILURE", "ORCPT=rfc822;old+2Bname@example.com"],
                )
            last.wait(3)
            assert relay.stop() == 0
            relay.clean()
    assert sorted(m.recipients for m in last.messages) == [["app@shop.example"]] * 2 + [["there@example.com"]]
    reports = [fates(m) for m in last.messages if m.recipients == ["app@shop.example"]]
    assert [m.sender for m in last.messages if m.recipients == ["app@shop.example"]] == ["", ""]
    for _, about, (fate,) in reports:
        assert about["Original-Envelope-Id"] == "order 314"
        assert fate["Original-Recipient"].replace("; ", ";") == "rfc822;old+name@example.com"
    by_host = {about["Reporting-MTA"]: (message, fate) for message, about, (fate,) in reports}
    message, fate = by_host["dns; relay.test"]
    assert (fate["Final-Recipient"], fate["Action"]) == ("rfc822; gone@example.com", "failed")
    assert fate["Status"] == "5.7.1"
    assert message["Auto-Submitted"] == "auto-replied"
    assert "Subject: the bill" in list(message.iter_parts())[2].get_content()
    _, fate = by_host["dns; postfix.test"]
    assert (fate["Final-Recipient"], fate["Action"]) == ("rfc822; there@example.com", "relayed")
