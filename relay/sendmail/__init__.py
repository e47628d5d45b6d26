"""The stand-in for sendmail(8): what cron, PHP's mail(), git and scripts call to send, in front of a relay that runs.

Owns: the command line as they write it, standard input as a message, and the exit codes of sysexits(3) that they look at.
Promises: it hands in by SMTP, as any application, and says 0 only once the relay has said 250; without a relay that answers
it keeps nothing and says 75. Imports little, for it is started once for each message.
Refuses: to be a daemon, or to show what it would do: `relay serve` is the daemon, `relay explain` shows.
"""

from relay.sendmail.main import main

__all__ = ["main"]
