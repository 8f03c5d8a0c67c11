"""Texts without padding: the same numbers as each text alone, and only where that was seen to be so."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    CamembertConfig,
    DistilBertConfig,
    PreTrainedConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from runtime.adapters import packing
from runtime.adapters.base import ModelConfig
from runtime.adapters.bge_m3 import BgeM3Adapter
from runtime.adapters.m3_engine import TransformersEngine
from runtime.adapters.packing import PACKED, can_pack, forward_packed, packed_attention, round_up
from runtime.adapters.sentence_transformer import SentenceTransformerAdapter
from tests.factories_models import write_modules

pytestmark = pytest.mark.models
PAD = 1  # of the tiny XLM-R
TEXTS = [
    "the cat",
    "",
    "the quick brown fox jumps over the lazy dog",
    "a",
    "서울",
    "the cat",
    "a ship " * 40,
    "<pad> a",
]


def network_of(folder: Path, attention: str) -> torch.nn.Module:
    network: torch.nn.Module = AutoModel.from_pretrained(folder, attn_implementation=attention, dtype=torch.float32)
    return network.eval()


@pytest.mark.parametrize("kind", ["xlmr", "bert"])
@pytest.mark.parametrize("lengths", [[7], [9, 9, 9], [30, 12, 12, 5, 1]])
def test_hidden_states_are_those_of_each_text_alone(
    kind: str, lengths: list[int], request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(kind)
    assert can_pack(AutoConfig.from_pretrained(folder))
    packed, plain = network_of(folder, PACKED), network_of(folder, "sdpa")
    rows = [[(5 + 7 * place + text) % 60 + 4 for place in range(length)] for text, length in enumerate(lengths)]
    rows[0][2] = PAD  # one that somebody wrote
    with torch.inference_mode():
        found = forward_packed(packed, rows)
        alone = [plain(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    assert [tuple(states.shape) for states in found] == [tuple(states.shape) for states in alone]
    for mine, theirs in zip(found, alone, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=0)


def test_all_three_kinds_of_vectors_are_those_of_padded_batches(xlmr: Path) -> None:
    packed, padded = (
        BgeM3Adapter.from_config(ModelConfig(name="m", adapter="bge-m3", directory=xlmr)) for _ in range(2)
    )
    assert isinstance(padded._engine, TransformersEngine)
    assert isinstance(packed._engine, TransformersEngine)
    assert packed._engine.encoder.packed
    padded._engine.encoder.packed = False
    padded._engine.encoder.network.set_attn_implementation("sdpa")
    mine, theirs = (one.embed_multi(TEXTS, sparse=True, colbert=True) for one in (packed, padded))
    assert mine.dense is not None
    assert theirs.dense is not None
    np.testing.assert_allclose(mine.dense, theirs.dense, atol=2e-6, rtol=0)
    assert mine.sparse is not None
    assert theirs.sparse is not None
    for one, other in zip(mine.sparse, theirs.sparse, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert mine.colbert is not None
    assert theirs.colbert is not None
    for vectors, others in zip(mine.colbert, theirs.colbert, strict=True):
        np.testing.assert_allclose(vectors, others, atol=2e-6, rtol=0)
    assert (mine.token_counts, mine.truncated) == (theirs.token_counts, theirs.truncated)


def test_mean_pooling_sees_no_padding(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bert"
    folder.mkdir()
    for path in bert.iterdir():
        (folder / path.name).symlink_to(path)
    write_modules(folder, pooling="mean", normalize=True)
    adapter = SentenceTransformerAdapter(ModelConfig(name="m", adapter="sentence-transformer", directory=folder))
    assert adapter._encoder.packed
    together = adapter.embed(TEXTS).vectors
    alone = [adapter.embed([text]).vectors[0] for text in TEXTS]
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", [BertConfig, CamembertConfig, RobertaConfig, XLMRobertaConfig])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_kinds_that_can(kind: type[PreTrainedConfig], dtype: str) -> None:
    before = torch.random.get_rng_state()
    assert can_pack(kind(dtype=dtype))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_kinds_that_can_t() -> None:
    assert not can_pack(DistilBertConfig())
    assert not can_pack(BertConfig(is_decoder=True))


def leaky(
    _: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    **__: object,
) -> tuple[torch.Tensor, None]:
    """Attend across the texts of a batch."""
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
    return found.transpose(1, 2), None


def deaf(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
) -> tuple[torch.Tensor, None]:
    """Take no lengths: an unexpected argument."""
    return leaky(module, query, key, value, mask, scaling=scaling)


@pytest.mark.parametrize("attention", [leaky, deaf])
def test_a_version_that_gives_other_numbers_or_none_is_not_used(
    attention: Callable[..., tuple[torch.Tensor, None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(packing, "packed_attention", attention)
    assert not can_pack(XLMRobertaConfig())
    monkeypatch.undo()
    assert can_pack(XLMRobertaConfig())


def test_few_numbers_of_tokens_are_ever_computed() -> None:
    assert [round_up(count) for count in (1, 4, 5, 33, 129, 513, 1024, 8191)] == [4, 4, 8, 40, 144, 544, 1024, 8192]
    rounded = {count: round_up(count) for count in range(1, 1025)}
    assert len(set(rounded.values())) == 60
    assert all(count <= more < count * 1.25 + 4 for count, more in rounded.items())


def test_wrong_positions_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_ROBERTAS", frozenset())
    assert not can_pack(XLMRobertaConfig())


def test_attention_refuses_what_it_would_get_wrong() -> None:
    module, values = torch.nn.Module(), torch.zeros(1, 2, 5, 4)
    outputs, _ = packed_attention(module, values, values, values, None, packed_lengths=[3, 2])
    assert outputs.shape == (1, 5, 2, 4)
    wrong: list[tuple[torch.Tensor, torch.Tensor | None, list[int]]] = [
        (values, None, [3, 3]),
        (values, None, []),
        (values, torch.ones(1, 1, 5, 5), [3, 2]),
        (values.expand(2, 2, 5, 4), None, [3, 2]),
    ]
    for tensor, mask, lengths in wrong:
        with pytest.raises(ValueError, match=r"^packed attention takes one row of tokens"):
            packed_attention(module, tensor, tensor, tensor, mask, packed_lengths=lengths)


def test_a_folder_that_can_t_is_padded(xlmr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_KINDS", frozenset())
    adapter = BgeM3Adapter.from_config(ModelConfig(name="m", adapter="bge-m3", directory=xlmr))
    assert isinstance(adapter._engine, TransformersEngine)
    encoder = adapter._engine.encoder
    assert (encoder.packed, encoder.network.config._attn_implementation) == (False, "sdpa")
    assert adapter.embed(["the cat", "a ship on the sea"]).vectors.shape == (2, 32)
