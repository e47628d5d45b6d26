"""What is told: log lines that nobody can forge, and metrics that a scraper can read."""

from __future__ import annotations

import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from relay import metrics
from relay.maillog import MailLog


def lines(format_: str = "logfmt", redact: bool = False, **fields: object) -> list[str]:
    stream = io.StringIO()
    MailLog(stream, format_, redact).event("accepted", **fields)
    return stream.getvalue().split("\n")


@pytest.mark.parametrize("format_", ["logfmt", "json"])
def test_yes_and_no_are_spelt_as_json_does(format_: str) -> None:
    assert re.search('takes_over"?[=:] ?true', lines(format_, takes_over=True)[0])


def test_logfmt() -> None:
    (line, end) = lines(id="1PGWBZ00001", sender="a@b.c", why='said "no"', size=12, seconds=1.23456, tag="", class_="x")
    assert end == ""
    assert re.match(r"(<6>)?time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z level=info event=accepted ", line)
    assert line.endswith(r'id=1PGWBZ00001 sender=a@b.c why="said \"no\"" size=12 seconds=1.235 class=x')


@given(st.text(max_size=60))
def test_no_value_makes_a_line_of_its_own(value: str) -> None:
    for format_ in ("logfmt", "json"):
        for redact in (False, True):
            (line, end) = lines(format_, redact, why=value, sender=value)
            assert end == ""
            assert "\r" not in line
            if format_ == "json":
                said = json.loads(line.partition("{")[1] + line.partition("{")[2])
                assert said["event"] == "accepted"
                assert redact or said.get("why", "") == value
            elif not redact and value and not value.isspace() and "=" in value:
                assert f"why={value} " not in line  # it is quoted: no key can be forged


@pytest.mark.parametrize("format_", ["logfmt", "json"])
def test_redact_hides_every_address(format_: str) -> None:
    (line, _) = lines(
        format_,
        True,
        sender="ann@shop.example",
        recipient="bob@x.example",
        why="550 <Bob@x.example> unknown, ask ann@shop.example",
    )
    assert not re.search(r"(?i)ann|bob@", line)
    assert len(set(re.findall(r"#[0-9a-f]{16}", line))) == 2  # the same one is the same hash


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    log = MailLog(stream)
    log.event("one")
    stream.full = False
    log.event("two")
    assert "event=two" in stream.getvalue()


def test_exposition_is_what_a_scraper_reads() -> None:
    counter = metrics.Counter("relay_test_things_total", "Things", ["egress"])
    counter.inc(2, 'odd"name\n\\')
    gauge = metrics.Gauge("relay_test_depth", "Depth")
    gauge.source = lambda: [((), 1.5)]
    histogram = metrics.Histogram("relay_test_seconds", "Seconds")
    for seconds in (0.001, 0.2, 1e9):
        histogram.observe(seconds)
    try:
        found = {f.name: f for f in text_string_to_metric_families(metrics.exposition().decode())}
    finally:
        for name in ("relay_test_things_total", "relay_test_depth", "relay_test_seconds"):
            del metrics._ALL[name]
    (sample,) = found["relay_test_things"].samples
    assert (sample.labels, sample.value) == ({"egress": 'odd"name\n\\'}, 2.0)
    assert [s.value for s in found["relay_test_depth"].samples] == [1.5]
    seconds = {(s.name, s.labels.get("le", "")): s.value for s in found["relay_test_seconds"].samples}
    assert seconds["relay_test_seconds_bucket", "0.005"] == 1
    assert seconds["relay_test_seconds_bucket", "0.25"] == 2
    assert seconds["relay_test_seconds_bucket", "+Inf"] == seconds["relay_test_seconds_count", ""] == 3
    assert all(f.documentation for f in found.values())
    assert all(name.startswith("relay_") for name in found)


@pytest.mark.parametrize(
    "address",
    ['"john doe"@example.com', "bounce+jane=customer.example@lists.test", "o'brien@example.com", "a/b@x.example"],
)
def test_redact_hides_odd_addresses_whole(address: str) -> None:
    (line, _) = lines("json", True, sender=address, why=f"550 <{address}> unknown; {address} is gone")
    assert not re.search(r"john|jane|brien|a/b|example\.com|lists\.test", line)
    assert len(set(re.findall(r"#[0-9a-f]{16}", line))) == 1
