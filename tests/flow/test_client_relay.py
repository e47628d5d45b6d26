"""The library before a real relay: mail that it sends arrives, once; what it asks is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import Upstream
from rig import Rig, free_port, running, write_config

from relay.client import AsyncRelay, Attachment, Forbidden, Message, NotFound, Receipt, Refused, Relay, Unauthorized

RETRY_LATER = "  default: {retry: {schedule: [1h], give_up: 1d}}"


def shop(number: int = 0, **given: Any) -> Message:
    said = {
        "from_": "Shop <shop@example.com>",
        "to": f"c{number}@example.net",
        "subject": f"Order {number}",
        "text": "Thanks\n",
    }
    return Message(**(said | given))


def waiting(folder: Path) -> Path:
    """A relay whose upstream is away: what it takes stays."""
    return write_config(folder, {"main": f"port: {free_port()}, tls: none"}, classes=RETRY_LATER)


async def sync(rig: Rig, what: Callable[[Relay], Any], **given: Any) -> Any:
    """Beside the loop on which the relay runs."""

    def ask() -> Any:
        with Relay(f"unix:{rig.app.config.admin.socket}", **given) as relay:
            return what(relay)

    return await asyncio.to_thread(ask)


def asynchronous(rig: Rig) -> AsyncRelay:
    return AsyncRelay(f"unix:{rig.app.config.admin.socket}")


async def test_a_message_arrives_as_it_was_written(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        message = shop(
            to="Ann Ä <ann@example.net>", bcc="boss@example.com", html="<p>Thanks <img src='cid:logo'>", headers={"X-Order": "17"},
            attachments=[Attachment(b"%PDF", "bill.pdf"), Attachment(b"\x89PNG", "logo.png", inline=True, content_id="logo")],
            tag="order", metadata={"order": 17},
        )  # fmt: skip
        async with asynchronous(rig) as relay:
            receipt = await relay.send(message)
        await rig.reaches(receipt.queue_id, "delivered")
        await rig.settled()
        got = [t for t in up.transactions if t.message]
        assert sorted(r for t in got for r in t.recipients) == ["ann@example.net", "boss@example.com"]
        arrived = message_from_bytes(got[0].message, policy=policy.default)
        assert arrived["Message-ID"] == receipt.message_id and arrived["X-Order"] == "17" and arrived["Bcc"] is None
        assert arrived["To"].addresses[0].display_name == "Ann Ä"
        contents = {p.get_content_type(): p.get_content() for p in arrived.walk() if not p.is_multipart()}
        assert contents["text/plain"].splitlines() == ["Thanks"] and contents["application/pdf"] == b"%PDF"
        assert contents["image/png"] == b"\x89PNG"
        assert (await rig.row(receipt.queue_id))["tag"] == "order"


async def test_raw_mail_and_that_of_the_standard_library(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        made = EmailMessage()
        made["From"], made["To"], made["Bcc"], made["Subject"] = (
            "a@example.com",
            "b@example.net",
            "c@example.net",
            "Grüße",
        )
        made.set_content("Hallo\n")
        first = await sync(rig, lambda relay: relay.send(Message.of(made)))
        raw = b"From: a@example.com\r\nSubject: raw\r\n\r\nx\r\n"
        second = await sync(
            rig, lambda relay: relay.send_raw(raw, sender="bounce@example.com", recipients=["d@example.net"])
        )
        assert [one.recipient for one in first.recipients] == ["b@example.net", "c@example.net"]
        await rig.settled()
        assert {t.sender for t in up.transactions if t.message} == {"a@example.com", "bounce@example.com"}
        assert b"c@example.net" not in b"".join(t.message for t in up.transactions)
        assert (await rig.row(second.queue_id))["recipient"] == "d@example.net"


async def test_the_same_key_is_the_same_message(tmp_path: Path) -> None:
    async with running(waiting(tmp_path)) as rig, asynchronous(rig) as relay:
        receipts = await asyncio.gather(*(relay.send(shop(key="order-17")) for _ in range(20)))
        assert len({r.queue_id for r in receipts}) == 1 and [r.repeated for r in receipts].count(False) == 1
        with pytest.raises(Refused) as told:
            await relay.send(shop(key="order-17", text="another"))
        assert told.value.status == 422 and await rig.count() == 1


async def test_an_answer_that_was_lost_on_its_way_makes_no_second_mail(tmp_path: Path) -> None:
    async with running(waiting(tmp_path)) as rig:
        lost = 0

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Of each two requests that reach the relay, the first one's answer does not come back."""
            nonlocal lost
            there, back = await asyncio.open_unix_connection(str(rig.app.config.admin.socket))
            try:
                while data := await reader.read(1 << 20):
                    back.write(data)
                    if not data.endswith(b"}"):
                        continue
                    answer = await there.read(1 << 20)
                    lost += 1
                    if lost % 2:
                        return
                    writer.write(answer)
            finally:
                back.close()
                writer.close()

        front = tmp_path / "front.sock"
        async with await asyncio.start_unix_server(swallow, front), AsyncRelay(f"unix:{front}") as relay:
            receipts = [await relay.send(shop(i)) for i in range(5)]
            results = await relay.send_many(shop(i) for i in range(5, 10))
        assert [one.repeated for one in receipts] == [True] * 5
        assert [isinstance(one, Receipt) and one.repeated for one in results] == [True] * 5
        assert await rig.count() == 10


