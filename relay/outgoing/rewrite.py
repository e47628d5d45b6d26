"""What a route changes of a message before it is signed: the reverse-path and the header block. Pure.

Nothing but what the rule names is touched; all other octets leave as they came. The order: `remove`, then From,
Reply-To and Sender, then List-Unsubscribe, then `add`. So a field that is removed and added is replaced. New fields
stand at the end. The same message, rule and `about` give the same octets, at every attempt.

A rule that cannot be obeyed raises ValueError: the message may not leave with the address that the rule was to hide.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from relay.envelope import AddressError, parse_address
from relay.outgoing import templates, verp
from relay.outgoing.headers import MAX_LINE, Field, first, join, make, put, split, with_value, without
from relay.outgoing.mailboxes import Mailbox, Unreadable, read, substitute
from relay.outgoing.templates import About, shown
from relay.policy.routing import matches_any

VERP = "verp"
AUTHOR = "{from}"
ANY = "*@"  # begins an address that keeps the part before the @

__all__ = ["About", "Rewrite", "Unsubscribe", "apply", "author", "reverse_path"]


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """List-Unsubscribe (RFC 2369), and List-Unsubscribe-Post where `url` is https and `one_click` (RFC 8058).

    `url` and `mailto` are templates; `mailto` is an address, with `?subject=…` if wished. A message that has a
    List-Unsubscribe of its own keeps it and gets nothing: the application knows its lists.
    """

    url: str = ""
    mailto: str = ""
    one_click: bool = True


@dataclass(frozen=True)
class Rewrite:
    """The rule of one route. An empty text changes nothing.

    `reverse_path`: `verp`, an address, or `*@domain`, which keeps the part before the @.
    `from_`: an address or `*@domain`. Display names stay. Of several authors an address keeps the first one's name;
    `*@domain` keeps them all, and qualifies a bare `root`.
    `reply_to`, `sender`: a template that gives an address, `*@domain` (of the field; where there is none of From as it
    came), or `{from}`: the From as it came, with its display names; in Sender the first of them. They replace the field,
    or add it.
    `remove`: field names, globs. `add`: (name, template); added to those of the same name; a blank value adds nothing.
    """

    reverse_path: str = ""
    from_: str = ""
    reply_to: str = ""
    sender: str = ""
    remove: tuple[str, ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    unsubscribe: Unsubscribe | None = None

    @cached_property
    def names(self) -> frozenset[str]:
        """The placeholders of all templates."""
        written = [self.reply_to, self.sender, *(template for _, template in self.add)]
        if self.unsubscribe:
            written += [self.unsubscribe.url, self.unsubscribe.mailto]
        return frozenset(name for template in written for name in templates.names(template))

    @property
    def needs_token(self) -> bool:
        """`About.token` is asked for."""
        return self.reverse_path == VERP or "token" in self.names

    @property
    def per_recipient(self) -> bool:
        """What leaves differs by recipient: each one needs a transaction of its own."""
        return self.reverse_path == VERP or not self.names.isdisjoint(templates.OF_RECIPIENT)


def reverse_path(rule: Rewrite, about: About, verp_domain: str) -> str:
    """MAIL FROM. The null reverse-path stays: a report has no sender, lest it is reported on (RFC 5321 §4.5.5).

    Raises ValueError.
    """
    if not about.sender or not rule.reverse_path:
        return about.sender
    if rule.reverse_path == VERP:
        return verp.address(about.token, verp_domain)
    return _redirected(rule.reverse_path, about.sender)


def author(head: bytes) -> str:
    """The first address in From of a header block, as these rules read it; empty where there is none."""
    field = first(split(head), b"from")
    return next(iter(_addresses(field.value)), "") if field else ""


def apply(rule: Rewrite, head: bytes, about: About) -> tuple[bytes, list[str]]:
    """The new header block, and a line for people for each change. Raises ValueError."""
    work = _Work(rule, split(head), about)
    work.remove()
    work.authors()
    if rule.reply_to:
        work.address("Reply-To", rule.reply_to)
    if rule.sender:
        work.address("Sender", rule.sender, single=True)
    if rule.unsubscribe:
        work.unsubscribe(rule.unsubscribe)
    for name, template in rule.add:
        work.add(name, templates.text(template, about))
    return (join(work.fields), work.changes) if work.changes else (head, [])


class _Work:
    """One message on its way through a rule."""

    def __init__(self, rule: Rewrite, fields: list[Field], about: About) -> None:
        self.rule, self.fields, self.about = rule, fields, about
        self.author = first(fields, b"from")  # as it came
        self.changes: list[str] = []

    def remove(self) -> None:
        if not self.rule.remove:
            return
        kept = without(self.fields, lambda key: matches_any(self.rule.remove, key.decode("ascii")))
        left = {f.key for f in kept}
        gone = {f.key: f.name.decode("ascii") for f in self.fields if f.key not in left}
        self.changes += [f"{shown(name)}: removed" for name in gone.values()]
        self.fields = kept

    def authors(self) -> None:
        """Every From: a receiver may look at any of several."""
        if not (wanted := self.rule.from_):
            return
        if self.author is None:
            self._put("From", _plain(wanted, self.about.from_))
        for place, field in enumerate(self.fields):
            if field.key == b"from":
                value = _value(field.value, wanted, self.about.from_)
                self._tell("From", field.value, value)
                self.fields[place] = with_value(field, value)

    def address(self, name: str, template: str, *, single: bool = False) -> None:
        """Reply-To, or Sender, which has a single address."""
        present = first(self.fields, name.lower().encode("ascii"))
        if template == AUTHOR:
            value = self._author(single)
        elif template.startswith(ANY):
            source = present.value if present and _readable(present.value) else self._author(single)
            value = _value(source, template, "") if source else b""
        else:
            found = templates.address(template, self.about)
            value = f" {found}".encode() if found else b""
        if value:
            self._put(name, value)

    def _author(self, single: bool) -> bytes:
        """The value of From as it came, or what can be read of it; empty where nothing can."""
        value = self.author.value if self.author else b""
        if found := _readable(value):
            return value if not single else b" " + _cut(value, found[0])[0]
        return f" {self.about.from_}".encode() if self.about.from_ else b""

    def unsubscribe(self, given: Unsubscribe) -> None:
        if first(self.fields, b"list-unsubscribe"):
            return
        url, mailto = templates.uri(given.url, self.about), templates.uri(given.mailto, self.about)
        if mailto and not mailto.startswith("mailto:"):
            mailto = f"mailto:{mailto}"
        ways = [way for way in (url, mailto) if 0 < len(way) < MAX_LINE - len("<>,")]
        if not ways:
            self.changes.append("List-Unsubscribe: left out, it is longer than a line")
            return
        # Alone it means nothing, beside ours it would promise what we may not.
        self.fields = without(self.fields, lambda key: key == b"list-unsubscribe-post")
        self.add("List-Unsubscribe", ", ".join(f"<{way}>" for way in ways), plain=True)
        if given.one_click and ways[0].lower().startswith("https:"):
            self.add("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")

    def add(self, name: str, value: str, *, plain: bool = False) -> None:
        if value.strip():
            self.fields.append(make(name, value, plain=plain))
            self.changes.append(f"{name}: added {shown(value)}")

    def _put(self, name: str, value: bytes) -> None:
        raw_name = name.encode("ascii")
        key = raw_name.lower()
        self._tell(name, b",".join(f.value for f in self.fields if f.key == key), value)
        raw = raw_name + (b":" if value[:1] in (b" ", b"\t", b"\r") else b": ") + value
        if len(raw.partition(b"\r\n")[0]) > MAX_LINE:  # it came from a field with a shorter name
            raw = raw_name + b":\r\n " + value.lstrip()
        self.fields = put(self.fields, Field(raw_name, key, raw + b"\r\n"))

    def _tell(self, name: str, old: bytes, new: bytes) -> None:
        if old != new:
            before, after = _for_people(old), _for_people(new)
            self.changes.append(f"{name}: {before} -> {after}" if before else f"{name}: added {after}")


def _for_people(value: bytes) -> str:
    return shown(", ".join(_addresses(value)) or value.decode("utf-8", "replace").strip())


# -- addresses in a field's value


def _readable(value: bytes) -> list[Mailbox]:
    """The mailboxes that have an address; none where the value can't be read, or where more looks like an address."""
    try:
        found = read(value)
    except Unreadable:
        return []
    if any(not m.address and b"@" in value[m.at : m.to] for m in found):
        return []
    return [m for m in found if m.address]


