"""Limits that refuse, against who sends one message to many."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from front import front
from test_users import LOCAL

from relay.policy.limits import Limit, Per
from relay.policy.rate import Rate
from relay.policy.routing import Match


def limit(rate: str, *per: Per) -> Limit:
    return Limit("one", replace(Rate.parse(rate), when_full="reject"), Match(), per)


async def test_one_message_takes_no_more_than_the_whole_limit(tmp_path: Path) -> None:
    async with front(tmp_path, LOCAL, limits=(limit("5/h"),)) as relay, relay.session() as client:
        await client.say("MAIL FROM:<a@shop.example>")
        codes = [(await client.say(f"RCPT TO:<r{n}@x.example>"))[0] for n in range(9)]
        assert codes == [250] * 5 + [452] * 4
        assert (await client.say("DATA"))[0] == 354
        assert (await client.say("Subject: x\r\n\r\nx\r\n."))[0] == 250
        await client.say("MAIL FROM:<a@shop.example>")
        assert (await client.say("RCPT TO:<r9@x.example>"))[0] == 452


async def test_recipients_of_other_counts_are_not_counted(tmp_path: Path) -> None:
    """Each destination may have five; a message to nine of them has one at each."""
    async with front(tmp_path, LOCAL, limits=(limit("5/h", "destination"),)) as relay, relay.session() as client:
        for _ in range(3):
            await client.say("MAIL FROM:<a@shop.example>")
            codes = [(await client.say(f"RCPT TO:<r@x{n}.example>"))[0] for n in range(9)]
            assert codes == [250] * 9
            assert (await client.say("DATA"))[0] == 354
            assert (await client.say("Subject: x\r\n\r\nx\r\n."))[0] == 250
