"""The public side: webhooks of providers, one-click unsubscription, and a bare answer for a load balancer. Nothing of the admin side.

POST /feedback/NAME, GET and POST /unsubscribe/TOKEN, GET /healthz; all else is 404. What a provider says is durable before it is
answered 200; what could not be kept is answered 503, so that he comes again.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from relay import clock, https, metrics
from relay.certificate import trusted
from relay.feedback import page
from relay.feedback.heard import Heard, Source
from relay.feedback.oneclick import OneClick
from relay.feedback.providers import DIALECTS, Call, Dialect, Keys, Later, Said, Unreadable, Unverified
from relay.feedback.providers.sns import Fetch, Sns
from relay.feedback.throttle import Buckets
from relay.feedback.web import Answer, Cut, Site, body_of
from relay.listener.activation import ListenError
from relay.maillog import MailLog
from relay.policy.networks import client_key, is_loopback, may_dial
from relay.secrets import Reference, SecretError
from relay.settings import Config, Provider
from relay.spool import Spool, SpoolError

FRESH = 60.0  # seconds that a secret is used before it is read again
AT_ONCE = 50  # findings of a batch that the spool is asked for together
CALM = 60.0  # seconds between two lines of the log on the same trouble
ASKED = (50.0, 500.0)  # of one client: in a second, and at once
REFUSED = (2.0, 100.0)  # of those that came to nothing good
FETCH_SECONDS, FETCH_MOST = 8.0, 64 << 10
_TYPES = ("application/json", "text/plain", "")  # SNS calls its JSON text

HTTP = metrics.Counter(
    "relay_feedback_http_total", "Requests to the public side, by what they were for and came to", ["kind", "result"]
)
_CUT = {
    408: "its body comes too slowly",
    413: "its body is too long",
    415: "its body is packed, or no JSON by its Content-Type",
}
BASIC = frozenset({"postmark", "brevo", "mailjet", "sparkpost"})


class Public:
    """`open`; `follow` after a reload and now and then; `stop`, `close`. `config` returns the generation in force.

    `fetch`: how what SNS shows is had, if not by HTTPS from the public network.
    """

    def __init__(
        self, config: Callable[[], Config], heard: Heard, spool: Spool, log: MailLog, fetch: Fetch | None = None
    ) -> None:
        self._config, self._heard, self._log = config, heard, log
        self._fetch = fetch or fetched
        self._one_click = OneClick(heard, spool)
        self._dialects: dict[str, tuple[str, Dialect | Sns]] = {}
        self._keys: dict[Provider, tuple[float, Keys]] = {}
        self._asked, self._bad = Buckets(*ASKED), Buckets(*REFUSED)
        self._told: dict[tuple[str, str], float] = {}
        self.site: Site | None = None

    @property
    def port(self) -> int:
        """0: it is not open."""
        return self.site.port if self.site else 0

    async def open(self) -> None:
        """Opens what the configuration wants, if anything. Raises ListenError."""
        wanted = self._config().feedback.http
        if self.site is not None and self.site.settings != wanted:
            await self.close()
        if wanted is None or self.site is not None:
            return
        site = Site(wanted, self.handle, self._log)
        try:
            await site.open()
        except OSError as error:
            raise ListenError(f"feedback.http {wanted.address}: {error.strerror or error}") from None
        self.site = site
        self._log.event("serving", what="feedback.http", address=wanted.address.host, port=site.port)

    async def follow(self) -> None:
        """What the configuration in force wants is open, with the certificate that is there now. Raises ListenError."""
        await self.open()
        if self.site is not None:
            await self.site.refresh()

    def stop(self) -> None:
        if self.site is not None:
            self.site.stop()

    async def close(self, timeout: float = 1.0) -> None:
        """`timeout`: seconds that who is being answered has."""
        if self.site is not None:
            site, self.site = self.site, None
            await site.close(timeout)

    # -- requests

    async def handle(self, request: web.BaseRequest, site: Site) -> Answer:
        client = site.client(request)
        kind, name, rest = _route(request)
        if not self._asked.take(client_key(client), clock.monotonic()):
            answer = Answer(429, headers={"Retry-After": "10"}, result="throttled")
        elif kind == "healthz" and not name:
            answer = Answer(200, result="ok") if request.method in ("GET", "HEAD") else _not(("GET", "HEAD"))
        elif kind == "feedback" and name in self._config().feedback.providers and not rest:
            provider = self._config().feedback.providers[name]
            kind, answer = provider.kind, await self._provider(request, provider, client)
        elif kind == "unsubscribe" and name and not rest and self._config().feedback.one_click:
            answer = await self._unsubscribe(request, name, client)
        else:
            kind, answer = "other", Answer(404, result="unknown")
        HTTP.inc(1, kind, answer.result)
        return answer

    def _may(self, client: str) -> bool:
        """Whether not too much of a client came to nothing. Of this machine's one address may be everybody's."""
        return is_loopback(client) or self._bad.left(client_key(client), clock.monotonic()) >= 1.0

    # -- providers

    async def _provider(self, request: web.BaseRequest, provider: Provider, client: str) -> Answer:
        if request.method != "POST":
            return _not(("POST",))
        if not self._may(client):
            return Answer(429, headers={"Retry-After": "30"}, result="throttled")
        try:
            return await self._said(request, provider, client)
        except Unverified as error:
            answer = _unverified(provider, request)
            why = str(error)
        except Unreadable as error:
            answer, why = Answer(400, result="unreadable"), str(error)
        except Cut as error:
            answer, why = Answer(error.status, result=error.result), _CUT.get(error.status, "its body ends too soon")
        except (Later, SecretError, SpoolError) as error:
            self._tell("feedback_unavailable", provider, client, str(error))
            return Answer(503, headers={"Retry-After": "60"}, result="unavailable")
        self._bad.take(client_key(client), clock.monotonic())
        self._tell("feedback_refused", provider, client, why)
        return answer

    async def _said(self, request: web.BaseRequest, provider: Provider, client: str) -> Answer:
        """Raises Unverified, Unreadable, Cut, Later, SecretError, SpoolError."""
        from relay.feedback.providers.said import from_there

        keys, dialect = await self._known_by(provider), self._dialect(provider)
        headers = {name.lower(): value for name, value in [*request.headers.items()][::-1]}
        from_there(keys, client)
        dialect.admits(keys, headers)
        if request.content_type not in _TYPES and "content-type" in headers:
            raise Cut(415, "unreadable")
        call = Call(headers, await body_of(request, dialect.most), client, clock.now())
        found = dialect.hear(keys, call)
        findings = found if isinstance(found, list) else await found
        if not findings:
            return Answer(200, result="passed")
        new = await self._learn(findings, provider)
        return Answer(200, result="learnt" if new else "known")

    async def _learn(self, findings: list[Said], provider: Provider) -> bool:
        """Whether anything of it was new. Raises SpoolError."""
        source = Source(provider.name, verified=True, egress=provider.egress)
        new = False
        for start in range(0, len(findings), AT_ONCE):
            taken = await asyncio.gather(
                *(self._take(one, source) for one in findings[start : start + AT_ONCE]), return_exceptions=True
            )
            for each in taken:
                if isinstance(each, BaseException):
                    raise each
            new = new or any(taken)
        return new

    async def _take(self, one: Said, source: Source) -> bool:
        # What names our message is known again by that: two hooks of a provider may tell the same bounce. What names none
        # is known by the provider's own id.
        named = one.finding.token or one.finding.queue_id
        return await self._heard.take(one.finding, source, "" if named else f"{source.name} {one.once}")

    def _dialect(self, provider: Provider) -> Dialect | Sns:
        kind, found = self._dialects.get(provider.name, ("", None))
        if found is None or kind != provider.kind:
            found = self._sns(provider.name) if provider.kind == "ses" else DIALECTS[provider.kind]()
            self._dialects[provider.name] = provider.kind, found
        return found

    def _sns(self, name: str) -> Sns:
        def told(kind: str, topic: str) -> None:
            if kind == "SubscriptionConfirmation":
                self._log.event("sns_confirmed", provider=name, topic=topic)
            else:
                hint = "nothing more comes of it; subscribe anew if that was not meant"
                self._log.warning("sns_unsubscribed", provider=name, topic=topic, hint=hint)

        return Sns(self._fetch, told)

    async def _known_by(self, provider: Provider) -> Keys:
        """Raises SecretError."""
        now = clock.monotonic()
        until, keys = self._keys.get(provider, (0.0, Keys()))
        if until <= now:
            keys = await asyncio.to_thread(resolved, provider)
            current = set(self._config().feedback.providers.values())
            self._keys = {one: kept for one, kept in self._keys.items() if one in current}
            self._keys[provider] = now + FRESH, keys
        return keys

    # -- readers

    async def _unsubscribe(self, request: web.BaseRequest, token: str, client: str) -> Answer:
        if request.method not in ("GET", "HEAD", "POST"):
            return _not(("GET", "HEAD", "POST"))
        if not self._may(client):
            return _shown(429, page.later(), "throttled")
        try:
            if request.method == "POST":
                answer = await self._one_click.post(request, token)
            else:
                answer = await self._one_click.look(token)
        except Cut as error:
            answer = Answer(error.status, result=error.result)
        except SpoolError as error:
            self._tell("unsubscribe_unavailable", None, client, str(error))
            return _shown(503, page.later(), "unavailable")
        if answer.status >= 400:
            self._bad.take(client_key(client), clock.monotonic())
        return answer

    def _tell(self, event: str, provider: Provider | None, client: str, why: str) -> None:
        """Once a minute: who is asked by the whole world must not fill its log."""
        now, name = clock.monotonic(), provider.name if provider else ""
        if self._told.get((event + name, why), 0.0) > now:
            return
        self._told = {key: until for key, until in self._told.items() if until > now}
        self._told[event + name, why] = now + CALM
        self._log.warning(event, provider=name, client=client, why=why)


def _route(request: web.BaseRequest) -> tuple[str, str, str]:
    first, _, rest = request.rel_url.raw_path.removeprefix("/").partition("/")
    name, _, rest = rest.partition("/")
    return first, name, rest


def _not(allowed: tuple[str, ...]) -> Answer:
    return Answer(405, headers={"Allow": ", ".join(allowed)}, result="method")


def _shown(status: int, body: bytes, result: str) -> Answer:
    return Answer(status, body, page.HEADERS, result)


def _unverified(provider: Provider, request: web.BaseRequest) -> Answer:
    """401 asks for a login (RFC 9110 §15.5.2); a signature that is none is 403."""
    if provider.kind not in BASIC:
        return Answer(403, result="unverified")
    scheme = "Bearer" if provider.token else 'Basic realm="feedback", charset="UTF-8"'
    return Answer(401, headers={"WWW-Authenticate": scheme}, result="unverified")


def resolved(provider: Provider) -> Keys:
    """Reads files, runs commands: call it off the loop. Raises SecretError."""

    def value(reference: Reference | None) -> str:
        return reference.resolve() if reference else ""

    return Keys(
        provider.topics,
        provider.clients,
        value(provider.public_key),
        value(provider.signing_key),
        value(provider.username),
        value(provider.password),
        value(provider.token),
    )


def public_socket(found: tuple[Any, ...]) -> socket.socket:
    """For an address of the public network, and no other. Raises OSError."""
    family, kind, protocol, _, where = found
    if not may_dial(where[0], allow_private=False):
        raise OSError("no address of the public network")
    return socket.socket(family, kind, protocol)


async def fetched(url: str) -> bytes:
    """What SNS shows. Raises Later."""
    try:
        context = await asyncio.to_thread(trusted)
        answer = await https.ask(
            url, context, accept="*/*", seconds=FETCH_SECONDS, most=FETCH_MOST, sockets=public_socket
        )
    except (https.Unanswered, OSError) as error:
        raise Later(f"SNS: {error}") from None
    if answer.status != 200:
        raise Later(f"SNS answered {answer.status}")
    return answer.body
