"""Whatever an upstream says to commands that went out together, and when: nobody is given what was said about another.

The upstream is a model in memory that keeps what it said to whom; what the session makes of it is held against that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.deliver import smtp
from relay.deliver.content import Content
from relay.deliver.dialogue import Dialogue
from relay.deliver.smtp import Answer, Failure, Parcel, Upstream
from relay.reply import Stage
from relay.secrets import Reference
from relay.settings import Account, Tls

ACCOUNT = Account("up", Reference("plain", "127.0.0.1"), 25, Tls("none"))
SLOTS = ("MAIL", "RCPT", "DATA", "DOT", "RSET")
OTHER = ""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in smtp.TIMEOUTS:
        monkeypatch.setitem(smtp.TIMEOUTS, stage, 0.1)
    monkeypatch.setattr(smtp, "_GRACE", 0.02)


@dataclass(frozen=True)
class Word:
    """What is said to one command. `then`: it closes or hangs after that; `instead`: and says nothing before."""

    code: int
    lines: int = 1
    then: str = ""
    instead: bool = False


@dataclass(frozen=True)
class Script:
    """`words` are taken in order, then all is well; `extra`: (before which command, code, a pause around it)."""

    words: tuple[tuple[str, Word], ...] = ()
    empty: int = 503  # to DATA without a recipient
    extra: tuple[int, int, bool] | None = None
    cuts: tuple[int, ...] = ()


class Peer(asyncio.Transport):
    """A server behind a transport."""

    def __init__(self, script: Script) -> None:
        super().__init__()
        self.script, self.words = script, {slot: deque[Word]() for slot in (*SLOTS, OTHER)}
        for slot, word in script.words:
            self.words[slot].append(word)
        self.input, self.commands, self.gone, self.hung = b"", 0, False, False
        self.content: bytes | None = None
        self.sender, self.recipients, self.named = False, list[str](), 0
        self.said: dict[str, int] = {}  # of the transaction: MAIL, DATA, DOT, or an address -> code
        self.took: list[tuple[list[str], bytes]] = []
        self.out: deque[tuple[bytes, bool]] = deque()
        self.pump: asyncio.Task[None] | None = None

    # -- the transport's side

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def get_write_buffer_size(self) -> int:
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.talk = protocol

    def abort(self) -> None:
        self.gone = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.input += data
        while not (self.gone or self.hung) and self._step():
            continue
        if self.out and self.pump is None:
            self.pump = asyncio.ensure_future(self._pump())

    async def _pump(self) -> None:
        await asyncio.sleep(0)
        while self.out:
            together = b""
            while self.out and not (self.out[0][1] and together):
                data, late = self.out.popleft()
                if late:
                    await asyncio.sleep(0.004)
                together += data
                if late:
                    break
            if together == b"":
                break
            for start, end in _pieces(len(together), self.script.cuts):
                if self.gone:
                    return
                assert isinstance(self.talk, Dialogue)
                self.talk.data_received(together[start:end])
                await asyncio.sleep(0)
        self.pump = None
        if self.closing and not self.gone:
            assert isinstance(self.talk, Dialogue)
            self.gone = True
            self.talk.connection_lost(None)

    closing = False

    # -- the server's

    def _say(self, slot: str, otherwise: int) -> int:
        extra = self.script.extra
        if extra is not None and extra[0] == self.commands:
            self.out.append((b"%d 2.0.0 extra\r\n" % extra[1], extra[2]))
        self.commands += 1
        word = self.words[slot].popleft() if self.words[slot] else Word(otherwise)
        instead = word.instead and bool(word.then)
        if not instead:
            lines = [b"%d%s%d\r\n" % (word.code, b"-" if i + 1 < word.lines else b" ", i) for i in range(word.lines)]
            self.out.append((b"".join(lines), bool(extra and extra[2] and extra[0] + 1 == self.commands)))
        self.hung = word.then == "hang"
        if word.then == "close" or word.code == 421:
            self.hung = self.closing = True
            if not self.out and self.pump is None:
                self.out.append((b"", False))
        return 0 if instead else word.code

    def _step(self) -> bool:
        if self.content is not None:
            end = (b"\r\n" + self.input).find(b"\r\n.\r\n")
            if end < 0:
                return False
            content, self.input = self.input[:end], self.input[end + 3 :]
            self.content = None
            code = self.said["DOT"] = self._say("DOT", 250 if self.recipients else 554)
            if 200 <= code < 300:
                self.took.append((self.recipients, content))
            self.sender, self.recipients = False, []
            return True
        line, found, rest = self.input.partition(b"\r\n")
        if not found:
            return False
        self.input = rest
        verb = line[:4].decode().upper()
        if verb == "MAIL":
            self.said, self.recipients = {}, []
            code = self.said["MAIL"] = self._say("MAIL", 250)
            self.sender = 200 <= code < 300
        elif verb == "RCPT":
            address = line.partition(b"<")[2].partition(b">")[0].decode()
            code = self.said[address] = self._say("RCPT", 250) if self.sender else self._say(OTHER, 503)
            if 200 <= code < 300:
                self.recipients.append(address)
        elif verb == "DATA":
            code = self._say("DATA", 354) if self.recipients else self._say(OTHER, self.script.empty)
            self.said["DATA"] = code
            if code == 354:
                self.content = b""
        elif verb == "RSET":
            self.sender, self.recipients = False, []
            self._say("RSET", 250)
        else:
            self._say(OTHER, 221 if verb == "QUIT" else 500)
        return True


def _pieces(length: int, cuts: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    places = sorted({0, length, *(cut % (length + 1) for cut in cuts)})
    yield from pairwise(places)


async def held_against(script: Script, sizes: list[int], pipelining: bool) -> None:
    peer = Peer(script)
    talk = Dialogue(peer)
    session = Upstream(ACCOUNT, talk, {"pipelining": ""} if pipelining else {})
    for number, size in enumerate(sizes):
        if not session.connected:
            break
        names = tuple(f"r{number}{i}@example.net" for i in range(size))
        text = b"Subject: %d\r\n\r\nbody of %d\r\n" % (number, number)
        parcel = Parcel("a@example.com", names, Content(text, b""), len(text), 0)
        peer.said = {}
        failure: Failure | None = None
        given: list[Answer | None] = []
        try:
            given += await session.deliver(parcel)
            assert len(given) == size
        except Failure as error:
            failure = error
            given += session.answers
        taken = [to for to, content in peer.took if content == text]
        told_early = (
            script.extra is not None
        )  # what is too much after 354 may be a refusal in mid-body: then it is the dot's
        for name, answer in zip(names, given, strict=False):
            if answer is None:
                continue
            if answer.stage is Stage.RCPT:
                assert answer.reply.code == peer.said.get(name), (name, answer, peer.said)
                assert not any(name in to for to in taken)
            elif answer.accepted:
                assert any(name in to for to in taken) or told_early, (name, answer, peer.said)
            else:
                assert answer.reply.code == peer.said.get("DOT") or told_early, (name, answer, peer.said)
        if failure is not None:
            check(failure, peer, taken, names, told_early)
        # Nobody is sent anything but the message, and nobody twice.
        for to, content in peer.took:
            assert content.startswith(b"Subject: ") or not to, (to, content)
        assert len(taken) <= 1
    if session.connected:
        await session.quit(0.01)
    session.close()
    assert talk._alarm is None and not talk._lines and talk._heard is None
    if peer.pump is not None:
        await asyncio.wait([peer.pump], timeout=1)


def check(failure: Failure, peer: Peer, taken: list[list[str]], names: tuple[str, ...], told_early: bool) -> None:
    code = failure.reply.code
    if failure.stage is not Stage.DOT:
        assert not taken, (failure, peer.took)
    if code < 400 or code in (421, 530):
        return
    said = {Stage.MAIL: "MAIL", Stage.DATA: "DATA", Stage.DOT: "DOT"}.get(failure.stage)
    assert said and (peer.said.get(said) == code or (told_early and said == "DOT")), (failure, peer.said)


class Idle(asyncio.SelectorEventLoop):
    """Its time passes only while nobody has anything to do: a machine that stalls is no upstream that is late."""

    def __init__(self) -> None:
        super().__init__()
        self._passed = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def passing(timeout: float | None = None) -> object:
            self._passed += timeout or 0.0
            return select(timeout and 0)

        self._selector.select = passing  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._passed


def run(script: Script, sizes: list[int], pipelining: bool = True) -> None:
    with asyncio.Runner(loop_factory=Idle) as runner:
        runner.run(held_against(script, sizes, pipelining))


WORD = st.builds(
    Word,
    st.sampled_from([250, 250, 250, 354, 421, 450, 451, 503, 530, 550, 552, 554]),
    st.sampled_from([1, 1, 2, 3]),
    st.sampled_from(["", "", "", "", "", "close", "hang"]),
    st.sampled_from([False, False, False, False, True]),
)
SCRIPT = st.builds(
    Script,
    st.lists(st.tuples(st.sampled_from(SLOTS), WORD), max_size=5).map(tuple),
    st.sampled_from([503, 554, 354, 421]),
    st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 9), st.sampled_from([250, 354, 451, 550]), st.booleans())),
    st.lists(st.integers(0, 80), max_size=3).map(tuple),
)


@settings(deadline=None, max_examples=300, derandomize=True)
@example(Script((("DOT", Word(554)), ("RSET", Word(502)))), [1, 1, 1], True)
@example(Script((("MAIL", Word(250)), ("RCPT", Word(550))), empty=354), [1, 2], True)
@example(Script(extra=(1, 550, True)), [3, 1], True)
@given(SCRIPT, st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans())
def test_nobody_is_given_anothers_answer(script: Script, sizes: list[int], pipelining: bool) -> None:
    if script.extra is not None:
        # A command at a time the next one finds it out. A 354 that answers no DATA proves nothing, and who refuses and
        # hangs up is believed.
        pipelining = True
        words = ((slot, word) for slot, word in script.words if word.code not in (354, 421) and not word.then)
        script = replace(script, words=tuple(words))
    run(script, sizes, pipelining)
