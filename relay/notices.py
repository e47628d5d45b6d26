"""Which report is sent, to whom, and by which way out. Owns the rules of RFC 3461 §5 and of `dsn`; `bounce` writes the text.

Promises: never a report to the null sender, nor one about a report about a report, so that no loop can begin; what is not
sent is counted, and said where an operator could do something about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay import bounce, metrics
from relay.envelope import UTF8, queue_id
from relay.maillog import INFO, WARNING, MailLog
from relay.policy.classes import choose_class
from relay.policy.routing import OVERRIDE, Action, Answers, Facts, Route, Undecided
from relay.recipient import News
from relay.reply import Reply
from relay.routed import begin, refusal
from relay.settings import Config, Dsn
from relay.spool import End, NewMessage, Notify, Original, Report
from relay.submission import BadMessage, Head, decoded, read_head

REPORT, REPORT_ON_REPORT = 1, 2

REPORTS = metrics.Counter("relay_reports_total", "Reports to senders, made or not", ["news", "result"])


class Reports:
    """The spool's Reporter. `config` returns the generation in force, `token` what nobody can guess."""

    def __init__(
        self, config: Callable[[], Config], next_id: Callable[[], int], token: Callable[[], str], log: MailLog
    ) -> None:
        self._config, self._next_id, self._token, self._log = config, next_id, token, log

    def make(self, original: Original, ends: Sequence[End], now: float) -> Report:
        news = ends[0].tell.news
        try:
            return self._make(self._config(), original, ends, news, now)
        except Exception as error:  # noqa: BLE001 - what happened must be recorded, told or not
            why = f"no report: internal trouble ({type(error).__name__})"
            return Report(original.id, news, "error", why=why, hint=repr(error))

    def _make(self, config: Config, original: Original, ends: Sequence[End], news: News, now: float) -> Report:
        ends = [e for e in ends if Notify(e.notify).wants(news)]
        if not ends:
            return Report(original.id, news, "unwanted")
        to, result, why = addressee(config.dsn, original, news, now)
        if not to:
            hint = "set dsn.postmaster to hear of such" if result == "null_sender" else ""
            return Report(original.id, news, result, why=why, hint=hint)
        message = self._message(config, to, original, ends, news, now)
        message.report = REPORT_ON_REPORT if result == "double_bounce" else REPORT
        refused = _route(config, message, to, now)
        if refused:
            hint = f'name an account in dsn.via that may send as "", or a route for the sender "" to {to}; or dsn: {{to: none}}'
            return Report(original.id, news, "no_route", why=f"no report to {to}: {refused.text}", hint=hint)
        return Report(original.id, news, result, message, f"{news.value}, to {to}")

    def _message(
        self, config: Config, to: str, original: Original, ends: Sequence[End], news: News, now: float
    ) -> NewMessage:
        head, number = _head(original.head), self._next_id()
        fields = dict(reversed(head.fields)) if head else {}
        full = original.ret == "FULL" and news is News.FAILED  # RFC 3461 §4.3
        written = bounce.write(
            news,
            bounce.Original(
                original.id,
                original.accepted_at,
                original.head,
                original.envid,
                decoded(fields.get(b"subject", b"")),
                fields.get(b"message-id", b"").decode("ascii", "replace").strip(),
                bool(original.smtp & UTF8),
                original.body if full else None,
                full and original.body is None,
                _whose(original, to),
            ),
            [_about(config, end) for end in ends],
            to=to,
            hostname=config.hostname,
            number=number,
            now=now,
            token=self._token(),
        )
        return NewMessage(
            id=number,
            sender="",
            header_from=f"MAILER-DAEMON@{config.hostname}",
            user="",
            class_="",
            tag="",
            listener="",
            client="",
            priority=0,
            accepted_at=now,
            head=written.head,
            body=written.body,
            body_size=len(written.body),
            smtp=written.needs,
            recipients=[],
        )

    def tell(self, reports: Sequence[Report]) -> None:
        """On the loop, once they are durable: count and log."""
        for report in reports:
            if report.result in ("unwanted", "early"):
                continue
            REPORTS.inc(1, report.news.value, report.result)
            if report.message is not None:
                to = report.message.recipients[0]
                self._log.event(
                    "reported",
                    id=queue_id(report.original),
                    news=report.news.value,
                    report=queue_id(report.message.id),
                    recipient=to.address,
                    why=to.why,
                )
            elif report.why:
                level = INFO if report.result == "null_sender" else WARNING
                self._log.event(
                    "not_reported",
                    level,
                    id=queue_id(report.original),
                    news=report.news.value,
                    why=report.why,
                    hint=report.hint,
                )


