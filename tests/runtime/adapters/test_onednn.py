"""Products by oneDNN: the same numbers, the same weights, only where they belong."""

import platform

import pytest
import torch

from runtime.adapters.bge_m3 import BgeM3Adapter
from runtime.adapters.m3_engine import TransformersEngine
from runtime.adapters.onednn import OneDnnLinear, use_onednn

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
    assert done == (platform.machine() == "x86_64")
    assert [type(module) is OneDnnLinear for module in network] == [done, False, done]


def test_other_types_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.nn.Linear(4, 4).bfloat16()
    use_onednn(half)
    assert type(half) is torch.nn.Linear
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    single = torch.nn.Linear(4, 4)
    assert not use_onednn(single)
    assert type(single) is torch.nn.Linear


def test_a_loaded_model_uses_it(m3: BgeM3Adapter) -> None:
    assert isinstance(m3._engine, TransformersEngine)
    linears = [module for module in m3._engine.encoder.network.modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) > 10
    assert {type(module) for module in linears} == {OneDnnLinear if platform.machine() == "x86_64" else torch.nn.Linear}
