"""README's recipes for providers, as they stand there, against a sink that behaves as the provider does.

Put in are an address of this machine with a certificate that it trusts, and where tokens come from; nothing else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import Authority, authority
from rig import running, until
from sinks import Bench, sink
from tokens import Endpoint

from relay.config.load import load
from relay.sink import named
from relay.sink.login import Logins

__all__ = ["authority"]

README = (Path(__file__).parents[2] / "README.md").read_text()
PLAIN = "greeting: upstream.example ready\nlogin: {mechanisms: [PLAIN, LOGIN]}\n"


def recipe(name: str) -> dict[str, Any]:
    found = re.search(rf"```yaml\n# recipe: {name}\n(.*?)```", README, re.DOTALL)
    assert found, name
    made: dict[str, Any] = yaml.safe_load(found[1])
    return made


def written(folder: Path, text: str, secret: str = "secret") -> None:
    """Every secret that a recipe names."""
    for file in re.findall(r"secrets/[a-z0-9-]+", text):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(f"{secret}\n")


def installed(folder: Path, config: dict[str, Any], hosts: dict[str, tuple[int, str]], authority: Authority) -> Path:
    """`hosts`: account -> (port, TLS mode)."""
    for name, (port, mode) in hosts.items():
        account = config["accounts"][name]
        account |= {"host": "127.0.0.1", "port": port, "tls": {"mode": mode, "ca": str(folder / "ca.pem")}}
        account.pop("region", None)
    authority.ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    config |= {
        "listen": [{"name": "local", "address": "127.0.0.1:0"}],
        "admin": {"socket": str(folder / "admin.sock"), "address": None},
        "spool": {"path": str(folder / "spool" / "spool.db"), "reserve": "1MB"},
        "dsn": {"to": "none"},
    }
    file = folder / "relay.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def message(sender: str, number: int = 0) -> tuple[str, tuple[str, ...], bytes]:
    return sender, (f"r{number}@example.net",), f"From: {sender}\r\nMessage-ID: <{number}@x>\r\n\r\nx\r\n".encode()


def subjects(bench: Bench) -> list[str]:
    return sorted(kept.recipients[0] for kept in bench.kept)


async def test_microsoft_365_by_the_application(tmp_path: Path, authority: Authority) -> None:
    """33 messages: the bucket's 30 at once, the rest in the next minute of a clock sixty times as fast; no complaint."""
    config = recipe("microsoft 365")
    written(tmp_path, str(config), "canary-client-secret-4Rt")
    tokens = tmp_path / "tokens"
    tokens.write_text("")
    async with (
        Endpoint() as there,
        sink(
            tmp_path,
            named("microsoft365"),
            60,
            tls=authority.tls(),
            logins=Logins("noreply@corp.example", tokens=tokens),
        ) as up,
    ):
        account = config["accounts"]["m365"]
        assert account["oauth2"]["tenant"] == "corp.onmicrosoft.com"
        account["oauth2"]["token_url"] = there.url
        account["oauth2"].pop("tenant")
        account["limits"] = ["30 messages/s", "10000/d"]  # as fast as the sink's clock
        async with running(installed(tmp_path, config, {"m365": (up.port, "starttls")}, authority)) as rig:
            await until(lambda: there.given)
            tokens.write_text("\n".join(there.given))
            await rig.send_many([message("noreply@corp.example", i) for i in range(33)])
            await rig.settled()
            assert len(up.kept) == 33 and up.sink.tally.doubled == {} and not up.sink.tally.refused()
            assert there.requests[0]["scope"] == "https://outlook.office365.com/.default"
            assert len(there.requests) == 1 and rig.said("account_paused") == []


async def test_gmail_by_an_app_password(tmp_path: Path, authority: Authority) -> None:
    config = recipe("gmail")
    written(tmp_path, str(config))
    right = tmp_path / "secrets" / "gmail"
    async with sink(tmp_path, named("gmail"), 60, tls=authority.tls(), logins=Logins("app@example.com", right)) as up:
        file = installed(tmp_path, config, {"gmail": (up.port, "starttls")}, authority)
        async with running(file) as rig:
            await rig.send_many([message("app@example.com", i) for i in range(20)])
            await rig.settled()
            assert len(up.kept) == 20 and not up.sink.tally.refused()
    (account,) = load(file).accounts.values()
    assert [str(rate) for rate in account.limits] == ["2000 messages/d"] and account.recipients_per_message == 100


