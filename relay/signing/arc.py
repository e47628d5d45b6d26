"""Seals of the Authenticated Received Chain (RFC 8617): what we found when we took a message in, for those who get it next.

What a seal says comes from a verification of ours (relay.signing.verify), never from a field that arrived.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from relay.signing import chain as chains
from relay.signing.canonical import body_hash
from relay.signing.dkim import Fields, canonical_fields, selected, split_fields
from relay.signing.key import SigningKey
from relay.signing.rules import SIGNED
from relay.signing.tags import Field
from relay.signing.verify import ArcResult, DkimResult

WIDTH = 76  # of a line
COVERED = frozenset([*(name.encode() for name in SIGNED), b"dkim-signature"])  # the signatures too: RFC 8617 §4.1.2
MAX_OF_ONE = 10  # fields of one name that are covered, the last ones
_TOKEN = re.compile(rb"[!#-'*+.0-9A-Z^-~\x80-\xff-]+")


@dataclass(frozen=True, slots=True)
class Sealer:
    """Who seals, and when."""

    key: SigningKey  # RSA, where it is to be of use: few verify seals by Ed25519
    domain: str
    selector: str
    signed_at: int  # epoch seconds
    width: int = WIDTH  # 0: lines are not folded


def seal(
    head: bytes,
    body: bytes | Path,
    key: SigningKey,
    domain: str,
    selector: str,
    authserv_id: str,
    results: Sequence[DkimResult],
    chain: ArcResult,
    signed_at: int,
) -> bytes:
    """The three fields of the next set, to stand on top; nothing where nobody may add one.

    `head` is the block as it will leave, `results` and `chain` what was found when it came. Raises OSError;
    ValueError where the chain in `head` is not that of `chain`.
    """
    if chain.ended or chain.temporary:
        return b""  # one that could not be judged is left as it is: cv=fail would end it for good
    fields = Fields(head)
    # RFC 8617 §5.1.2: the seal of a chain that failed covers its own set alone.
    before = [] if chain.cv != "pass" else _before(head, chain.instance)
    found = [f"arc={chain.cv}", *(_result(one) for one in results)]
    if not results:
        found.append("dkim=none")
    sealer = Sealer(key, domain, selector, signed_at)
    payload = f"{authserv_id};\r\n " + ";\r\n ".join(found)
    names = covered(fields)
    return sealed(sealer, fields, body_hash(body, "relaxed"), names, payload, before, chain.instance + 1, chain.cv)


def sealed(
    sealer: Sealer,
    fields: Fields,
    body_hash: str,
    names: Sequence[bytes],
    payload: str,
    before: Sequence[Field],
    instance: int,
    cv: str,
) -> bytes:
    """One set. `names`: what the message signature covers, `payload`: the results, `before`: the fields of older sets in
    the order of a seal."""
    results = b"ARC-Authentication-Results", f" i={instance}; {payload}\r\n".encode()
    tags = {
        "a": sealer.key.algorithm,
        "b": "",
        "bh": body_hash,
        "c": "relaxed/relaxed",
        "d": sealer.domain,
        "h": ":".join(name.decode() for name in names),
        "i": str(instance),
        "s": sealer.selector,
        "t": str(sealer.signed_at),
    }
    present = fields.of("relaxed") | {b"arc-authentication-results": _own(results, fields)}
    message = _signed(sealer, b"ARC-Message-Signature", tags, selected(names, present))
    tags = {name: tags[name] for name in "abdist"} | {"cv": cv}
    over = canonical_fields([*before, results, message], "relaxed")
    top = _signed(sealer, b"ARC-Seal", dict(sorted(tags.items())), over)
    return b"".join(name + b":" + value for name, value in (top, message, results))


def covered(fields: Fields) -> list[bytes]:
    """The names for h= of an ARC-Message-Signature: each field of COVERED that is there, and no other From may join."""
    counted = Counter(name for name in fields.names if name in COVERED)
    return [name for name, count in counted.items() for _ in range(min(count, MAX_OF_ONE))] + [b"from"]


def without_results(head: bytes, authserv_id: str) -> bytes:
    """A header block without the Authentication-Results fields that claim to be ours, and those that can't be read: only
    we may write them (RFC 8601 §5)."""
    if b"authentication-results" not in head.lower():
        return head
    ours = authserv_id.lower().encode()
    kept = []
    for name, value in split_fields(head):
        if name.rstrip(b" \t").lower() == b"authentication-results" and _author(value) in (None, ours):
            continue
        kept.append(name + b":" + value if name else value)
    if head.endswith(b"\r\n\r\n"):
        kept.append(b"\r\n")  # the empty line that ends a block is no field
    return b"".join(kept)


def _author(value: bytes) -> bytes | None:
    """The authserv-id of Authentication-Results, in lower case; None: it can't be read (RFC 8601 §2.2)."""
    at, depth = 0, 0
    while at < len(value):
        char = value[at : at + 1]
        if depth and char == b"\\":
            at += 1
        elif char == b"(":
            depth += 1
        elif depth and char == b")":
            depth -= 1
        elif not depth and not char.isspace():
            break
        at += 1
    if value[at : at + 1] == b'"':
        quoted = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL).match(value, at)
        return re.sub(rb"\\(.)", rb"\1", quoted[1]).lower() if quoted else None
    token = _TOKEN.match(value, at)
    return token[0].lower() if token else None


