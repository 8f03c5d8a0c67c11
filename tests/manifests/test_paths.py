"""Paths that mean the same everywhere."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.paths import find_collision, fold_path, path_problem

INVISIBLE = "has a control or invisible character"
EDGES = "has a component that begins or ends with a space, or ends with a dot"

PROBLEMS: list[tuple[str, str | None]] = [
    ("a", None),
    ("wheels/torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl", None),
    ("app/\ud55c\uae00/\ubb38\uc11c 1.txt", None),
    (".hidden/..file/...x", None),
    ("console/com10/auxiliary/nul_", None),
    ("x" * 255, None),
    ("/".join(["x" * 127] * 8), None),
    ("", "has the component ''"),
    ("/abs", "has the component ''"),
    ("a//b", "has the component ''"),
    ("a/", "has the component ''"),
    ("./a", "has the component '.'"),
    ("a/../b", "has the component '..'"),
    ("x" * 256, "has a component longer than 255 bytes"),
    ("\ud55c" * 86, "has a component longer than 255 bytes"),
    ("/".join(["x" * 127] * 8) + "/", "has the component ''"),
    ("/".join(["x" * 127] * 8) + "/y", "is longer than 1024 bytes"),
    ("a\x00b", INVISIBLE),
    ("a\nb", INVISIBLE),
    ("a\x7f", INVISIBLE),
    ("a\x85b", INVISIBLE),
    ("a\u202eb", INVISIBLE),
    ("a\u200bb", INVISIBLE),
    ("\ufeffa", INVISIBLE),
    ("a\u2028b", INVISIBLE),
    ("a\u2029b", INVISIBLE),
    *((f"a{char}b", f"has the character {char!r}") for char in '\\:*?"<>|'),
    (" a", EDGES),
    ("a ", EDGES),
    ("a/b /c", EDGES),
    ("a\u00a0", EDGES),
    ("a.", EDGES),
    ("a./b", EDGES),
    ("CON", "has the Windows device name 'CON'"),
    ("a/nul.txt", "has the Windows device name 'nul.txt'"),
    ("Com1.tar.gz/x", "has the Windows device name 'Com1.tar.gz'"),
    ("lpt\u00b9", "has the Windows device name 'lpt\u00b9'"),
    ("aux .txt", "has the Windows device name 'aux .txt'"),
    ("CONIN$", "has the Windows device name 'CONIN$'"),
    (unicodedata.normalize("NFD", "\ud55c"), "is not in Unicode normal form NFC"),
    ("e\u0301", "is not in Unicode normal form NFC"),
    ("\u212b", "is not in Unicode normal form NFC"),
    ("a\ud800", "is not Unicode text"),
]


@pytest.mark.parametrize(("path", "problem"), PROBLEMS)
def test_path_problem(path: str, problem: str | None) -> None:
    assert path_problem(path) == problem


@given(st.text(max_size=40))
def test_any_text_gets_a_verdict_and_a_good_path_stays_below_its_folder(path: str) -> None:
    if path_problem(path) is None:
        assert not path.startswith("/")
        assert ".." not in path.split("/")
        assert path == unicodedata.normalize("NFC", path)
        assert path.isprintable() or any(unicodedata.category(char) in {"Zs", "Cn", "Co"} for char in path)


COLLISIONS: list[tuple[list[str], tuple[str, str] | None]] = [
    ([], None),
    (["a", "b", "a.b", "c/a", "c/b", "c/d/a"], None),
    (["a/x", "a/y", "b/x"], None),
    (["README", "readme"], ("README", "readme")),
    (["stra\u00dfe", "STRASSE"], ("stra\u00dfe", "STRASSE")),
    (["\uac00", "\u1100\u1161"], ("\uac00", "\u1100\u1161")),
    (["\u00e9", "E\u0301"], ("\u00e9", "E\u0301")),
    (["a", "a/b"], ("a", "a/b")),
    (["a/b", "a"], ("a/b", "a")),
    (["A", "a/b"], ("A", "a/b")),
    (["a/b/c", "A/B"], ("a/b/c", "A/B")),
    (["Lib/x", "lib/y"], ("Lib/x", "lib/y")),
    (["a/Lib/x", "a/lib/y"], ("a/Lib/x", "a/lib/y")),
]


@pytest.mark.parametrize(("paths", "collision"), COLLISIONS)
def test_find_collision(paths: list[str], collision: tuple[str, str] | None) -> None:
    assert find_collision(paths) == collision


def test_fold_path() -> None:
    assert fold_path("Stra\u00dfe/\u212b") == "strasse/\u00e5"
    assert fold_path("E\u0301") == fold_path("\u00c9") == "\u00e9"