def _addresses(value: bytes) -> list[str]:
    return [m.address for m in _readable(value)]


def _value(value: bytes, wanted: str, known: str) -> bytes:
    """The value of a From, Reply-To or Sender with the wanted address. `known`: what intake read of From."""
    found = _readable(value)
    if not found:
        return _completed(value, wanted, known)
    if len(found) == 1 or wanted.startswith(ANY):
        return substitute(value, found, lambda m: _redirected(wanted, m.address))
    piece, mailbox = _cut(value, found[0])
    return b" " + substitute(piece, [mailbox], lambda m: wanted)


def _completed(value: bytes, wanted: str, known: str) -> bytes:
    """Of `Cron Daemon <root>`, `root` or `Joe Doe`; of what can't be read at all nothing is left."""
    try:
        found = read(value)
    except Unreadable:
        found = []
    if len(found) == 1:
        (one,) = found
        if one.angled or (one.alone and wanted.startswith(ANY)):
            return substitute(value, found, lambda m: _redirected(wanted, f"{m.alone}@" if m.alone else known))
        if b"@" not in value:
            return _plain(wanted, known, value[: one.end])
    return _plain(wanted, known)


def _plain(wanted: str, known: str, name: bytes = b"") -> bytes:
    at = len(name) + 1
    return substitute(name + b" <>", [Mailbox(0, at + 2, at, at + 2, True, "")], lambda m: _redirected(wanted, known))


def _cut(value: bytes, mailbox: Mailbox) -> tuple[bytes, Mailbox]:
    """One mailbox of a list, alone, without the blanks around it."""
    start = mailbox.start
    moved = replace(mailbox, start=0, end=mailbox.end - start, at=mailbox.at - start, to=mailbox.to - start)
    return value[start : mailbox.end], moved


def _redirected(wanted: str, address: str) -> str:
    """An address, or for `*@domain` this one there. Raises ValueError."""
    if not wanted.startswith(ANY):
        return wanted
    local = address.rpartition("@")[0]
    if not local:
        raise ValueError(f"{wanted}: the message has no address whose local part could be kept")
    try:
        return parse_address(local + wanted[1:])
    except AddressError as error:
        raise ValueError(f"{wanted}: {shown(address)}: {error}") from None