def addressee(dsn: Dsn, original: Original, news: News, now: float) -> tuple[str, str, str]:
    """(who is told, or nobody; the result; why nobody is, where that is worth a line)."""
    if dsn.to == "none":
        return "", "off", ""
    if news is News.DELAYED:
        start = max(original.accepted_at, original.send_at)
        if dsn.delay_after is None or now < start + dsn.delay_after:
            return "", "early", ""
    if original.report >= REPORT_ON_REPORT:
        return "", "dropped", "no report: this is one about a report already"
    if original.sender:
        return original.sender if dsn.to == "sender" else dsn.to, "made", ""
    # RFC 5321 §4.5.5, §6.1: what has no sender makes no report, except to whom we ourselves are answerable.
    if news is not News.FAILED:
        return "", "unwanted", ""
    if dsn.postmaster:
        return dsn.postmaster, "double_bounce", ""
    return "", "null_sender", "no report: the message has no sender"


def _route(config: Config, message: NewMessage, to: str, now: float) -> BadMessage | None:
    """Gives the report its class and its one recipient; or says why the rules refuse it."""
    table, dsn = config.table, config.dsn
    head = _head(message.head) if config.asks_headers else None
    facts = Facts("", to, from_=message.header_from, tag="", size=len(message.head) + message.body_size,
                  headers=head.headers() if head else None)  # fmt: skip
    class_ = choose_class(config.classes, "", facts)
    facts = Facts("", to, from_=facts.from_, class_=class_.name, tag="", size=facts.size, headers=facts.headers)
    ask = Answers(facts)
    if dsn.via in table.ways:
        route: Route | Undecided | None = table.unless_captured(Route(OVERRIDE, Action.VIA, via=(dsn.via,)), ask)
    else:
        route = table.pick(ask)
    assert not isinstance(route, Undecided)
    refused = refusal(table, route, facts)
    if not refused:
        via = dsn.via if dsn.via in table.ways else ""
        message.class_, message.priority = class_.name, int(class_.priority)
        message.recipients = [begin(table, route, None, facts, ask, class_, now, {"via": via}, message.id)]
    return refused


def _whose(original: Original, to: str) -> str:
    if not original.sender:
        return "A message without a sender"
    return "Your message" if to == original.sender else f"The message from <{original.sender}>"


def _about(config: Config, end: End) -> bounce.About:
    reply = Reply.parse(end.last_reply)
    # At intake and since a reload it is a rule that refuses: then no egress was tried.
    by_rule = end.tell.news is News.FAILED and not end.egress and not end.tell.expired and not end.in_doubt
    if by_rule and not end.last_reply:
        reply = Reply(0, end.why.removeprefix("rejected: "))
    if not end.remote and _leaves_by_mx(config, end):
        # What we found ourselves, in the DNS or at several hosts: no server said that as it stands there (RFC 3464 §2.3.6).
        reply = Reply(0, reply.text, reply.enhanced)
    return bounce.About(
        end.address,
        reply,
        _remote(config, end),
        end.orcpt,
        end.tell.at if end.tell.tried else 0.0,
        end.expires_at if end.tell.news is News.DELAYED else 0.0,
        end.tell.expired,
        end.in_doubt and end.tell.news is News.FAILED,
        by_rule,
    )


def _remote(config: Config, end: End) -> str:
    """The name of the server that said it: by MX which of them that was is in the row, `mx.example.net[192.0.2.1]:25`."""
    if end.remote.startswith("["):
        return end.remote.partition("]")[0] + "]"
    if end.remote:
        return end.remote.partition("[")[0]
    account = config.accounts.get(end.egress)
    named = account is not None and account.source is None and account.host.kind == "plain"
    return account.host.target if account is not None and named else ""


def _leaves_by_mx(config: Config, end: End) -> bool:
    account = config.accounts.get(end.egress)
    return account is not None and account.source is not None


def _head(text: bytes) -> Head | None:
    try:
        return read_head(text)
    except BadMessage:
        return None
