"""The part of a report that is made for people: where it ends, whom it names, what was said of whom, and in reply to what. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

from relay.reply import Stage

MOST_LINES = 600  # of a report; what follows is not looked at
MOST_LINE = 2000  # characters of one
MOST_TEXT = 100_000  # characters that are looked at
MOST_RECIPIENTS = 100
_MOST_ADDRESSES = 2000  # that are asked whether they are a recipient's
_MOST_WORDS = 3000

ADDRESS = re.compile(
    r"(?<![\w.+/=@-])(?:\"[^\"\s@]{1,64}\"|[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\u0080-\U0010ffff-]{1,100})"
    r"@(?:\[[0-9A-Fa-f.:IPv]{7,50}\]|[A-Za-z0-9\u0080-\U0010ffff_-]{1,63}(?:\.[A-Za-z0-9\u0080-\U0010ffff_-]{1,63})*)"
)

# Where the message that came back begins. Each in the words of some product, with or without its rule of dashes.
_RETURNED = re.compile(
    r"""^[\s>|]*(?:
        [-=_*|+~\s]{2,}\s*(?:this\ is\ a\ copy\ of|(?:below\ this\ line\ is|enclosed\ is|included\ is)\ (?:a|the)|
        (?:the\ )?(?:full\ )?original\ (?:message|mail)|
            the\ (?:header|body|headers)\ of\ the|(?:un(?:sent|delivered)|returned|bounced|failed|
            rejected)\ (?:e-?)?(?:mail|message)(?:\s|-|$)|
            message\ (?:header|text|headers|body|content)s?\b|(?:header|headers|text|body)\ of\ (?:the\ )?|
            forwarded\ message|attached\ (?:is|message)|
            ursprüngliche|urspr.ngliche\ nachricht|mensaje\ original|message\ d'origine|messaggio\ originale|
            mensagem\ original|原文|以下)|
        (?:the\ )?(?:original|returned|unsent|undelivered|bounced)\ (?:message|mail|e-?mail|
        text)(?:\ text)?\ (?:follows|is\ (?:attached|below|included)|headers?\b|as\ follows)|
        (?:original|your)\ (?:mail|message)\ (?:as\ follows|follows)|
        message\ (?:headers?|text|body)\ follows?|(?:your\ )?(?:original\ )?message\ headers?:?\s*$|
        original\ message\ headers?|
        (?:below|here|following|attached|included)\ is\ (?:a\ copy\ of\ )?(?:the|your)\ (?:original\ |message\ |
        returned\ |rejected\ |full\ )?(?:message|header|mail|copy)|
        included\ is\ a\ copy|a\ copy\ of\ (?:the|your)\ (?:original\ )?message|the\ (?:first|header)\ .{0,20}(?:lines?|
        headers?)\ of\ (?:the|your)\ (?:original\ )?message|
        bounced\ e-?mail:|the\ attachment\ contains\ the\ original|your\ message\ (?:reads|was\ as\ follows|
        began\ as\ follows)|
        received:\s+(?:from|by|\()|return-path:\s*<|x-apparently-from:|-+\s*end\ of\ report
    )""",
    re.IGNORECASE | re.VERBOSE,
)  # fmt: skip


def parted(text: str) -> tuple[str, str]:
    """What the report says, and what it returns. Lines are cut, and so is their number."""
    lines = [line[:MOST_LINE].rstrip() for line in text[:MOST_TEXT].split("\n", MOST_LINES)[:MOST_LINES]]
    for n, line in enumerate(lines):
        if n and len(line) < 300 and _RETURNED.match(line) and any(one.strip() for one in lines[:n]):
            rest = n if re.match(r"[\w-]+:\s", line) else n + 1
            while (
                rest < len(lines)
                and (not lines[rest].strip() or not re.match(r"\s*[\w-]+:", lines[rest]))
                and rest < n + 6
            ):
                rest += 1
            return "\n".join(lines[:n]), _outdented(lines[rest:])
    return "\n".join(lines), ""


def _outdented(lines: list[str]) -> str:
    """A header block that was indented as a whole, as it was."""
    pad = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
    return "\n".join(line[pad:] if not line[:pad].strip() else line for line in lines)


# An address is a recipient where it heads a line, or where the words before it say so.
_HEADS = re.compile(r"""^[\s*>•·|"'-]*(?:\d{1,3}[.)]\s+)?(?:[45]\d\d[ -])?\s*(?:\S{0,40} )?[<"'(\[]*$""")
_LEADS = re.compile(
    r"""(?:rcpt\ ?to|message-id\ in|recipients?|recipient\ address|(?:final|original)-recipient|failed\ (?:recipient|address)|
    target\ mail\ address|email|e-?mail\ address|
        (?:e-?mail|mail|message|delivery|deliver(?:ed|able)?|sen[dt]|reach|forward(?:ed)?|undeliverable|failed|returned|
        rejected|relay(?:ed)?|bounced)\ (?:your\ )?(?:(?:e-?mail|mail|message|it)\ )?(?:was\ )?(?:to|for|
        by)(?:\ (?:the\ )?(?:following\ )?(?:e-?mail\ )?(?:address(?:es)?|recipients?|users?|account))?|
        (?:the\ )?(?:address|addressee|user|mailbox|account|recipient|destination)|allowed\ size|attempts|
        permanent\ errors?|transient\ errors?|unknown\ (?:user|host)|user\ ?id|invalid\ (?:recipient|address)|
        user\ unknown|adresse|addressed\ to|
        (?:destinataire|destinatario|destinatário|empfänger|получател\w+|收件人|宛先|could\ not\ be\ delivered\ to|
        gateway\ for|problem\ with|addressed\ to|wasn't\ delivered\ to|(?:not|n't)\ (?:be\ )?(?:delivered|
        sent)\ to)(?:\(s\))?
    )\s*(?:is|was)?\s*[:=;,.-]*\s*(?:rfc822;\s*|smtp;\s*)?[<"'(\[「“]*$""",
    re.IGNORECASE | re.VERBOSE,
)
_NOT_HIS = re.compile(
    r"(?:\bfrom|mail from|sender|reply-to|return-path|contact|assistance|please (?:send|write|e-?mail)|postmaster "
    r"at|message-id(?! in)|reporting-mta|help|support|administrator)\b[^@]{0,60}$",
    re.IGNORECASE,
)


def recipients(said: str, without: Iterable[str] = ()) -> list[str]:
    """Whom a report names, in its order. `without`: those who have their place in it as somebody else."""
    others = {one.lower() for one in without}
    found: dict[str, str] = {}
    left = _MOST_ADDRESSES
    for line in said.split("\n"):
        for match in ADDRESS.finditer(line) if "@" in line and left > 0 else ():
            left -= 1
            address, before = _trimmed(match[0]), line[: match.start()]
            if "@" not in address or address.lower() in others or _NOT_HIS.search(before[-120:]):
                continue
            if (_HEADS.match(before[:80]) and len(before) < 80) or _LEADS.search(before[-120:]):
                found.setdefault(address.lower(), address)
        if len(found) >= MOST_RECIPIENTS:
            break
    return list(found.values())


def _trimmed(address: str) -> str:
    return address.strip("'`.*").removesuffix("...").rstrip(".")


class Said:
    """What a report says, and of whom each of its lines speaks."""

    def __init__(self, text: str, named: Iterable[str]) -> None:
        known = {one.lower() for one in named}
        self._lines: list[tuple[str, set[str]]] = []
        for line in text.split("\n"):
            found = {_trimmed(match[0]).lower() for match in ADDRESS.finditer(line)} if "@" in line else set()
            self._lines.append((line.strip(), found & known))

    def about(self, address: str) -> str:
        """What is said of one: the lines that name him, each with what follows it up to an empty line or somebody else."""
        mine = address.lower()
        kept: list[str] = []
        follows = 0
        for line, named in self._lines:
            if mine in named:
                follows = 30
            elif named:
                follows = 0
            elif not line:
                # One empty line between a name and what is said of it, as many put it.
                follows = 12 if follows == 30 else 0
                continue
            elif follows:
                follows -= 1
            if follows:
                kept.append(line)
        return "\n".join(kept)[:_MOST_WORDS]


_STAGES: tuple[tuple[Stage, re.Pattern[str]], ...] = (
    (
        Stage.DOT,
        re.compile(
            r"in reply to (?:end of )?DATA|"
            r"after (?:pipelined )?(?:end of data|DATA|sending data block|"
            r"I sent the message)|(?:DATA|TEXT) command|SMTP command\s{1,9}DATA|"
            r"\(DATA\)|"
            r"\[BODY\]|\[DATA\]|>>> \.\s{1,40}<<< [45]|"
            # sendmail pipelines: where its own sentence below names the recipient, it was RCPT that was refused.
            r"\(state 1[5-8]\)|SMTP:DATA|did not like our (?:final )?DATA|failed on DATA|"
            r"SMTP transmission failure has occurred|"
            r">>> DATA\s{1,40}(?:<<< [45][^\n]{0,1000}(?:\n\s{0,40}|$)){1,20}+(?!5\d\d [^\n]{0,400}\.\.\.)|"
            r"end of message|while sending (?:the )?message body",
            re.IGNORECASE,
        ),
    ),
    (
        Stage.MAIL,
        re.compile(
            r"in reply to MAIL FROM|SMTP:MAIL|does not like sender|rejected MAIL FROM address|\(state 13\)|"
            r"after (?:pipelined )?MAIL FROM|MAIL FROM command|SMTP command\s{1,9}MAIL|\[MAIL_FROM\]|"
            r">>> MAIL From:[^\n]{0,400}\n\s{0,40}<<< [45]|did not like our MAIL FROM",
            re.IGNORECASE,
        ),
    ),
    (
        Stage.RCPT,
        re.compile(
            r"in reply to RCPT TO|\(state 14\)|after (?:pipelined )?RCPT TO|RCPT(?: TO)? command|SMTP command\s{1,9}RCPT|\[RCPT_TO\]|"
            r">>> RCPT To:[^\n]{0,400}\n\s{0,40}<<< [45]|did not like our RCPT TO|SMTP:RCPT|does not like recipient",
            re.IGNORECASE,
        ),
    ),
)  # fmt: skip


def stage(words: str) -> Stage | None:
    """Which command a refusal answered, where the report says so; of several the first."""
    found = [(match.start(), one) for one, pattern in _STAGES if (match := pattern.search(words[: _MOST_WORDS * 4]))]
    return min(found)[1] if found else None


_DELAYED = re.compile(
    r"\bwarning\b.{0,60}(?:could not send|not (?:be )?(?:been )?(?:sent|delivered)|delay|still)|"
    r"delivery (?:of .{0,40})?(?:has been |was |is )?(?:temporarily )?(?:delayed|suspended)|"
    r"\bhas not (?:yet )?been (?:delivered|collected)|(?:message|mail) (?:is |was |has been |that .{0,40})?delayed|"
    r"not yet been delivered|delivery delay|still (?:being )?(?:tr(?:y|ied)|queued|in the queue)|"
    r"\bwill (?:continue|keep) (?:to (?:try|be)|trying)|no action is required on your part|"
    r"you do not need to re-?send|delivery attempts will continue|temporary failure report|verzögert|"
    r"zustellung .{0,30}verz",
    re.IGNORECASE,
)  # fmt: skip


def delayed(text: str) -> bool:
    """Whether a report says that it is tried on."""
    return _DELAYED.search(text[:_MOST_WORDS]) is not None
