"""The command line of sendmail(8), in every way in which programs write it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

USAGE, DATA, NO_USER, UNAVAILABLE, TEMPORARY, NOPERM = 64, 65, 67, 69, 75, 77  # sysexits(3)

# As getopt(3): these want a value, glued or as the next word; those of GLUED have one only where it is glued.
VALUED = frozenset("ABCDFLNORVXefhopr")
GLUED = frozenset("dq")
FLAGS = frozenset("GIUcimnstvx")
MODES = {"m": "send", "s": "smtp", "p": "queue", "i": "aliases"}
NOT_OURS = {
    "d": "the daemon is `relay serve`",
    "D": "the daemon is `relay serve`",
    "v": "`relay explain` tells where mail would go",
    "t": "`relay explain` tells where mail would go",
    "h": "`relay status` tells how the relay fares",
    "H": "`relay status` tells how the relay fares",
}
NOTIFY = frozenset(("success", "failure", "delay"))


class Failed(Exception):
    """Why nothing, or not all, was handed in; with an exit code."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Options(SimpleNamespace):
    """What was said. No dataclass: that imports `inspect`, which took a fifth of a call."""

    def __init__(
        self,
        mode: str = "send",  # send, smtp, queue, aliases, flush
        recipients: Sequence[str] = (),
        from_header: bool = False,  # -t
        dot_ends: bool = True,  # not -i
        sender: str | None = None,  # as written; None: who calls
        name: str | None = None,
        notify: str = "",  # RFC 3461, as the three of them
        ret: str = "",
        envid: str = "",
        verbose: bool = False,
    ) -> None:
        self.mode, self.recipients, self.from_header, self.dot_ends = mode, list(recipients), from_header, dot_ends
        self.sender, self.name = sender, name
        self.notify, self.ret, self.envid, self.verbose = notify, ret, envid, verbose


def parse(words: Sequence[str], program: str = "sendmail") -> Options:
    """Raises Failed. `program`: by what name it was called."""
    found = Options(mode={"mailq": "queue", "newaliases": "aliases"}.get(program, "send"))
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in FLAGS:
                _flag(found, letter)
                continue
            value = letters
            if letter in VALUED and not value:
                if not rest:
                    raise Failed(USAGE, f"-{letter} wants a value")
                value = rest.pop(0)
            _valued(found, letter, value)
            break
    else:
        # Whoever could slip in a word behind a recipient must not have it taken for an option.
        if odd := next((word for word in rest if word.startswith("-")), ""):
            raise Failed(USAGE, f"{odd}: options come before recipients; `--` stands before those that begin with -")
    found.recipients = rest
    if (rest or found.from_header) and found.mode in ("flush", "aliases"):
        found.mode = "send"  # -q beside recipients: better sent than forgotten
    return found


def _flag(found: Options, letter: str) -> None:
    match letter:
        case "t":
            found.from_header = True
        case "i":
            found.dot_ends = False
        case "s":
            raise Failed(USAGE, "-s is no option; a subject is a field of the header")
        case "I":
            found.mode = "aliases"
        case "v":
            found.verbose = True


def _valued(found: Options, letter: str, value: str) -> None:
    match letter:
        case "f" | "r":
            found.sender = value
        case "F":
            found.name = value
        case "o" if value == "i":
            found.dot_ends = False
        case "O" if value.replace(" ", "").lower().startswith("ignoredots="):
            found.dot_ends = value.rpartition("=")[2].strip().lower() not in ("true", "t", "yes", "y", "1")
        case "N":
            asked = value.lower().split(",")
            if asked != ["never"] and not set(asked) <= NOTIFY:
                raise Failed(USAGE, f"-N {value}: it wants never, or some of success,failure,delay")
            found.notify = ",".join(asked).upper()
        case "R":
            if value.lower() not in ("full", "hdrs"):
                raise Failed(USAGE, f"-R {value}: it wants full or hdrs")
            found.ret = value.upper()
        case "V":
            if not value.isascii() or not value.isprintable():
                raise Failed(USAGE, "-V wants printable ASCII (RFC 3461 section 4.4)")
            found.envid = value
        case "b":
            _mode(found, value)
        case "q":
            found.mode = "flush"
        case _ if letter not in VALUED | GLUED:
            raise Failed(USAGE, f"-{letter}: no such option")


def _mode(found: Options, value: str) -> None:
    if value not in MODES:
        raise Failed(USAGE, f"-b{value}: {NOT_OURS.get(value, 'no such mode; there are -bm, -bs, -bp and -bi')}")
    found.mode = MODES[value]
