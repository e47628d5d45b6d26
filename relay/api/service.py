"""The spool, checked and copied."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from relay.api.rooms import Rooms
from relay.api.route import Answer, Call, Model, Operation


class Checked(Answer):
    spool: str = Field(description="Its file.")
    ok: bool = Field(description="Nothing is wrong with it.")
    problems: list[str] = Field(description="What is.")


class Backup(Model):
    folder: str = Field(min_length=1, max_length=4096, description="Absolute, and not there yet.")


class Copied(Answer):
    folder: str = Field(description="Where the copy is.")
    bytes: int = Field(description="Of the copy.")
    waiting_recipients: int = Field(description="That the copy has; a start from it holds them.")
    body_files: int = Field(description="Bodies that are files of their own.")


def operations(rooms: Rooms) -> list[Operation]:
    async def check(call: Call) -> dict[str, Any]:
        return await rooms.service.check()

    async def backup(call: Call) -> dict[str, Any]:
        return await rooms.service.backup(call.body.folder)

    return [
        # It changes nothing, and is to work where the spool is too sick to be written to.
        Operation(
            "POST", "/v1/spool/check", "admin", "Look for damage", check, Checked, whole=True, audited=False
        ),
        Operation(
            "POST", "/v1/spool/backup", "admin", "A copy of the spool", backup, Copied, body=Backup, whole=True,
            examples={"body": {"folder": "/var/backups/relay/monday"}},
        ),
    ]  # fmt: skip
