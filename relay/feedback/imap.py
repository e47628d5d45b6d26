"""A mailbox that is looked into for what came back. What was seen is known by UID, over restarts; the rest stays where it is.

Promises: a message is moved or removed only once what it says is durable, and only if it said something; one that crashes us or its
server is passed over at the third time, and told; a server that is down, slow or hostile costs nobody else anything. After a
crash some messages are read again: what was learnt of them is known by its key, so they teach nothing twice. That is why the
place where we are is written for a batch at once and not with each report.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from relay.deliver.tls import context_for
from relay.feedback.heard import UNSUBSCRIBE, Heard, Source
from relay.maillog import MailLog
from relay.oauth.keeper import FOLDER
from relay.reply import clean
from relay.returned import Kind
from relay.returned.bounded import Unavailable
from relay.secrets import SecretError, hidden
from relay.settings import Mailbox
from relay.spool import SpoolError

if TYPE_CHECKING:
    from relay.feedback.imapwire import Session
    from relay.oauth.tokens import Tokens

BATCH = 50  # messages between two notes of where we are
ROUND = 1000  # messages of one login
TRIES = 3  # of a message at which the session broke off
LONGEST = 900.0  # seconds between two tries while it fails, or `every` if that is longer


@dataclass(slots=True)
class Place:
    """Where we are in a folder, as the spool remembers it."""

    of: str  # which login and folder: of another one nothing here counts
    uidvalidity: int = 0
    uid: int = 0  # all up to it were looked at
    gone: list[int] = field(default_factory=list)  # what is learnt, and to be moved or removed

    @classmethod
    def read(cls, text: str, of: str) -> Place:
        """Of what `text` wrote; the beginning for anything else."""
        try:
            found = json.loads(text)
            if found["of"] == of:
                return cls(of, int(found["uidvalidity"]), int(found["uid"]), [int(n) for n in found["gone"]][:BATCH])
        except (ValueError, KeyError, TypeError):
            return cls(of)
        return cls(of)

    def text(self) -> str:
        return json.dumps({"of": self.of, "uidvalidity": self.uidvalidity, "uid": self.uid, "gone": self.gone})


class Poller:
    """One mailbox. `run` until it is cancelled."""

    def __init__(self, mailbox: Mailbox, heard: Heard, log: MailLog) -> None:
        self.mailbox, self._heard, self._log = mailbox, heard, log
        self.up: bool | None = None  # None: not tried yet
        self._now = asyncio.Event()
        self._failures = 0
        self.why = ""  # the last look failed
        self._told = False  # that it fails
        self._told_unexpunged = False
        self._stumbles: dict[int, int] = {}
        self._place: Place | None = None
        self._tokens = self._made_tokens()

    @property
    def document(self) -> str:
        """Under which name the spool remembers where we are."""
        return f"imap {self.mailbox.name}"

    async def run(self) -> None:
        try:
            while True:
                pause = await self.once()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._now.wait()
                self._now.clear()
        finally:
            if self._tokens is not None:
                await self._tokens.finish(1.0)

    def hurry(self) -> None:
        """What failed is tried again at once: perhaps it was mended."""
        if self.up is False:
            self._now.set()

    async def once(self) -> float:
        """One look. Returns after how many seconds the next is due; never raises for what others do."""
        from relay.feedback.imapwire import ImapError

        try:
            more = await self._look()
        except (ImapError, SecretError, SpoolError, Unavailable, OSError, TimeoutError, UnicodeError) as error:
            return self._failed(str(error) or type(error).__name__)
        except Exception as error:  # noqa: BLE001 - whatever it was, the next look may do, and mail goes on
            return self._failed(repr(error))
        if self._told:
            self._log.event("imap_well", mailbox=self.mailbox.name)
        self.up, self._failures, self._told, self.why = True, 0, False, ""
        return 0.0 if more else self.mailbox.every

    def _failed(self, why: str) -> float:
        """Told when it begins; how long to wait."""
        self.up, self.why = False, clean(why)
        if not self._told:
            self._log.warning("imap_failing", mailbox=self.mailbox.name, host=str(self.mailbox.host), why=self.why)
            self._told = True
        self._failures += 1
        every = self.mailbox.every
        return max(every, min(every * 2.0 ** min(self._failures - 1, 10), LONGEST))

    # -- one look

    async def _look(self) -> bool:
        """Whether there is more at once."""
        session = await self._session()
        try:
            uidvalidity = await session.select(self.mailbox.folder)
            before, place = self._place, await self._place_of(uidvalidity)
            await self._clear(session, place)
            found = await session.after(place.uid)
            todo = found[:ROUND]
            while todo:
                batch, todo = todo[:BATCH], todo[BATCH:]
                await self._read(session, place, batch)
                await self._clear(session, place)
            with contextlib.suppress(Exception):
                await session.logout()
            # One that begins anew each time has always more: nobody hurries for it.
            return len(found) > ROUND and before in (None, place)
        finally:
            session.close()

    async def _place_of(self, uidvalidity: int) -> Place:
        if self._place is None:
            known = (await self._heard.spool.remembered()).get(self.document, "")
            self._place = Place.read(known, await self._fingerprint())
        if self._place.uidvalidity != uidvalidity:
            # RFC 3501 §2.3.1.1: the UIDs from before mean nothing now. What was learnt is known by its keys.
            if self._place.uidvalidity:
                self._log.event("imap_anew", mailbox=self.mailbox.name, why="UIDVALIDITY changed")
            self._place = Place(self._place.of, uidvalidity)
            self._stumbles.clear()
        return self._place

    async def _fingerprint(self) -> str:
        box = self.mailbox
        parts = await asyncio.to_thread(lambda: (box.host.resolve(), box.username.resolve()))
        return hashlib.sha256("\0".join((*parts, box.folder)).encode()).hexdigest()[:32]

    async def _read(self, session: Session, place: Place, uids: list[int]) -> None:
        """A batch, and where we are after it, durable. Where it breaks off what was done is kept."""
        from relay.feedback.imapwire import Stumbled

        try:
            for uid in uids:
                if self._stumbles.get(uid, 0) < TRIES:
                    try:
                        understood = await self._hear(session, uid)
                    except Exception as error:
                        self._stumbled(uid, error, at_it=isinstance(error, Stumbled))
                        raise
                    if understood and self.mailbox.then != "keep":
                        place.gone.append(uid)
                else:
                    self._log.error("imap_passed_over", mailbox=self.mailbox.name, uid=uid, tries=TRIES)
                self._stumbles.pop(uid, None)
                place.uid = uid
        finally:
            await self._heard.spool.remember({self.document: place.text()})

    def _stumbled(self, uid: int, error: Exception, *, at_it: bool) -> None:
        """Counted where it is the message's: not a spool that is full, nor a connection that was lost over it."""
        from relay.feedback.imapwire import ImapError

        if at_it or not isinstance(error, (SpoolError, Unavailable, ImapError, OSError, TimeoutError)):
            self._stumbles[uid] = self._stumbles.get(uid, 0) + 1
            self._log.warning("imap_stumbled", mailbox=self.mailbox.name, uid=uid, why=clean(str(error) or repr(error)))

    async def _hear(self, session: Session, uid: int) -> bool:
        """Whether it said something."""
        raw = await session.fetch(uid, self.mailbox.max_message_size)
        if raw is None:  # somebody else removed it
            return False
        prefix, token = self._heard.sent_to(raw)
        findings = await self._heard.mail(raw, Source(self.mailbox.login, token=token))
        understood = any(finding.kind is not Kind.OTHER for finding in findings)
        if prefix == UNSUBSCRIBE and not understood:  # a report that was sent there is no unsubscription
            understood = await self._heard.unsubscribe(Source(UNSUBSCRIBE, token=token)) is not None
        if not understood:
            self._log.event("nothing_understood", source=self.mailbox.login, uid=uid)
        return understood

    async def _clear(self, session: Session, place: Place) -> None:
        """What was understood goes where it shall; after a crash what was left of that."""
        if not place.gone:
            return
        if self.mailbox.then == "delete":
            done = await session.remove(place.gone)
        else:
            done = self.mailbox.then == "keep" or await session.move(place.gone, self.mailbox.then)
        if not done and not self._told_unexpunged:
            self._told_unexpunged = True
            hint = "the server can't expunge some messages alone (UIDPLUS): they are marked as deleted"
            self._log.warning("imap_unexpunged", mailbox=self.mailbox.name, hint=hint)
        place.gone = []
        await self._heard.spool.remember({self.document: place.text()})

    # -- the login

    async def _session(self) -> Session:
        """Logged in. Each secret is read for it alone."""
        from relay.feedback.imapwire import ImapError, Session

        box = self.mailbox
        host, username, password, context = await asyncio.to_thread(self._material)
        session = await Session.open(host, box.port, box.tls.mode, context)
        try:
            if self._tokens is not None:
                await self._bearer(session, username, self._tokens)
            else:
                try:
                    await session.login(username, password)
                except ImapError as error:
                    raise ImapError(hidden(str(error), password)) from None
        except BaseException:
            session.close()
            raise
        return session

    async def _bearer(self, session: Session, username: str, tokens: Tokens) -> None:
        from relay.feedback.imapwire import ImapError
        from relay.oauth.tokens import TokenError

        await tokens.tend()
        try:
            token = await tokens.token()
            try:
                await session.bearer(username, token)
            except ImapError as error:
                await tokens.after_refusal(token)  # another one for the next look
                raise ImapError(hidden(str(error), token)) from None
        except TokenError as error:
            raise ImapError(str(error)) from None
        tokens.worked(token)

    def _material(self) -> tuple[str, str, str, ssl.SSLContext | None]:
        """Host, username, password, and the context of TLS. Blocks."""
        box = self.mailbox
        context = None if box.tls.mode == "none" else context_for(box.tls)
        return box.host.resolve(), box.username.resolve(), box.password.resolve() if box.password else "", context

    def _made_tokens(self) -> Tokens | None:
        box = self.mailbox
        if box.oauth2 is None:
            return None
        from relay.oauth.store import Store
        from relay.oauth.tokens import Tokens

        store = Store(Path(self._heard.config().spool.path).parent / FOLDER / f"{box.login}.json")
        return Tokens(box.login, box.username, box.oauth2, store, self._log, lambda: None)
