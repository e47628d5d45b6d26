"""docs/config.md, etc/relay.yaml and the JSON Schema know every key."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from relay.config import document
from relay.config.load import load
from relay.config.problems import Report
from relay.config.reword import section_at
from relay.config.shape import File, MatchSection, Section
from relay.config.yamltree import read
from relay.signing.keys import generate
from tests.certificates import Authority
from tests.webhooks import verification_key

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "etc" / "relay.yaml"


def every_key() -> set[tuple[type[Section], str]]:
    return {
        (section, key)
        for section in (*dict(document.sections()).values(), *document.NOT)
        for key, _ in document.keys(section)
    }


def keys_in(data: Any, path: tuple[str | int, ...] = ()) -> set[tuple[type[Section], str]]:
    """The keys that a configuration uses, with the sections that they are of."""
    found: set[tuple[type[Section], str]] = set()
    try:
        section = section_at(path)
    except (AssertionError, IndexError):
        section = None
    if isinstance(data, dict):
        found |= {(section, key) for key in data if section}
        for key, value in data.items():
            found |= keys_in(value, (*path, key))
    elif isinstance(data, list):
        for number, value in enumerate(data):
            found |= keys_in(value, (*path, number))
    return found


def uncommented() -> str:
    return re.sub(r"(?m)^#\| ", "", SAMPLE.read_text())


def test_docs_are_fresh() -> None:
    assert (ROOT / "docs" / "config.md").read_text() == document.page(), "run: python -m relay.config.document"


def test_every_key_is_described() -> None:
    for section in (*dict(document.sections()).values(), *document.NOT):
        assert section.__name__
        for key, field in document.keys(section):
            assert (field.description or "").endswith("."), f"{section.__name__}.{key}"
            assert document.written(field.annotation, field.metadata)


def test_docs_name_every_key() -> None:
    page = document.page()
    for _, key in every_key():
        assert f"| `{key}` |" in page


def test_planned_keys_are_not_built_ones() -> None:
    for _, section in document.sections():
        assert not section.planned & {key for key, _ in document.keys(section)}


def test_sample_loads_as_it_is() -> None:
    config = load(SAMPLE)
    assert config.warnings == ()
    assert list(config.accounts) == ["main"]


def test_sample_uncommented_loads_and_has_every_key(tmp_path: Path) -> None:
    for name in (
        *("secrets/main", "secrets/shop", "tls/lab-ca.pem", "tls/relay.pem", "tls/relay.key"),
        *("tls/fullchain.pem", "tls/privkey.pem", "secrets/return-path", "secrets/imap"),
        *("secrets/crm", "secrets/m365", "secrets/google.json", "secrets/idp-refresh", "tls/idp-ca.pem"),
        *(f"secrets/{name}" for name in ("mailgun", "mailgun-eu", "postmark", "brevo", "mailjet", "sparkpost")),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * 16 + "\n")
        (tmp_path / name).chmod(0o640)
    (tmp_path / "secrets/google.json").write_text('{"client_email": "r@p.example", "private_key": "x"}')
    (tmp_path / "secrets/sendgrid.pub").write_text(verification_key())
    own = Authority(tmp_path)
    own.certificate.rename(tmp_path / "tls" / "fullchain.pem")
    own.key.rename(tmp_path / "tls" / "privkey.pem")
    (tmp_path / "dkim").mkdir()
    (tmp_path / "attachments").mkdir()
    for name, kind in (("s2026", "rsa"), ("e2026", "ed25519"), ("arc", "rsa")):
        key = tmp_path / "dkim" / f"{name}.pem"
        key.write_text(generate(kind).pem())
        key.chmod(0o640)
    file = tmp_path / "relay.yaml"
    (tmp_path / "orders").mkdir()
    file.write_text(uncommented().replace("/var/spool/relay/orders", "orders"))
    config = load(file)
    assert all("this machine has no address" in warning for warning in config.warnings), config.warnings
    assert [r.name for r in config.routes.routes] == ["old", "lab", "news", "large", "noise", "rest"]
    # `class` in a class's own match means nothing and is refused: `match` is one section at two places.
    tree = read(file, Report())  # YAML 1.2, where `on` is a string
    assert tree is not None and every_key() - keys_in(tree.plain()) == set()


def test_schema() -> None:
    schema = document.schema()
    assert set(schema["properties"]) == {key for key, _ in document.keys(File)}
    assert schema["required"] == ["routes"]
    assert "from" in schema["$defs"][MatchSection.__name__]["properties"]
    assert "default" not in json.dumps(schema["$defs"]["SpoolSection"]["properties"]["keep"]["type"])
