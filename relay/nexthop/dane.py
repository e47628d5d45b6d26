"""DANE for SMTP (RFC 7672, RFC 7671): whether a server showed the certificate that the TLSA records of its name promise.

Pure: records, certificates and the time are arguments. Whether the records may be believed (DNSSEC) is the caller's to know.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from relay.nexthop.identity import means
from relay.reply import clean

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.x509.verification import ExtensionPolicy

TA, EE = 2, 3  # usages
CERTIFICATE, KEY = 0, 1  # selectors
FULL, SHA256, SHA512 = 0, 1, 2  # matching types
_LENGTHS = {SHA256: 32, SHA512: 64}  # bytes
MOST_CERTIFICATES, MOST_RECORDS = 20, 100
LONGEST = 16 * 1024  # bytes of a certificate; OpenSSL itself takes a chain of at most 100 KiB


class Mismatch(Exception):
    """The server did not show what the records promise; the text, for operators, says what it showed instead."""


@dataclass(frozen=True, slots=True, order=True)
class Tlsa:
    usage: int
    selector: int
    matching: int
    data: bytes

    def __str__(self) -> str:
        """`3 1 1 1a2b3c…`: enough to find it in a zone."""
        shown = self.data.hex()
        return f"{self.usage} {self.selector} {self.matching} {shown[:16]}{'…' if len(shown) > 16 else ''}"

    def matches(self, whole: bytes, key: bytes) -> bool:
        """`whole`: the certificate, `key`: its SubjectPublicKeyInfo, both DER."""
        selected = whole if self.selector == CERTIFICATE else key
        return bool(selected) and _digest(self.matching, selected) == self.data


def usable(records: Iterable[tuple[int, int, int, bytes]]) -> tuple[Tlsa, ...]:
    """Those that can be verified by. Each is (usage, selector, matching type, data), as the DNS has it.

    None: there are records, but of no use to SMTP; then TLS is used without any verification (RFC 7672 §2.2).
    """
    kept = []
    for number, record in enumerate(records):
        if number == MOST_RECORDS:
            break
        made = Tlsa(*record)
        if _is_usable(made) and made not in kept:
            kept.append(made)
    # RFC 7671 §9: of the digests of one kind the strongest alone counts; whole ones count always.
    strong = {(r.usage, r.selector) for r in kept if r.matching == SHA512}
    return tuple(r for r in kept if r.matching != SHA256 or (r.usage, r.selector) not in strong)


def _is_usable(record: Tlsa) -> bool:
    # RFC 7672 §3.1.3: with usages 0 and 1 client and server need not know a common authority. Nobody publishes them for SMTP.
    if record.usage not in (TA, EE) or record.selector not in (CERTIFICATE, KEY):
        return False
    if record.matching != FULL:
        return len(record.data) == _LENGTHS.get(record.matching)
    return 0 < len(record.data) <= LONGEST and (record.usage == EE or _can_be_read(record))


def _can_be_read(record: Tlsa) -> bool:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    if record.selector == CERTIFICATE:
        return _read(record.data) is not None
    try:
        load_der_public_key(record.data)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def verify(chain: Sequence[bytes], records: Sequence[Tlsa], names: Sequence[str], now: float) -> str:
    """Which record (as text) the server's `chain` (DER, the leaf first) matches. Raises Mismatch.

    `records`: from `usable`. `names`: those that the certificate may be for (RFC 7672 §3.2.2), which count for DANE-TA alone;
    `now`: epoch seconds. Takes milliseconds, and the first time the loading of cryptography: call it off the loop.
    """
    if not chain:
        raise Mismatch("the server showed no certificate")
    shown = [(whole, _key(whole)) for whole in chain[:MOST_CERTIFICATES] if len(whole) <= LONGEST]
    leaf = chain[0]
    if not shown or shown[0][0] is not leaf:
        raise Mismatch(f"the server's certificate is longer than {LONGEST} bytes")
    for record in records[:MOST_RECORDS]:
        # RFC 7672 §3.1.1: neither names nor dates count, the DNS says whose key it is and until when.
        if record.usage == EE and record.matches(*shown[0]):
            return str(record)
    why = ""
    for record in records[:MOST_RECORDS]:
        if record.usage == TA:
            try:
                _anchored(shown, record, names, now)
            except Mismatch as error:
                why = why or str(error)
                continue
            return str(record)
    digest = hashlib.sha256(shown[0][1]).hexdigest()[:16]
    raise Mismatch(why or f"the server's key is 3 1 1 {digest}…, which no TLSA record promises: " + _some(records))


def _some(records: Sequence[Tlsa]) -> str:
    return ", ".join(map(str, records[:3])) + (f" and {len(records) - 3} more" if len(records) > 3 else "")


def _anchored(shown: Sequence[tuple[bytes, bytes]], record: Tlsa, names: Sequence[str], now: float) -> None:
    """Raises Mismatch unless the leaf is for one of `names`, and its chain ends at the authority of this record."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        leaf = _read(shown[0][0])
        if leaf is None:
            raise ValueError("no certificate")
        patterns = _names(leaf)
        others = [made for whole, _ in shown[1:] if (made := _read(whole)) is not None and made != leaf]
        anchors = _anchors(shown, record, [leaf, *others])
        if not anchors:
            raise Mismatch(f"no certificate of the server's chain is the authority {record}")
        if not any(means(pattern, name) for pattern in patterns for name in names):
            what = clean(" ".join(patterns[:5])) or "no name"
            raise Mismatch(f"the certificate is for {what}, not for {' or '.join(names)}")
        _check_path(leaf, others, anchors, now)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        # Most of a certificate is read only once it is asked for.
        raise Mismatch("the server's certificate cannot be read") from None


