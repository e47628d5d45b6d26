"""`feedback.http` and `feedback.providers`: what is meant by them, and each mistake with its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.config.load import load
from relay.config.problems import ConfigError
from relay.settings import Address, Config
from tests import webhooks
from tests.certificates import Authority

TOPIC = webhooks.TOPIC


def made(folder: Path, feedback: str) -> Config:
    for name in ("key", "secret"):
        (folder / name).write_text("hunter2hunter2hunter2")
        (folder / name).chmod(0o640)
    (folder / "sg.pub").write_text(webhooks.verification_key())
    file = folder / "relay.yaml"
    file.write_text(
        f"accounts: {{main: {{host: smtp.example.com, port: 25}}}}\nroutes: [{{via: main}}]\nfeedback: {feedback}\n"
    )
    return load(file)


def problems(folder: Path, feedback: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        made(folder, feedback)
    return [line.removeprefix(f"{folder}/relay.yaml:") for line in str(error.value).splitlines()]


HTTP = 'http: {address: "127.0.0.1:2582"}'


def test_what_is_meant(tmp_path: Path) -> None:
    config = made(
        tmp_path,
        f"""
  token_key: {{file: key}}
  http: {{address: "127.0.0.1:2582", proxy: [10.0.0.0/8]}}
  one_click: false
  providers:
    ses: {{topics: "{TOPIC}", egress: main}}
    sendgrid: {{public_key: {{file: sg.pub}}}}
    eu: {{kind: mailgun, signing_key: {{file: secret}}, clients: [192.0.2.0/24]}}
    brevo: {{username: relay, password: {{file: secret}}}}
    sparkpost: {{username: {{env: HOME}}, password: {{file: secret}}}}
""",
    )
    feedback = config.feedback
    assert feedback.http is not None and not feedback.one_click
    assert (feedback.http.address, feedback.http.proxy) == (Address("127.0.0.1", 2582), ("10.0.0.0/8",))
    assert {name: one.kind for name, one in feedback.providers.items()} == {
        "ses": "ses", "sendgrid": "sendgrid", "eu": "mailgun", "brevo": "brevo", "sparkpost": "sparkpost"
    }  # fmt: skip
    assert (feedback.providers["ses"].topics, feedback.providers["ses"].egress) == ((TOPIC,), "main")
    assert feedback.providers["eu"].clients == ("192.0.2.0/24",)
    assert config.warnings == () and "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("feedback", "told"),
    [
        (f"{{providers: {{ses: {{topics: ['{TOPIC}']}}}}}}", "3:12: feedback.providers: they call by HTTP; say `feedback.http"),
        (f"{{{HTTP}, providers: {{sess: {{}}}}}}", "feedback.providers.sess: no provider 'sess'; did you mean 'ses'?"),
        (f"{{{HTTP}, providers: {{ses: {{}}}}}}", "feedback.providers.ses: without `topics` anybody could report in its name"),
        (f"{{{HTTP}, providers: {{ses: {{topics: ['x']}}}}}}", "expected an ARN of SNS"),
        (f"{{{HTTP}, providers: {{ses: {{topics: ['arn:aws:sns:evil.example:1:x']}}}}}}", "expected an ARN of SNS"),
        (f"{{{HTTP}, providers: {{sendgrid: {{public_key: AAAA}}}}}}", "no public key, in base64 or PEM"),
        (f"{{{HTTP}, providers: {{sendgrid: {{public_key: {{file: key}}}}}}}}", "public_key.file: no public key"),
        (f"{{{HTTP}, providers: {{sendgrid: {{public_key: {{file: none}}}}}}}}", "No such file"),
        (f"{{{HTTP}, providers: {{mailgun: {{signing_key: hunter2hunter2}}}}}}", "a secret must be a reference"),
        (f"{{{HTTP}, providers: {{postmark: {{username: a}}}}}}", "without `username` and `password` anybody"),
        (f"{{{HTTP}, providers: {{brevo: {{}}}}}}", "without `token`, or `username` and `password` anybody"),
        (f"{{{HTTP}, providers: {{brevo: {{token: {{file: key}}, username: a, password: {{file: key}}}}}}}}", "remove one of them"),
        (f"{{{HTTP}, providers: {{mailjet: {{username: a, password: {{file: key}}, token: {{file: key}}}}}}}}", "nothing by which mailjet"),
        (f"{{{HTTP}, providers: {{ses: {{topics: ['{TOPIC}'], egress: mian}}}}}}", "no account 'mian'; did you mean 'main'?"),
        (f"{{{HTTP}, providers: {{ses: {{topics: ['{TOPIC}'], clients: [10.0.0.1/8]}}}}}}", "did you mean 10.0.0.0/8"),
        (f"{{{HTTP}, providers: {{x: {{kind: mandrill}}}}}}", "feedback.providers.x.kind"),
        ("{http: {address: \"127.0.0.1:2525\"}}", "127.0.0.1:2525 is taken by listener 'local'"),
        ("{http: {}}", "'address' is missing"),
        ("{http: {address: \"127.0.0.1:1\", tls: {certificate: none.pem}}}", "No such file"),
        ("{http: {address: \"127.0.0.1:1\", tls: {certificate: key}}}", "no certificate and its key"),
        ("{http: {address: \"127.0.0.1:1\", proxy: [proxy.example]}}", "expected a network"),
        ("{one_click: maybe}", "true or false"),
    ],
)  # fmt: skip
def test_each_mistake_is_told(tmp_path: Path, feedback: str, told: str) -> None:
    found = problems(tmp_path, feedback)
    assert any(told in line for line in found), found
    assert "hunter2" not in str(found)


def test_beyond_loopback_a_proxy_is_wanted(tmp_path: Path) -> None:
    provider = f"providers: {{ses: {{topics: ['{TOPIC}']}}}}"
    config = made(tmp_path, f'{{http: {{address: "0.0.0.0:2582"}}, {provider}}}')
    assert ["a proxy with TLS must stand before it" in one for one in config.warnings] == [True]
    own = Authority(tmp_path)
    tls = f"tls: {{certificate: {own.certificate}, key: {{file: {own.key}}}}}"
    config = made(tmp_path, f'{{http: {{address: "0.0.0.0:2582", {tls}}}, {provider}}}')
    assert config.warnings == () and config.feedback.http is not None and config.feedback.http.tls is not None
    config = made(tmp_path, f"{{{HTTP}}}")
    assert ["nothing comes in by it" in one for one in config.warnings] == [True]
