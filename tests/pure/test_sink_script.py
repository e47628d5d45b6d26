"""Scripts: what they say, what is wrong with them, and how they are played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from relay.cli.sink import PROFILES
from relay.config.document import keys, sections
from relay.config.problems import ConfigError
from relay.sink import Profile, named, read_script
from relay.sink.document import tables
from relay.sink.play import Facts, Player, Verdict
from relay.sink.profile import Reply, Stage
from relay.sink.script import names

ROOT = Path(__file__).parents[2]
ME = object()
MAIL = Facts("192.0.2.1", "shop", "app@example.com", ("b@example.net",))


def script(folder: Path, text: str) -> Profile:
    file = folder / "script.yaml"
    file.write_text(text)
    return read_script(file)


def play(folder: Path, text: str, seed: int = 0) -> Player:
    return Player(script(folder, text), seed)


def said(verdict: Verdict | None) -> str:
    return "" if verdict is None else str(verdict.reply) if verdict.reply else verdict.then


def test_the_command_line_offers_every_profile() -> None:
    assert names() == PROFILES


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_is_whole(name: str) -> None:
    profile = named(name)
    assert profile.limits or profile.rules or profile.greylist
    for limit in profile.limits:
        assert limit.name
    sped = profile.faster(60)
    for slow, fast in zip(profile.limits, sped.limits, strict=True):
        if slow.rate:
            rate, burst = slow.tokens
            assert fast.tokens == (pytest.approx(60 * rate), burst)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("limit: []", "1:1: limit: unknown key 'limit'; did you mean 'limits'?"),
        ("profile: sess", "1:10: profile: no profile 'sess'; did you mean ses?"),
        ("limits:\n- {rate: 5, at: mail, reply: 450 no}", "2:10: limits[1].rate: expected a rate such as 100/min"),
        ("limits:\n- {rate: 5/s, at: mail}", "2:3: limits[1]: 'reply' is missing"),
        ("limits:\n- {at: mail, reply: 450 no}", "2:3: limits[1]: a limit has either `rate` or `at_once`"),
        ("limits:\n- {rate: 5/s, at_once: 2, at: mail, reply: 450 no}", "a limit has either"),
        ("limits:\n- {at_once: 2, burst: 2, at: mail, reply: 450 no}", "`burst` belongs to `rate`"),
        ("limits:\n- {rate: 5/s, at: content, reply: 450 no}", "nothing can be refused within the content"),
        ("limits:\n- {rate: 5/s, at: connect, reply: 450 no}", "nobody has logged in there yet"),
        ("limits:\n- {rate: 5/s, at: mail, counts: recipients, reply: 450 no}", "recipients are counted by"),
        ("limits:\n- {rate: 5/s, at: noon, reply: 450 no}", "2:19: limits[1].at: expected one of connect, ehlo"),
        ("limits:\n- {rate: 5/s, at: mail, reply: 250 yes}", "a refusal has a code of 400 to 599, found 250"),
        ("rules:\n- {at: mail, reply: soon}", "2:21: rules[1].reply: expected a reply such as 450 4.2.0 Try again"),
        ("rules:\n- {at: mail, reply: 450 5.1.1 no}", "expected a reply such as"),
        (
            'rules:\n- {at: mail, reply: "450 4.2.0 in {minutes}"}',
            "no placeholder {minutes}; known are {id}, {seconds}",
        ),
        ('rules:\n- {at: mail, reply: "450 4.2.0 gr\u00fc\u00dfe"}', "lines of printable ASCII"),
        ("rules:\n- {at: mail}", "2:3: rules[1]: does nothing; give it `reply`, `then` or `delay`"),
        ("rules:\n- {at: mail, then: close}", "`then: close` needs a `reply`"),
        ("rules:\n- {at: mail, then: drop, reply: 450 no}", "`then: drop` says nothing: remove `reply`"),
        ("rules:\n- {at: content, reply: 450 no}", "nothing can be said within the content"),
        ("rules:\n- {at: mail, then: drop, kept: true}", "`kept` belongs to `at: dot`"),
        ("rules:\n- {at: mail, then: drop, share: 5}", "expected a share such as 2%"),
        ("rules:\n- {at: mail, then: drop, share: 0%}", "expected a share such as 2%"),
        ("rules:\n- {at: mail, then: drop, match: {header: {A: b}}}", "the header is known at dot"),
        ("rules:\n- {at: ehlo, then: drop, match: {sender: a}}", "the sender is known from mail on"),
        ("rules:\n- {at: mail, then: drop, match: {recipient: a}}", "recipients are known from rcpt on"),
        ("rules:\n- {at: ehlo, then: drop, match: {account: a}}", "an account is known from auth on"),
        ("rules:\n- {at: mail, delay: 2}", "expected a duration such as 5m"),
        ("greylist: {wait: 1m, per: [colour]}", "expected one of client, account, sender, recipient"),
        ("offers: [CHUNKING]", "expected one of PIPELINING, 8BITMIME"),
        ("login: {mechanisms: [CRAM-MD5]}", "expected one of PLAIN, LOGIN, XOAUTH2, OAUTHBEARER"),
        ("rules: [{at: mail", "1:9: the map that begins here lacks its }"),
    ],
)
def test_a_mistake_is_told_with_its_place(tmp_path: Path, text: str, wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        script(tmp_path, text)
    assert str(tmp_path / "script.yaml") in str(caught.value)
    assert wrong in str(caught.value)


def test_an_empty_script_is_a_plain_sink(tmp_path: Path) -> None:
    assert script(tmp_path, "") == Profile()


def test_a_script_extends_a_profile(tmp_path: Path) -> None:
    made = script(
        tmp_path,
        "profile: ses\nlogin: {refused: 535 no}\n"
        "limits: [{name: rate, at: dot, rate: 1/s, per: all, reply: 454 slower}]\n"
        "rules: [{at: rcpt, match: {recipient: no@*}, reply: 550 5.1.1 nobody}]\n",
    )
    base = named("ses")
    assert [limit.name for limit in made.limits] == ["rate", "daily"]
    assert made.limits[0].tokens == (1.0, 1)
    assert made.login == base.login.model_copy(update={"refused": Reply(535, "", "no")})
    assert (made.hostname, made.recipients, len(made.rules)) == (base.hostname, base.recipients, 1)


def test_a_reply_of_several_lines(tmp_path: Path) -> None:
    made = script(tmp_path, "rules:\n- at: mail\n  reply: |\n    550 5.4.5 Too much.\n     Go to {id}\n")
    assert made.rules[0].reply == Reply(550, "5.4.5", "Too much.\n Go to {id}")
    assert made.rules[0].reply.filled({"id": "7"}) == "Too much.\n Go to 7"


def test_limits_refill_and_refused_tries_take_nothing(tmp_path: Path) -> None:
    player = play(tmp_path, "limits: [{at: mail, rate: 30/min, burst: 2, reply: '450 4.7.1 in {seconds} s'}]")
    assert [said(player.ask("mail", ME, MAIL, 0.0)) for _ in range(2)] == ["", ""]
    for _ in range(5):
        verdict = player.ask("mail", ME, MAIL, 0.5)
        assert verdict is not None
        assert (verdict.kind, verdict.then, verdict.wait, verdict.seconds) == ("throttled", "reply", 1.5, "2")
    assert player.ask("mail", ME, MAIL, 2.0) is None
    ((_, whose, bucket),) = player.buckets()
    assert (whose, bucket.took, bucket.refused) == ("shop", 3, 5)


def test_of_two_limits_none_is_taken_from_where_one_refuses(tmp_path: Path) -> None:
    text = "limits:\n- {name: a, at: mail, rate: 1/d, burst: 5, reply: 450 a}\n- {at: mail, rate: 1/s, reply: 450 b}"
    player = play(tmp_path, text)
    player.ask("mail", ME, MAIL, 0.0)
    assert {said(player.ask("mail", ME, MAIL, 0.0)) for _ in range(9)} == {"450 b"}
    assert [bucket.took for _, _, bucket in player.buckets()] == [1, 1]


def test_each_account_client_or_all_has_its_own_bucket(tmp_path: Path) -> None:
    def first(whose: str, facts: Facts) -> bool:
        player = play(tmp_path, f"limits: [{{at: mail, rate: 1/d, per: {whose}, reply: 450 no}}]")
        player.ask("mail", ME, MAIL, 0.0)
        return player.ask("mail", ME, facts, 0.0) is None

    other = Facts("192.0.2.2", "books")
    assert [first(whose, other) for whose in ("account", "client", "all")] == [True, True, False]
    assert [first(whose, Facts("192.0.2.2", "shop")) for whose in ("account", "client")] == [False, True]
    assert not first("account", MAIL)


def test_recipients_are_counted_together(tmp_path: Path) -> None:
    player = play(tmp_path, "limits: [{at: dot, rate: 10/s, counts: recipients, reply: '454 {seconds}'}]")
    many = Facts(recipients=tuple("abcdef"))
    assert player.ask("dot", ME, many, 0.0) is None
    verdict = player.ask("dot", ME, many, 0.0)
    assert verdict is not None
    assert verdict.wait == pytest.approx(0.2)
    never = player.ask("dot", ME, Facts(recipients=tuple("abcdefghijk")), 100.0)
    assert never is not None
    assert never.seconds == "86400"


def test_places_are_free_again_once_a_session_has_left(tmp_path: Path) -> None:
    player = play(tmp_path, "limits: [{at: dot, at_once: 1, reply: 432 4.3.2 busy}]")
    you = object()
    assert player.ask("dot", ME, MAIL, 0.0) is None
    assert player.ask("dot", ME, MAIL, 0.0) is None
    assert said(player.ask("dot", you, MAIL, 0.0)) == "432 4.3.2 busy"
    player.leave(ME)
    assert player.ask("dot", you, MAIL, 0.0) is None
    ((_, _, places),) = player.places()
    assert (places.highest, places.refused) == (1, 1)


def test_greylisting_counts_from_the_first_try(tmp_path: Path) -> None:
    player = play(tmp_path, "greylist: {wait: 60s}")
    assert said(player.ask("rcpt", ME, MAIL, 0.0)) == "450 4.2.0 Greylisted, try again in {seconds} seconds"
    verdict = player.ask("rcpt", ME, MAIL, 59.0)
    assert verdict is not None
    assert (verdict.kind, verdict.seconds) == ("greylisted", "1")
    assert player.ask("rcpt", ME, MAIL, 60.0) is None
    other = Facts("192.0.2.1", "shop", "app@example.com", ("b@example.net", "c@example.net"))
    assert player.ask("rcpt", ME, other, 61.0) is not None


def test_rules_come_before_limits_and_take_nothing_of_them(tmp_path: Path) -> None:
    text = (
        "limits: [{at: rcpt, rate: 1/s, reply: 450 slow}]\nrules: [{at: rcpt, match: {recipient: NO@*}, reply: 550 no}]"
    )
    player = play(tmp_path, text)
    for _ in range(3):
        assert said(player.ask("rcpt", ME, Facts(recipients=("b@x.example", "no@x.example")), 0.0)) == "550 no"
    assert player.ask("rcpt", ME, Facts(recipients=("no@x.example", "b@x.example")), 0.0) is None


@pytest.mark.parametrize(
    ("match", "facts", "fires"),
    [
        ("sender: ['*@x.example', '']", {"sender": "a@x.example"}, True),
        ("sender: ['*@x.example', '']", {"sender": ""}, True),
        ("sender: '*@x.example'", {"sender": "a@y.example"}, False),
        ("account: shop, sender: a@*", {"account": "shop", "sender": "a@x.example"}, True),
        ("account: shop, sender: a@*", {"account": "books", "sender": "a@x.example"}, False),
        ("client: '192.0.2.*'", {"client": "192.0.2.9"}, True),
        ("recipient: b@*", {"recipients": ("a@x.example", "b@x.example")}, True),
        ("header: {Subject: '*urgent*'}", {"header": {"subject": ("this is URGENT",)}}, True),
        ("header: {Subject: '*urgent*'}", {"header": {}}, False),
    ],
)
def test_what_a_rule_matches(tmp_path: Path, match: str, facts: dict[str, Any], fires: bool) -> None:
    player = play(tmp_path, f"rules: [{{at: dot, match: {{{match}}}, reply: 451 no}}]")
    assert (player.ask("dot", ME, Facts(**facts), 0.0) is not None) is fires


def test_after_times_and_share(tmp_path: Path) -> None:
    player = play(tmp_path, "rules: [{at: mail, after: 2, times: 3, reply: 450 no}]")
    assert [said(player.ask("mail", ME, MAIL, 0.0)) for _ in range(7)] == ["", "", *["450 no"] * 3, "", ""]
    shares = []
    for seed in (0, 0, 1):
        player = play(tmp_path, "rules: [{at: mail, share: 10%, reply: 450 no}]", seed)
        shares.append([player.ask("mail", ME, MAIL, 0.0) is not None for _ in range(1000)])
    assert shares[0] == shares[1] != shares[2]
    assert 70 < sum(shares[0]) < 130


def test_delays_add_up(tmp_path: Path) -> None:
    text = "rules:\n- {at: dot, delay: 2s}\n- {at: dot, delay: 1s, share: 100%}\n- {at: dot, reply: 451 no, delay: 1s, times: 1}"
    player = play(tmp_path, text)
    refused, passed = player.ask("dot", ME, MAIL, 0.0), player.ask("dot", ME, MAIL, 0.0)
    assert refused == Verdict("refused", "reply", Reply(451, "", "no"), 4.0)
    assert passed == Verdict("delayed", delay=3.0)
    assert Player(script(tmp_path, text).faster(10)).ask("dot", ME, MAIL, 0.0) == Verdict(
        "refused", "reply", Reply(451, "", "no"), pytest.approx(0.4)
    )


@pytest.mark.parametrize(
    ("stage", "reply", "then", "ends"),
    [
        ("mail", "421 4.7.0 go", "", "close"),
        ("mail", "421 4.7.0 go", ", then: reply", "reply"),
        ("mail", "450 no", "", "reply"),
        ("mail", "450 no", ", then: close", "close"),
        ("connect", "554 no", "", "close"),
    ],
)
def test_when_the_connection_is_closed(tmp_path: Path, stage: Stage, reply: str, then: str, ends: str) -> None:
    player = play(tmp_path, f"rules: [{{at: {stage}, reply: {reply}{then}}}]")
    verdict = player.ask(stage, ME, Facts(), 0.0)
    assert verdict is not None
    assert verdict.then == ends


def test_every_key_is_documented() -> None:
    page = (ROOT / "docs" / "sink.md").read_text()
    assert tables() in page, "put in what `python -m relay.sink.document` prints"
    for title, section in sections(Profile):
        for name, field in keys(section):
            assert f"| `{name}` |" in page
            assert (field.description or "").endswith("."), f"{title}.{name}"


def test_every_option_is_documented() -> None:
    from relay.cli.sink import sink

    page = (ROOT / "docs" / "sink.md").read_text()
    for option in sink.params:
        assert option.opts[0] in page, option.opts[0]
