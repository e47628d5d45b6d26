"""What is wrong with a `rewrite` rule, told before a message meets it. Pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from relay.envelope import AddressError, parse_address
from relay.outgoing import templates
from relay.outgoing.headers import CONTROL, make
from relay.outgoing.rewrite import ANY, AUTHOR, VERP, Rewrite, Unsubscribe
from relay.outgoing.templates import About, shown
from relay.policy.routing import matches_any

Keys = tuple[str | int, ...]  # a place below `rewrite`
Problem = tuple[Keys, str]

_SAMPLE = About(
    "1NG4WK70001", "sender@example.com", "user@example.net", "from@example.com", "user", "class", "tag", "a" * 40
)
# RFC 5322 §3.6 asks for the first three, the body cannot be read without the others.
_NEEDED = ("From", "Date", "Message-ID", "MIME-Version", "Content-Type", "Content-Transfer-Encoding")
_ONCE = "stands once in a message; name it in `remove` too, to replace it"
# Those of which there is one at most, those that tell of a way or a seal, and those that no message may show.
_NOT_ADDED = {
    **dict.fromkeys(("from", "sender", "reply-to"), "has a key of its own"),
    **dict.fromkeys(("list-unsubscribe", "list-unsubscribe-post"), "is what `list_unsubscribe` writes"),
    **dict.fromkeys(("to", "cc", "subject", "in-reply-to", "references"), _ONCE),
    **dict.fromkeys(("date", "message-id"), "stands once in a message, and every message has it"),
    **dict.fromkeys(("bcc", "resent-bcc"), "would show whom nobody shall see"),
    **dict.fromkeys(("mime-version", "content-*"), "tells how the body is read"),
    **dict.fromkeys(("received", "return-path", "resent-*"), "tells which way a message came"),
    **dict.fromkeys(("dkim-signature", "domainkey-signature", "arc-*"), "is made by signing"),
    "x-relay-*": "is for us, and removed",
}  # fmt: skip
_NAME_GLOB = re.compile(r"[!-9;-~]{1,75}")
# RFC 3986 §2; a comma within angle brackets separates nothing.
_URI = re.compile(r"[A-Za-z0-9\-._~:/?#\[\]@!$&'()*+,;=%]+")


def problems(rule: Rewrite) -> list[Problem]:
    """Each mistake of a rule: the place below `rewrite`, and what is wrong."""
    found = _address(("reverse_path",), rule.reverse_path, (VERP, "an address", "*@domain"))
    found += _address(("from",), rule.from_, ("an address", "*@domain"))
    found += _template(("reply_to",), rule.reply_to) + _template(("sender",), rule.sender)
    for place, pattern in enumerate(rule.remove):
        found += _removed(("remove", place), pattern)
    for name, template in rule.add:
        found += _added(("add", name), name, template, rule.remove)
    if rule.unsubscribe:
        found += _unsubscribe(rule.unsubscribe)
    return found


def _address(key: Keys, text: str, forms: tuple[str, ...]) -> list[Problem]:
    if not text or text in forms:
        return []
    wanted = f"expected {', '.join(forms[:-1])} or {forms[-1]}, found '{shown(text)}'"
    if templates.names(text):
        return [(key, f"{wanted}; it takes no placeholder")]
    return [
        (key, f"{wanted}: {why}")
        for why in _not_an_address(text.replace(ANY, "x@", 1) if text.startswith(ANY) else text)
    ]


def _not_an_address(text: str) -> list[str]:
    try:
        parse_address(text)
    except AddressError as error:
        return [str(error)]
    if "*" in text:
        return ["`*` stands alone before the @, or nowhere"]
    return [] if text.isascii() else ["it is not ASCII; write the domain as xn--…"]


def _unknown(key: Keys, template: str) -> list[Problem]:
    known = ", ".join(f"{{{name}}}" for name in templates.NAMES)
    return [
        (key, f"unknown placeholder {{{name}}}; there are {known}")
        for name in dict.fromkeys(templates.names(template))
        if name not in templates.NAMES
    ]


def _template(key: Keys, text: str) -> list[Problem]:
    """Of an address."""
    if not text or text == AUTHOR:
        return []
    if unknown := _unknown(key, text):
        return unknown
    if "," in text or "<" in text:
        return [(key, f"takes one address alone, *@domain or {AUTHOR}, without a name")]
    if text.startswith(ANY):
        return _address(key, text, ("an address", "*@domain", AUTHOR))
    try:
        found = _not_an_address(templates.address(text, _SAMPLE))
    except ValueError as error:
        found = [str(error)]
    return [(key, f"expected an address, *@domain or {AUTHOR}: {why}") for why in found]


def _removed(key: Keys, pattern: str) -> list[Problem]:
    if not _NAME_GLOB.fullmatch(pattern):
        return [(key, f"'{shown(pattern)}' is no name of a header field, nor a glob of one")]
    needed = [name for name in _NEEDED if matches_any([pattern], name)]
    return [(key, f"would remove {', '.join(needed)}, without which a message is broken")] if needed else []


def _added(key: Keys, name: str, template: str, removed: tuple[str, ...]) -> list[Problem]:
    for pattern, why in _NOT_ADDED.items():
        if matches_any([pattern], name) and not (why == _ONCE and matches_any(removed, name)):
            return [(key, f"{name} {why}")]
    if unknown := _unknown(key, template):
        return unknown
    if CONTROL.search(template):
        return [(key, "the value has a control character")]
    try:
        make(name, templates.text(template, _SAMPLE))
    except ValueError as error:
        return [(key, str(error))]
    return []


def _unsubscribe(given: Unsubscribe) -> list[Problem]:
    if not given.url and not given.mailto:
        return [(("list_unsubscribe",), "is empty; give it `url`, `mailto` or both")]
    url, mailto = ("list_unsubscribe", "url"), ("list_unsubscribe", "mailto")
    found = _unknown(url, given.url) + _unknown(mailto, given.mailto)
    if found:
        return found
    if given.url:
        found += [(url, why) for why in _wrong_url(given)]
    if given.mailto:
        found += [(mailto, why) for why in _wrong_mailto(given.mailto.removeprefix("mailto:"))]
    return found


def _wrong_url(given: Unsubscribe) -> list[str]:
    if not _URI.fullmatch(templates.uri(given.url, _SAMPLE)):
        return ["has a character that a URL has to percent-encode"]
    try:
        parts = urlsplit(given.url)
    except ValueError as error:
        return [f"is no URL: {error}"]
    if parts.scheme not in ("https", "http") or not parts.hostname:
        return ["expected a URL such as https://example.com/unsubscribe/{token}"]
    if templates.names(parts.netloc):
        return ["a placeholder cannot choose the host"]
    if not given.one_click:
        return []
    if parts.scheme != "https":
        return ["one-click wants https (RFC 8058 section 3); write https, or `one_click: false`"]
    # RFC 8058 §3.1: the POST carries nothing else that says who.
    if {"token", "recipient", "id"}.isdisjoint(templates.names(given.url)):
        return [
            "one-click wants to know who unsubscribes: put {token}, {recipient} or {id} into it, or `one_click: false`"
        ]
    return []


def _wrong_mailto(mailto: str) -> list[str]:
    filled = templates.uri(mailto, _SAMPLE)
    if not _URI.fullmatch(filled):
        return ["has a character that a mailto: URL has to percent-encode"]
    if templates.names(mailto.partition("?")[0].rpartition("@")[2]):
        return ["a placeholder cannot choose the domain"]
    return [f"expected an address: {why}" for why in _not_an_address(filled.partition("?")[0])]
