"""What the quickstart is made of; the whole of it is in ``tests/slow/test_quickstart.py``."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.lock import Lock, LockedFile
from bundler.quickstart import (
    IDENTITY,
    QUESTIONS,
    ClosedSideError,
    Scene,
    StepClock,
    fresh_folder,
    lock_is_current,
    play_closed_side,
)
from bundler.rehearsal.sandbox import Isolation, find_isolation
from bundler.selfpack import self_digests
from bundler.spec import Spec, host_target
from bundler.specfile import load_spec
from bundler.store import Store
from tests.factories import Key, make_key, tree_of
from tests.factories_cli import ROOT
from tests.factories_closed import ClosedBundle, copy_of, flip_bit, make_closed_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, key: Key) -> ClosedBundle:
    """A bundle with our own wheel and no models."""
    return make_closed_bundle(tmp_path_factory.mktemp("bundle"), key)


def play(scene: Scene, isolation: Isolation) -> list[Mapping[str, Any]]:
    events: list[Mapping[str, Any]] = []
    play_closed_side(scene, {}, events.append, isolation)
    return events


@pytest.mark.parametrize("closed", [True, False])
def test_the_closed_side_is_played(bundle: ClosedBundle, tmp_path: Path, *, closed: bool) -> None:
    isolation = find_isolation() if closed else Isolation(name="socket guard only", prefix=())
    scene = Scene(folder=tmp_path, bundle=bundle.tar, kit=bundle.kit)
    events = play(scene, isolation)
    done = [event["step"] for event in events if event["event"] == "done"]
    assert done == ["verify bundle", "install", "verify release"]
    assert scene.prefix == tmp_path / "closed/prefix"
    assert (scene.prefix / "current").is_symlink()


def test_a_step_s_failure_keeps_its_exit_code_and_words(bundle: ClosedBundle, tmp_path: Path) -> None:
    tar = copy_of(bundle.tar, tmp_path / "copy")
    flip_bit(tar, tar.stat().st_size // 2)
    with pytest.raises(ClosedSideError) as caught:
        play(Scene(folder=tmp_path, bundle=tar, kit=bundle.kit), find_isolation())
    assert caught.value.exit_code == 5
    assert caught.value.message.startswith("verify bundle failed with exit code 5:\n")
    assert "expected sha256" in caught.value.message
    assert not (tmp_path / "closed/prefix").exists()


def test_a_kit_of_somebody_else(bundle: ClosedBundle, tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "runtime.pyz").write_bytes(bundle.pyz.read_bytes())
    stranger = make_key(tmp_path / "stranger", "stranger@example.com")
    (kit / "allowed_signers").write_bytes(stranger.allowed_signers.read_bytes())
    with pytest.raises(ClosedSideError) as caught:
        play(Scene(folder=tmp_path, bundle=bundle.tar, kit=kit), find_isolation())
    assert caught.value.exit_code == 4


def make_lock(spec: Spec, file: LockedFile) -> Lock:
    return Lock(
        spec_digest=spec.digest,
        sealift=dict(self_digests()),
        created="2026-01-02T03:04:05Z",
        sequence=1,
        name=spec.name,
        version=spec.version,
        target=spec.target,
        resolver="uv 1",
        wheels=(),
        installer=file,
    )


def test_a_lock_is_reused_only_while_spec_and_sealift_and_store_are_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    (tmp_path / "uv.whl").write_bytes(b"uv")
    digest = store.add_file(tmp_path / "uv.whl")
    spec = Spec(path=tmp_path / "s.toml", name="s", version="1", target=host_target())
    lock = make_lock(spec, LockedFile(path="bootstrap/uv.whl", size=2, sha256=digest.sha256))
    assert lock_is_current(lock, spec, store)
    assert not lock_is_current(lock, replace(spec, version="2"), store)
    assert not lock_is_current(replace(lock, sealift={**lock.sealift, "templates": "0" * 64}), spec, store)
    store.drop(digest.sha256)
    assert not lock_is_current(lock, spec, store)


def test_the_shipped_spec_has_the_models_that_are_asked() -> None:
    spec = load_spec(ROOT / "manifests/bundles/quickstart.toml")
    assert [model.name for model in spec.models] == [question["model"] for question in QUESTIONS.values()]
    assert spec.packages.requirements == ("torch==2.13.0",)
    assert " " not in IDENTITY, "it stands in an allowed_signers file"
    assert json.loads(json.dumps(QUESTIONS)) == QUESTIONS


def test_a_fresh_folder(tmp_path: Path) -> None:
    (tmp_path / "closed/prefix").mkdir(parents=True)
    (tmp_path / "other").write_bytes(b"stays")
    fresh_folder(tmp_path / "closed")
    fresh_folder(tmp_path / "closed")
    assert tree_of(tmp_path) == {"other": b"stays"}
    assert not (tmp_path / "closed").exists()


def test_each_step_gets_a_line_when_it_is_over() -> None:
    said: list[str] = []
    going_on: list[str] = []
    clock = StepClock(said.append, going_on.append)
    with clock.step("lock") as detail:
        assert (said, going_on) == ([], ["lock"])
        detail.append("5 wheels")
    clock.line("install", 75.0, "done ")
    assert going_on == ["lock", ""]
    assert len(said) == 2
    assert said[0].split() == ["lock", "0.0", "s", "5", "wheels"]
    assert said[1].startswith("  install ")
    assert said[1].endswith("   done")


def test_a_step_that_fails_gets_no_line() -> None:
    said: list[str] = []
    with pytest.raises(ZeroDivisionError), StepClock(said.append, lambda _: None).step("lock"):
        raise ZeroDivisionError
    assert said == []
