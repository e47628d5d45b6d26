"""README's recipes do what they say: their configurations as they stand there, with only hosts, ports and folders put in."""

from __future__ import annotations

import re
import shutil
import smtplib
import subprocess
import sys
from pathlib import Path

import pytest

from relay.config.load import load
from tests.returned import dsn

from .application import Application
from .support import ENV, ROOT, Recorder, Relay, free_port, run, until

README = (ROOT / "README.md").read_text()
MESSAGE = "From: {0}\r\nSubject: recipe\r\n\r\nhello\r\n"


def recipe(name: str) -> str:
    found = re.search(rf"```yaml\n# recipe: {name}\n(.*?)```", README, re.DOTALL)
    assert found, name
    return found[1]


def installed(folder: Path, name: str, hosts: dict[str, int]) -> Path:
    """The recipe as a file: upstream hosts become ports of this machine, and no login is sent there."""
    text = recipe(name)
    for host, port in hosts.items():
        text, count = re.subn(
            rf"host: {re.escape(host)}, username: [^,]+, password: {{[^}}]+}}", f"host: 127.0.0.1, port: {port}", text
        )
        assert count == 1, host
    for secret in re.findall(r"file: (secrets/[a-z-]+)", recipe(name)):
        (folder / secret).parent.mkdir(exist_ok=True)
        (folder / secret).write_text(f"password of {Path(secret).name}\n")
    text = text.replace("127.0.0.1:2525", "127.0.0.1:0")
    if "listen:" not in text:
        text = 'listen: [{name: local, address: "127.0.0.1:0"}]\n' + text
    file = folder / "relay.yaml"
    file.write_text(
        f"{text}admin: {{socket: {folder}/admin.sock, address: null}}\n"
        f"spool: {{path: {folder}/spool/spool.db, reserve: 1MB}}\n"
    )
    return file


def relay(file: Path, *arguments: str, said: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "relay", *arguments],
        input=said,
        capture_output=True, text=True, timeout=120, env=ENV | {"RELAY_ENDPOINT": str(file.parent / "admin.sock")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_applications_with_their_own_credentials(tmp_path: Path) -> None:
    with Recorder() as shop, Recorder() as crm:
        file = installed(tmp_path, "two applications", {"smtp.shop.example": shop.port, "smtp.crm.example": crm.port})
        assert load(file).warnings == ()
        with Relay(file) as running:
            for user in ("shop", "crm"):
                with smtplib.SMTP("127.0.0.1", running.port, timeout=120) as smtp:
                    with pytest.raises(smtplib.SMTPSenderRefused) as told:
                        smtp.sendmail(f"a@{user}.example", ["you@example.net"], MESSAGE.format(f"a@{user}.example"))
                    assert told.value.smtp_code == 530
                    smtp.login(user, f"password of {user}")
                    smtp.sendmail(f"a@{user}.example", ["you@example.net"], MESSAGE.format(f"a@{user}.example"))
                    other = "crm" if user == "shop" else "shop"
                    with pytest.raises(smtplib.SMTPSenderRefused) as told:
                        smtp.sendmail(f"a@{other}.example", ["you@example.net"], "x")
                    assert told.value.smtp_code == 553
                    with pytest.raises(smtplib.SMTPDataError) as refused:
                        smtp.sendmail(f"a@{user}.example", ["you@example.net"], MESSAGE.format(f"a@{other}.example"))
                    assert refused.value.smtp_code == 550
            until(lambda: shop.messages and crm.messages, what="both have left")
            said = relay(file, "explain", "--user", "shop", "--from", "a@crm.example", "--to", "you@example.net")
            assert "553 5.7.1 user shop may not send as <a@crm.example>" in said
            said = relay(file, "explain", "--user", "shop", "--from", "a@shop.example", "--to", "you@example.net")
            assert "may send this" in said and "shop-out" in said
            one = ("send", "--user", "shop", "--from", "b@shop.example", "--to", "you@example.net")
            assert "queued as" in relay(file, *one, said="password of shop\n")
            until(lambda: len(shop.messages) == 2, what="the one by hand has left")
        assert [m.sender for m in shop.messages] == ["a@shop.example", "b@shop.example"]
        assert [m.sender for m in crm.messages] == ["a@crm.example"]


def test_bounces_come_back(tmp_path: Path) -> None:
    with Recorder() as upstream, Application() as application:
        file = installed(tmp_path, "bounces come back", {"smtp.example.com": upstream.port})
        (tmp_path / "secrets" / "return-path").chmod(0o640)
        (tmp_path / "secrets" / "crm").write_text(application.secret)
        door, text = free_port(), file.read_text()
        assert text.count("0.0.0.0:2526") == text.count('"https://crm.example.com/mail"') == 1
        text = text.replace("0.0.0.0:2526", f"127.0.0.1:{door}")
        file.write_text(
            text.replace('"https://crm.example.com/mail"', f'"{application.url}", allow_private: true, cap: 1s')
        )
        assert load(file).warnings == ()
        with Relay(file) as running, smtplib.SMTP("127.0.0.1", running.port, timeout=120) as smtp:
            smtp.sendmail("a@b.example", ["gone@example.net"], MESSAGE.format("a@b.example"))
            until(lambda: upstream.messages, what="it has left")
            way_back = upstream.messages[0].sender
            with smtplib.SMTP("127.0.0.1", door, timeout=120) as bounces:
                bounces.sendmail("", [way_back], dsn("gone@example.net"))
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                smtp.sendmail("a@b.example", ["gone@example.net"], MESSAGE.format("a@b.example"))
            until(lambda: {"bounced", "suppression_added"} <= application.heard, what="the application knows")
            assert "hard_bounce" in relay(file, "suppress", "list", "gone@example.net", "--json")
            assert not application.forged


def test_staging_keeps_what_would_leave(tmp_path: Path) -> None:
    with Recorder() as upstream:
        file = installed(tmp_path, "staging", {"smtp.example.com": upstream.port})
        with Relay(file) as running, smtplib.SMTP("127.0.0.1", running.port, timeout=120) as smtp:
            smtp.sendmail("a@b.example", ["me@example.com", "customer@else.example"], MESSAGE.format("a@b.example"))
            until(lambda: upstream.messages, what="ours has left")
            found = relay(file, "queue", "list", "--all", "--egress", "capture")
            assert "customer@else.example" in found
            assert "me@example.com" not in found
        assert [m.recipients for m in upstream.messages] == [["me@example.com"]]


def test_backup_and_restore(tmp_path: Path) -> None:
    with Recorder() as upstream:
        file = installed(tmp_path, "staging", {"smtp.example.com": 1})
        with Relay(file) as running:
            with smtplib.SMTP("127.0.0.1", running.port, timeout=120) as smtp:
                smtp.sendmail("a@b.example", ["me@example.com"], MESSAGE.format("a@b.example"))
            relay(file, "spool", "backup", str(tmp_path / "copy"))
            running.stop()
            shutil.move(tmp_path / "spool", tmp_path / "damaged")
            run("cp", "-a", tmp_path / "copy", tmp_path / "spool")
            file.write_text(file.read_text().replace("port: 1}", f"port: {upstream.port}}}"))
            running.start()
            assert "restored from a backup" in relay(file, "queue", "list")
            assert upstream.messages == []
            relay(file, "queue", "release", "--error", "restored from a backup")
            until(lambda: upstream.messages, what="it has left")
