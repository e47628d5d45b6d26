"""What tests of signatures share: a message, keys that are published nowhere but here, and signatures over both."""

from __future__ import annotations

import base64

from relay.signing.canonical import Form, body_hash
from relay.signing.dkim import Fields, canonical_fields, selected, signature
from relay.signing.key import SigningKey
from relay.signing.records import DnsFunc
from relay.signing.rules import Recipe

SIGNED_AT = 1_700_000_000
DOMAIN = "example.com"
HEAD = (
    b"Received: from a (b [192.0.2.1])\r\n\tby c; Tue, 14 Nov 2023 22:13:20 +0000\r\n"
    b"From: A  Person <a@example.com>\r\nTo: b@example.net\r\nSubject: Of this\r\n  and that\r\n"
    b"Date: Tue, 14 Nov 2023 22:13:20 +0000\r\nMessage-ID: <1@example.com>\r\n"
)
BODY = b"Hello  there \r\n\r\n\tyou.\r\n\r\n"
NAMES = frozenset([b"from", b"to", b"subject", b"date", b"message-id", b"cc"])


def published(**keys: SigningKey | bytes | None) -> DnsFunc:
    """The zone of DOMAIN: selector -> key, or the text of its record, or none."""
    texts = {
        f"{selector}._domainkey.{DOMAIN}.".encode(): key.record.encode() if isinstance(key, SigningKey) else key
        for selector, key in keys.items()
    }

    def ask(name: bytes, timeout: int = 5) -> bytes | None:
        return texts.get(name)

    return ask


def signed(
    key: SigningKey,
    head: bytes = HEAD,
    body: bytes = BODY,
    *,
    selector: str = "s",
    header: Form = "relaxed",
    text: Form = "relaxed",
    names: frozenset[bytes] = NAMES,
    **more: object,
) -> bytes:
    """The head with a signature of ours on top."""
    values = {"signed_at": SIGNED_AT, "header_form": header, "body_form": text, "sign": names, **more}
    recipe = Recipe(DOMAIN, selector, key, **values)  # type: ignore[arg-type]
    return signature(recipe, Fields(head), body_hash(body, text)) + head


def handmade(
    key: SigningKey, head: bytes = HEAD, body: bytes = BODY, b_first: bool = False, **tags: str | None
) -> bytes:
    """The head with a good signature on top (relaxed/relaxed), with any tags that a stranger may write; None: without."""
    values: dict[str, str | None] = {
        "v": "1",
        "a": key.algorithm,
        "c": "relaxed/relaxed",
        "d": DOMAIN,
        "s": "s",
        "h": "from:to:subject",
        "bh": body_hash(body, "relaxed"),
        **tags,
    }
    rest = "; ".join(f"{name}={value}" for name, value in values.items() if value is not None)
    before, after = ("b=", "; " + rest) if b_first else (f" {rest}; b=", "")
    names = [name.strip().lower().encode() for name in (values["h"] or "").split(":")]
    unsigned = canonical_fields([(b"DKIM-Signature", f"{before}{after}\r\n".encode())], "relaxed")[0].rstrip(b"\r\n")
    made = key.sign(b"".join([*selected(names, Fields(head).of("relaxed")), unsigned]))
    return f"DKIM-Signature:{before}{base64.b64encode(made).decode()}{after}\r\n".encode() + head
