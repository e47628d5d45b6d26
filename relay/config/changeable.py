"""Which keys of which sections may be changed at run time. Nothing is imported here: the command line shows it."""

from __future__ import annotations

from collections.abc import Mapping

EGRESS = ("limits", "connections", "messages_per_connection", "recipients_per_message")
KEYS: Mapping[str, tuple[str, ...]] = {
    "accounts": EGRESS,
    "direct": ("limits", "connections"),
    "users": ("limits",),
    "tenants": ("limits",),
    "classes": ("limits",),
    "destinations": EGRESS,
    "limits": ("rate", "burst"),
}
BESIDE = tuple(section for section in KEYS if section not in ("accounts", "direct"))
