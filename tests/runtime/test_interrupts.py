"""An install that is stopped: what was live stays live, and the next run finishes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.factories_closed import ClosedBundle, Host, leftovers, program

STEPS = ("copy and verify", "virtual environment", "smoke test", "receipt")


def start_until(host: Host, bundle: ClosedBundle, prefix: Path, step: str) -> "subprocess.Popen[str]":
    """Start an install and return when it says that it begins ``step``."""
    words = ("install", bundle.tar, "--prefix", prefix, "--trust", bundle.trust)
    process = host.start(*host.runtime_words(bundle.pyz, *words))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"... {step}"):
            return process
    raise AssertionError(f"the install ended before {step!r}")


def stop(process: "subprocess.Popen[str]", number: int) -> str:
    os.killpg(process.pid, number)
    _, words = process.communicate(timeout=60)
    return words


def statuses(host: Host, bundle: ClosedBundle, prefix: Path) -> dict[str, str]:
    done = host.runtime(bundle.pyz, "status", "--prefix", prefix, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout)["releases"]
    return found


@pytest.fixture
def upgraded(tmp_path: Path, installed: Path) -> Path:
    """A prefix with the first release live, where the second is going to be interrupted."""
    subprocess.run([program("cp"), "-a", str(installed), str(tmp_path / "prefix")], check=True)
    return tmp_path / "prefix"


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, "copy and verify"),
        (signal.SIGINT, "virtual environment"),
        (signal.SIGTERM, "smoke test"),
        (signal.SIGINT, "receipt"),
    ],
)
def test_a_signal_cleans_up_and_the_old_release_stays(
    *, upgraded: Path, host: Host, first: ClosedBundle, second: ClosedBundle, number: int, step: str
) -> None:
    before = [path for path in leftovers(upgraded) if path.startswith("releases/")]
    process = start_until(host, second, upgraded, step)
    words = stop(process, number)
    assert process.returncode == 130, words
    assert words.endswith("stopped: what was live stays live; run the same command again to go on\n")
    assert [path for path in leftovers(upgraded) if path.startswith("releases/")] == before
    assert list(statuses(host, first, upgraded).values()) == ["live"]
    done = host.runtime(first.pyz, "verify", "--prefix", upgraded, "--trust", first.trust)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_leaves_the_old_release_live_and_the_next_run_finishes(
    upgraded: Path, host: Host, first: ClosedBundle, second: ClosedBundle, step: str
) -> None:
    process = start_until(host, second, upgraded, step)
    stop(process, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    states = statuses(host, first, upgraded)
    assert [name for name, state in states.items() if state == "live"] == [min(states)]
    assert min(states).startswith("1.0.0-")
    assert set(states.values()) <= {"live", "unfinished"}
    done = host.runtime(first.pyz, "verify", "--prefix", upgraded, "--trust", first.trust)
    assert done.returncode == 0, done.stdout
    finished = host.runtime(second.pyz, "install", second.tar, "--prefix", upgraded, "--trust", second.trust, "--json")
    assert finished.returncode == 0, finished.stderr
    assert statuses(host, first, upgraded) == {min(states): "installed", json.loads(finished.stdout)["release"]: "live"}
    assert list((upgraded / "var/run").iterdir()) == []
    assert host.runtime(second.pyz, "verify", "--prefix", upgraded, "--deep").returncode == 0


@pytest.mark.parametrize("delay", [0.0, 0.08])
def test_a_kill_at_any_instant_of_a_first_install(
    tmp_path: Path, host: Host, chunked: ClosedBundle, delay: float
) -> None:
    prefix = tmp_path / "prefix"
    process = start_until(host, chunked, prefix, "copy and verify")
    time.sleep(delay)
    stop(process, signal.SIGKILL)
    assert not (prefix / "current").is_symlink()
    told = host.runtime(chunked.pyz, "verify", "--prefix", prefix)
    assert told.returncode == 2
    assert f"error: {prefix}: nothing is installed here\nhint: runtime install BUNDLE --prefix {prefix}" in told.stderr
    words = ("install", chunked.tar, "--prefix", prefix, "--trust", chunked.trust)
    assert host.runtime(chunked.pyz, *words).returncode == 0
    assert host.runtime(chunked.pyz, "verify", "--prefix", prefix, "--deep").returncode == 0
    assert list(prefix.rglob("*.partial")) == []


def test_a_second_installer_is_told_who_is_at_work(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    process = start_until(host, first, prefix, "virtual environment")
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", first.trust)
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    assert done.returncode == 7
    holder = f"{prefix}: in use by another runtime (runtime install, process {process.pid})"
    assert f"error: {holder}\nhint: wait for it, then try again\n" in done.stderr
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert list(statuses(host, first, prefix).values()) == ["live"]


def test_a_dead_installer_s_lock_does_not_matter(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    prefix = tmp_path / "prefix"
    stop(start_until(host, first, prefix, "link"), signal.SIGKILL)
    assert (prefix / "var/install.holder").exists()
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", prefix, "--trust", first.trust)
    assert done.returncode == 0, done.stderr
    assert not (prefix / "var/install.holder").exists()
