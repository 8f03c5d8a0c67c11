"""8-bit linear layers: close, the same whatever else is in the batch, and the report that says how close."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch

from manifests.errors import AdapterError
from manifests.modelsettings import EmbedderSettings
from runtime.adapters import load_adapter
from runtime.adapters.agreement import Agreement, compare, measure_agreement
from runtime.adapters.base import JSON, Embedder, ModelConfig
from runtime.adapters.hardware import choose_int8
from runtime.adapters.quantize import Int8Linear, quantize_linears
from tests.factories_models import CORPUS

pytestmark = pytest.mark.models
NOTHING: Final[Mapping[str, JSON]] = {}


def config(folder: Path, adapter: str = "bge-m3", settings: Mapping[str, JSON] = NOTHING) -> ModelConfig:
    return ModelConfig(name="m", adapter=adapter, directory=folder, settings=settings)


def embedder(folder: Path, **settings: JSON) -> Embedder:
    loaded = load_adapter(ModelConfig(name="m", adapter="bge-m3", directory=folder, settings=settings))
    assert isinstance(loaded, Embedder)
    return loaded


def test_a_layer_by_hand() -> None:
    linear = torch.nn.Linear(2, 2)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.27, -0.5], [0.0, 2.54]]))
        linear.bias.copy_(torch.tensor([10.0, 0.0]))
    layer = Int8Linear(linear)
    assert layer.weight.t().tolist() == [[127, -50], [0, 127]]
    assert layer.scale.tolist() == pytest.approx([0.01, 0.02])
    with torch.inference_mode():
        found = layer(torch.tensor([[[127.0, 2.0]], [[0.0, 0.0]]]))
    assert found.shape == (2, 1, 2)
    torch.testing.assert_close(found, torch.tensor([[[170.29, 5.08]], [[10.0, 0.0]]]), atol=1e-4, rtol=0)


def test_a_layer_is_close_and_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(3)
    linear = torch.nn.Linear(256, 64, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(64, 256, generator=generator))
    values = torch.randn(40, 256, generator=generator)
    layer = Int8Linear(linear)
    with torch.inference_mode():
        exact, found = linear(values), layer(values)
        assert float((exact - found).norm() / exact.norm()) < 0.02
        loud = torch.cat([values[:1], values[1:] * 1e6])
        torch.testing.assert_close(layer(loud)[0], layer(values[:1])[0], atol=0, rtol=0)


def test_every_linear_layer_is_replaced() -> None:
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ModuleList([torch.nn.Linear(4, 2), torch.nn.Tanh()]))
    assert quantize_linears(network) == 2
    assert [type(item).__name__ for item in network.modules() if not list(item.children())] == [
        "Int8Linear",
        "Int8Linear",
        "Tanh",
    ]


@pytest.mark.filterwarnings("error")
def test_int8_is_close_and_not_exact(xlmr: Path) -> None:
    exact, quick = embedder(xlmr).embed(CORPUS).vectors, embedder(xlmr, int8=True).embed(CORPUS).vectors
    cosines = (exact * quick).sum(axis=1)
    assert cosines.min() > 0.99
    assert np.abs(exact - quick).max() > 1e-4


def test_agreement_of_a_real_pair_of_models(xlmr: Path, bert: Path) -> None:
    for folder, adapter in ((xlmr, "bge-m3"), (bert, "sentence-transformer")):
        grouped: dict[str, JSON] = {"performance": {"use_fp16": True, "max_length": 40}}
        found = measure_agreement(config(folder, adapter, grouped), CORPUS)
        assert (found.texts, found.top) == (6, 5)
        assert 0.99 < found.cosine_min <= found.cosine_mean < 1
        assert found.overlap == 1.0  # all five others are the five nearest


def test_agreement_by_hand() -> None:
    exact = np.eye(3, dtype=np.float32)[[0, 1, 2]] + np.float32(0.1)
    assert compare(exact, exact * 3) == Agreement(texts=3, cosine_min=1.0, cosine_mean=1.0, top=2, overlap=1.0)
    one = compare(np.asarray([[1.0, 0.0]], dtype=np.float32), np.asarray([[1.0, 1.0]], dtype=np.float32))
    assert one.to_json() == {"texts": 1, "cosine_min": "0.707107", "cosine_mean": "0.707107", "top": 0, "overlap": None}


def test_overlap_counts_shared_neighbours() -> None:
    """Twelve points on a line of angles: ten of eleven others are neighbours; one pair trades places."""
    angles = np.linspace(0, 1, 12)
    exact = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    moved = exact.copy()
    moved[[0, 11]] = moved[[11, 0]]
    found = compare(exact, moved)
    assert found.top == 10
    first = [set(np.argsort(-np.delete(exact @ exact[i], i), kind="stable")[:10]) for i in range(12)]
    second = [set(np.argsort(-np.delete(moved @ moved[i], i), kind="stable")[:10]) for i in range(12)]
    assert found.overlap == pytest.approx(np.mean([len(a & b) / 10 for a, b in zip(first, second, strict=True)]))
    assert found.overlap is not None
    assert found.overlap < 1


def test_agreement_refuses_what_it_can_not_measure(xlmr: Path, llama: Path) -> None:
    with pytest.raises(AdapterError, match=r"^model 'm': an agreement report needs texts$"):
        measure_agreement(config(xlmr), [])
    with pytest.raises(AdapterError, match=r"^model 'm': an agreement report is for embedders, this one generates"):
        measure_agreement(config(llama, "causal-lm"), ["a"])
    zero = np.zeros((1, 2), dtype=np.float32)
    with pytest.raises(AdapterError, match=r"^agreement: a vector is zero or not finite$"):
        compare(zero, zero)
    with pytest.raises(AdapterError, match=r"^agreement: vectors of shape \(1, 2\) against \(1, 3\)$"):
        compare(zero, np.zeros((1, 3), dtype=np.float32))


def test_int8_on_an_accelerator_that_was_chosen_by_itself() -> None:
    settings = EmbedderSettings(int8=True)
    with pytest.raises(AdapterError) as caught:
        choose_int8(settings, torch.device("cuda"), model="m")
    assert caught.value.message == "model 'm': settings: int8: for a CPU only, and the device is cuda"
    assert choose_int8(EmbedderSettings(), torch.device("cuda"), model="m") == ()
    (note,) = choose_int8(settings, torch.device("cpu"), model="m")
    assert note.startswith("int8 linear layers: this CPU has ")