async def test_ses_by_region(tmp_path: Path, authority: Authority) -> None:
    config = recipe("ses")
    written(tmp_path, str(config))
    only = tmp_path / "whole.yaml"
    only.write_text(yaml.safe_dump(config))
    (whole,) = load(only).accounts.values()
    assert (str(whole.host), whole.port, whole.tls.mode, whole.signs) == (
        "email-smtp.eu-central-1.amazonaws.com", 587, "starttls", True,
    )  # fmt: skip
    assert [str(rate) for rate in whole.limits] == ["14/s", "50000/d"] and whole.recipients_per_message == 14
    async with sink(tmp_path, named("ses"), tls=authority.tls()) as up:
        async with running(installed(tmp_path, config, {"ses": (up.port, "starttls")}, authority)) as rig:
            await rig.send_many([message("a@shop.example", i) for i in range(40)])
            await rig.settled()
        assert len(up.kept) == 40 and not up.sink.tally.refused()
        (rate,) = (bucket for bucket in up.sink.tally.buckets if bucket["limit"].startswith("rate"))
        assert rate["took"] == 40 and rate["minimum"] == pytest.approx(26 / 14)


async def test_sendgrid_and_postmark_by_api_key(tmp_path: Path, authority: Authority) -> None:
    config = recipe("api keys")
    written(tmp_path, str(config), "SG.key")
    key = tmp_path / "secrets" / "sendgrid"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        sink(tmp_path / "a", PLAIN, tls=authority.tls(), logins=Logins("apikey", key)) as sendgrid,
        sink(tmp_path / "b", PLAIN, tls=authority.tls(), logins=Logins("SG.key", key)) as postmark,
    ):
        hosts = {"sendgrid": (sendgrid.port, "starttls"), "postmark": (postmark.port, "starttls")}
        async with running(installed(tmp_path, config, hosts, authority)) as rig:
            await rig.send_many([message("a@receipts.example", 1), message("a@shop.example", 2)])
            await rig.settled()
        assert (subjects(postmark), subjects(sendgrid)) == (["r1@example.net"], ["r2@example.net"])
        assert b"X-PM-Message-Stream: outbound\r\n" in postmark.kept[0].path.read_bytes()
        assert b"X-PM-Message-Stream" not in sendgrid.kept[0].path.read_bytes()


async def test_the_second_account_takes_over_when_the_quota_is_used_up(tmp_path: Path, authority: Authority) -> None:
    config = recipe("fail-over")
    written(tmp_path, str(config))
    day = (
        "profile: ses\nlimits:\n  - {name: daily, at: dot, rate: 5/d, counts: recipients, per: all, "
        'reply: "454 Throttling failure: Daily message quota exceeded."}\n'
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with (
        sink(tmp_path / "a", day, tls=authority.tls()) as first,
        sink(tmp_path / "b", PLAIN, tls=authority.tls()) as second,
    ):
        hosts = {"first": (first.port, "starttls"), "second": (second.port, "starttls")}
        async with running(installed(tmp_path, config, hosts, authority)) as rig:
            await rig.send_many([message("a@shop.example", i) for i in range(20)])
            await rig.settled()
            (alarm,) = rig.said("account_rests")
            assert alarm["egress"] == "first" and alarm["takes_over"]
        assert len(first.kept) == 5 and len(second.kept) == 15
        assert sorted(subjects(first) + subjects(second)) == sorted(f"r{i}@example.net" for i in range(20))


async def test_an_internal_smarthost(tmp_path: Path, authority: Authority) -> None:
    config = recipe("smarthost")
    (tmp_path / "tls").mkdir()
    async with sink(tmp_path, "greeting: mail.corp.example\n", tls=authority.tls()) as up:
        assert config["accounts"]["smarthost"]["tls"] == {"mode": "starttls", "ca": "tls/corp-ca.pem"}
        async with running(installed(tmp_path, config, {"smarthost": (up.port, "starttls")}, authority)) as rig:
            await rig.send_many([message("a@corp.example", i) for i in range(30)])
            await rig.settled()
        assert len(up.kept) == 30 and up.sink.tally.most_connections <= 5


def test_every_recipe_for_a_provider_is_run() -> None:
    """And loads as it stands, but for its secrets."""
    names = re.findall(r"```yaml\n# recipe: (.*)\n", README)
    assert set(names) == {
        "microsoft 365", "gmail", "ses", "api keys", "fail-over", "smarthost", "two applications", "staging", "direct",
        "never too fast", "bounces come back",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["microsoft 365", "gmail", "ses", "api keys", "fail-over"])
def test_a_recipe_is_good_as_it_stands(tmp_path: Path, name: str) -> None:
    written(tmp_path, str(recipe(name)))
    file = tmp_path / "relay.yaml"
    file.write_text(yaml.safe_dump(recipe(name)))
    config = load(file)
    assert all(account.preset and str(account.host) != "localhost" for account in config.accounts.values())
    assert config.warnings == ()
