"""Models: what a folder or a wheel may hold, and each refusal by name."""

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.packages.pipconfig import PipConfig
from bundler.snapshots.models import lock_model
from bundler.spec import ModelSpec, Spec
from bundler.store import Store
from manifests.errors import PolicyError, SealiftError, SourceError, SpecError
from manifests.manifest import Target
from tests.factories_hub import LoopbackHub, loopback_hub
from tests.factories_wheels import make_wheel

TARGET = Target(platform="x86_64-manylinux_2_28", python="3.11", accelerator="cpu")
FILES = {"config.json": b"{}", "model.safetensors": b"weights", "onnx/model.onnx": b"graph"}


def make_folder(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def spec_of(tmp_path: Path, source: str, *, exclude: tuple[str, ...] = (), pickle: str = "refuse") -> Spec:
    model = ModelSpec(name="m", source=source, adapter="bge-m3", exclude=exclude)
    policy = {"pickle": pickle, "remote-code": "refuse"}
    return Spec(path=tmp_path / "s.toml", name="s", version="1", target=TARGET, models=(model,), policy=policy)


def refusal(tmp_path: Path, kind: type[SealiftError], source: str = "dir:model") -> SealiftError:
    spec, store = spec_of(tmp_path, source), Store(tmp_path / "cache")
    with pytest.raises(kind) as caught:
        lock_model(spec.models[0], spec, store, PipConfig())
    return caught.value


def test_folder_goes_into_the_store(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", FILES)
    spec, store = spec_of(tmp_path, "dir:model", exclude=("onnx/*",)), Store(tmp_path / "cache")
    locked = lock_model(spec.models[0], spec, store, PipConfig())
    assert [file.path for file in locked.files] == ["models/m/config.json", "models/m/model.safetensors"]
    assert locked.files[1].sha256 == hashlib.sha256(b"weights").hexdigest()
    assert store.path(locked.files[1].sha256).read_bytes() == b"weights"
    assert (locked.entry.path, locked.entry.origin, locked.converter) == ("models/m", "pkg:generic/m", "")
    assert str(tmp_path) not in repr(locked)


def test_links_within_are_resolved(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", {"config.json": b"{}", "blobs/x": b"weights"})
    (folder / "model.safetensors").symlink_to("blobs/x")
    spec = spec_of(tmp_path, "dir:model", exclude=("blobs/*",))
    locked = lock_model(spec.models[0], spec, Store(tmp_path / "cache"), PipConfig())
    assert [(file.path, file.size) for file in locked.files] == [
        ("models/m/config.json", 2),
        ("models/m/model.safetensors", 7),
    ]


def test_pickled_twins_of_safetensors_stay_behind(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", FILES | {"pytorch_model.bin": b"pickle", "pytorch_model.bin.index.json": b"{}"})
    spec = spec_of(tmp_path, "dir:model")
    locked = lock_model(spec.models[0], spec, Store(tmp_path / "cache"), PipConfig())
    assert [file.path.removeprefix("models/m/") for file in locked.files] == sorted(FILES)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_link_out_of_the_folder_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = make_folder(tmp_path / "model", FILES)
    outside = make_folder(tmp_path / "outside", {"secret": b"x"})
    (folder / "a.link").symlink_to(outside if kind == "folder" else outside / "secret")
    error = refusal(tmp_path, SpecError)
    assert "model 'm': source: a.link is a link out of the folder" in error.message
    assert error.exit_code == 2
    assert error.hint == "copy the folder with its links resolved: cp -rL"
    assert not (tmp_path / "cache" / "sha256").exists()


def test_folder_mistakes(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert refusal(tmp_path, SpecError).message.endswith(f"source: {folder} is not a folder")
    folder.mkdir()
    assert refusal(tmp_path, SpecError).message.endswith(f"source: {folder} holds no files")
    make_folder(folder, {"model.safetensors": b"x"})
    assert refusal(tmp_path, SpecError).message.endswith(f"source: {folder} has no config.json")
    make_folder(folder, {"config.json": b"{}", "con.txt": b"", "a:b": b""})
    message = refusal(tmp_path, SpecError).message
    assert "'con.txt' has the Windows device name" in message
    assert "'a:b' has the character ':'" in message


def test_collision_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", FILES | {"A/x": b"", "a/y": b""})
    assert "'A/x' and 'a/y' can't exist side by side" in refusal(tmp_path, SpecError).message


def test_code_is_refused_by_policy(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", FILES | {"modeling.py": b""})
    error = refusal(tmp_path, PolicyError)
    assert error.message.endswith("model 'm': policy.remote-code refuses modeling.py")
    assert error.exit_code == 10


def test_pickle_that_cannot_be_converted_is_refused_by_policy(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", FILES | {"x.pkl": b""})
    assert refusal(tmp_path, PolicyError).message.endswith("model 'm': policy.pickle refuses x.pkl")


def test_wheel_that_carries_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    files = {f"carrier/model/{name}": data for name, data in FILES.items()} | {"carrier/__init__.py": b""}
    wheel = make_wheel(tmp_path / "links", "carrier", "1.0", files=files)
    make_wheel(tmp_path / "links", "empty", "1.0")
    spec, store = spec_of(tmp_path, "wheel:carrier==1.0"), Store(tmp_path / "cache")
    locked = lock_model(spec.models[0], spec, store, PipConfig())
    assert [file.path for file in locked.files] == [f"models/m/{name}" for name in FILES]
    assert locked.entry.origin == "pkg:pypi/carrier@1.0"
    wheel.unlink()
    assert lock_model(spec.models[0], spec, store, PipConfig()) == locked
    assert "the wheel holds 0 models" in refusal(tmp_path, SourceError, "wheel:empty==1.0").message


def test_pickles_are_refused_by_content(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", {"config.json": b"{}", "model.safetensors": pickle.dumps(Path("x"))})
    error = refusal(tmp_path, PolicyError)
    assert error.message.endswith("model 'm': policy.pickle refuses model.safetensors (by its content)")
    assert error.hint == "exclude them, or allow: [policy] pickle = 'allow'"


def test_a_bin_that_is_no_pickle_travels(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", {"config.json": b"{}", "model.safetensors": b"w", "vocab.bin": b"\x00\x01words"})
    spec = spec_of(tmp_path, "dir:model")
    locked = lock_model(spec.models[0], spec, Store(tmp_path / "cache"), PipConfig())
    assert [file.path for file in locked.files][-1] == "models/m/vocab.bin"
    assert locked.converter == ""


def test_facts_and_licence_are_locked(tmp_path: Path) -> None:
    files = {"README.md": b"---\nlicense: mit\n---\n", "LICENSE": b"", "chat_template.jinja": b"{{ x }}"}
    make_folder(tmp_path / "model", FILES | files)
    spec, store = spec_of(tmp_path, "dir:model", pickle="allow"), Store(tmp_path / "cache")
    locked = lock_model(spec.models[0], spec, store, PipConfig())
    assert locked.facts == {"chat-template": "chat_template.jinja", "license-files": ["LICENSE"]}
    assert locked.license == "mit"
    model = replace(spec.models[0], license="Apache-2.0")
    assert lock_model(model, spec, store, PipConfig()).license == "Apache-2.0"


def test_twins_are_not_even_copied_and_it_is_said(tmp_path: Path) -> None:
    make_folder(tmp_path / "model", {"config.json": b"{}", "model.safetensors": b"w", "pytorch_model.bin": b"twin"})
    spec, store, said = spec_of(tmp_path, "dir:model"), Store(tmp_path / "cache"), list[str]()
    lock_model(spec.models[0], spec, store, PipConfig(), report=said.append)
    assert hashlib.sha256(b"twin").hexdigest() not in store
    assert said == [
        "model m: weights: safetensors taken; left out, the same in another format: pytorch_model.bin (4 B)"
    ]


HUB_FILES = FILES | {"README.md": b"# x", ".gitattributes": b"*.bin", "pytorch_model.bin": pickle.dumps(Path("x"))}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    pytest.importorskip("huggingface_hub")
    with loopback_hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", "")
        hub.add("org/model", HUB_FILES)
        hub.tags["org/model"] = ["license:mit"]
        yield hub


def test_hub_model_is_locked_at_its_commit(tmp_path: Path, hub: LoopbackHub) -> None:
    spec, store, said = spec_of(tmp_path, "hf:org/model"), Store(tmp_path / "cache"), list[str]()
    locked = lock_model(spec.models[0], spec, store, PipConfig(), report=said.append)
    origin = f"pkg:huggingface/org/model@{'a' * 40}"
    assert [file.path for file in locked.files] == [
        f"models/m/{name}" for name in ("README.md", "config.json", "model.safetensors")
    ]
    assert {(file.origin, file.source, file.origin_sha256) for file in locked.files} == {(origin, "hub main", "")}
    assert (locked.entry.origin, locked.license) == (origin, "mit")
    assert store.path(locked.files[2].sha256).read_bytes() == b"weights"
    assert len(hub.bodies()) == 3  # what doesn't travel isn't fetched
    assert said == [
        "model m: left out, nothing here reads it: .gitattributes (5 B), onnx/ (5 B)",
        "model m: weights: safetensors taken; left out, the same in another format: pytorch_model.bin (41 B)".replace(
            "41 B", f"{len(HUB_FILES['pytorch_model.bin'])} B"
        ),
        f"model m: org/model at {'a' * 40}: 12 B",
    ]


def test_a_branch_stays_at_the_commit_of_the_lock(tmp_path: Path, hub: LoopbackHub) -> None:
    spec, store = spec_of(tmp_path, "hf:org/model@main"), Store(tmp_path / "cache")
    first = lock_model(spec.models[0], spec, store, PipConfig())
    hub.add("org/model", HUB_FILES | {"config.json": b"[]"}, commit="b" * 40, refs=("v2",))
    hub.asked.clear()
    assert lock_model(spec.models[0], spec, store, PipConfig(), previous=first) == first
    assert hub.asked == []
    upgraded = lock_model(spec.models[0], spec, store, PipConfig())
    assert upgraded.entry.origin == f"pkg:huggingface/org/model@{'b' * 40}"
    another = replace(spec.models[0], source="hf:org/model@v2")
    assert lock_model(another, spec, store, PipConfig(), previous=first).entry.origin == upgraded.entry.origin
    exact = replace(spec.models[0], source=f"hf:org/model@{'a' * 40}")
    locked = lock_model(exact, spec, store, PipConfig(), previous=upgraded)
    assert (locked.entry.origin, locked.files[0].source) == (first.entry.origin, "hub")


def test_hub_model_is_refused_before_anything_is_fetched(tmp_path: Path, hub: LoopbackHub) -> None:
    hub.add("org/code", {"config.json": b"{}", "model.safetensors": b"w", "modeling.py": b"", "x.pkl": b""})
    assert refusal(tmp_path, PolicyError, "hf:org/code").message.endswith("policy.pickle refuses x.pkl")
    hub.add("org/code", {"config.json": b"{}", "model.safetensors": b"w", "modeling.py": b""}, commit="c" * 40)
    assert refusal(tmp_path, PolicyError, "hf:org/code").message.endswith("policy.remote-code refuses modeling.py")
    hub.add("org/none", {"model.safetensors": b"w"})
    assert refusal(tmp_path, SpecError, "hf:org/none").message.endswith("model 'm': org/none has no config.json")
    hub.add("org/names", {"config.json": b"{}", "con.txt": b""})
    assert "'con.txt' has the Windows device name" in refusal(tmp_path, SpecError, "hf:org/names").message
    assert hub.bodies() == []
