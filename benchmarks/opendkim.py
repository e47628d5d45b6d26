"""OpenDKIM as a milter for Postfix: a process of its own, its configuration, key and socket in a folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.service.support import ENV, find, until

CONFIG = """\
Socket local:{folder}/socket
UMask 000
Domain {domain}
Selector {selector}
KeyFile {folder}/key.pem
Mode s
Canonicalization relaxed/relaxed
InternalHosts 127.0.0.0/8
RequireSafeKeys no
Syslog no
UserID opendkim
"""


def lacks() -> str:
    """Why it can't be started here, empty if it can."""
    if not find("opendkim"):
        return "the Debian package opendkim is missing"
    return "" if os.geteuid() == 0 else "an instance of OpenDKIM needs root"


@contextmanager
def signs(folder: Path, domain: str, selector: str, pem: str) -> Iterator[dict[str, str]]:
    """The settings of a Postfix that it shall sign for. `folder` is new, and a daemon may enter it."""
    folder.mkdir()
    shutil.chown(folder, "opendkim")
    key = folder / "key.pem"
    key.touch(0o600)
    key.write_text(pem)
    shutil.chown(key, "opendkim")
    config, socket = folder / "opendkim.conf", folder / "socket"
    config.write_text(CONFIG.format(folder=folder, domain=domain, selector=selector))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["opendkim", "-f", "-x", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENV
        )
    try:
        until(lambda: socket.is_socket() or process.poll() is not None, what="OpenDKIM listens")
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        # Whatever it can't sign is refused for now: nothing leaves unsigned.
        yield {"smtpd_milters": f"unix:{socket}", "milter_default_action": "tempfail"}
        assert process.poll() is None, "OpenDKIM ended by itself"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
