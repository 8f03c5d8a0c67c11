"""A table for one attacker, in a house where every file is watched."""

import tempfile
from pathlib import Path

import pytest

from tests.factories import Key, make_key
from tests.factories_cli import ROOT
from tests.hostile.lab import Lab


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, Key]:
    """The key that is trusted, and a stranger's."""
    folder = tmp_path_factory.mktemp("hostile-keys")
    trusted = make_key(folder / "release", seed=b"T" * 32)
    return trusted, make_key(folder / "stranger", "stranger@example.com", seed=b"U" * 32)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds home, temporary and working folder, the medium and the operator's files; nothing else."""
    for name in ("home", "tmp", "work", "medium", "operator"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)

    return tmp_path


@pytest.fixture
def lab(house: Path, keys: tuple[Key, Key]) -> Lab:
    """The attacker's table."""
    return Lab(house / "medium", *keys)
