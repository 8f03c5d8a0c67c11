"""Bundles of real wheels that many tests only read, and a prefix where one of them is installed."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import Key, make_key
from tests.factories_closed import (
    BIG_PATH,
    BIG_SIZE,
    ClosedBundle,
    Host,
    closed_files,
    make_closed_bundle,
    make_host,
)
from tests.factories_python import OWN_TARGET, with_python


@pytest.fixture(scope="session")
def closed_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The builder's key."""
    return make_key(tmp_path_factory.mktemp("closed-key") / "release", seed=b"C" * 32)


@pytest.fixture(scope="session")
def other_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The key that comes after the builder's."""
    return make_key(tmp_path_factory.mktemp("other") / "next", "next@example.com", seed=b"N" * 32)


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory, closed_key: Key) -> ClosedBundle:
    """Version 1.0.0 with six; never write to it."""
    return make_closed_bundle(tmp_path_factory.mktemp("first"), closed_key, "six")


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory, closed_key: Key) -> ClosedBundle:
    """Version 2.0.0 with six and click; shares everything else with the first."""
    return make_closed_bundle(
        tmp_path_factory.mktemp("second"), closed_key, "six", "click", version="2.0.0", sequence=1767323099
    )


@pytest.fixture(scope="session")
def chunked(tmp_path_factory: pytest.TempPathFactory, closed_key: Key) -> ClosedBundle:
    """Version 1.0.0 with a file of two chunks, all zeros, and no wheel but our own."""
    return make_closed_bundle(tmp_path_factory.mktemp("chunked"), closed_key, extra={BIG_PATH: BIG_SIZE})


@pytest.fixture(scope="session")
def carrying(tmp_path_factory: pytest.TempPathFactory, closed_key: Key) -> ClosedBundle:
    """Version 1.0.0 with six and an interpreter; never write to it."""
    files = with_python(closed_files("six", target=OWN_TARGET))
    return make_closed_bundle(tmp_path_factory.mktemp("carrying"), closed_key, files=files, target=OWN_TARGET)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory, first: ClosedBundle) -> Path:
    """A prefix where the first bundle is live; never write to it, copy it."""
    folder = tmp_path_factory.mktemp("installed")
    host = make_host(folder / "home")
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", folder / "prefix", "--trust", first.trust)
    assert done.returncode == 0, done.stderr
    return folder / "prefix"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """The tester's own user on a host without network."""
    return make_host(tmp_path / "home")


@pytest.fixture
def bare_host(host: Host) -> Host:
    """A host on whose PATH there is nothing at all."""
    (host.home / "empty").mkdir()
    return replace(host, path=str(host.home / "empty"))
