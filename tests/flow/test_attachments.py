"""Attachments from a folder: what lies below it is taken, and by no path, link or pipe anything else."""

from __future__ import annotations

import base64
import hashlib
import os
from email import message_from_bytes, policy
from pathlib import Path

import pytest
from fakes import Upstream
from rig import running, until
from test_api_submit import MAIL, USERS, ask, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Beside what is allowed lies what is not."""
    made = tmp_path / "attachments"
    (made / "invoices").mkdir(parents=True)
    (made / "invoices" / "17.pdf").write_bytes(b"%PDF-17")
    (made / "large").write_bytes(b"x" * 2_000_000)
    (tmp_path / "secret").write_text("secret")
    (made / "link").symlink_to(tmp_path / "secret")
    (made / "up").symlink_to(tmp_path)
    (made / "within").symlink_to(made / "invoices")
    os.mkfifo(made / "pipe")
    return made


def allowing(folder: Path) -> str:
    return f"{USERS}attachments: {{folder: {folder}}}\n"


async def test_a_file_below_the_folder_is_attached(tmp_path: Path, folder: Path) -> None:
    async with Upstream() as upstream, running(written(tmp_path, upstream.port, allowing(folder))) as rig:
        part = {"filename": "invoice.pdf", "path": "invoices/17.pdf", "sha256": hashlib.sha256(b"%PDF-17").hexdigest()}
        status, told = await ask(rig, MAIL | {"attachments": [part]})
        assert status == 202, told
        await until(lambda: upstream.done)
        arrived = message_from_bytes(upstream.done[0].message, policy=policy.SMTP)
        attached = next(arrived.iter_attachments())
        assert (attached.get_content(), attached.get_filename()) == (b"%PDF-17", "invoice.pdf")


@pytest.mark.parametrize(
    "path",
    [
        "../secret", "invoices/../../secret", "link", "up/secret", "within/17.pdf", "pipe", "invoices", "/etc/passwd",
        "./invoices/17.pdf", "invoices//17.pdf", "missing", "invoices/17.pdf/x", "..", "invoices/", "a/" * 40 + "a",
    ],
)  # fmt: skip
async def test_nothing_else_is(tmp_path: Path, folder: Path, path: str) -> None:
    async with running(written(tmp_path, 1, allowing(folder))) as rig:
        status, told = await ask(rig, MAIL | {"attachments": [{"filename": "a", "path": path}]})
        assert status == 422, told
        assert told["errors"][0]["field"] == "attachments[0].path"
        assert await rig.count() == 0


async def test_off_unless_it_is_configured(tmp_path: Path) -> None:
    async with running(written(tmp_path, 1)) as rig:
        for source in ({"path": "a"}, {"url": "https://files.example.com/a"}):
            status, told = await ask(rig, MAIL | {"attachments": [{"filename": "a", **source}]})
            assert status == 422 and "attachments" in told["detail"]


async def test_of_another_content_or_too_large(tmp_path: Path, folder: Path) -> None:
    file = written(tmp_path, 1, allowing(folder), spool=", max_message_size: 1MB")
    async with running(file) as rig:
        for part in (
            {"path": "invoices/17.pdf", "sha256": "0" * 64},
            {"content": base64.b64encode(b"x").decode(), "sha256": "0" * 64},
            {"path": "large"},
        ):
            status, told = await ask(rig, MAIL | {"attachments": [{"filename": "a", **part}]})
            assert status == 422, told
        assert await rig.count() == 0
