"""The cache in front of a model: the same numbers, without the model, and never another model's."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from manifests.errors import AdapterError
from runtime.adapters import load_adapter
from runtime.adapters.base import JSON, EmbeddingInput, ModelConfig, MultiEmbeddings, RequestError
from runtime.adapters.bge_m3 import BgeM3Adapter
from runtime.adapters.cache import CacheStatistics
from runtime.adapters.embedder import LocalEmbedder, Progress
from runtime.adapters.fingerprint import fingerprint
from runtime.adapters.m3_engine import Engine
from runtime.adapters.stored import Mode
from tests.factories import make_manifest
from tests.factories_models import CORPUS

pytestmark = pytest.mark.models
TEXTS = ["", "fox", "fox", "대한민국의 수도는 서울이다", *CORPUS, "the quick brown fox " * 60]


def load_with(folder: Path, settings: Mapping[str, JSON]) -> LocalEmbedder:
    loaded = load_adapter(ModelConfig(name="m", adapter="bge-m3", directory=folder, settings=settings))
    assert isinstance(loaded, LocalEmbedder)
    return loaded


def load(folder: Path, adapter: str = "bge-m3", **settings: JSON) -> LocalEmbedder:
    loaded = load_adapter(ModelConfig(name="m", adapter=adapter, directory=folder, settings=settings))
    assert isinstance(loaded, LocalEmbedder)
    return loaded


def cached(folder: Path, cache: Path, adapter: str = "bge-m3", **settings: JSON) -> LocalEmbedder:
    return load(folder, adapter, enable_cache=True, cache_dir=str(cache), **settings)


def statistics(adapter: LocalEmbedder) -> CacheStatistics:
    found = adapter.cache_statistics()
    assert found is not None
    return found


def same(first: MultiEmbeddings, second: MultiEmbeddings, *, atol: float = 0.0) -> None:
    assert (first.token_counts, first.truncated) == (second.token_counts, second.truncated)
    assert first.dense is not None
    assert second.dense is not None
    np.testing.assert_allclose(first.dense, second.dense, atol=atol, rtol=0, strict=True)
    assert first.sparse is not None
    assert second.sparse is not None
    for one, other in zip(first.sparse, second.sparse, strict=True):
        assert one == pytest.approx(other, abs=10 * atol)
    assert first.colbert is not None
    assert second.colbert is not None
    for row, another in zip(first.colbert, second.colbert, strict=True):
        np.testing.assert_allclose(row, another, atol=atol, rtol=0, strict=True)


def everything(adapter: LocalEmbedder, texts: Sequence[str]) -> MultiEmbeddings:
    assert isinstance(adapter, BgeM3Adapter)
    return adapter.embed_multi(texts, dense=True, sparse=True, colbert=True)


class Refusing:
    """An engine that is never to be asked, so that a miss is seen."""

    width = 32

    def compute(self, inputs: Sequence[EmbeddingInput], modes: object, progress: object) -> MultiEmbeddings:  # noqa: ARG002 - the protocol's
        raise AssertionError(f"the model was asked for {inputs}")


class Recording:
    """An engine in front of another one, that keeps what it was asked for."""

    width = 32

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seen: list[EmbeddingInput] = []

    def compute(
        self, inputs: Sequence[EmbeddingInput], modes: Sequence[Mode], progress: Progress | None
    ) -> MultiEmbeddings:
        self.seen.extend(inputs)
        return self.engine.compute(inputs, modes, progress)


def no_more_forwards(adapter: LocalEmbedder) -> None:
    assert isinstance(adapter, BgeM3Adapter)

    adapter._engine = Refusing()


def test_all_three_kinds_come_back_bit_by_bit(xlmr: Path, m3: BgeM3Adapter, tmp_path: Path) -> None:
    first = cached(xlmr, tmp_path)
    fresh = everything(first, TEXTS)
    same(fresh, everything(m3, TEXTS), atol=2e-6)
    unique = len(set(TEXTS))
    found = statistics(first)
    assert (found.hits, found.misses, found.entries) == (0, 3 * unique, 3 * unique)
    second = cached(xlmr, tmp_path)
    no_more_forwards(second)
    same(everything(second, TEXTS), fresh)
    np.testing.assert_array_equal(second.embed(TEXTS[::-1]).vectors, np.asarray(fresh.dense)[::-1])
    assert second.embed(TEXTS).truncated_count == 1
    assert statistics(second).misses == 0
    assert any(note.startswith(f"cache {tmp_path}/embeddings.sqlite3, at most 1024 MiB") for note in first.info.notes)


def test_only_new_texts_reach_the_model_once_each(xlmr: Path, tmp_path: Path) -> None:
    adapter = cached(xlmr, tmp_path)
    adapter.embed(["fox", "the cat"])
    assert isinstance(adapter, BgeM3Adapter)
    adapter._engine = recording = Recording(adapter._engine)
    result = adapter.embed(["a ship", "fox", "a ship", "the cat"])
    assert recording.seen == ["a ship"]
    np.testing.assert_array_equal(result.vectors[0], result.vectors[2])
    assert adapter.embed_query("fox") == adapter.embed_documents(["fox"])[0] == result.vectors[1].tolist()


@pytest.mark.parametrize("settings", [{"normalize_embeddings": False}, {"max_length": 20}, {"int8": True}])
def test_another_setting_is_another_key(xlmr: Path, tmp_path: Path, settings: dict[str, JSON]) -> None:
    cached(xlmr, tmp_path).embed(TEXTS)
    other = load_with(xlmr, {"enable_cache": True, "cache_dir": str(tmp_path), **settings})
    expected = load_with(xlmr, settings).embed(TEXTS).vectors
    np.testing.assert_allclose(other.embed(TEXTS).vectors, expected, atol=2e-6)
    assert statistics(other).hits == 0


def test_another_model_at_the_same_path_is_another_key(xlmr: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(xlmr, tmp_path / "model")
    before = cached(folder, tmp_path).embed(["fox"]).vectors
    state = load_file(folder / "model.safetensors")
    name = next(key for key in state if key.endswith("layer.0.output.dense.weight"))
    state[name] = state[name] * 2
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    adapter = cached(folder, tmp_path)
    after = adapter.embed(["fox"]).vectors
    assert statistics(adapter).hits == 0
    assert np.abs(before - after).max() > 1e-3


def test_a_copy_of_the_model_shares_its_vectors(xlmr: Path, tmp_path: Path) -> None:
    cached(xlmr, tmp_path).embed(["fox"])
    other = cached(shutil.copytree(xlmr, tmp_path / "copy"), tmp_path)
    other.embed(["fox"])
    assert statistics(other).hits == 1


def test_token_lists_are_not_kept_and_errors_name_the_right_input(xlmr: Path, tmp_path: Path) -> None:
    adapter = cached(xlmr, tmp_path)
    adapter.embed(["fox"])
    with pytest.raises(RequestError, match=r"^input 2: token 99999 is not in the vocabulary"):
        adapter.embed(["fox", "cat", [99999]])
    with pytest.raises(RequestError, match=r"^input 1: not valid Unicode"):
        adapter.embed(["fox", "\udc00"])
    assert statistics(adapter).entries == 1


def test_a_damaged_value_is_computed_again(xlmr: Path, tmp_path: Path) -> None:
    adapter = cached(xlmr, tmp_path)
    fresh = adapter.embed(["fox"]).vectors
    adapter._cache.close()  # type: ignore[union-attr]  # there is one
    file = tmp_path / "embeddings.sqlite3"
    content = file.read_bytes()
    raw = fresh.astype("<f4").tobytes()
    assert content.count(raw) == 1
    file.write_bytes(content.replace(raw, raw[:-1] + bytes([raw[-1] ^ 0x40])))
    np.testing.assert_array_equal(adapter.embed(["fox"]).vectors, fresh)


def test_prompts_are_part_of_the_text(bert: Path, tmp_path: Path) -> None:
    adapter = cached(bert, tmp_path, "sentence-transformer")
    first = adapter.embed_query("the cat")
    again = cached(bert, tmp_path, "sentence-transformer")
    assert again.embed_documents(["the cat"]) == [first]
    assert statistics(again).hits == 1


def test_environment_turns_it_on_and_settings_win(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    for written in ("", "false", "0", "Off"):
        monkeypatch.setenv("ENABLE_MODEL_CACHE", written)
        assert load(bert, "sentence-transformer").cache_statistics() is None
    monkeypatch.setenv("ENABLE_MODEL_CACHE", "true")
    assert load(bert, "sentence-transformer", enable_cache=False).cache_statistics() is None
    assert list(tmp_path.iterdir()) == []
    assert load(bert, "sentence-transformer").cache_statistics() is not None
    assert (tmp_path / "sealift" / "embeddings.sqlite3").is_file()
    monkeypatch.setenv("ENABLE_MODEL_CACHE", "maybe")
    with pytest.raises(AdapterError) as caught:
        load(bert, "sentence-transformer")
    assert caught.value.message == "model 'm': ENABLE_MODEL_CACHE: expected true or false, got 'maybe'"


def test_a_folder_that_can_not_be_used_leaves_the_model_working(
    bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    adapter = cached(bert, tmp_path / "file", "sentence-transformer")
    assert adapter.cache_statistics() is None
    assert adapter.embed(["fox"]).vectors.shape == (1, 32)
    note = f"cache off: {tmp_path / 'file'} can't be used: File exists"
    assert caplog.messages == [f"model m: {note}"]
    assert note in adapter.info.notes


def test_the_manifest_saves_reading_every_byte(tmp_path: Path) -> None:
    release = tmp_path / "release"
    files = {"models/m/config.json": b"{}", "models/m/sub/weights.bin": b"12345"}
    for name, content in files.items():
        (release / name).parent.mkdir(parents=True, exist_ok=True)
        (release / name).write_bytes(content)
    folder = release / "models" / "m"
    by_bytes = fingerprint(folder)
    (release / "manifest.json").write_bytes(make_manifest(files).encode())
    (folder / "sub" / "weights.bin").write_bytes(b"54321")  # the same size: the manifest is believed
    assert fingerprint(folder) == by_bytes
    (folder / "sub" / "weights.bin").write_bytes(b"543210")
    assert fingerprint(folder) != by_bytes
