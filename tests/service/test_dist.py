"""What is handed out: the wheel, installed and at work with its manual and completions; the recipe of the image, and its command as
the image runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from relay.cli import manual
from relay.config.load import load

from .support import ENV, ROOT, Recorder, config_text, find, needs, needs_root, run, until

STAGES = re.split(r"^FROM ", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source archive, which is so shown to be whole."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it. What it depends on is this one's: nothing is fetched."""
    folder = tmp_path_factory.mktemp("fresh")
    run(sys.executable, "-m", "venv", folder, timeout=300)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, timeout=300)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_has_all_that_the_relay_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "relay").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts  # what others compile just now has names of its own there
    }
    assert data <= names
    assert {"relay/config/relay.yaml", "relay/config/relay.service"} <= names
    shared = {name.partition(".data/data/share/")[2] for name in names} - {""}
    assert shared == {manual.PAGE, *manual.COMPLETIONS.values()}


def serve(command: list[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, cwd="/")
    try:
        until(lambda: b"event=ready" in log.read_bytes() or process.poll() is not None, 90.0, "relay is ready")
        assert process.poll() is None, log.read_text()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def mailed(relay: Path, env: dict[str, str], log: Path) -> None:
    """One mail goes through."""
    found = re.search(r"event=listening listener=\S+ address=127\.0\.0\.1 port=(\d+)", log.read_text())
    assert found
    with_port = ["--server", f"127.0.0.1:{found[1]}"]
    run(relay, "send", *with_port, "--from", "app@example.com", "--to", "you@example.net", env=env, input="hello\n")


def test_installed_it_sends_a_mail_and_has_its_manual(installed: Path, tmp_path: Path) -> None:
    relay, env = installed / "bin/relay", ENV | {"RELAY_ENDPOINT": str(tmp_path / "admin.sock")}
    where = run(installed / "bin/python", "-c", "import relay; print(relay.__file__)", env=env, cwd="/").stdout
    assert where.startswith(str(installed))
    with Recorder() as upstream:
        file, log = tmp_path / "relay.yaml", tmp_path / "log"
        file.write_text(config_text(tmp_path, upstream.port))
        process = serve([str(relay), "serve", "--config", str(file)], env, log)
        try:
            mailed(relay, env, log)
            assert upstream.wait()[0].recipients == ["you@example.net"]
            run(relay, "status", "--health", env=env)
        finally:
            process.terminate()
            assert process.wait(30) == 0, log.read_text()
    dead = run(relay, "status", "--health", env=env, check=False)
    assert dead.returncode == 69 and "no relay" in dead.stderr
    assert (installed / "share" / manual.PAGE).read_text().startswith(".TH RELAY 1")


@needs("bash")
def test_bash_completes(installed: Path) -> None:
    script = installed / "share" / manual.COMPLETIONS["bash"]
    ask = f'source {script}; COMP_WORDS=(relay accounts s); COMP_CWORD=2; _relay_completion relay; echo "${{COMPREPLY[@]}}"'
    env = ENV | {"PATH": f"{installed}/bin:{ENV['PATH']}"}
    assert run("bash", "--norc", "-c", ask, env=env).stdout.split() == ["set"]


# -- the image


def said(stage: str, instruction: str) -> list[str]:
    """What a stage says by an instruction, lines joined."""
    return re.findall(rf"^{instruction} (.*)$", stage.replace("\\\n", " "), re.MULTILINE)


def test_the_recipe_of_the_image() -> None:
    _, build, last = STAGES
    for source in [word for line in said(build, "COPY") for word in line.split()[:-1]]:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in (ROOT / ".dockerignore").read_text().splitlines(), source
    ((uid, gid),) = [user.split(":") for user in said(last, "USER")]
    # The last stage installs nothing, and gives its user these two folders, nothing above them.
    assert said(last, "RUN") == [f"install -d -o {uid} -g {gid} -m 0700 /var/lib/relay /run/relay"]
    assert said(last, "COPY") == ["--from=build /opt/relay /opt/relay"]
    assert uid.isdecimal() and gid.isdecimal() and int(uid) > 999
    assert json.loads(said(last, "VOLUME")[0]) == ["/var/lib/relay", "/run/relay"]
    assert said(last, "STOPSIGNAL") == ["SIGTERM"]
    assert json.loads(said(last, "ENTRYPOINT")[0]) == ["relay"]
    assert json.loads(said(last, "CMD")[0])[0] == "serve"
    (health,) = said(last, "HEALTHCHECK")
    assert json.loads(health.partition(" CMD ")[2]) == ["relay", "status", "--health"]
    assert "latest" not in "".join(STAGES)


def test_its_configuration_is_a_good_one(tmp_path: Path) -> None:
    """The one of docs/container.md, with a secret that is here."""
    text, *_ = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/container.md").read_text(), re.DOTALL)
    secret, file = tmp_path / "main", tmp_path / "relay.yaml"
    secret.write_text("correct horse\n")
    file.write_text(text.replace("/run/secrets/main", str(secret)))
    assert load(file).warnings == ()


@pytest.fixture
def sandbox(tmp_path: Path) -> tuple[list[str], Path]:
    """What `docker run --read-only --cap-drop=ALL` gives: another user, nothing to write to but the volumes."""
    state, runtime = tmp_path / "state", tmp_path / "run"
    for folder in (state, runtime):
        folder.mkdir(mode=0o700)
    binds = [
        "--tmpfs",
        "/run",
        "--bind",
        str(runtime),
        "/run/relay",
        "--tmpfs",
        "/var/lib",
        "--bind",
        str(state),
        "/var/lib/relay",
    ]
    return [
        "bwrap", "--unshare-user", "--unshare-pid", "--as-pid-1", "--uid", "10001", "--gid", "10001", "--cap-drop", "ALL",
        "--die-with-parent", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", *binds, "--chdir", "/",
    ], runtime  # fmt: skip


@needs("bwrap")
@needs_root
def test_its_command_runs_as_in_the_image(installed: Path, sandbox: tuple[list[str], Path], tmp_path: Path) -> None:
    """No user of that number, no home, a root that is read only, process 1: mail goes through, health is asked, SIGTERM ends it."""
    inside, runtime = sandbox
    probe = run(*inside, "true", check=False)
    if probe.returncode:
        pytest.skip(f"no namespaces here: {probe.stderr.strip()}")
    relay, log = installed / "bin/relay", tmp_path / "log"
    env = {"PATH": f"{installed}/bin:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    with Recorder() as upstream:
        file = tmp_path / "relay.yaml"
        text = config_text(tmp_path, upstream.port, spool=Path("/var/lib/relay"))
        file.write_text(re.sub(r"socket: \S+,", "socket: /run/relay/admin.sock,", text))
        process = serve([*inside, str(relay), "serve", "--config", str(file)], env, log)
        try:
            outside = env | {"RELAY_ENDPOINT": str(runtime / "admin.sock")}
            mailed(relay, outside, log)
            assert upstream.wait()[0].recipients == ["you@example.net"]
            run(relay, "status", "--health", env=outside)
            (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            os.kill(int(child), 15)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
    assert "event=stopped" in log.read_text() and find("bwrap")
