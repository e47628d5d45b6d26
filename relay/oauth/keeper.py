"""The tokens of all accounts, and the loop that renews them in time. Loads nothing where no account has `oauth2`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from relay import metrics
from relay.maillog import MailLog
from relay.settings import Account, Config

if TYPE_CHECKING:
    from relay.oauth.tokens import Tokens

FINISH = 3.0  # seconds that a stop waits for an answer
STUCK = 20.0  # seconds that looking after one of them may take
FOLDER = "oauth2"  # beside the spool

EXPIRES = metrics.Gauge(
    "relay_oauth_token_expires_seconds", "When the token of an account ends, epoch seconds", ["egress"]
)
FAILING = metrics.Gauge("relay_oauth_failing", "1 while the token of an account cannot be renewed", ["egress"])
SECRET_EXPIRES = metrics.Gauge(
    "relay_oauth_secret_expires_seconds", "When the client secret of an account ends, epoch seconds", ["egress"]
)


class Keeper:
    """`back`: called with the name of an account that has a token again."""

    def __init__(self, log: MailLog, back: Callable[[str], None]) -> None:
        self._log, self._back = log, back
        self._tokens: dict[str, Tokens] = {}
        self._gone: list[Tokens] = []
        self._news = asyncio.Event()
        EXPIRES.source = lambda: [((n,), at) for n, t in self._tokens.items() if (at := t.expires_at) is not None]
        FAILING.source = lambda: [((n,), float(t.failing)) for n, t in self._tokens.items()]
        SECRET_EXPIRES.source = lambda: [
            ((n,), t.oauth2.expires) for n, t in self._tokens.items() if t.oauth2.expires is not None
        ]

    def of(self, account: Account) -> Tokens | None:
        """Those of an account of the configuration in force; None: it logs in otherwise, or not at all."""
        return self._tokens.get(account.name)

    def apply(self, config: Config) -> None:
        """A new configuration: who logs in as before, by the same means, keeps his token."""
        before, self._tokens = self._tokens, {}
        for name, account in config.accounts.items():
            if account.oauth2 is None or account.username is None:
                continue
            kept = before.get(name)
            if kept is not None and (kept.oauth2, kept.username) == (account.oauth2, account.username):
                self._tokens[name] = before.pop(name)
                kept.reloaded()
            else:
                self._tokens[name] = self._made(config, account)
        self._gone += before.values()
        self._news.set()

    def _made(self, config: Config, account: Account) -> Tokens:
        from relay.oauth.store import Store
        from relay.oauth.tokens import Tokens

        assert account.oauth2 is not None and account.username is not None
        store = Store(config.spool.path.parent / FOLDER / f"{account.name}.json")
        return Tokens(
            account.name, account.username, account.oauth2, store, self._log, lambda: self._back(account.name)
        )

    async def run(self) -> None:
        """Ends only by cancellation."""
        try:
            while True:
                self._news.clear()
                await _finish(self._gone)
                self._gone.clear()
                rests = await asyncio.gather(*(_tended(tokens) for tokens in self._tokens.values()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(rests, default=None)):
                        await self._news.wait()
        finally:
            await _finish([*self._tokens.values(), *self._gone])


async def _tended(tokens: Tokens) -> float:
    """A folder that hangs holds up nobody else's."""
    try:
        async with asyncio.timeout(STUCK):
            return await tokens.tend()
    except TimeoutError:
        return STUCK


async def _finish(tokens: Iterable[Tokens]) -> None:
    if waiting := list(tokens):
        await asyncio.gather(*(one.finish(FINISH) for one in waiting))
