"""`feedback.smtp` and `feedback.imap` -> the doors by which comes in what came back. Owns what they need of one another.

Refuses: a door that could tell no token, credentials over an open line, a mailbox without the library that reads it.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from relay.config.doors import DoorBuilder
from relay.config.egress import IN_CLEAR, EgressBuilder
from relay.config.feedback import FeedbackSection, FeedbackSmtpSection, ImapSection
from relay.config.oauth2 import OAuth2Builder
from relay.config.problems import Keys
from relay.config.providers import ProvidersBuilder
from relay.config.site import Site
from relay.settings import Address, Feedback, FeedbackDoor, Mailbox, is_loopback

if TYPE_CHECKING:
    from relay.config.shape import File

LEAST_EVERY = 5.0  # seconds: providers shut out who logs in more often
LEAST_SIZE = 10_000  # bytes: less holds no report
MOST_SIZE = 50_000_000
KEYWORDS = ("keep", "delete")


class FeedbackBuilder:
    """`doors` knows which addresses are taken."""

    def __init__(self, site: Site, doors: DoorBuilder) -> None:
        self.site, self.doors = site, doors

    def build(self, file: File, base: Feedback) -> Feedback:
        """`base` with its doors."""
        section = file.feedback
        verp = any(route.rewrite and route.rewrite.reverse_path == "verp" for route in file.routes)
        if verp and self.site.absent("feedback", ("smtp",)) and self.site.absent("feedback", ("imap",)):
            text = "what bounces comes back to this domain, and nothing here reads it; say `feedback.smtp` or `feedback.imap`"
            self.site.warn(("feedback", "domain"), text)
        public = ProvidersBuilder(self.site, self.doors)
        return replace(
            base,
            smtp=self.smtp(section, section.smtp),
            http=public.http(section),
            imap=self.mailboxes(section),
            providers=public.providers(section),
            one_click=section.one_click,
        )

    def smtp(self, section: FeedbackSection, door: FeedbackSmtpSection | None) -> FeedbackDoor | None:
        if door is None:
            return None
        path: Keys = ("feedback", "smtp")
        if missing := self.site.absent("feedback", ("domain", "token_key")):
            wanted = " and ".join(f"`feedback.{key}`" for key in missing)
            self.site.wrong(path, f"it takes mail for return paths of ours only, and wants {wanted} to know them")
        if isinstance(door.address, Address):
            self.doors.take(door.address, "feedback.smtp", (*path, "address"))
        most = door.max_connections
        if most.client > most.total and "client" in most.model_fields_set:
            text = f"{most.client} of one client are more than {most.total} of all"
            self.site.wrong((*path, "max_connections", "client"), text)
        return FeedbackDoor(
            door.address,
            self.doors.tls(door.tls, (*path, "tls")),
            most.total,
            min(most.client, most.total),
            door.max_messages,
        )

    def mailboxes(self, section: FeedbackSection) -> dict[str, Mailbox]:
        if section.imap and find_spec("aioimaplib") is None:
            text = "mailboxes are read by aioimaplib, which is not installed: pip install 'relay-mta[imap]'"
            self.site.wrong(("feedback", "imap"), text)
        return {name: self.mailbox(name, entry) for name, entry in section.imap.items()}

    def mailbox(self, name: str, entry: ImapSection) -> Mailbox:
        path: Keys = ("feedback", "imap", name)
        mode = entry.tls.mode or ("starttls" if entry.port == 143 else "implicit")
        if entry.password is None and entry.oauth2 is None:
            self.site.wrong(path, "a login wants `password`, or `oauth2`", on_key=True)
        if mode == "opportunistic":
            text = "a mailbox is logged in to, and `opportunistic` could do that in clear; use implicit or starttls"
            self.site.wrong((*path, "tls"), text)
        elif mode in IN_CLEAR and not is_loopback(entry.host):
            self.site.wrong((*path, "tls"), "credentials are never sent in clear; use implicit or starttls")
        elif entry.oauth2 is not None and entry.tls.verify is False and not is_loopback(entry.host):
            text = "a token is never sent over a connection that nobody vouches for; trust its certificate by `ca`"
            self.site.wrong((*path, "tls", "verify"), text)
        for key in ("pin", "certificate", "key"):
            if getattr(entry.tls, key) is not None:
                self.site.wrong((*path, "tls", key), f"`{key}` is not built for mailboxes; say `ca`, or remove it")
        if entry.every < LEAST_EVERY:
            self.site.wrong((*path, "every"), f"`every` must be {LEAST_EVERY:.0f}s or more: each time is a login")
        if not LEAST_SIZE <= entry.max_message_size <= MOST_SIZE:
            text = "expected a size from 10kB, which holds a report, to 50MB, which is kept in memory"
            self.site.wrong((*path, "max_message_size"), text)
        if entry.then.casefold() == entry.folder.casefold():
            self.site.wrong((*path, "then"), "it would be moved to where it is; say `keep`, or another folder")
        elif entry.then not in KEYWORDS and entry.then.lower() in KEYWORDS:
            self.site.wrong(
                (*path, "then"), f"is that a folder? Write `{entry.then.lower()}` in small letters, or rename it"
            )
        host = self.site.reference(entry.host, (*path, "host"))
        username = self.site.reference(entry.username, (*path, "username"))
        assert host is not None and username is not None
        return Mailbox(
            name,
            host,
            entry.port or (993 if mode == "implicit" else 143),
            EgressBuilder(self.site).trust(entry.tls, mode, (*path, "tls")),
            username,
            self.site.reference(entry.password, (*path, "password")),
            OAuth2Builder(self.site).mailbox(name, entry),
            entry.folder,
            entry.every,
            entry.then,
            entry.max_message_size,
        )
