"""`drop`: folders whose files are mail."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from relay.config.problems import Keys
from relay.config.types import Duration, FilePath, Given, Name, Section
from relay.settings import Drop

if TYPE_CHECKING:
    from relay.config.shape import File
    from relay.config.site import Site

LEAST_EVERY = 0.1  # seconds
LONGEST_TAG = 200


class DropEntry(Section):
    folder: FilePath = Field(
        description="Whose `.eml` files are submitted and removed; `refused` in it has the others."
    )
    user: Given[Name] = Field(None, description="Whose mail it is: one of `users`, with its rights and limits.")
    tag: Given[str] = Field(None, description="X-Relay-Tag of a message that has none.")
    class_: Given[Name] = Field(None, alias="class", description="X-Relay-Class of a message that has none.")
    every: Duration = Field(1.0, description="How often it is looked into.")


def build_drop(file: File, site: Site) -> dict[str, Drop]:
    made: dict[str, Drop] = {}
    for name, entry in file.drop.items():
        path: Keys = ("drop", name)
        folder = site.path(entry.folder)
        assert folder is not None
        if other := next((drop.name for drop in made.values() if drop.folder == folder), ""):
            site.wrong((*path, "folder"), f"{folder} is that of '{other}' already: one of them would take all")
        _look(folder, (*path, "folder"), site)
        site.known((*path, "user"), "user", entry.user or "", site.names("users", also=("",)))
        site.known((*path, "class"), "class", entry.class_ or "", site.names("classes", also=("default", "")))
        allowed = file.users[entry.user].classes if entry.user in file.users else ()
        if entry.class_ and allowed and entry.class_ not in allowed:
            site.wrong((*path, "class"), f"user '{entry.user}' may not use it; its classes are {', '.join(allowed)}")
        if entry.tag is not None and not (entry.tag.isprintable() and 1 <= len(entry.tag) <= LONGEST_TAG):
            site.wrong((*path, "tag"), f"`tag` wants 1 to {LONGEST_TAG} printable characters")
        if entry.every < LEAST_EVERY:
            site.wrong((*path, "every"), f"`every` must be {LEAST_EVERY:.1f}s or more")
        made[name] = Drop(name, folder, entry.user or "", entry.tag or "", entry.class_ or "", entry.every)
    return made


def _look(folder: Path, path: Keys, site: Site) -> None:
    """Warns of a folder that is not there yet, or where anybody may leave mail."""
    try:
        mode = os.stat(folder).st_mode
    except OSError as error:
        site.warn(path, f"{folder}: {error.strerror}; make it, for the relay's user to read and write")
        return
    if not stat.S_ISDIR(mode):
        site.wrong(path, f"{folder} is no folder")
    elif mode & stat.S_IWOTH:
        site.warn(path, f"every user of this machine may write into {folder}, and send mail by it; say chmod o-w")
