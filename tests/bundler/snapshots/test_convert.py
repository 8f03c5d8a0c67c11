"""Conversion to safetensors, in the converter's real environment."""

import json
import shutil
from pathlib import Path

import pytest

from bundler.packages.pipconfig import load_pip_config
from bundler.snapshots.convert import convert
from bundler.snapshots.models import lock_model
from bundler.specfile import load_spec
from bundler.store import Store, default_cache
from manifests.errors import SourceError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.models
QUICKSTART = Path(__file__).parents[3] / "manifests" / "bundles" / "quickstart.toml"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("cache"))


def test_pickles_become_safetensors_and_the_same_bytes_again(store: Store, tmp_path: Path) -> None:
    from safetensors.torch import load_file  # noqa: PLC0415 - after importorskip

    shared = torch.arange(6, dtype=torch.float16).reshape(2, 3)
    torch.save({"a.weight": shared, "b.weight": shared.t()}, tmp_path / "pytorch_model-00001-of-00001.bin")
    torch.save({"weight": torch.ones(1, 2)}, tmp_path / "sparse_linear.pt")
    index = {"metadata": {}, "weight_map": {"a.weight": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    inputs = {path.name: path for path in sorted(tmp_path.iterdir())}
    config = load_pip_config()
    done = convert("pickle", inputs, "a" * 64, store, config)
    assert sorted(done.files) == [
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "sparse_linear.safetensors",
    ]
    shutil.copy(store.path(done.files["model-00001-of-00001.safetensors"][0]), tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    assert torch.equal(tensors["a.weight"], shared)
    assert torch.equal(tensors["b.weight"], shared.t())
    written = json.loads(store.path(done.files["model.safetensors.index.json"][0]).read_bytes())
    assert written["weight_map"] == {"a.weight": "model-00001-of-00001.safetensors"}
    assert convert("pickle", inputs, "b" * 64, store, config) == done


def test_a_result_is_kept(store: Store, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "x.pt")
    config = load_pip_config()
    done = convert("pickle", {"x.pt": tmp_path / "x.pt"}, "c" * 64, store, config)
    (tmp_path / "x.pt").unlink()
    assert convert("pickle", {"x.pt": tmp_path / "x.pt"}, "c" * 64, store, config) == done


def test_code_in_a_pickle_does_not_run(store: Store, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "evil.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR.")
    with pytest.raises(SourceError, match="the weights can't be converted to safetensors"):
        convert("pickle", {"evil.bin": tmp_path / "evil.bin"}, "d" * 64, store, load_pip_config())
    assert not mark.exists()


@pytest.mark.slow
def test_another_type_is_written_and_integers_stay(store: Store, tmp_path: Path) -> None:
    from safetensors.torch import load, save_file  # noqa: PLC0415 - after importorskip

    weight = torch.linspace(-3, 3, 64).reshape(8, 8)
    save_file({"weight": weight, "ids": torch.arange(3)}, tmp_path / "model.safetensors")
    torch.save({"weight": weight, "scalar": torch.tensor(2.5), "none": torch.zeros(0, 4)}, tmp_path / "head.pt")
    config = load_pip_config()
    name = "model.safetensors"
    done = convert("cast", {name: tmp_path / name}, "1" * 64, store, config, dtype="bfloat16")
    tensors = load(store.path(done.files[name][0]).read_bytes())
    assert tensors["weight"].dtype == torch.bfloat16
    assert torch.equal(tensors["weight"], weight.to(torch.bfloat16))
    assert torch.equal(tensors["ids"], torch.arange(3))
    half = convert("pickle", {"head.pt": tmp_path / "head.pt"}, "2" * 64, store, config, dtype="float16")
    whole = convert("pickle", {"head.pt": tmp_path / "head.pt"}, "2" * 64, store, config)
    tensors = load(store.path(half.files["head.safetensors"][0]).read_bytes())
    assert (tensors["scalar"].dtype, tensors["scalar"].item(), tuple(tensors["none"].shape)) == (
        torch.float16,
        2.5,
        (0, 4),
    )
    assert whole.files != half.files
    assert torch.equal(load(store.path(whole.files["head.safetensors"][0]).read_bytes())["weight"], weight)


def test_what_is_no_weights_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1), "epoch": 3}, tmp_path / "training.pt")
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    torch.save({"weight": torch.ones(2, dtype=torch.complex64)}, tmp_path / "odd.pt")
    words = {
        "training.pt": "training.pt: epoch are not tensors; it is a training checkpoint",
        "list.pt": "list.pt: holds a list, expected tensors by name",
        "odd.pt": "odd.pt: safetensors has no type complex64",
    }
    for name, message in words.items():
        with pytest.raises(SourceError, match=message):
            convert("pickle", {name: tmp_path / name}, name.encode().hex().ljust(64, "0"), store, load_pip_config())


def test_weights_from_before_the_zip_format(store: Store, tmp_path: Path) -> None:
    from safetensors.torch import load  # noqa: PLC0415 - after importorskip

    torch.save({"weight": torch.ones(2)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    done = convert("pickle", {"old.bin": tmp_path / "old.bin"}, "3" * 64, store, load_pip_config())
    assert torch.equal(load(store.path(done.files["old.safetensors"][0]).read_bytes())["weight"], torch.ones(2))


@pytest.mark.slow
def test_smollm2_keeps_its_chat_template_and_its_bytes() -> None:
    spec, config, store = load_spec(QUICKSTART), load_pip_config(), Store(default_cache())
    locked = lock_model(spec.models[1], spec, store, config)
    names = {file.path.removeprefix("models/smollm2/"): file for file in locked.files}
    assert {"chat_template.jinja", "config.json", "generation_config.json", "tokenizer.json"} <= set(names)
    assert b"<|im_start|>assistant" in store.path(names["chat_template.jinja"].sha256).read_bytes()
    assert all(file.source == "converted" and file.origin_sha256 for file in locked.files)
    (origin,) = {file.origin_sha256 for file in locked.files}
    again = convert("gguf", {"other.gguf": store.path(origin)}, "e" * 64, store, config)
    assert {name: sha256 for name, (sha256, _) in again.files.items()} == {
        name: file.sha256 for name, file in names.items()
    }
