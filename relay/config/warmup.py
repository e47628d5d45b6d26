"""`warm_up` -> a plan that makes sense, and where what is in excess goes. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from relay.config.pacing import WarmUpSection
from relay.config.problems import Keys
from relay.config.site import Site, no_such
from relay.policy.rate import Rate
from relay.policy.warmup import HoldAbove, WarmUp

DEFAULT_GROWTH = 0.2


def build_warm_up(section: WarmUpSection, path: Keys, site: Site) -> WarmUp:
    """`overflow` is looked at later, by `check_overflow`: it may name what is not read yet."""
    by_growth = {key: getattr(section, key) for key in ("first", "max_step", "until") if getattr(section, key)}
    table = section.table or ()
    if section.table is not None:
        if not table:
            site.wrong((*path, "table"), "an empty table; say how much on each day, or remove the key")
        for key in (*by_growth, *(["growth"] if section.growth is not None else [])):
            site.wrong((*path, key), f"`table` says how much on each day already; remove it or `{key}`")
    else:
        for key, why in (("first", "how much on the first day, or a `table`"), ("until", "where the warm-up ends")):
            if key not in by_growth:
                site.wrong(path, f"'{key}' is missing: {why}", on_key=True)
    unit = _unit(by_growth | {f"table.{n}": rate for n, rate in enumerate(table)}, path, site)
    first, until = section.first, section.until
    if first and until and not table and until.count < first.count:
        site.wrong((*path, "until"), f"`until` ({until.text}) is less than `first` ({first.text})")
    above = section.hold_above
    return WarmUp(
        section.start,
        first.count if first else 0,
        DEFAULT_GROWTH if section.growth is None else section.growth,
        section.max_step.count if section.max_step else 0,
        until.count if until else 0,
        tuple(rate.count for rate in table),
        "messages" if unit == "messages" else "recipients",
        section.spread,
        section.timezone,
        section.overflow or "",
        HoldAbove(above.bounces, above.complaints, above.deferrals),
    )


def _unit(rates: Mapping[str, Rate], path: Keys, site: Site) -> str:
    """What all of them count."""
    unit = ""
    for key, rate in rates.items():
        name, _, number = key.partition(".")
        if unit and rate.unit != unit:
            where: Keys = (*path, name, int(number)) if number else (*path, name)
            site.wrong(where, f"counts {rate.unit}, where the others count {unit}; say the same of all")
            break
        unit = unit or rate.unit
    return unit


def check_overflow(
    plans: Mapping[str, tuple[WarmUp, Keys]], pools: set[str], known: set[str] | None, site: Site
) -> None:
    """That each `overflow` names another egress, and that none comes round. `plans`: by egress, each with its path."""
    for name, (plan, path) in plans.items():
        where: Keys = (*path, "overflow")
        if not plan.overflow:
            continue
        if plan.overflow == name:
            site.wrong(where, f"'{name}' cannot take its own excess; name another egress, or remove the key")
        elif plan.overflow in pools and (known is None or plan.overflow not in known):
            site.wrong(where, f"'{plan.overflow}' is a pool; name one account or direct entry")
        elif known is not None and plan.overflow not in known:
            site.wrong(where, no_such("account", plan.overflow, known))
        else:
            way = [name]
            while way[-1] in plans and (behind := plans[way[-1]][0].overflow) and behind not in way:
                way.append(behind)
            if way[-1] in plans and plans[way[-1]][0].overflow == name:
                text = f"comes round: {' to '.join([*way, name])}; one of them must wait"
                site.wrong(where, text)
