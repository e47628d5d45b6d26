"""`signing`, `arc`, `rewrite`, `feedback`, `dns`: what is meant by them, and each mistake with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import until

from relay.config.load import ConfigError, load
from relay.settings import Config
from relay.signing.keys import generate

RSA, ED, SMALL = generate("rsa"), generate("ed25519"), generate("rsa", 1024)
BASE = (
    "accounts: {main: {host: 127.0.0.1}}\nusers: {shop: {password: {file: secret}}}\n"
    "listen: [{address: 127.0.0.1:0, auth: optional}]\n"
)
ROUTES = "routes: [{name: all, via: main}]\n"
assert until


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (
        ("rsa.pem", RSA.pem()), ("ed.pem", ED.pem()), ("small.pem", SMALL.pem()), ("bad.pem", RSA.pem()[:200]),
        ("public.pem", f"-----BEGIN PUBLIC KEY-----\n{RSA.public}\n-----END PUBLIC KEY-----\n"),
        ("none.pem", "hunter2\n"), ("secret", "hunter2hunter2hunter2"), ("short", "hunter2"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o640)
    return tmp_path


def made(folder: Path, text: str, *, routes: str = ROUTES) -> Config:
    file = folder / "relay.yaml"
    file.write_text(BASE + routes + text)
    return load(file)


def problems(folder: Path, text: str, *, routes: str = ROUTES) -> list[str]:
    with pytest.raises(ConfigError) as error:
        made(folder, text, routes=routes)
    told = [f"{p.path}: {p.text}" for p in error.value.problems]
    assert not any(
        "hunter2" in line or (line.count("PRIVATE KEY") and "BEGIN" in line and RSA.pem()[40:60] in line)
        for line in told
    )
    return told


def entry(more: str = "", key: str = "rsa.pem", domain: str = "example.com") -> str:
    return f'signing: [{{domain: "{domain}", selector: s1, key: {{file: {key}}}{more}}}]\n'


def test_a_rule_as_it_is_meant(folder: Path) -> None:
    text = entry(
        ", subdomains: true, as: Mail.Example.com, users: shop, routes: [all], canonicalisation: simple/relaxed, "
        "headers: [From, Subject], oversign: [], expires: 14d, not_before: 2026-12-01, "
        "not_after: 2027-12-01T08:00:00+01:00, when_published: true"
    )
    (rule,) = made(folder, text).signing.rules
    assert (rule.domain, rule.selector, rule.sign_as, rule.subdomains) == (
        "example.com",
        "s1",
        "mail.example.com",
        True,
    )
    assert (rule.users, rule.routes, rule.header_form, rule.body_form) == (("shop",), ("all",), "simple", "relaxed")
    assert (rule.sign, rule.oversign, rule.expires) == (("from", "subject"), (), 14 * 86400)
    assert (rule.not_before, rule.not_after, rule.when_published) == (1796083200, 1827644400, True)
    assert rule.key == RSA and rule.source == "{file: rsa.pem}" and rule.origin.endswith("relay.yaml:5")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (entry(key="absent.pem"), "signing[1].key: file {0}/absent.pem: No such file or directory"),
        (entry(key="bad.pem"), "no private key in PEM"),
        (entry(key="none.pem"), "no private key in PEM"),
        (entry(domain="exa mple.com"), "expected a domain"),
        (entry(domain="a*.example.com"), "expected example.com, *.example.com or *"),
        (entry(", selectr: x"), "did you mean 'selector'"),
        (entry(", users: nobody"), "no user 'nobody'"),
        (entry(", routes: nowhere"), "no route 'nowhere'"),
        (entry(", subdomains: true", domain="*.example.com"), "a wildcard stands for all domains below it already"),
        (entry(", not_before: 2027-01-01, not_after: 2026-01-01"), "it would never sign"),
        (entry(", not_before: tomorrow"), "expected a date such as 2026-12-01"),
        (entry(", not_before: 2026-12-01T08:00:00"), "say the zone"),
        (entry(", headers: [Subject], oversign: []"), "From must be signed"),
        (entry(", headers: [From, Received]"), "received changes on the way"),
        (entry(", oversign: [From, DKIM-Signature]"), "dkim-signature changes on the way"),
        (entry(", canonicalisation: loose"), "relaxed/relaxed"),
        ("signing: [{domain: example.com, selector: s1, key: rsa.pem}]\n", "a secret must be a reference"),
        (entry().replace("s1", "s_é"), "expected a selector"),
        (entry().replace("s1", "s1._domainkey.example.org"), "only what stands before ._domainkey"),
        (entry(key="public.pem"), "this is a public key; the private one is wanted"),
        (entry() + "arc: {domain: example.com, selector: a, key: {file: ed.pem}, routes: all}\n", "a seal is made with an RSA key"),
        ("arc: {domain: example.com, selector: a, key: {file: rsa.pem}, routes: nowhere}\n", "no route 'nowhere'"),
        ("feedback: {domain: example.com, token_key: {file: short}}\n", "at least 16 characters"),
        ("feedback: {http: {}}\n", "feedback.http: 'address' is missing"),
        ("dns: {servers: [dns.example]}\n", "expected an IP address such as 127.0.0.1, with a port where it is not 53"),
        ("dns: {timeout: 0s}\n", "longer than nothing"),
    ],
)  # fmt: skip
def test_each_mistake_is_told(folder: Path, text: str, told: str) -> None:
    found = problems(folder, text)
    assert any(told.format(folder) in line for line in found), found


@pytest.mark.parametrize(
    ("rewrite", "told"),
    [
        ("{reverse_path: verp}", "want `feedback.domain` and `feedback.token_key` too"),
        (
            "{list_unsubscribe: {url: 'https://x.example/{token}'}}",
            "want `feedback.domain` and `feedback.token_key` too",
        ),
        ("{from: nobody}", "expected a mail address"),
        ("{add: {X-A: '{nonsense}'}}", "unknown placeholder"),
        ("{add: {Bcc: 'x@example.com'}}", "nobody shall see"),
        ("{remove: [From]}", "From"),
        ("{list_unsubscribe: {}}", "is empty"),
        ("{add: {'X A': x}}", "is no name of a header field"),
    ],
)
def test_each_mistake_of_a_rewrite(folder: Path, rewrite: str, told: str) -> None:
    found = problems(folder, "", routes=f"routes: [{{name: all, via: main, rewrite: {rewrite}}}]\n")
    assert len(found) == 1 and told in found[0], found
    assert found[0].startswith("routes.all.rewrite") or found[0].startswith("routes[0].rewrite")


def test_only_what_leaves_is_rewritten(folder: Path) -> None:
    (told,) = problems(folder, "", routes="routes: [{discard: true, rewrite: {from: a@b.example}}]\n")
    assert "only what leaves is rewritten" in told


def test_who_may_read_a_key(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(folder, entry()).warnings == ()  # the group may
    (folder / "rsa.pem").chmod(0o644)
    (told,) = problems(folder, entry())
    assert "everybody on this machine may read" in told and "chmod 0640" in told
    # Nobody can change the mode of what is mounted read-only, as secrets of containers are.
    real = os.statvfs

    class ReadOnly:
        f_flag = os.ST_RDONLY

    monkeypatch.setattr("relay.secrets.os.statvfs", lambda path: ReadOnly() if "rsa" in str(path) else real(path))
    (warning,) = made(folder, entry()).warnings
    assert "read-only" in warning


def test_keys_from_the_environment_and_credentials(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DKIM_KEY", RSA.pem())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    text = (
        "signing:\n  - {domain: a.example, selector: s1, key: {env: DKIM_KEY}}\n"
        "  - {domain: a.example, selector: s2, key: {credential: ed.pem}}\n"
        f"  - {{domain: a.example, selector: s3, key: {{command: [cat, {folder}/rsa.pem]}}}}\n"
    )
    assert [r.key for r in made(folder, text).signing.rules] == [RSA, ED, RSA]


def test_a_small_key_is_used_and_told(folder: Path) -> None:
    (warning,) = made(folder, entry(key="small.pem")).warnings
    assert "1024 bits" in warning


def test_one_selector_has_one_key(folder: Path) -> None:
    text = "signing:\n" + "".join(
        f"  - {{domain: example.com, selector: s1, key: {{file: {key}}}}}\n" for key in ("rsa.pem", "ed.pem")
    )
    (told,) = problems(folder, text)
    assert "a second entry for example.com with selector s1" in told


def test_nothing_shows_a_key(folder: Path) -> None:
    config = made(folder, entry() + "feedback: {domain: b.example, token_key: {file: secret}}\n")
    shown = repr(config) + str(config.signing) + repr(config.feedback)
    assert "hunter2" not in shown and RSA.pem()[40:80] not in shown
    assert config.feedback.token_key == b"hunter2hunter2hunter2"


def test_a_pipe_where_a_key_should_be_holds_nobody_up(folder: Path) -> None:
    os.mkfifo(folder / "pipe.pem", 0o600)
    (told,) = problems(folder, entry(key="pipe.pem"))
    assert "pipe.pem: not a regular file" in told


def test_a_command_that_gives_no_token_key_is_told(folder: Path) -> None:
    (told,) = problems(folder, "feedback: {domain: b.example, token_key: {command: ['false']}}\n")
    assert "feedback.token_key: command false ended with exit code 1" in told