def _anchors(
    shown: Sequence[tuple[bytes, bytes]], record: Tlsa, chain: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """The certificates that the record vouches for: shown by the server, as RFC 7672 §3.1.2 wants it, or in the record."""
    found = [
        made for whole, key in shown[1:] if record.matches(whole, key) and (made := _read(whole)) and made != chain[0]
    ]
    if not found and record.matching == FULL:
        if record.selector == CERTIFICATE:
            made = _read(record.data)
            found = [made] if made is not None else []
        else:  # RFC 7671 §5.2.3: a key without a name; whatever it has signed is trusted in its place
            found = [made for made in chain if _signed_by(made, record.data)]
    return found


def _check_path(
    leaf: x509.Certificate, others: list[x509.Certificate], anchors: list[x509.Certificate], now: float
) -> None:
    """Signatures, dates, authority flags, path lengths, name constraints: by cryptography's verifier. Raises Mismatch.

    Its rules are those of the web, which private authorities do not keep: the extensions that only help to find a path are
    optional here, as are critical flags. Names are ours to match (one of several, or CN), so it is asked as for a client.
    What is left of its rules: RSA of at least 2048 bits, P-256 to P-521, no SHA-1.
    """
    from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

    authorities, servers = _extensions()
    verifier = (
        PolicyBuilder()
        .store(Store(anchors))
        .time(datetime.fromtimestamp(now, UTC).replace(tzinfo=None))
        .max_chain_depth(MOST_CERTIFICATES)
        .extension_policies(ca_policy=authorities, ee_policy=servers)
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, others)
    except VerificationError as error:
        text = " ".join(str(error).partition("(encountered processing")[0].split())
        raise Mismatch(f"the certificate does not lead to the authority of the TLSA record: {text[:200]}") from None


def _extensions() -> tuple[ExtensionPolicy, ExtensionPolicy]:
    """For authorities, and for servers. An unknown critical extension is still an error."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID as Use
    from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy

    def is_authority(_: Policy, __: x509.Certificate, constraints: x509.BasicConstraints) -> None:
        if not constraints.ca:
            raise ValueError("a certificate that is no authority's has signed another one")

    def may_sign(_: Policy, __: x509.Certificate, usage: x509.KeyUsage | None) -> None:
        if usage is not None and not usage.key_cert_sign:
            raise ValueError("an authority's key may not sign certificates")

    def may_serve(_: Policy, __: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
        if usage is not None and not {Use.SERVER_AUTH, Use.ANY_EXTENDED_KEY_USAGE} & set(usage):
            raise ValueError("the certificate is not for servers")

    either = Criticality.AGNOSTIC
    authorities = (
        ExtensionPolicy.webpki_defaults_ca()
        .require_present(x509.BasicConstraints, either, is_authority)
        .may_be_present(x509.KeyUsage, either, may_sign)
        .may_be_present(x509.AuthorityKeyIdentifier, either, None)
        .may_be_present(x509.SubjectKeyIdentifier, either, None)
        .may_be_present(x509.ExtendedKeyUsage, either, may_serve)
    )
    servers = (
        ExtensionPolicy.webpki_defaults_ee()
        .may_be_present(x509.SubjectAlternativeName, either, None)
        .may_be_present(x509.KeyUsage, either, None)
        .may_be_present(x509.BasicConstraints, either, None)
        .may_be_present(x509.AuthorityKeyIdentifier, either, None)
        .may_be_present(x509.SubjectKeyIdentifier, either, None)
        .may_be_present(x509.ExtendedKeyUsage, either, may_serve)
    )
    return authorities, servers


def _names(leaf: x509.Certificate) -> list[str]:
    """Its DNS names; those of the subject only where there are none (RFC 7672 §3.2.3)."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        other = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = other.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        found = []
    common = leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return found or [name.value for name in common if isinstance(name.value, str)]


def _signed_by(certificate: x509.Certificate, key: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    try:
        public = load_der_public_key(key)
        how, digest = certificate.signature_algorithm_parameters, certificate.signature_hash_algorithm
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, signed, how, digest)  # type: ignore[arg-type]
        elif isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, signed, how)  # type: ignore[arg-type]
        elif isinstance(public, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
            public.verify(signature, signed)
        else:
            return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False
    return True


def _read(whole: bytes) -> x509.Certificate | None:
    import warnings

    from cryptography import x509

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a stranger's serial number: nothing that our operator could change
            return x509.load_der_x509_certificate(whole)
    except (ValueError, TypeError, x509.InvalidVersion):
        return None


def _digest(matching: int, content: bytes) -> bytes:
    if matching == FULL:
        return content
    return (hashlib.sha256 if matching == SHA256 else hashlib.sha512)(content).digest()


def _key(whole: bytes) -> bytes:
    """The SubjectPublicKeyInfo as it stands in a certificate, octet by octet; empty: there is none.

    Read here, for cryptography would write it anew: keys of RSASSA-PSS, and those that it does not know, would be others.
    """
    try:
        _, certificate, _ = _element(whole)
        _, signed, _ = _element(certificate)
        fields: list[bytes] = []
        while signed and len(fields) < 8:
            tag, _, size = _element(signed)
            if tag != 0xA0:  # the version, which may be missing (RFC 5280 §4.1)
                fields.append(signed[:size])
            signed = signed[size:]
        return fields[5]  # after serial number, algorithm, issuer, validity and subject
    except (IndexError, ValueError):
        return b""


def _element(data: bytes) -> tuple[int, bytes, int]:
    """Of the DER element at the start: tag, content, and its length with both. Raises IndexError, ValueError."""
    length, start = data[1], 2
    if length & 0x80:
        start += length & 0x7F
        if not 2 < start <= 6:
            raise ValueError("no length of DER")
        length = int.from_bytes(data[2:start])
    if start + length > len(data):
        raise ValueError("cut off")
    return data[0], data[start : start + length], start + length
