"""`relay sendmail`: the same as the program `relay-sendmail`. See relay/sendmail."""

from __future__ import annotations

import sys
from typing import Any

import click


class Plain(click.Command):
    """Reads its words itself: click would take `--` away, and know other options than sendmail(8) has."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args == ["--help"]:
            return super().parse_args(ctx, args)
        ctx.params["words"] = tuple(args)
        return []


@click.command(cls=Plain)
def sendmail(**given: Any) -> None:
    """Send standard input, as sendmail(8) does, for cron and PHP.

    It reaches the relay by SMTP: RELAY_SMTP says where, default 127.0.0.1:2525; RELAY_SMTP_USER and
    RELAY_SMTP_PASSWORD_FILE log in. Its options are those of sendmail(8), before the recipients: -t takes these from the
    header, -i ends at the end of input alone, -f ADDR and -F NAME say who sends, -N, -R and -V what is asked of reports, -bs
    speaks SMTP, -bp shows the queue, -v tells the answer. It ends with 75 where no relay answers, and keeps nothing.
    """
    from relay.sendmail.main import run

    sys.exit(run(given["words"]))
