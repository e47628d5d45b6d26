"""What all doors share: who may log in, how much each may send, and how many descriptors are left for clients."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from relay.listener.auth import Authenticator
from relay.listener.limits import Allowances
from relay.maillog import MailLog
from relay.settings import User


class Guard:
    """`room`: sessions over all doors. `users` returns those of the configuration in force."""

    def __init__(
        self, log: MailLog, users: Callable[[], Mapping[str, User]] = dict, room: int = 1 << 20, backlog: int = 512
    ) -> None:
        self.logins = Authenticator(users, log)
        self.allowances = Allowances()
        self.room, self.backlog = room, backlog
        self.inside = 0


def room_for_clients(descriptors: int, upstream: int, doors: int) -> tuple[int, int]:
    """(sessions, backlog of each door): what clients may take of so many descriptors.

    The rest stays for the spool, the admin socket and `upstream` connections: a crowd at the door must not keep mail from
    leaving. Half is theirs at least. A backlog is what the kernel may hand us at once, before we can say 421. It is no less
    than a burst of applications needs: beyond it Linux answers with SYN cookies and forgets whoever connects while it is
    full; such a client is connected, is never greeted, and waits for minutes.
    """
    backlog = max(4, min(512, descriptors // (4 * max(1, doors))))
    keep = min(descriptors // 2, 64 + upstream + backlog * doors)
    return descriptors - keep, backlog
