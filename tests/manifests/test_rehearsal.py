"""What of the network is excused: by host, by who asks, never without a reason."""

import pytest

from manifests.canonical import Json
from manifests.errors import IntegrityError
from manifests.rehearsal import (
    AllowedAttempt,
    RecordedAgreement,
    RehearsalPlan,
    declares_int8,
    parse_agreement,
    parse_allowed,
    parse_plan,
    plan_of,
)

QUICK = RecordedAgreement(texts=12, cosine_min="0.998700", cosine_mean="0.999100", top=10, overlap="0.9500")
ONE = RecordedAgreement(texts=1, cosine_min="-0.100000", cosine_mean="-0.100000")
CALLERS = ("socket.py:962 in getaddrinfo", "phone/client.py:6 in call_home")


@pytest.mark.parametrize(
    ("host", "module", "address", "covered"),
    [
        ("telemetry.example", "", "telemetry.example:443", True),
        ("telemetry.example:443", "", "telemetry.example:443", True),
        ("telemetry.example:80", "", "telemetry.example:443", False),
        ("*.example", "phone", "telemetry.example:443", True),
        ("*", "socket", "telemetry.example", True),
        ("*", "client", "telemetry.example", True),
        ("*", "pho", "telemetry.example", False),
        ("*", "call_home", "telemetry.example", False),
        ("fe80::*", "", "fe80::1:2", True),
        ("*.example", "", "telemetry.example.com:443", False),
    ],
)
def test_what_an_excuse_covers(host: str, module: str, address: str, covered: bool) -> None:  # a table's column
    assert AllowedAttempt(host=host, module=module, why="x").covers(address, CALLERS) is covered


def test_a_plan_is_read_as_it_was_written() -> None:
    plan = RehearsalPlan(
        imports={"pyyaml": ("yaml",), "spec": ("yaml", "json")},
        allowed=(AllowedAttempt(host="*", module="m", why="w"),),
        agreement={"quick": QUICK, "one": ONE},
    )
    assert parse_plan(plan.to_json(), "x") == plan
    assert plan_of({"rehearsal": plan.to_json()}) == plan
    assert plan.modules == ("yaml", "json")
    assert (plan.distribution_of("yaml"), plan.distribution_of("os")) == ("pyyaml", "")
    assert plan.reason_for("h", ("m.py:1 in f",)) == "w"
    assert plan.reason_for("h", ("n.py:1 in f",)) == ""
    assert plan_of({}).to_json() == {}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"why": "x"}, "a: expected a host, a module, or both"),
        ({"host": "h"}, "a.why: missing"),
        ({"host": "h", "why": " "}, "a.why: say why it may be"),
        ({"hosts": "h", "why": "x"}, "a.hosts: unknown key"),
    ],
)
def test_an_excuse_that_says_too_little(item: Json, words: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_allowed(item, "a")
    assert caught.value.message == words.replace("a: expected", "a.host: expected")
    with pytest.raises(IntegrityError, match=r"manifest\.json: launch\.rehearsal\.imports\.x: expected a list"):
        plan_of({"rehearsal": {"imports": {"x": "y"}}})


def test_an_agreement_in_words() -> None:
    assert QUICK.words == (
        "12 texts, cosine at least 0.998700, on average 0.999100, 0.9500 of the nearest 10 in common"
    )
    assert ONE.words == "1 texts, cosine at least -0.100000, on average -0.100000"
    assert ONE.to_json() == {
        "cosine_mean": "-0.100000",
        "cosine_min": "-0.100000",
        "overlap": None,
        "texts": 1,
        "top": 0,
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"texts": 0}, "a.texts: 0 is less than 1"),
        ({"cosine_min": "nan"}, "a.cosine_min: 'nan' does not have the form -?[0-9]\\.[0-9]{1,9}"),
        ({"overlap": "all"}, "a.overlap: 'all' does not have the form -?[0-9]\\.[0-9]{1,9}"),
        ({"median": "1.0"}, "a.median: unknown key"),
    ],
)
def test_an_agreement_that_is_none(change: dict[str, Json], words: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_agreement({**QUICK.to_json(), **change}, "a")
    assert caught.value.message == words


@pytest.mark.parametrize(
    ("settings", "declared"),
    [
        ({}, False),
        ({"int8": True}, True),
        ({"int8": False}, False),
        ({"int8": "true"}, False),
        ({"performance": {"int8": True}}, True),
        ({"performance": {"batch_size": 12}}, False),
    ],
)
def test_whether_settings_ask_for_8_bit_numbers(settings: dict[str, Json], declared: bool) -> None:  # a table's column
    assert declares_int8(settings) is declared
