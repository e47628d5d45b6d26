"""What the command does: from its words to an exit code."""

from __future__ import annotations

import os
import pwd
import re
import smtplib
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress

from relay.addressees import Unreadable, destinations, mailboxes
from relay.sendmail.content import Message, normalised
from relay.sendmail.options import DATA, NO_USER, NOPERM, TEMPORARY, USAGE, Failed, Options, parse
from relay.sendmail.submit import Submission, connect, server

MAILNAME = "/etc/mailname"  # mailname(5): the domain of mail from this machine, where Debian keeps it
LONGEST_FULL_NAME = 60
_DOMAIN = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,250}[A-Za-z0-9_])?")


def main() -> None:
    sys.exit(run(sys.argv[1:], os.path.basename(sys.argv[0])))


def run(words: Sequence[str], program: str = "sendmail") -> int:
    """The exit code; what went wrong stands on standard error."""
    try:
        options = parse(words, program)
        match options.mode:
            case "smtp":
                from relay.sendmail.pipe import pipe

                return pipe(*server(os.environ))
            case "queue":
                from relay.sendmail.mailq import show

                return show()
            case "send":
                return send(options)
        return 0  # there are no aliases to build anew, and the queue runs by itself
    except Failed as error:
        return _told(str(error), error.code)
    except smtplib.SMTPAuthenticationError as error:
        said = error.smtp_error.decode("utf-8", "replace") if isinstance(error.smtp_error, bytes) else error.smtp_error
        return _told(
            f"the relay refused the login: {error.smtp_code} {said}", NOPERM if error.smtp_code >= 500 else TEMPORARY
        )
    except smtplib.SMTPNotSupportedError as error:
        return _told(f"the relay's listener does not offer it: {error}", NOPERM)
    except (smtplib.SMTPException, OSError) as error:
        host, port = server(os.environ)
        why = getattr(error, "strerror", None) or error
        return _told(f"no relay answers at {host} port {port}: {why}; nothing was sent, try again later", TEMPORARY)
    except KeyboardInterrupt:
        return _told("interrupted; nothing was sent", TEMPORARY)


def _told(text: str, code: int) -> int:
    _say(2, f"sendmail: {''.join(c if c.isprintable() else '?' for c in text)}")
    return code


def _say(descriptor: int, line: str) -> None:
    """Whether anybody hears it or not: the exit code is to tell of the message, which may have been taken by now."""
    with suppress(OSError):
        os.write(descriptor, f"{line}\n".encode("utf-8", "backslashreplace"))


def send(options: Options) -> int:
    """Raises Failed, OSError, SMTPException. Reads all of its input before it connects: who writes it may be slow."""
    domain = mail_domain()
    named = [whole for word in options.recipients for whole in _written(word, domain)]
    if not named and not options.from_header:
        raise Failed(USAGE, "no recipients; name some, or take them from the message with -t")
    own, name = caller(domain)
    sender = own if options.sender is None else _sender(options.sender, domain)
    full_name = name if options.name is None else options.name
    with closing(Message(normalised(_input(), options.dot_ends))) as message:
        if options.from_header:
            named += _found(message, domain)
        submission = Submission(options, sender, message, message.head(author(full_name, sender or own), domain))
        with connect(os.environ, domain) as smtp:
            submission.send(smtp, list(dict.fromkeys(named)))
    for _, text in submission.refused:
        _told(f"refused: {text}", 0)
    if options.verbose and submission.taken:
        _say(1, submission.taken)
    return verdict(submission.refused, bool(submission.taken))


def verdict(refused: Sequence[tuple[int, str]], taken: bool) -> int:
    """0 where it reached somebody: whoever is told that it failed sends it again, to those as well who have it.

    Unless somebody is left who may be had later: better twice than never.
    """
    codes = [code for code, _ in refused]
    if TEMPORARY in codes:
        return TEMPORARY
    return codes[0] if codes and not taken else 0


def _input() -> Iterator[bytes]:
    """Raises Failed."""
    try:
        while piece := os.read(0, 1 << 16):
            yield piece
    except OSError as error:
        raise Failed(DATA, f"no message: standard input cannot be read: {error.strerror}") from None


def _found(message: Message, domain: str) -> list[str]:
    """Raises Failed."""
    try:
        found = destinations(message.fields)
    except Unreadable as error:
        raise Failed(DATA, str(error)) from None
    if not found:
        raise Failed(DATA, "no recipients: -t was said, and the message has nobody in To, Cc or Bcc")
    return [whole(address, domain) for address in found]


def _written(word: str, domain: str) -> Iterator[str]:
    """The addresses of one word of the command line. Raises Failed."""
    try:
        found = mailboxes(os.fsencode(word).decode("utf-8"))
    except (Unreadable, UnicodeDecodeError) as error:
        why = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise Failed(NO_USER, f"recipient {word!r}: {why}") from None
    for mailbox in found:
        yield whole(mailbox.address, domain)


def _sender(word: str, domain: str) -> str:
    """Raises Failed. The null sender for nothing."""
    if word.strip() in ("", "<>"):
        return ""
    try:
        found = list(_written(word, domain))
    except Failed as error:
        raise Failed(DATA, f"-f: {str(error).removeprefix('recipient ')}") from None
    if len(found) != 1:
        raise Failed(USAGE, f"-f {word}: it wants one address")
    return found[0]


def whole(address: str, domain: str) -> str:
    """With a domain: cron mails to `root`. Raises Failed for what could be more than an address on the wire."""
    if not address.isprintable() or "<" in address or ">" in address:
        raise Failed(DATA, f"{address[:80]!r} is no address")
    return address if "@" in address else f"{address}@{domain}"


def mail_domain(file: str = MAILNAME) -> str:
    """The domain of whoever has none: of /etc/mailname, else the machine's name, as the relay has it."""
    try:
        with open(file, encoding="ascii") as opened:
            first = opened.readline().strip()
    except (OSError, UnicodeDecodeError):
        first = ""
    if _DOMAIN.fullmatch(first):
        return first
    name = os.uname().nodename
    name = name if _DOMAIN.fullmatch(name) else "localhost"
    return name if "." in name else f"{name}.localdomain"


def caller(domain: str) -> tuple[str, str]:
    """(address, full name) of whose process this is."""
    number = os.getuid()
    try:
        entry = pwd.getpwuid(number)
    except KeyError:  # in a container
        return f"uid{number}@{domain}", ""
    name = entry.pw_gecos.partition(",")[0].replace("&", entry.pw_name.capitalize())  # passwd(5)
    return f"{entry.pw_name}@{domain}", name


def author(name: str, address: str) -> str:
    """The value of a From field; whatever stands in a name, it is a name."""
    from email.utils import formataddr

    clean = " ".join("".join(c if c.isprintable() else " " for c in name).split())[:LONGEST_FULL_NAME]
    if not address.isascii() or not clean.isprintable():
        return f"<{address}>"
    try:
        return formataddr((clean, address))
    except UnicodeEncodeError:  # a name of the command line that is not UTF-8
        return f"<{address}>"
