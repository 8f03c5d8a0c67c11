"""Products by oneDNN: the same numbers, the same weights, only where they belong."""

import platform
from pathlib import Path

import pytest
import torch

from manifests.errors import AdapterError
from runtime.adapters.base import JSON, GenerationParams, ModelConfig
from runtime.adapters.bge_m3 import BgeM3Adapter
from runtime.adapters.causal_lm import CausalLmAdapter
from runtime.adapters.m3_engine import TransformersEngine
from runtime.adapters.onednn import OneDnnLinear, PackedLinear, use_onednn

pytestmark = pytest.mark.models


def test_same_numbers_from_the_same_weights() -> None:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8, bias=False))
    values = torch.randn(3, 5, 64)
    weights = [parameter.data_ptr() for parameter in network.parameters()]
    with torch.inference_mode():
        expected = network(values)
        done = use_onednn(network)
        found = network(values)
        nothing = network(values[:0])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert nothing.shape == (0, 5, 8)
    assert [parameter.data_ptr() for parameter in network.parameters()] == weights
    assert done == ("products: oneDNN" if platform.machine() == "x86_64" else "")
    assert [type(module) is OneDnnLinear for module in network] == [bool(done), False, bool(done)]


@pytest.mark.parametrize("tokens", [1, 3, 32, 600])
def test_packed_weights_give_the_same_numbers(tokens: int) -> None:
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.Tanh(), torch.nn.Linear(32, 8, bias=False))
    values = torch.randn(tokens, 64)
    with torch.inference_mode():
        expected = network(values)
        done = use_onednn(network, pack=True)
        found = network(values)
        nothing = network(values[:0])
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)
    assert nothing.shape == (0, 8)
    assert done == ("products: oneDNN, weights packed: 0 MB more memory" if platform.machine() == "x86_64" else "")
    assert [type(module) is PackedLinear for module in network] == [bool(done), False, bool(done)]


def test_other_types_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.nn.Linear(4, 4).bfloat16()
    use_onednn(half)
    assert type(half) is torch.nn.Linear
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    single = torch.nn.Linear(4, 4)
    assert not use_onednn(single)
    assert type(single) is torch.nn.Linear


def linears_of(network: torch.nn.Module) -> set[type[torch.nn.Module]]:
    linears = [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) > 10
    return {type(module) for module in linears}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's products are for x86")
@pytest.mark.parametrize(
    ("asked", "kind"),
    [({}, PackedLinear), ({"pack_weights": True}, PackedLinear), ({"pack_weights": False}, OneDnnLinear)],
)
def test_an_embedder_packs_unless_told_otherwise(xlmr: Path, asked: dict[str, JSON], kind: type) -> None:
    adapter = BgeM3Adapter.from_config(ModelConfig(name="m", adapter="bge-m3", directory=xlmr, settings=asked))
    assert isinstance(adapter._engine, TransformersEngine)
    assert linears_of(adapter._engine.encoder.network) == {kind}
    (note,) = [note for note in adapter.info.notes if note.startswith("products")]
    assert note.startswith("products: oneDNN, weights packed: ") == (kind is PackedLinear)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN's products are for x86")
@pytest.mark.parametrize(("asked", "kind"), [({}, OneDnnLinear), ({"pack_weights": True}, PackedLinear)])
def test_a_generator_packs_when_told_and_answers_the_same(
    llama: Path, chat: CausalLmAdapter, asked: dict[str, JSON], kind: type
) -> None:
    adapter = CausalLmAdapter.from_config(ModelConfig(name="m", adapter="causal-lm", directory=llama, settings=asked))
    assert linears_of(adapter._network) == {kind}
    short = GenerationParams(max_new_tokens=24)
    assert adapter.generate("the cat", short).text == chat.generate("the cat", short).text


def test_packed_weights_that_can_t_be_are_an_error(xlmr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(AdapterError) as caught:
        BgeM3Adapter.from_config(
            ModelConfig(name="m", adapter="bge-m3", directory=xlmr, settings={"pack_weights": True})
        )
    assert caught.value.message == (
        "model 'm': settings: pack_weights: for float32 on an x86 CPU only, and this CPU or this torch has no oneDNN"
    )
    assert caught.value.hint == "remove pack_weights"
    plain = BgeM3Adapter.from_config(ModelConfig(name="m", adapter="bge-m3", directory=xlmr))
    assert isinstance(plain._engine, TransformersEngine)
    assert linears_of(plain._engine.encoder.network) == {torch.nn.Linear}
