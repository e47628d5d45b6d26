"""Whether a message passes DMARC where it arrives: RFC 7489 §3.1, relaxed. Pure.

Nothing is looked up. What is judged is what we send: whose signature, and which envelope; whether the records in the DNS
are right is another question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from relay.envelope import ascii_domain


class Alignment(StrEnum):
    """What a message's From domain can rely on."""

    DKIM = "aligned_dkim"  # a signature of its own: what survives forwarding
    SPF_ONLY = "aligned_spf_only"  # a signature of somebody else's; the envelope alone is its own
    UNSIGNED = "unsigned"  # no signature at all, whatever the envelope says
    MISALIGNED = "misaligned"  # neither signature nor envelope
    UNKNOWN = "unknown"  # the upstream signs, as whom we do not know
    NO_FROM = "no_from"  # nothing to align with


@dataclass(frozen=True, slots=True)
class Verdict:
    """`found` and `mend` are for the operator: what there is, and what to do about it, if anything."""

    alignment: Alignment
    found: str
    mend: str = ""

    @property
    def why(self) -> str:
        """Both as a sentence."""
        return f"{self.found}; {self.mend}" if self.mend else self.found

    def mended_by(self, mend: str) -> Verdict:
        """The same with better advice, from who knows the entries of `signing`; none: with this one."""
        return Verdict(self.alignment, self.found, mend) if mend and self.mend else self

    @property
    def warns(self) -> bool:
        return self.alignment in (Alignment.UNSIGNED, Alignment.MISALIGNED, Alignment.NO_FROM)


@lru_cache(maxsize=4096)
def organizational_domain(domain: str) -> str:
    """The domain that somebody registered (RFC 7489 §3.2), by the Public Suffix List as installed; an A-label, or itself.

    The first call reads the list: 35 ms, 4 MB: in a thread that signs.
    """
    plain = ascii_domain(domain)
    return _public_suffixes()(plain) or plain


@lru_cache(maxsize=1)
def _public_suffixes() -> Callable[[str], str | None]:
    # Not imported above: who needs no alignment shall not pay for the list.
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList().privatesuffix


def aligned(from_domain: str, other: str, organizational: Callable[[str], str] = organizational_domain) -> bool:
    """Relaxed alignment: the same organizational domain. An empty domain is aligned with nothing."""
    ours, theirs = ascii_domain(from_domain), ascii_domain(other)
    if not ours or not theirs or ours == theirs:
        return bool(ours) and ours == theirs
    if "[" in (ours[0], theirs[0]):  # addresses of machines have no owner in common
        return False
    # Without a common end of two labels there is no common owner; the list need not be asked. That one is below the other
    # does not decide it: alice.github.io is not github.io's.
    if ours.split(".")[-2:] != theirs.split(".")[-2:]:
        return False
    return organizational(ours) == organizational(theirs)


def verdict(
    from_domain: str,
    signing_domains: Iterable[str],
    envelope_domain: str,
    upstream_signs: bool = False,
    organizational: Callable[[str], str] = organizational_domain,
) -> Verdict:
    """What a message relies on that leaves with these signatures (their `d=`) and this domain in MAIL FROM.

    `envelope_domain` is empty for the null reverse-path, for which SPF asks the EHLO name (RFC 7208 §2.4): give that.
    """
    return _verdict(from_domain, tuple(signing_domains), envelope_domain, upstream_signs, organizational)


@lru_cache(maxsize=4096)
def _verdict(
    from_domain: str,
    signing_domains: tuple[str, ...],
    envelope_domain: str,
    upstream_signs: bool,
    organizational: Callable[[str], str],
) -> Verdict:
    if not from_domain:
        return Verdict(
            Alignment.NO_FROM, "there is no address in From: no signature and no envelope can be aligned with it"
        )
    own = next((d for d in signing_domains if aligned(from_domain, d, organizational)), None)
    if own is not None:
        return Verdict(Alignment.DKIM, f"From {from_domain} is signed by {own}")
    by_envelope = bool(envelope_domain) and aligned(from_domain, envelope_domain, organizational)
    signed = (
        f"signed by {', '.join(signing_domains)} only, which is not aligned" if signing_domains else "signed by nobody"
    )
    if upstream_signs:
        by_us = f"; what we sign is {signed}" if signing_domains else ""
        return Verdict(
            Alignment.UNKNOWN,
            f"the upstream signs itself; that it signs as {from_domain} has to be set up there{by_us}",
        )
    mend = f"add `signing` for {from_domain}"
    if by_envelope:
        kind = Alignment.SPF_ONLY if signing_domains else Alignment.UNSIGNED
        return Verdict(
            kind,
            f"From {from_domain} is {signed}; the envelope domain {envelope_domain} is aligned, which helps as long as SPF "
            "passes and nobody forwards the message",
            mend,
        )
    envelope = (
        f"the envelope domain {envelope_domain} is not aligned" if envelope_domain else "the envelope has no domain"
    )
    return Verdict(
        Alignment.MISALIGNED if signing_domains else Alignment.UNSIGNED,
        f"From {from_domain} is {signed}, and {envelope}: receivers with a DMARC policy refuse or quarantine it",
        mend,
    )
