"""What direct delivery knows of the network: the DNS, policies, which hosts are dead, which are this relay. One for all lanes."""

from __future__ import annotations

from relay.deliver.dead import Dead
from relay.deliver.direct import Direct
from relay.deliver.ours import Here
from relay.maillog import MailLog
from relay.nexthop.mx import Mx
from relay.nexthop.policy import Security
from relay.nexthop.sts import Sts
from relay.resolver import Resolver
from relay.settings import Account, Config, Destination


class Network:
    """Made for a configuration; `apply` takes the next one, and asks the DNS anew."""

    def __init__(self, config: Config, log: MailLog, *, keep: bool = True) -> None:
        """`keep`: policies are remembered on the disk."""
        self.log, self.dead = log, Dead()
        self._private = False
        resolver = self._resolver(config)
        self.sts = Sts(
            resolver, config.spool.path.parent / "mta-sts" if keep else None, log, lambda address: self._private
        )
        self._take(config, resolver)

    def apply(self, config: Config) -> None:
        """What an operator may have mended is tried again at once."""
        self.dead = Dead()
        self._take(config, self._resolver(config))

    def _take(self, config: Config, resolver: Resolver) -> None:
        self.resolver, self.mx = resolver, Mx(resolver)
        self.sts.resolver = resolver
        self._private = any(rule.allow_private for rule in config.destinations)
        self.security = Security(resolver, self.sts)
        sources = [account.source.hostname for account in config.accounts.values() if account.source is not None]
        self.ours = Here(config.listen, [config.hostname, *filter(None, sources)])
        self.hostname = config.hostname

    @staticmethod
    def _resolver(config: Config) -> Resolver:
        return Resolver(config.dns.servers, config.dns.timeout, trust_ad=config.dns.trust_ad)

    def direct(self, account: Account, rule: Destination) -> Direct:
        """The way of a direct entry to what a rule is for."""
        return Direct(
            account,
            rule,
            self.hostname,
            mx=self.mx,
            security=self.security,
            dead=self.dead,
            ours=self.ours,
            log=self.log,
        )