def _before(head: bytes, instance: int) -> list[Field]:
    named: dict[bytes, list[Field]] = {}
    for name, value in split_fields(head):
        named.setdefault(name.rstrip(b" \t").lower(), []).append((name, value))
    try:
        sets = chains.sets(named)
    except chains.Broken as broken:
        raise ValueError(f"the chain was altered after it was verified: {broken}") from None
    if len(sets) != instance:
        raise ValueError("the chain is not the one that was verified")
    return chains.scope(sets)


def _own(results: Field, fields: Fields) -> list[bytes]:
    return [*canonical_fields([results], "relaxed"), *fields.of("relaxed").get(b"arc-authentication-results", ())]


def _result(one: DkimResult) -> str:
    """As RFC 8601 §2.7.1 writes it."""
    # A quoted string may have a semicolon; who splits at them would not see that it is one.
    said = [f' reason="{one.why.replace(";", ",")}"'] if one.why and one.result != "pass" else []
    for name, value in (("d", one.domain), ("s", one.selector), ("a", one.algorithm), ("b", one.mark)):
        if value:
            said.append(f" header.{name}={_value(value)}")
    return _filled(f"dkim={one.result}", said, WIDTH, "  ")


def _value(text: str) -> str:
    return text if _TOKEN.fullmatch(text.encode()) else f'"{text}"'  # a mark may have a slash


def _signed(sealer: Sealer, name: bytes, tags: dict[str, str], over: Iterable[bytes]) -> Field:
    unsigned = canonical_fields([(name, _folded(name, tags, sealer.width))], "relaxed")[0]
    signature = sealer.key.sign(b"".join([*over, unsigned.rstrip(b"\r\n")]))
    return name, _folded(name, tags | {"b": base64.b64encode(signature).decode()}, sealer.width)


def _folded(name: bytes, tags: dict[str, str], width: int) -> bytes:
    """A value with its CRLF. Between tags is one blank or one fold, which are the same in relaxed form whatever `b` is."""
    return (_filled(f"{name.decode()}:", _breakable(tags), width, " ")[len(name) + 1 :] + "\r\n").encode()


def _filled(start: str, parts: Iterable[str], width: int, indent: str) -> str:
    """Lines of at most `width`, broken between parts only; each brings its own blank."""
    lines = [start]
    for part in parts:
        if width and len(lines[-1]) + len(part) > width:
            lines.append(indent + part.lstrip(" "))
        else:
            lines[-1] += part
    return "\r\n".join(lines)


def _breakable(tags: dict[str, str]) -> Iterator[str]:
    last = len(tags) - 1
    for number, (tag, value) in enumerate(tags.items()):
        end = ";" if number < last else ""
        if tag == "b":
            pieces = [value[at : at + WIDTH - 8] for at in range(0, len(value), WIDTH - 8)] or [""]
        elif tag == "h":
            pieces = re.findall(r"[^:]*:?", value)[:-1]
        else:
            pieces = [value]
        yield f" {tag}={pieces[0]}" + end * (len(pieces) == 1)
        for at, piece in enumerate(pieces[1:], 2):
            yield piece + end * (at == len(pieces))
