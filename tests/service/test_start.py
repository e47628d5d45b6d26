"""Starting and staying up: from nothing, without rights, twice, on a taken port, installed from a wheel, and through
every bad configuration that there is."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .support import ENV, ROOT, Recorder, Relay, config_text, find, needs_root, run, until

BAD = sorted((ROOT / "tests/pure/bad_configs").glob("*.yaml"))
PLAIN = {k: v for k, v in ENV.items() if not k.startswith(("XDG_", "STATE_", "RUNTIME_", "NOTIFY_", "WATCHDOG_"))}


def submit(port: int, sender: str = "app@example.com", host: str = "127.0.0.1") -> str:
    """The queue id of a small message."""
    with smtplib.SMTP(host, port, timeout=120) as smtp:
        smtp.ehlo()
        smtp.mail(sender)
        smtp.rcpt("user@example.com")
        code, text = smtp.data(b"Subject: hi\r\n\r\nhello\r\n")
    assert code == 250, text
    return text.decode().rpartition(" ")[2]


@contextmanager
def demonstration(command: list[str], env: dict[str, str], cwd: Path, output: Path) -> Iterator[tuple[int, Path]]:
    """`relay serve` without a configuration; (its port, its screen). It is ended by SIGTERM and must end with 0."""
    try:  # another test may have a relay with the same defaults just now
        until(lambda: not _taken(), 30)
    except AssertionError:
        pytest.skip("port 2525 or 2580, which a demonstration listens on, is taken")
    if Path("/etc/relay/relay.yaml").exists():
        pytest.skip("/etc/relay/relay.yaml exists: `relay serve` would use it")
    with output.open("wb") as out:
        process = subprocess.Popen(command, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    try:
        until(lambda: "What passes:" in output.read_text() or process.poll() is not None, what="it is welcome")
        found = re.search(r"listens on 127\.0\.0\.1:(\d+)", output.read_text())
        assert found, output.read_text()
        yield int(found[1]), output
        process.terminate()
        assert process.wait(60) == 0, output.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _taken() -> bool:
    for host, port in (("127.0.0.1", 2525), ("::1", 2525), ("127.0.0.1", 2580)):
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
            if sock.connect_ex((host, port)) == 0:
                return True
    return False


def passes(port: int, screen: Path) -> None:
    """A message is accepted, delivered to the sink, and shown on its way."""
    number = submit(port)
    until(lambda: f"delivered  {number}" in screen.read_text(), what="the screen shows the delivery")
    shown = screen.read_text()
    assert f"accepted   {number}" in shown
    assert "Traceback" not in shown
    kept = re.search(r"kept\s+(\S+\.eml)  'hi'", shown)
    assert kept, shown
    assert kept[1].startswith(re.search(r"sink +(\S+)/\*\.eml", shown)[1])  # type: ignore[index]


# Each a way to say where state may lie, to one who may not write to /var/lib and /run, and where it must lie then.
PLACES = {
    "systemd": ({"STATE_DIRECTORY": "{0}/state", "RUNTIME_DIRECTORY": "{0}/run", "HOME": "/nonexistent"}, "state/demo"),
    "xdg": ({"XDG_STATE_HOME": "{0}/xdg", "XDG_RUNTIME_DIR": "{0}/run", "HOME": "/nonexistent"}, "xdg/relay/demo"),
    "home": ({"HOME": "{0}/home"}, "home/.local/state/relay/demo"),
}


@needs_root
@pytest.mark.skipif(not find("setpriv"), reason="setpriv is missing")
@pytest.mark.parametrize("name", PLACES)
def test_demonstration_without_rights(open_folder: Path, name: str) -> None:
    """In an empty folder, as a user who owns nothing else. The code is a copy that this user may read."""
    nobody = pwd.getpwnam("nobody")
    given, state = PLACES[name]
    own = open_folder / "own"
    for folder in (own, own / "empty", own / "state", own / "run", own / "xdg", own / "home"):
        folder.mkdir()
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    env = (
        PLAIN
        | {k: v.format(own) for k, v in given.items()}
        | {"PYTHONPATH": f"{open_folder}/code:{_libraries(open_folder)}"}
    )
    shutil.copytree(ROOT / "relay", open_folder / "code/relay", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "etc/relay.yaml", open_folder / "code/relay/config/relay.yaml")
    python = _python_for_all()
    with demonstration(
        [*AS_NOBODY, python, "-B", "-m", "relay", "serve"], env, own / "empty", open_folder / "screen"
    ) as (
        port,
        screen,
    ):
        passes(port, screen)
        spool = own / state / "spool.db"
        assert str(spool) in screen.read_text()
        assert spool.stat().st_mode & 0o777 == 0o600
        assert spool.parent.stat().st_mode & 0o777 == 0o700
        # What it shows to try is tried as it stands there.
        shown = re.search(r"^ +(\S.* send --to \S+)$", screen.read_text(), re.MULTILINE)
        assert shown
        sent = run(*AS_NOBODY, "bash", "-c", shown[1], env=env, cwd=own / "empty").stdout
        assert "Ok: queued as " in sent
        shown = re.search(r"^ +printf .*\n +curl .*$", screen.read_text(), re.MULTILINE)
        assert shown
        # Wrapped by a terminal it would be copied with a line end inside.
        assert max(map(len, shown[0].splitlines())) < 100
        if find("curl"):
            run(*AS_NOBODY, "bash", "-c", shown[0], env=env, cwd=own / "empty")
            until(lambda: screen.read_text().count("'hi'") == 2, what="the screen shows curl's message")
        listed = run(*AS_NOBODY, python, "-B", "-m", "relay", "queue", "list", "--all", env=env, cwd=own / "empty")
        assert "user@example.com" in listed.stdout
    assert list((own / "empty").iterdir()) == []


# Its last word is `env`: setpriv itself still reads where only root may.
AS_NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--no-new-privs", "env"]


def _python_for_all() -> str:
    """An interpreter of our version that others than root may run."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        probe = [*AS_NOBODY, candidate, "-c", "import sqlite3, ssl, ctypes"]
        if subprocess.run(probe, capture_output=True, check=False, cwd="/").returncode == 0:
            return candidate
    pytest.skip("no interpreter of this version that another user may run")


