"""Drop folders: what becomes a message, what is refused, what is left, and that each is told once."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from rig import Rig, free_port, running, until, write_config

from relay import clock, metrics
from relay.drop import watch
from relay.drop.folder import Folder, Identity

SLOW = "  default: {retry: {schedule: [1h], give_up: 1d}}\n  bulk: {priority: low}"
MAIL = b"From: Shop <shop@x.test>\nTo: a@y.test\nBcc: b@y.test\nSubject: t\n\nhello\n"
OLD = 60.0


def configured(folder: Path, more: str = "", extra: str = "", routes: str = "") -> Path:
    (folder / "orders").mkdir(exist_ok=True)
    drop = f"drop: {{orders: {{folder: {folder}/orders, every: 100ms{more}}}}}\n"
    return write_config(
        folder, {"main": f"port: {free_port()}, tls: none"}, classes=SLOW, extra=drop + extra, routes=routes
    )


def put(folder: Path, name: str, content: bytes = MAIL, age: float = OLD) -> Path:
    """As docs/drop.md has it: written beside, and renamed."""
    orders = folder / "orders"
    new = orders / f".{name}.new"
    new.write_bytes(content)
    then = time.time() - age
    os.utime(new, (then, then))
    new.rename(orders / name)
    return orders / name


async def gone(*files: Path) -> None:
    await until(lambda: not any(os.path.lexists(file) for file in files))


async def told(rig: Rig, kind: str, count: int = 1) -> list[dict[str, Any]]:
    await until(lambda: len(rig.said(kind)) >= count)
    return rig.said(kind)


async def test_a_file_becomes_a_message(tmp_path: Path) -> None:
    async with running(configured(tmp_path, ", tag: order, class: bulk")) as rig:
        await gone(put(tmp_path, "one.eml"))
        rows = await rig.rows()
        assert sorted(row["recipient"] for row in rows) == ["a@y.test", "b@y.test"]
        assert {(r["sender"], r["tag"], r["class"], r["listener"]) for r in rows} == {
            ("shop@x.test", "order", "bulk", "drop:orders")
        }
        whole = await rig.message(rows[0]["queue_id"])
        assert "Bcc" not in whole["head"] and "X-Relay" not in whole["head"] and "with drop id" in whole["head"]
        assert os.listdir(tmp_path / "orders") == []
        await until(lambda: rig.app.drops.standing()[0]["up"])
        assert rig.app.drops.standing()[0] | {"folder": ""} == {
            "drop": "orders", "folder": "", "up": True, "why": "", "odd": 0, "later": 0
        }  # fmt: skip


ENVELOPES = {
    "pickup": (b"X-Sender: <s@x.test>\r\nX-Receiver: r@y.test\r\nx-receiver: q@y.test\r\n" + MAIL, "s@x.test", ["q@y.test", "r@y.test"]),
    "null": (b"X-Sender: <>\n" + MAIL, "", ["a@y.test", "b@y.test"]),
    "no_header": (b"X-Sender: s@x.test\nX-Receiver: r@y.test\njust text\n", "s@x.test", ["r@y.test"]),
    "mbox": (b"From shop Mon Jan 1\n" + MAIL, "shop@x.test", ["a@y.test", "b@y.test"]),
    "later": (b"Subject: x\nX-Receiver: no@y.test\n" + MAIL, "shop@x.test", ["a@y.test", "b@y.test"]),
    "no_end": (MAIL + b"\0\xff no end", "shop@x.test", ["a@y.test", "b@y.test"]),
    "large": (MAIL + b"x" * 70 + b"\r" + b"y" * 3_000_000, "shop@x.test", ["a@y.test", "b@y.test"]),
    "utf8": ("From: ü@x.test\nTo: ä@y.test\n\nx\n".encode(), "ü@x.test", ["ä@y.test"]),
    "own_tag": (b"X-Relay-Tag: mine\n" + MAIL, "shop@x.test", ["a@y.test", "b@y.test"]),
}  # fmt: skip


@pytest.mark.parametrize("name", ENVELOPES)
async def test_envelopes(tmp_path: Path, name: str) -> None:
    content, sender, recipients = ENVELOPES[name]
    async with running(configured(tmp_path, ", tag: order")) as rig:
        await gone(put(tmp_path, f"{name}.EML", content))
        rows = await rig.rows()
        assert sorted(row["recipient"] for row in rows) == recipients
        assert {row["sender"] for row in rows} == {sender}
        assert {row["tag"] for row in rows} == {"mine" if name == "own_tag" else "order"}
        if name == "large":
            assert rows[0]["size"] > 3_000_000


REFUSED = {
    "nobody": (b"From: a@x.test\n\nx\n", "554 5.1.3 nobody is named"),
    "unsent": (b"To: a@x.test\n\nx\n", "554 5.6.0 nobody sends it"),
    "two": (b"X-Sender: a@x.test\nX-Sender: b@x.test\n" + MAIL, "second X-Sender"),
    "unread": (b"From: a@x.test\nTo: a@y.test b@y.test\n\nx\n", "To cannot be read"),
    "odd": (b"From: a@x.test\nTo: root\n\nx\n", "address has no @domain"),
    "rule": (b"From: a@x.test\nTo: no@y.test, a@y.test\n\nx\n", "550 5.7.1 not this one"),
    "large": (MAIL + b"x" * 1_100_000, "552 5.3.4"),
    "header": (b"From: a@x.test\n" + b"X: y\n" * 60_000, "256 KiB"),
    "shown": (b"From: a@x.test\nTo: a@y.test\nno field\nBcc: b@y.test\n\nx\n", "text that all see"),
}
RULES = """  - {name: no, match: {recipient: "no@*"}, reject: not this one}
  - {name: all, via: [main]}"""


async def test_refused_with_the_reason_beside(tmp_path: Path) -> None:
    file = configured(tmp_path, routes=RULES)
    file.write_text(file.read_text().replace("reserve: 1MB", "reserve: 1MB, max_message_size: 1MB"))
    async with running(file) as rig:
        await gone(*(put(tmp_path, f"{name}.eml", content) for name, (content, _) in REFUSED.items()))
        for name, (content, why) in REFUSED.items():
            assert (tmp_path / "orders/refused" / f"{name}.eml").read_bytes() == content
            assert why in (tmp_path / "orders/refused" / f"{name}.eml.why").read_text()
        assert await rig.rows() == []
        await gone(put(tmp_path, "odd.eml", REFUSED["odd"][0]))
        assert (tmp_path / "orders/refused/1-odd.eml").exists()


async def test_what_is_left_alone_and_told_once(tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    file = configured(tmp_path)
    (tmp_path / "secret").write_bytes(MAIL)
    (orders / "link.eml").symlink_to(tmp_path / "secret")
    os.link(tmp_path / "secret", orders / "hard.eml")
    os.mkfifo(orders / "pipe.eml")
    (orders / "folder.eml").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(orders / "socket.eml"))
    for name in (".hidden.eml", "part.eml.tmp", "note.txt"):
        (orders / name).write_bytes(MAIL)
    put(tmp_path, "new.eml", age=-1.0)  # a clock that is ahead
    put(tmp_path, "young.eml", age=0.0)
    async with running(file) as rig:
        odd = await told(rig, "drop_left", 5)
        assert {row["file"] for row in odd} == {"link.eml", "hard.eml", "pipe.eml", "folder.eml", "socket.eml"}
        await gone(orders / "new.eml", orders / "young.eml")
        looks = rig.app.drops._places["orders"].due
        await until(lambda: rig.app.drops._places["orders"].due > looks + 0.5)
        assert len(rig.said("drop_left")) == 5
        assert rig.app.drops.standing()[0]["odd"] == 5
        assert len(await rig.rows()) == 4
        assert sorted(os.listdir(orders)) == sorted(
            [".hidden.eml", "part.eml.tmp", "note.txt"] + [r["file"] for r in odd]
        )


async def test_met_again_after_a_crash_it_is_the_same_message(tmp_path: Path) -> None:
    async with running(configured(tmp_path)) as rig:
        folder = watch.Folder

        class Dies(folder):
            def remove(self, name: str, identity: Any) -> None:
                raise OSError(5, "as a disk that dies")

        watch.Folder = Dies  # type: ignore[misc]
        try:
            file = put(tmp_path, "one.eml")
            assert "cannot be removed" in (await told(rig, "drop_later"))[0]["why"]
        finally:
            watch.Folder = folder  # type: ignore[misc]
        rig.app.drops._places.clear()
        rig.app.drops.apply(rig.app.config)  # as a new start
        await gone(file)
        await until(lambda: not os.listdir(tmp_path / "orders"))
        assert len({row["queue_id"] for row in await rig.rows()}) == 1
        assert len(rig.said("repeated")) == 1


async def test_a_spool_that_takes_nothing_is_told_once(tmp_path: Path) -> None:
    async with running(configured(tmp_path)) as rig:
        rig.app.spool.reserve = 1 << 62
        rig.app.spool.check_room()
        file = put(tmp_path, "one.eml")
        assert "reserve" in (await told(rig, "drop_failed"))[0]["why"]
        looks = rig.app.drops._places["orders"].due
        await until(lambda: rig.app.drops._places["orders"].due > looks + 0.5)
        assert file.exists() and len(rig.said("drop_failed")) == 1
        assert rig.app.drops.standing()[0]["up"] is False
        rig.app.spool.reserve = 0
        rig.app.spool.check_room()
        await gone(file)


async def test_a_user_and_what_he_may(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x" * 16)
    (tmp_path / "secret").chmod(0o600)
    users = (
        'users: {shop: {password: {file: secret}, senders: ["*@x.test"], limits: [{rate: 2/h, when_full: reject}]}}\n'
    )
    file = configured(tmp_path, ", user: shop", users)
    file.write_text(file.read_text().replace("name: local,", "name: local, auth: required,"))
    async with running(file) as rig:
        await gone(put(tmp_path, "one.eml"), put(tmp_path, "other.eml", MAIL.replace(b"shop@x", b"shop@z")))
        assert {row["user"] for row in await rig.rows()} == {"shop"}
        assert "553 5.7.1" in (tmp_path / "orders/refused/other.eml.why").read_text()
        full = put(tmp_path, "full.eml", MAIL + b"more")
        assert (await told(rig, "drop_later"))[0]["file"] == "full.eml"
        assert full.exists() and rig.app.drops.standing()[0]["later"] == 1


async def test_the_same_file_again_is_another_message(tmp_path: Path) -> None:
    """As `cp -p reminder.eml` of each day: the same content and time, and where the file system wants it the same inode."""
    orders = tmp_path / "orders"
    template = tmp_path / "template"
    template.write_bytes(MAIL)
    os.utime(template, (1_700_000_000, 1_700_000_000))
    async with running(configured(tmp_path)) as rig:
        for _ in range(4):
            shutil.copy2(template, orders / ".new")
            (orders / ".new").rename(orders / "reminder.eml")
            await until(lambda: os.listdir(orders) == [])
        assert len({row["queue_id"] for row in await rig.rows()}) == 4


@pytest.mark.parametrize("kind", ["sent", "replaced", "refused"])
async def test_what_a_crash_left_half_done(tmp_path: Path, kind: str) -> None:
    """It died behind the renaming that precedes all else: what was sent goes, what was not comes back."""
    file, orders = configured(tmp_path), tmp_path / "orders"
    left = put(tmp_path, "one.eml")
    found = os.stat(left)
    if kind == "replaced":
        other = put(tmp_path, "two.eml", MAIL + b"another\n")
        left.unlink()
        left = other
    left.rename(orders / (".done-0123456789abcdef" if kind == "refused" else Identity.of(found).gone()))
    async with running(file) as rig:
        await until(lambda: os.listdir(orders) == [])
        assert len(await rig.rows()) == (0 if kind == "sent" else 2)


async def test_what_a_crash_left_comes_back_once_the_folder_can_be_used(tmp_path: Path) -> None:
    """At the start it could not: it is on a disk that is mounted later."""
    file, orders = configured(tmp_path), tmp_path / "orders"
    put(tmp_path, "one.eml").rename(orders / ".done-0123456789abcdef")
    orders.rename(tmp_path / "unmounted")
    async with running(file) as rig:
        await told(rig, "drop_failed")
        (tmp_path / "unmounted").rename(orders)
        await until(lambda: os.listdir(orders) == [])
        assert len(await rig.rows()) == 2


async def test_what_cannot_go_to_refused_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`refused` may be a mount of the same file system, as volumes are: then the reason goes there, and the file does not."""
    rename, orders = os.rename, tmp_path / "orders"

    def mounted(source: str, target: str, **more: int) -> None:
        if more.get("src_dir_fd") != more.get("dst_dir_fd"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **more)

    async with running(configured(tmp_path)) as rig:
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", mounted)
            file = put(tmp_path, "one.eml", b"To: a@y.test\n\n1")
            assert "cannot be moved" in (await told(rig, "drop_later"))[0]["why"]
            assert sorted(os.listdir(orders)) == ["one.eml", "refused"] and os.listdir(orders / "refused") == []
        assert os.stat(file).st_nlink == 1 and file.read_bytes() == b"To: a@y.test\n\n1"
        rig.app.drops._places["orders"].later.clear()
        await gone(file)
        assert sorted(os.listdir(orders / "refused")) == ["one.eml", "one.eml.why"]


