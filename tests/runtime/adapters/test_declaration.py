"""What a folder of sentence-transformers declares: Dense modules, prompts, and what is refused by name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from manifests.errors import AdapterError
from runtime.adapters.base import JSON, ModelConfig
from runtime.adapters.sentence_transformer import SentenceTransformerAdapter
from tests.factories_models import write_dense, write_json, write_modules

pytestmark = pytest.mark.models


def load(folder: Path, **settings: JSON) -> SentenceTransformerAdapter:
    config = ModelConfig(name="m", adapter="sentence-transformer", directory=folder, settings=settings)
    return SentenceTransformerAdapter(config)


@pytest.fixture
def folder(bert: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bert, tmp_path / "model")


def refused(folder: Path, **settings: JSON) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        load(folder, **settings)
    return caught.value


@pytest.mark.parametrize("pickled", [False, True])
def test_dense_modules_come_after_the_pooling(folder: Path, *, pickled: bool) -> None:
    write_modules(folder, pooling="mean", normalize=False)
    pooled = torch.from_numpy(load(folder).embed(["the cat", "a ship sleeps"]).vectors)
    first = write_dense(folder, "2_Dense", rows=8, columns=32, activation="torch.nn.modules.activation.Tanh")
    second = write_dense(folder, "3_Dense", rows=5, columns=8, activation="torch.nn.modules.linear.Identity", seed=1)
    if pickled:
        torch.save(first, folder / "2_Dense" / "pytorch_model.bin")
        (folder / "2_Dense" / "model.safetensors").unlink()
    adapter = load(folder)
    assert adapter.dimension == adapter.info.dimension == 5
    expected = torch.tanh(pooled @ first["linear.weight"].T + first["linear.bias"])
    expected = expected @ second["linear.weight"].T + second["linear.bias"]
    found = adapter.embed(["the cat", "a ship sleeps"]).vectors
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-6)


def test_normalise_after_dense(folder: Path) -> None:
    write_dense(folder, "3_Dense", rows=8, columns=32, activation="torch.nn.modules.activation.Tanh")
    assert refused(folder).message == "model 'm': modules.json declares Transformer, Pooling, Normalize, Dense"
    write_modules(folder, pooling="mean", normalize=False)
    write_dense(folder, "2_Dense", rows=8, columns=32, activation="torch.nn.modules.activation.Tanh", normalize=True)
    np.testing.assert_allclose(np.linalg.norm(load(folder).embed(["the cat"]).vectors, axis=1), 1, atol=1e-6)


def test_dense_modules_that_do_not_fit(folder: Path) -> None:
    write_modules(folder, pooling="mean", normalize=False)
    write_dense(folder, "2_Dense", rows=8, columns=16, activation="torch.nn.modules.activation.Tanh")
    dense = folder / "2_Dense"
    assert refused(folder).message == (
        f"model 'm': {dense} has {{'linear.bias': (8,), 'linear.weight': (8, 16)}}, expected linear.weight of (any, 32)"
    )
    (dense / "model.safetensors").write_bytes(b"junk")
    assert refused(folder).message.startswith(f"model 'm': {dense / 'model.safetensors'} can't be read: ")
    (dense / "model.safetensors").unlink()
    assert refused(folder).message == f"model 'm': {dense} has neither model.safetensors nor pytorch_model.bin"
    write_json(dense / "config.json", {"activation_function": "someone.Activation"})
    assert refused(folder).message == (
        f"model 'm': {dense / 'config.json'}: activation someone.Activation, or a residual or other inputs"
    )


def test_queries_and_documents_get_their_own_prompts(folder: Path, bert: Path) -> None:
    prompts = {"query": "the cat ", "document": "a ship ", "passage": "never ", "other": "fox "}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts, "default_prompt_name": None})
    plain, adapter = load(bert), load(folder)
    np.testing.assert_array_equal(adapter.embed(["sleeps"]).vectors, plain.embed(["sleeps"]).vectors)
    assert adapter.embed_query("sleeps") == plain.embed_query("the cat sleeps")
    assert adapter.embed_documents(["sleeps"]) == plain.embed_documents(["a ship sleeps"])
    assert adapter.info.notes[-3:-1] == ("prompt for query texts: 'the cat '", "prompt for document texts: 'a ship '")
    chosen = load(folder, prompt_name="other")
    np.testing.assert_array_equal(chosen.embed(["sleeps"]).vectors, plain.embed(["fox sleeps"]).vectors)
    assert chosen.embed_query("sleeps") == chosen.embed_documents(["sleeps"])[0] == plain.embed_query("fox sleeps")
    error = refused(folder, prompt_name="nobody")
    assert error.message == "model 'm': config_sentence_transformers.json: no prompt named 'nobody'"
    assert error.hint == "it has document, other, passage, query"


def test_prompts_that_pooling_should_leave_out_are_refused(folder: Path) -> None:
    pooling = folder / "1_Pooling" / "config.json"
    write_json(pooling, {"pooling_mode_mean_tokens": True, "include_prompt": False})
    load(folder)
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": "the "}})
    assert refused(folder).message == f"model 'm': {pooling}: include_prompt: false isn't something this adapter has"
    write_json(folder / "config_sentence_transformers.json", {"prompts": ["the "]})
    assert refused(folder).message == "model 'm': config_sentence_transformers.json: prompts: expected a table of texts"


def test_sum_over_the_root_of_the_length(folder: Path, bert: Path) -> None:
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_sqrt_len_tokens": True})
    texts = ["the cat", "a ship sleeps in the sun"]
    plain = load(bert, normalize_embeddings=False).embed(texts)
    found = load(folder, normalize_embeddings=False).embed(texts).vectors
    np.testing.assert_allclose(found, plain.vectors * np.sqrt(plain.token_counts)[:, None], atol=5e-6)


def test_int8_reaches_the_encoder_alone(folder: Path) -> None:
    write_modules(folder, pooling="mean", normalize=False)
    state = write_dense(folder, "2_Dense", rows=8, columns=32, activation="torch.nn.modules.linear.Identity")
    save_file(state, folder / "2_Dense" / "model.safetensors")
    exact, quick = (load(folder, int8=wanted).embed(["the cat"]).vectors[0] for wanted in (False, True))
    assert 0 < np.abs(exact - quick).max() < 0.1
