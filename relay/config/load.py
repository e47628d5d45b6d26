"""`load(path)` -> Config, or ConfigError with every problem at once. See the room's docstring.

The steps: read the files into one tree (yamltree, include), check each value alone (shape, reword), then the rules
between them (build). A part that fails one step is left out of the next, so that it tells of one mistake once while the
rest is still looked at whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from relay.config import overlay, places
from relay.config.build import Builder, default_hostname
from relay.config.doors import default_listen
from relay.config.include import read_all
from relay.config.overlay import Change, Changes
from relay.config.problems import ConfigError, Keys, Problem, Report
from relay.config.reword import told
from relay.config.shape import File
from relay.config.yamltree import Node
from relay.policy.classes import DEFAULT_CLASS
from relay.policy.routing import Action, Route, Table
from relay.secrets import Reference
from relay.settings import Account, Address, Admin, Config, Spool, Tls

__all__ = ["ConfigError", "Problem", "default_config", "load", "overlaid", "under"]

# Sections whose entries stand for themselves: a mistake in one leaves the others in order.
_COLLECTIONS = (
    *("accounts", "classes", "destinations", "direct", "limits", "listen", "pools", "routes", "shaping", "signing"),
    *("tenants", "users", "webhooks"),
)


def load(path: Path, env: Mapping[str, str] | None = None) -> Config:
    """The configuration of `path` and the files that it includes. `env` is for the default folders."""
    report = Report()
    root = read_all(path, report)
    if root is None:
        report.check()
        raise AssertionError("no tree and no problem")
    return _built(root, report, path, env)


def overlaid(config: Config, changes: Changes, env: Mapping[str, str] | None = None) -> Config:
    """What the file of `config` said when it was read, with these changes and no others. Raises ConfigError."""
    assert config.source is not None
    made = _built(overlay.laid(config.tree, changes), Report(files=list(config.files)), config.source, env)
    return replace(made, tree=config.tree)


def under(
    config: Config, changes: Iterable[Change], env: Mapping[str, str] | None = None
) -> tuple[Config, Changes, list[str]]:
    """`config`, as its file has it, with those changes that are still meant and fit it; and why each of the others is dropped."""
    kept, notes = overlay.standing(config.tree, changes)
    while kept:
        try:
            return overlaid(config, kept, env), kept, notes
        except ConfigError as error:
            kept, dropped = overlay.without(kept, error.problems)
            notes += dropped
    return config, kept, notes


def _built(root: Node, report: Report, source: Path, env: Mapping[str, str] | None) -> Config:
    """Raises ConfigError."""
    file, kept = _shaped(root, report)
    builder = Builder(root, report, source, os.environ if env is None else env)
    config = builder.config(file, kept)
    report.check()
    return config


def _shaped(root: Node, report: Report) -> tuple[File, Mapping[str, list[int]]]:
    """What of the tree has the right shape, and which elements of its lists those are."""
    data = root.plain()
    kept = {name: list(range(len(data[name]))) for name in _COLLECTIONS if isinstance(data.get(name), list)}
    try:
        return File.model_validate(data), kept
    except ValidationError as error:
        broken = told(error, root, report)
    _prune(data, kept, broken)
    return File.model_validate(data), kept


def _prune(data: dict[str, Any], kept: dict[str, list[int]], broken: set[Keys]) -> None:
    for path in broken:
        if path[0] == "feedback" and len(path) > 1:
            _without(data["feedback"], path[1:3] if path[1] in ("imap", "providers") else path[1:2])
        elif len(path) == 1 or path[0] not in _COLLECTIONS:
            data.pop(str(path[0]), None)
            kept.pop(str(path[0]), None)
    for section in _COLLECTIONS:
        entries = data.get(section)
        bad = {path[1] for path in broken if path[0] == section and len(path) > 1}
        if isinstance(entries, dict):
            data[section] = {name: value for name, value in entries.items() if name not in bad}
        elif isinstance(entries, list):
            kept[section] = [n for n in range(len(entries)) if n not in bad]
            data[section] = [entries[n] for n in kept[section]]


def _without(data: dict[str, Any], path: Keys) -> None:
    """One door less; what routes ask of the section is still there. It may be gone with another mistake in it."""
    *above, last = map(str, path)
    for key in above:
        data = data.get(key) or {}
    if isinstance(data, dict):
        data.pop(last, None)


def default_config(env: Mapping[str, str] | None = None, upstream: Address | None = None) -> Config:
    """The built-in demonstration, for a start without a file: nothing leaves the machine.

    All mail goes to `upstream`, such as `relay sink` on loopback; without one it is held for an operator.
    """
    env = os.environ if env is None else env
    accounts: dict[str, Account] = {}
    route = Route("demonstration", Action.HOLD, origin="built in")
    if upstream is not None:
        sink = Account("sink", Reference("plain", upstream.host), upstream.port, Tls("none", verify=False), signs=True)
        accounts = {"sink": sink}
        route = Route("demonstration", Action.VIA, via=("sink",), origin="built in")
    return Config(
        source=None,
        hostname=default_hostname(),
        listen=default_listen(),
        spool=Spool(places.state_folder(env) / "spool.db"),
        admin=Admin(places.runtime_folder(env) / "admin.sock", Address("127.0.0.1", 2580)),
        routes=Table((route,)),
        accounts=accounts,
        classes={"default": DEFAULT_CLASS},
    )