async def test_names_that_are_as_long_as_names_may_be(tmp_path: Path) -> None:
    """255 octets; refused at once, and alike in what is kept of them."""
    names = [f"{'ü' * 124}{end}.eml" for end in ("aa", "bb", "c\n")] + [f"{'x' * 249}{end}.eml" for end in "ab"]
    names.append(os.fsdecode(b"\xff\n" * 100 + b".eml"))
    refused = tmp_path / "orders/refused"
    async with running(configured(tmp_path)) as rig:
        for number, name in enumerate(names):
            (tmp_path / "orders" / name).write_bytes(b"To: a@y.test\n\n%d" % number)
            os.utime(tmp_path / "orders" / name, (1, 1))
        await until(lambda: len(rig.said("drop_refused")) == len(names))
        kept = sorted(os.listdir(refused))
        assert len(kept) == 2 * len(names) and os.listdir(tmp_path / "orders") == ["refused"]
        mails = [name for name in kept if not name.endswith(".why")]
        assert all(f"{name}.why" in kept for name in mails)
        contents = sorted((refused / name).read_bytes() for name in mails)
        assert contents == [b"To: a@y.test\n\n%d" % number for number in range(len(names))]


async def test_the_time_is_that_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was started in another year, and the clock was put right since: a file is as old as it is all the same."""
    monkeypatch.setattr(clock, "_EPOCH", clock._EPOCH - 365 * 86400.0)
    looks: list[float] = []
    look = Folder.look

    def watched(self: Folder, now: float, *rest: Any) -> Any:
        looks.append(now)
        return look(self, now, *rest)

    monkeypatch.setattr(Folder, "look", watched)
    async with running(configured(tmp_path)):
        await until(lambda: looks)
        assert abs(looks[0] - time.time()) < 3600


async def test_a_reload_takes_folder_and_user_away_in_the_midst_of_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = "users: {shop: {password: {file: secret}}}\n"
    (tmp_path / "secret").write_text("geheim\n")
    (tmp_path / "secret").chmod(0o600)
    file = configured(tmp_path, ", user: shop", extra=users)
    begun, go = threading.Event(), threading.Event()
    opened = Folder.open

    def slowly(self: Folder, name: str, identity: Identity) -> int:
        begun.set()
        go.wait(20)
        return opened(self, name, identity)

    monkeypatch.setattr(Folder, "open", slowly)
    one = put(tmp_path, "one.eml")
    async with running(file) as rig:
        await until(begun.is_set)
        text = file.read_text()
        drop = text[text.index("drop: {") : text.index("\n", text.index("drop: {"))]
        file.write_text(text.replace(drop, "").replace(users, ""))
        assert rig.app.reload()[0]
        go.set()
        assert "no user shop" in (await told(rig, "drop_later"))[0]["why"]
        assert one.exists() and await rig.rows() == []


async def test_thousands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "BATCH", 50)
    async with running(configured(tmp_path)) as rig:
        files = [put(tmp_path, f"{n}.eml", MAIL + b"%d" % n, age=OLD + n) for n in range(600)]
        await until(lambda: not any(file.exists() for file in files), 60)
        assert len({row["queue_id"] for row in await rig.rows()}) == 500  # a page of 1000 recipients
        assert rig.app.spool.queued == 1200


async def test_a_reload_adds_and_removes_folders(tmp_path: Path) -> None:
    file = configured(tmp_path)
    text = file.read_text()
    async with running(file) as rig:
        (tmp_path / "second").mkdir()
        file.write_text(text.replace("drop: {", f"drop: {{second: {{folder: {tmp_path}/second, every: 100ms}}, "))
        assert rig.app.reload()[0]
        one = put(tmp_path, "one.eml")
        (tmp_path / "second/two.eml").write_bytes(MAIL)
        os.utime(tmp_path / "second/two.eml", (1, 1))
        await gone(one, tmp_path / "second/two.eml")
        assert {row["listener"] for row in await rig.rows()} == {"drop:orders", "drop:second"}
        file.write_text(text.replace(text[text.index("drop: {") : text.index("\n", text.index("drop: {"))], ""))
        assert rig.app.reload()[0] and rig.app.drops.standing() == []


async def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    file = configured(tmp_path)
    (tmp_path / "orders").rmdir()
    async with running(file) as rig:
        await told(rig, "drop_failed")
        row = rig.app.drops.standing()[0]
        assert row["up"] is False and row["why"] == "No such file or directory"
        (tmp_path / "orders").mkdir()
        await gone(put(tmp_path, "one.eml"))
        assert "relay_drop_files_total" in metrics.declared()
        assert len(await rig.rows()) == 2 and clock.now() > 0
