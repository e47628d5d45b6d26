"""The vectors of RFC 8617's own test suite: 171 messages to verify, 17 to seal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from dkim.util import parse_tag_value

from relay.signing import chain as chains
from relay.signing.arc import Sealer, sealed
from relay.signing.canonical import body_hash
from relay.signing.dkim import Fields, split_fields
from relay.signing.keys import parse
from relay.signing.records import DnsFunc
from relay.signing.verify import ArcResult, arc_result, parts

NOW = 1_700_000_000.0  # after all that they were signed at


def scenarios(path: Path) -> Iterator[tuple[dict[str, Any], DnsFunc]]:
    for scenario in yaml.safe_load_all(path.read_text()):
        texts = {name: text.replace("\n", "").encode() for name, text in scenario["txt-records"].items()}

        def ask(name: bytes, timeout: int = 5, texts: dict[str, bytes] = texts) -> bytes | None:
            return texts.get(name.decode().removesuffix("."))

        yield scenario, ask


def test_every_chain_is_judged_as_the_suite_says(corpora: Path) -> None:
    wrong: dict[str, ArcResult] = {}
    seen = 0
    for scenario, ask in scenarios(corpora / "arc" / "arc-draft-validation-tests.yml"):
        for name, test in scenario["tests"].items():
            found = arc_result(*parts(test["message"].encode()), ask, NOW)
            # Nothing: "the chain was failed by somebody before, and has ended".
            wanted = (test["cv"].strip().lower() or "fail", not test["cv"].strip())
            seen += 1
            if (found.cv, found.ended) != wanted:
                wrong[name] = found
    assert seen == 171
    assert not wrong


def results(head: bytes, authserv_id: str) -> list[str]:
    """What the suite has in Authentication-Results, as it wants them in one list (its README, "AR Consolidation")."""
    found = []
    for name, value in split_fields(head):
        said = [re.sub(r"\s+", " ", word.strip()) for word in value.decode().split(";")]
        if name.lower() == b"authentication-results" and said[0] == authserv_id:
            found += [word for word in said[1:] if word]
    return found


def tags(value: bytes) -> dict[bytes, bytes]:
    return {name: re.sub(rb"\s", b"", found) for name, found in parse_tag_value(value).items()}


def test_every_set_is_the_suites_to_the_last_bit(corpora: Path) -> None:
    wrong: list[str] = []
    seen = 0
    for scenario, ask in scenarios(corpora / "arc" / "arc-draft-sign-tests.yml"):
        for name, test in scenario["tests"].items():
            seen += 1
            head, body = parts(test["message"].encode())
            chain = arc_result(head, body, ask, NOW)  # what the suite only says it was, is verified here
            said = results(head, test["srv-id"])
            assert [word for word in said if word.startswith("arc=")] in ([f"arc={chain.cv}"], [])
            if chain.ended:
                assert not test["AS"].strip(), name
                continue
            named: dict[bytes, list[tuple[bytes, bytes]]] = {}
            for field in split_fields(head):
                named.setdefault(field[0].lower(), []).append(field)
            made = sealed(
                Sealer(parse(scenario["privatekey"]), scenario["domain"], scenario["sel"], int(test["t"]), width=0),
                Fields(head),
                body_hash(body, "relaxed"),
                test["sig-headers"].encode().split(b":"),
                ";\r\n ".join([test["srv-id"], *said]),
                chains.scope(chains.sets(named)) if chain.cv == "pass" else [],
                chain.instance + 1,
                chain.cv,
            )
            top, message, found = (value for _, value in split_fields(made))
            same = tags(top) == tags(test["AS"].encode()) and tags(message) == tags(test["AMS"].encode())
            if not same or found.split() != test["AAR"].encode().split():
                wrong.append(name)
    assert seen == 17
    assert not wrong
