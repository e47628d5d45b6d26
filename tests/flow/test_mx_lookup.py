"""Where a domain's mail goes: what the DNS says of its hosts, what it does not say, and for how long either is believed."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import until
from nameserver import Says, Told

from relay import clock, resolver
from relay.metrics import declared
from relay.nexthop import mx
from relay.nexthop.hops import Addresses, Hops
from relay.nexthop.mx import MAX_HOSTS, Mx
from relay.reply import Reply
from relay.resolver import DnsTrouble, Found, Kind, Resolver, servers
from relay.resolver.memory import Failed, Memory

BOTH_LOOPS = True
PATIENT = 60.0  # seconds for a question that is answered: asked again before that, one would count as two
SOA = ("a.test. 7200 SOA ns.test. hostmaster.test. 1 60 60 60 20",)


@pytest.fixture(name="up")
def _up() -> Iterator[Told]:
    with Told() as up:
        yield up


@pytest.fixture(autouse=True)
def _once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "ONE_TRY", PATIENT)


def asking(up: Told, trust_ad: bool = False, timeout: float = PATIENT) -> Mx:
    return Mx(Resolver((up.server,), timeout, trust_ad=trust_ad))


def left(answer: Found | Hops) -> float:
    return answer.expires - clock.monotonic()


def holds(answer: Found | Hops, seconds: float, begun: float) -> bool:
    """For so long since it was asked, which was after `begun`."""
    return begun + seconds <= answer.expires <= clock.monotonic() + seconds


async def refusal(up: Told, domain: str) -> Reply:
    found = await asking(up).find(domain)
    assert found.refusal is not None and not found.hosts and not found.literal and found.domain == domain
    return found.refusal


# Hosts.


async def test_hosts_by_preference(up: Told) -> None:
    up.say("a.test", "MX", "20 c.test.", "10 B.Test.", "20 d.test.", "5 e.test.", "30 b.test.", ttl=60)
    begun = clock.monotonic()
    found = await asking(up).find("a.test")
    assert found.hosts == (("e.test",), ("b.test",), ("c.test", "d.test")), "one name at two preferences: the better"
    assert (found.domain, found.implicit, found.secure, found.refusal, found.literal) == (
        "a.test",
        False,
        False,
        None,
        "",
    )
    assert found.names == ("e.test", "b.test", "c.test", "d.test") and holds(found, 60, begun)


async def test_a_domain_without_mx_is_its_own_host(up: Told) -> None:
    up.say("a.test", "MX")
    up.say("a.test", "A")
    up.say("a.test", "AAAA", "2001:db8::1")
    begun = clock.monotonic()
    found = await asking(up).find("a.test")
    assert found.implicit and found.hosts == (("a.test",),) and found.refusal is None and holds(found, 300, begun)
    up.say("a.test", "AAAA", ttl=7)
    assert await refusal(up, "a.test") == Reply(550, "a.test has neither MX nor address", "5.4.4")
    assert left(await asking(up).find("a.test")) <= 7
    up.told["a.test", "AAAA"] = Says(rcode="SERVFAIL")
    said = await refusal(up, "a.test")
    assert (said.code, said.enhanced) == (451, "4.4.3") and "SERVFAIL" in said.text


async def test_null_mx(up: Told) -> None:
    up.say("a.test", "MX", "0 .")
    assert await refusal(up, "a.test") == Reply(556, "a.test accepts no mail (null MX, RFC 7505)", "5.1.10")
    up.say("a.test", "MX", "0 .", "10 b.test.")
    assert (await asking(up).find("a.test")).hosts == (("b.test",),), "beside others it says nothing"


async def test_what_is_no_host_is_no_mx(up: Told) -> None:
    wrong = ["192.0.2.1.", r"2001\:db8\:\:1.", r"mail\032one.test.", r"x\000.test.", r"\228\246.test.", "10.0.0.300."]
    for name in wrong:
        up.say("a.test", "MX", f"10 {name}", "20 .")
        said = await refusal(up, "a.test")
        shown = name.removesuffix(".").replace(r"\:", ":")
        assert said == Reply(550, f"the MX of a.test names {shown}, which is no host", "5.4.4")
    up.say("a.test", "MX", *(f"10 {name}" for name in wrong), "30 b_1.test.")
    assert (await asking(up).find("a.test")).hosts == (("b_1.test",),)


async def test_there_is_no_such_domain(up: Told) -> None:
    assert await refusal(up, "a.test") == Reply(550, "no such domain: a.test", "5.1.2")
    up.told["a.test", "MX"] = Says(["a.test. 300 CNAME b.test."], rcode="NXDOMAIN")
    assert await refusal(up, "a.test") == Reply(550, "no such domain: b.test, of which a.test is an alias", "5.1.2")


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED", "NOTIMP", None, "CUT"])
async def test_trouble_defers(up: Told, rcode: str | None) -> None:
    up.told["a.test", "MX"] = None if rcode is None else Says(cut=True) if rcode == "CUT" else Says(rcode=rcode)
    if rcode == "CUT":  # over TCP, too
        up.mangle = lambda wire: [wire[:2] + bytes([wire[2] | 2]) + wire[3:]]
    begun = clock.monotonic()
    found = await asking(up, timeout=2.0 if rcode in (None, "CUT") else PATIENT).find("a.test")
    said = found.refusal
    assert said is not None and (said.code, said.enhanced) == (451, "4.4.3") and not found.hosts
    assert f"127.0.0.1 port {up.port}: " in said.text and said.text.startswith(
        "the DNS can't tell where mail for a.test"
    )
    assert rcode in (None, "CUT") or rcode in said.text
    assert begun + 5 < found.expires <= clock.monotonic() + 10


async def test_aliases(up: Told) -> None:
    up.told["a.test", "MX"] = Says(["a.test. 90 CNAME b.test.", "b.test. 300 MX 10 c.test."])
    begun = clock.monotonic()
    found = await asking(up).find("a.test")
    assert found.hosts == (("c.test",),) and found.domain == "a.test" and holds(found, 90, begun)
    up.told["c.test", "A"] = Says(["c.test. 60 CNAME d.test."])  # which it does not follow
    up.say("d.test", "A", "192.0.2.1")
    up.told["c.test", "AAAA"] = Says(["c.test. 60 CNAME d.test."])
    up.say("d.test", "AAAA")
    assert await asking(up).addresses("c.test") == Addresses(("192.0.2.1",), canonical="d.test")
    up.told["l.test", "MX"] = Says(["l.test. 60 CNAME m.test."])
    up.told["m.test", "MX"] = Says(["m.test. 60 CNAME l.test."])
    assert "aliases" in (await refusal(up, "l.test")).text
    up.told["o.test", "MX"] = Says(["o.test. 60 CNAME p.test.", "p.test. 60 CNAME o.test."])
    assert (await refusal(up, "o.test")).code == 451


# Literals, and what is no domain.


@pytest.mark.parametrize(
    ("literal", "address"),
    [
        ("[192.0.2.1]", "192.0.2.1"),
        ("[ipv6:2001:db8::1]", "2001:db8::1"),
        ("[IPv6:2001:DB8:0:0::1]", "2001:db8::1"),
        ("[IPv6:::ffff:192.0.2.1]", "::ffff:c000:201"),
    ],
)
async def test_address_literals(up: Told, literal: str, address: str) -> None:
    found = await asking(up).find(literal)
    assert found.literal == address and found.hosts == ((literal.lower(),),) and found.refusal is None
    there = await asking(up).addresses(found.names[0])
    assert there == (Addresses(v6=(address,)) if ":" in address else Addresses(v4=(address,))) and not up.questions


@pytest.mark.parametrize(
    "domain",
    [
        *("[192.0.2]", "[192.0.2.256]", "[192.0.2.1", "[]", "[2001:db8::1]", "[ipv6:192.0.2.1]", "[ipv6:fe80::1%eth0]"),
        *("[x400:something]", "[tag:[192.0.2.1]]", "[ipv6:]", "[ipv6:[::1]]", "[ 192.0.2.1 ]", "[010.0.0.1]"),
        *("192.0.2.1", "a..test", ".test", "", "a b.test", "a.test/", "x" * 64 + ".test", ".".join(["abcdefg"] * 32)),
        *(
            "\u2603" * 70 + ".test",
            "\ud800.test",
            "xn--\u00e4.test",
            "a\u200d.test",
            "a\n.test",
            "a.test\n",
            "a\\.test",
        ),
    ],
)
async def test_what_can_be_no_domain(up: Told, domain: str) -> None:
    said = await refusal(up, domain)
    assert (said.code, said.enhanced) == (550, "5.1.2") and said.text.isprintable() and not up.questions


async def test_a_domain_of_other_letters(up: Told) -> None:
    up.say("xn--bcher-kva.test", "MX", "10 b.test.")
    found = await asking(up).find("B\u00fccher.test.")
    assert found.domain == "xn--bcher-kva.test" and found.hosts == (("b.test",),)


async def test_a_name_may_be_as_long_as_names_are(up: Told) -> None:
    longest = ".".join(["x" * 63, "y" * 63, "z" * 63, "w" * 61])
    assert len(longest) == 253
    up.say(longest, "MX", f"10 {longest}.")
    assert (await asking(up).find(longest)).hosts == ((longest,),)


async def test_more_records_than_anybody_needs(up: Told) -> None:
    lines = [f"a.test. 300 MX {n} h{n}.test." for n in range(300, 0, -1)]
    up.told["a.test", "MX"] = Says(lines, cut=True)
    found = await asking(up).find("a.test")
    assert found.names == tuple(f"h{n}.test" for n in range(1, MAX_HOSTS + 1))


async def test_whatever_a_server_sends_is_hosts_or_a_refusal(up: Told) -> None:
    lots, found = random.Random(7), set[int]()

    def mangle(wire: bytes) -> list[bytes]:
        raw = bytearray(wire)
        for _ in range(0 if raw[2] & 2 else lots.randint(0, 3)):  # over TCP alone, where nothing may be overheard
            at = lots.randrange(2, len(raw) + 1)
            raw[at : at + lots.choice([0, 1, 1, 1, 9])] = lots.randbytes(lots.choice([0, 1, 1, 1, 9]))
        return [bytes(raw)]

    up.mangle = mangle
    up.told["a.test", "MX"] = Says(["a.test. 0 MX 10 b.test.", "a.test. 0 MX 20 c.b.test."], cut=True)
    up.told["c.test", "MX"] = Says(["c.test. 0 CNAME b.test."], SOA, cut=True)
    up.told["b.test", "MX"] = Says(authority=SOA, cut=True)
    for name in ("b.test", "c.test"):
        up.told[name, "A"] = Says([f"{name}. 0 A 192.0.2.1"], cut=True)
        up.told[name, "AAAA"] = Says([f"{name}. 0 AAAA 2001:db8::1"], cut=True)
    for _ in range(60):
        hops = await asking(up, timeout=0.2).find(lots.choice(["a.test", "b.test", "c.test", "d.test"]))
        assert bool(hops.hosts) is (hops.refusal is None)
        assert all(name.isascii() and name == name.lower() for name in hops.names)
        found.add(hops.refusal.code if hops.refusal else 250)
    assert found >= {250, 451, 550}


# Addresses.


async def test_addresses(up: Told) -> None:
    up.say("b.test", "A", "192.0.2.1", "192.0.2.2")
    up.say("b.test", "AAAA", "2001:db8::1")
    found = await asking(up).addresses("b.test")
    assert set(found.v4) == {"192.0.2.1", "192.0.2.2"} and found.v6 == ("2001:db8::1",)
    assert not found.secure and not found.canonical
    assert await asking(up).addresses("missing.test") == Addresses()


async def test_addresses_in_trouble(up: Told) -> None:
    up.say("b.test", "A", "192.0.2.1", ad=True)
    up.told["b.test", "AAAA"] = Says(rcode="SERVFAIL")
    assert await asking(up).addresses("b.test") == Addresses(("192.0.2.1",))
    found = await asking(up, trust_ad=True).addresses("b.test")
    assert found == Addresses(("192.0.2.1",), secure=True), "trouble takes no proof away"
    up.say("b.test", "A")
    with pytest.raises(DnsTrouble, match="SERVFAIL"):
        await asking(up).addresses("b.test")
    up.told["b.test", "A"] = Says(rcode="REFUSED")
    with pytest.raises(DnsTrouble):
        await asking(up).addresses("b.test")
    assert all(task is asyncio.current_task() for task in asyncio.all_tasks())


async def test_both_kinds_are_asked_at_the_same_time(up: Told) -> None:
    both = threading.Event()
    up.told["b.test", "A"] = Says(["b.test. 60 A 192.0.2.1"], until=both)
    up.told["b.test", "AAAA"] = Says(["b.test. 60 AAAA 2001:db8::1"], until=both)
    asking_both = asyncio.ensure_future(asking(up).addresses("b.test"))
    await until(lambda: len(up.questions) == 2)
    both.set()
    assert (await asking_both).v4


# DNSSEC.


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize("ad", [True, False])
async def test_the_dns_proved_it(up: Told, trust: bool, ad: bool) -> None:
    up.say("a.test", "MX", "10 b.test.", ad=ad)
    up.say("b.test", "A", "192.0.2.1", ad=ad)
    up.say("b.test", "AAAA", ad=ad)
    up.say("b.test", "MX", ad=ad)
    up.told["gone.test", "MX"] = Says(authority=SOA, rcode="NXDOMAIN", ad=ad)
    up.told["c.test", "MX"] = Says(["c.test. 60 CNAME b.test.", "b.test. 60 MX 10 b.test."], ad=ad)
    asker = asking(up, trust)
    for domain in ("a.test", "b.test", "gone.test", "c.test"):
        assert (await asker.find(domain)).secure is (trust and ad), domain
    assert (await asker.addresses("b.test")).secure is (trust and ad)


async def test_all_of_it_must_be_proven(up: Told) -> None:
    up.told["a.test", "MX"] = Says(["a.test. 60 CNAME b.test."])
    up.say("b.test", "MX", "10 c.test.", ad=True)
    assert not (await asking(up, True).find("a.test")).secure
    up.told["a.test", "MX"] = Says(["a.test. 60 CNAME b.test."], ad=True)
    assert (await asking(up, True).find("a.test")).secure
    up.say("b.test", "MX", "10 c.test.")
    assert not (await asking(up, True).find("a.test")).secure
    up.say("c.test", "A", "192.0.2.1", ad=True)
    up.say("c.test", "AAAA", "2001:db8::1")
    assert not (await asking(up, True).addresses("c.test")).secure


# What is remembered.


async def test_kinds_of_records(up: Told) -> None:
    up.say("_25._tcp.b.test", "TLSA", "3 1 1 " + "ab" * 32)
    up.say("b.test", "TXT", '"one" "two"')
    resolver = Resolver((up.server,), PATIENT)
    table: dict[tuple[str, Kind], tuple[object, ...]] = {
        ("_25._TCP.b.test", "TLSA"): ((3, 1, 1, b"\xab" * 32),),
        ("b.test", "TXT"): (b"onetwo",),
    }
    for (name, kind), records in table.items():
        assert (await resolver.look(name, kind)).records == records
    for name in ("a..b", "", "x" * 64, "a\\"):
        found = await resolver.look(name, "A")
        assert not found.records and not found.exists


@pytest.mark.parametrize(
    ("says", "seconds"),
    [
        (Says(["a.test. 100 CNAME b.test.", "b.test. 50 MX 10 c.test."]), 50),
        (Says(["a.test. 50 CNAME b.test.", "b.test. 100 MX 10 c.test."]), 50),
        (Says(["a.test. 1000000 MX 10 c.test."]), 86400),
        (Says(["a.test. 2147483648 MX 10 c.test."]), 0),  # RFC 2181 §8
        (Says(authority=SOA), 20),
        (Says(authority=["test. 15 SOA ns.test. x.test. 1 60 60 60 86400"], rcode="NXDOMAIN"), 15),
        (Says(authority=["test. 86400 SOA ns.test. x.test. 1 60 60 60 86400"], rcode="NXDOMAIN"), 3600),
        (Says(authority=["other. 5 SOA ns.test. x.test. 1 60 60 60 5"], rcode="NXDOMAIN"), 60),
        (Says(), 60),
        (Says(["a.test. 30 CNAME b.test."], ["test. 90 SOA ns.test. x.test. 1 60 60 60 90"], "NXDOMAIN"), 30),
    ],
)
async def test_how_long_it_holds(up: Told, says: Says, seconds: int) -> None:
    up.told["a.test", "MX"] = says
    resolver, begun = Resolver((up.server,), PATIENT), clock.monotonic()
    found = await resolver.look("a.test", "MX")
    assert holds(found, seconds, begun)
    assert found.exists is (says.rcode == "NOERROR")
    assert await resolver.look("A.test", "MX") == found or not seconds
    assert len(up.questions) == (1 if seconds else 2)
    resolver.clear()
    await resolver.look("a.test", "MX")
    assert len(up.questions) == (2 if seconds else 3)


async def test_it_is_asked_anew_once_it_is_over(up: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    up.say("a.test", "MX", "10 b.test.", ttl=60)
    asker = asking(up)
    first = await asker.find("a.test")
    assert await asker.find("a.test") is first and len(up.questions) == 1
    up.say("a.test", "MX", "10 c.test.", ttl=0)
    now = clock.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: now() + 60)
    assert left(first) <= 0
    assert asker.known("A.test") is first, "stale, but known"
    assert (await asker.find("a.test")).hosts == (("c.test",),)
    assert (await asker.find("a.test")).hosts == (("c.test",),)
    assert len(up.questions) == 3, "what holds for no time is asked each time"


async def test_a_reload_forgets(up: Told) -> None:
    up.say("a.test", "MX", "10 b.test.")
    asker = asking(up)
    assert asker.known("a.test") is None
    first = await asker.find("a.test")
    forgotten = threading.Event()
    up.told["a.test", "MX"] = Says(["a.test. 300 MX 10 c.test."], until=forgotten)
    asker.forget()
    assert asker.known("a.test") is None
    running = asyncio.create_task(asker.find("a.test"))
    await until(lambda: len(up.questions) == 2)
    asker.forget()
    forgotten.set()
    assert (await running).hosts != first.hosts and asker.known("a.test") is None, "what was asked before is not kept"
    await asker.find("a.test")
    assert len(up.questions) == 3


async def test_trouble_is_remembered_for_a_while(up: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    up.told["a.test", "MX"] = Says(rcode="SERVFAIL")
    resolver = Resolver((up.server,), PATIENT)
    said = set()
    for _ in range(50):
        with pytest.raises(DnsTrouble) as error:
            await resolver.look("a.test", "MX")
        said.add(str(error.value))
    assert len(said) == 1 and len(up.questions) <= 2
    monkeypatch.setattr("relay.resolver.TROUBLE", 0.1)
    resolver.clear()
    with pytest.raises(DnsTrouble):
        await resolver.look("a.test", "MX")
    up.say("a.test", "MX", "10 b.test.")
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            assert (await resolver.look("a.test", "MX")).records
            break
        except DnsTrouble:
            await asyncio.sleep(0.02)
    else:
        pytest.fail("it is in trouble for ever")


async def test_those_who_ask_the_same_share_one_question(up: Told) -> None:
    given_up = threading.Event()
    up.told["a.test", "MX"] = Says(["a.test. 300 MX 10 b.test."], until=given_up)
    asker = asking(up)
    tasks = [asyncio.create_task(asker.find("a.test")) for _ in range(100)]
    await until(lambda: up.questions)
    for task in tasks[::2]:
        task.cancel()
    given_up.set()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in found] == [True, False] * 50
    assert all(isinstance(one, Hops) and one.hosts == (("b.test",),) for one in found[1::2])
    assert up.questions == [("a.test", "MX")]


async def test_a_question_that_nobody_waits_for_is_answered(up: Told) -> None:
    given_up = threading.Event()
    up.told["a.test", "MX"] = Says(["a.test. 300 MX 10 b.test."], until=given_up)
    resolver = Resolver((up.server,), PATIENT)
    task = asyncio.create_task(resolver.look("a.test", "MX"))
    await until(lambda: up.questions)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    given_up.set()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert (await resolver.look("a.test", "MX")).records and len(up.questions) == 1


async def test_waiting_for_a_turn_is_no_silence(up: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "AT_ONCE", 2)
    names = [f"n{n}.test" for n in range(40)]
    for name in names:
        up.told[name, "MX"] = Says([f"{name}. 300 MX 10 b.test."], wait=0.3)
    asker = asking(up, timeout=5.0)
    found = await asyncio.gather(*map(asker.find, names))  # the last ones wait for 6 s
    assert all(one.hosts for one in found) and len(up.questions) >= 40


async def test_questions_are_counted(up: Told) -> None:
    up.say("a.test", "MX", "10 b.test.")
    up.say("b.test", "MX")
    up.told["c.test", "MX"] = Says(rcode="SERVFAIL")
    asked, cached = declared()["relay_dns_questions_total"].values, declared()["relay_dns_cached_total"].values
    before, known = dict(asked), cached.get(("MX",), 0)
    resolver = Resolver((up.server,), PATIENT)
    for name in ("a.test", "a.test", "b.test", "missing.test", "c.test", "c.test", "no..name"):
        try:
            await resolver.look(name, "MX")
        except DnsTrouble:
            assert name == "c.test"
    assert {result: asked["MX", result] - before.get(("MX", result), 0) for _, result in asked if _ == "MX"} == {
        "ok": 1,
        "none": 1,
        "nxdomain": 1,
        "trouble": 1,
    }
    assert cached["MX",] - known == 2


def test_memory_is_bounded() -> None:
    memory, end = Memory(10), clock.monotonic() + 60
    for n in range(30):
        memory.put(f"n{n}", "MX", Found(expires=end))
    assert len(memory) == 10 and memory.get("n19", "MX") is None and memory.get("n20", "MX") is not None
    memory.put("n20", "MX", Failed("trouble", end))  # anew: the youngest
    memory.put("m", "MX", Found(expires=end))
    assert memory.get("n20", "MX") == Failed("trouble", end) and memory.get("n21", "MX") is None
    memory.put("large", "TXT", Found((b"x" * 4000,), expires=end))
    assert len(memory) == 3, "it takes the room of eight"
    memory.put("huge", "TXT", Found((b"x" * 60000,), expires=end))
    assert len(memory) == 0
    memory.put("over", "A", Found(expires=clock.monotonic()))
    assert len(memory) == 0


async def test_known_domains_are_bounded(up: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "KEPT", 10)
    asker = asking(up)
    for n in range(12):
        await asker.find(f"[192.0.2.{n}]")
    assert asker.known("[192.0.2.1]") is None and asker.known("[192.0.2.2]") is not None
