"""A second party rebuilds and compares: what it must accept, name, and refuse, before it signs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.factories import Key, make_key
from tests.factories_cli import Builder, wheel_links, write_spec
from tests.factories_closed import flip_bit
from tests.factories_media import cut
from tests.factories_wheels import make_wheel

OWN = "wheels/homemade-1.0-py3-none-any.whl"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    """Who built the bundle ``out/*.bundle.tar`` of six and a wheel of its own; read only."""
    folder = tmp_path_factory.mktemp("first")
    make_wheel(folder / "own", "homemade", "1.0")
    builder = Builder(folder=folder / "home", links=(wheel_links(), folder / "own"))
    (builder.folder / "app").mkdir(parents=True)
    (builder.folder / "app/run.py").write_text("print('hello')\n")
    write_spec(builder.folder / "demo.toml", "six==1.17.0", "homemade==1.0", more='[[app]]\nsource = "dir:app"\n')
    builder.json("build", "demo.toml", "--output", "out", "--unsigned", "--no-rehearsal")
    return builder


@pytest.fixture
def second(first: Builder, tmp_path: Path) -> Builder:
    """Who is to sign it, too: the same spec, lock and sources, an empty store, and the bundle."""
    folder = tmp_path / "second"
    shutil.copytree(first.folder, folder, ignore=shutil.ignore_patterns("cache"))
    return replace(first, folder=folder)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The second party's key."""
    return make_key(tmp_path_factory.mktemp("signer") / "review", "review@example.com", seed=b"W" * 32)


def bundle_of(builder: Builder) -> Path:
    (found,) = (builder.folder / "out").glob("*.bundle.tar")
    return found


def test_the_same_bytes_from_other_hands(second: Builder, signer: Key) -> None:
    bundle, lock = bundle_of(second), (second.folder / "demo.lock").read_bytes()
    before = bundle.read_bytes()
    document = second.json("build", "demo.toml", "--check", bundle)
    assert document["taken"] == []
    assert document["digest"] == second.json("inspect", bundle)["digest"]
    assert (bundle.read_bytes(), (second.folder / "demo.lock").read_bytes()) == (before, lock)
    said = second.run("build", "demo.toml", "--check", bundle).stdout.splitlines()
    assert said[0].startswith(f"{bundle}: the same bytes as rebuilt from demo.lock, ")
    assert said[-1] == f"to sign it, too: bundler sign {bundle} --key FILE"
    assert second.json("sign", bundle, "--key", signer.path)["signatures"] == 1
    assert second.json("build", "demo.toml", "--check", bundle)["digest"] == document["digest"]


def test_volumes_in_two_folders(second: Builder, tmp_path: Path) -> None:
    made = cut(bundle_of(second), 8 * 1024 * 1024, tmp_path / "a", tmp_path / "b")
    assert second.json("build", "demo.toml", "--check", made[0], "--volumes", tmp_path / "b")["taken"] == []


def other_wheel(second: Builder, tmp_path: Path) -> Builder:
    """Return the second party with a homemade wheel that came out otherwise."""
    make_wheel(tmp_path / "theirs", "homemade", "1.0", requires=("six",))
    return replace(second, links=(wheel_links(), tmp_path / "theirs"))


def test_what_came_out_otherwise_is_taken_and_named(first: Builder, second: Builder, tmp_path: Path) -> None:
    lock = second.folder / "demo.lock"
    document = json.loads(lock.read_text())
    (own,) = (wheel for wheel in document["wheels"] if wheel["path"] == OWN)
    own["source"] = "built homemade-1.0.tar.gz"
    lock.write_text(json.dumps(document))
    shutil.copytree(first.folder / "cache", second.folder / "cache")
    second.json("build", "demo.toml", "--output", "out", "--unsigned", "--no-rehearsal")
    shutil.rmtree(second.folder / "cache")
    second = other_wheel(second, tmp_path)
    done = second.json("build", "demo.toml", "--check", bundle_of(second))
    assert done["taken"] == [OWN]
    said = second.run("build", "demo.toml", "--check", bundle_of(second)).stdout
    assert OWN not in said, "it is in the store now"


def test_what_was_fetched_is_never_taken_from_the_bundle(second: Builder, tmp_path: Path) -> None:
    second = other_wheel(second, tmp_path)
    code, told = second.refused("build", "demo.toml", "--check", bundle_of(second))
    assert code == 3, told
    assert OWN.rpartition("/")[2] in told


def test_a_bundle_that_is_another(second: Builder) -> None:
    bundle = bundle_of(second)
    app = second.folder / "app/run.py"
    app.write_text("print('evil')\n")
    second.json("lock", "demo.toml")
    code, told = second.refused("build", "demo.toml", "--check", bundle)
    assert code == 5
    assert f"error: {bundle}: is not what the lock gives: " in told
    assert "  app/app/run.py: sha256 " in told
    assert told.endswith("hint: don't sign it: it was made from another lock, another spec or another Sealift\n")


def test_a_bundle_that_is_damaged(second: Builder) -> None:
    bundle = bundle_of(second)
    flip_bit(bundle, bundle.stat().st_size // 2)
    code, told = second.refused("build", "demo.toml", "--check", bundle)
    assert (code, "expected sha256 " in told) == (5, True)


def test_a_store_that_is_damaged(second: Builder) -> None:
    second.json("build", "demo.toml", "--check", bundle_of(second))
    locked = json.loads((second.folder / "demo.lock").read_text())["installer"]
    blob = second.cache / "sealift/sha256" / locked["sha256"][:2] / locked["sha256"]
    blob.chmod(0o644)
    flip_bit(blob, 1000)
    code, told = second.refused("build", "demo.toml", "--check", bundle_of(second))
    assert (code, "error: this builder's store is damaged: 1 problem:\n" in told) == (5, True), told
