"""Tiny models, built once for all tests of adapters; read-only by agreement."""

from pathlib import Path

import pytest

from runtime.adapters import load_adapter
from runtime.adapters.base import ModelConfig
from runtime.adapters.bge_m3 import BgeM3Adapter
from runtime.adapters.causal_lm import CausalLmAdapter
from tests.factories_models import make_bert, make_hyperclovax, make_llama, make_xlmr


@pytest.fixture(scope="session")
def xlmr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_xlmr(tmp_path_factory.mktemp("models") / "xlmr")


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def hyperclovax(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hyperclovax(tmp_path_factory.mktemp("models") / "hyperclovax")


@pytest.fixture(scope="session")
def m3(xlmr: Path) -> BgeM3Adapter:
    adapter = load_adapter(ModelConfig(name="m3", adapter="bge-m3", directory=xlmr))
    assert isinstance(adapter, BgeM3Adapter)
    return adapter


@pytest.fixture(scope="session")
def chat(llama: Path) -> CausalLmAdapter:
    config = ModelConfig(name="chat", adapter="causal-lm", directory=llama, settings={"dtype": "float32"})
    adapter = load_adapter(config)
    assert isinstance(adapter, CausalLmAdapter)
    return adapter
