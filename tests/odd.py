"""Odd messages, each within the limits or just beyond them: what may cost a reader more than it looks. And a plain client.

Nothing but the standard library: a process of its own imports it, so that the load does not wait for what it measures.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

KB, MB = 1 << 10, 1 << 20
END = b"\r\n\r\nx\r\n"
LINE = b"x" * 76 + b"\r\n"
HEAD = b"From: a@b.example\r\nSubject: x\r\n\r\n"

ODD: dict[str, Callable[[], bytes]] = {
    "one field of 250 KB": lambda: b"Subject: " + b"a" * 250 * KB + END,
    "one field folded 4,900 times": lambda: b"Subject: a\r\n" + b" folded words that go on\r\n" * 4900 + END[2:],
    "4,990 fields": lambda: b"".join(b"X-%d: y\r\n" % i for i in range(4990)) + END[2:],
    "4,900 authors": lambda: b'From: a@b.example, "c d" <e@f.example>\r\n' * 4900 + END[2:],
    "4,900 options": lambda: b"".join(b"X-Relay-%d: x\r\n" % i for i in range(4900)) + END[2:],
    "80,000 lines of header": lambda: b"a\r\n" * 80_000 + END,
    "300 KB of header": lambda: b"X-Field: value\r\n" * (300 * KB // 16) + END[2:],
    "9,000 encoded words": lambda: b"Subject: " + b"=?utf-8?b?w6TDtsO8?= " * 9000 + END,
    "4,900 lists": lambda: HEAD[:-2] + b"To: a@b.example\r\nCc: c\r\n" * 2450 + END[2:],
    "4,900 subjects": lambda: (
        b"From: a@b.example\r\n" + b"".join(b"Subject: %d\r\n" % i for i in range(4900)) + END[2:]
    ),
    "blanks before colons": lambda: HEAD[:-2] + b"X \t : y\r\n \r\n" * 2450 + END[2:],
    "250 KB of control characters": lambda: b"Subject: " + b"\x01" * 250 * KB + END,
    "4,900 lines of an mbox file": lambda: b"From x\r\n" * 4900 + HEAD,
    "250 KB of header, then no field": lambda: b"X-Field: value\r\n" * 4900 + b"x" * 5 * MB + END,
    "brackets": lambda: b"From: " + b"(" * 3000 + b"\r\nTo: " + b'"' * 3000 + b"\r\nSender: " + b"<" * 900 + END,
    "nested parts": lambda: b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (i, i) for i in range(5000)
    ),
    "an endless line": lambda: HEAD + b"x" * 5 * MB + b"\r\n",
    "lines of dots": lambda: HEAD + b"...\r\n" * (3 * MB // 5),
    "bare CR": lambda: HEAD + b"\r" * 2 * MB + b"\r\n",
    "bare LF": lambda: HEAD + b"\n" * 2 * MB + b"\r\n",
    "lines that end in LF": lambda: HEAD + b"a\n" * (3 * MB // 2) + b"\r\n",
    "empty lines": lambda: HEAD + b"\r\n" * (5 * MB // 2),
    "NUL": lambda: HEAD + b"\0" * 5 * MB + b"\r\n",
    "every second a NUL": lambda: HEAD + b"\0a" * (5 * MB // 2) + b"\r\n",
    "eight bits": lambda: HEAD + "äöü".encode() * (5 * MB // 6) + b"\r\n",
    "24 MB": lambda: HEAD + LINE * (24_000_000 // len(LINE)),
    "24 MB of text": lambda: HEAD + (b"Hello. " * 10 + b"\r\n") * (24_000_000 // 72),
    "1,000 recipients": lambda: HEAD + LINE * 10,
}


class Client:
    """Blocking, one session a message; `message` has its dots as they are to be sent."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._lines = self._socket.makefile("rb")
        self.heard()

    def heard(self) -> str:
        """The next reply's last line."""
        while (line := self._lines.readline())[3:4] == b"-":
            continue
        return line.decode("ascii").rstrip()

    def say(self, text: bytes) -> str:
        self._socket.sendall(text + b"\r\n")
        return self.heard()

    def envelope(self, recipients: int = 1) -> str:
        """Up to the answer to DATA."""
        self.say(b"EHLO load.example")
        said = [b"MAIL FROM:<a@b.example>", *(b"RCPT TO:<u%d@d%d.example>" % (i, i % 50) for i in range(recipients))]
        self._socket.sendall(b"\r\n".join([*said, b"DATA", b""]))
        return [self.heard() for _ in range(recipients + 2)][-1]

    def content(self, message: bytes) -> str:
        self._socket.sendall(message)
        return self.say(b".")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def hand_in(port: int, message: bytes, recipients: int = 1) -> str:
    """One message; the answer to its final dot."""
    client = Client(port)
    try:
        assert client.envelope(recipients).startswith("354")
        return client.content(message)
    finally:
        client.close()
