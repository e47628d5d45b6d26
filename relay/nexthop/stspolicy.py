"""MTA-STS policies and the records that announce them (RFC 8461 §3), read strictly and within bounds. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from relay.nexthop.identity import means

Mode = Literal["enforce", "testing", "none"]

LONGEST = 64 * 1024  # bytes of a policy, RFC 8461 §3.3
MAX_HOSTS = 200
MAX_AGE = 31_557_600  # seconds, about a year: RFC 8461 §3.2

_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_RECORD_VALUE = re.compile(r"[!-:<>-~]+")
_VALUE = re.compile(r"[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?")
_AGE = re.compile(r"[0-9]{1,10}")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # underscores: the DNS has hosts with them
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """What a domain says of the TLS of its hosts. It is good until `ends`."""

    id: str  # of the record that announced it
    mode: Mode
    mx: tuple[str, ...]  # hosts, or `*.` and a domain; lower case
    max_age: int  # seconds
    fetched_at: float  # epoch seconds

    @property
    def ends(self) -> float:
        return self.fetched_at + self.max_age

    def matches(self, host: str) -> bool:
        """Whether mail for the domain may go to this host (RFC 8461 §4.1)."""
        return any(means(pattern, host) for pattern in self.mx)


def parse_record(texts: Sequence[bytes]) -> str | None:
    """The id in the TXT records of `_mta-sts.DOMAIN`; None: they announce no policy (RFC 8461 §3.1)."""
    ours = [text for text in texts if text.startswith(b"v=STSv1;")]
    if len(ours) != 1 or not ours[0].isascii():
        return None
    fields = [field.strip(" \t") for field in ours[0].decode().split(";")[1:]]
    if not fields[-1]:
        fields.pop()  # what ends may be ended by a semicolon
    id_ = None
    for field in fields:
        name, _, value = field.partition("=")
        if not _NAME.fullmatch(name) or not _RECORD_VALUE.fullmatch(value):
            return None
        if name == "id" and id_ is None:
            if not _ID.fullmatch(value):
                return None
            id_ = value
    return id_


def parse_policy(raw: bytes, id_: str, fetched_at: float) -> StsPolicy:
    """RFC 8461 §3.2. `id_`: of the record, `fetched_at`: epoch seconds. Raises ValueError, which says what is wrong."""
    if len(raw) > LONGEST:
        raise ValueError(f"the policy is longer than {LONGEST} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise ValueError("the policy is not UTF-8") from None
    found: dict[str, str] = {}
    hosts: list[str] = []
    for name, value in map(_field, _lines(text)):
        if name == "mx":
            hosts.append(value)
        else:
            found.setdefault(name, value)  # the first one counts
    missing = [name for name in ("version", "mode", "max_age") if name not in found]
    if missing:
        raise ValueError(f"the policy has no {missing[0]}")
    if found["version"] != "STSv1":
        raise ValueError(f"the policy's version is {found['version'][:40]!r}, not STSv1")
    if found["mode"] not in get_args(Mode):
        raise ValueError(f"the policy's mode is {found['mode'][:40]!r}")
    if not _AGE.fullmatch(found["max_age"]):
        raise ValueError(f"the policy's max_age is {found['max_age'][:40]!r}, no number of seconds")
    return made(id_, found["mode"], hosts, int(found["max_age"]), fetched_at)


def made(id_: str, mode: str, hosts: Sequence[str], max_age: int, fetched_at: float) -> StsPolicy:
    """A policy of values that are not trusted yet. Raises ValueError."""
    if mode not in get_args(Mode) or not _ID.fullmatch(id_) or max_age < 0:
        raise ValueError("no policy")
    if len(hosts) > MAX_HOSTS:
        raise ValueError(f"the policy has more than {MAX_HOSTS} mx")
    if not hosts and mode != "none":
        raise ValueError("the policy has no mx")
    for host in hosts:
        if len(host) > 255 or not _HOST.fullmatch(host):
            raise ValueError(f"the policy's mx is {host[:80]!r}, no host")
    return StsPolicy(id_, cast(Mode, mode), tuple(h.lower() for h in hosts), min(max_age, MAX_AGE), fetched_at)


def _lines(text: str) -> list[str]:
    """Each ends with CRLF or LF, the last one perhaps with neither, or with several: editors leave empty lines there."""
    return [line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")]


def _field(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not colon or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
        raise ValueError(f"the policy's line {line[:80]!r} is no field")
    return name, value
