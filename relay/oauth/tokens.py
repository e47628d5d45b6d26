"""One account's token: had before mail needs it, asked for by one request at a time, and never more often than it may be.

Promises: while a token is good nobody waits and nobody hears of the endpoint's troubles; at most one request is under way, and
one is made for each token that ends; while the endpoint rests after a failure no request is made at all. When a token ends is
measured on the monotonic clock, so a wrong wall clock does no harm. No secret and no token is in any text that leaves here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from relay import clock, metrics
from relay.maillog import MailLog
from relay.oauth.endpoint import Answer, EndpointError, post
from relay.oauth.grants import Granted, GrantError, Material, Refused, answered, form, what_to_do
from relay.oauth.store import Store, fingerprint
from relay.secrets import Reference, SecretError
from relay.settings import OAuth2

FRESH = 45.0  # seconds; a younger token that no login ever worked with is refused for another reason than its age
FORCED = 10.0  # seconds between two renewals that refused logins asked for
PASSING, MAX_PASSING = 1.0, 300.0  # seconds until it is asked again: an outage
LASTING, MAX_LASTING = 300.0, 3600.0  # and a refusal, which a person must mend
LOOK = 30.0  # seconds until a secret is looked at again that was refused
BUSY = 0.2  # seconds until it is looked at again what became of a request
TELL = 3600.0  # seconds until a failure is told again
SKEW = 30.0  # seconds that two clocks may differ
WARN_BEFORE, WARN_EVERY = 14 * 86400.0, 86400.0

REFRESHES = metrics.Counter(
    "relay_oauth_refreshes_total", "Requests to token endpoints by their end", ["egress", "result"]
)


class TokenError(Exception):
    """There is no token now; the text says why, and until when none is asked for."""


@dataclass(slots=True)
class _Trouble:
    text: str
    hint: str
    lasting: bool
    until: float  # monotonic; no request before
    count: int  # in a row
    mark: str  # of the secrets that were refused
    looked: float


def early(life: float, chance: float) -> float:
    """Seconds after which a token is renewed: 5 min or 10 % before its end, and up to half as much again; a short one by a quarter.

    `chance` in [0, 1) spreads those that were made together.
    """
    lead = min(max(300.0, 0.1 * life), 0.25 * life)
    return life - lead * (1.0 + 0.5 * chance)


class Tokens:
    """Of one account. `back`: called when there is a token again after there was none."""

    def __init__(
        self, name: str, username: Reference, oauth2: OAuth2, store: Store, log: MailLog, back: Callable[[], None]
    ) -> None:
        self.name, self.username, self.oauth2 = name, username, oauth2
        self._store, self._log, self._back = store, log, back
        self._token = ""
        self._got = self._renew_at = self._good_until = 0.0  # monotonic
        self._worked = self._refused = False  # a login with this token
        self._forced = float("-inf")
        self._mark = ""  # of the secrets that the token came of
        self._rotated: tuple[str, str] | None = None  # (of which login, the newest refresh token)
        self._unsaved = False
        self._skew = 0.0  # seconds that the endpoint's clock is ahead
        self._trouble: _Trouble | None = None
        self._told: tuple[bool, bool] | None = None  # what was said of it: lasting, and without a token
        self._told_at = self._warned_at = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._reloaded = False

    # -- for a login

    async def token(self) -> str:
        """One that is good. At once where there is one, or where none may be asked for now. Raises TokenError."""
        now = clock.monotonic()
        if self._good(now):
            if now >= self._renew_at and not self._rests(now):
                self._begin()
            return self._token
        if self._rests(now) and not (self._task or await self._mended(commands=True)):
            raise TokenError(self._why())
        await asyncio.shield(self._begin())
        if self._good(clock.monotonic()):
            return self._token
        raise TokenError(self._why())

    def worked(self, token: str) -> None:
        """A login with it succeeded."""
        if token == self._token:
            self._worked, self._refused = True, False

    async def after_refusal(self, token: str) -> bool:
        """The upstream refused it. Whether there is another one to try: not where a new one would be refused as well.

        Raises TokenError.
        """
        now = clock.monotonic()
        self.refused(token)
        if token == self._token:  # else another session was refused before, and it was renewed for all
            fresh = now - self._got <= FRESH
            if self._task is None and ((fresh and not self._worked) or now - self._forced < FORCED):
                return False
            self._forced = self._good_until = now
        await self.token()
        return True

    def refused(self, token: str) -> None:
        """The upstream refused it."""
        if token == self._token:
            self._refused = True

    # -- for the loop

    async def tend(self) -> float:
        """What is due is done or begun; returns the seconds until it wants to be called again."""
        now = clock.monotonic()
        self._warn(clock.now())
        if self._unsaved:
            await self._save()
        mended = await self._look(now)
        due = min(self._renew_at, self._good_until)
        if mended or (now >= due and not self._rests(now)):
            self._begin()
        if self._trouble is not None:
            self._tell(now)
            due = self._trouble.until
        return BUSY if self._task is not None else min(LOOK, max(0.05, due - now))

    async def _look(self, now: float) -> bool:
        """Whether the secrets are others than those that were refused, or that the token came of."""
        trouble = self._trouble
        if self._reloaded:
            self._reloaded = False
            return self._task is None and await self._changed(trouble.mark if trouble else self._mark, commands=False)
        if trouble is None or not trouble.lasting or self._task or now - trouble.looked < LOOK:
            return False
        trouble.looked = now
        return await self._mended(commands=False)

    def reloaded(self) -> None:
        """An operator may have mended what was wrong: it is asked again at once."""
        self._reloaded = True
        if self._trouble is not None:
            self._trouble.until = clock.monotonic()

    async def finish(self, timeout: float) -> None:
        """At a stop. An answer that is under way may hold a refresh token, and the one before it may be good no more."""
        task = self._task
        if task is not None and self.oauth2.grant == "refresh_token":
            await asyncio.wait({task}, timeout=timeout)
        if task is not None:
            task.cancel()

    # -- what it looks like

    @property
    def expires_at(self) -> float | None:
        """Epoch seconds; None: there is no token."""
        return clock.now() + self._good_until - clock.monotonic() if self._token else None

    @property
    def failing(self) -> bool:
        return self._trouble is not None

    def state(self) -> dict[str, Any]:
        good = self._good(clock.monotonic())
        found: dict[str, Any] = {"state": "good" if good else "none", "expires_at": self.expires_at if good else None}
        return found | {"why": self._why() if self._trouble is not None else ""}

    # -- the one request

    def _good(self, now: float) -> bool:
        return bool(self._token) and now < self._good_until and not (self._refused and now - self._got > FRESH)

    def _rests(self, now: float) -> bool:
        return self._trouble is not None and now < self._trouble.until

    def _begin(self) -> asyncio.Task[None]:
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._renew(), name=f"oauth-{self.name}")
            self._task.add_done_callback(self._ended)
        return self._task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None

    async def _renew(self) -> None:
        """To an end in a token or in trouble; raises nothing."""
        began, mark = clock.monotonic(), ""
        try:
            material, username, mark, login = await asyncio.to_thread(self._read)
            found, wait = await self._ask(material, username)
        except SecretError as error:
            hint = f"relay oauth login {self.name}" if self.oauth2.grant == "refresh_token" else ""
            self._failed(str(error), hint, "secret", lasting=True, mark=mark or f"unreadable: {error}")
        except GrantError as error:
            self._failed(str(error), "", "secret", lasting=True, mark=mark)
        except EndpointError as error:
            text = f"the token endpoint of account {self.name} ({urlsplit(self.oauth2.token_url).hostname}): {error}"
            self._failed(text, "", "unreachable", lasting=error.lasting, mark=mark, retry_after=error.retry_after)
        except Exception as error:  # noqa: BLE001 - whatever it was, whoever waits must hear of an end
            self._failed(f"internal trouble: {type(error).__name__}", "", "unreachable", lasting=False, mark=mark)
        else:
            if isinstance(found, Refused):
                return self._refused_by(found, wait, mark)
            if found.refresh_token and found.refresh_token != material.refresh_token:
                self._rotated = login, found.refresh_token
                await self._save()  # before it is used: the one before it may be good no more
            self._succeeded(found, began, mark)

    def _read(self) -> tuple[Material, str, str, str]:
        """(secrets, username, the mark of them all, the mark of the login). Blocks. Raises SecretError, GrantError."""
        oauth2 = self.oauth2
        given = [
            r.resolve() if r else "" for r in (oauth2.client_id, oauth2.client_secret, oauth2.refresh_token, oauth2.key)
        ]
        client_id, client_secret, refresh_token, key = given
        if oauth2.refresh_token is not None and not refresh_token:
            raise SecretError(f"{oauth2.refresh_token} is empty")
        username = self.username.resolve()
        mark, login = fingerprint(*given, username), fingerprint(refresh_token, client_id, oauth2.token_url)
        if refresh_token:
            newest = self._rotated[1] if self._rotated and self._rotated[0] == login else self._store.load(login)
            refresh_token = newest or refresh_token
        return Material(client_id, client_secret, refresh_token, key), username, mark, login

    async def _ask(self, material: Material, username: str) -> tuple[Granted | Refused, float]:
        """(answer, seconds that it wants to be left alone). A statement whose time is off is made anew by the endpoint's clock."""
        found, answer = await self._post(material, username)
        if isinstance(found, Refused) and found.error == "invalid_grant" and answer.date is not None:
            skew = answer.date - clock.now()
            if self.oauth2.grant == "service_account" and abs(skew - self._skew) > SKEW:
                self._skew = skew
                hint = "the clock of this machine is off, or the endpoint's"
                self._log.warning("oauth_clock", egress=self.name, ahead=round(skew), hint=hint)
                found, answer = await self._post(material, username)
        return found, answer.retry_after

    async def _post(self, material: Material, username: str) -> tuple[Granted | Refused, Answer]:
        said = await asyncio.to_thread(form, self.oauth2, material, username, clock.now() + self._skew)
        answer = await post(self.oauth2.token_url, said, self.oauth2.ca)
        return answered(answer.status, answer.body, said), answer

    def _mark_now(self) -> str:
        try:
            return self._read()[2]
        except (SecretError, GrantError) as error:
            return f"unreadable: {error}"

    def _refused_by(self, found: Refused, retry_after: float, mark: str) -> None:
        self._failed(
            f"the token endpoint of account {self.name} refused: {found.text}",
            what_to_do(found.error, self.oauth2.grant, self.name),
            "refused",
            lasting=not found.passing,
            mark=mark,
            retry_after=retry_after,
        )

    def _succeeded(self, granted: Granted, began: float, mark: str) -> None:
        """The life of a token counts from before it was asked for."""
        life, trouble, had = granted.life, self._trouble, self._good(clock.monotonic())
        self._token, self._got, self._mark = granted.access_token, began, mark
        self._renew_at = began + early(life, random.random())
        self._good_until = began + life - min(10.0, 0.05 * life)
        self._worked = self._refused = False
        self._trouble, self._told = None, None
        REFRESHES.inc(1, self.name, "ok")
        self._log.event("oauth_token", egress=self.name, expires_in=round(life, 1))
        if trouble is not None:
            self._log.event("oauth_recovered", egress=self.name, after=trouble.text)
        if not had:
            self._back()

    def _failed(
        self,
        text: str,
        hint: str,
        result: Literal["secret", "refused", "unreachable"],
        *,
        lasting: bool,
        mark: str,
        retry_after: float = 0.0,
    ) -> None:
        now, before = clock.monotonic(), self._trouble
        count = before.count + 1 if before is not None and before.lasting == lasting else 1
        first, most = (LASTING, MAX_LASTING) if lasting else (PASSING, MAX_PASSING)
        wait = min(most, first * 2.0 ** min(count - 1, 20)) * (1.0 - 0.3 * random.random() * (not lasting or count > 1))
        self._trouble = _Trouble(text, hint, lasting, now + max(wait, retry_after), count, mark, now)
        REFRESHES.inc(1, self.name, result)
        self._tell(now)

    # -- telling

    def _why(self) -> str:
        trouble = self._trouble
        if trouble is None:
            return f"oauth2: there is no token of account {self.name} now"
        at = datetime.fromtimestamp(clock.now() + trouble.until - clock.monotonic()).strftime("%H:%M:%S")
        what = f"{trouble.text.removesuffix('.')}; {trouble.hint}" if trouble.hint else trouble.text
        return f"oauth2: {what} (it is asked again at {at})"

    def _tell(self, now: float) -> None:
        """Each change once, and once an hour while it lasts."""
        trouble = self._trouble
        assert trouble is not None
        state = trouble.lasting, not self._good(now)
        if state == self._told and now - self._told_at < TELL:
            return
        self._told, self._told_at = state, now
        # With a token that is still good an outage is no loss yet.
        tell = self._log.error if any(state) else self._log.warning
        wait = round(max(0.0, trouble.until - now), 1)
        good_for = round(self._good_until - now) if self._good(now) else None
        tell(
            "oauth_failed",
            egress=self.name,
            error=trouble.text,
            hint=trouble.hint,
            retry_in=wait,
            token_good_for=good_for,
        )

    def _warn(self, now: float) -> None:
        """That the client secret ends, which no endpoint tells before it has."""
        ends = self.oauth2.expires
        if ends is None or ends - now > WARN_BEFORE or now - self._warned_at < WARN_EVERY:
            return
        self._warned_at = now
        days = int((ends - now) // 86400)
        hint = "make a new one at the provider, put it where `client_secret` points, and change `expires`"
        self._log.warning("oauth_secret_expires", egress=self.name, days=days, hint=hint)

    # -- secrets and files

    async def _mended(self, *, commands: bool) -> bool:
        """Whether what was refused for good is another one now."""
        trouble = self._trouble
        return trouble is not None and trouble.lasting and await self._changed(trouble.mark, commands=commands)

    async def _changed(self, mark: str, *, commands: bool) -> bool:
        """`commands`: those may be run for it."""
        oauth2 = self.oauth2
        given = (oauth2.client_id, oauth2.client_secret, oauth2.refresh_token, oauth2.key, self.username)
        if not commands and any(r is not None and r.kind == "command" for r in given):
            return False
        return await asyncio.to_thread(self._mark_now) != mark

    async def _save(self) -> None:
        if self._rotated is None:
            return
        try:
            await asyncio.to_thread(self._store.save, *self._rotated)
        except OSError as error:
            if not self._unsaved:
                hint = "it is kept in memory, and lost with this process: make room, or mend the folder"
                self._log.error(
                    "oauth_unsaved", egress=self.name, file=self._store.file, error=error.strerror, hint=hint
                )
            self._unsaved = True
        else:
            self._unsaved = False
