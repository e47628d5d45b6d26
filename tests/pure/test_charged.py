"""What a message is counted against on its way from one egress to the next, whole and in parts."""

from __future__ import annotations

from pathlib import Path

from conftest import NOW
from planning import Queue, config_of

from relay.policy.routing import Action, Route
from relay.recipient import State
from relay.scheduler.work import Work
from relay.spool import Claim, Claimed

LIMITS = """limits:
  - {name: messages, per: egress, rate: 5 messages/h}
  - {name: bytes, per: egress, rate: 5kB/h}
  - {name: recipients, per: egress, rate: 5/h}"""


def spent(queue: Queue, lane: int, egress: str) -> list[int]:
    return [meter.spent.total for meter in queue.bounds.meters_of(queue.lanes.by_id[lane], egress, NOW)]


def test_a_share_that_goes_another_way_leaves_its_message_counted(tmp_path: Path) -> None:
    queue = Queue(config_of(tmp_path, LIMITS))
    number = queue.lane()
    lane = queue.lanes.by_id[number]
    recipients = [Claimed(n, f"r{n}@x.example", State.QUEUED, 0, NOW + 9, number, False) for n in range(3)]
    claim = Claim(1, "a@x.example", "default", "u", "", NOW, 100, 0, b"", 0, recipients)
    work = Work(claim, recipients, Route("r", Action.VIA), ("one", "two"), lane=lane)
    assert queue.bounds.charge(lane, "one", work, NOW, lambda meter: None).seconds == 0
    assert spent(queue, number, "one") == [1, 100, 3]
    share = work.share(recipients[2:])
    assert queue.bounds.charge(lane, "two", share, NOW, lambda meter: None).seconds == 0
    assert (spent(queue, number, "one"), spent(queue, number, "two")) == ([1, 100, 2], [1, 100, 1])
    share.refund()
    assert (spent(queue, number, "one"), spent(queue, number, "two")) == ([1, 100, 2], [0, 0, 0])
    work.recipients = recipients[:2]
    work.refund()
    assert spent(queue, number, "one") == [0, 0, 0]
