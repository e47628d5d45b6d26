"""Reports of what was not delivered that are no RFC 3464: of the systems before it, and of those that never heard of it. Pure.

What makes a mail such a report is a machine that sends it and words that machines begin with; quotes, replies and newsletters
have neither. Then it says whom it is about and what happened, each in the words of its product.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.message import Message

from flufl.bounce import all_failures

from relay.policy.bounces import Reason, Verdict, classify, codes
from relay.reply import clean
from relay.returned import Finding, Kind
from relay.returned.dsn import firmly, read_fields, returned_by, when
from relay.returned.original import mailbox, mailboxes
from relay.returned.parts import Mail, split
from relay.returned.transcript import MOST_TEXT, Said, delayed, parted, recipients, stage

_FIELDS = re.compile(r"^[ \t>]{0,20}(?:final|original)-recipient[ \t]{0,10}:", re.IGNORECASE | re.MULTILINE)
_BEGIN = 2500  # characters in which a report says what it is

_MACHINE = re.compile(
    r"\b(?:mailer[-_. ]?daemon|post[-_.]?master|mail[-_. ]?delivery|mail[-_. ]?system|mdaemon|mail-?daemon|mail "
    r"administrator|delivery[-_. ]?(?:sub)?system|"
    r"system administrator|interscan|surfcontrol|mail security|e-?mail filter|microsoft exchange|mailsweeper|"
    r"mailmarshal|bounces?|mailerdaemon)\b",
    re.IGNORECASE,
)
_NOBODY = re.compile(r"\b(?:no-?reply|do-?not-?reply|[\w.-]{0,40}-admin|owner-[\w.-]{0,40})@", re.IGNORECASE)
_SUBJECT = re.compile(
    r"undeliver|returned (?:mail|to sender)|return(?:ing)? (?:message )?to sender|"
    r"delivery (?:status|fail|report|error|problem|notification|has failed|delay|incomplete)|"
    r"mail (?:delivery|system error|fail|error)|"
    r"failure (?:notice|notification|delivery)|delivery failure|non[- ]?deliver|"
    r"could not (?:be )?(?:sen[dt]|deliver)|cannot send message|unzustellbar|"
    r"message (?:delivery|not delivered|delayed|you sent blocked)|not delivered|не доставлен|недоставлен|"
    r"\bdeferred\b|échec|non (?:remis|recapitat|distribu)|no entregad|falha|fallo|loop alert|error sending|"
    r"mail could not|配信|送信(?:エラー|できません)|退信|系统退信|无法投递",
    re.IGNORECASE,
)
_REPLY = re.compile(r"^\s*(?:re|aw|sv|antw|fwd?|wg|tr|rv|回复|转发)\s?:", re.IGNORECASE)
_BULK = ("list-unsubscribe", "list-id", "feedback-id")

# What reports begin with.
_SIGNS = re.compile(
    r"""this\ (?:message|mail)\ was\ created\ automatically\ by|(?:could|can)\ ?not\ be\ delivered\ to|
    was\ not\ delivered\ to|did\ not\ reach\ the\ following|(?:hi\.\ )?this\ is\ the\ (?:qmail|mailer-daemon|postfix|
    dragonfly|mail\ (?:system|delivery)|[\w.-]{1,60}\ (?:program|mail(?:er)?\ (?:system|agent)))|
        (?:following|failed|these)\ (?:e-?mail\ )?(?:address|recipient)(?:es|s|\(es\)|\(s\))?\ (?:had|failed|follow|was|
        were|has|have|could|returned)|transcript\ of\ (?:the\ )?session|(?:unable|trying|attempting|
        failed)\ to\ deliver|error\ (?:was\ )?(?:occurred\ while\ |delivering\ )|
        delivery\ (?:to|of)\ (?:the\ )?(?:following\ )?.{0,80}(?:fail|delay|abort|was\ not|has\ been|could)|
        delivery\ (?:has\ )?failed|delevery\ to|delivery\ status\ notification|i'm\ sorry\ to\ have\ to\ inform|(?:un|
        non-?)deliverable\ (?:to|mail|message)|undelivered\ mail|unable\ to\ (?:be\ )?deliver|mailbox\ exceeds\ allowed|
        unknown\ (?:user|host):|invalid\ (?:final\ delivery\ )?user(?:id)?\b|invalid\ user\ address|failure\ reasons|
        failed\ recipient|delivery\ problems|non-delivered\ information|server\ message|transcript\ of\ the\ attempts|
        each\ of\ the\ following\ recipients|(?:message|mail|it)\ (?:was|has|is)\ (?:been\ )?(?:rejected\ by|
        returned\ (?:to|by)|undeliverable|not\ delivered|bounced)|we\ had\ trouble\ delivering|trouble\ sending|
        (?:sorry,?\ )?we\ were\ unable\ to\ deliver|smtp\ (?:error|server)\b.{0,80}(?:refused|from\ remote|reject|
        after)|message\ (?:could\ not|couldn't|wasn't|can't|cannot)\ (?:be\ )?(?:sent|delivered)|message\ log\ follows|
        duplicated\ message-id|your\ (?:e-?mail|mail|message)\ (?:to|could|can|wasn't|sent\ on|was\ not)|
        technical\ (?:report|details)|reporting-mta:|the\ (?:user|recipient|mailbox|
        address)\b.{0,60}(?:does\ not\ exist|is\ full|over\ quota)|address\ not\ found|
        не\ может\ быть\ доставлено|kann\ nicht\ zugestellt|konnte\ nicht\ (?:zugestellt|gesendet)|nicht\ zustellbar|
        n'a\ pas\ pu\ être|no\ se\ (?:ha\ podido|pudo)\ entregar|non\ è\ stato\ possibile|
        não\ (?:pôde|pode|foi)\ |配信できません|送信できません|お届けできません|届けることができません|无法投递|退回|
        warning:\ (?:could|message)|>>>\ (?:rcpt|
        mail|data|quit)|<<<\ [45]\d\d|\b5[05]\d[ -]5\.\d\.\d|the\ message\ you\ (?:sent|e-?mailed)|
        following\ message\ to|failed\ permanently|
        the\ recipient\ name\ is\ not\ recognized|msexch:|your\ server\ has\ rejected|google\ groups|
        permanent\ (?:fatal\ )?(?:error|failure)|could\ not\ send\ message
    """,
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip


def read_other(mail: Mail, raw: bytes) -> list[Finding]:
    """`raw`: for what the parser found no text in. Empty: it is no such report."""
    text = _text(mail, raw)
    said, returned = parted(text)
    if not _is_report(mail, said):
        return []
    if _FIELDS.search(text[:MOST_TEXT]):
        fields = read_fields(mail, text, said)
        if any(one.recipient for one in fields):
            return fields
    about_it = returned_by(mail, returned)
    named = _recipients(mail, said, about_it.recipients, about_it.sender)
    late = delayed(f"{mail.first('subject')} {said}")
    spoken = Said(said, named)
    found = []
    for address in named or [""]:
        narrow = spoken.about(address)
        status, verdict = judged((narrow if len(named) > 1 else "") or said, late, narrow)
        found.append(
            Finding(
                Kind.BOUNCE,
                recipient=address,
                status=status,
                class_=verdict.class_,
                reason=verdict.reason.value,
                action="delayed" if late else "failed",
                diagnostic=clean(_reply(narrow or said)),
                reporter=mailbox(mail.first("from")).rpartition("@")[2],
                queue_id=about_it.queue_id,
                token=about_it.token,
                message_id=about_it.message_id,
                sender=about_it.sender,
                at=when(mail.first("date")),
            )
        )
    return found


def _text(mail: Mail, raw: bytes) -> str:
    text = mail.text
    if text.strip():
        return text
    return split(raw)[1][: 256 << 10].decode("utf-8", "replace").replace("\r\n", "\n")


def _is_report(mail: Mail, said: str) -> bool:
    if mail.first("x-failed-recipients"):
        return True
    sender, subject = mail.first("from"), mail.first("subject")
    reported = (
        mail.type == "multipart/report" and mail.parameters.get("report-type", "delivery-status") == "delivery-status"
    )
    machine = (
        reported or bool(_MACHINE.search(sender)) or mail.first("return-path").strip() in ("<>", "<MAILER-DAEMON>")
    )
    if not machine and (_REPLY.match(subject) or any(mail.first(name) for name in _BULK)):
        return False
    begin = "\n".join(line for line in said[:_BEGIN].split("\n") if not line.startswith(">") or line.startswith(">>>"))
    signed = _SIGNS.search(begin) is not None
    if machine:
        return signed or _SUBJECT.search(subject) is not None
    nobody = _NOBODY.search(sender) is not None or sender.strip() in ("", "<>")
    return signed and nobody and bool(recipients(said, mailboxes(mail.first("to"))))


def _recipients(mail: Mail, said: str, to: Sequence[str], sender: str) -> list[str]:
    failed = mailboxes(mail.first("x-failed-recipients"))
    if failed:
        return list(dict.fromkeys(failed))
    own = {one for name in ("from", "reply-to") for one in mailboxes(mail.first(name))}
    back = {*mailboxes(mail.first("to")), sender}
    named = recipients(said, own)
    others = [one for one in named if one.lower() not in {address.lower() for address in back}]
    if others or named:
        return others or named
    return _by_flufl(mail, said) or [one for one in to if one not in own][:1] or list(to[:1])


def _by_flufl(mail: Mail, said: str) -> list[str]:
    """Of Mailman's own detectors, on the words alone: their bounds are ours."""
    message = Message()
    message["From"] = mailbox(mail.first("from")) or "<>"  # one of them wants an address, whatever it is
    for name in ("Subject", "X-Mailer"):
        if value := mail.first(name):
            message[name] = " ".join(value[:300].split())
    message.set_payload("\n".join(line[:200] for line in said.split("\n")[:100]))
    try:
        temporary, permanent = all_failures(message)
    except (ValueError, TypeError, AttributeError, LookupError, AssertionError):
        return []
    return sorted(one.decode("ascii", "replace") for one in {*temporary, *permanent} if b"@" in one)


def judged(words: str, late: bool, narrow: str) -> tuple[str, Verdict]:
    """`narrow`: the words that stand with the address."""
    action = "delayed" if late else "failed"
    for text in (narrow, words):
        reply = _reply(firmly(text, MOST_TEXT))
        if not reply.strip():
            continue
        code, status = codes(reply)
        verdict = classify(status, code, reply, action, stage(text) or stage(words))
        if verdict.reason is not Reason.UNKNOWN:
            return status, verdict
    code, status = codes(_reply(narrow) or words)
    return status, classify(status, code, firmly(words, MOST_TEXT), action, stage(words))


_QUOTES = re.compile(
    r"(?:\bsaid|<<<|\breason|server returned was|following error message|error message below|remote host said|error "
    r"was|diagnostic(?:-code)?|failure notice|generated response|because)\s*:?\s*",
    re.IGNORECASE,
)
_END = re.compile(
    r"\b(?:giving up on|i'm not going to try again|this is a permanent error|i've given up|"
    r"sorry it didn't work out|no further delivery attempts)\b",
    re.IGNORECASE,
)


def _reply(words: str) -> str:
    """Of what is said of one, what the other server said; all of it where nothing tells them apart."""
    words = (
        _END.split(" ".join(words.split()), maxsplit=1)[0]
        if "said" in words
        else _END.sub(" ", " ".join(words.split()))
    )
    found = _QUOTES.search(words)
    rest = words[found.end() :] if found else ""
    return rest if len(rest) > 8 else words
