"""Rehearsing what isn't one whole tar: volumes on two disks, and a delta, whose base is put into the store first."""

from pathlib import Path

import pytest

from tests.factories import Key, make_key
from tests.factories_cli import Builder, wheel_links, write_spec


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """A person whose packages are six and click; version 1.0.0 is built, a full bundle."""
    folder = tmp_path_factory.mktemp("rehearse")
    made = Builder(folder=folder / "home", links=(wheel_links(),))
    made.folder.mkdir()
    write_spec(made.folder / "demo.toml", "six==1.17.0")
    made.json("build", "demo.toml", "--output", "base", "--unsigned", "--no-rehearsal")
    write_spec(made.folder / "demo.toml", "six==1.17.0", "click==8.3.1", version="2.0.0")
    made.json("lock", "demo.toml")
    return made


@pytest.fixture(scope="module")
def signer(builder: Builder) -> Key:
    """The builder's key."""
    return make_key(builder.folder / "release", seed=b"V" * 32)


def base_of(builder: Builder) -> Path:
    (found,) = (builder.folder / "base").glob("*.bundle.tar")
    return found


def test_a_delta_in_volumes_is_rehearsed(builder: Builder, signer: Key, tmp_path: Path) -> None:
    words = ("--output", tmp_path, "--volume-size", "8MiB", "--base", base_of(builder), "--key", signer.path)
    done = builder.run("build", "demo.toml", *words)
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stderr.splitlines() if line.startswith("... ")]
    assert steps[-3:-1] == ["... pack", steps[-2]]
    assert steps[-2].startswith("... rehearse in a ")
    assert steps[-1].startswith("... put the ")
    assert steps[-1].endswith(" files of the base into its store")
    (first,) = tmp_path.glob("*.delta.bundle.tar.001")
    assert not list(tmp_path.glob(".rehearsal*"))
    trust = ("--trust", signer.allowed_signers)
    code, told = builder.refused("rehearse", first, *trust)
    assert code == 2
    assert f"error: {first}: is a delta to version 1.0.0, manifest digest " in told
    assert told.endswith(f"hint: bundler rehearse {first} --base BUNDLE --trust FILE\n")
    document = builder.json("rehearse", first, *trust, "--base", base_of(builder))
    assert document == {"bundle": str(first), "rehearsed": True}
    code, told = builder.refused("rehearse", first, *trust, "--base", first)
    assert (code, "the delta is to version 1.0.0, manifest digest " in told) == (5, True)


def test_volumes_on_two_disks_are_rehearsed(builder: Builder, signer: Key, tmp_path: Path) -> None:
    words = ("--output", tmp_path / "a", "--volume-size", "8MiB", "--key", signer.path)
    document = builder.json("build", "demo.toml", *words)
    volumes = [Path(path) for path in document["volumes"]]
    (tmp_path / "b").mkdir()
    for path in volumes[1:]:
        path.rename(tmp_path / "b" / path.name)
    done = builder.json("rehearse", volumes[0], "--trust", signer.allowed_signers, "--volumes", tmp_path / "b")
    assert done["rehearsed"]
