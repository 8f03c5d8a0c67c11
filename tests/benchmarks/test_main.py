"""The harness runs from end to end on a tiny payload; what it measures there is not looked at."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.factories import is_root

ROOT: Final = Path(__file__).parents[2]
NAMES: Final = [
    "build",
    "verify",
    "verify-sha256sum",
    "install",
    "install-lean",
    "install-bare",
    "memory-build",
    "memory-verify",
    "memory-install",
    "memory-verify-huge",
    "disk",
    "reinstall",
    "rollback",
    "help-bundler",
    "help-runtime",
    "rebuild-cold",
    "rebuild-copy",
    "convert-memory",
    "fetch-model",
    "memory-fetch",
    "pack-small",
    "mirror-big",
    "mirror-small",
    "push-skopeo",
    "push-oras",
    "memory-push",
    "pull-skopeo",
    "pull-oras",
    "memory-pull",
    "fleet-2",
    "fleet-5",
    "fleet-loop",
]


def bench(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_row_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    work, result = tmp_path / "work", tmp_path / "result.json"
    done = bench("--small", "--rounds", "1", "--directory", work, "--json", result)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2 : 2 + len(NAMES)]] == NAMES
    document = json.loads(result.read_text())
    assert [row["name"] for row in document["rows"]] == NAMES
    unmeasured = [row["name"] for row in document["rows"] if row["value"] is None or row["value"] <= 0]
    hosts = [] if is_root() else ["fleet-2", "fleet-5", "fleet-loop"]
    assert unmeasured == ["convert-memory", *hosts], "the tiny payload has no weights; namespaces need root"
    assert sorted(document["samples"]["verify"]) == ["verify", "verify: openssl dgst -sha256", "verify: sha256sum"]
    assert list(work.iterdir()) == []


def test_a_row_that_does_not_exist_is_refused() -> None:
    done = bench("--only", "nonsense")
    assert done.returncode == 2
    assert "invalid choice: 'nonsense'" in done.stderr


def test_rounds_must_be_a_number() -> None:
    done = bench("--rounds", "0")
    assert done.returncode == 2
    assert "must be a number of at least 1, not '0'" in done.stderr
