"""Canonical JSON: what is refused, and that one value has one spelling."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.canonical import MAX_DEPTH, Json, encode_canonical, parse_canonical
from manifests.errors import IntegrityError

HEAD = "doc: not canonical JSON: "
SPELLING = HEAD + "its bytes differ from the canonical spelling of its content"
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def parse(data: bytes) -> Json:
    return parse_canonical(data, what="doc", max_size=10_000)


@given(VALUES)
def test_what_was_encoded_parses_back(value: Json) -> None:
    assert parse(encode_canonical(value)) == value


@given(VALUES)
def test_another_spelling_is_refused(value: Json) -> None:
    data = json.dumps(value, indent=1).encode()
    with pytest.raises(IntegrityError) as caught:
        parse(data)
    assert str(caught.value) == SPELLING


def test_the_canonical_form() -> None:
    value: Json = {"b": [1, -2, None, True], "a": '\ud55c"\\\n\x7f', "\u00e9": {}}
    expected = b'{"a":"\\ud55c\\"\\\\\\n\\u007f","b":[1,-2,null,true],"\\u00e9":{}}\n'
    assert encode_canonical(value) == expected


REFUSED = {
    "duplicate key": (b'{"a":1,"a":2}\n', HEAD + "duplicate key 'a'"),
    "duplicate key spelled otherwise": (b'{"a":1,"\\u0061":2}\n', HEAD + "duplicate key 'a'"),
    "long duplicate key": (b'{"%b":1,"%b":2}\n' % (b"k" * 900, b"k" * 900), HEAD + f"duplicate key '{'k' * 80}'"),
    "float": (b"[1.5]\n", HEAD + "1.5 is not an integer"),
    "exponent": (b"[1e3]\n", HEAD + "1e3 is not an integer"),
    "float of many digits": (b"[0.%b]\n" % (b"1" * 900), HEAD + f"0.{'1' * 38} is not an integer"),
    "NaN": (b"[NaN]\n", HEAD + "NaN is not an integer"),
    "Infinity": (b"[-Infinity]\n", HEAD + "-Infinity is not an integer"),
    "2**53": (b"[9007199254740992]\n", HEAD + "integer 9007199254740992 is outside 53 bits"),
    "-2**53": (b"[-9007199254740992]\n", HEAD + "integer -9007199254740992 is outside 53 bits"),
    "many digits": (b"[%b]\n" % (b"9" * 9000), HEAD + f"integer {'9' * 20} is outside 53 bits"),
    "minus zero": (b"[-0]\n", SPELLING),
    "white space": (b"[1, 2]\n", SPELLING),
    "no newline": (b"[1]", SPELLING),
    "two newlines": (b"[1]\n\n", SPELLING),
    "carriage return": (b"[1]\r\n", SPELLING),
    "unsorted": (b'{"b":1,"a":2}\n', SPELLING),
    "needless escape": (b'["\\u0041"]\n', SPELLING),
    "upper-case escape": (b'["\\uD55C"]\n', SPELLING),
    "raw UTF-8": ('["\ud55c"]\n'.encode(), HEAD + "'ascii' codec can't decode byte 0xed in position 2: ordinal not in"),
    "byte order mark": (b"\xef\xbb\xbf[]\n", HEAD + "'ascii' codec can't decode byte 0xef in position 0"),
    "lone surrogate": (b'["\\ud800"]\n', HEAD + "'utf-8' codec can't encode character '\\ud800' in position 0"),
    "lone surrogate in a key": (b'{"\\udfff":1}\n', HEAD + "'utf-8' codec can't encode character '\\udfff'"),
    "trailing data": (b"[1]\n[2]\n", HEAD + "Extra data: line 2 column 1 (char 4)"),
    "trailing NUL": (b"[1]\n\0", HEAD + "Extra data: line 2 column 1 (char 4)"),
    "nothing": (b"", HEAD + "Expecting value: line 1 column 1 (char 0)"),
    "cut short": (b'{"a":', HEAD + "Expecting value: line 1 column 6 (char 5)"),
    "control character": (b'["\x01"]\n', HEAD + "Invalid control character at: line 1 column 3 (char 2)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    data, message = REFUSED[case]
    with pytest.raises(IntegrityError) as caught:
        parse(data)
    assert str(caught.value).startswith(message)
    assert len(str(caught.value)) < 200


def test_53_bits_are_the_limit() -> None:
    assert parse(b"[9007199254740991,-9007199254740991]\n") == [2**53 - 1, -(2**53) + 1]


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_the_depth_has_a_limit(opening: bytes, closing: bytes) -> None:
    def nested(depth: int) -> bytes:
        return opening * (depth - 1) + b"1" + closing * (depth - 1) + b"\n"

    parse(nested(MAX_DEPTH))
    for depth in (MAX_DEPTH + 1, 1200):
        with pytest.raises(IntegrityError) as caught:
            parse(nested(depth))
        assert str(caught.value) == "doc: nested deeper than 16 levels"


def test_a_depth_that_ends_the_parser_itself_is_refused() -> None:
    with pytest.raises(IntegrityError, match=r"^doc: nested deeper than 16 levels$"):
        parse_canonical(b"[" * 500_000, what="doc", max_size=10**6)


def test_the_size_is_checked_before_parsing() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_canonical(b"[" * 11, what="doc", max_size=10)
    assert str(caught.value) == "doc: 11 bytes, at most 10 are allowed"


@pytest.mark.parametrize("value", [1.5, {"a": 0.0}, [[float("nan")]], ((1.0,),)])
def test_encoding_a_float_is_a_bug_of_the_caller(value: Json) -> None:
    with pytest.raises(TypeError, match="canonical JSON holds no floats; write a decimal string"):
        encode_canonical(value)
