"""Sessions at random: commands that are right, commands that are not, DATA with odd endings, cut anywhere."""

from __future__ import annotations

import base64
import random
from pathlib import Path

GOOD = base64.b64encode(b"\0shop\0right")
WRONG = base64.b64encode(b"\0shop\0wrong")
OPENING = [b"EHLO x\r\n", b"HELO x\r\n", b"EHLO [127.0.0.1]\r\n"]
ENVELOPE = [
    b"MAIL FROM:<a@shop.example>\r\n", b"MAIL FROM:<> BODY=8BITMIME SIZE=100\r\n", b"mail from: <b@b.example> SMTPUTF8\r\n",
    b"RCPT TO:<x@y.example>\r\n", b"RCPT TO:<\xc3\xa4@y.example>\r\n", b'RCPT TO:<"a > b"@y.example>\r\n', b"DATA\r\n",
]  # fmt: skip
OTHER = [
    b"NOOP\r\n", b"RSET\r\n", b"QUIT\r\n", b"VRFY x\r\n", b"HELP\r\n", b"STARTTLS\r\n", b"BDAT 5 LAST\r\n", b"EXPN x\r\n",
    b"AUTH PLAIN " + GOOD + b"\r\n", b"AUTH PLAIN\r\n", GOOD + b"\r\n", b"AUTH PLAIN " + WRONG + b"\r\n", b"*\r\n", b"=\r\n",
    b"AUTH LOGIN\r\n", b"c2hvcA==\r\n", b"cmlnaHQ=\r\n", b"AUTH\r\n", b"AUTH CRAM-MD5\r\n", b"GET / HTTP/1.1\r\n", b"\r\n",
    b"MAIL FROM:<a@b.example> SIZE=\xc2\xb2\r\n", b"MAIL FROM:<a@b.example> X=1 X=2\r\n", b"RCPT TO:<@a.example:b@c.example>\r\n",
    b"RCPT TO:<Postmaster>\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]  # fmt: skip
HEADERS = [
    b"From: a@shop.example\r\n", b"From: b@b.example\r\n", b"From :\r\n\tx\r\n", b"Subject: x\r\n", b" folded\r\n",
    b"X-Relay-Priority: high\r\n", b"X-Relay-Send-At: soon\r\n", b"X-Relay-Tag: \x1b[31m\r\n", b"Received: x\r\n",
    b"no header\r\n", b": x\r\n", b"Bcc: x\r\n", b"From: " + b"(" * 300 + b"\r\n", b"\r\n", b"Date: x\r\nMessage-ID: <x@y>\r\n",
    b"From x\r\n", b"To: x\r\nTO : y\r\n", b" \t\r\n", b"Subject: \x0b\r\n \x0c\r\nSubject:\r\n", b"X\x1b: y\r\n",
]  # fmt: skip
BODY = [
    b"text\r\n",
    b".dot\r\n",
    b"..\r\n",
    b"\xff\xfe\r\n",
    b"long " * 300 + b"\r\n",
    b"\r\n\r\n",
    b"a\tb\r\n",
]
ENDINGS = [
    b"\r\n.\r\n", b".\r\n", b"\n.\n", b"\n.\r", b"\r.\n", b"\r.\r", b"\n.\r\n", b"\r.\r\n", b"\r\n.\n", b"\r\n.\r",
    b"\r\n.\r\r\n", b"\r\r\n.\r\r\n", b"\r\n\x00.\r\n", b"\r\n.\x00\r\n", b"\n\n.\r\n", b"\r\n .\r\n", b"\r\n.\t\r\n",
    "\r\n．\r\n".encode(),
]  # fmt: skip
DUST = [
    b"\0", b"\r", b"\n", b"\r\n", b" ", b"\t", b"<", b">", b"\"", b"\\", b":", b"@", b"=", b".", b"\x7f", b"\xc2\x85", b"\xff",
    b"x" * 5000,
]  # fmt: skip


class Sessions:
    """`next()` is the chunks of one. The same seed makes the same ones."""

    def __init__(self, seed: int, seeds: list[bytes], count: int) -> None:
        self.random, self.seeds, self.left = random.Random(seed), seeds, count

    def __call__(self) -> list[bytes] | None:
        if not self.left:
            return None
        self.left -= 1
        r = self.random
        if self.seeds and r.random() < 0.1:
            said = self._mutated(r.choice(self.seeds), r.randint(0, 6))
        else:
            said = b"".join(self._piece() for _ in range(r.randint(1, 8)))
            if r.random() < 0.6:
                said = self._mutated(said, r.randint(1, 4))
        return self._cut(said)

    def _piece(self) -> bytes:
        r = self.random
        kind = r.random()
        if kind < 0.15:
            return r.choice(OPENING)
        if kind < 0.35:
            return r.choice(ENVELOPE)
        if kind < 0.6:
            return r.choice(OTHER)
        if kind < 0.7:
            return r.choice(ENDINGS)
        if kind < 0.75:
            return r.choice(DUST)
        head = b"".join(r.choices(HEADERS, k=r.randint(0, 4)))
        body = b"".join(r.choices(BODY + ENDINGS, k=r.randint(0, 3)))
        before = b"" if r.random() < 0.2 else r.choice(OPENING)
        return (
            before
            + ENVELOPE[r.randint(0, 2)]
            + ENVELOPE[r.randint(3, 5)]
            + ENVELOPE[6]
            + head
            + b"\r\n"
            + body
            + ENDINGS[0]
        )

    def _mutated(self, said: bytes, times: int) -> bytes:
        r, text = self.random, bytearray(said)
        for _ in range(times):
            place = r.randint(0, len(text))
            match r.randint(0, 4):
                case 0:
                    text[place:place] = r.choice(DUST)
                case 1:
                    del text[place : place + r.randint(1, 8)]
                case 2 if place < len(text):
                    text[place] = r.randrange(256)
                case 3:
                    text[place:place] = text[place : place + r.randint(1, 60)]
                case _:
                    text[place:place] = r.choice(ENDINGS)
        return bytes(text)

    def _cut(self, said: bytes) -> list[bytes]:
        r = self.random
        if not said or r.random() < 0.4:
            return [said]
        if len(said) < 300 and r.random() < 0.1:
            return [said[i : i + 1] for i in range(len(said))]
        places = sorted(r.randint(0, len(said)) for _ in range(r.randint(1, 5)))
        return [said[a:b] for a, b in zip([0, *places], [*places, len(said)], strict=True)]


def from_corpora(corpora: Path) -> list[bytes]:
    """Sessions that broke somebody, and odd messages as mail."""
    found = [p.read_bytes() for p in sorted((corpora / "fuzz_seeds").rglob("*")) if p.is_file()]
    before = OPENING[0] + ENVELOPE[0] + ENVELOPE[3] + ENVELOPE[6]
    mime = [p.read_bytes() for p in sorted((corpora / "mime").rglob("*")) if p.is_file()]
    return found + [before + m + b"\r\n.\r\n" for m in mime if len(m) < 20_000]
