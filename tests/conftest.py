"""Keys and bundles that many tests only read."""

from pathlib import Path

import pytest

from tests.factories import SMALL_FILES, Key, make_bundle, make_key


@pytest.fixture(scope="session")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """A release key, the same in every run."""
    return make_key(tmp_path_factory.mktemp("key") / "release", seed=b"R" * 32)


@pytest.fixture(scope="session")
def second_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """A key of somebody else."""
    return make_key(tmp_path_factory.mktemp("second") / "review", "review@example.com", seed=b"S" * 32)


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Path:
    """A signed bundle of :data:`SMALL_FILES`; never write to it."""
    folder = tmp_path_factory.mktemp("bundle")
    return make_bundle(folder, SMALL_FILES, key=key, executable=["bootstrap/install.sh"])
