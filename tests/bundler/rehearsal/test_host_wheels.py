"""A bundle for another kind of host: its models are asked on this host's own wheels, and that is what is said of it."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundler.rehearsal.evidence import Rehearsal, evidence_document, nameless, not_rehearsed
from bundler.rehearsal.hostwheels import lay_out, why_unasked
from bundler.rehearsal.rehearse import open_base, rehearse_bundle
from manifests.errors import IntegrityError
from manifests.manifest import ModelEntry, Probe, Target, manifest_digest, parse_manifest
from manifests.medium import open_medium
from tests.factories import Key, make_bundle, make_manifest
from tests.factories_closed import HOST_TARGET, ClosedBundle, closed_files, make_closed_bundle
from tests.factories_media import make_delta_bundle

pytestmark = pytest.mark.models

FOREIGN = Target(platform="aarch64-apple-darwin", python=HOST_TARGET.python, accelerator="cpu")
REASON = f"the bundle is for aarch64-apple-darwin, this host is {HOST_TARGET.platform}"
MODEL = ModelEntry(name="tiny", adapter="bge-m3", path="models/tiny", format="safetensors", origin="dir")
LACKING = ModelEntry(name="lacking", adapter="bge-m3", path="models/lacking", format="safetensors", origin="dir")
PROBE = Probe(model="tiny", kind="embedding", inputs=("a ship carries sealed goods", "거기 누구 있나요?"))


def model_files(folder: Path, name: str, *without: str) -> dict[str, bytes]:
    """Return the files of a model's folder as a bundle has them."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {f"models/{name}/{path}": data for path, data in files.items() if path not in without}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, key: Key) -> ClosedBundle:
    """A bundle for macOS with a model that is whole and one that lacks its weights; never write to it."""
    from tests.factories_models import make_xlmr  # noqa: PLC0415 # it imports torch

    folder = make_xlmr(tmp_path_factory.mktemp("models") / "xlmr")
    models = (MODEL, LACKING)
    extra = {**model_files(folder, "tiny"), **model_files(folder, "lacking", "model.safetensors")}
    files = closed_files("six", target=FOREIGN, models=models, extra=extra)
    return make_closed_bundle(
        tmp_path_factory.mktemp("foreign"), key, files=files, target=FOREIGN, models=models, probes=(PROBE,)
    )


@pytest.mark.slow
def test_models_are_asked_on_this_host_s_own_wheels_and_that_is_said(foreign: ClosedBundle, key: Key) -> None:
    told: list[str] = []
    done = rehearse_bundle(foreign.tar, key.allowed_signers.read_text(), told.append)
    assert (done.rehearsed, done.reason, list(done.steps)) == (False, REASON, ["verify bundle"])
    assert "ask its models on this host's own wheels, not the target's" in told
    document: dict[str, Any] = evidence_document(foreign.manifest, done.digest, done)
    assert (document["rehearsed"], document["models"], document["imports"]) == (False, [], [])
    own = document["host_wheels"]
    tiny, lacking = own["models"]
    assert (tiny["name"], tiny["probes"], tiny["compared"], tiny["problems"]) == ("tiny", 1, 0, [])
    assert (tiny["device"], tiny["dtype"]) == ("cpu", "float32")
    assert (lacking["name"], lacking["probes"]) == ("lacking", 0)
    installed, whole, broken = document["not_rehearsed"]
    assert installed == f"{REASON}: installation, imports and network"
    libraries = f"torch {own['versions']['torch']}, transformers {own['versions']['transformers']}"
    where = f"on this host's own wheels, not the target's ({libraries}), it"
    assert whole == f"{REASON}: model tiny, adapter bge-m3; {where} loaded and answered 1 probes, 0 as recorded"
    assert broken.startswith(f"{REASON}: model lacking, adapter bge-m3; {where} failed: model 'lacking': ")
    assert "model.safetensors" in broken
    assert [f"NOT rehearsed: {words}" for words in (installed, whole, broken)] == told[-3:]
    text = json.dumps(document)
    for secret in (str(foreign.tar.parent), os.uname().nodename, ".rehearsal-"):
        assert secret not in text
    assert list(foreign.tar.parent.glob(".rehearsal*")) == []


@pytest.mark.slow
def test_recorded_answers_are_compared(tmp_path: Path, foreign: ClosedBundle, key: Key) -> None:
    """Another answer is told; what other builds of libraries say doesn't keep the bundle from being signed."""
    names = [entry.path for entry in foreign.manifest.files if not entry.path.startswith("models/lacking/")]
    files = {path: read(foreign.tar, path) for path in names}
    wrong = replace(PROBE, expect={"vectors": ["AACAPwAAAAA=", "AACAPwAAAAA="], "versions": {}})
    bundle = make_closed_bundle(tmp_path, key, files=files, target=FOREIGN, models=(MODEL,), probes=(wrong,))
    done = rehearse_bundle(bundle.tar, key.allowed_signers.read_text(), lambda _: None)
    told = list(not_rehearsed(bundle.manifest, done))[1]
    problem = "model tiny: a vector of 32 numbers, recorded 2"
    assert told.endswith(f", it failed: {problem}; {problem}")
    assert done.host_wheels["models"][0]["compared"] == 1


