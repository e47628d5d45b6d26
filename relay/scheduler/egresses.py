"""All egresses: an account's is made with the configuration, a direct entry's way to a site with the first mail for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from relay import clock, metrics
from relay.deliver.network import Network
from relay.deliver.pool import Egress
from relay.deliver.trunk import Trunk
from relay.policy.gate import EgressView
from relay.policy.pace import Pace
from relay.policy.warmup import Ramp
from relay.scheduler.ledger import Ledger
from relay.scheduler.memory import Memory
from relay.scheduler.sites import Sites
from relay.scheduler.work import Work
from relay.settings import ANYWHERE, Account, Config, Destination

if TYPE_CHECKING:
    from relay.oauth.tokens import Tokens

FORGET = 900.0  # seconds without mail after which nothing is known of a site any more

SESSIONS = metrics.Gauge("relay_upstream_sessions", "Open sessions to upstreams", ["egress"])
BREAKER = metrics.Gauge("relay_breaker_state", "0 closed, 1 open (the egress rests)", ["egress"])
PAUSED = metrics.Gauge(
    "relay_account_login_failed", "1 while an account rests because its login was refused", ["egress"]
)
IN_FLIGHT = metrics.Gauge("relay_deliveries_in_flight", "Transactions claimed or running", ["egress"])


class Logins(Protocol):
    """Who has the tokens of accounts that log in with such."""

    def of(self, account: Account) -> Tokens | None: ...


class Egresses(dict[str, Egress[Work]]):
    """By their key (`deliver.pool.key_of`). Asked for a site that has none, it makes one."""

    def __init__(
        self,
        config: Config,
        network: Network,
        sites: Sites,
        keeper: Logins,
        ledger: Ledger,
        memory: Memory,
        freed: Callable[[], None] = lambda: None,
        now: Callable[[], float] = lambda: clock.now(),
    ) -> None:
        """`freed`: a direct entry has room for one session more. `now`: the clock, where it is not the real one."""
        super().__init__()
        self._now = now
        self._ledger, self._memory = ledger, memory
        self.stopped: Callable[[str], tuple[float, str] | None] = lambda name: None  # by hand: until when, and why
        self._gone: dict[str, Pace] = {}  # of accounts that a reload took away: they may come back
        memory.sources.append(self._learnt)
        self._freed = freed
        self.made: Callable[[Egress[Work]], None] = lambda egress: None  # told of each new way to a site
        self.config, self._network, self._sites, self._keeper = config, network, sites, keeper
        self.trunks: dict[str, Trunk] = {}  # of each direct entry
        self._shared: dict[str, Pace] = {}  # of rules whose limits are over all egresses

    def measure(self) -> None:
        """The metrics are of these."""
        SESSIONS.source = lambda: self._of_each(lambda egress: egress.sessions)
        BREAKER.source = lambda: self._of_each(lambda egress: egress.breaker.is_open)
        PAUSED.source = lambda: self._of_each(lambda egress: egress.breaker.auth_failed)
        IN_FLIGHT.source = lambda: self._of_each(lambda egress: egress.busy)

    def _of_each(self, figure: Callable[[Egress[Work]], float]) -> list[tuple[tuple[str, ...], float]]:
        """By name: of a direct entry the sum over its sites, which strangers can make many of."""
        sums: dict[str, float] = {}
        for egress in self.values():
            sums[egress.name] = sums.get(egress.name, 0.0) + figure(egress)
        return [((name,), value) for name, value in sums.items()]

    def __missing__(self, key: str) -> Egress[Work]:
        name, _, site = key.partition(" to ")
        egress = self[key] = self._made(self.config.accounts[name], self._sites.by_name[site].rule, site)
        self.made(egress)
        return egress

    def at(self, key: str) -> Egress[Work] | None:
        """As by `[key]`; None: its account is gone, or its site."""
        name, _, site = key.partition(" to ")
        account = self.config.accounts.get(name)
        known = account is not None and account.source is not None and site in self._sites.by_name
        return self[key] if key in self or known else None

    def _made(self, account: Account, rule: Destination, site: str) -> Egress[Work]:
        way = to_site(account, rule)
        return self._known(
            Egress(
                way,
                self.config.hostname,
                direct=self._network.direct(way, rule),
                trunk=self.trunks[account.name],
                site=site,
                also=self._also(account, rule),
                health=self.config.breaker,
                now=self._now,
            )
        )

    def _known(self, egress: Egress[Work]) -> Egress[Work]:
        """With what the last run had spent and learnt, or it had itself before a reload took it away."""
        now, key = self._now(), egress.key
        egress.pace.prefix = f"egress {key}"
        if egress.account.warm_up is not None:  # a direct entry's own is its trunk's
            egress.pace.ramp = Ramp(egress.account.warm_up, key)
        self._memory.recall(f"egress {key}", lambda state: egress.load(state, now))
        egress.pace.restore(self._ledger.kept, now)
        if (pace := self._gone.pop(key, None)) is not None:
            egress.pace.keep(pace)
        egress.stopped = self.stopped(egress.name)
        return egress

    def _learnt(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        yield from ((f"egress {key}", state) for key, egress in list(self.items()) if (state := egress.state()))
        shared = (pace for pace in (*(t.pace for t in self.trunks.values()), *self._shared.values()) if pace.ramp)
        yield from ((f"shared {pace.prefix}", pace.state()) for pace in shared)

    @property
    def shared(self) -> list[Pace]:
        """Limits of destinations that are over all egresses."""
        return list(self._shared.values())

    def ramps(self) -> Iterator[tuple[str, Ramp]]:
        """With the key by which their reputation is known (`policy.reputation`)."""
        for key, egress in self.items():
            if egress.pace.ramp is not None:
                yield f"{'way' if egress.site else 'egress'} {key}", egress.pace.ramp
        for name, trunk in self.trunks.items():
            if trunk.pace.ramp is not None:
                yield f"egress {name}", trunk.pace.ramp
        for name, pace in self._shared.items():
            if pace.ramp is not None:
                yield f"site {name}", pace.ramp

    def look_again(self) -> None:
        """Something was suspended by hand, or resumed."""
        for egress in self.values():
            egress.stopped = self.stopped(egress.name)

    def _also(self, account: Account, rule: Destination) -> list[Pace]:
        """The limits of others that bind what goes to a site."""
        also = [self.trunks[account.name].pace]
        if rule.per == "relay" and (rule.limits or rule.warm_up):
            also.append(self._shared[rule.name])
        return also

    def _shared_pace(self, rule: Destination) -> Pace:
        pace = Pace(rule.limits, whose=f"{rule.name}'s", prefix=f"destination {rule.name}")
        if rule.warm_up is not None:
            pace.ramp = Ramp(rule.warm_up, rule.name)
        return self._restored(pace)

    def _restored(self, pace: Pace) -> Pace:
        """One that several egresses share."""
        now = self._now()
        self._memory.recall(f"shared {pace.prefix}", lambda state: pace.load(state, now))
        pace.restore(self._ledger.kept, now)
        return pace

    def apply(self, config: Config) -> list[Egress[Work]]:
        """A new configuration: sessions of what is unchanged are kept, and what rests is asked again. Returns what is no more."""
        now = self._now()
        before, self.config = self.config.hostname, config
        self._limits(config)
        retired, there = [], set(self)
        for name, account in config.accounts.items():
            current = self.get(name)
            if account.source is not None:
                self._trunk(account)
            elif current is None or current.account != account or current.hostname != config.hostname:
                tokens = self._keeper.of(account)
                self[name] = self._known(Egress(account, config.hostname, tokens, health=config.breaker, now=self._now))
                if current is not None:
                    self[name].pace.keep(current.pace)
                    retired.append(current)
            else:
                current.breaker.health = config.breaker
                current.breaker.ask_again(now)
        for key, egress in list(self.items()):
            known = config.accounts.get(egress.name)
            if known is None or (known.source is None) != (egress.direct is None):
                retired.append(gone := self.pop(key))
                self._gone[key] = gone.pace
            elif egress.direct is not None:
                retired += self._again(egress, known, same_name=before == config.hostname)
        for key in there & self.keys():  # at a start nobody has mended anything: what the last run was told still holds
            self[key].pace.ask_again(now)
        return retired

    def _again(self, egress: Egress[Work], account: Account, *, same_name: bool) -> list[Egress[Work]]:
        """A site's, under another configuration."""
        assert egress.direct is not None
        name = egress.direct.rule.name
        rule = next((r for r in self.config.destinations if r.name == name), None if name else ANYWHERE)
        if rule is None:
            return [self.pop(egress.key)]
        way = to_site(account, rule)
        if same_name and rule == egress.direct.rule and way == egress.account:
            egress.direct = self._network.direct(way, rule)
            egress.pace.also = self._also(account, rule)
            egress.breaker.health = self.config.breaker
            egress.breaker.ask_again(self._now())
            return []
        made = self._made(account, rule, egress.site)
        made.pace.keep(egress.pace)
        if made.window is not None and egress.window is not None:
            made.window.keep(egress.window)
        self[egress.key] = made
        return [egress]

    def _limits(self, config: Config) -> None:
        old, self._shared = self._shared, {}
        for rule in config.destinations:
            if rule.per == "relay" and (rule.limits or rule.warm_up):
                pace = self._shared[rule.name] = self._shared_pace(rule)
                if rule.name in old:
                    pace.keep(old[rule.name])
        for name in self.trunks.keys() - config.accounts.keys():
            del self.trunks[name]

    def _trunk(self, account: Account) -> None:
        """Its sessions are counted on, whatever changed."""
        trunk = self.trunks.get(account.name)
        if trunk is None:
            trunk = self.trunks[account.name] = Trunk(account, self._freed)
            self._restored(trunk.pace)
        else:
            trunk.apply(account)

    def look(self, key: str, now: float) -> EgressView | None:
        """How it stands, for operators. Makes none: of a site that has no mail it tells what a new one would be, and of a direct
        entry by its name alone what any new one would be."""
        egress = self.get(key)
        if egress is None:
            name, _, site = key.partition(" to ")
            account = self.config.accounts.get(name)
            if account is None or account.source is None:
                return None
            known = self._sites.by_name.get(site)
            egress = self._made(account, known.rule if known else ANYWHERE, site)
        return egress.view(now)

    def of(self, name: str) -> list[Egress[Work]]:
        """An account's one, or all of a direct entry's."""
        return [egress for egress in self.values() if egress.name == name]

    def forget(self) -> None:
        """Sites that have had no mail for long, and of which nothing is known that would matter."""
        now, soon = self._now(), clock.monotonic() - FORGET
        for key, egress in list(self.items()):
            idle = not egress.busy and not egress.sessions and egress.used < soon
            if egress.direct is not None and idle and not egress.breaker.wait(now) and egress.pace.unspent(now):
                del self[key]


def to_site(account: Account, rule: Destination) -> Account:
    """A direct entry as it is to what a rule is for. Its own limits are the trunk's."""
    return replace(
        account,
        connections=min(account.connections, rule.connections),
        messages_per_connection=rule.messages_per_connection,
        recipients_per_message=min(account.recipients_per_message, rule.recipients_per_message),
        limits=() if rule.per == "relay" else rule.limits,
        warm_up=None if rule.per == "relay" else rule.warm_up,
    )
