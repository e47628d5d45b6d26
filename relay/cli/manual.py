"""The manual page and the shells' completions, made from the command line itself: `python -m relay.cli.manual FOLDER`.

The build puts them into the wheel (`hatch_build.py`), as below FOLDER: `man/man1/relay.1`, and where bash, zsh and fish look.
Wants click alone: it is all that a build has.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click
from click.shell_completion import ShellComplete, get_completion_class

from relay import __version__, clock
from relay.cli import cli

PAGE = "man/man1/relay.1"
COMPLETIONS = {
    "bash": "bash-completion/completions/relay",
    "zsh": "zsh/site-functions/_relay",
    "fish": "fish/vendor_completions.d/relay.fish",
}
_BOLD = re.compile(r"`([^`]+)`")
_BACK = r"\e"  # man(7): a backslash that is shown

_BEHIND = """.SH ENVIRONMENT
.TP
.B RELAY_CONFIG
The configuration's file, where
.B \\-\\-config
does not name one.
.TP
.B RELAY_ENDPOINT
The path of the running relay's socket; else the configuration names it.
.TP
.BR RELAY_URL ", " RELAY_TOKEN
The address of a relay's HTTP API and a token for it: for
.B relay outbox run
and the Python library.
.TP
.B RELAY_ALLOW_HTTP
1: that token may go by http to another machine, where all between can read it.
.TP
.B RELAY_CA
A file of certificates that its https is trusted by, instead of the system's.
.TP
.B RELAY_OUTBOX_DATABASE
The database of
.BR "relay outbox" ,
where it has a password.
.TP
.BR RELAY_SMTP ", " RELAY_SMTP_USER ", " RELAY_SMTP_PASSWORD_FILE
The listener that
.B relay sendmail
sends to, and a login there.
.SH FILES
.TP
.I /etc/relay/relay.yaml
The configuration.
.TP
.I /var/lib/relay
The spool.
.TP
.I /run/relay/admin.sock
Where the verbs reach the running relay: HTTP over a UNIX socket.
.SH EXIT STATUS
As
.BR sysexits.h (3head)
has it.
.TP
.B 0
It is done.
.TP
.B 64
It was called in a wrong way.
.TP
.B 65
There is no such thing, or what was handed in is damaged.
.TP
.B 69
No relay answers, or it is not well.
.TP
.B 74
A file cannot be read or written.
.TP
.B 75
Not now: try again.
.TP
.B 77
No right to do that.
.TP
.B 78
The configuration has mistakes.
.SH SEE ALSO
.BR sendmail (8),
.BR systemd.service (5)
"""


def page(now: float) -> str:
    """The manual page, man(7). `now`: of which day it is."""
    root = click.Context(cli, info_name="relay", **cli.context_settings)
    day = datetime.fromtimestamp(now, UTC).date()
    lines = [
        f'.TH RELAY 1 "{day}" "relay {__version__}" "User Commands"',
        ".SH NAME",
        r"relay \- an embedded SMTP relay",
        ".SH SYNOPSIS",
        r"\fBrelay\fR [\fIOPTIONS\fR] \fICOMMAND\fR [\fIARGUMENTS\fR]...",
        ".SH DESCRIPTION",
        *_text(cli.help or ""),
        *_options(cli, root),
        ".SH COMMANDS",
    ]
    for path, command, context in commands(cli, root):
        lines += [f".SS {_plain(path)}", *_usage(path, command, context), *_text(command.help or "")]
        lines += _options(command, context)
    return "\n".join(lines) + "\n" + _BEHIND


def commands(group: click.Group, above: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every verb in the order of the list of `--help`, a group before its own."""
    for name in group.list_commands(above):
        command = group.commands[name]
        context = click.Context(command, info_name=name, parent=above)
        yield context.command_path, command, context
        if isinstance(command, click.Group):
            yield from commands(command, context)


def _usage(path: str, command: click.Command, context: click.Context) -> list[str]:
    pieces = " ".join(command.collect_usage_pieces(context))
    return [f"\\fB{_plain(path)}\\fR {_plain(pieces)}", ".P"]


def _text(help_: str) -> Iterator[str]:
    """Paragraphs; one that begins with \\b stands as it is, as on a terminal."""
    for number, paragraph in enumerate(re.split(r"\n\s*\n", help_)):
        lines = [line.strip() for line in paragraph.strip("\n").splitlines()]
        if not lines:
            continue
        if number:
            yield ".P"
        if lines[0] == "\b":
            yield from (".nf", *map(_rich, lines[1:]), ".fi")
        else:
            yield _rich(" ".join(lines))


def _options(command: click.Command, context: click.Context) -> Iterator[str]:
    """`--help` once, at the top: it is everywhere."""
    known = command.get_help_option(context) if context.parent is not None else None
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
        if record is not None and parameter is not known:
            names, text = record
            yield from (".TP", f".B {_plain(names)}", _rich(" ".join(text.split())) or r"\&")


def _rich(text: str) -> str:
    """With what stands in backquotes bold."""
    parts = _BOLD.split(text)
    made = "".join(rf"\fB{_plain(part)}\fR" if n % 2 else _plain(part) for n, part in enumerate(parts))
    return made if not made.startswith((".", "'")) else rf"\&{made}"


def _plain(text: str) -> str:
    """As it is shown; ASCII alone, whatever the locale of who formats it."""
    text = (
        text.replace("\\", _BACK).replace("-", r"\-").replace("'", r"\(aq").replace("^", r"\(ha").replace("~", r"\(ti")
    )
    return "".join(c if c.isascii() else rf"\[u{ord(c):04X}]" for c in text)


def completion(shell: str) -> str:
    """The script of one shell: it asks `relay` itself what may follow."""
    made = get_completion_class(shell)
    assert made is not None
    # Not the shell's own `source`, which looks for the bash of the machine that builds.
    return ShellComplete.source(made(cli, {}, "relay", "_RELAY_COMPLETE"))


def write(folder: Path, now: float) -> dict[Path, str]:
    """All of them, below a folder; file -> its place below `share`."""
    made = {PAGE: page(now)} | {place: completion(shell) for shell, place in COMPLETIONS.items()}
    for place, text in made.items():
        file = folder / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return {folder / place: place for place in made}


def built_at() -> float:
    """Of a build that can be repeated: what it says (reproducible-builds.org)."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return float(given) if given.isdecimal() else clock.now()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m relay.cli.manual FOLDER")
    for made in write(Path(sys.argv[1]), built_at()):
        click.echo(made)
