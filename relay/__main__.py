"""`python -m relay` is the command `relay`, and so is the program of that name.

`relay sendmail` is started once for each message, so it goes past the command line of all others, which takes twice as long
to import as the whole call takes without it.
"""

from __future__ import annotations

import sys


def main() -> None:
    if sys.argv[1:2] == ["sendmail"] and sys.argv[2:] != ["--help"]:
        from relay.sendmail.main import run

        sys.exit(run(sys.argv[2:]))
    from relay.cli import main as command

    command()


if __name__ == "__main__":
    main()
