"""What a configuration becomes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from relay.config import document
from relay.config.load import ConfigError, default_config, load
from relay.policy.backoff import Retry
from relay.policy.classes import DEFAULT_CLASS, InDoubt, Priority
from relay.policy.routing import Action, Facts, Match, Question
from relay.secrets import Reference
from relay.settings import Account, Address, Config, Dsn
from tests.certificates import Authority

Loader = Callable[[str], Config]
BASE = "accounts: {main: {host: 127.0.0.1}}\nroutes: [{via: main}]\n"
ROUTES = "routes: [{via: main}]\n"


@pytest.fixture
def config(tmp_path: Path) -> Loader:
    def made(text: str) -> Config:
        file = tmp_path / "relay.yaml"
        file.write_text(text)
        return load(file, {"HOME": "/nowhere"})

    return made


def problems(config: Loader, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config(text)
    return [f"{p.line}:{p.column}: {p.path}: {p.text}" for p in caught.value.problems]


def account(config: Loader, **keys: Any) -> Account:
    return config(yaml.safe_dump({"accounts": {"main": keys}, "routes": [{"via": "main"}]})).accounts["main"]


def test_the_smallest(config: Loader, tmp_path: Path) -> None:
    made = config(BASE)
    assert made.source == tmp_path / "relay.yaml"
    assert made.files == (tmp_path / "relay.yaml",)
    assert [(one.name, str(one.address), one.optional) for one in made.listen] == [
        ("local", "127.0.0.1:2525", False),
        ("local6", "[::1]:2525", True),
    ]
    assert made.admin.address == Address("127.0.0.1", 2580)
    assert made.admin.socket.name == "admin.sock"
    assert made.probes is None
    assert made.spool.path.name == "spool.db"
    assert made.spool.max_message_size == 25_000_000
    assert made.stop_timeout == 25.0
    assert made.classes == {"default": DEFAULT_CLASS}
    (route,) = made.routes.routes
    assert (route.name, route.action, route.via, route.match) == ("route-1", Action.VIA, ("main",), Match())
    assert route.origin == f"{tmp_path}/relay.yaml:2"
    assert "." in made.hostname
    assert made.warnings == ()


def test_everything_said(config: Loader, tmp_path: Path) -> None:
    made = config(
        BASE
        + """
hostname: relay.example.com
stop_timeout: 1500ms
log: {format: json, redact: true}
listen:
  - {name: apps, address: "localhost:0", honour: [route], line_endings: reject, max_recipients: 7,
     max_connections: {total: 3, client: 2}}
  - {address: "[::1]:0"}
admin: {socket: run/admin.sock, address: null}
probes: {address: "0.0.0.0:2581"}
spool: {path: spool.db, max_message_size: 1MiB, reserve: 0B, max_queued: 5, keep: 0s, keep_bodies: all}
classes:
  bulk: {priority: 3, in_doubt: hold, retry: {schedule: [5m, 2h], attempts: 10, give_up: 2d}}
  fast: {priority: immediate, retry: {first: 10s, factor: 1.5, cap: 1m, give_up: 1h}}