async def test_many_in_batches_and_a_bad_one_keeps_no_other_back(tmp_path: Path) -> None:
    async with running(waiting(tmp_path)) as rig:
        messages = [shop(i, to="no address" if i == 1100 else f"c{i}@example.net") for i in range(1201)]
        results = await sync(rig, lambda relay: relay.send_many(iter(messages)))
        bad = [i for i, one in enumerate(results) if not isinstance(one, Receipt)]
        assert bad == [1100] and isinstance(results[1100], Refused) and results[1100].errors[0].field.startswith("to")
        assert [one.recipients[0].recipient for one in results if isinstance(one, Receipt)] == [
            f"c{i}@example.net" for i in range(1201) if i != 1100
        ]
        async with asynchronous(rig) as relay:
            again = await relay.send_many([shop(i, key=f"k{i}") for i in range(3)] * 2)
        assert [one.repeated for one in again if isinstance(one, Receipt)] == [False] * 3 + [True] * 3
        assert await rig.count() == 1203


async def test_mail_is_found_over_pages_and_acted_on(tmp_path: Path) -> None:
    async with running(waiting(tmp_path)) as rig:
        await sync(rig, lambda relay: relay.send_many(shop(i, tag=f"t{i % 2}") for i in range(2100)))
        keyed = await sync(rig, lambda relay: relay.send(shop(key="k-1")))
        found = await sync(rig, lambda relay: list(relay.find(tag="t1")))
        assert len({row["queue_id"] for row in found}) == 1050
        (one,) = await sync(rig, lambda relay: list(relay.find(key="k-1")))
        assert one["queue_id"] == keyed.queue_id
        assert (await sync(rig, lambda relay: relay.message(keyed.queue_id)))["recipients"][0][
            "recipient"
        ] == "c0@example.net"
        with pytest.raises(NotFound):
            await sync(rig, lambda relay: relay.message("00000000001"))
        async with asynchronous(rig) as relay:
            assert len([row async for row in relay.find(tag="t1")]) == 1050
            planned = await relay.hold(tag="t1", dry_run=True)
            assert planned.recipients == 1050 and planned.dry_run
            assert (await relay.hold(tag="t1")).recipients == 1050
            assert (await relay.release(found[0]["queue_id"], found[1]["queue_id"])).recipients == 2
            assert (await relay.cancel(keyed.queue_id)).recipients == 1
            assert (await relay.retry(keyed.queue_id)).recipients == 0
            assert (await relay.reroute(tag="t0", to="main", dry_run=True)).recipients == 1050
            assert (await relay.stats())["states"]["held"] == 1048
            assert "route" in await relay.explain("x@example.net", from_="a@example.com")


