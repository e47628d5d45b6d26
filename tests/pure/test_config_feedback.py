"""`feedback.smtp` and `feedback.imap`: what is meant by them, and each mistake with its place."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from relay.config.load import ConfigError, load
from relay.feedback.imapwire import _name
from relay.settings import Address, Config

BASE = """\
accounts: {main: {host: smtp.example.com, username: app, password: {env: HOME}}}
routes: [{via: main}]
"""
KEY = "domain: b.example, token_key: {file: key}"
BOX = "host: imap.example.com, username: b@example.com, password: {env: HOME}"


def made(folder: Path, text: str, base: str = BASE) -> Config:
    (folder / "key").write_text("a secret that is long enough")
    (folder / "key").chmod(0o640)
    file = folder / "relay.yaml"
    file.write_text(base + text + "\n")
    return load(file)


def problems(folder: Path, text: str, base: str = BASE) -> list[str]:
    with pytest.raises(ConfigError) as error:
        made(folder, text, base)
    return [f"{p.path}: {p.text}" for p in error.value.problems]


def test_what_is_left_out(tmp_path: Path) -> None:
    feedback = made(
        tmp_path, f'feedback: {{{KEY}, smtp: {{address: "0.0.0.0:2526"}}, imap: {{box: {{{BOX}}}}}}}'
    ).feedback
    assert feedback.smtp is not None and feedback.smtp.address == Address("0.0.0.0", 2526)
    assert (feedback.smtp.max_connections_total, feedback.smtp.max_connections_client) == (100, 10)
    assert str(feedback.smtp.client_rate) == "1000/min" and feedback.smtp.tls is None
    box = feedback.imap["box"]
    assert (box.port, box.tls.mode, box.tls.verify, box.folder, box.every, box.then) == (
        993, "implicit", True, "INBOX", 60.0, "keep",
    )  # fmt: skip
    assert box.login == "imap:box"


@pytest.mark.parametrize(
    ("more", "port", "mode"),
    [("port: 143", 143, "starttls"), ("tls: starttls", 143, "starttls"), ("port: 1993", 1993, "implicit")],
)
def test_port_and_tls_follow_one_another(tmp_path: Path, more: str, port: int, mode: str) -> None:
    box = made(tmp_path, f"feedback: {{imap: {{box: {{{BOX}, {more}}}}}}}").feedback.imap["box"]
    assert (box.port, box.tls.mode) == (port, mode)


def test_a_mailbox_of_microsoft_asks_for_another_scope(tmp_path: Path) -> None:
    oauth2 = "{grant: refresh_token, provider: microsoft, tenant: common, client_id: x, refresh_token: {file: r}}"
    text = f"feedback: {{imap: {{box: {{host: outlook.office365.com, username: b@example.com, oauth2: {oauth2}}}}}}}"
    config = made(tmp_path, text)
    found = config.feedback.imap["box"].oauth2
    assert found is not None and "IMAP.AccessAsUser.All" in found.scope
    assert any("relay oauth login imap:box makes it" in warning for warning in config.warnings)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('smtp: {address: "0.0.0.0:2526"}', "feedback.smtp: it takes mail for return paths of ours only, and wants"),
        (f"{KEY}, smtp: {{}}", "feedback.smtp: 'address' is missing"),
        (f'{KEY}, smtp: {{address: "127.0.0.1:2525"}}', "feedback.smtp.address: 127.0.0.1:2525 is taken by"),
        (
            f'{KEY}, smtp: {{address: "127.0.0.1:2526", max_connections: {{total: 5, client: 9}}}}',
            "feedback.smtp.max_connections.client: 9 of one client are more than 5 of all",
        ),
        ("imap: {box: {host: i.example.com, username: b}}", "feedback.imap.box: a login wants `password`"),
        (f"imap: {{box: {{{BOX}, tls: none}}}}", "feedback.imap.box.tls: credentials are never sent in clear"),
        (f"imap: {{box: {{{BOX}, tls: opportunistic}}}}", "feedback.imap.box.tls: a mailbox is logged in to"),
        (f"imap: {{box: {{{BOX}, tls: {{pin: {'A' * 43}=}}}}}}", "feedback.imap.box.tls.pin: `pin` is not built"),
        (f"imap: {{box: {{{BOX}, every: 1s}}}}", "feedback.imap.box.every: `every` must be 5s or more"),
        (f"imap: {{box: {{{BOX}, max_message_size: 10B}}}}", "feedback.imap.box.max_message_size: expected a size"),
        (f"imap: {{box: {{{BOX}, then: inbox}}}}", "feedback.imap.box.then: it would be moved to where it is"),
        (f"imap: {{box: {{{BOX}, then: Delete}}}}", "feedback.imap.box.then: is that a folder?"),
        (f'imap: {{box: {{{BOX}, folder: "a\\nb"}}}}', "feedback.imap.box.folder: expected the name of a folder"),
        (
            f"imap: {{box: {{{BOX}, oauth2: {{grant: refresh_token}}}}}}",
            "feedback.imap.box.password: a password beside `oauth2` would never be used",
        ),
    ],
)
def test_mistakes(tmp_path: Path, text: str, told: str) -> None:
    found = problems(tmp_path, f"feedback: {{{text}}}")
    assert any(line.startswith(told) for line in found), found


def test_without_the_library_it_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.config.returning.find_spec", lambda name: None)
    assert importlib.util.find_spec("aioimaplib") is not None
    (told,) = problems(tmp_path, f"feedback: {{imap: {{box: {{{BOX}}}}}}}")
    assert "pip install 'relay-mta[imap]'" in told


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("INBOX", '"INBOX"'),
        ("a & b", '"a &- b"'),
        ("~peter/mail/台北/日本語", '"~peter/mail/&U,BTFw-/&ZeVnLIqe-"'),  # RFC 3501 §5.1.3
        ('a "b" \\', '"a \\"b\\" \\\\"'),
    ],
)
def test_a_folder_s_name_on_the_wire(name: str, wire: str) -> None:
    assert _name(name) == wire


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{KEY}, http: {{address: '127.0.0.1:1'}}, providers: {{sess: {{topic: x}}}}", {"feedback.providers.sess.topic"}),
        (f"{KEY}, imap: {{box: {{}}}}", {"feedback.imap.box"}),
        (f"{KEY}, http: {{}}, providers: {{ses: {{topics: ['arn:aws:sns:eu-central-1:123456789012:x']}}}}", {"feedback.http"}),
        (f"{KEY.replace('b.example', '5')}, smtp: {{address: '127.0.0.1:2526'}}", {"feedback.domain"}),
        ("domain: b.example, token_key: hunter2hunter2hunter2", {"feedback.token_key"}),
        ("domain: b.example, token_key: {file: none}", {"feedback.token_key.file", "feedback.token_key"}),
    ],
)  # fmt: skip
def test_a_mistake_is_told_at_its_own_place_alone(tmp_path: Path, text: str, told: set[str]) -> None:
    """Routes that want tokens, and providers that want `http`, do not say that it lacks where it is written and wrong."""
    found = problems(
        tmp_path, f"feedback: {{{text}}}", BASE.replace("{via: main}", "{via: main, rewrite: {reverse_path: verp}}")
    )
    assert {line.partition(": ")[0] for line in found} <= told, found


@pytest.mark.parametrize(
    ("doors", "warned"), [("", 1), (", smtp: {address: '127.0.0.1:1'}", 0), (f", imap: {{b: {{{BOX}}}}}", 0)]
)
def test_return_paths_that_nobody_reads_are_warned_of(tmp_path: Path, doors: str, warned: int) -> None:
    base = BASE.replace("{via: main}", "{via: main, rewrite: {reverse_path: verp}}")
    found = [w for w in made(tmp_path, f"feedback: {{{KEY}{doors}}}", base).warnings if " feedback.domain: " in w]
    assert len(found) == warned and all("say `feedback.smtp` or `feedback.imap`" in w for w in found)
    assert not any("feedback.domain" in w for w in made(tmp_path, f"feedback: {{{KEY}}}").warnings)
