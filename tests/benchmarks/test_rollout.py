"""The fleet section's rows follow from the samples, and a host that can't be a fleet says why."""

import os
from pathlib import Path
from typing import Final

import pytest

from benchmarks import rollout
from benchmarks.measure import Bench, Sample
from benchmarks.registry import SECTIONS
from benchmarks.rollout import fleet, rows
from benchmarks.sections import Sections
from benchmarks.table import render_table
from benchmarks.workload import SMALL, Workload

NAMES: Final = ["fleet-2", "fleet-5", "fleet-loop"]
LOOP: Final = "for 5 hosts: scp, ssh install, ssh verify"


def samples(*seconds: float) -> list[Sample]:
    return [Sample(seconds=value, memory=1) for value in seconds]


def sections(folder: Path) -> Sections:
    bench = Bench(folder=folder, environment=dict(os.environ), report=lambda _: None)
    return Sections(bench, Workload(bench, SMALL), 1)


def test_rows_are_ratios_and_seconds_per_host() -> None:
    found = {
        "fleet: 1 host": samples(10, 8, 30),
        "fleet: 2 hosts": samples(12),
        "fleet: 5 hosts": samples(25),
        f"fleet: {LOOP}": samples(50),
    }
    two, five, loop = rows(found)
    assert [row.name for row in (two, five, loop)] == NAMES
    assert (two.ours, two.against, two.peer, two.value) == ("12 s, 6 s a host", "1 host", "10 s", 1.2)
    assert (five.ours, five.value, five.goal, five.stand) == ("25 s, 5 s a host", 2.5, 5, "met")
    assert (loop.ours, loop.against, loop.peer, loop.value) == ("25 s", LOOP, "50 s", 0.5)
    assert {row.sense for row in (two, five, loop)} == {"at most"}
    assert "25 s, 5 s a host" in render_table([five])


def test_more_hosts_than_one_after_the_other_would_take_is_not_met() -> None:
    found = {
        "fleet: 1 host": samples(10),
        "fleet: 2 hosts": samples(21),
        "fleet: 5 hosts": samples(50),
        f"fleet: {LOOP}": samples(30),
    }
    assert [row.stand for row in rows(found)] == ["NOT met", "met", "NOT met"]


def test_without_the_tools_each_row_is_skipped_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(rollout, "_SSHD", tmp_path / "sshd")
    found = list(fleet(sections(tmp_path)))
    assert [(row.name, row.stand, row.value) for row in found] == [(name, "skipped", None) for name in NAMES]
    lacking = "ip, mount, nsenter, unshare, ssh, scp, ssh-keygen, mmdebstrap, sshd"
    assert {row.note for row in found} == {f"not on this host: {lacking}"}
    assert found[2].against == LOOP
    assert list(tmp_path.iterdir()) == [], "nothing is built for it"


def test_without_root_it_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert {row.note for row in fleet(sections(tmp_path))} == {"hosts in namespaces need root"}


def test_room_for_the_hosts_is_asked_for_first(tmp_path: Path) -> None:
    bundle = tmp_path / "x.bundle.tar"
    with bundle.open("wb") as stream:
        stream.truncate(1 << 42)
    reason = rollout._lack_of_space(bundle, tmp_path)
    assert reason.startswith(f"{tmp_path}: ")
    assert reason.endswith(f" GB are free, the hosts need {15 * (1 << 42) / 1e9:.1f} GB")
    bundle.write_bytes(b"")
    assert rollout._lack_of_space(bundle, tmp_path) == ""


def test_it_is_a_section() -> None:
    assert SECTIONS["fleet"] is fleet
