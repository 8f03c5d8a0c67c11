"""From a lock to a manifest: what is taken over, what is made, and a golden digest over all of it."""

import hashlib
import json
import stat
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from bundler.contents.compose import compose
from bundler.contents.render import SUMS_PATH
from bundler.lock import Lock, LockedApp, LockedFile, LockedModel, parse_lock
from bundler.sealing.build import BuildOptions, build_bundle
from bundler.sealing.pack import file_source, signature_slot, write_bundle
from bundler.selfpack import WHEEL_NAME, runtime_pyz, runtime_wheel, self_digests
from bundler.spec import Spec
from bundler.store import Store
from manifests.digests import CHUNK_SIZE
from manifests.errors import IntegrityError, PolicyError, SpecError
from manifests.manifest import (
    AppEntry,
    FileEntry,
    HostNeeds,
    Manifest,
    ModelEntry,
    Probe,
    Target,
    bundle_order,
    parse_manifest,
)
from manifests.pieces import Silent
from tests.factories import make_entry
from tests.factories_wheels import make_wheel

TARGET: Final = Target(platform="aarch64-manylinux_2_28", python="3.12", accelerator="cpu")
MANIFEST_DIGEST: Final = "010a38af8dda96ae204e6f4e70b8002f6b6f3bbbc76cf4aebda5c43a7ce55cce"
BUNDLE_DIGEST: Final = "e538cd8bed7658e199d837084c45149e79e3196f9ef4900ba11671da1de658e2"
OWN: Final = {"bootstrap/install.sh", "bootstrap/runtime.pyz", f"wheels/{WHEEL_NAME}", SUMS_PATH}


def put(store: Store, folder: Path, path: str, content: bytes, *, executable: bool = False) -> LockedFile:
    source = folder / hashlib.sha256(content).hexdigest()
    source.write_bytes(content)
    digest = store.add_file(source)
    origin = f"pkg:generic/{path.split('/')[1]}"
    return LockedFile(
        path=path,
        size=digest.size,
        sha256=digest.sha256,
        chunks=digest.chunks,
        origin=origin,
        source="folder",
        executable=executable,
    )


def put_wheel(store: Store, folder: Path, name: str, *, where: str = "wheels") -> LockedFile:
    wheel = make_wheel(folder, name, "1.0", files={f"{name}/__init__.py": b"x" * 5000})
    locked = put(store, folder, f"{where}/{wheel.name}", wheel.read_bytes())
    return replace(locked, origin=f"pkg:pypi/{name}@1.0", source=f"local {wheel.name}")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "cache")


@pytest.fixture
def lock(store: Store, tmp_path: Path) -> Lock:
    """A lock of everything that there is, all its inputs fixed."""
    config = put(store, tmp_path, "models/tiny/config.json", b"{}\n")
    weights = put(store, tmp_path, "models/tiny/model.safetensors", bytes(CHUNK_SIZE + 5))
    script = put(store, tmp_path, "app/web/한글/run.sh", b"#!/bin/sh\n", executable=True)
    model = ModelEntry(
        name="tiny",
        adapter="hcx",
        path="models/tiny",
        format="safetensors",
        origin="pkg:generic/tiny",
        settings={"max_new_tokens": 5},
    )
    return Lock(
        spec_digest="5" * 64,
        sealift=dict(self_digests()),
        created="2026-01-02T03:04:05Z",
        sequence=7,
        name="golden",
        version="1.2.3",
        target=TARGET,
        resolver="uv 1",
        wheels=(put_wheel(store, tmp_path, "alpha"), put_wheel(store, tmp_path, "beta")),
        installer=put_wheel(store, tmp_path, "uv", where="bootstrap"),
        models=(LockedModel(entry=model, files=(config, weights)),),
        apps=(LockedApp(entry=AppEntry(name="web", path="app/web", origin="pkg:generic/web"), files=(script,)),),
        minimum=HostNeeds(cpu_cores=2, memory=1 << 30, disk=0),
        recommended=HostNeeds(cpu_cores=8, memory=0, disk=0),
        policy={"pickle": "refuse", "remote-code": "refuse"},
        probes=(Probe(model="tiny", kind="chat", inputs=("수도?",)),),
    )


def test_everything_locked_is_in_the_manifest(lock: Lock, store: Store) -> None:
    manifest = compose(lock, store).manifest
    entries = {entry.path: entry for entry in manifest.files}
    for file in lock.all_files():
        entry = entries[file.path]
        assert (entry.size, entry.sha256, entry.chunks) == (file.size, file.sha256, file.chunks)
        assert entry.origin == file.origin
        assert stat.S_IMODE(entry.mode) == (0o755 if file.executable else 0o644)
    assert (manifest.name, manifest.version, manifest.sequence) == ("golden", "1.2.3", 7)
    assert (manifest.created, manifest.target) == (lock.created, TARGET)
    assert (manifest.models, manifest.app) == (lock.model_entries(), lock.app_entries())
    assert (manifest.minimum, manifest.recommended) == (lock.minimum, lock.recommended)
    assert (manifest.policy, manifest.probes) == (lock.policy, lock.probes)


def test_what_is_made_here_is_listed_with_its_true_digest(lock: Lock, store: Store) -> None:
    made = compose(lock, store)
    locked = {file.path for file in lock.all_files()}
    assert set(made.generated) == {entry.path for entry in made.manifest.files} - locked
    assert set(made.generated) >= OWN
    assert made.generated["bootstrap/runtime.pyz"] == runtime_pyz()
    assert made.generated[f"wheels/{WHEEL_NAME}"] == runtime_wheel()
    for entry in made.manifest.files:
        if entry.path in made.generated:
            assert entry.sha256 == hashlib.sha256(made.generated[entry.path]).hexdigest()
            assert entry.origin.startswith("pkg:pypi/sealift@")
    executable = {entry.path for entry in made.manifest.files if entry.mode & 0o111}
    assert executable == {"bootstrap/install.sh", "config/launch.sh", "app/web/한글/run.sh"}


