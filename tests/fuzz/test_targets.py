"""A little of each fuzz target in every test run, always the same; ``make fuzz`` does more, always other."""

import pytest

from tests.fuzz.targets import TARGETS, mutated, run_target


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_little_of(name: str) -> None:
    run_target(name, examples=60, number=1)


def test_edits() -> None:
    assert mutated(b"abcdef", [(1, 2, b"X")]) == b"aXdef"
    assert mutated(b"abc", [(7, 0, b"Z")]) == b"abcZ"
    assert mutated(b"abc", [(3, 9, b"!"), (0, 1, b"")]) == b"bc!"
