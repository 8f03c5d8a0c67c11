"""The error tree and its exit codes."""

import pytest

from manifests import errors

CODES = {
    errors.SealiftError: 1,
    errors.UsageError: 2,
    errors.SpecError: 2,
    errors.SourceError: 3,
    errors.TrustError: 4,
    errors.IntegrityError: 5,
    errors.HostError: 6,
    errors.DiskError: 7,
    errors.InstallError: 8,
    errors.AdapterError: 9,
    errors.PolicyError: 10,
}


@pytest.mark.parametrize(("error", "code"), CODES.items())
def test_each_class_has_its_exit_code_and_one_root(error: type[errors.SealiftError], code: int) -> None:
    assert error.exit_code == code
    assert issubclass(error, errors.SealiftError)


def test_no_class_is_left_out_of_the_table() -> None:
    found = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert found == set(CODES)


def test_render_puts_the_hint_on_a_line_of_its_own() -> None:
    assert errors.DiskError("full").render() == "error: full"
    assert errors.DiskError("full", hint="free some space").render() == "error: full\nhint: free some space"
    assert str(errors.DiskError("full", hint="free some space")) == "full"