def _libraries(folder: Path) -> Path:
    """The installed libraries, copied to where another user may read them if they are not already."""
    found = Path(pytest.__file__).parents[1]
    if subprocess.run([*AS_NOBODY, "test", "-r", found / "click/core.py"], check=False, cwd="/").returncode:
        unused = shutil.ignore_patterns("mypy*", "ruff*", "django*", "__pycache__")
        shutil.copytree(found, folder / "libraries", ignore=unused)
        return folder / "libraries"
    return found


def test_second_instance_on_the_same_spool(tmp_path: Path) -> None:
    with Recorder() as upstream:
        file = tmp_path / "relay.yaml"
        file.write_text(config_text(tmp_path, upstream.port))
        with Relay(file) as relay:
            other = tmp_path / "second.yaml"
            other.write_text(file.read_text().replace("admin.sock", "second.sock"))
            done = run(sys.executable, "-m", "relay", "serve", "--config", other, check=False)
            assert done.returncode == 69
            told = [line for line in done.stderr.splitlines() if not line.startswith("time=")]
            assert len(told) == 1
            assert "is in use by another relay" in told[0]
            assert relay.process is not None
            assert f"pid {relay.process.pid}" in told[0]
            submit(relay.port)
            upstream.wait(1)
            assert relay.stop() == 0


def test_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "relay.yaml"
        file.write_text(config_text(tmp_path, 9, port=port))
        done = run(sys.executable, "-m", "relay", "serve", "--config", file, check=False)
    assert done.returncode == 69
    told = [line for line in done.stderr.splitlines() if not line.startswith("time=")]
    assert told == [told[0]]
    assert told[0].startswith(f"relay: cannot listen on 127.0.0.1:{port}: ")
    assert "listen.address" in told[0]
    assert "Traceback" not in done.stderr


