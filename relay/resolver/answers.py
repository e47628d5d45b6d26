"""What servers answer, as values: a question followed along its aliases until something is found, or surely is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from relay import clock

if TYPE_CHECKING:
    import dns.exception
    import dns.message
    import dns.name
    import dns.rdata
    import dns.resolver
    import dns.rrset

PORT = 53
MAX_ALIASES = 8

# Seconds that an answer is believed at most, as BIND and unbound do, and what is not there (RFC 2308 §5).
LONGEST, LONGEST_ABSENCE = 86400, 3600
UNSAID = 60  # seconds for an absence without a SOA, which RFC 2308 §5 would have us forget at once
_SIGN = 1 << 31  # a TTL with this bit is 0: RFC 2181 §8

Kind = Literal["MX", "A", "AAAA", "TLSA", "TXT", "CNAME"]


class DnsTrouble(Exception):
    """Nobody knows what the DNS holds: no server answered, or none could. The text says which and why."""


@dataclass(frozen=True, slots=True)
class Found:
    """What the DNS holds of one kind under one name, or that it holds nothing.

    `records`, by kind: MX (preference, host), the host in lower case without a dot at the end, empty for the root;
    A and AAAA the address as text; TLSA (usage, selector, matching, octets); TXT its strings in one, as octets; CNAME the name
    that it leads to, and it is not followed.
    """

    records: tuple[Any, ...] = ()
    exists: bool = True  # False: there is no such name (NXDOMAIN), nor can there be
    secure: bool = False  # each answer on the way was proven (AD), by a resolver that we trust for it
    expires: float = 0.0  # by clock.monotonic()
    canonical: str = ""  # the name at the end of its aliases; empty: it is no alias


class Chase:
    """One question on its way: `asked` is what to ask next, until `found`. Opens nothing."""

    def __init__(self, name: str, kind: Kind, trust_ad: bool = False) -> None:
        self._name, self.kind = name, kind
        self.asked = self._first = _parsed(name)
        self._secure, self._ttl, self._steps = trust_ad, LONGEST, 0
        self.found: Found | None = None
        if self.asked is None:
            self.found = Found(exists=False, expires=clock.monotonic() + LONGEST)

    def step(self) -> None:
        """Before each question. Raises DnsTrouble where there were too many."""
        if self._steps >= MAX_ALIASES:
            raise DnsTrouble(f"{self._name}: more than {MAX_ALIASES} aliases, one after the other")
        self._steps += 1

    def answered(self, answer: dns.resolver.Answer) -> None:
        """With records, or without any (NOERROR). Raises DnsTrouble.

        A server that follows no alias into another zone names it, and holds nothing itself.
        """
        import dns.rdatatype

        where = _where(str(answer.nameserver), answer.port or PORT)
        alias = self._note(answer.response, f"{where}: ")
        if answer.rrset is not None:
            self._ttl = min(self._ttl, _ttl(answer.rrset))
            self._end(alias, tuple(_value(record) for record in answer.rrset))
            return
        if alias != self.asked:
            self.asked = alias
            return
        kinds = {found.rdtype for found in answer.response.authority}
        if dns.rdatatype.NS in kinds and dns.rdatatype.SOA not in kinds:
            raise DnsTrouble(
                f"{self._name}: {where} sends us on to other servers; it must ask them itself (a recursive resolver)"
            )
        self._ttl = min(self._ttl, _absence(answer.response, alias))
        self._end(alias)

    def failed(self, error: dns.exception.DNSException) -> None:
        """NXDOMAIN is an answer too. Raises DnsTrouble for all else."""
        import dns.resolver

        if not isinstance(error, dns.resolver.NXDOMAIN):
            raise DnsTrouble(f"{self._name}: {_why(error)}") from None
        response: dns.message.QueryMessage = error.kwargs["responses"][self.asked]
        alias = self._note(response)
        self._ttl = min(self._ttl, _absence(response, alias))
        self._end(alias, exists=False)

    def _note(self, response: dns.message.QueryMessage, where: str = "") -> dns.name.Name:
        """The name at the end of its aliases. Raises DnsTrouble."""
        import dns.flags

        if response.flags & dns.flags.TC:
            raise DnsTrouble(f"{self._name}: {where}the answer is cut off, over TCP as well")
        chain = response.resolve_chaining()
        self._secure = self._secure and bool(response.flags & dns.flags.AD)
        self._ttl = min([self._ttl, *map(_ttl, chain.cnames)])
        return chain.canonical_name

    def _end(self, at: dns.name.Name, records: tuple[Any, ...] = (), exists: bool = True) -> None:
        canonical = _text(at) if at != self._first else ""
        self.found = Found(records, exists, self._secure, clock.monotonic() + self._ttl, canonical)


def _parsed(name: str) -> dns.name.Name | None:
    """None: there can be no such name."""
    import dns.exception
    import dns.name

    try:
        return dns.name.from_text(name)
    except (dns.exception.DNSException, UnicodeError):
        return None


def _text(name: dns.name.Name) -> str:
    """Printable ASCII: what is none comes with a backslash."""
    return name.to_text(omit_final_dot=True).lower() if name.labels != (b"",) else ""


def _value(record: Any) -> Any:
    import dns.rdatatype

    match record.rdtype:
        case dns.rdatatype.MX:
            return record.preference, _text(record.exchange)
        case dns.rdatatype.TLSA:
            return record.usage, record.selector, record.mtype, record.cert
        case dns.rdatatype.TXT:
            return b"".join(record.strings)
        case dns.rdatatype.CNAME:
            return _text(record.target)
    return record.address


def _ttl(rrset: dns.rrset.RRset) -> int:
    return 0 if rrset.ttl & _SIGN else rrset.ttl


def _absence(response: dns.message.Message, name: dns.name.Name) -> int:
    """For how many seconds it holds: RFC 2308 §5."""
    import dns.rdatatype

    for rrset in response.authority:
        if rrset.rdtype == dns.rdatatype.SOA and name.is_subdomain(rrset.name):
            minimum: int = rrset[0].minimum
            return min(_ttl(rrset), minimum, LONGEST_ABSENCE)
    return UNSAID


def _why(error: Exception) -> str:
    """What each server said last."""
    import dns.exception

    said: dict[str, str] = {}
    for server_, _, port, found, _ in getattr(error, "kwargs", {}).get("errors") or ():
        where = _where(str(server_).removeprefix("Do53:").rpartition("@")[0], port)
        if isinstance(found, dns.exception.Timeout):
            said[where] = "no answer"
        else:
            said[where] = " ".join((getattr(found, "strerror", None) or str(found)).split())
    return "; ".join(f"{where}: {what or 'no answer'}" for where, what in said.items()) or "no answer"


def _where(host: str, port: int) -> str:
    return host if port == PORT else f"{host} port {port}"
