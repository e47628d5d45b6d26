"""A message that takes the process down: tried three times, then held, and the others move. And one whose body is gone."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

from fakes import SILENT, Upstream
from rig import running, submit, write_config
from service.storm import CLASSES
from service.support import ENV, Relay, config_text, until


async def test_who_is_in_flight_at_three_crashes_is_held_and_the_others_are_delivered(tmp_path: Path) -> None:
    """The process is killed each time that the upstream sees the poison: so it dies exactly while that is in flight."""
    wait = asyncio.to_thread
    seen = asyncio.Event()

    def at_rcpt(to: str) -> object:
        if to == "poison@example.com":
            seen.set()
            return SILENT
        return None

    innocents = [f"user{i}@example.com" for i in range(10)]
    late = [f"late{i}@example.com" for i in range(10)]
    async with Upstream({"RCPT": at_rcpt}) as upstream:
        text = config_text(tmp_path, upstream.port, account=", connections: 4", extra=CLASSES)
        (tmp_path / "relay.yaml").write_text(text)
        with Relay(tmp_path / "relay.yaml", env=ENV) as relay:
            wanted = ["poison@example.com", *innocents]
            poison, *_ = await submit(
                relay.port, [("app@example.com", (to,), b"Subject: x\r\n\r\nhi\r\n") for to in wanted]
            )

            def waits() -> set[str]:
                listed = json.loads(relay.cli("queue", "list", "--state", "queued,deferred,active", "--json"))
                return {row["recipient"] for row in listed}

            for crash in (1, 2, 3):
                await asyncio.wait_for(seen.wait(), 60)
                if crash == 3:
                    # Those that were in flight beside it at both crashes go at moments of their own, and one of these may
                    # be this one: it would be held too. So they go first, and others come, for whom it is the first.
                    await wait(until, lambda: waits() == {"poison@example.com"}, 60, "it is the only one in flight")
                    await submit(relay.port, [("app@example.com", (to,), b"Subject: x\r\n\r\nhi\r\n") for to in late])
                relay.kill()
                seen.clear()
                await wait(relay.start)
            # The third start holds it before anything moves.
            (told,) = relay.lines("held")
            assert f"id={poison}" in told
            assert "level=error" in told
            (row,) = json.loads(await wait(relay.cli, "queue", "list", "--recipient", "poison@*", "--json"))
            assert (row["state"], row["attempts"], row["in_doubt"]) == ("held", 3, True)
            assert "3 times in a row" in row["why"]
            assert "relay queue export" in row["why"]
            await wait(until, lambda: {*upstream.delivered()} >= {*innocents, *late}, 60, "the innocent are delivered")
            assert await wait(relay.cli, "queue", "export", poison, "--output", str(tmp_path / "seen"))
            assert not seen.is_set()

            # The cause is mended, an operator lets it go.
            upstream.script.clear()
            await wait(relay.cli, "queue", "release", poison)
            await wait(until, lambda: "poison@example.com" in upstream.delivered(), 60, "it is delivered")
            assert await wait(relay.stop) == 0


async def test_a_body_that_cannot_be_read_is_held_and_not_tried_for_ever(tmp_path: Path) -> None:
    upstream = Upstream({"RCPT": lambda _: "451 4.3.0 not yet"})
    async with upstream, running(write_config(tmp_path, {"main": f"port: {upstream.port}, tls: none"})) as rig:
        large = await rig.send(message=b"Subject: x\r\n\r\n" + b"x" * 70 * 5000 + b"\r\n")
        other = await rig.send()
        await rig.tried(large)
        (file,) = (tmp_path / "spool/content").iterdir()
        file.unlink()
        upstream.script.clear()
        row = await rig.reaches(large, "held")
        assert re.search(r"3 times in a row.*the body can't be read: .*No such file", row["why"])
        (told,) = rig.said("held")
        assert told["id"] == large
        assert "relay queue release" in told["hint"]
        assert (await rig.story(large))[-1] == "held"
        await rig.reaches(other, "delivered")
