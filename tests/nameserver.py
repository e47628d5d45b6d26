"""Name servers on loopback: Knot DNS with a zone, and one that answers as a test tells it, wrongly too."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from socketserver import BaseRequestHandler, ThreadingTCPServer, ThreadingUDPServer
from threading import Event, Thread
from typing import Self

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
from conftest import free_port
from knotd import Knot, knot

__all__ = ["Knot", "Scripted", "knot", "strings"]

Answer = Callable[[str, bool], list[str] | str | None]  # (name, by TCP) -> TXT records; an rcode; None: silence


def strings(text: str) -> str:
    """A value as a zone file writes it, in strings of 255."""
    return " ".join(f'"{text[at : at + 255]}"' for at in range(0, len(text), 255))


class Scripted:
    """Answers questions for TXT by a function, over UDP and TCP on one port; counts them.

    `mangle`: what is sent in place of an answer; over TCP the last of it.
    """

    def __init__(
        self,
        answer: Answer,
        host: str = "127.0.0.1",
        mangle: Callable[[bytes], Sequence[bytes]] = lambda wire: [wire],
    ) -> None:
        self.answer, self.host, self.mangle = answer, host, mangle
        self.asked: list[tuple[str, bool]] = []
        self.port = free_port(host)
        self._servers: list[ThreadingUDPServer | ThreadingTCPServer] = []

    @property
    def server(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __enter__(self) -> Self:
        me = self

        class Datagram(BaseRequestHandler):
            def handle(self) -> None:
                wire, sock = self.request
                if (made := me.reply(wire, tcp=False)) is not None:
                    for one in me.mangle(made):
                        sock.sendto(one, self.client_address)

        class Stream(BaseRequestHandler):
            def handle(self) -> None:
                self.request.settimeout(30)
                length = int.from_bytes(self.request.recv(2, socket.MSG_WAITALL))
                if (made := me.reply(self.request.recv(length, socket.MSG_WAITALL), tcp=True)) is not None:
                    made = me.mangle(made)[-1]
                    self.request.sendall(len(made).to_bytes(2) + made)

        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        for kind, handler in ((ThreadingUDPServer, Datagram), (ThreadingTCPServer, Stream)):
            bound = type(
                "Bound", (kind,), {"address_family": family, "allow_reuse_address": True, "daemon_threads": True}
            )
            server = bound((self.host, self.port), handler)
            self._servers.append(server)
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def reply(self, wire: bytes, *, tcp: bool) -> bytes | None:
        question = dns.message.from_wire(wire)
        self.asked.append((question.question[0].name.to_text(omit_final_dot=True), tcp))
        made = self.response(question, tcp)
        return None if made is None else made.to_wire(max_size=65535)

    def response(self, question: dns.message.Message, tcp: bool) -> dns.message.Message | None:
        name = question.question[0].name
        answer = self.answer(name.to_text(omit_final_dot=True), tcp)
        if answer is None:
            return None
        made = dns.message.make_response(question, recursion_available=True)
        if answer == "TC":
            made.flags |= dns.flags.TC
        elif isinstance(answer, str) and answer.startswith("CNAME "):
            made.answer.append(dns.rrset.from_text(name, 1, "IN", "CNAME", answer.removeprefix("CNAME ")))
        elif isinstance(answer, str) and answer.startswith("NS "):
            made.authority.append(dns.rrset.from_text(name, 1, "IN", "NS", answer.removeprefix("NS ")))
        elif isinstance(answer, str):
            made.set_rcode(dns.rcode.from_text(answer))
        elif answer:
            made.answer.append(dns.rrset.from_text(name, 1, "IN", "TXT", *map(strings, answer)))
        return made


@dataclass
class Says:
    """One answer. `records` and `authority`: lines of a zone file with their TTL, `a.test. 60 MX 10 b.test.`."""

    records: Sequence[str] = ()
    authority: Sequence[str] = ()
    rcode: str = "NOERROR"
    ad: bool = False  # proven; said to those alone who ask for it (RFC 6840 §5.7)
    cut: bool = False  # over UDP
    wait: float = 0.0  # seconds before it is sent
    until: Event | None = None  # it is not sent before


class Told(Scripted):
    """Answers as it was told by name and kind, `told["a.test", "MX"] = Says(…)`; None: silence. All else is NXDOMAIN.

    `questions`: the names and kinds that came, each time that they came.
    """

    def __init__(self, told: dict[tuple[str, str], Says | None] | None = None) -> None:
        super().__init__(lambda name, tcp: "NXDOMAIN")
        self.told = told or {}
        self.questions: list[tuple[str, str]] = []

    def say(self, name: str, kind: str, *values: str, ttl: int = 300, ad: bool = False) -> None:
        """Records of the name itself; without any: there is the name, and nothing of this kind."""
        lines = [f"{name}. {ttl} {kind} {value}" for value in values]
        soa = [] if lines else [f"{name}. {ttl} SOA ns.test. hostmaster.test. 1 60 60 60 {ttl}"]
        self.told[name, kind] = Says(lines, soa, ad=ad)

    def response(self, question: dns.message.Message, tcp: bool) -> dns.message.Message | None:
        name = question.question[0].name.to_text(omit_final_dot=True)
        key = name, dns.rdatatype.to_text(question.question[0].rdtype)
        self.questions.append(key)
        says = self.told.get(key, Says(rcode="NXDOMAIN"))
        if says is None:
            return None
        time.sleep(says.wait)
        if says.until is not None:
            says.until.wait(60)
        made = dns.message.make_response(question, recursion_available=True)
        made.set_rcode(dns.rcode.from_text(says.rcode))
        if says.ad and question.flags & dns.flags.AD:
            made.flags |= dns.flags.AD
        if says.cut and not tcp:
            made.flags |= dns.flags.TC
            return made
        for section, lines in ((made.answer, says.records), (made.authority, says.authority)):
            for line in lines:
                owner, ttl, kind, value = line.split(None, 3)
                record = dns.rrset.from_text(owner, int(ttl), "IN", kind, value)
                made.find_rrset(section, record.name, record.rdclass, record.rdtype, create=True).update(record)
        return made
