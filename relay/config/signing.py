"""`signing`, `arc`, `rewrite` and `feedback` -> what is done to a message before it leaves.

Owns: that each key can be read, is one, and is nobody else's to read. A key is parsed here, once for each generation of the
configuration, so that a reload takes it or refuses it whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from relay.config.feedback import FeedbackSection
from relay.config.leaving import ArcSection, RewriteSection, SigningEntry
from relay.config.problems import Keys
from relay.config.shape import RouteEntry
from relay.config.site import Site
from relay.outgoing.check import problems
from relay.outgoing.rewrite import Rewrite, Unsubscribe
from relay.secrets import Reference, SecretError
from relay.settings import Arc, Feedback
from relay.signing.canonical import Form
from relay.signing.key import SigningKey
from relay.signing.rules import OVERSIGNED, SIGNED, Rule, Rules

# Changed or added on the way (RFC 6376 §5.4.1), or removed by us before: signed, they would break the signature.
_NEVER = frozenset({"return-path", "received", "bcc", "resent-bcc", "dkim-signature", "authentication-results"})
_FORMS: Mapping[str, Form] = {"relaxed": "relaxed", "simple": "simple"}
_TOKEN_KEY = 16  # bytes at least


class SigningBuilder:
    def __init__(self, site: Site) -> None:
        self.site = site
        self._read: dict[Reference, SigningKey | None] = {}  # one key may stand in many entries

    # Keys

    def key(self, given: Reference, path: Keys) -> SigningKey | None:
        """The key, or None and a problem told."""
        before = len(self.site.report.problems)
        reference = self.site.reference(given, path)
        if reference is None or len(self.site.report.problems) > before:
            return None
        if reference not in self._read:
            self._read[reference] = self._parsed(reference, (*path, reference.kind))
        return self._read[reference]

    def _parsed(self, reference: Reference, path: Keys) -> SigningKey | None:
        from relay.signing import keys  # late: what it loads nobody pays for who has no key

        if not self._private(reference, path, "sign as us"):
            return None
        try:
            key = keys.read(reference)
        except keys.KeyProblem as problem:
            self.site.wrong(path, str(problem))
            return None
        if key.algorithm == "rsa-sha256" and key.bits < keys.USUAL:
            self.site.warn(path, f"an RSA key of {key.bits} bits; make one of {keys.USUAL} (RFC 8301)")
        return key

    def _private(self, reference: Reference, path: Keys, could: str) -> bool:
        """Whether nobody else may read it, or nothing can be done about it."""
        why, mendable = reference.exposed()
        if why and mendable:
            self.site.wrong(path, f"{why}, and could {could}; chmod 0640 it")
        elif why:
            self.site.warn(path, f"{why}, and could {could}; its mount is read-only, so it is used all the same")
        return not (why and mendable)

    # Signing

    def rules(self, entries: Sequence[SigningEntry], numbers: Sequence[int], routes: set[str] | None) -> Rules:
        made = [self.rule(n, entry, routes) for n, entry in zip(numbers, entries, strict=True)]
        seen: dict[tuple[str, str, object], int] = {}
        for number, rule in zip(numbers, made, strict=True):
            if rule is None:
                continue
            place = (rule.signs_as(rule.domain), rule.selector, (rule.users, rule.routes, rule.domain))
            if place in seen and made[seen[place]] is not None:
                text = f"a second entry for {place[0]} with selector {rule.selector}; one selector has one key"
                self.site.wrong(("signing", number, "selector"), text)
            seen.setdefault(place, numbers.index(number))
        return Rules(tuple(rule for rule in made if rule is not None))

    def rule(self, number: int, entry: SigningEntry, routes: set[str] | None) -> Rule | None:
        path: Keys = ("signing", number)
        for n, user in enumerate(entry.users):
            self.site.known((*path, "users", n), "user", user, self.site.names("users"))
        for n, route in enumerate(entry.routes):
            self.site.known((*path, "routes", n), "route", route, routes)
        if entry.subdomains and entry.domain.startswith("*"):
            self.site.wrong(
                (*path, "subdomains"), "a wildcard stands for all domains below it already; remove one of the two"
            )
        if entry.not_before is not None and entry.not_after is not None and entry.not_after <= entry.not_before:
            self.site.wrong((*path, "not_after"), "is not later than `not_before`: it would never sign")
        if entry.expires is not None and entry.expires < 1:
            self.site.wrong(
                (*path, "expires"), "x= must be later than t=; say how long a signature is good, such as 14d"
            )
        if entry.as_ is not None and entry.domain == "*":
            self.site.warn(
                (*path, "as"), f"signs any From as {entry.as_}: DMARC takes that for mail of {entry.as_} alone"
            )
        signed = self._fields(entry.headers, (*path, "headers"), SIGNED)
        oversigned = self._fields(entry.oversign, (*path, "oversign"), OVERSIGNED)
        if "from" not in signed and "from" not in oversigned:  # RFC 6376 §5.4
            self.site.wrong((*path, "headers"), "From must be signed; add it")
        header_form, _, body_form = entry.canonicalisation.partition("/")
        key = self.key(entry.key, (*path, "key"))
        if key is None:
            return None
        mark = self.site.root.mark_of(path)
        return Rule(
            entry.domain,
            entry.selector,
            key,
            entry.subdomains,
            entry.as_ or "",
            entry.users,
            entry.routes,
            _FORMS[header_form],
            _FORMS[body_form],
            signed,
            oversigned,
            entry.expires,
            entry.not_before,
            entry.not_after,
            entry.when_published,
            f"{mark.file}:{mark.line}",
            str(entry.key),
        )

    def _fields(self, given: Iterable[str] | None, path: Keys, usual: Sequence[str]) -> tuple[str, ...]:
        if given is None:
            return tuple(usual)
        names = tuple(dict.fromkeys(name.lower() for name in given))
        for number, name in enumerate(names):
            if name in _NEVER or name.startswith("arc-"):
                self.site.wrong((*path, number), f"{name} changes on the way: signed, it would break the signature")
        return names

    def arc(self, section: ArcSection | None, routes: set[str] | None) -> Arc | None:
        if section is None:
            return None
        for number, route in enumerate(section.routes):
            self.site.known(("arc", "routes", number), "route", route, routes)
        key = self.key(section.key, ("arc", "key"))
        if key is None:
            return None
        if key.kind != "rsa":
            self.site.wrong(("arc", "key"), "a seal is made with an RSA key (RFC 8617 §4.1); this one is another")
            return None
        return Arc(section.domain, section.selector, key, frozenset(section.routes))

    # Rewriting

    def rewrites(self, entries: Sequence[RouteEntry], numbers: Sequence[int]) -> dict[str, Rewrite]:
        """By the name of the route."""
        made = {}
        for number, entry in zip(numbers, entries, strict=True):
            if entry.rewrite is not None:
                path: Keys = ("routes", number, "rewrite")
                if entry.via is None:
                    self.site.wrong(path, "only what leaves is rewritten; this route names no `via`")
                made[entry.name or f"route-{number + 1}"] = self.rewrite(entry.rewrite, path)
        return made

    def rewrite(self, section: RewriteSection, path: Keys) -> Rewrite:
        unsubscribe = section.list_unsubscribe
        rewrite = Rewrite(
            reverse_path=section.reverse_path or "",
            from_=section.from_ or "",
            reply_to=section.reply_to or "",
            sender=section.sender or "",
            remove=section.remove,
            add=tuple(section.add.items()),
            unsubscribe=None
            if unsubscribe is None
            else Unsubscribe(unsubscribe.url or "", unsubscribe.mailto or "", unsubscribe.one_click),
        )
        for key, text in problems(rewrite):
            self.site.wrong((*path, *key), text)
        if rewrite.needs_token and (missing := self.site.absent("feedback", ("domain", "token_key"))):
            wanted = " and ".join(f"`feedback.{key}`" for key in missing)
            self.site.wrong(path, f"tokens, by which what comes back is known, want {wanted} too")
        return rewrite

    def feedback(self, section: FeedbackSection) -> Feedback:
        path: Keys = ("feedback", "token_key")
        key = b""
        if section.token_key is not None:
            reference = self.site.reference(section.token_key, path)
            try:
                if reference is not None and not reference.problem():
                    self._private(reference, (*path, reference.kind), "forge our return paths")
                    key = reference.resolve().encode()
                    if len(key) < _TOKEN_KEY:
                        text = f"a secret of at least {_TOKEN_KEY} characters is wanted; this one is shorter"
                        self.site.wrong(path, text)
            except SecretError as error:  # of a command, which nobody has run yet
                self.site.wrong(path, str(error))
        return Feedback(section.domain or "", key)
