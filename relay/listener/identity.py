"""Who the client is: its greeting, TLS (RFC 3207) and login (RFC 4954).

Promises: a password is asked for over TLS only, or from this very machine; nothing that was said before the handshake
counts after it.
"""

from __future__ import annotations

from relay.listener.auth import LOGINS, Busy
from relay.listener.command import BadCommand
from relay.listener.front import Door
from relay.listener.sasl import Credentials, Exchange
from relay.listener.wire import Wire
from relay.policy.networks import in_networks, is_loopback
from relay.settings import User

MAX_FAILED_LOGINS = 5


class Identity(Wire):
    """The half of a session that comes before mail."""

    def __init__(self, door: Door, client: str | None = None) -> None:
        super().__init__(door, client)
        self.helo = ""
        self.extended = False
        self.dsn = False  # RFC 3461 was offered to this client
        self.user_name = ""  # who logged in
        self._logged_in: User | None = None  # as the configuration had him then
        self.exchange: Exchange | None = None  # an AUTH that waits for the client's next line
        self._failed_logins = 0

    def in_transaction(self) -> bool:
        raise NotImplementedError

    def forget_mail(self) -> None:
        raise NotImplementedError

    def reset(self) -> None:
        self.helo, self.extended, self.dsn, self.user_name, self.exchange = "", False, False, "", None
        self.forget_mail()

    def say_helo(self, argument: str) -> None:
        self._greet(argument, "HELO")
        self.extended = self.dsn = False
        self.reply(250, "", self.hostname)

    def say_ehlo(self, argument: str) -> None:
        self._greet(argument, "EHLO")
        self.extended, self.dsn = True, self.door.dsn
        self._replies.append(self.door.ehlo(self.encrypted, self._may_log_in()))

    def _greet(self, argument: str, verb: str) -> None:
        if not argument:
            raise BadCommand(501, "5.5.4", f"syntax: {verb} hostname")
        self.helo = argument
        self.forget_mail()  # RFC 5321 §4.1.4: as if RSET had been said

    def say_starttls(self, argument: str) -> None:
        if argument:
            raise BadCommand(501, "5.5.4", "STARTTLS takes no argument")
        if self.encrypted:
            raise BadCommand(503, "5.5.1", "TLS is active already")
        if not self.door.offers_starttls:
            raise BadCommand(502, "5.5.1", "command is not offered here")
        if self.door.tls_context is None:
            raise BadCommand(454, "4.7.0", "TLS is not available now, try again later")
        if self._buffer:
            # RFC 3207 §4.2: who says more before the handshake wants it to be taken for what comes after (CVE-2011-0411).
            self.door.log.warning("starttls_injection", listener=self.door.listen.name, client=self.client)
            return self.close_with(421, "4.7.0", "nothing may follow STARTTLS before the handshake")
        if self._eof:
            return self.close_with(421, "4.7.0", "you have closed your side: no handshake can follow")
        self._pause_reading()  # what comes now is the handshake's
        self.reply(220, "2.0.0", "ready to start TLS")
        self._flush()
        self.run(self.start_tls())

    def _may_log_in(self) -> bool:
        """A password may be said: over TLS, or to this very machine."""
        return self.door.listen.auth != "none" and (
            self.encrypted or (not self.introduced and is_loopback(self.client))
        )

    def say_auth(self, argument: str) -> None:
        if self.door.listen.auth == "none":
            raise BadCommand(502, "5.5.1", "no login is wanted here: send without one")
        if not self.extended:
            raise BadCommand(503, "5.5.1", "say EHLO first")
        if self.user_name or self.in_transaction():
            raise BadCommand(503, "5.5.1", "logged in already" if self.user_name else "not within a transaction")
        if not self._may_log_in():
            raise BadCommand(538, "5.7.11", "a password needs TLS: say STARTTLS first")
        if self.door.listen.auth == "required" and not self.is_served():
            raise BadCommand(550, "5.7.1", f"no mail is taken from {self.client}")
        mechanism, _, initial = argument.partition(" ")
        self.exchange = self.exchange_of(mechanism.upper())
        self.answered(initial.strip(" ") or None)

    def exchange_of(self, mechanism: str) -> Exchange:
        """Raises BadCommand for a mechanism that is not offered."""
        return Exchange(mechanism)

    def answered(self, response: str | None) -> None:
        assert self.exchange is not None
        said = self.exchange.step(response)
        if isinstance(said, Credentials):
            self.exchange = None
            self.run(self._log_in(said))
        else:
            self.reply(334, "", said)

    async def _log_in(self, given: Credentials) -> None:
        name = self.door.listen.name
        known = given.user if given.user in self.door.guard.logins.users() else None
        try:
            user = await self.door.guard.logins.verify(self.client, given)
        except Busy as error:
            LOGINS.inc(1, name, "busy")
            self.door.log.warning("login_busy", listener=name, client=self.client, user=known, why=str(error))
            self._failed_logins += 1
            self.reply(454, "4.7.0", str(error))
        else:
            LOGINS.inc(1, name, "failed" if user is None else "ok")
            if user is not None:
                self.user_name, self._logged_in, self._failed_logins = user.name, user, 0
                return self.reply(235, "2.7.0", "logged in")
            self.door.log.warning("login_failed", listener=name, client=self.client, user=known)
            self._failed_logins += 1
            self.reply(535, "5.7.8", "user name or password is wrong")
        if self._failed_logins >= MAX_FAILED_LOGINS:
            self.close_with(421, "4.7.0", "too many failed logins, closing connection")

    def is_served(self) -> bool:
        clients = self.door.listen.clients
        return not clients or in_networks(self.client, clients)

    def user(self) -> User | None:
        """Who logged in, as the configuration in force has him."""
        if not self.user_name:
            return None
        user, then = self.door.guard.logins.users().get(self.user_name), self._logged_in
        if user is None or then is None or (user.password, user.password_hash) != (then.password, then.password_hash):
            self.user_name = ""
            raise BadCommand(530, "5.7.0", "this login is no longer valid: log in again")
        return user
