"""Drop folders: what others do between two steps of the relay, and what a stop finds under way."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from rig import running, until
from service.support import find, needs_root
from test_drop import MAIL, OLD, configured, gone, put

from relay.drop.folder import Folder, Identity
from relay.drop.watch import Drops, _aside

RELAY, SHOP = 10001, 10002
# As the relay's user, to whom fs.protected_hardlinks refuses a link of another's file. Its folder is the current one: those
# above are nobody else's.
AS_RELAY = f"""
import json, os, sys
from pathlib import Path
from relay.drop.folder import Folder, Identity
os.setegid({RELAY}); os.seteuid({RELAY})
folder, before, error = Folder(Path(".")), Identity.of(os.stat("one.eml")), ""
try:
    if sys.argv[1] == "mount":
        folder.refuse("one.eml", before, "why")
    else:
        folder._moved("one.eml", before, os.open("refused", os.O_RDONLY), "taken")
except OSError as no:
    error = no.strerror
after = os.stat("one.eml") if os.path.exists("one.eml") else os.stat_result([0] * 10)
print(json.dumps([sorted(os.listdir()), os.listdir("refused"), error, after.st_nlink, Identity.of(after) == before]))
"""


@needs_root
@pytest.mark.parametrize("kind", ["mount", "fails"])
def test_anothers_file_that_cannot_go_to_refused_keeps_its_name(tmp_path: Path, kind: str) -> None:
    """As docs/drop.md makes the folder: the relay's, and the files another user's. A mount is known before it is touched."""
    refused = tmp_path / "refused"
    refused.mkdir()
    put_here = tmp_path / "one.eml"
    put_here.write_bytes(MAIL)
    for path, user, mode in ((tmp_path, RELAY, 0o2770), (refused, RELAY, 0o770), (put_here, SHOP, 0o644)):
        os.chown(path, user, SHOP)
        path.chmod(mode)
    command = [sys.executable, "-c", AS_RELAY, kind]
    if kind == "mount":
        if not find("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        command = ["unshare", "-m", "sh", "-c", 'mount --bind refused refused && exec "$@"', "sh", *command]
    else:
        (refused / "taken").mkdir()  # somebody was faster, and no file takes the place of a folder
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    names, kept, error, links, untouched = json.loads(done.stdout)
    assert (names, links) == (["one.eml", "refused"], 1)
    if kind == "mount":
        assert kept == [] and "ross-device" in error and untouched
    else:
        assert kept == ["taken"] and error == "Is a directory"


@pytest.mark.parametrize("size", [10, 600_000], ids=["small", "large"])
async def test_one_written_anew_behind_the_look_is_taken_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Ten thousand others may be before it."""
    look, rewritten = Folder.look, threading.Event()

    def then_written(self: Folder, *rest: Any) -> Any:
        seen = look(self, *rest)
        if seen.files and not rewritten.is_set():
            rewritten.set()
            put(tmp_path, "one.eml", MAIL + b"y" * size, age=OLD / 2)
        return seen

    monkeypatch.setattr(Folder, "look", then_written)
    async with running(configured(tmp_path)) as rig:
        one = put(tmp_path, "one.eml", MAIL + b"x" * size)
        await until(rewritten.is_set)
        await gone(one)
        rows = await rig.rows()
        assert len({row["queue_id"] for row in rows}) == 1 and rows[0]["size"] > size
        assert rig.said("drop_left") == rig.said("drop_later") == []


@pytest.mark.parametrize("what", ["folder", "file"])
async def test_a_stop_while_something_is_opened_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    begun, go, opened = threading.Event(), threading.Event(), list[tuple[int, os.stat_result]]()

    def slow(descriptor: int) -> None:
        opened.append((descriptor, os.fstat(descriptor)))
        begun.set()
        go.wait(20)

    class Slow(Folder):
        def __init__(self, path: Path) -> None:
            super().__init__(path)
            if what == "folder":
                slow(self._fd)

        def open(self, name: str, identity: Identity) -> int:
            descriptor = super().open(name, identity)
            slow(descriptor)
            return descriptor

    async with running(configured(tmp_path)) as rig:
        await rig.app.supervisor.stop("drop")
        put(tmp_path, "one.eml", MAIL + b"x" * 600_000)
        monkeypatch.setattr("relay.drop.watch.Folder", Slow)
        task = asyncio.create_task(Drops(rig.app.config, rig.app.intake, rig.log).run())
        await until(begun.is_set)
        await cancelled(task, go)
        assert opened and not [left for left in opened if _open(*left)]


async def cancelled(task: asyncio.Task[None], go: threading.Event) -> None:
    """The thread goes on once all that waits for it has heard of it."""
    task.cancel()
    for _ in range(50):  # a turn for each task and group between
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


def _open(descriptor: int, was: os.stat_result) -> bool:
    """Whether it is still what it was: its number may be another's by now."""
    try:
        return os.path.samestat(os.fstat(descriptor), was)
    except OSError:
        return False


async def test_what_fails_once_nobody_waits_is_no_complaint_of_the_loop() -> None:
    begun, go, complaints = threading.Event(), threading.Event(), list[Any]()

    def fails() -> None:
        begun.set()
        go.wait(20)
        raise OSError(5, "as a disk that dies")

    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    task = asyncio.create_task(_aside(fails))
    await until(begun.is_set)
    await cancelled(task, go)
    del task
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
