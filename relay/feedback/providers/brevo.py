"""Brevo's transactional webhooks, with a bearer token or a login in their URL; one event, or a batch of them.

developers.brevo.com/docs/transactional-webhooks, /docs/secured-webhooks, /docs/batched-webhooks. Events have no id of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.feedback.providers import said
from relay.feedback.providers.said import Call, Ids, Keys, Said, Unreadable
from relay.policy.bounces import Reason

_BOUNCES: Mapping[str, tuple[Reason | None, bool]] = {  # what is sure, and whether it is temporary
    "hard_bounce": (None, False),
    "soft_bounce": (None, True),
    "invalid_email": (Reason.USER_UNKNOWN, False),
    "invalid": (Reason.USER_UNKNOWN, False),
    "blocked": (Reason.REFUSED, False),
    "error": (None, True),
}


class Brevo:
    most = 1 << 20

    def admits(self, keys: Keys, headers: Mapping[str, str]) -> None:
        if keys.token:
            said.bearer(keys, headers)
        else:
            said.basic(keys, headers)

    def hear(self, keys: Keys, call: Call) -> list[Said]:
        found = said.read_json(call.body)
        if not isinstance(found, dict | list):
            raise Unreadable("no event")
        return [one for event in said.objects(found) if (one := _event(event)) is not None]


def _event(event: dict[str, Any]) -> Said | None:
    recipient, kind = said.address(event.get("email")), said.text(event.get("event"), 50).lower()
    if not recipient:
        return None
    custom = event.get("X-Mailin-custom")
    ids = Ids.of([custom, *_named(custom)], [event.get("message-id")])
    times = [said.text(event.get(key), 30) for key in ("ts_epoch", "ts_event", "ts")]
    key = said.once(kind, recipient, said.text(event.get("message-id"), 998), *times)
    at = _when(event)
    words = said.text(event.get("reason"))
    match kind:
        case "spam" | "complaint":
            return Said(said.complaint(recipient, ids, at=at), key)
        case "unsubscribed" | "unsubscribe":
            return Said(said.unsubscribe(recipient, ids, at=at), key)
        case "deferred":
            verdict = said.judged("", words, temporary=True)
            return Said(said.bounce(recipient, ids, verdict, words=words, at=at, action="delayed"), key)
    if kind not in _BOUNCES:
        return None
    sure, temporary = _BOUNCES[kind]
    verdict = said.judged("", words, sure=sure, temporary=temporary)
    return Said(said.bounce(recipient, ids, verdict, words=words, at=at), key)


def _when(event: dict[str, Any]) -> float | None:
    """`ts_epoch` is of milliseconds, though its samples have seconds; it alone is surely UTC."""
    found = event.get("ts_epoch")
    if not isinstance(found, int) or not 0 < found < 1 << 53:
        return None
    return said.seconds(found / 1000.0 if found > 1e11 else found)


def _named(custom: Any) -> list[Any]:
    """Of a header that is JSON, or `name:value|name:value` as Brevo's own examples have it."""
    given = said.text(custom)
    if given.startswith("{"):
        try:
            return [said.obj(said.read_json(given.encode())).get(said.KEY)]
        except Unreadable:
            return []
    return [value for part in given.split("|") for name, _, value in [part.partition(":")] if name.strip() == said.KEY]
