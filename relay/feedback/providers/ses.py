"""What Amazon SES says in a notification: feedback notifications (`notificationType`) and event publishing (`eventType`). Pure.

docs.aws.amazon.com/ses/latest/dg/notification-contents.html, event-publishing-retrieving-sns-contents.html. Who says it, and
that it is he, is for `sns`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relay.feedback.providers import said
from relay.feedback.providers.said import Ids, Said, Unreadable
from relay.policy.bounces import Reason
from relay.returned import original

MOST_RECIPIENTS = 1000

# bounceType, bounceSubType; docs.aws.amazon.com/ses/latest/dg/notification-contents.html#bounce-types
_SURE: Mapping[tuple[str, str], Reason] = {
    (
        "Permanent",
        "Suppressed",
    ): Reason.USER_UNKNOWN,  # SES' own list: "a recent history of bouncing as an invalid address"
    ("Permanent", "OnAccountSuppressionList"): Reason.UNKNOWN,  # for a bounce or a complaint: it does not say which
    ("Transient", "MailboxFull"): Reason.MAILBOX_FULL,
    ("Transient", "MessageTooLarge"): Reason.MESSAGE_TOO_BIG,
    ("Transient", "ContentRejected"): Reason.CONTENT,
    ("Transient", "AttachmentRejected"): Reason.CONTENT,
}
_LIKELY: Mapping[tuple[str, str], Reason] = {("Permanent", "NoEmail"): Reason.USER_UNKNOWN}


def read(message: str, key: str) -> list[Said]:
    """`message`: the `Message` of a notification. `key`: its MessageId. Raises Unreadable."""
    found = said.read_json(message.encode("utf-8", "replace"))
    if not isinstance(found, dict):
        raise Unreadable("no event of SES")
    mail = said.obj(found.get("mail"))
    ids, sender = _ids(mail), said.address(mail.get("source"))
    kind = said.text(found.get("eventType"), 50) or said.text(found.get("notificationType"), 50)
    match kind:
        case "Bounce":
            made = _bounces(said.obj(found.get("bounce")), ids, sender, key)
        case "Complaint":
            made = _complaints(said.obj(found.get("complaint")), ids, sender, key)
        case "DeliveryDelay":
            made = _delays(said.obj(found.get("deliveryDelay")), ids, sender, key)
        case "Reject":
            made = _rejected(said.obj(found.get("reject")), mail, ids, sender, key)
        case "Subscription":
            made = _subscription(said.obj(found.get("subscription")), mail, ids, key)
        case _:
            made = []
    return made


def _ids(mail: dict[str, Any]) -> Ids:
    """Of the tag that we put in, else of our own header, where it is told."""
    tags = said.obj(mail.get("tags")).get(said.KEY)
    fields = [
        (said.text(one.get("name"), 100).lower(), said.text(one.get("value"), 4000))
        for one in said.objects(mail.get("headers"))[:200]
    ]
    # X-SES-MESSAGE-TAGS is a header too, where feedback notifications bring those along.
    for value in [value for name, value in fields if name == "x-ses-message-tags"]:
        pairs = (pair.partition("=") for pair in value.split(","))
        tags = tags or [what.strip() for name, _, what in pairs if name.strip() == said.KEY]
    ours = tags if isinstance(tags, list) else [tags]
    given = [value for name, value in fields if name == "message-id"]
    ids = Ids.of(ours, given or [said.obj(mail.get("commonHeaders")).get("messageId")])
    return Ids(ids.queue_id or original.queue_id(fields), ids.token or original.token(fields), ids.message_id)


def _each(value: Any, key: str) -> list[tuple[dict[str, Any], str, str]]:
    """Each recipient of a list as it is told, its address, and its key."""
    found = said.objects(value)[:MOST_RECIPIENTS] if isinstance(value, list) else []
    named = [(one, said.address(one.get("emailAddress"))) for one in found]
    return [(one, address, f"{key} {address.lower()}") for one, address in named if address]


def _bounces(bounce: dict[str, Any], ids: Ids, sender: str, key: str) -> list[Said]:
    type_, sub = said.text(bounce.get("bounceType"), 50), said.text(bounce.get("bounceSubType"), 50)
    at, reporter = said.seconds(bounce.get("timestamp")), said.text(bounce.get("reportingMTA"), 255)
    made = []
    for one, recipient, once in _each(bounce.get("bouncedRecipients"), key):
        if sub == "UnsubscribedRecipient":
            made.append(Said(said.unsubscribe(recipient, ids, at=at), once))
            continue
        status, words = said.text(one.get("status"), 20), _words(one)
        verdict = said.judged(
            status,
            words,
            sure=_SURE.get((type_, sub)),
            likely=_LIKELY.get((type_, sub)),
            temporary=type_ == "Transient",
        )
        finding = said.bounce(
            recipient,
            ids,
            verdict,
            status=status,
            words=words or f"{type_} {sub}".strip(),
            remote=said.text(bounce.get("remoteMtaIp"), 50),
            reporter=reporter,
            sender=sender,
            at=at,
        )
        made.append(Said(finding, once))
    return made


def _words(one: dict[str, Any]) -> str:
    given = said.text(one.get("diagnosticCode"))
    kind, semicolon, rest = given.partition(";")  # RFC 3464 §2.3.6: `smtp; 550 …`
    return rest.strip() if semicolon and kind.strip().lower() in ("smtp", "x-amazon", "dns") else given


def _complaints(complaint: dict[str, Any], ids: Ids, sender: str, key: str) -> list[Said]:
    kind, at = said.text(complaint.get("complaintFeedbackType"), 50), said.seconds(complaint.get("timestamp"))
    if kind == "not-spam":
        return []
    made = []
    for _, recipient, once in _each(complaint.get("complainedRecipients"), key):
        if said.text(complaint.get("complaintSubType"), 50) == "OnAccountSuppressionList":
            # An old complaint: nothing was sent.
            words, verdict = "OnAccountSuppressionList", said.judged("", "", sure=Reason.REFUSED)
            made.append(Said(said.bounce(recipient, ids, verdict, words=words, sender=sender, at=at), once))
            continue
        reporter = said.text(complaint.get("userAgent"), 255)
        finding = said.complaint(recipient, ids, reason=kind or "abuse", reporter=reporter, sender=sender, at=at)
        made.append(Said(finding, once))
    return made


def _delays(delay: dict[str, Any], ids: Ids, sender: str, key: str) -> list[Said]:
    made = []
    for one, recipient, once in _each(delay.get("delayedRecipients"), key):
        status, words = said.text(one.get("status"), 20), _words(one) or said.text(delay.get("delayType"), 50)
        finding = said.bounce(
            recipient,
            ids,
            said.judged(status, words, temporary=True),
            status=status,
            words=words,
            sender=sender,
            at=said.seconds(delay.get("timestamp")),
            action="delayed",
        )
        made.append(Said(finding, once))
    return made


def _rejected(reject: dict[str, Any], mail: dict[str, Any], ids: Ids, sender: str, key: str) -> list[Said]:
    """SES took it and did not send it: it holds a virus."""
    words, verdict = said.text(reject.get("reason")), said.judged("", "", sure=Reason.VIRUS)
    return [
        Said(said.bounce(to, ids, verdict, words=words, sender=sender), f"{key} {to.lower()}")
        for to in _destinations(mail)
    ]


def _subscription(subscription: dict[str, Any], mail: dict[str, Any], ids: Ids, key: str) -> list[Said]:
    if said.obj(subscription.get("newTopicPreferences")).get("unsubscribeAll") is not True:
        return []
    at, recipients = said.seconds(subscription.get("timestamp")), _destinations(mail)
    # Of a message to many nobody says who it was.
    return [Said(said.unsubscribe(to, ids, at=at), key) for to in recipients] if len(recipients) == 1 else []


def _destinations(mail: dict[str, Any]) -> list[str]:
    given = mail.get("destination")
    return [one for each in (given if isinstance(given, list) else [])[:MOST_RECIPIENTS] if (one := said.address(each))]
