"""The manifest: golden bytes, and every invariant that parse_manifest promises."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.canonical import encode_canonical
from manifests.digests import CHUNK_SIZE, sha256_hex
from manifests.errors import IntegrityError
from manifests.manifest import (
    KINDS,
    AppEntry,
    FileEntry,
    HostNeeds,
    Manifest,
    ModelEntry,
    Probe,
    Target,
    bundle_order,
    manifest_digest,
    parse_manifest,
    store_key,
)
from tests.factories import SMALL_FILES, make_entry, make_manifest

GOLDEN = Path(__file__).parent.parent / "golden" / "manifest.json"

Document = Any
"""A parsed manifest, on its way to being broken."""


def full_manifest() -> Manifest:
    return make_manifest(
        SMALL_FILES | {"models/tiny/big.bin": CHUNK_SIZE + 5},
        executable=["bootstrap/install.sh"],
        models=(
            ModelEntry(
                name="tiny",
                adapter="bge-m3",
                path="models/tiny",
                format="safetensors",
                origin="pkg:huggingface/example/tiny@0123456789abcdef0123456789abcdef01234567",
                settings={"batch_size": 12, "threshold": "0.5", "use_fp16": True},
            ),
        ),
        app=(AppEntry(name="demo", path="wheels/demo-1.0.0-py3-none-any.whl", origin="pkg:pypi/demo@1.0.0"),),
        minimum=HostNeeds(cpu_cores=2, memory=4 * 1024**3, disk=10**9),
        recommended=HostNeeds(cpu_cores=8, memory=32 * 1024**3, disk=10**10),
        policy={"pickle": "refuse"},
        launch={"port": 8000},
        probes=(
            Probe(model="tiny", kind="embedding", inputs=("hello", "\uc548\ub155"), expect={"dimension": 8}),
            Probe(model="tiny", kind="chat", inputs=("hi",)),
        ),
    )


def test_golden_bytes() -> None:
    data = full_manifest().encode()
    assert data == GOLDEN.read_bytes()
    assert manifest_digest(data) == sha256_hex(data)
    assert manifest_digest(data) == "80b808097defa9e72ac203d2e3e37087f4eda4533b1c28f89d348e28d6db6681"


def test_round_trip() -> None:
    manifest = full_manifest()
    assert parse_manifest(manifest.encode()) == manifest


def test_the_smallest_manifest() -> None:
    manifest = make_manifest({})
    assert parse_manifest(manifest.encode()) == manifest
    assert manifest.payload_size == 0


def test_properties() -> None:
    manifest = full_manifest()
    assert manifest.stem == "demo-1.0.0-x86_64-manylinux_2_28-cp311-cpu"
    assert Target(platform="p", python="3.12", accelerator="cuda-12.6").label == "p-cp312-cuda-12.6"
    assert manifest.payload_size == sum(map(len, SMALL_FILES.values())) + CHUNK_SIZE + 5
    assert [entry.path for entry in manifest.of_kind("wheel")] == ["wheels/demo-1.0.0-py3-none-any.whl"]
    assert [entry.kind for entry in manifest.files] == sorted((e.kind for e in manifest.files), key=list(KINDS).index)


def test_bundle_order_is_kind_then_bytes() -> None:
    paths = ["docs/a", "bootstrap/z", "wheels/a", "models/m/\uac00", "models/m/Z", "models/m/a", "app/a", "config/a"]
    entries = sorted((make_entry(path, b"") for path in paths), key=bundle_order)
    assert [entry.path for entry in entries] == [
        "bootstrap/z",
        "wheels/a",
        "models/m/Z",
        "models/m/a",
        "models/m/\uac00",
        "app/a",
        "config/a",
        "docs/a",
    ]


def test_store_keys() -> None:
    small, script = make_entry("docs/a", b"abc"), make_entry("docs/a", b"abc", executable=True)
    assert small.store_key == sha256_hex(b"abc")
    assert script.store_key == sha256_hex(b"abc") + "x"
    big = make_entry("models/m/a", CHUNK_SIZE + 1)
    listed = f"{big.chunks[0]}\n{big.chunks[1]}\n".encode()
    assert big.store_key == sha256_hex(listed) != big.sha256
    assert store_key("0" * 64, ("a", "b"), executable=True) == sha256_hex(b"a\nb\n") + "x"


def broken(change: Callable[[Document], object]) -> bytes:
    document = json.loads(full_manifest().encode())
    change(document)
    return encode_canonical(document)


def put(*keys: str | int, value: object) -> Callable[[Document], object]:
    """Return a change that sets the value at a key path."""

    def change(document: Document) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return change


def entry_json(path: str, kind: str) -> object:
    return FileEntry(path=path, size=0, sha256="0" * 64, mode=0o644, kind=kind).to_json()


FORM = "does not have the form"
HASHES = ["0" * 64]
INVARIANTS: dict[str, tuple[Callable[[Document], object], str]] = {
    "name": (put("name", value="Demo"), f"name: 'Demo' {FORM} [a-z0-9]"),
    "name with a slash": (put("name", value="a/b"), f"name: 'a/b' {FORM}"),
    "name missing": (lambda d: d.pop("name"), "name: missing"),
    "version": (put("version", value="../1"), f"version: '../1' {FORM}"),
    "version with a newline": (put("version", value="1\n"), f"version: '1\\n' {FORM}"),
    "created": (put("created", value="2026-01-02"), f"created: '2026-01-02' {FORM}"),
    "created on no day": (
        put("created", value="2026-02-30T00:00:00Z"),
        "created: '2026-02-30T00:00:00Z' is not a time",
    ),
    "sequence": (put("sequence", value=-1), "sequence: -1 is less than 0"),
    "sequence of a boolean": (put("sequence", value=True), "sequence: expected an integer, got a boolean"),
    "platform": (put("target", "platform", value="linux/x"), f"target.platform: 'linux/x' {FORM}"),
    "python": (put("target", "python", value="2.7"), f"target.python: '2.7' {FORM}"),
    "python of old": (put("target", "python", value="3.7"), f"target.python: '3.7' {FORM}"),
    "accelerator": (put("target", "accelerator", value="rocm"), f"target.accelerator: 'rocm' {FORM}"),
    "target missing": (lambda d: d.pop("target"), "target.platform: missing"),
    "unknown key": (put("sequnce", value=1), "sequnce: unknown key"),
    "unknown key below": (put("files", 0, "sha512", value=""), "files[0].sha512: unknown key"),
    "files not a list": (put("files", value={}), "files: expected a list, got a table"),
    "file not a table": (put("files", 0, value=1), "files[0]: expected a table, got an integer"),
    "path": (put("files", 0, "path", value="bootstrap/../x"), "files[0].path: 'bootstrap/../x' has the component '..'"),
    "kind": (
        put("files", 0, "kind", value="models"),
        "files[0].kind: 'models' is not one of bootstrap, wheel, model, app",
    ),
    "folder of another kind": (
        put("files", 0, "path", value="wheels/install.sh"),
        "files[0].path: 'wheels/install.sh' is of kind bootstrap, so it must lie in bootstrap/",
    ),
    "folder alone": (
        put("files", 0, "path", value="bootstrap"),
        "files[0].path: 'bootstrap' is of kind bootstrap, so it must lie in bootstrap/",
    ),
    "size": (put("files", 0, "size", value="17"), "files[0].size: expected an integer, got a string"),
    "negative size": (put("files", 0, "size", value=-1), "files[0].size: -1 is less than 0"),
    "chunks of a small file": (
        put("files", 0, "chunks", value=HASHES),
        "files[0].chunks: 1 chunk digests for 17 bytes",
    ),
    "chunks at 64 MiB": (
        lambda d: d["files"][0].update(size=CHUNK_SIZE, chunks=HASHES),
        "files[0].chunks: 1 chunk digests for 67108864 bytes",
    ),
    "no chunks": (put("files", 0, "size", value=CHUNK_SIZE + 1), "files[0].chunks: 0 chunk digests for 67108865 bytes"),
    "too few chunks": (
        lambda d: d["files"][0].update(size=2 * CHUNK_SIZE + 1, chunks=HASHES * 2),
        "files[0].chunks: 2 chunk digests for 134217729 bytes",
    ),
    "chunk digest": (
        lambda d: d["files"][0].update(size=CHUNK_SIZE + 1, chunks=["0" * 64, "A" * 64]),
        "files[0].chunks: a chunk digest is not 64 lower-case hex digits",
    ),
    "sha256": (put("files", 0, "sha256", value="0" * 63), f"files[0].sha256: '{'0' * 63}' {FORM}"),
    "mode": (put("files", 0, "mode", value="0777"), "files[0].mode: '0777' is not one of 0644, 0755"),
    "origin missing": (lambda d: d["files"][0].pop("origin"), "files[0].origin: missing"),
    "out of order": (lambda d: d["files"].reverse(), "files[1] "),
    "duplicate": (
        lambda d: d["files"].insert(0, d["files"][0]),
        "files[1] 'bootstrap/install.sh' is a duplicate or out of order",
    ),
    "case collision": (
        lambda d: d["files"].insert(0, entry_json("bootstrap/INSTALL.sh", "bootstrap")),
        "'bootstrap/INSTALL.sh' and 'bootstrap/install.sh' can't exist side by side on every file system",
    ),
    "file and folder": (
        lambda d: d["files"].insert(1, entry_json("bootstrap/install.sh/x", "bootstrap")),
        "'bootstrap/install.sh' and 'bootstrap/install.sh/x' can't exist side by side on every file system",
    ),
    "two models": (lambda d: d["models"].append(d["models"][0]), "two models have the same name"),
    "model without files": (
        lambda d: d["models"][0].update(name="gone", path="models/gone"),
        "model 'gone' has no files",
    ),
    "model elsewhere": (
        put("models", 0, "path", value="models/other"),
        "models[0].path: 'models/other' is not one of models/tiny",
    ),
    "model's name is a prefix": (
        lambda d: d["models"][0].update(name="tin", path="models/tin"),
        "model 'tin' has no files",
    ),
    "settings": (put("models", 0, "settings", value=[]), "models[0].settings: expected a table, got a list"),
    "app elsewhere": (put("app", 0, "path", value="wheels/x.whl"), "app 'demo' has no files at 'wheels/x.whl'"),
    "app outside": (put("app", 0, "path", value="../etc"), "app 'demo' has no files at '../etc'"),
    "app nowhere": (put("app", 0, "path", value=""), "app 'demo' has no files at ''"),
    "needs": (put("requires", "minimum", "memory", value="1 GiB"), "requires.minimum.memory: expected an integer"),
    "needs unknown": (put("requires", "minimum", "gpu", value=1), "requires.minimum.gpu: unknown key"),
    "probe of a stranger": (put("probes", 0, "model", value="gone"), "a probe asks the unknown model 'gone'"),
    "probe kind": (put("probes", 0, "kind", value="rerank"), "probes[0].kind: 'rerank' is not one of embedding, chat"),
    "probe inputs": (put("probes", 0, "inputs", value=[1]), "probes[0].inputs: expected a list of strings, got a list"),
    "policy": (put("policy", value="refuse"), "policy: expected a table, got a string"),
    "empty chunks": (put("files", 0, "chunks", value=[]), "a key is missing or written in a form of its own"),
    "launch missing": (lambda d: d.pop("launch"), "a key is missing or written in a form of its own"),
    "expect missing": (lambda d: d["probes"][0].pop("expect"), "a key is missing or written in a form of its own"),
    "needs missing": (
        lambda d: d["requires"]["minimum"].pop("disk"),
        "a key is missing or written in a form of its own",
    ),
}


@pytest.mark.parametrize("case", INVARIANTS)
def test_invariants(case: str) -> None:
    change, message = INVARIANTS[case]
    with pytest.raises(IntegrityError) as caught:
        parse_manifest(broken(change))
    assert str(caught.value).startswith(f"manifest.json: {message}")
    assert caught.value.exit_code == 5


def test_an_unknown_key_has_its_nearest_as_hint() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_manifest(broken(put("sequnce", value=1)))
    assert caught.value.hint == "did you mean 'sequence'?"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"{}\n", "'None'"),
        (b"[]\n", "'None'"),
        (b'{"_type":"urn:sealift:bundle-manifest:2"}\n', "'urn:sealift:bundle-manifest:2'"),
        (b'{"_type":{"a":1}}\n', "\"{'a': 1}\""),
    ],
)
def test_another_type_is_refused_before_anything_else(data: bytes, kind: str) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_manifest(data)
    assert str(caught.value) == f"manifest.json: _type is {kind}, this Sealift reads 'urn:sealift:bundle-manifest:1'"
    assert caught.value.hint == "use the runtime.pyz of the bundle's own kit"


def test_16_mb_are_too_large() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_manifest(b" " * 16_000_000)
    assert str(caught.value) == "manifest.json: 16000000 bytes, at most 15999999 are allowed"


def test_an_app_may_be_a_folder() -> None:
    manifest = make_manifest({"app/demo/main.py": b""}, app=(AppEntry(name="demo", path="app/demo", origin=""),))
    assert parse_manifest(manifest.encode()) == manifest