capture: {allow: ["*@example.com"]}
"""
    )
    assert (made.hostname, made.stop_timeout, made.log.format, made.log.redact) == (
        "relay.example.com",
        1.5,
        "json",
        True,
    )
    apps, other = made.listen
    assert (apps.address, apps.honour, apps.line_endings) == (Address("127.0.0.1", 0), frozenset({"route"}), "reject")
    assert (apps.max_recipients, apps.max_connections_total, apps.max_connections_client) == (7, 3, 2)
    assert (other.name, other.address) == ("listener-2", Address("::1", 0))
    assert made.admin.socket == tmp_path / "run/admin.sock"
    assert made.admin.address is None
    assert made.probes == Address("0.0.0.0", 2581)
    assert (made.spool.path, made.spool.max_message_size, made.spool.reserve) == (tmp_path / "spool.db", 1 << 20, 0)
    bulk, fast = made.classes["bulk"], made.classes["fast"]
    assert (bulk.priority, bulk.in_doubt) == (Priority.LOW, InDoubt.HOLD)
    assert bulk.retry == Retry(give_up=172800.0, attempts=10, schedule=(300.0, 7200.0))
    assert (fast.priority, fast.retry) == (Priority.IMMEDIATE, Retry(10.0, 1.5, 60.0, 3600.0))
    assert made.routes.capture == Question("recipient", ("*@example.com",))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("", Dsn("sender", "", 4 * 3600.0, "")),
        ("dsn: {}", Dsn()),
        ("dsn: {to: none}", Dsn(to="none")),
        ("dsn: {to: Ops@Example.com, delay_after: 90m}", Dsn(to="Ops@example.com", delay_after=5400.0)),
        ("dsn: {delay_after: null}", Dsn(delay_after=None)),
        ("dsn: {via: main, postmaster: pm@example.com}", Dsn(via="main", postmaster="pm@example.com")),
    ],
)
def test_dsn(config: Loader, said: str, meant: Dsn) -> None:
    assert config(f"{BASE}\n{said}\n").dsn == meant


@pytest.mark.parametrize(
    ("senders", "dsn", "told"),
    [
        ('["*@a.example"]', "{}", True),
        ('["*@a.example"]', "{to: none}", False),
        ('["*@a.example", ""]', "{}", False),
        ('["*"]', "{}", False),
    ],
)
def test_nobody_may_send_reports(config: Loader, senders: str, dsn: str, told: bool) -> None:
    text = f"accounts: {{main: {{host: 127.0.0.1, senders: {senders}}}}}\nroutes: [{{via: main}}]\ndsn: {dsn}\n"
    assert ["null sender" in w for w in config(text).warnings] == [True] * told


@pytest.mark.parametrize(
    ("rule", "dsn", "told"),
    [
        ("user: app", "{}", True),
        ("user: app", "{to: none}", False),
        ("user: app", "{via: main}", False),
        ('user: ["", app]', "{}", False),
        ("listener: local", "{}", True),
        ("client: 127.0.0.0/8", "{}", True),
        ('sender: "*@a.example"', "{}", True),
        ('sender: ""', "{}", False),
        ("not: {user: app}", "{}", False),
        ('recipient: "*@a.example"', "{}", False),  # somebody may hear
        ("class: default", "{}", False),
    ],
)
def test_no_rule_takes_reports(config: Loader, rule: str, dsn: str, told: bool) -> None:
    text = (
        "listen: [{name: local, address: '127.0.0.1:2525', auth: optional}]\n"
        "users: {app: {password_hash: '$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$"
        "Qh2lr6WXtkL0NDQr0lHRaTGxqfD0bmYmkE9IA/4RPA4'}}\n"
        f"accounts: {{main: {{host: 127.0.0.1}}}}\nroutes: [{{via: main, match: {{{rule}}}}}]\ndsn: {dsn}\n"
    )
    assert ["reports" in w for w in config(text).warnings] == [True] * told


def test_a_listener_that_could_not_start_is_told(config: Loader, tmp_path: Path) -> None:
    """`check` is good, and then the service does not start: that would be found at the restart, at night."""
    own = Authority(tmp_path)
    tls = "{mode: starttls, certificate: listener.pem, key: {file: listener.key}}"
    text = f"{BASE}listen: [{{address: '127.0.0.1:2525', tls: {tls}}}]\n"
    config(text)
    before = own.key.read_bytes()
    own.issue()
    own.key.write_bytes(before)
    with pytest.raises(ConfigError, match=r"listener\.pem: the key is not the one of this certificate"):
        config(text)


def test_an_account_for_reports_alone_is_used(config: Loader) -> None:
    text = "accounts: {main: {host: 127.0.0.1}, other: {host: 127.0.0.1}}\nroutes: [{via: main}]\ndsn: {via: other}\n"
    assert config(text).warnings == ()


def test_match(config: Loader) -> None:
    made = config(
        "accounts: {main: {host: 127.0.0.1}}\n"
        "routes:\n"
        "  - via: main\n"
        "    match:\n"
        '      sender: ["*@a.example", ""]\n'
        "      client: [10.0.0.0/8, 127.0.0.1]\n"
        "      header: {X-A: one, X-B: [two, three*]}\n"
        '      size: [">10kB", "<= 1 KiB"]\n'
        "      not: {tag: t, from: f@x}\n"
    )
    match = made.routes.routes[0].match
    assert match.all_of == (
        Question("sender", ("*@a.example", "")),
        Question("client", ("10.0.0.0/8", "127.0.0.1/32")),
        Question("header", ("X-A: one",)),
        Question("header", ("X-B: two", "X-B: three*")),
        Question("size", (">10kB", "<= 1 KiB"), ((">", 10_000), ("<=", 1024))),
    )
    assert match.none_of == (Question("from", ("f@x",)), Question("tag", ("t",)))
    facts = Facts(
        "", "r@x", client="10.1.2.3", from_="g@x", size=500, headers={"x-a": ("ONE",), "x-b": ("threefold",)}, tag=""
    )
    assert match.test(lambda q: q.ask(facts)) is True


def test_routes(config: Loader) -> None:
    made = config(
        "accounts: {a: {host: 127.0.0.1}, b: {host: 127.0.0.1}}\n"
        "routes:\n"
        "  - {match: {tag: '1'}, via: [a, b], copy: [X@Y.example]}\n"
        "  - {match: {tag: '2'}, reject: use the API}\n"
        "  - {match: {tag: '3'}, hold: true}\n"
        "  - {name: last, discard: true}\n"
    ).routes.routes
    assert [(r.name, r.action) for r in made] == [
        ("route-1", Action.VIA),
        ("route-2", Action.REJECT),
        ("route-3", Action.HOLD),
        ("last", Action.DISCARD),
    ]
    assert made[0].via == ("a", "b")
    assert made[0].copy == ("X@y.example",)
    assert made[1].text == "use the API"


@pytest.mark.parametrize(
    ("keys", "mode", "port"),
    [
        ({"host": "h.example"}, "opportunistic", 25),
        ({"host": "h.example", "port": 2525}, "opportunistic", 2525),
        ({"host": "h.example", "port": 587}, "starttls", 587),
        ({"host": "h.example", "port": 465}, "implicit", 465),
        ({"host": "h.example", "tls": "implicit"}, "implicit", 465),
        ({"host": "h.example", "tls": "starttls"}, "starttls", 25),
        ({"host": "h.example", "login": True}, "starttls", 587),
        ({"host": "h.example", "login": True, "port": 25}, "starttls", 25),
        ({"host": "h.example", "login": True, "tls": {"mode": "implicit"}}, "implicit", 465),
        ({"host": "localhost"}, "none", 25),
        ({"host": "::1", "port": 2526}, "none", 2526),
        ({"host": "127.0.0.9", "login": True}, "starttls", 587),
        ({"host": "127.0.0.9", "login": True, "tls": "none"}, "none", 587),
    ],
)
def test_tls_and_port(config: Loader, keys: dict[str, Any], mode: str, port: int) -> None:
    if keys.pop("login", False):
        keys |= {"username": "u", "password": {"env": "PATH"}}
    made = account(config, **keys)
    assert (made.tls.mode, made.port) == (mode, port)
    assert made.tls.verify is (mode in ("starttls", "implicit"))


def test_no_credentials_in_clear(config: Loader) -> None:
    for host in ("smtp.example.com", "10.0.0.1", {"env": "HOME"}):
        for mode in ("none", "opportunistic"):
            with pytest.raises(ConfigError, match="never sent in clear"):
                account(config, host=host, tls=mode, username="u", password={"env": "PATH"})


def test_references(config: Loader, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    (tmp_path / "ca.pem").write_text("x")
    made = account(
        config,
        host={"env": "HOME"},
        username={"command": ["printf", "u"]},
        password={"file": "secret"},
        tls={"mode": "starttls", "ca": "ca.pem", "minimum": 1.3},
    )
    assert made.host == Reference("env", "HOME")
    assert made.username == Reference("command", "printf", ("u",))
    assert made.password == Reference("file", str(tmp_path / "secret"))
    assert made.password.resolve() == "hunter2"
    assert made.tls.ca == tmp_path / "ca.pem"
    assert made.tls.minimum == "1.3"


SECRETS = """\
hunter2
{hunter2}
{hunter2: 1}
[hunter2]
{plain: hunter2}
{file: [hunter2]}
{file: a, b: hunter2}
{command: hunter2}
{hunter2: 1, hunter2: 2}
{5: 1, hunter2: 2}
{env: {hunter2: 1}}
{credential: ../hunter2}
{file: hunter2
!hunter2 x
!hunter2!x y
*hunter2
&hunter2
@hunter2
%hunter2
"hunter2
"hunter2\\q"
hunter2: x
- hunter2
"""


@pytest.mark.parametrize("secret", SECRETS.splitlines())
def test_a_secret_is_never_told(config: Loader, secret: str) -> None:
    text = f"{ROUTES}accounts:\n  main:\n    host: 127.0.0.1\n    username: u\n    password: {secret}\n"
    told = problems(config, text)
    assert told
    assert "hunter2" not in "".join(told)


def test_all_problems_at_once_in_order(config: Loader) -> None:
    text = (
        "hostname: 5\n"
        "accounts:\n"
        "  a: {host: h, prot: 1, connections: 0}\n"
        "  b: {host: h, username: u}\n"
        "routes:\n"
        "  - {via: [a, c]}\n"
        "  - {via: b, hold: no}\n"
        "  - {match: {class: x}}\n"
        "alarms: {}\n"
    )
    assert [told.split(": ")[0] for told in problems(config, text)] == [
        "1:11",  # hostname is no string
        "3:16",  # prot
        "3:38",  # connections
        "4:26",  # a username alone
        "6:15",  # no account c, though a is broken
        "7:20",  # hold
        "8:5",  # no action
        "8:21",  # no class x
        "9:1",  # alarms
    ]


def test_one_mistake_is_told_once(config: Loader) -> None:
    assert len(problems(config, "accounts: {a: {host: 5}}\nroutes: [{via: a}]\n")) == 1
    assert len(problems(config, "accounts: 5\nroutes: [{via: a}]\n")) == 1
    assert len(problems(config, BASE + "listen: 5\n")) == 1
    assert len(problems(config, "accounts: {a: {host: 127.0.0.1}}\nroutes: [{via: 5}]\n")) == 1
    assert len(problems(config, BASE.replace("main}", "main, copy: &x [5, 6]}"))) == 2


def test_problem_as_a_line(tmp_path: Path) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(BASE + "lisen: []\n")
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value) == f"{file}:3:1: lisen: unknown key 'lisen'; did you mean 'listen'?"


def test_warnings(config: Loader, tmp_path: Path) -> None:
    made = config(
        "accounts:\n"
        "  main: {host: h.example, tls: {mode: starttls, verify: false}}\n"
        "  spare: {host: 127.0.0.1}\n"
        "routes:\n"
        "  - {name: all, via: main}\n"
        "  - {name: never, hold: true}\n"
    )
    assert [w.removeprefix(f"{tmp_path}/relay.yaml:") for w in made.warnings] == [
        "2:57: accounts.main.tls.verify: any server can pose as this one; trust its certificate by `ca` or `pin`",
        "3:3: accounts.spare: no route uses this account",
        "6:5: routes.never: unreachable: route 'all' before it takes everything",
    ]


def test_a_rate_of_users_where_nobody_logs_in(config: Loader, tmp_path: Path) -> None:
    made = config(f"{BASE}\nlisten: [{{address: '127.0.0.1:2525', max_messages: {{user: 5/min}}}}]\n")
    (said,) = made.warnings
    assert said.endswith("listen[1].max_messages.user: it binds nobody: `auth: none` lets nobody log in here")


def test_include(config: Loader, tmp_path: Path) -> None:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    (folder / "b.yaml").write_text(
        "accounts: {b: {host: 127.0.0.1}}\nroutes: [{name: b, via: b}]\nlog: {redact: true}\n"
    )
    (folder / "a.yaml").write_text("accounts: {a: {host: 127.0.0.1}}\nroutes: [{name: a, match: {tag: a}, via: a}]\n")
    (folder / "c.yaml").write_text("# nothing yet\n")
    made = config(
        "include: [conf.d/*.yaml, conf.d/a.yaml, relay.yaml, none/*]\n"
        "accounts: {main: {host: 127.0.0.1}}\n"
        "log: {format: json}\n"
        "routes: [{name: m, match: {tag: m}, via: main}]\n"
    )
    assert [r.name for r in made.routes.routes] == ["m", "a", "b"]
    assert [r.origin for r in made.routes.routes] == [
        f"{tmp_path}/relay.yaml:4",
        f"{folder}/a.yaml:2",
        f"{folder}/b.yaml:2",
    ]
    assert list(made.accounts) == ["main", "a", "b"]
    assert (made.log.format, made.log.redact) == ("json", True)
    assert [f.name for f in made.files] == ["relay.yaml", "a.yaml", "b.yaml", "c.yaml"]


def test_problems_in_an_included_file_name_it(config: Loader, tmp_path: Path) -> None:
    (tmp_path / "part.yaml").write_text("routes:\n  - {name: a, via: x}\n  - {via: main\n")
    with pytest.raises(ConfigError) as caught:
        config("include: part.yaml\n" + BASE)
    assert str(caught.value).startswith(f"{tmp_path}/part.yaml:3:5: the map that begins here")
    (tmp_path / "part.yaml").write_text("routes:\n  - {name: a, via: x}\n")
    with pytest.raises(ConfigError) as caught:
        config("include: part.yaml\n" + BASE.replace("[{", "[{name: a, "))
    assert [str(p) for p in caught.value.problems] == [
        f"{tmp_path}/part.yaml:2:12: routes.a.name: a second route named 'a', the first at {tmp_path}/relay.yaml:3",
        f"{tmp_path}/part.yaml:2:20: routes.a.via: no account 'x'; there is direct, main",
    ]


def test_addresses_in_use(config: Loader) -> None:
    text = BASE + 'listen: [{address: "127.0.0.1:2580"}]\nprobes: {address: "0.0.0.0:2580"}\n'
    assert problems(config, text) == [
        "1:1: admin.address: 127.0.0.1:2580 is taken by listener 'listener-1' (127.0.0.1:2580); choose another port",
        "4:19: probes.address: 0.0.0.0:2580 is taken by listener 'listener-1' (127.0.0.1:2580); choose another port",
    ]


def test_default_config() -> None:
    held = default_config({"HOME": "/nowhere"})
    assert held.source is None
    assert [r.action for r in held.routes.routes] == [Action.HOLD]
    sunk = default_config({"HOME": "/nowhere"}, Address("127.0.0.1", 2526))
    assert [r.via for r in sunk.routes.routes] == [("sink",)]
    assert sunk.accounts["sink"].port == 2526


WORDS = sorted({key for _, section in document.sections() for key, _ in document.keys(section)} | {"default", "main"})
TEXTS = ["", "main", "*", "5m", "10MB", ">1MB", "none", "starttls", "127.0.0.1:2525", "direct", "10.0.0.0/8", "class"]
TEXTS += ["low", "use the API", "a@b.example", "::1", "/", "\x07", "ä" * 100]
SCALARS = st.sampled_from([None, True, 0, 5, -1, 1.5, float("nan"), 10**30]) | st.sampled_from(TEXTS)
TREES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.just("zz"), inner, max_size=4)
    ),
    max_leaves=12,
)


def only_config_error(file: Path) -> None:
    told = ["loaded"]
    try:
        load(file, {})
    except ConfigError as error:
        told = [str(problem) for problem in error.problems]
    assert told
    assert all("\n" not in line for line in told)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(WORDS), TREES, max_size=6))
@example({"routes": [{"via": [None, {}]}, 5], "listen": [[], {"name": {}}], "accounts": {"main": None}})
def test_any_tree_loads_or_is_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    data.pop("include", None)  # reads what it names
    file = tmp_path / "relay.yaml"
    file.write_text(yaml.safe_dump(data, allow_unicode=True))
    only_config_error(file)


ENTRY = {
    "accounts": st.dictionaries(
        st.just("main"), st.dictionaries(st.sampled_from(WORDS), TREES, max_size=5), max_size=2
    ),
    "classes": st.dictionaries(st.sampled_from(WORDS), st.dictionaries(st.sampled_from(WORDS), TREES, max_size=5)),
    "routes": st.lists(st.dictionaries(st.sampled_from(WORDS), TREES, max_size=4), max_size=3),
    "listen": st.lists(st.dictionaries(st.sampled_from(WORDS), TREES, max_size=4), max_size=3),
    "direct": st.dictionaries(st.just("mx-1"), st.dictionaries(st.sampled_from(WORDS), TREES, max_size=4), max_size=1),
    "pools": st.dictionaries(st.just("bulk"), st.fixed_dictionaries({"members": TREES}), max_size=1),
    "destinations": st.lists(st.dictionaries(st.sampled_from(WORDS), TREES, max_size=4), max_size=3),
    "dns": st.dictionaries(st.sampled_from(WORDS), TREES, max_size=3),
}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(st.fixed_dictionaries({}, optional=ENTRY))
def test_any_entries_load_or_are_refused(tmp_path: Path, data: dict[str, Any]) -> None:
    file = tmp_path / "relay.yaml"
    file.write_text(yaml.safe_dump(data, allow_unicode=True))
    only_config_error(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=100) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_load_or_are_refused(tmp_path: Path, raw: bytes) -> None:
    file = tmp_path / "relay.yaml"
    file.write_bytes(raw)
    only_config_error(file)


@pytest.mark.parametrize(
    ("account", "said"),
    [
        ("preset: sendgrid", "no login: Twilio SendGrid wants the word apikey"),
        ("preset: sendgrid, username: shop, password: {env: PATH}", "Twilio SendGrid wants the word apikey"),
        ("preset: sendgrid, password: {env: PATH}", ""),
        ("preset: gmail", "no login: Gmail and Google Workspace wants an OAuth2 token"),
        ("preset: gmail, host: 127.0.0.1", ""),
        ("preset: gmail-relay", ""),  # it may know us by our address
    ],
)
def test_a_provider_that_would_refuse_us_is_told(config: Loader, account: str, said: str) -> None:
    made = config(f"accounts:\n  main: {{{account}}}\nroutes:\n  - {{via: main}}\ndsn: {{to: none}}\n")
    assert [said in warning for warning in made.warnings] == [True] * bool(said)


def test_an_empty_secret_is_none(config: Loader, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("\n")
    with pytest.raises(ConfigError, match="secret is empty"):
        config(
            "accounts:\n  main: {host: a.example, username: u, password: {file: secret}}\nroutes:\n  - {via: main}\n"
        )
