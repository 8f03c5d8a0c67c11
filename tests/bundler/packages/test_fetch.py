"""Fetching: by pip, against one digest, once."""

from dataclasses import replace
from pathlib import Path

import pytest

from bundler.packages.fetch import download_any, fetch_pins
from bundler.packages.pipconfig import PipConfig, load_pip_config
from bundler.packages.resolver import Pin, UvResolver
from bundler.store import Store
from manifests.digests import digest_bytes
from manifests.errors import IntegrityError, SourceError
from manifests.manifest import Target
from tests.factories_wheels import make_wheel

WINDOWS = Target(platform="x86_64-pc-windows-msvc", python="3.12", accelerator="cpu")


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "links"
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def pins_of(folder: Path, *requirements: str) -> tuple[Pin, ...]:
    config = PipConfig(no_index=True, find_links=(str(folder),))
    return UvResolver(config=config).resolve(requirements, WINDOWS, {}).pins


def test_wheels_of_another_platform_are_fetched_once(links: Path, tmp_path: Path) -> None:
    wheel = make_wheel(links, "lib", "1.0", tag="cp312-cp312-win_amd64")
    store, pins = Store(tmp_path / "cache"), pins_of(links, "lib")
    (locked,) = fetch_pins(pins, store, WINDOWS)
    assert locked.path == f"wheels/{wheel.name}"
    assert locked.origin == "pkg:pypi/lib@1.0"
    assert locked.source == f"local {wheel.name}"
    assert (locked.size, locked.sha256) == (wheel.stat().st_size, digest_bytes(wheel.read_bytes()).sha256)
    assert store.path(locked.sha256).read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert fetch_pins(pins, store, WINDOWS) == (locked,)


def test_another_content_than_resolved_is_refused(links: Path, tmp_path: Path) -> None:
    wheel = make_wheel(links, "lib", "1.0")
    store, pins = Store(tmp_path / "cache"), pins_of(links, "lib")
    make_wheel(links, "lib", "1.0", files={"lib/evil.py": b""})
    with pytest.raises(IntegrityError, match="isn't what was resolved"):
        fetch_pins(pins, store, WINDOWS)
    assert digest_bytes(wheel.read_bytes()).sha256 not in store


def test_vanished_wheel(links: Path, tmp_path: Path) -> None:
    make_wheel(links, "lib", "1.0")
    (pin,) = pins_of(links, "lib")
    with pytest.raises(SourceError, match=r"pip can't fetch: .*lib==9"):
        fetch_pins([replace(pin, version="9")], Store(tmp_path / "cache"), WINDOWS)


def test_model_wheel_is_downloaded_once(links: Path, tmp_path: Path) -> None:
    wheel = make_wheel(links, "model-lib", "1.0", requires=["torch"])
    store = Store(tmp_path / "cache")
    sha256 = download_any("Model_Lib", "1.0", store)
    assert store.path(sha256).read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert download_any("model-lib", "1.0", store) == sha256
    with pytest.raises(SourceError, match=r"pip can't fetch"):
        download_any("model-lib", "2.0", store)


def test_real_index(tmp_path: Path) -> None:
    pins = UvResolver(config=load_pip_config()).resolve(["click==8.1.8"], WINDOWS, {}).pins
    locked = fetch_pins(pins, Store(tmp_path), WINDOWS)
    assert [file.path for file in locked] == [
        "wheels/click-8.1.8-py3-none-any.whl",
        "wheels/colorama-0.4.6-py2.py3-none-any.whl",
    ]
    assert {file.source.partition(" ")[0] for file in locked} <= {"index", "local"}
