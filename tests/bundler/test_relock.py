"""Locks made from specs, written and read back."""

import hashlib
import json
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.contents.compose import compose
from bundler.lock import Lock, load_lock, write_lock
from bundler.packages.fetch import download_any
from bundler.packages.pipconfig import PipConfig, load_pip_config
from bundler.packages.resolver import UvResolver
from bundler.relock import SERVING_REQUIREMENTS, lock_spec
from bundler.specfile import load_spec
from bundler.store import Store
from manifests.errors import IntegrityError, SpecError
from tests.factories_wheels import make_wheel

SPEC = """
[bundle]
name = "demo"
version = "1.0"
[target]
platform = "x86_64-manylinux_2_28"
python = "3.11"
[packages]
requirements = ["lib"]
[[app]]
source = "dir:web"
"""


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Store, PipConfig]:
    """Return a spec, a store, and a configuration with find-links for ``lib`` and uv's own wheel."""
    links = tmp_path / "links"
    make_wheel(links, "lib", "1.0")
    from importlib.metadata import version  # noqa: PLC0415 - only here

    make_wheel(links, "uv", version("uv"), tag="py3-none-manylinux_2_17_x86_64")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "web" / "run.sh").chmod(0o755)
    (tmp_path / "demo.toml").write_text(SPEC)
    return tmp_path / "demo.toml", Store(tmp_path / "cache"), load_pip_config()


def lock(scene: tuple[Path, Store, PipConfig], previous: Lock | None = None) -> Lock:
    path, store, config = scene
    return lock_spec(load_spec(path), store, UvResolver(config=config), config, previous=previous)


def test_lock_names_every_byte_and_no_path_of_this_machine(scene: tuple[Path, Store, PipConfig]) -> None:
    made = lock(scene)
    assert [file.path for file in made.wheels] == ["wheels/lib-1.0-py3-none-any.whl"]
    assert made.installer.path.startswith("bootstrap/uv-")
    assert [(file.path, file.executable) for app in made.apps for file in app.files] == [("app/web/run.sh", True)]
    assert (made.created, made.sequence) == ("2023-11-14T22:13:20Z", 1700000000)
    assert all(file.sha256 in scene[1] for file in made.all_files())
    path = scene[0].with_suffix(".lock")
    write_lock(path, made)
    assert load_lock(path) == made
    text = path.read_text()
    assert str(scene[0].parent) not in text
    assert text.endswith("}\n")


def test_locking_again_changes_nothing_but_upgrade_does(
    scene: tuple[Path, Store, PipConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lock(scene)
    make_wheel(scene[0].parent / "links", "lib", "2.0")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    assert lock(scene, first) == first
    upgraded = lock(scene)
    assert [file.path for file in upgraded.wheels] == ["wheels/lib-2.0-py3-none-any.whl"]
    assert upgraded.sequence == 1800000000
    changed = lock(scene, replace(first, version="0.9"))
    assert (changed.version, changed.sequence) == ("1.0", 1800000000)


def test_damaged_lock_is_named(scene: tuple[Path, Store, PipConfig]) -> None:
    path = scene[0].with_suffix(".lock")
    with pytest.raises(SpecError, match=r"demo\.lock: "):
        load_lock(path)
    write_lock(path, lock(scene))
    good = json.loads(path.read_text())
    for key, value, message in (
        ("sequence", "x", "sequence: expected an integer"),
        ("created", "now", "created: 'now' does not have the form"),
        ("installer", good["installer"] | {"path": "../x"}, "installer.path: '../x' has the component '..'"),
        ("wheelz", [], "wheelz: unknown key"),
        ("spec_digest", "00", "spec_digest: '00' does not have the form"),
    ):
        path.write_text(json.dumps(good | {key: value}))
        with pytest.raises(SpecError) as caught:
            load_lock(path)
        assert message in caught.value.message
    path.write_text("{")
    with pytest.raises(SpecError, match=r"demo\.lock: "):
        load_lock(path)


def test_serving_requirements_are_the_adapters_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert sorted(SERVING_REQUIREMENTS) == sorted(project["optional-dependencies"]["adapters"])


def test_constraints_and_hashes_of_a_requirements_file_bind(scene: tuple[Path, Store, PipConfig]) -> None:
    folder = scene[0].parent
    make_wheel(folder / "links", "lib", "2.0")
    scene[0].write_text(SPEC.replace('requirements = ["lib"]', 'files = ["r.txt"]'))
    (folder / "r.txt").write_text("lib\n-c limits.txt\n")
    (folder / "limits.txt").write_text("lib<2\n")
    assert [file.path for file in lock(scene).wheels] == ["wheels/lib-1.0-py3-none-any.whl"]
    digest = hashlib.sha256((folder / "links" / "lib-2.0-py3-none-any.whl").read_bytes()).hexdigest()
    (folder / "r.txt").write_text(f"lib==2.0 --hash=sha256:{digest}\n")
    assert [file.sha256 for file in lock(scene).wheels] == [digest]
    (folder / "r.txt").write_text(f"lib==2.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(IntegrityError) as caught:
        lock(scene)
    expected = f"lib==2.0: lib-2.0-py3-none-any.whl has sha256 {digest}, which no --hash allows"
    assert caught.value.message == expected


def test_a_wheel_that_carries_a_model_is_checked_too(scene: tuple[Path, Store, PipConfig]) -> None:
    path, store, _ = scene
    files = {"tiny/model/config.json": b"{}", "tiny/model/model.safetensors": b"x"}
    wheel = make_wheel(path.parent / "links", "tiny", "1.0", files=files)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("tiny/model/extra.bin", b"x")
    with pytest.raises(IntegrityError) as caught:
        download_any("tiny", "1.0", store)
    assert caught.value.message == "tiny-1.0-py3-none-any.whl: tiny/model/extra.bin: is not in RECORD"
    assert store.record("model-wheel", "tiny==1.0") is None


def test_the_environment_of_the_spec_travels(scene: tuple[Path, Store, PipConfig]) -> None:
    path, store, _ = scene
    path.write_text(f'{SPEC}[env]\nLOG_LEVEL = "DEBUG"\nSITE = "seoul"\n')
    made = lock(scene)
    assert made.environment == {"LOG_LEVEL": "DEBUG", "SITE": "seoul"}
    text = compose(made, store).generated["config/offline.env"].decode()
    assert "\nLOG_LEVEL=DEBUG\n" in text
    assert text.endswith("\n# From [env] of the spec.\nSITE=seoul\n")
