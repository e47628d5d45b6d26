"""What a reply means for its recipient: one table of codes and words, as servers say them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.policy.bounces import Reason, classify, codes
from relay.reply import Stage

HARD = [
    ("5.1.1", 550, "<a@b.example>: Recipient address rejected: User unknown in local recipient table", "user_unknown"),
    ("5.7.1", 550, "<a@b.example>: Recipient address rejected: User unknown", "user_unknown"),  # a status for something else
    ("5.5.0", 550, "Requested action not taken: mailbox unavailable", "user_unknown"),
    ("", 550, "No such user here", "user_unknown"),
    ("", 550, "unknown user", "user_unknown"),
    ("", 550, "Mailbox not found", "user_unknown"),
    ("5.1.1", 550, "sorry, no mailbox here by that name (#5.1.1)", "user_unknown"),
    ("5.1.1", 550, "The email account that you tried to reach does not exist. Please try double-checking", "user_unknown"),
    ("5.1.10", 550, "RESOLVER.ADR.RecipientNotFound; Recipient not found by SMTP address lookup", "user_unknown"),
    ("5.4.1", 550, "Recipient address rejected: Access denied. AS(201806281)", "user_unknown"),  # Exchange Online
    ("5.1.1", 550, "<a@b.example>: inactive email address", "user_unknown"),  # Apple
    ("", 554, "delivery error: dd This user doesn't have a yahoo.com account (a@yahoo.com) [0]", "user_unknown"),
    ("", 550, "Adresse d au moins un destinataire invalide. Invalid recipient. OFR004_416", "user_unknown"),
    ("", 550, "Benutzer unbekannt", "user_unknown"),
    ("", 550, "Utilisateur inconnu !", "user_unknown"),
    ("", 550, "El usuario no existe", "user_unknown"),
    ("", 550, "Пользователь не найден", "user_unknown"),
    ("", 550, "用户不存在", "user_unknown"),
    ("5.1.1", 550, "", "user_unknown"),
    ("5.0.0", 0, "smtp; 550 5.1.1 <a@b.example>... User Unknown", "user_unknown"),
    ("5.4.4", 0, "Host or domain name not found. Name service error for name=b.example type=A: Host not found", "host_unknown"),
    ("5.1.2", 550, "Host unknown (Name server: b.example: host not found)", "host_unknown"),
    ("", 0, "Domain does not exist", "host_unknown"),
    ("", 0, "Unrouteable address", "host_unknown"),
    ("5.4.310", 550, "DNS domain b.example does not exist", "host_unknown"),
    ("5.1.2", 0, "", "host_unknown"),
    ("5.1.10", 556, "Domain b.example does not accept mail (nullMX)", "not_accepted"),
    ("", 521, "Server does not accept mail", "not_accepted"),
    ("", 556, "", "not_accepted"),
    ("5.1.6", 550, "recipient no longer on server: a@b.example", "moved"),
    ("5.1.6", 551, "User has moved to <c@d.example>", "moved"),
]  # fmt: skip

SOFT = [
    ("5.1.1", 550, "blocked by reputation", "reputation"),
    ("5.7.1", 554, "Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org", "reputation"),
    ("5.1.1", 550, "5.7.1 IP address blacklisted by recipient", "reputation"),
    ("5.1.3", 553, "http://www.spamhaus.org/query/bl?ip=192.0.2.222", "reputation"),
    ("5.7.606", 550, "Access denied, banned sending IP [192.0.2.1]", "reputation"),
    ("5.7.1", 550, "Fix reverse DNS for 192.0.2.1", "reputation"),
    ("5.7.26", 550, "Unauthenticated email from a.example is not accepted due to domain's DMARC policy", "authentication"),
    ("", 550, "SPF check failed", "authentication"),
    ("5.2.2", 552, "<a@b.example> Quota exceeded (mailbox for user is full)", "mailbox_full"),
    ("5.1.1", 552, "sorry, mailbox a@b.example is over quota temporarily (#5.1.1)", "mailbox_full"),
    ("5.2.1", 550, "The email account that you tried to reach is disabled", "mailbox_disabled"),
    ("", 554, "delivery error: dd Sorry, your message cannot be delivered. This account has been disabled", "mailbox_disabled"),
    ("5.3.4", 552, "Message size exceeds fixed limit", "message_too_big"),
    ("5.7.1", 550, "Relay access denied", "relaying_denied"),
    ("5.1.8", 553, "Domain of sender address a@b.example does not exist", "sender_rejected"),
    ("", 550, "Sender verify failed", "sender_rejected"),
    ("5.1.7", 550, "Domain not found", "sender_rejected"),
    ("", 550, "Virus detected; content rejected", "virus"),
    ("5.7.1", 550, "This message looks like spam", "spam"),
    ("5.7.1", 550, "Message rejected due to local policy", "policy"),
    ("5.7.1", 550, "Recipient address rejected: Access denied", "policy"),
    ("4.7.0", 421, "Too many connections from your host", "rate_limited"),
    ("", 452, "Too many recipients", "rate_limited"),
    ("5.2.0", 550, "Unknown user a@docomo.ne.jp", "refused"),
    ("5.2.0", 550, "Mail rejete. ofr_506", "refused"),  # RFC 3463 §3.3: the mailbox is there
    ("", 554, "Message rejected: Email address is not verified.", "sender_rejected"),
    ("5.2.1", 550, "User unknown", "refused"),  # RFC 3463 §3.3: it is there
    ("4.1.1", 450, "<a@b.example>: Recipient address rejected: User unknown", "user_unknown"),  # temporary is never hard
    ("4.4.4", 0, "Host or domain name not found. Name service error: Host not found", "host_unknown"),
    ("5.4.6", 554, "Too many hops", "network"),
    ("4.4.1", 0, "connect to b.example[192.0.2.1]:25: Connection timed out", "network"),
    ("5.4.7", 0, "message expired", "expired"),
    ("4.4.3", 0, "Host not found, try again", "network"),
    ("4.3.0", 451, "", "system"),
    ("5.3.2", 550, "System not accepting network messages", "system"),  # for maintenance: RFC 3463 §3.4
    ("5.5.1", 503, "Bad sequence of commands", "syntax"),
    # Somebody or something is unknown, but not the recipient.
    ("", 550, "Invalid HELO: host not found", "reputation"),
    ("5.7.1", 550, "your hostname does not exist", "reputation"),
    ("", 550, "reverse lookup: host not found for 192.0.2.1", "reputation"),
    ("5.1.1", 550, "Sorry, your sending IP is invalid", "reputation"),
    ("", 550, "The IP address 192.0.2.1 does not exist in DNS", "reputation"),
    ("", 550, "No MX record for sender domain", "sender_rejected"),
    ("", 550, "Your domain has no MX record", "sender_rejected"),
    ("", 550, "From domain non-existent", "sender_rejected"),
    ("5.7.1", 550, "DKIM key does not exist", "authentication"),
    ("", 550, "Authentication required; unknown user", "security"),
    ("5.7.8", 535, "unknown user or wrong password", "security"),
    ("5.7.8", 535, "no such user", "security"),
    ("5.7.1", 550, "unknown user in From header", "content"),
    ("5.6.0", 550, "To: header address invalid", "content"),
    ("", 550, "Invalid recipient header", "content"),
    ("", 550, "This user does not accept mail from your domain", "refused"),
    ("", 550, "mailbox not available at this time, try again later", "mailbox_disabled"),
    ("", 550, "mailbox unavailable due to local policy", "policy"),
    ("5.7.0", 530, "Must issue a STARTTLS command first", "security"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code", "text", "reason"), HARD)
def test_who_does_not_exist_is_hard(status: str, code: int, text: str, reason: str) -> None:
    found = classify(status, code, text)
    assert (found.class_, found.reason.value, found.suppresses) == ("hard", reason, True)
    assert not found.counts


@pytest.mark.parametrize(("status", "code", "text", "reason"), SOFT)
def test_all_else_is_not(status: str, code: int, text: str, reason: str) -> None:
    found = classify(status, code, text)
    assert (found.class_, found.reason.value, found.suppresses) == ("soft", reason, False)


@pytest.mark.parametrize("text", ["", "Rejected", "Transaction refused [XYZ-1]", "a@b.example no-such-user@c.example"])
def test_a_refusal_that_nobody_understands_is_undetermined(text: str) -> None:
    found = classify("5.0.0", 550, text)
    assert (found.class_, found.reason, found.suppresses, found.counts) == (
        "undetermined",
        Reason.UNKNOWN,
        False,
        False,
    )


def test_an_address_in_a_reply_says_nothing() -> None:
    assert classify("5.7.1", 550, "<user-unknown@spamhaus.example>: refused by policy").reason is Reason.POLICY


def test_after_data_a_user_that_is_unknown_does_not_want_it() -> None:
    assert classify("", 550, "User unknown", stage=Stage.RCPT).class_ == "hard"
    assert classify("", 550, "User unknown", stage=Stage.DOT).reason is Reason.REFUSED
    assert classify("", 550, "Domain not found", stage=Stage.MAIL).reason is Reason.SENDER_REJECTED
    assert classify("5.2.1", 550, "User unknown", stage=Stage.RCPT).class_ == "hard"
    yahoo = "delivery error: dd This user doesn't have a yahoo.com account (a@yahoo.com) [0]"
    assert classify("", 554, yahoo, stage=Stage.DOT).class_ == "hard"


@pytest.mark.parametrize("action", ["delivered", "Relayed", "expanded"])
def test_what_was_done_is_no_failure(action: str) -> None:
    found = classify("2.0.0", 0, "", action)
    assert (found.class_, found.reason.value) == ("", action.lower())


def test_what_is_late_is_soft() -> None:
    assert classify("5.1.1", 550, "User unknown", "delayed").class_ == "soft"
    assert classify("", 0, "", "delayed").class_ == "soft"


def test_what_counts_is_about_the_mailbox_alone() -> None:
    assert classify("5.2.2", 552, "mailbox full").counts
    assert not classify("5.7.1", 550, "blocked by reputation").counts
    assert not classify("4.7.0", 421, "rate limited").counts
    assert not classify("5.7.1", 550, "policy").counts


def test_codes_are_found_in_text() -> None:
    assert codes("host said: 550 5.1.1 <a@b.example> unknown") == (550, "5.1.1")
    assert codes("550-5.0.0 hello 550 5.7.1 there") == (550, "5.7.1")  # the first that says anything
    assert codes("[192.0.2.550] http://x.example/550 5.1.1.2") == (0, "")
    assert codes("ERROR_CODE :550, ERROR_CODE :5.1.1") == (550, "5.1.1")


@given(st.text(max_size=3000), st.sampled_from(["", "5.1.1", "4.2.2", "5.0.0", "x"]), st.integers(0, 599))
def test_any_text_has_a_verdict(text: str, status: str, code: int) -> None:
    found = classify(status, code, text)
    if found.class_ == "hard":
        assert found.suppresses
    if 400 <= code < 500 or status.startswith("4"):
        assert found.class_ in ("soft", "")


def test_every_reason_is_explained() -> None:
    text = (Path(__file__).parents[2] / "docs" / "bounces.md").read_text()
    assert {reason.value for reason in Reason} <= set(re.findall(r"`(\w+)`", text))
