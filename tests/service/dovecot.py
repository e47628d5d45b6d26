"""A Dovecot of its own, as the IMAP server of a mailbox. Needs root, and a folder that the user dovecot may enter."""

from __future__ import annotations

import imaplib
import os
import shutil
import signal
import subprocess
from pathlib import Path

from .support import ENV, answers, find, free_port, group_ended, until

USER, PASSWORD = "bounces@example.com", 'a "secret" \\ of tests'


class Dovecot:
    """One user, with a Maildir. `port`: in clear, with STARTTLS where there is a certificate; `tls_port`: implicit TLS."""

    def __init__(self, folder: Path, certificate: Path | None = None, key: Path | None = None) -> None:
        self.folder, self.certificate, self.key = folder, certificate, key
        self.port, self.tls_port = free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Dovecot:
        for name in ("run", "state", "mail"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        shutil.chown(self.folder / "mail", "nobody", "nogroup")
        (self.folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}::::::\n")
        tls = f"ssl_cert = <{self.certificate}\nssl_key = <{self.key}\n" if self.certificate else ""
        file = self.folder / "dovecot.conf"
        file.write_text(_CONFIG.format(folder=self.folder, port=self.port, tls_port=self.tls_port, tls=tls,
                                       ssl="yes" if self.certificate else "no"))  # fmt: skip
        self.start(file)
        return self

    def start(self, file: Path | None = None) -> None:
        program = find("dovecot")
        assert program
        command = [program, "-F", "-c", str(file or self.folder / "dovecot.conf")]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=ENV, process_group=0)
        until(lambda: answers(self.port, b"* OK"), what="Dovecot answers")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGTERM)
            self.process.wait(60)
            # Its master waits for its children, but not for ever: one that still writes would write into what comes next.
            until(lambda: self.process is None or group_ended(self.process.pid), what="Dovecot's children have ended")

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- the mailbox, as its owner sees it

    def client(self) -> imaplib.IMAP4:
        client = imaplib.IMAP4("127.0.0.1", self.port, timeout=120)
        client.login(USER, PASSWORD)
        return client

    def put(self, *raws: bytes, folder: str = "INBOX") -> None:
        client = self.client()
        try:
            for raw in raws:
                assert client.append(folder, None, None, raw)[0] == "OK"
        finally:
            client.logout()

    def messages(self, folder: str = "INBOX") -> dict[int, str]:
        """UID -> its flags."""
        client = self.client()
        try:
            if client.select(f'"{folder}"', readonly=True)[0] != "OK":
                return {}
            _, found = client.uid("FETCH", "1:*", "(UID FLAGS)")
            lines = [line for line in found if isinstance(line, bytes) and b"UID " in line]
            return {int(line.split(b"UID ")[1].split()[0].rstrip(b")")): line.decode() for line in lines}
        finally:
            client.logout()

    def drop(self, folder: str = "INBOX") -> None:
        """All is gone, and UIDVALIDITY is another when mail comes again."""
        self.stop()
        for path in (self.folder / "mail").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.start()


_CONFIG = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/dovecot.log
protocols = imap
listen = 127.0.0.1
ssl = {ssl}
{tls}disable_plaintext_auth = no
auth_mechanisms = plain login
mail_location = maildir:{folder}/mail
first_valid_uid = 1
mail_max_userip_connections = 100
mail_uid = nobody
mail_gid = nogroup
passdb {{
  driver = passwd-file
  args = scheme=plain username_format=%u {folder}/users
}}
userdb {{
  driver = static
  args = uid=nobody gid=nogroup home={folder}/mail
}}
service imap-login {{
  chroot =
  inet_listener imap {{
    port = {port}
  }}
  inet_listener imaps {{
    port = {tls_port}
  }}
}}
service anvil {{
  chroot =
}}
"""