def test_a_burst_of_clients_while_it_is_busy(tmp_path: Path) -> None:
    """Whoever the kernel let in is greeted: with a short backlog most of them would wait for ever."""
    file = tmp_path / "relay.yaml"
    file.write_text(config_text(tmp_path, 9))
    with Relay(file) as relay:
        relay.signal(signal.SIGSTOP)
        clients = [socket.socket() for _ in range(200)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", relay.port))
        relay.signal(signal.SIGCONT)
        for client in clients:
            client.settimeout(60)
            assert client.recv(3, socket.MSG_WAITALL) == b"220"
            client.close()
        assert relay.stop() == 0
        relay.clean()


def test_admin_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        file = tmp_path / "relay.yaml"
        file.write_text(config_text(tmp_path, 9).replace("address: null", f'address: "127.0.0.1:{port}"'))
        done = run(sys.executable, "-m", "relay", "serve", "--config", file, check=False)
    assert done.returncode == 69
    told = [line for line in done.stderr.splitlines() if not line.startswith("time=")]
    assert len(told) == 1
    assert f"127.0.0.1:{port}" in told[0]
    assert "admin.address" in told[0]


def test_refused_at_the_start(tmp_path: Path) -> None:
    """78, one line a mistake, no traceback; and a file that is not there."""
    for file in (*BAD[:3], tmp_path / "none.yaml"):
        done = run(sys.executable, "-m", "relay", "serve", "--config", file, check=False)
        assert done.returncode == 78, done.stderr
        assert str(file) in done.stderr
        assert "Traceback" not in done.stderr


def test_thirty_bad_configurations_leave_it_running(tmp_path: Path) -> None:
    """One process, every bad file in turn by SIGHUP: refused by name, and mail goes on under the old one."""
    assert len(BAD) >= 30
    shutil.copytree(BAD[0].parent, tmp_path / "etc")
    with Recorder() as upstream:
        file = tmp_path / "etc" / "the-relay.yaml"
        good = config_text(tmp_path, upstream.port)
        file.write_text(good)
        refusals = []
        with Relay(file) as relay:
            for n, bad in enumerate(BAD):
                file.write_bytes(bad.read_bytes())
                before = len(relay.lines("config_refused"))
                relay.signal(signal.SIGHUP)
                until(lambda before=before: len(relay.lines("config_refused")) > before, what=f"{bad.name} is refused")  # type: ignore[misc]
                refusals.append(relay.lines("config_refused")[before].partition(" event=")[2])
                submit(relay.port, f"{n}@example.com")
                upstream.wait(n + 1)
            file.write_text(good)
            relay.signal(signal.SIGHUP)
            until(lambda: relay.lines("config_loaded"), what="the good file is taken again")
            submit(relay.port, "last@example.com")
            upstream.wait(len(BAD) + 1)
            assert relay.process is not None
            assert relay.process.poll() is None
            assert relay.stop() == 0
            assert "Traceback" not in relay.log()
        assert [m.sender for m in upstream.messages] == [
            *(f"{n}@example.com" for n in range(len(BAD))),
            "last@example.com",
        ]
        without_place = [re.sub(r"the-relay\.yaml:\d+:\d+", "", r) for r in refusals]
        assert len(set(without_place)) == len(BAD)
        assert "hunter2" not in relay.log()


def test_ready_is_told_to_systemd(tmp_path: Path) -> None:
    """Type=notify: READY=1 once mail is accepted, RELOADING=1 around a reload, STOPPING=1; and the watchdog is fed."""
    with Recorder() as upstream, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        file = tmp_path / "relay.yaml"
        file.write_text(config_text(tmp_path, upstream.port))
        # A ping each 5 s, and one at once. Linux keeps no more than ten for a manager that does not read just now (net.unix.
        # max_dgram_qlen), and the relay does not wait for him: with many pings in it there would be no room for the others.
        env = ENV | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "10000000"}
        with Relay(file, env=env) as relay:
            assert manager.recv(1000).startswith(b"READY=1")
            submit(relay.port)
            assert manager.recv(1000) == b"WATCHDOG=1"
            relay.signal(signal.SIGHUP)
            said = [manager.recv(1000)]
            while not said[-1].startswith(b"READY=1"):
                said.append(manager.recv(1000))
            assert any(s.startswith(b"RELOADING=1\nMONOTONIC_USEC=") for s in said)
            assert relay.stop() == 0
            manager.setblocking(False)
            said = []
            while said[-1:] != [b"STOPPING=1"]:
                said.append(manager.recv(1000))


def test_wheel(tmp_path: Path) -> None:
    """Built, installed into a fresh environment, and of use there: version, first configuration, check, a start."""
    # The libraries are those of this environment, so that nothing is fetched.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ".", cwd=ROOT, timeout=120)
    (wheel,) = tmp_path.glob("relay_mta-*.whl")
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    site = next(venv.glob("lib/python3*/site-packages"))
    run(
        sys.executable,
        "-m",
        "pip",
        f"--python={venv}/bin/python",
        "install",
        "--no-deps",
        "--quiet",
        wheel,
        timeout=120,
    )
    (site / "libraries.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    env = PLAIN | {"HOME": str(tmp_path)}
    relay = venv / "bin/relay"
    origin = run(venv / "bin/python", "-c", "import relay; print(relay.__file__)", cwd=tmp_path, env=env).stdout
    assert str(site) in origin
    version = re.search(r'__version__ = "(.+)"', (ROOT / "relay/__init__.py").read_text())
    assert version
    assert run(relay, "--version", cwd=tmp_path, env=env).stdout.strip().endswith(version[1])
    run(relay, "init", tmp_path / "relay.yaml", cwd=tmp_path, env=env)
    assert "good" in run(relay, "check", "--config", tmp_path / "relay.yaml", cwd=tmp_path, env=env).stdout
    assert run(venv / "bin/python", "-m", "relay", "--version", cwd=tmp_path, env=env).stdout
    # All that the package reads at run time is in it.
    file = tmp_path / "own.yaml"
    file.write_text(config_text(tmp_path, 9))
    out = tmp_path / "out"
    with out.open("wb") as log:
        process = subprocess.Popen([relay, "serve", "--config", file], stdout=log, stderr=log, env=env, cwd=tmp_path)
    try:
        until(lambda: "event=ready" in out.read_text() or process.poll() is not None)
        process.terminate()
        assert process.wait(60) == 0, out.read_text()
    finally:
        process.kill()
        process.wait()
