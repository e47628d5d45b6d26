"""A Postfix instance of its own, as an upstream and as a peer to measure against."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from .support import answers, free_port, group_ended, run, until


class Postfix:
    """An instance of Postfix with its own configuration, queue and data folder: port -> upstream. Needs root, and a folder
    that the user postfix may enter."""

    def __init__(self, folder: Path, upstream: int, **settings: str) -> None:
        self.folder, self.port, self._upstream, self._settings = folder, free_port(), upstream, settings

    def __enter__(self) -> Postfix:
        etc, queue, data = (self.folder / name for name in ("etc", "spool", "data"))
        for path in (etc, queue, data):
            path.mkdir(parents=True)
        shutil.chown(data, "postfix")
        settings = {
            "compatibility_level": "3.6",
            "queue_directory": queue,
            "data_directory": data,
            "command_directory": "/usr/sbin",
            "daemon_directory": "/usr/lib/postfix/sbin",
            "myhostname": "postfix.test",
            "mydestination": "",
            "alias_maps": "",
            "alias_database": "",
            "local_recipient_maps": "",
            "local_transport": "error:no local mail",
            "mynetworks": "127.0.0.0/8",
            "inet_interfaces": "127.0.0.1",
            "inet_protocols": "ipv4",
            "relayhost": f"[127.0.0.1]:{self._upstream}",
            "smtp_host_lookup": "native",
            "disable_dns_lookups": "yes",
            "smtpd_relay_restrictions": "permit_mynetworks, reject",
            "maillog_file": self.folder / "mail.log",
            "maillog_file_prefixes": f"{self.folder}, /var",
            "biff": "no",
        } | self._settings
        (etc / "main.cf").write_text("".join(f"{k} = {v}\n" for k, v in settings.items()))
        (etc / "master.cf").write_text(f"127.0.0.1:{self.port} inet n - n - - smtpd\n{_MASTER}")
        run("postfix", "-c", etc, "start")
        try:
            until(lambda: answers(self.port), what="Postfix answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    @property
    def pid(self) -> int:
        return int((self.folder / "spool/pid/master.pid").read_text())

    def __exit__(self, *_: object) -> None:
        pid = self.pid
        os.kill(pid, signal.SIGTERM)
        # The master leads a group: one of its children that still writes would be met by who removes the folder.
        until(lambda: group_ended(pid), what="Postfix has ended")


_MASTER = """\
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
tlsmgr    unix  - - n 1000? 1 tlsmgr
postlog   unix-dgram n - n - 1 postlogd
"""