def read(tar: Path, path: str) -> bytes:
    """Return a file of a bundle."""
    with open_medium(tar) as medium:
        manifest = parse_manifest(medium.manifest_bytes)
        medium.check_layout(manifest)
        entry = next(entry for entry in manifest.files if entry.path == path)
        content = bytearray(entry.size)
        with medium.reader(entry) as reader:
            done = 0
            while done < entry.size:
                done += reader(memoryview(content)[done:], done)
        return bytes(content)


@pytest.mark.parametrize(
    ("wheel", "missing", "memory", "why"),
    [
        ("sealift-1", ("torch", "yaml"), 1 << 40, {"tiny": "this host has no torch, yaml"}),
        ("six-1", (), 1 << 40, {"tiny": "the bundle carries no wheel of Sealift"}),
        ("sealift-1", (), 4096, {}),
        ("sealift-1", (), 4095, {"tiny": "its 2.0 kB may need twice that of memory, this host has 4.1 kB"}),
    ],
)
def test_why_a_model_is_not_asked(
    tmp_path: Path, wheel: str, missing: tuple[str, ...], memory: int, why: Mapping[str, str]
) -> None:
    payload = {"models/tiny/model.safetensors": b"x" * 2048, f"wheels/{wheel}-py3-none-any.whl": b""}
    tar = make_bundle(tmp_path, payload, key=[], models=(MODEL,), target=FOREIGN)
    manifest = make_manifest(payload, models=(MODEL,), target=FOREIGN)
    with open_medium(tar) as medium:
        medium.check_layout(manifest)
        unasked = why_unasked(medium, manifest, None, missing=missing, memory=memory)
    assert unasked == why
    told = list(not_rehearsed(manifest, Rehearsal(reason="the reason", unasked=unasked)))
    more = f", nor on this host's own wheels: {why['tiny']}" if why else ""
    assert told == ["the reason: installation, imports and network", f"the reason: model tiny, adapter bge-m3{more}"]


def test_what_is_laid_out_is_what_the_manifest_says(tmp_path: Path, key: Key) -> None:
    payload = {
        "models/tiny/config.json": b"{}",
        "models/big/model.safetensors": b"x" * 100,
        "config/tiny.yaml": b"a: 1\n",
        "wheels/sealift-1-py3-none-any.whl": b"zip",
        "wheels/other-1-py3-none-any.whl": b"zip",
    }
    big = replace(MODEL, name="big", path="models/big")
    tar = make_bundle(tmp_path, payload, key=key, models=(MODEL, big))
    manifest = make_manifest(payload, models=(MODEL, big))
    with open_medium(tar) as medium:
        medium.check_layout(manifest)
        assert lay_out(medium, manifest, tmp_path / "none", None, {"tiny": "no", "big": "no"}) is None
        folder = lay_out(medium, manifest, tmp_path / "releases", None, {"big": "too large"})
        assert folder == tmp_path / "releases" / f"1.0.0-{manifest_digest(manifest.encode())[:12]}"
        laid = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert laid == {
            "manifest.json": manifest.encode(),
            "config/tiny.yaml": b"a: 1\n",
            "models/tiny/config.json": b"{}",
            "wheels/sealift-1-py3-none-any.whl": b"zip",
        }
        changed = replace(manifest, files=tuple(replace(entry, sha256="0" * 64) for entry in manifest.files))
        with pytest.raises(IntegrityError, match=r"^\S+: expected sha256 0{64}, got [0-9a-f]{64}$"):
            lay_out(medium, changed, tmp_path / "changed", None, {})


def test_what_a_delta_leaves_out_comes_from_its_base(tmp_path: Path, key: Key) -> None:
    sealift = {"wheels/sealift-1-py3-none-any.whl": b"zip"}
    old = {**sealift, "models/tiny/config.json": b"{}", "models/tiny/model.safetensors": b"x" * 100}
    new = {**old, "models/tiny/config.json": b"{ }"}
    base = make_bundle(tmp_path / "base.bundle.tar", old, key=key, models=(MODEL,))
    earlier = make_manifest(old, models=(MODEL,))
    delta = make_delta_bundle(tmp_path / "d.bundle.tar", new, earlier, key=key, models=(MODEL,), version="2.0.0")
    manifest = make_manifest(new, models=(MODEL,), version="2.0.0")
    with open_medium(delta) as medium, open_base(base, delta) as source:
        medium.check_layout(manifest)
        without = why_unasked(medium, manifest, None, missing=(), memory=1 << 40)
        assert without == {"tiny": "the delta doesn't carry all of its files"}
        assert why_unasked(medium, manifest, source, missing=(), memory=1 << 40) == {}
        folder = lay_out(medium, manifest, tmp_path / "releases", source, {})
    assert folder is not None
    laid = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert laid == {**new, "manifest.json": manifest.encode()}


def test_places_of_this_host_are_left_out() -> None:
    folder = Path("/home/kim/out/.rehearsal-7")
    words = f"model 'm': {folder}/closed/prefix/m/a.json: is missing, see /usr/lib/python3.11/json/decoder.py:3; 1/2"
    assert nameless({"x": [words, 7]}, folder) == {
        "x": ["model 'm': closed/prefix/m/a.json: is missing, see decoder.py:3; 1/2", 7]
    }
