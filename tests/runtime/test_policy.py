"""The signed policy on the closed side: what it refuses is neither installed nor launched, whatever it is called."""

import io
import pickle
import subprocess
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from manifests.canonical import Json
from manifests.errors import IntegrityError, PolicyError
from manifests.manifest import Manifest, ModelEntry
from runtime.policy import check_contents, check_names
from tests.factories import Key, make_manifest
from tests.factories_closed import ClosedBundle, Host, make_closed_bundle, make_host

MODEL: Final = ModelEntry(name="tiny", adapter="hcx", path="models/tiny", format="safetensors", origin="")
PICKLE: Final = pickle.dumps([1, 2, 3], protocol=4)
STEM: Final = "demo-1.0.0-x86_64-manylinux_2_28-cp311-cpu"
HINT: Final = "ask the builder for a bundle without it, or with a written waiver: [[policy.waiver]] in the spec"


def waiver(kind: str, what: str, until: str = "2026-12-31") -> Json:
    return {"class": kind, "until": until, "what": what, "who": "kim", "why": "known"}


def torch_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("model/data.pkl", PICKLE)
    return stream.getvalue()


def laid_out(root: Path, files: Mapping[str, bytes], policy: Mapping[str, Json]) -> Manifest:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return make_manifest(files, models=(MODEL,), policy=policy)


@pytest.mark.parametrize("content", [PICKLE, torch_zip(), b"\x80\x02" + b"x" * 100, pickle.dumps(Path, protocol=0)])
def test_a_pickle_is_refused_by_its_content(tmp_path: Path, content: bytes) -> None:
    files = {"models/tiny/model.safetensors": content, "models/tiny/config.json": b"{}"}
    for policy in ({"pickle": "refuse"}, {}):
        with pytest.raises(PolicyError) as caught:
            check_contents(laid_out(tmp_path, files, policy), tmp_path)
        refused = f"{STEM}: the signed policy refuses pickle: 1 problem:\n  models/tiny/model.safetensors"
        assert (caught.value.message, caught.value.hint, caught.value.exit_code) == (refused, HINT, 10)
    check_contents(laid_out(tmp_path, files, {"pickle": "allow"}), tmp_path)


def test_waivers_count_by_class_place_and_time(tmp_path: Path) -> None:
    files = {"models/tiny/model.bin": PICKLE}
    for good in (waiver("pickle", "models/tiny/*"), waiver("pickle", "models/tiny/model.bin", "2026-01-02")):
        check_contents(laid_out(tmp_path, files, {"waiver": [good]}), tmp_path)
    for bad in (
        waiver("pickle", "models/other/*"),
        waiver("remote-code", "models/tiny/*"),
        waiver("pickle", "models/tiny/*", "2026-01-01"),
    ):
        with pytest.raises(PolicyError):
            check_contents(laid_out(tmp_path, files, {"waiver": [bad]}), tmp_path)


def test_weights_and_other_kinds_of_files_pass(tmp_path: Path) -> None:
    files = {
        "app/web/data.pkl": PICKLE,
        "models/tiny/model.safetensors": (2).to_bytes(8, "little") + b"{}" + bytes(100),
        "models/tiny/empty": b"",
        "models/tiny/tokenizer.json": b'{"version": "1.0"}',
    }
    check_contents(laid_out(tmp_path, files, {}), tmp_path)


def test_a_missing_file_is_left_to_verify_and_a_link_is_refused(tmp_path: Path) -> None:
    manifest = laid_out(tmp_path, {"models/tiny/model.safetensors": b"x"}, {})
    path = tmp_path / "models/tiny/model.safetensors"
    path.unlink()
    check_contents(manifest, tmp_path)
    path.symlink_to("/dev/null")
    with pytest.raises(IntegrityError):
        check_contents(manifest, tmp_path)


@pytest.mark.parametrize("name", ["modeling.py", "sub/modeling.pyc", "kernel.so"])
def test_code_in_a_models_folder_is_refused_by_name(name: str) -> None:
    files = {f"models/tiny/{name}": b"", "app/web/main.py": b"", "models/tiny/config.json": b"{}"}
    manifest = make_manifest(files, models=(MODEL,))
    with pytest.raises(PolicyError) as caught:
        check_names(manifest)
    assert caught.value.message == f"{STEM}: the signed policy refuses remote-code: 1 problem:\n  models/tiny/{name}"
    check_names(replace(manifest, policy={"remote-code": "allow"}))
    check_names(replace(manifest, policy={"waiver": [waiver("remote-code", "models/tiny/*")]}))


def test_a_policy_that_can_not_be_read_is_refused() -> None:
    with pytest.raises(
        IntegrityError, match=r"manifest\.json: policy\.remote-code: 'maybe' is not one of refuse, allow"
    ):
        check_names(make_manifest({"models/tiny/a.py": b""}, models=(MODEL,), policy={"remote-code": "maybe"}))


def closed(
    folder: Path, key: Key, files: Mapping[str, bytes], policy: Mapping[str, Json] | None = None
) -> ClosedBundle:
    return make_closed_bundle(folder, key, extra=dict(files), models=(MODEL,), policy=policy or {})


def install(host: Host, bundle: ClosedBundle, prefix: Path) -> "subprocess.CompletedProcess[str]":
    trust = bundle.kit / "allowed_signers"
    return host.runtime(bundle.kit / "runtime.pyz", "install", bundle.tar, "--prefix", prefix, "--trust", trust)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [("model.safetensors", PICKLE, "pickle"), ("modeling.py", b"import os\n", "remote-code")],
)
def test_install_refuses_and_nothing_is_live(
    tmp_path: Path, closed_key: Key, name: str, content: bytes, kind: str
) -> None:
    bundle = closed(tmp_path / "bundle", closed_key, {f"models/tiny/{name}": content})
    host, prefix = make_host(tmp_path / "home"), tmp_path / "prefix"
    done = install(host, bundle, prefix)
    assert done.returncode == 10, done.stderr
    refused = f"the signed policy refuses {kind}: 1 problem:\n  models/tiny/{name}\nhint: {HINT}\n"
    assert done.stderr.endswith(refused)
    assert not (prefix / "current").exists()
    assert list((prefix / "releases").glob("*")) == [] or not (prefix / "releases").exists()
    waived = {"waiver": [waiver(kind, f"models/tiny/{name}")]}
    again = closed(tmp_path / "waived", closed_key, {f"models/tiny/{name}": content}, policy=waived)
    assert install(host, again, prefix).returncode == 0
    assert (prefix / "current" / "models/tiny" / name).read_bytes() == content


def test_launch_refuses_a_pickle_that_came_later(tmp_path: Path, closed_key: Key) -> None:
    bundle = closed(tmp_path / "bundle", closed_key, {"models/tiny/model.safetensors": b"no pickle"})
    host, prefix = make_host(tmp_path / "home"), tmp_path / "prefix"
    assert install(host, bundle, prefix).returncode == 0
    file = prefix / "current/models/tiny/model.safetensors"
    file.unlink()
    file.write_bytes(PICKLE)
    done = host.runtime(bundle.kit / "runtime.pyz", "launch", "--prefix", prefix)
    assert done.returncode == 10, done.stderr
    assert "the signed policy refuses pickle: 1 problem:\n  models/tiny/model.safetensors\n" in done.stderr
