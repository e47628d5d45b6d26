"""One DKIM-Signature: which fields it covers, its tags, and what is signed (RFC 6376 §3.5, §3.7).

Of dkimpy: `fold`, and what the canonical form of a field is: by its rules, which its verifier uses as well, in a quarter of
its time. tests/pure/test_signing_seam.py holds the two together.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from typing import cast

import dkim as dkimpy

from relay.signing.canonical import Form, relaxed
from relay.signing.rules import Recipe

WIDTH = 72  # of a line of `b=`
_LONG = re.compile(r"\S{70}")
MAX_OF_ONE = 20  # fields of one name that are signed


class Fields:
    """A header block, read for signing: what each name has, and its canonical forms, made once."""

    def __init__(self, head: bytes) -> None:
        self._all = [field for field in split_fields(head) if field[0]]
        self._forms: dict[Form, dict[bytes, list[bytes]]] = {}

    @property
    def names(self) -> Iterable[bytes]:
        """In lower case, once for each field, from the top."""
        return (name.rstrip(b" \t").lower() for name, _ in self._all)

    def text(self, name: bytes) -> str:
        """The first field of that name, unfolded, and clipped where it is absurdly long; empty: there is none."""
        for written, value in self._all:
            if written.rstrip(b" \t").lower() == name:
                return value.replace(b"\r\n", b"")[:4000].decode("utf-8", "replace").strip()
        return ""

    def of(self, form: Form) -> dict[bytes, list[bytes]]:
        """Lower-case name -> its fields in canonical form, from the top."""
        found = self._forms.get(form)
        if found is None:
            found = self._forms[form] = {}
            for name, field in zip(self.names, canonical_fields(self._all, form), strict=True):
                found.setdefault(name, []).append(field)
        return found


def split_fields(head: bytes) -> list[tuple[bytes, bytes]]:
    """(name as written, value with its CRLF) from the top, in linear time; a line that is no field has an empty name."""
    found: list[tuple[bytes, list[bytes]]] = []
    for line in head.split(b"\r\n"):
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if line[0] in b" \t" and found:
            found[-1][1].append(line)
        else:
            found.append((name, [value]) if colon and name else (b"", [line]))
    return [(name, b"\r\n".join([*lines, b""])) for name, lines in found]


def canonical_fields(fields: Sequence[tuple[bytes, bytes]], form: Form) -> list[bytes]:
    """(name, value with its CRLF) each in canonical form (RFC 6376 §3.4.1, §3.4.2), with its CRLF."""
    if form == "simple":
        return [name + b":" + value for name, value in fields]
    return [
        name.lower().rstrip() + b":" + relaxed(value.replace(b"\r\n", b"").replace(b"\n", b"")).strip() + b"\r\n"
        for name, value in fields
    ]


def signature(recipe: Recipe, fields: Fields, body_hash: str) -> bytes:
    """The whole DKIM-Signature field, with its CRLF, to stand above the others."""
    present = fields.of(recipe.header_form)
    covered = _covered(recipe, present)
    expires = "" if recipe.expires_at is None else f" x={recipe.expires_at};"
    tags = (
        f"v=1; a={recipe.key.algorithm}; c={recipe.header_form}/{recipe.body_form}; d={recipe.domain}; "
        f"s={recipe.selector}; t={recipe.signed_at};{expires} h={': '.join(name.decode() for name in covered)};"
    )
    value = _folded(tags) + f"bh={body_hash};\r\n b=".encode()
    unsigned = canonical_fields([(b"DKIM-Signature", b" " + value + b"\r\n")], recipe.header_form)[0]
    # RFC 6376 §3.7: the fields in the order of h=, of each name from the bottom up; last this one, with an empty b= and
    # without its CRLF.
    data = b"".join([*selected(covered, present), unsigned.rstrip(b"\r\n")])
    signed = base64.b64encode(recipe.key.sign(data))
    lines = [signed[at : at + WIDTH] for at in range(0, len(signed), WIDTH)]
    return b"DKIM-Signature: " + value + b"\r\n ".join(lines) + b"\r\n"


def _covered(recipe: Recipe, present: dict[bytes, list[bytes]]) -> list[bytes]:
    names: list[bytes] = []
    for name, found in present.items():
        if name in recipe.sign or name in recipe.always or name in recipe.once_more:
            # Of absurdly many the last ones: that is where a reader looks, and a verifier begins.
            more = name in recipe.once_more or name in recipe.always
            names += [name] * (len(found) + more if len(found) <= MAX_OF_ONE else MAX_OF_ONE)
    return names + [name for name in recipe.always if name not in present]


def selected(covered: Sequence[bytes], present: dict[bytes, list[bytes]]) -> Iterable[bytes]:
    """Of each name in the order of `covered` the last field that is left, as often as it is named (RFC 6376 §5.4.2)."""
    taken: dict[bytes, int] = {}
    for name in covered:
        number = taken[name] = taken.get(name, 0) + 1
        found = present.get(name, ())
        if number <= len(found):
            yield found[-number]


def _folded(tags: str) -> bytes:
    """In lines; the next one is begun."""
    if _LONG.search(tags):  # dkimpy would break it in its middle, and a domain or a selector has no blank
        return tags.replace(" ", "\r\n ").encode() + b"\r\n "
    return cast(bytes, dkimpy.fold(tags.encode(), namelen=len("DKIM-Signature: "))) + b"\r\n "
