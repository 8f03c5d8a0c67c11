"""Typed reading of documents: key paths, defaults, nearest keys."""

from collections.abc import Callable

import pytest

from manifests.errors import IntegrityError, SpecError
from manifests.fields import Fields, nearest_hint, shown, type_name

KNOWN = ("name", "count", "tags", "list", "table", "free", "mode")


def fields(**data: object) -> Fields:
    return Fields(data, where="doc: ", known=KNOWN)


def test_good_values_come_back_typed() -> None:
    got = fields(name="x", count=3, tags=["a", "b"], list=[1, "z"], table={"name": "y"}, free={"k": 1}, mode="on")
    assert got.text("name", pattern="[a-z]") == "x"
    assert got.integer("count", least=3) == 3
    assert got.texts("tags") == ("a", "b")
    assert list(got.items("list")) == [("doc: list[0]", 1), ("doc: list[1]", "z")]
    assert got.table("table", ("name",)).text("name") == "y"
    assert got.mapping("free") == {"k": 1}
    assert got.choice("mode", ("on", "off")) == "on"
    assert got.raw("count") == 3
    assert "name" in got


def test_missing_keys_take_their_default() -> None:
    got = fields()
    assert got.text("name", "d") == "d"
    assert got.integer("count", 0) == 0
    assert got.texts("tags", ()) == ()
    assert list(got.items("list")) == []
    assert got.mapping("free") == {}
    assert "name" not in got.table("table", ("name",))
    assert got.choice("mode", ("on", "off"), "off") == "off"
    assert got.raw("count") is None


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "missing": (lambda: fields().text("name"), "doc: name: missing"),
    "null": (lambda: fields(name=None).text("name"), "doc: name: missing"),
    "text": (lambda: fields(name=1).text("name"), "doc: name: expected a string, got an integer"),
    "pattern": (lambda: fields(name="X\n").text("name", pattern="X"), "doc: name: 'X\\n' does not have the form X"),
    "pattern is ASCII": (
        lambda: fields(name="\u0663").text("name", pattern=r"\d"),
        "doc: name: '\u0663' does not have the form \\d",
    ),
    "integer": (lambda: fields(count="1").integer("count"), "doc: count: expected an integer, got a string"),
    "boolean": (lambda: fields(count=True).integer("count"), "doc: count: expected an integer, got a boolean"),
    "least": (lambda: fields(count=-1).integer("count"), "doc: count: -1 is less than 0"),
    "choice": (lambda: fields(mode="onn").choice("mode", ("on", "off")), "doc: mode: 'onn' is not one of on, off"),
    "texts": (lambda: fields(tags="ab").texts("tags"), "doc: tags: expected a list of strings, got a string"),
    "texts of integers": (lambda: fields(tags=[1]).texts("tags"), "doc: tags: expected a list of strings, got a list"),
    "texts of a table": (lambda: fields(tags={}).texts("tags"), "doc: tags: expected a list of strings, got a table"),
    "items": (lambda: list(fields(list="ab").items("list")), "doc: list: expected a list, got a string"),
    "items of null": (lambda: list(fields(list=None).items("list")), "doc: list: expected a list, got nothing"),
    "table": (lambda: fields(table=[]).table("table", ()), "doc: table: expected a table, got a list"),
    "mapping": (lambda: fields(free=1.5).mapping("free"), "doc: free: expected a table, got a float"),
    "nested": (lambda: fields(table={}).table("table", ("a",)).text("a"), "doc: table.a: missing"),
    "not a table": (lambda: Fields([], where="doc", known=()), "doc: expected a table, got a list"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_values_are_named_by_key_path(case: str) -> None:
    call, message = WRONG[case]
    with pytest.raises(IntegrityError) as caught:
        call()
    assert str(caught.value) == message


def test_an_unknown_key_names_its_nearest() -> None:
    with pytest.raises(SpecError) as caught:
        Fields({"nmae": 1}, where="a.toml: ", known=KNOWN, error=SpecError)
    assert caught.value.message == "a.toml: nmae: unknown key"
    assert caught.value.hint == "did you mean 'name'?"


def test_an_unknown_key_far_from_all_lists_them() -> None:
    with pytest.raises(IntegrityError) as caught:
        Fields({"qqqqqq": 1}, where="doc: files[0]", known=("path", "size"))
    assert caught.value.message == "doc: files[0].qqqqqq: unknown key"
    assert caught.value.hint == "known: path, size"


def test_a_hostile_key_or_value_is_quoted_and_cut() -> None:
    with pytest.raises(IntegrityError) as caught:
        fields(**{"\x1b[2J": 1})
    assert caught.value.message == "doc: '\\x1b[2J': unknown key"
    with pytest.raises(IntegrityError) as caught:
        fields(mode="\x1b" + "y" * 10**6).choice("mode", ("on", "off"))
    assert caught.value.message == f"doc: mode: '\\x1b{'y' * 79}' is not one of on, off"
    with pytest.raises(IntegrityError) as caught:
        fields(name="y" * 10**6).text("name", pattern="x")
    assert caught.value.message == f"doc: name: '{'y' * 80}' does not have the form x"


def test_fail_carries_a_hint() -> None:
    error = fields().fail("name", "is odd", hint="try another")
    assert (error.message, error.hint) == ("doc: name: is odd", "try another")


def test_shown() -> None:
    assert shown("docs/a b.md") == "docs/a b.md"
    assert shown("\ud55c\uae00") == "\ud55c\uae00"
    assert shown("a\nb") == "'a\\nb'"
    assert shown("bad\udcff") == "'bad\\udcff'"
    assert shown("x" * 201) == f"'{'x' * 200}'"


@pytest.mark.parametrize(
    ("value", "name"),
    [({}, "a table"), ([], "a list"), ((), "a list"), ("", "a string"), (True, "a boolean"), (1, "an integer")],
)
def test_type_names(value: object, name: str) -> None:
    assert type_name(value) == name
    assert type_name(None) == "nothing"


def test_nearest_hint() -> None:
    assert nearest_hint("acelerator", ("platform", "accelerator")) == "did you mean 'accelerator'?"
    assert nearest_hint("zz", ("platform", "accelerator")) == "known: platform, accelerator"
