"""Conversion to safetensors, in the converter's real environment."""

import json
import shutil
from pathlib import Path

import pytest

from bundler.convert import convert
from bundler.models import lock_model
from bundler.pipconfig import load_pip_config
from bundler.specfile import load_spec
from bundler.store import Store, default_cache
from manifests.errors import SourceError

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.models
QUICKSTART = Path(__file__).parents[2] / "manifests" / "bundles" / "quickstart.toml"


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
