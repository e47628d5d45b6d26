"""Coverage-guided: `python tests/fuzz/guided.py [libFuzzer options]`, with atheris, which `make storm` installs if it can.

Its input is one session; a byte 0x1E cuts it into segments.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests/fuzz")]

with atheris.instrument_imports(
    include=["relay.listener", "relay.envelope", "relay.submission", "relay.repair", "relay.incoming"]
):
    from grammar import Sessions, from_corpora
    from harness import Harness

CUT = b"\x1e"


def main() -> None:
    corpora = Path(os.environ.get("RELAY_CORPORA", ROOT.parent / "shared" / "corpora"))
    with tempfile.TemporaryDirectory(prefix="relay-fuzz-seeds-") as folder, Harness() as harness:
        seeds = from_corpora(corpora) if corpora.is_dir() else []
        chunks = Sessions(1, [], 500)
        seeds += [CUT.join(found) for found in iter(chunks, None)]
        for number, seed in enumerate(seeds):
            (Path(folder) / f"{number:04}").write_bytes(seed)
        atheris.Setup(
            [
                sys.argv[0],
                "-max_len=8192",
                "-timeout=20",
                f"-artifact_prefix={tempfile.gettempdir()}/",
                *sys.argv[1:],
                folder,
            ],
            run(harness),
        )
        atheris.Fuzz()


def run(harness: Harness) -> object:
    def one(data: bytes) -> None:
        harness.check(data.split(CUT))

    return one


if __name__ == "__main__":
    main()
