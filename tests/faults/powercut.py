"""What a disk may hold after the power went: all that was synced, and of the rest whatever the dice say.

`shim.c` keeps the shadow. A file's 512 octets or a page that were not synced are the old ones or the new ones, each on its
own, so that writes are torn and reordered; a name that was not synced is there or not. SQLite's shared memory is memory.
"""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Disk:
    """`folder` is what the process works on, `shadow` what was synced of it."""

    folder: Path
    shadow: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.shadow.mkdir(exist_ok=True)

    def env(self, shim: Path, *, lie: bool = False) -> dict[str, str]:
        made = {"LD_PRELOAD": str(shim), "FAULT_ROOT": str(self.folder), "FAULT_SHADOW": str(self.shadow)}
        return made | ({"FAULT_LIE": "1"} if lie else {})

    def cut(self, dice: random.Random, survive: float | None = None) -> None:
        """The process is dead: put the folder into a state that the cut may have left.

        `survive`: the share of what was not synced that is there all the same; drawn if not given.
        """
        self.dice = dice
        self.survive = dice.choice((0.0, 0.1, 0.5, 0.9, 1.0)) if survive is None else survive
        self.block = dice.choice((512, 4096))
        after = self.folder.with_name(self.folder.name + ".after")
        self._folder(self._latest(self.folder.stat().st_ino), self.folder, after)
        shutil.rmtree(self.folder)
        after.rename(self.folder)
        shutil.rmtree(self.shadow)
        self.shadow.mkdir()

    def _stays(self) -> bool:
        return self.dice.random() < self.survive

    def _latest(self, inode: int) -> str:
        """The shadow's name for what has this inode now; empty where nothing of it was ever seen."""
        found = {int(p.name.rpartition("-")[2]): p.name for p in self.shadow.glob(f"[cdt]-{inode}-*[0-9]")}
        name = found[max(found)] if found else ""
        return "" if (self.shadow / f"t{name[1:]}").exists() else name[2:]

    def _folder(self, number: str, now: Path | None, to: Path) -> None:
        """From the durable names and those of the dead process."""
        to.mkdir(mode=0o700)
        names = self.shadow / f"d-{number}"
        lines = names.read_text().splitlines() if number and names.exists() else []
        durable = {name: (kind, key) for kind, key, name in (line.split(" ", 2) for line in lines)}
        current: dict[str, tuple[str, str]] = {}
        for entry in os.scandir(now) if now else ():
            if entry.name.endswith("-shm") or not (entry.is_file() or entry.is_dir()):
                continue
            current[entry.name] = ("d" if entry.is_dir() else "c", self._latest(entry.inode()))
        for name in sorted(durable.keys() | current.keys()):
            before, after = durable.get(name), current.get(name)
            take = before if before == after or not self._stays() else after
            if take is None or name.endswith("-shm"):
                continue
            there = now / name if now and take == after else None
            (self._folder if take[0] == "d" else self._file)(take[1], there, to / name)

    def _file(self, number: str, now: Path | None, to: Path) -> None:
        content = self.shadow / f"c-{number}"
        old = content.read_bytes() if number and content.exists() else b""
        new = now.read_bytes() if now else old
        size = len(new) if len(new) == len(old) or self._stays() else len(old)
        made = bytearray(size)
        for start in range(0, size, self.block):
            a, b = old[start : start + self.block], new[start : start + self.block]
            part = b if a == b or (b and self._stays()) else a
            made[start : start + len(part)] = part
        to.write_bytes(made[:size])
        to.chmod(0o600)
