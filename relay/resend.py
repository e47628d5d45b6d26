"""A kept message is sent once more, as a new one: by an operator, who has it routed by the rules in force."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relay import clock
from relay.envelope import queue_id
from relay.intake import Envelope, Intake
from relay.policy.classes import choose_class
from relay.settings import User
from relay.spool import NewMessage, Notify, Place, SpoolError
from relay.submission import BadMessage, Options, faults, read_head, split


async def resend(intake: Intake, row: Mapping[str, Any], recipients: Sequence[str]) -> int:
    """A kept message as a new one, routed by the rules in force. Raises BadMessage, SpoolError."""
    config, spool, now = intake.config(), intake.spool, clock.now()
    number = spool.next_id()
    head = read_head(row["head"])
    if split(row["head"]) < len(row["head"]):
        raise BadMessage(
            554, "5.6.0", "its header block is broken, as an older version kept such; export it and hand it in"
        )
    listen = next((li for li in config.listen if li.name == row["listener"]), config.listen[0])
    user = User(row["user"]) if row["user"] else None
    envelope = Envelope(listen, row["client"], sender=row["sender"], recipients=list(recipients), user=user)
    envelope.asked = {r["recipient"]: (int(Notify.parse(r["notify"])), r["orcpt"]) for r in row["recipients"]}
    intake.put_right(config, envelope, number, head, faults(head, row["head"], False))
    facts = intake.facts(config, envelope, head, Options(tag=row["tag"]), row["size"])
    class_ = choose_class(config.classes, row["class"], facts)
    routed = await intake.recipients(config, envelope, facts, class_, "", now, number)
    body = await spool.read(row["id"], Place(row["place"]))
    if isinstance(body, Path):
        try:
            body = await spool.content.copy(body, number)
        except OSError as error:
            raise SpoolError(f"the body of {queue_id(row['id'])} cannot be copied: {error.strerror}") from None
    message = NewMessage(
        id=number,
        sender=row["sender"],
        header_from=head.from_,
        user=row["user"],
        class_=class_.name,
        tag=row["tag"],
        listener=row["listener"],
        client=row["client"],
        priority=row["priority"],
        accepted_at=now,
        head=head.author + head.kept,
        body=body,
        body_size=row["size"] - len(row["head"]),
        smtp=row["smtp"],
        recipients=routed,
        envid=row["envid"],
        ret=row["ret"],
        report=row["report"],
        metadata=json.dumps(row["metadata"]) if row["metadata"] else "",
    )
    try:
        await spool.accept(message)
    except BaseException:
        if isinstance(body, Path):
            spool.content.drop([number])
        raise
    intake.tell(envelope, message, number, True)
    return number
