"""When signatures are judged: the clock, what stands above it, and what is older than what was installed."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from manifests.errors import IntegrityError, PolicyError
from runtime.state import State, check_may_install, check_time, downgrade_note
from tests.factories import Key, make_manifest
from tests.factories_closed import ClosedBundle, Host
from tests.factories_trust import log_of

CREATED = "2026-01-02T03:04:05Z"
STATE = State(name="demo", sequence=5, created=CREATED)


def test_verify_time_overrides_and_is_recorded(
    tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key
) -> None:
    prefix, signers = tmp_path / "prefix", tmp_path / "signers"
    signers.write_text(f'release@example.com valid-before="20260201Z" {closed_key.public.line}\n')
    words = ("install", first.tar, "--prefix", prefix, "--trust", signers)
    late = host.runtime(first.pyz, *words, "--verify-time", "20260301Z")
    assert late.returncode == 4
    assert "was valid only before 2026-02-01 00:00:00Z, judged at 2026-03-01 00:00:00Z" in late.stderr
    assert not prefix.exists()
    done = host.runtime(first.pyz, *words, "--verify-time", "20260103Z", "--json")
    assert done.returncode == 0, done.stderr
    note = "signatures judged at --verify-time 2026-01-03T00:00:00Z"
    assert f"{note}\n" in done.stderr
    name = json.loads(done.stdout)["release"]
    assert log_of(prefix) == [f"install {name}: {note}", f"install {name}"]
    options = ("--prefix", prefix, "--no-models", "--quick", "--verify-time")
    assert host.runtime(first.pyz, "verify", *options, "20260103Z").returncode == 0
    assert host.runtime(first.pyz, "verify", *options, "20260301Z").returncode == 4
    assert log_of(prefix)[2:] == [
        f"verify {name}: {note}",
        f"verify {name}: signatures judged at --verify-time 2026-03-01T00:00:00Z",
    ]
    medium = ("verify", first.tar, "--trust", signers, "--verify-time")
    assert host.runtime(first.pyz, *medium, "20260103Z").returncode == 0
    assert host.runtime(first.pyz, *medium, "20260301Z").returncode == 4
    wrong = host.runtime(first.pyz, *medium, "yesterday")
    assert wrong.returncode == 2
    assert "--verify-time: 'yesterday' is not a time of the form YYYYMMDD[HHMM[SS]][Z]" in wrong.stderr


def test_a_clock_that_went_back_does_not_help(tmp_path: Path, host: Host, first: ClosedBundle, closed_key: Key) -> None:
    """The prefix has seen a bundle of the year 2090; a signer that expired before can't come back."""
    prefix, signers = tmp_path / "prefix", tmp_path / "signers"
    prefix.mkdir()
    state = replace(STATE, created="2090-01-01T00:00:00Z")
    (prefix / "state.json").write_bytes(state.encode())
    signers.write_text(f'release@example.com valid-before="20800101Z" {closed_key.public.line}\n')
    words = ("install", first.tar, "--prefix", prefix, "--trust", signers, "--allow-downgrade")
    done = host.runtime(first.pyz, *words)
    assert done.returncode == 4
    assert done.stderr.startswith("this host's clock says 20")
    assert (
        ", before the newest bundle installed here was made: signatures judged at 2090-01-01T00:00:00Z\n"
    ) in done.stderr
    assert "was valid only before 2080-01-01 00:00:00Z, judged at 2090-01-01 00:00:00Z" in done.stderr
    assert host.runtime(first.pyz, *words, "--verify-time", "20260601Z").returncode == 0


def test_the_time_of_a_check() -> None:
    clock = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert check_time(None, clock).now == clock
    same = check_time(STATE, clock)
    assert (same.now, same.note) == (clock, "")
    back = check_time(STATE, datetime(1970, 1, 1, tzinfo=UTC))
    assert (back.now, back.note) == (
        clock,
        (
            "this host's clock says 1970-01-01T00:00:00Z, before the newest bundle installed here was made: "
            "signatures judged at 2026-01-02T03:04:05Z"
        ),
    )
    wanted = datetime(2020, 1, 1, tzinfo=UTC)
    assert check_time(STATE, clock, wanted).now == wanted, "an operator's word is above the floor, and recorded"
    with pytest.raises(IntegrityError, match=r"^state\.json: created: 'then' is not a time$"):
        check_time(replace(STATE, created="then"), clock)


@pytest.mark.parametrize(
    ("sequence", "created", "older"),
    [
        (5, CREATED, False),
        (6, "2026-01-02T03:04:06Z", False),
        (4, "2026-01-02T03:04:06Z", True),
        (6, "2026-01-02T03:04:04Z", True),
        (4, "2026-01-02T03:04:04Z", True),
    ],
)
def test_older_by_sequence_or_by_time(*, sequence: int, created: str, older: bool) -> None:
    manifest = make_manifest({}, sequence=sequence, created=created)
    check_may_install(STATE, manifest, allow_downgrade=True)
    note = f", an allowed downgrade: sequence {sequence}, {created}, after sequence 5, {CREATED}"
    assert downgrade_note(STATE, manifest) == (note if older else "")
    if older:
        with pytest.raises(PolicyError) as caught:
            check_may_install(STATE, manifest, allow_downgrade=False)
        assert caught.value.message == (
            f"bundle 1.0.0 (sequence {sequence}, {created}) is older than what was installed here before "
            f"(sequence 5, {CREATED})"
        )
    else:
        check_may_install(STATE, manifest, allow_downgrade=False)
