"""`tenants.X.routes`: which routes are for whom, written into the routes themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from relay.config.problems import Keys
from relay.config.shape import File
from relay.config.site import Site, no_such
from relay.policy.routing import Facts, Question, Route


def closed(file: File, routes: Sequence[Route], tenants: Mapping[str, frozenset[str]], site: Site) -> tuple[Route, ...]:
    """Each route with the tenants whose mail passes it over. `tenants`: with their users."""
    shut: dict[str, list[tuple[str, Question]]] = {route.name: [] for route in routes}
    known = site.list_names("routes", "route")
    for tenant, entry in file.tenants.items():
        if entry.routes is None:
            continue
        path: Keys = ("tenants", tenant, "routes")
        for number, name in enumerate(entry.routes):
            if known is not None and name not in known:
                site.wrong((*path, number), no_such("route", name, known))
        if not entry.routes:
            site.wrong(path, "an empty list would refuse all its mail; name routes, or remove the key")
        users = Question("user", tuple(sorted(tenants.get(tenant, ()))))
        for name in shut.keys() - {*entry.routes}:
            shut[name].append((tenant, users))
    made = tuple(replace(route, closed=tuple(shut[route.name])) for route in routes)
    if not site.report.problems:
        for tenant, entry in file.tenants.items():
            for user in sorted(tenants.get(tenant, ())) if entry.routes else ():
                _takes_some(made, tenant, user, site)
    return made


def _takes_some(routes: Sequence[Route], tenant: str, user: str, site: Site) -> None:
    """Warns where no route takes any mail of a user, whatever it is like."""
    facts = Facts(sender="", recipient="", user=user)

    def ask(question: Question) -> bool | None:
        return question.ask(facts) if question.fact == "user" else None

    if all(route.closed_to(ask) or route.match.test(ask) is False for route in routes):
        text = f"none of them takes mail of user '{user}': all of it will be refused"
        site.warn(("tenants", tenant, "routes"), text)
