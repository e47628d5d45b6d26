"""Exim as Debian builds it, beside a Postfix that is installed: the two packages exclude each other.

So its package is unpacked into a folder, and laid over /usr for its own processes alone, in a mount namespace; so are the user
that it runs as and its word that our configuration may be trusted. Nothing of it is left on the machine.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

USER = 799  # of Debian-exim within the namespace
PACKAGES = (
    *("exim4-daemon-light", "libgnutls-dane0", "libidn12", "libunbound8", "libevent-2.1-7", "libnsl2", "libtirpc3"),
    *("libdb5.3", "libpcre2-8-0"),
)

# Two settings are not the shipped ones: it would take 20 connections, and leave what comes eleventh on a connection to a queue
# runner that comes by each half hour.
CONFIG = """\
primary_hostname = exim.example.org
spool_directory = {folder}/spool
log_file_path = {folder}/logs/%slog
pid_file_path = {folder}/exim.pid
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
smtp_accept_max = 200
smtp_accept_queue_per_connection = 0
keep_environment =
tls_advertise_hosts =
acl_smtp_rcpt = accept
acl_smtp_data = accept
begin routers
smarthost:
  driver = manualroute
  transport = remote_smtp
  route_list = * 127.0.0.1::{sink}
  self = send
begin transports
remote_smtp:
  driver = smtp
begin retry
* * F,2h,15m; G,16h,1h,1.5; F,4d,6h
"""
_ENTER = """\
mount --make-rprivate / &&
mount -t overlay overlay -o "lowerdir=$1:/etc" /etc &&
mount -t overlay overlay -o "lowerdir=$2:/usr" /usr &&
shift 2 && exec "$@"
"""


def unpacked(tools: Path) -> Path:
    return tools / "exim/root"


def enter(etc: Path, root: Path, *command: str) -> list[str | Path]:
    """The command, with `etc` laid over /etc and `root`/usr over /usr."""
    return ["unshare", "-m", "sh", "-c", _ENTER, "sh", etc, root / "usr", *command]


def lacks(tools: Path, output: Callable[..., str]) -> str:
    """Fetches it where it is not there; why it cannot be used, empty if it can."""
    if os.geteuid() != 0:
        return "an instance of Exim needs root"
    root = unpacked(tools)
    if not (root / "usr/sbin/exim4").exists():
        root.mkdir(parents=True, exist_ok=True)
        os.chmod(tools / "exim", 0o755)
        for name in PACKAGES:
            output("apt-get", "download", "-qq", name, cwd=root.parent)
        for package in root.parent.glob("*.deb"):
            output("dpkg-deb", "-x", package, root)
    if not (root / "usr/sbin/exim4").exists():
        return "apt-get download exim4-daemon-light brings no Exim"
    probe = subprocess.run(
        [str(c) for c in enter(root / "usr", root, "true")], capture_output=True, text=True, check=False
    )
    return f"no mount namespace with an overlay: {probe.stderr.strip()}" if probe.returncode else ""


def configure(folder: Path, port: int, sink: int) -> None:
    """`folder`/exim.conf, its queue and log, and what is laid over /etc in `folder`/etc."""
    etc = folder / "etc"
    (etc / "exim4").mkdir(parents=True)
    for name, line in (
        ("passwd", f"Debian-exim:x:{USER}:{USER}::/nonexistent:/bin/false"),
        ("group", f"Debian-exim:x:{USER}:"),
    ):
        (etc / name).write_text(f"{Path('/etc', name).read_text().rstrip()}\n{line}\n")
    (etc / "exim4/trusted_configs").write_text(f"{folder}/exim.conf\n")
    for name in ("spool", "logs"):
        (folder / name).mkdir()
        os.chown(folder / name, USER, USER)
    (folder / "exim.conf").write_text(CONFIG.format(folder=folder, port=port, sink=sink))
