"""Who is it? Passwords of `users`, checked off the loop, remembered once they were right, and slow to be guessed.

Promises: a wrong password, an unknown user and a user whose secret cannot be read are answered alike and after the same
time; no secret is kept (of a verified login, a keyed MAC until the next reload) or told.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import secrets
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from relay import clock, metrics
from relay.listener.sasl import Credentials
from relay.maillog import MailLog
from relay.policy.networks import client_key
from relay.secrets import SecretError
from relay.settings import User

FAILED_AFTER = 1.0  # seconds from the question to a "no", whatever took how long; under load two, or three
FAILURES_A_MINUTE = 10  # of one client for one name, known or not; beyond it nothing is checked for a minute
# argon2id with 19 MiB, two passes, one lane: OWASP's least; the library's defaults take 64 MiB and 190 ms.
PASSES, KIB = 2, 19 * 1024
MAX_WAITING = 32  # logins that wait for their turn; argon2 takes some 50 ms for each, one at a time
MAX_REMEMBERED = 10_000  # clients with failures

LOGINS = metrics.Counter("relay_listener_logins_total", "Logins of clients by result", ["listener", "result"])


class Busy(Exception):
    """Not now: too many failures, or too many logins at once. The text is for the client."""


class Authenticator:
    """`users` returns those of the configuration in force."""

    def __init__(self, users: Callable[[], Mapping[str, User]], log: MailLog) -> None:
        self.users, self._log = users, log
        self._key = secrets.token_bytes(32)
        self._good: dict[str, bytes] = {}
        self._failures: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()
        # One at a time: a hundred applications that start together must not take two gigabytes.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="login")
        # Of each user, and one for all whom nobody knows: a secret that is slow to read holds up nobody else.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting = 0
        self._decoy = ""

    def forget(self) -> None:
        """After a reload: what was right under the old configuration is asked again."""
        self._good = {}  # a new one: a check that is under way keeps what it finds for itself

    async def verify(self, client: str, given: Credentials) -> User | None:
        """The user, or None after FAILED_AFTER or a multiple of it. Raises Busy."""
        started = clock.monotonic()
        key = (client_key(client), given.user)
        self._check_failures(key)
        if user := self._known(given):
            return user
        if self._waiting >= MAX_WAITING:
            raise Busy("too many logins at once, try again later")
        self._waiting += 1
        try:
            async with self._turns[given.user if given.user in self.users() else ""]:
                user = await self._in_turn(key, given)
        finally:
            self._waiting -= 1
        if user is None:
            late = clock.monotonic() - started
            await asyncio.sleep(math.ceil(late / FAILED_AFTER) * FAILED_AFTER - late)
        return user

    async def _in_turn(self, key: tuple[str, str], given: Credentials) -> User | None:
        """What those before us found counts: a hundred guesses at once are no more than ten, and of a hundred
        applications that start together only the first one is checked."""
        self._check_failures(key)
        if user := self._known(given):
            return user
        user, good = self.users().get(given.user), self._good
        if await self._check(user, given):
            good[given.user] = self._mac(given)
            self._failures.pop(key, None)
            return user
        self._failed(key)
        return None

    async def _check(self, user: User | None, given: Credentials) -> bool:
        if user is not None and not user.logs_in:
            user = None
        # An unknown user costs what a known one does: argon2, if anybody here has a hash.
        if (user is None and any(u.password_hash for u in self.users().values())) or (user and user.password_hash):
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._argon2, user.password_hash if user else "", given.password
            )
        if user is None or user.password is None:
            return False
        try:
            secret = await asyncio.to_thread(user.password.resolve)
        except SecretError as error:
            self._log.error("user_secret", user=user.name, error=str(error), hint="nobody can log in as this user")
            return False
        return bool(secret) and hmac.compare_digest(secret.encode(), given.password.encode())

    def _argon2(self, hashed: str, password: str) -> bool:
        """False for the empty hash of an unknown user, after the same work."""
        import argon2

        hasher = hasher_()
        if not hashed:
            self._decoy = self._decoy or hasher.hash(secrets.token_hex(8))
        try:
            return hasher.verify(hashed or self._decoy, password) and bool(hashed)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
            return False

    def _known(self, given: Credentials) -> User | None:
        user, kept = self.users().get(given.user), self._good.get(given.user)
        known = user is not None and kept is not None and hmac.compare_digest(kept, self._mac(given))
        return user if known else None

    def _mac(self, given: Credentials) -> bytes:
        return hmac.digest(self._key, f"{given.user}\0{given.password}".encode(), "sha256")

    def _check_failures(self, key: tuple[str, str]) -> None:
        since, count = self._failures.get(key, (0.0, 0))
        if count >= FAILURES_A_MINUTE and clock.monotonic() - since < 60.0:
            raise Busy("too many failed logins, try again in a minute")

    def _failed(self, key: tuple[str, str]) -> None:
        now = clock.monotonic()
        since, count = self._failures.pop(key, (now, 0))
        self._failures[key] = (since, count + 1) if now - since < 60.0 else (now, 1)
        while len(self._failures) > MAX_REMEMBERED:
            self._failures.popitem(last=False)


def hasher_() -> argon2.PasswordHasher:  # type: ignore[name-defined] # noqa: F821 - imported where it is needed: 20 ms
    import argon2

    return argon2.PasswordHasher(time_cost=PASSES, memory_cost=KIB, parallelism=1)
