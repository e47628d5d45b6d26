"""Lanes: who shares one, by which name, and that no stranger gets into another's."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from relay.nexthop import site
from relay.nexthop.hops import Hops
from relay.nexthop.site import LONGEST, Site, exchangers, provider_of, providers, site_of
from relay.policy.routing import Match, Question
from relay.reply import Reply
from relay.settings import ANYWHERE, Destination, Per

TABLE: dict[str, Any] = yaml.safe_load((Path(site.__file__).parent / "providers.yaml").read_text())


def hops(*groups: tuple[str, ...], domain: str = "example.com", **others: Any) -> Hops:
    return Hops(domain, groups, **others)


def rule(name: str, per: Per = "egress", *, mx: str = "", recipient: str = "", not_mx: str = "") -> Destination:
    asked = [Question(fact, (pattern,)) for fact, pattern in (("mx", mx), ("recipient", recipient)) if pattern]
    return Destination(name, Match(tuple(asked), (Question("mx", (not_mx,)),) if not_mx else ()), per=per)


def to(address: str | None) -> Callable[[Question], bool | None]:
    """Answers for one recipient, as the scheduler does. None: nothing is known of it."""

    def ask(question: Question) -> bool | None:
        assert question.fact == "recipient", "only this is asked"
        return None if address is None else question.matches(address)

    return ask


def name(found: Hops, *rules: Destination, recipient: str | None = "a@example.com") -> str:
    return site_of(found, to(recipient), rules).name


# -- by the hosts


def test_domains_with_the_same_hosts_share_a_lane_and_others_do_not() -> None:
    one = hops(("mx1.example.net", "mx2.example.net"), domain="a.example")
    two = hops(("mx2.example.net", "mx1.example.net"), domain="b.example")
    assert site_of(one, to("a@a.example"), ()) == Site("{mx1,mx2}.example.net", ANYWHERE)
    assert name(one) == name(two) == name(hops(("mx1.example.net",), ("mx2.example.net",)))
    assert name(two) != name(hops(("mx1.example.net",)))


@pytest.mark.parametrize(
    ("hosts", "text"),
    [
        ({"mx.example.net"}, "mx.example.net"),
        ({"mx2.example.net", "mx1.example.net"}, "{mx1,mx2}.example.net"),
        ({"a.mx.example.net", "b.in.example.net"}, "{a.mx,b.in}.example.net"),
        ({"mx.example.net", "a.mx.example.net"}, "{a.mx,mx}.example.net"),
        ({"example.net", "mx.example.net"}, "example.net,mx.example.net"),
        ({"mx.example.net", "mx.example.org"}, "mx.example.net,mx.example.org"),
        ({"a.example", "b.example"}, "a.example,b.example"),
        ({"mx.example.net", "localhost"}, "localhost,mx.example.net"),
        ({"a b.example.net"}, "a%20b.example.net"),
        ({"a,b.example.net", "{c}.example.net"}, "{%7Bc%7D,a%2Cb}.example.net"),
    ],
)
def test_exchangers(hosts: set[str], text: str) -> None:
    assert exchangers(hosts) == text


# Names as a stranger's DNS may have them: any octet in a label.
label = st.text(st.characters(max_codepoint=0x17F), min_size=1, max_size=12).filter(lambda s: "." not in s)
host = st.lists(
    st.one_of(st.sampled_from(["mx1", "mx2", "a", "net", "example", "google"]), label), min_size=1, max_size=5
).map(".".join)
hosts = st.sets(host, min_size=1, max_size=6)


@given(hosts, st.randoms())
def test_the_order_of_the_hosts_is_nothing(found: set[str], lot: Any) -> None:
    listed = sorted(found)
    lot.shuffle(listed)
    assert name(hops(tuple(listed))) == name(hops(tuple(sorted(found))))


@given(hosts, hosts)
def test_other_hosts_are_another_lane(one: set[str], two: set[str]) -> None:
    if not (provider_of(one) and provider_of(one) == provider_of(two)):
        assert (name(hops(tuple(one))) == name(hops(tuple(two)))) is (one == two)


@given(hosts)
def test_a_name_is_short_and_one_word(found: set[str]) -> None:
    text = name(hops(tuple(found)))
    assert re.fullmatch(r"[!-~]+", text)
    assert len(text) <= LONGEST + len("dns:")


def test_what_is_cut_is_still_told_apart() -> None:
    long = [f"mx-{n}.{'x' * 50}.example.net" for n in range(20)]
    one, two = name(hops(tuple(long))), name(hops(tuple(long[:-1])))
    assert one != two
    assert len(one) == len(two) == LONGEST


# -- nobody gets a name that is not the DNS's

RULES = (
    rule("bank", recipient="*@bank.example"),
    rule("gmail.com", recipient="*@gmail.com"),
    rule("google", mx="aspmx.l.google.com"),
    rule("mx", "mx", mx="*.per-mx.example"),
    rule("rest", "domain", recipient="*@rest.example"),
)


@given(
    st.one_of(host, st.sampled_from(["google", "bank", "gmail.com", "rest", "mx", "google/rest", "dns:google"])),
    st.booleans(),
)
def test_no_host_and_no_domain_is_called_as_a_rule_or_a_provider(stranger: str, refused: bool) -> None:
    found = (
        hops(domain=stranger, refusal=Reply(556, "5.1.10", "null MX"))
        if refused
        else hops((stranger,), domain=stranger)
    )
    got = site_of(found, to("a@stranger.example"), RULES)
    ours = {r.name for r in RULES} | {p.name for p in providers()} | {f"{p.name}/rest" for p in providers()}
    assert got.provider or got.rule is not ANYWHERE or got.name not in ours


def test_a_name_of_one_label_or_of_a_rule_says_that_it_is_the_dns() -> None:
    assert name(hops(("google",))) == "dns:google"
    assert name(hops(("gmail.com",)), *RULES) == "dns:gmail.com"
    assert name(hops(("mx.gmail.com",)), *RULES) == "mx.gmail.com"
    assert name(hops(("rest",)), rule("google", "mx")) == "google/dns:rest"


def test_a_rule_called_as_a_provider_leaves_the_others_of_that_provider_apart() -> None:
    mine = rule("google", mx="aspmx.l.google.com")
    assert name(hops(("aspmx.l.google.com",)), mine) == "google"
    assert site_of(hops(("gmail-smtp-in.l.google.com",)), to("a@gmail.com"), (mine,)) == Site(
        "google/rest", ANYWHERE, "google"
    )


# -- by a rule


def test_the_first_rule_that_holds_and_what_it_makes_one_lane() -> None:
    found = hops(("mx1.bank.example",), ("mx2.bank.example",), domain="shop.example")
    assert name(found, rule("b", mx="*.bank.example"), rule("c")) == "b"
    assert name(found, rule("first", mx="mx1.*")) == "{mx1,mx2}.bank.example", "not all hosts"
    assert name(found, rule("b", "relay", mx="*.bank.example")) == "b"
    assert name(found, rule("b", "mx", mx="MX?.*")) == "b/{mx1,mx2}.bank.example"
    assert name(found, rule("b", "domain", mx="mx?.*")) == "b/shop.example"
    assert name(found, rule("n", not_mx="*.bank.example"), rule("r", recipient="*@shop.example")) != "n"
    assert name(found, rule("r", recipient="*@shop.example"), recipient="a@shop.example") == "r"


def test_a_stranger_gets_into_no_lane_by_a_host_beside_his_own() -> None:
    found = hops(("aspmx.l.google.com", "mx.stranger.example"))
    google = rule("g", mx="*.google.com")
    assert name(found, google) == "aspmx.l.google.com,mx.stranger.example"
    assert name(found, rule("n", not_mx="*.google.com"), google) == "aspmx.l.google.com,mx.stranger.example"
    assert name(hops(("aspmx.l.google.com", "alt1.aspmx.l.google.com")), google) == "g"


def test_nor_by_one_before_or_after_his_own() -> None:
    """Only his own may be reached: the others lead nowhere, or his MTA-STS policy leaves them out."""
    google, others = rule("g", mx="*.google.com"), rule("n", not_mx="*.google.com")
    for found in (
        hops(("nobody.google.com",), ("mx.stranger.example",)),
        hops(("mx.stranger.example",), ("aspmx.l.google.com",)),
    ):
        assert name(found, others, google) == ",".join(sorted(found.names))


def test_what_is_not_known_of_a_recipient_holds_for_no_rule() -> None:
    denied = Destination("d", Match((), (Question("recipient", ("*@bank.example",)),)))
    found = hops(("mx.example.net",))
    assert name(found, rule("r", recipient="*"), denied, recipient=None) == "mx.example.net"
    assert name(found, denied) == "d"


def test_who_takes_no_mail_and_literals_are_known_by_the_domain() -> None:
    refused = hops(domain="example.com", refusal=Reply(556, "5.1.10", "it takes no mail"))
    assert name(refused, rule("all", mx="*")) == "example.com"
    assert name(refused, rule("r", recipient="*@example.com")) == "r"
    assert name(refused, rule("r", "mx", recipient="*@example.com")) == "r/example.com"
    literal = hops(("[IPv6:2001:db8::1]",), domain="[IPv6:2001:db8::1]", literal="2001:db8::1")
    assert name(literal, rule("all", mx="*")) == "[IPv6:2001:db8::1]"
    assert name(literal, rule("r", recipient="*@*"), recipient="a@[IPv6:2001:db8::1]") == "r"
    assert name(hops(("[192.0.2.1]",))) == "%5B192.0.2.1%5D", "a host called so by a stranger's MX is no literal"


# -- providers


@pytest.mark.parametrize(
    ("found", "whose"),
    [
        (["aspmx.l.google.com"], "google"),
        (["smtp.google.com"], "google"),
        (["aspmx2.googlemail.com", "aspmx3.googlemail.com"], "google"),
        (["contoso-com.mail.protection.outlook.com"], "microsoft"),
        (["contoso-com.a-v1.mx.microsoft"], "microsoft"),
        (["hotmail-com.olc.protection.outlook.com"], "outlook"),
        (["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net"], "yahoo"),
        (["mx-aol.mail.gm0.yahoodns.net"], "yahoo"),
        (["mx00.emig.gmx.net"], "gmx"),
        (["mx-ha02.web.de", "mx-ha03.web.de"], "gmx"),
        (["mxa-00360101.gslb.pphosted.com"], "proofpoint"),
        (["inbound-smtp.eu-west-1.amazonaws.com"], "amazon"),
        (["mx1.free.fr", "mx2.free.fr"], "free"),
        (["mx.free.fr"], ""),
        (["us-smtp-inbound-1.mimecast.com"], ""),
        (["aspmx.l.google.com", "mx.stranger.example"], ""),
        (["aspmx.l.google.com", "contoso-com.mail.protection.outlook.com"], ""),
        (["aspmx.l.google.com.stranger.example"], ""),
        (["notgoogle.com"], ""),
        (["google.com"], ""),
        ([], ""),
    ],
)
def test_whose_hosts(found: list[str], whose: str) -> None:
    assert provider_of(found) == whose
    if found:
        got = site_of(hops(tuple(found)), to(None), ())
        assert got.provider == whose
        assert (got.name == whose) is bool(whose)


def test_a_rule_over_a_providers_hosts_still_knows_whose_they_are() -> None:
    assert site_of(hops(("aspmx.l.google.com",)), to(None), (rule("big", mx="*.google.com"),)).provider == "google"


def test_the_table_is_whole() -> None:
    assert [p.name for p in providers()] == list(TABLE)
    assert len(TABLE) >= 35
    for called, entry in TABLE.items():
        assert re.fullmatch(r"[a-z0-9-]+", called), "no dot: it is no host's name"
        assert set(entry) == {"mx", "source", "seen"}
        sources = entry["source"] if isinstance(entry["source"], list) else [entry["source"]]
        assert sources and all(re.match(r"https?://[^/]+/", s) for s in sources)
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(entry["seen"]))
        for pattern in entry["mx"]:
            # A pattern that ended in a star, or in a whole top-level domain, would hold strangers' hosts.
            assert re.fullmatch(r"[a-z0-9*?.-]*?[a-z0-9-]+\.[a-z0-9-]+", pattern), pattern
            assert not re.search(r"[*?]", ".".join(pattern.split(".")[-2:])), pattern


def test_no_host_is_two_providers() -> None:
    for one in providers():
        for pattern in one.mx:
            example = pattern.replace("*", "mx9.in").replace("?", "1")
            assert [p.name for p in providers() if provider_of([example]) == p.name] == [one.name]
            others = [p.name for p in providers() if site.matches_any(p.mx, example)]
            assert others == [one.name], f"{example} is {others}"
