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
    """Send what comes on standard input, as sendmail(8) does; for cron, PHP and scripts.

    It reaches the relay by SMTP: RELAY_SMTP says where, default 127.0.0.1:2525.
    """
    from relay.sendmail.main import run

    sys.exit(run(given["words"]))