async def test_suppressions(tmp_path: Path) -> None:
    async with running(waiting(tmp_path)) as rig:

        def ask(relay: Relay) -> None:
            addresses = [f"gone{i}@example.net" for i in range(3)]
            assert [row["address"] for row in relay.suppress(*addresses, evidence="asked for")] == addresses
            assert [row["address"] for row in relay.suppressions("gone*")] == addresses
            with pytest.raises(Refused, match="nobody"):
                relay.suppress("nobody")
            assert relay.unsuppress(addresses[0], addresses[1]) == 2
            assert [row["address"] for row in relay.suppressions()] == addresses[2:]

        await sync(rig, ask)


async def test_events_are_followed(tmp_path: Path) -> None:
    file = write_config(tmp_path, {"main": f"port: {(free := free_port())}, tls: none"})
    async with Upstream(port=free), running(file) as rig, asynchronous(rig) as relay:

        async def delivered() -> dict[str, Any]:
            return await anext(relay.events("end", follow=True, kind="delivered"))

        follower = asyncio.create_task(delivered())
        while not (await asyncio.wait([follower], timeout=0.1))[
            0
        ]:  # it begins when it comes to it: what was before is not its
            receipt = await relay.send(shop())
        assert (await follower)["event"] == "delivered"
        await rig.settled()
        story = [row["event"] async for row in relay.events(0, message=receipt.queue_id)]
        assert story[0] == "accepted" and story[-1] == "delivered"


async def test_reports_come_again_until_they_are_acknowledged(tmp_path: Path) -> None:
    async with Upstream() as up, running(write_config(tmp_path, {"main": f"port: {up.port}, tls: none"})) as rig:
        async with asynchronous(rig) as relay:
            receipts = [await relay.send(shop(i, metadata={"order": i})) for i in range(3)]
            await rig.settled()
            seen = []
            assert list(await relay.reports("crm", kind="delivered")) == list(
                await relay.reports("crm", kind="delivered")
            )
            while reports := await relay.reports("crm", kind="delivered"):
                seen += [(row["queue_id"], row["metadata"]["order"]) for row in reports]
                await reports.ack()
            assert sorted(seen) == sorted((one.queue_id, i) for i, one in enumerate(receipts))

        def rest(relay: Relay) -> list[Any]:
            other = relay.reports("billing", kind="delivered")
            other.ack()
            return [
                len(other),
                len(relay.reports("billing", kind="delivered")),
                len(relay.reports("crm", kind="delivered")),
            ]

        assert await sync(rig, rest) == [3, 0, 0]


async def test_tokens_and_scopes_over_tcp(tmp_path: Path) -> None:
    file = waiting(tmp_path)
    port = free_port()
    file.write_text(file.read_text().replace("address: null", f'address: "127.0.0.1:{port}"'))
    async with running(file) as rig:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(tmp_path / "admin.sock"))) as session,
            session.post("http://localhost/v1/tokens", json={"name": "shop", "scopes": ["submit"]}) as answer,
        ):
            token = (await answer.json())["token"]
        async with AsyncRelay(f"http://127.0.0.1:{port}", token=token) as relay:
            assert (await relay.send(shop())).queue_id
            with pytest.raises(Forbidden, match="read"):
                await relay.stats()
        async with AsyncRelay(f"http://127.0.0.1:{port}", token="relay_x") as relay:
            with pytest.raises(Unauthorized):
                await relay.send(shop())
            with pytest.raises(Unauthorized):
                await relay.send_many([shop()])
        assert await rig.count() == 1
