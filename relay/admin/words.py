"""Words that several answers share."""

from __future__ import annotations

from datetime import datetime

_TOO_FAR = 2.0**31 * 2  # beyond it no clock time helps anybody


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def clock_time(at: float, now: float) -> str:
    """Local time, with the date where it is not about today."""
    if at > _TOO_FAR:
        return "further notice"
    local = datetime.fromtimestamp(at).astimezone()
    return local.strftime("%H:%M:%S") if abs(at - now) < 43200 else local.strftime("%Y-%m-%d %H:%M")


def rests(name: str, until: float, now: float, why: str) -> str:
    if why.startswith("suspended "):
        return f"{name}: {why}"
    return f"{name} rests until {clock_time(until, now)}: {why}"


def joined(stored: str, forecast: str) -> str:
    """Two reasons as one text: where one says what the other says too, the one that says more."""
    if not stored or stored in forecast:
        return forecast
    # "main: 535 …" besides "main rests: auth: 535 …": the same answer, told once.
    name, _, said = stored.partition(": ")
    if said and forecast.startswith(f"{name} rests: ") and said in forecast:
        return forecast
    return stored if not forecast or forecast in stored else f"{stored}; besides, {forecast}"
