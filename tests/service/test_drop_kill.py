"""kill -9 at random moments while files are dropped: each becomes one message, and all go away.

Short as part of the tests; STORM_KILLS, STORM_MAILS and STORM_SEED set the size.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from .support import Recorder, Relay, config_text, until


@pytest.mark.storm
def test_each_file_is_one_message(tmp_path: Path) -> None:
    kills = int(os.environ.get("STORM_KILLS", "5"))
    mails = int(os.environ.get("STORM_MAILS", "400"))
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(1 << 32))
    draw = random.Random(seed)
    folder = tmp_path / "orders"
    folder.mkdir()
    with Recorder() as upstream:
        config = tmp_path / "relay.yaml"
        # All is held: what was sent twice for it was in flight is another matter, and told by test_kill.
        text = config_text(tmp_path, upstream.port, extra=f"drop: {{orders: {{folder: {folder}, every: 100ms}}}}\n")
        config.write_text(text.replace("via: main}", "hold: true}"))
        relay = Relay(config)
        made = 0
        try:
            for kill in range(kills + 1):
                relay.start()
                share = (mails - made) // (kills + 1 - kill)
                for number in range(made, made + share):
                    new = folder / f".{number}.new"
                    body = b"x" * draw.choice((10, 3000, 1_200_000) if number % 20 == 0 else (10, 3000))
                    new.write_bytes(b"From: a@example.com\nTo: b@example.com\nSubject: n%d\n\n" % number + body)
                    os.utime(new, (1_700_000_000 + number, 1_700_000_000 + number))
                    new.rename(folder / f"{number}.eml")
                made += share
                if kill < kills:
                    left = draw.randrange(share)
                    until(lambda left=left: len(list(folder.glob("*.eml"))) <= left, 60, f"seed {seed}")
                    relay.kill()
            until(lambda: not [f for f in os.listdir(folder) if f != "refused"], 90, f"seed {seed}: all are gone")
            rows = [row for row in relay.cli("queue", "list", "--all").splitlines() if re.match(r"[0-9A-Z]{11}\b", row)]
            assert len(rows) == mails, f"seed {seed}"
            heads = [relay.cli("queue", "export", row.split()[0])[:2000] for row in draw.sample(rows, 10)]
            subjects = Counter(found[0] for head in heads for found in [re.findall(r"Subject: (n\d+)", head)] if found)
            assert len(subjects) == 10 and max(subjects.values()) == 1, f"seed {seed}"
        finally:
            relay.__exit__()
