"""What somebody sees who follows a link to unsubscribe. One page, whole in itself: no script, no picture, nobody else's server."""

from __future__ import annotations

import base64
import hashlib
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #566072; --ground: #f3f4f7; --sheet: #fff; --act: #1f5fbf; --on: #fff }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaf0; --soft: #a3abbb; --ground: #14171d; --sheet: #1e232c; --act: #86b4ff; --on: #10151d }
}
* { box-sizing: border-box }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1.5rem; background: var(--ground);
  color: var(--ink); font: 1.0625rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { width: 100%; max-width: 28rem; padding: 2.25rem 2rem; background: var(--sheet); border-radius: .75rem;
  box-shadow: 0 1px 3px rgb(0 0 0 / .12), 0 8px 24px rgb(0 0 0 / .06) }
h1 { margin: 0 0 .75rem; font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere }
p { margin: 0 0 1rem; color: var(--soft); overflow-wrap: anywhere }
p:last-child { margin-bottom: 0 }
form { margin: 1.5rem 0 }
button { width: 100%; padding: .8rem 1rem; border: 0; border-radius: .5rem; background: var(--act); color: var(--on);
  font: inherit; font-weight: 600; cursor: pointer }
button:hover { filter: brightness(1.08) }
button:focus-visible { outline: 3px solid var(--act); outline-offset: 3px }
"""
_POLICY = (
    f"default-src 'none'; style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address of this page is a key
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
}


def asking(sender: str) -> bytes:
    """The button. `sender`: whose mail it is; a domain, or empty."""
    whose = f" from <strong>{escape(sender)}</strong>" if sender else ""
    return _page(
        "Unsubscribe?",
        f"<p>You will get no more mail of this kind{whose}.</p>\n"
        '<form method="post"><input type="hidden" name="List-Unsubscribe" value="One-Click">'
        '<button type="submit">Unsubscribe</button></form>\n'
        "<p>If you came here by mistake, close this page: nothing was changed.</p>",
    )


def done(sender: str) -> bytes:
    whose = f" from <strong>{escape(sender)}</strong>" if sender else ""
    return _page(
        "You are unsubscribed",
        f"<p>You will get no more mail of this kind{whose}.</p>\n"
        "<p>What was on its way already may still arrive. You can close this page.</p>",
    )


def unknown() -> bytes:
    return _page(
        "This link does not work",
        "<p>It may be incomplete: some mail programs break long links. Open the link from the message once more.</p>\n"
        "<p>If that does not help, reply to the message and ask its sender to remove you.</p>",
    )


def forgotten() -> bytes:
    return _page(
        "This link is too old",
        "<p>We do not know any more which address it was for, so nothing was changed.</p>\n"
        "<p>Use the link of a newer message, or reply to it and ask its sender to remove you.</p>",
    )


def later() -> bytes:
    return _page("Please try again later", "<p>That could not be done just now, and nothing was changed.</p>")


def _page(title: str, body: str) -> bytes:
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>\n<h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    ).encode()