def test_the_sums_list_every_other_file(lock: Lock, store: Store) -> None:
    made = compose(lock, store)
    lines = made.generated[SUMS_PATH].decode().splitlines()
    listed = {line[66:]: line[:64] for line in lines}
    assert listed == {entry.path: entry.sha256 for entry in made.manifest.files if entry.path != SUMS_PATH}


def test_the_manifest_is_one_that_the_closed_side_takes(lock: Lock, store: Store) -> None:
    manifest = compose(lock, store).manifest
    assert parse_manifest(manifest.encode()) == manifest
    assert [*manifest.files] == sorted(manifest.files, key=bundle_order)


def test_the_order_of_the_lock_does_not_matter(lock: Lock, store: Store) -> None:
    other = replace(lock, wheels=tuple(reversed(lock.wheels)))
    assert compose(other, store).manifest.encode() == compose(lock, store).manifest.encode()


def test_the_room_that_wheels_need_is_counted_by_file_system_blocks(lock: Lock, store: Store) -> None:
    # Each wheel: 5000 bytes need two blocks, its METADATA, WHEEL and RECORD one each.
    assert compose(lock, store).manifest.launch == {"unpacked-size": 2 * 5 * 4096}


def test_a_wheel_that_is_not_in_the_store(lock: Lock, store: Store) -> None:
    store.drop(lock.wheels[0].sha256)
    with pytest.raises(IntegrityError, match=r"wheels/alpha-1\.0-py3-none-any\.whl: not in the store as a readable"):
        compose(lock, store)


def test_a_wheel_that_is_no_zip(lock: Lock, store: Store, tmp_path: Path) -> None:
    broken = put(store, tmp_path, "wheels/broken-1.0-py3-none-any.whl", b"no zip")
    with pytest.raises(IntegrityError) as caught:
        compose(replace(lock, wheels=(broken,)), store)
    assert caught.value.message.startswith("wheels/broken-1.0-py3-none-any.whl: not in the store as a readable wheel: ")
    assert caught.value.hint == "bundler lock SPEC fetches it again"


def test_the_budget_is_inclusive_and_names_the_largest(lock: Lock, store: Store) -> None:
    size = compose(lock, store).manifest.payload_size
    # The policy is in the manifest, not in the payload, so the size is the same.
    within = compose(replace(lock, policy={"max-size": size}), store).manifest
    assert within.payload_size == size
    with pytest.raises(PolicyError) as caught:
        compose(replace(lock, policy={"max-size": size - 1}), store)
    assert caught.value.message.partition("; largest: ")[2].startswith("models/tiny/model.safetensors 67.1 MB, ")


def frozen(manifest: Manifest) -> Manifest:
    """Return the manifest with fixed bytes for what changes with Sealift's own code."""
    return replace(manifest, files=tuple(sorted(_frozen_entries(manifest), key=bundle_order)))


def _frozen_entries(manifest: Manifest) -> Iterator[FileEntry]:
    for entry in manifest.files:
        if entry.origin.startswith("pkg:pypi/sealift@"):
            if entry.path in OWN - {f"wheels/{WHEEL_NAME}"}:
                executable = bool(entry.mode & 0o111)
                yield make_entry(entry.path, entry.path.encode(), executable=executable, origin="pkg:pypi/sealift@0")
        else:
            yield entry


def test_golden_bundle(lock: Lock, store: Store, tmp_path: Path) -> None:
    manifest = frozen(compose(lock, store).manifest)
    data = manifest.encode()
    assert hashlib.sha256(data).hexdigest() == MANIFEST_DIGEST, "the manifest of a lock has changed"
    own = {entry.path for entry in manifest.files if entry.origin == "pkg:pypi/sealift@0"}
    source = file_source(lambda entry: entry.path.encode() if entry.path in own else store.path(entry.sha256))
    write_bundle(tmp_path / "b.tar", data, manifest.files, source, Silent(), slot=signature_slot())
    with (tmp_path / "b.tar").open("rb") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == BUNDLE_DIGEST, "the bytes of a bundle have changed"


def test_the_golden_lock_reads_back(lock: Lock) -> None:
    assert parse_lock(json.loads(lock.encode()), "golden.lock") == lock


def test_a_lock_is_built_by_its_own_spec_and_sealift_only(lock: Lock, store: Store, tmp_path: Path) -> None:
    spec = Spec(path=tmp_path / "golden.toml", name="golden", version="1.2.3", target=TARGET)
    options = BuildOptions(output=tmp_path / "out", signer=None, rehearse=False)

    def build(changed: Lock) -> None:
        build_bundle(spec, changed, store, options, progress=lambda _: nullcontext(Silent()), report=lambda _: None)

    with pytest.raises(SpecError, match=r"golden\.lock: was made from another version of golden\.toml"):
        build(lock)
    mine = replace(lock, spec_digest=spec.digest)
    with pytest.raises(SpecError, match=rf"made by another Sealift: {WHEEL_NAME} differ from what"):
        build(replace(mine, sealift={**mine.sealift, WHEEL_NAME: "0" * 64}))
    assert not (tmp_path / "out").exists()
    build(mine)
    stem = "golden-1.2.3-aarch64-manylinux_2_28-cp312-cpu"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"{stem}.bundle.tar", f"{stem}.kit"]
