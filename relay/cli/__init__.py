"""The command line. `serve` runs the relay; the other verbs ask a running one over its socket, or read a file.

Modules are imported by the verb that needs them: `relay queue list` loads no HTTP server. Exit codes are sysexits(3).
"""

from __future__ import annotations

import sys

import click

from relay import __version__
from relay.cli import (
    access,
    changed,
    dkim,
    events,
    explain,
    feedback,
    limits,
    mail,
    oauth,
    outbox,
    pauses,
    presets,
    queue,
    sendmail,
    service,
    setup,
    simulate,
    sink,
    suppress,
    webhooks,
)

USAGE, DATA, UNAVAILABLE, IOERR, TEMPORARY, NOPERM, CONFIG = 64, 65, 69, 74, 75, 77, 78


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="relay")
def cli() -> None:
    """An embedded SMTP relay: applications hand it mail on localhost:2525, it delivers it.

    Start with `relay serve`: without a configuration it runs a demonstration that keeps all mail on this machine.
    """


for _command in (
    service.serve,
    service.check,
    setup.init,
    setup.password,
    service.reload,
    service.status,
    explain.explain,
    service.spool,
    mail.send,
    sendmail.sendmail,
    sink.sink,
    queue.queue,
    events.events,
    simulate.simulate,
    pauses.suspend,
    pauses.resume,
    changed.accounts,
    changed.changes,
    limits.limits,
    limits.reputation,
    limits.shaping,
    limits.alarms,
    suppress.suppress,
    dkim.dkim,
    presets.presets,
    webhooks.webhooks,
    outbox.outbox,
    oauth.oauth,
    feedback.feedback,
    access.token,
    access.audit,
):
    cli.add_command(_command)


def main() -> None:
    """The entry point: click's usage errors end with 64, as sysexits wants."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.UsageError as error:
        error.show()
        sys.exit(USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        click.echo(
            f"Error: {error.filename or ''}: {error.strerror or error}".replace("Error: : ", "Error: "), err=True
        )
        sys.exit(IOERR)
    sys.exit(code if isinstance(code, int) else 0)
