"""SIGKILL to the installer and all its children at fifty instants: what was live stays live, the next run finishes."""

import json
import random
import time
from pathlib import Path

import pytest

from tests.factories import make_key
from tests.factories_closed import ClosedBundle, make_closed_bundle, make_host
from tests.factories_kill import Installer, clone, essence, stored_paths

pytestmark = pytest.mark.slow
INSTANTS = 50


def test_fifty_random_instants(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", seed=b"R" * 32)
    first = make_closed_bundle(tmp_path / "first", key, "six")
    second = make_closed_bundle(tmp_path / "second", key, "six", "click", version="2.0.0", sequence=1767323099)
    installer = Installer(host=make_host(tmp_path / "home"))
    base = tmp_path / "base"
    assert installer.run(first, base).status == 0
    whole = clone(base, tmp_path / "whole")
    start = time.monotonic()
    assert installer.run(second, whole).status == 0
    length, expected = time.monotonic() - start, essence(whole)
    instants = random.Random(1)  # noqa: S311 # repeatable, not secret
    killed = sum(
        one_kill(installer, (first, second), base, expected, instants.uniform(0, length)) for _ in range(INSTANTS)
    )
    assert killed > INSTANTS // 2, "most of them before the end"


def one_kill(
    installer: Installer,
    bundles: tuple[ClosedBundle, ClosedBundle],
    base: Path,
    expected: dict[str, tuple[str, str]],
    seconds: float,
) -> bool:
    """Kill an upgrade after ``seconds``, check the prefix, and let it finish; return whether the kill came in time."""
    (first, second), prefix = bundles, clone(base, base.with_name("prefix"))
    old = (prefix / "current").readlink().name
    status = installer.kill_after(second, prefix, seconds)
    live = (prefix / "current").readlink().name
    answer = json.loads(installer.host.runtime(first.pyz, "status", "--prefix", prefix, "--json").stdout)
    assert answer["live"] == live
    assert answer["releases"][live] == "live"
    assert answer["releases"][old] in {"live", "installed"}
    stored = stored_paths(second, prefix)
    check = installer.host.runtime(first.pyz, "verify", "--prefix", prefix, "--trust", first.trust)
    assert check.returncode == 0, f"killed after {seconds:.3f} s:\n{check.stdout}"
    again = installer.run(second, prefix)
    assert again.status == 0, f"killed after {seconds:.3f} s:\n{again.words}"
    assert stored.isdisjoint(again.read)
    assert essence(prefix) == expected, f"killed after {seconds:.3f} s"
    return status != 0
