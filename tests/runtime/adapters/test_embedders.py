"""Embedders against the same sums done by hand with transformers, one text at a time."""

import json
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from manifests.errors import AdapterError
from runtime.adapters import load_adapter
from runtime.adapters.base import JSON, Embedder, ModelConfig, MultiEmbedder, RequestError
from runtime.adapters.bge_m3 import BgeM3Adapter, BGEM3OfflineAdapter
from runtime.adapters.m3_engine import TransformersEngine
from runtime.adapters.sentence_transformer import SentenceTransformerAdapter
from tests.factories_models import CORPUS, write_json, write_modules

pytestmark = pytest.mark.models
TEXTS = ["", "fox", "대한민국의 수도는 서울이다", "🎉 ship", "  the cat  ", *CORPUS, "the quick brown fox " * 60]


def load(directory: Path, adapter: str = "sentence-transformer", **settings: JSON) -> Any:  # noqa: ANN401 - any adapter
    return load_adapter(ModelConfig(name="m", adapter=adapter, directory=directory, settings=settings))


def engine_of(adapter: BgeM3Adapter) -> TransformersEngine:
    assert isinstance(adapter._engine, TransformersEngine)
    return adapter._engine


def hidden(directory: Path, text: str, limit: int) -> tuple[torch.Tensor, list[int]]:
    """Return the last hidden states (tokens, width) and ids of one text, alone and unpadded."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    network = AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    inputs = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
    with torch.inference_mode():
        states = network(**inputs).last_hidden_state[0]
    return states, inputs["input_ids"][0].tolist()


def unit(vector: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = (vector / vector.norm(dim=-1, keepdim=True)).numpy()
    return array


def test_mean_pooling_by_hand_and_order_kept(bert: Path) -> None:
    adapter = load(bert)
    assert isinstance(adapter, Embedder)
    assert not isinstance(adapter, MultiEmbedder)
    result = adapter.embed(TEXTS)
    assert result.vectors.dtype == np.float32
    assert result.vectors.shape == (len(TEXTS), adapter.dimension) == (12, 32)
    for index, text in enumerate(TEXTS):
        states, ids = hidden(bert, text, 48)
        np.testing.assert_allclose(result.vectors[index], unit(states.mean(dim=0)), atol=2e-6)
        assert result.token_counts[index] == len(ids)
    assert result.truncated == (False,) * 11 + (True,)
    assert result.truncated_count == 1
    assert adapter.info.limit == 48


@pytest.mark.parametrize("pooling", ["cls", "mean", "max"])
@pytest.mark.parametrize("normalize", [True, False])
def test_declared_pooling_and_normalisation(bert: Path, tmp_path: Path, pooling: str, *, normalize: bool) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    write_modules(folder, pooling=pooling, normalize=normalize, max_seq_length=20)
    result = load(folder).embed(["the cat sleeps", "a ship carries sealed goods across the water"])
    for vector, text in zip(
        result.vectors, ["the cat sleeps", "a ship carries sealed goods across the water"], strict=True
    ):
        states, _ = hidden(folder, text, 20)
        pooled = {"cls": states[0], "mean": states.mean(dim=0), "max": states.max(dim=0).values}[pooling]
        np.testing.assert_allclose(vector, unit(pooled) if normalize else pooled.numpy(), atol=2e-6)


def test_settings_override_length_and_normalisation(bert: Path) -> None:
    adapter = load(bert, max_length=10, normalize_embeddings=False)
    result = adapter.embed(["the quick brown fox jumps over the lazy dog and the cat"])
    states, _ = hidden(bert, "the quick brown fox jumps over the lazy dog and the cat", 10)
    np.testing.assert_allclose(result.vectors[0], states.mean(dim=0).numpy(), atol=2e-6)
    assert (result.token_counts, result.truncated, adapter.info.limit) == ((10,), (True,), 10)


def test_more_length_than_positions_is_refused(bert: Path, xlmr: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"^model 'm': settings: max_length: 65 is more than the model's 64 positions$"
    ):
        load(bert, max_length=65)
    with pytest.raises(AdapterError, match=r"129 is more than the model's 128 positions"):
        load(xlmr, max_length=129)


@pytest.mark.parametrize("settings", [{}, {"batch_tokens": 64}, {"batch_size": 3}, {"batch_tokens": 1}])
def test_batches_change_nothing_but_rounding(m3: BgeM3Adapter, xlmr: Path, settings: dict[str, JSON]) -> None:
    source = random.Random(7)  # noqa: S311 - a test's texts
    words = " ".join(CORPUS).split()
    texts = [" ".join(source.choices(words, k=source.randint(0, 90))) for _ in range(40)]
    batched = load(xlmr, "bge-m3", **settings).embed_multi(texts, sparse=True, colbert=True)
    assert batched.dense is not None
    assert batched.sparse is not None
    assert batched.colbert is not None
    for index, text in enumerate(texts):
        alone = m3.embed_multi([text], sparse=True, colbert=True)
        assert alone.dense is not None
        assert alone.sparse is not None
        assert alone.colbert is not None
        np.testing.assert_allclose(batched.dense[index], alone.dense[0], atol=2e-6)
        np.testing.assert_allclose(batched.colbert[index], alone.colbert[0], atol=5e-6)
        assert batched.sparse[index].keys() == alone.sparse[0].keys()
        assert batched.sparse[index] == pytest.approx(alone.sparse[0], abs=1e-4)


def test_m3_by_hand(m3: BgeM3Adapter, xlmr: Path) -> None:
    result = m3.embed_multi(TEXTS, sparse=True, colbert=True)
    sparse_head, colbert_head = (
        load_file(xlmr / "sparse_linear.safetensors"),
        load_file(xlmr / "colbert_linear.safetensors"),
    )
    assert result.dense is not None
    assert result.sparse is not None
    assert result.colbert is not None
    weights_seen = 0
    for index, text in enumerate(TEXTS):
        states, ids = hidden(xlmr, text, 128)
        np.testing.assert_allclose(result.dense[index], unit(states[0]), atol=2e-6)
        per_token = states[1:] @ colbert_head["weight"].T + colbert_head["bias"]
        assert result.colbert[index].shape == (len(ids) - 1, 32)
        np.testing.assert_allclose(result.colbert[index], unit(per_token), atol=5e-6)
        weights = torch.relu(states @ sparse_head["weight"].T + sparse_head["bias"]).squeeze(-1).tolist()
        largest: dict[int, float] = {}
        for token, weight in zip(ids, weights, strict=True):
            if token > 3 and weight > 0:  # 0 to 3 are <s>, <pad>, </s> and <unk>
                largest[token] = max(weight, largest.get(token, 0.0))
        assert result.sparse[index] == pytest.approx(largest, abs=1e-4)
        weights_seen += len(largest)
    assert weights_seen > 20


def test_m3_one_forward_for_all_three(m3: BgeM3Adapter) -> None:
    calls: list[int] = []
    hook = engine_of(m3).encoder.network.register_forward_hook(lambda *_: calls.append(1))
    try:
        m3.embed_multi(["the cat", "a ship"], sparse=True, colbert=True)
    finally:
        hook.remove()
    assert calls == [1]


def test_no_mask_when_nothing_is_padded(m3: BgeM3Adapter) -> None:
    rows = m3._reader.read(["the cat", "the dog", "the cat sleeps"])
    encoder = engine_of(m3).encoder
    masks = {batch.rows: batch.mask for batch in encoder.forward(rows[:2])}
    assert masks == {(0, 1): None}
    padded = next(iter(encoder.forward(rows)))
    assert padded.mask is not None
    assert padded.lengths() == [5, 4, 4]


def test_m3_public_interface(xlmr: Path) -> None:
    adapter = BgeM3Adapter(
        str(xlmr), device="cpu", use_fp16=True, max_length=16, batch_size=12, normalize_embeddings=True
    )
    query, documents = adapter.embed_query("the cat"), adapter.embed_documents(["the cat", "a ship"])
    assert query == pytest.approx(documents[0], abs=2e-6)
    assert all(type(value) is float for value in query)
    similarities = adapter.compute_similarity(query, documents)
    assert similarities[0] == pytest.approx(1)
    assert similarities[1] == pytest.approx(float(np.dot(query, documents[1])), abs=1e-5)
    assert adapter.get_embedding_dimension() == 32
    multi = adapter.get_multi_embeddings(["the cat"], return_sparse=True)
    assert set(multi) == {"dense_vecs", "lexical_weights", "colbert_vecs", "truncated"}
    assert multi["truncated"] == [False]
    assert multi["colbert_vecs"] is None
    assert json.loads(json.dumps(multi["lexical_weights"])) == multi["lexical_weights"]
    info = adapter.get_model_info()
    expected = {"max_length": 16, "batch_size": 12, "embedding_dimension": 32, "device": "cpu", "dtype": "float32"}
    assert {key: info[key] for key in expected} == expected


def test_m3_without_normalisation(xlmr: Path) -> None:
    result = load(xlmr, "bge-m3", normalize_embeddings=False).embed(["the cat"])
    states, _ = hidden(xlmr, "the cat", 128)
    np.testing.assert_allclose(result.vectors[0], states[0].numpy(), atol=2e-6)


@pytest.mark.parametrize(
    ("query", "documents"), [([1.0, 0.0], [[1.0, 0.0, 0.0]]), ([0.0, 0.0], [[1.0, 0.0]]), ([1.0, 0.0], [[0.0, 0.0]])]
)
def test_similarity_refuses_other_shapes_and_zero_vectors(
    m3: BgeM3Adapter, query: list[float], documents: list[list[float]]
) -> None:
    with pytest.raises(RequestError, match=r"^compute_similarity: "):
        m3.compute_similarity(query, documents)


def test_m3_refuses_a_folder_without_heads_unless_dense_only(xlmr: Path, m3: BgeM3Adapter, tmp_path: Path) -> None:
    folder = shutil.copytree(xlmr, tmp_path / "model")
    (folder / "sparse_linear.safetensors").unlink()
    (folder / "colbert_linear.safetensors").unlink()
    with pytest.raises(AdapterError) as caught:
        load(folder, "bge-m3")
    expected = f"model 'm': {folder} has neither sparse_linear.safetensors nor sparse_linear.pt, a head of BGE-M3"
    assert caught.value.message == expected
    assert caught.value.hint == "fetch the whole folder, or set return_sparse: false to do without"
    adapter = load(folder, "bge-m3", return_sparse=False, return_colbert_vecs=False)
    np.testing.assert_array_equal(adapter.embed(["the cat"]).vectors, m3.embed(["the cat"]).vectors)
    with pytest.raises(RequestError, match=r"^model 'm' was loaded without its colbert head$"):
        adapter.embed_multi(["the cat"], colbert=True)


def test_m3_reads_pickled_heads_with_the_same_numbers(xlmr: Path, m3: BgeM3Adapter, tmp_path: Path) -> None:
    folder = shutil.copytree(xlmr, tmp_path / "model")
    for name in ("sparse_linear", "colbert_linear"):
        torch.save(load_file(folder / f"{name}.safetensors"), folder / f"{name}.pt")
        (folder / f"{name}.safetensors").unlink()
    ours, theirs = (
        load(folder, "bge-m3").embed_multi(["the cat"], sparse=True),
        m3.embed_multi(["the cat"], sparse=True),
    )
    assert ours.sparse == theirs.sparse


class Pickled:
    """Something that only the full pickle machinery could load."""


def test_m3_refuses_heads_that_are_code_or_of_another_shape(xlmr: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(xlmr, tmp_path / "model")
    (folder / "sparse_linear.safetensors").unlink()
    torch.save(Pickled(), folder / "sparse_linear.pt")
    with pytest.raises(AdapterError, match=r"sparse_linear\.pt can't be read: "):
        load(folder, "bge-m3")
    torch.save({"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, folder / "sparse_linear.pt")
    with pytest.raises(AdapterError, match=r"expected weight \(1, 32\) and bias \(1,\)"):
        load(folder, "bge-m3")


def test_missing_modules_json_is_never_guessed(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    (folder / "modules.json").unlink()
    with pytest.raises(AdapterError) as caught:
        load(folder)
    expected = f"model 'm': {folder} has no modules.json, so its pooling and normalisation are unknown"
    assert caught.value.message == expected


def test_modules_and_poolings_that_are_not_known(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_lasttoken": True})
    with pytest.raises(AdapterError, match="pooling pooling_mode_lasttoken isn't one this adapter has"):
        load(folder)
    kinds = ("Transformer", "Pooling", "LSTM")
    modules = [{"path": "" if kind == "Transformer" else kind, "type": f"x.{kind}"} for kind in kinds]
    write_json(folder / "modules.json", modules)
    with pytest.raises(AdapterError, match=r"^model 'm': modules.json declares Transformer, Pooling, LSTM$"):
        load(folder)


def test_default_prompt_is_put_before_texts_but_not_before_tokens(bert: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bert, tmp_path / "model")
    prompts = {"prompts": {"query": "the "}, "default_prompt_name": "query"}
    write_json(folder / "config_sentence_transformers.json", prompts)
    prefixed, plain = load(folder), load(bert)
    assert isinstance(prefixed, SentenceTransformerAdapter)
    np.testing.assert_array_equal(prefixed.embed(["cat"]).vectors, plain.embed(["the cat"]).vectors)


def test_token_lists_are_the_models_own(bert: Path) -> None:
    adapter = load(bert)
    tokenizer = AutoTokenizer.from_pretrained(bert, local_files_only=True)
    ids = tokenizer("the cat")["input_ids"]
    result = adapter.embed([ids, "the cat"])
    np.testing.assert_allclose(result.vectors[0], result.vectors[1], atol=1e-6)
    with pytest.raises(RequestError, match=r"^input 1: token 99999 is not in the vocabulary of 'm' "):
        adapter.embed(["the cat", [5, 99999]])
    with pytest.raises(RequestError, match=r"^input 0: an empty list of tokens$"):
        adapter.embed([[]])
    with pytest.raises(RequestError, match=r"^input 0: not valid Unicode: a lone surrogate at character 1$"):
        adapter.embed(["a\ud800"])


def test_nothing_in_nothing_out(m3: BgeM3Adapter) -> None:
    assert m3.embed([]).vectors.shape == (0, 32)
    with pytest.raises(RequestError, match="nothing asked for"):
        m3.embed_multi(["a"], dense=False)


@pytest.mark.parametrize("packed", [True, False])
def test_out_of_memory_halves_the_batch_and_gives_up_at_one(xlmr: Path, m3: BgeM3Adapter, packed: bool) -> None:
    adapter = load(xlmr, "bge-m3")
    encoder = engine_of(adapter).encoder
    if not packed:
        encoder.packed = False
        encoder.network.set_attn_implementation("sdpa")
    whole, sizes = encoder.network, []

    def scarce(limit: int) -> Any:  # noqa: ANN401 - stands for the network
        def forward(input_ids: torch.Tensor, **more: object) -> object:
            count = int((input_ids == 0).sum())  # each text begins with one
            sizes.append(count)
            if count > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return whole(input_ids=input_ids, **more)

        return forward

    class Scarce:
        def __init__(self, limit: int) -> None:
            self.config, self.device = whole.config, whole.device
            self.forward = scarce(limit)

        def __call__(self, **inputs: Any) -> Any:  # noqa: ANN401 - as above
            return self.forward(**inputs)

    texts = ["the cat", "a ship", "fox", "서울이다"]
    encoder.network = Scarce(1)
    np.testing.assert_allclose(adapter.embed(texts).vectors, m3.embed(texts).vectors, atol=2e-6)
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    encoder.network = Scarce(0)
    with pytest.raises(AdapterError, match=r"^model 'm': out of memory on one input of 4 tokens$"):
        adapter.embed(["the cat"])


def test_the_guides_name_and_defaults(xlmr: Path) -> None:
    adapter = BGEM3OfflineAdapter(str(xlmr))
    info = adapter.get_model_info()
    assert (info["max_length"], info["batch_size"], info["use_fp16"]) == (128, 12, True)
    assert adapter.info.limit == 128  # 8192 is the most, and the folder allows 128
    with pytest.raises(AdapterError, match=r"^model '.*': settings: devise: adapter 'bge-m3' has no such setting$"):
        BGEM3OfflineAdapter(str(xlmr), devise="cpu")


def test_lexical_weights_by_token_on_request(m3: BgeM3Adapter) -> None:
    texts = ["the cat", "대한민국의 수도는 서울이다"]
    by_id = m3.get_multi_embeddings(texts, return_dense=False, return_sparse=True)["lexical_weights"]
    by_token = m3.get_multi_embeddings(texts, return_sparse=True, token_strings=True)["lexical_weights"]
    assert isinstance(by_id, list)
    assert isinstance(by_token, list)
    assert json.loads(json.dumps(by_token)) == by_token
    tokenizer = AutoTokenizer.from_pretrained(m3.info.directory, local_files_only=True)
    for ids, tokens in zip(by_id, by_token, strict=True):
        assert {tokenizer.convert_tokens_to_ids(token): weight for token, weight in tokens.items()} == {
            int(token): weight for token, weight in ids.items()
        }
    assert any(token.startswith("▁") for token in by_token[0] | by_token[1])


@pytest.mark.parametrize("length", [1, 5, 126, 127, 128, 129, 400])
def test_long_texts_are_cut_as_transformers_cuts_them(m3: BgeM3Adapter, length: int) -> None:
    text = " ".join(["the"] * length)
    (row,) = m3._reader.read([text])
    tokenizer = AutoTokenizer.from_pretrained(m3.info.directory, local_files_only=True)
    assert list(row.ids) == tokenizer(text, truncation=True, max_length=128)["input_ids"]
    assert row.truncated == (length + 2 > 128)


def test_cut_texts_are_reported(m3: BgeM3Adapter, caplog: pytest.LogCaptureFixture) -> None:
    long = "the quick brown fox " * 60
    assert m3.embed(["fox", long]).truncated == (False, True)
    assert m3.get_multi_embeddings([long, "fox"], return_sparse=True)["truncated"] == [True, False]
    assert caplog.messages == ["model m3: 1 of 2 texts were cut to 128 tokens"]
    m3.embed_documents([long])
    assert caplog.messages[1:] == ["model m3: 1 of 1 texts were cut to 128 tokens"]


def test_progress_is_told_after_each_batch(xlmr: Path) -> None:
    told: list[tuple[int, int]] = []
    load(xlmr, "bge-m3", batch_size=2).embed_documents(["a", "b", "c", "d", "e"], progress=lambda *at: told.append(at))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_one_text_where_a_list_is_expected(m3: BgeM3Adapter) -> None:
    with pytest.raises(TypeError, match=r"^embed_documents: expected a list of texts, got one text"):
        m3.embed_documents("the cat")


def test_flagembedding_that_is_not_there(xlmr: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load(xlmr, "bge-m3", backend="flagembedding")
    assert caught.value.message.startswith("model 'm': settings: backend: FlagEmbedding can't be imported beside tra")
    assert caught.value.message.endswith(": No module named 'FlagEmbedding'")
    assert "transformers<5.24" in str(caught.value.hint)


def test_langchain_that_is_not_there(m3: BgeM3Adapter) -> None:
    with pytest.raises(AdapterError) as caught:
        m3.as_langchain()
    assert caught.value.message == "model 'm3': LangChain needs langchain_core, which isn't installed here"
    assert caught.value.hint == "add langchain-core to the bundle's requirements"


def test_threads_take_turns(m3: BgeM3Adapter) -> None:
    texts = [f"the cat {word}" for word in " ".join(CORPUS).split()]
    expected = [m3.embed_query(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(m3.embed_query, texts)) == expected
