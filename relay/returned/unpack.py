"""Reports that come as files: in a mail or bare, plain, in gzip or in zip. Pure.

One level is unpacked, and no more than MOST_UNPACKED: what claims its size is not asked, what comes out is counted.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from relay.returned.parts import Mail

MOST_UNPACKED = 10 << 20  # octets; some 10,000 records of a DMARC report
MOST_FILES = 10  # in one mail that are looked at
MOST_ENTRIES = 20  # of a zip file

GZIP, ZIP = b"\x1f\x8b", b"PK\x03\x04"
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")  # of byte order: UTF-8, UTF-16
_ENTRY = b"PK\x01\x02"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Refused(ValueError):
    """A file that is not read; the text says why."""


@dataclass(frozen=True, slots=True)
class File:
    content: bytes
    type: str = ""  # MIME type of its part; empty: it came bare
    name: str = ""

    @property
    def packed(self) -> bool:
        return self.content.startswith((GZIP, ZIP))


def files(mail: Mail, raw: bytes) -> Iterator[File]:
    """What may be a report: all of `raw` where it is no mail, else the parts that are more than text."""
    if raw.startswith((GZIP, ZIP)) or _begin(raw) in (b"<", b"{"):
        yield File(raw)
        return
    found = 0
    for part in mail.parts:
        if part.content.startswith((GZIP, ZIP)) or _begin(part.content) in (b"<", b"{"):
            yield File(part.content, part.type, part.filename)
            found += 1
        if found == MOST_FILES:
            return


def _begin(content: bytes) -> bytes:
    """The first octet that says something."""
    start = content[:200]
    for mark in _MARKS:
        start = start.removeprefix(mark)
    return start.replace(b"\0", b"").lstrip()[:1]


def unpacked(file: File) -> bytes:
    """What is in it. Raises Refused."""
    try:
        if file.content.startswith(ZIP):
            found = _unzipped(file.content)
        elif file.content.startswith(GZIP):
            found = _gunzipped(file.content)
        else:
            found = file.content
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError) as error:
        raise Refused(f"it is broken: {str(error)[:100]}") from None
    except (NotImplementedError, RuntimeError, ValueError, LookupError, OSError, OverflowError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(f"it can't be unpacked: {str(error)[:100]}") from None
    if len(found) > MOST_UNPACKED:
        raise Refused(f"it has more than {MOST_UNPACKED >> 20} MiB")
    if file.packed and found.startswith((GZIP, ZIP)):
        raise Refused("it is packed twice")
    return found


def _gunzipped(content: bytes) -> bytes:
    """All members. One that ends early gives what it has: only its checksum may be missing, and its reader will see."""
    found = bytearray()
    while content.startswith(GZIP) and len(found) <= MOST_UNPACKED:
        one = zlib.decompressobj(wbits=31)
        found += one.decompress(content, MOST_UNPACKED + 1 - len(found))
        content = one.unused_data
    return bytes(found)


def _unzipped(content: bytes) -> bytes:
    """Its first file."""
    # The directory is made objects of before anything may be asked.
    if content.count(_ENTRY) > MOST_ENTRIES:
        raise Refused(f"it has more than {MOST_ENTRIES} files")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        wanted = [one for one in archive.infolist() if not one.is_dir() and not one.filename.startswith("__MACOSX/")]
        if not wanted:
            raise Refused("there is no file in it")
        if wanted[0].compress_type not in _METHODS:
            raise Refused("its compression is not that of RFC 1951")
        with archive.open(wanted[0]) as file:
            return file.read(MOST_UNPACKED + 1)
