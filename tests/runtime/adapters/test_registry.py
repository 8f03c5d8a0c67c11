"""Loading by name: the registry, folders, and settings."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from bundler.spec import ADAPTERS as SPEC_ADAPTERS
from manifests.errors import AdapterError
from manifests.modelsettings import (
    KINDS,
    REFUSED,
    BgeM3Settings,
    CausalLmSettings,
    SentenceTransformerSettings,
    parse_settings,
)
from runtime.adapters import ADAPTERS, load_adapter
from runtime.adapters.base import JSON, ModelConfig

PROJECT = Path(__file__).parents[3]
pytestmark = pytest.mark.models


def config(settings: Mapping[str, JSON], adapter: str = "bge-m3", directory: Path = Path("nowhere")) -> ModelConfig:
    return ModelConfig(name="m", adapter=adapter, directory=directory, settings=settings)


def test_every_adapter_has_settings_and_a_place_in_a_spec() -> None:
    assert set(ADAPTERS) == set(KINDS) == set(SPEC_ADAPTERS)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, runtime.adapters; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_adapter_names_the_nearest() -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(config({}, adapter="bgem3"))
    assert caught.value.message == "model 'm': unknown adapter 'bgem3'"
    assert caught.value.hint == "did you mean 'bge-m3'?"


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_a_folder_that_is_not_there_is_an_error_at_once(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(config({}, adapter=adapter, directory=tmp_path / "BAAI" / "bge-m3"))
    assert caught.value.message == f"model 'm': {tmp_path}/BAAI/bge-m3 is not a folder"
    assert caught.value.hint == "a model is always a folder on this host; hub names are never looked up"


@pytest.mark.parametrize("adapter", sorted(ADAPTERS))
def test_a_folder_without_config_is_refused(adapter: str, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(config({}, adapter=adapter, directory=tmp_path))
    assert caught.value.message == f"model 'm': {tmp_path} has no config.json"


def test_code_in_another_repository_is_refused(tmp_path: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "someone/repo--modeling.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": auto_map}), encoding="utf-8")
    with pytest.raises(AdapterError) as caught:
        load_adapter(config({}, adapter="causal-lm", directory=tmp_path))
    assert "auto_map points at another repository: 'someone/repo--modeling.Model'" in caught.value.message


def test_an_unknown_architecture_is_an_adapter_error_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}', encoding="utf-8")
    with pytest.raises(AdapterError, match=r"model 'm': .* can't be loaded: .*no-such-type"):
        load_adapter(config({}, adapter="causal-lm", directory=tmp_path))


def test_settings_take_sections_decimal_strings_and_lists() -> None:
    written: dict[str, JSON] = {
        "device": "cpu",
        "generation": {"temperature": "0.7", "top_p": 0.9, "max_length": 128, "stop": ["끝"]},
        "optimization": {"use_flash_attention": True},
    }
    parsed = parse_settings(config(written, "hcx"), CausalLmSettings)
    expected = CausalLmSettings(
        device="cpu", temperature=0.7, top_p=0.9, max_length=128, stop=("끝",), use_flash_attention=True
    )
    assert parsed == expected


@pytest.mark.parametrize(
    ("settings", "message", "hint"),
    [
        (
            {"batch_sise": 12},
            "model 'm': settings: batch_sise: adapter 'bge-m3' has no such setting",
            "did you mean 'batch_size'?",
        ),
        (
            {"optimization": {"gradient_checkpointing": False}},
            f"model 'm': settings: gradient_checkpointing: refused: {REFUSED['gradient_checkpointing']}",
            "remove the key",
        ),
        ({"batch_size": "12"}, "model 'm': settings: batch_size: expected an integer, got a string", None),
        ({"batch_size": True}, "model 'm': settings: batch_size: expected an integer, got a boolean", None),
        ({"max_length": 0}, "model 'm': settings: max_length: expected at least 1, got 0", None),
        (
            {"device": "gpu"},
            "model 'm': settings: device: expected auto, cpu, cuda, cuda:N or mps, got 'gpu'",
            None,
        ),
        (
            {"dtype": "int8"},
            "model 'm': settings: dtype: expected auto or float32 or float16 or bfloat16, got 'int8'",
            None,
        ),
        (
            {"use_fp16": True, "dtype": "float32"},
            "model 'm': settings: use_fp16: true contradicts dtype 'float32'",
            None,
        ),
        ({"max_length": 8, "performance": {"max_length": 9}}, "model 'm': settings: max_length: written twice", None),
        (
            {"backend": "onnx"},
            "model 'm': settings: backend: expected transformers or flagembedding, got 'onnx'",
            None,
        ),
        (
            {"backend": "flagembedding", "batch_tokens": 512},
            "model 'm': settings: batch_tokens: backend 'flagembedding' counts texts, use batch_size",
            None,
        ),
        (
            {"backend": "flagembedding", "int8": True},
            "model 'm': settings: int8: backend 'flagembedding' has none",
            None,
        ),
        (
            {"backend": "flagembedding", "dtype": "bfloat16"},
            "model 'm': settings: dtype: backend 'flagembedding' has no 'bfloat16', use_fp16 chooses float16",
            None,
        ),
        (
            {"int8": True, "device": "cuda"},
            "model 'm': settings: int8: for a CPU only, contradicts device 'cuda'; use_fp16 is for accelerators",
            None,
        ),
        (
            {"int8": True, "dtype": "bfloat16"},
            "model 'm': settings: int8: true contradicts dtype 'bfloat16'",
            None,
        ),
        (
            {"pack_weights": True, "device": "cuda:1"},
            "model 'm': settings: pack_weights: for float32 on a CPU only, contradicts device 'cuda:1'",
            None,
        ),
        (
            {"pack_weights": True, "dtype": "bfloat16"},
            "model 'm': settings: pack_weights: for float32 on a CPU only, contradicts dtype 'bfloat16'",
            None,
        ),
        (
            {"pack_weights": True, "int8": True},
            "model 'm': settings: pack_weights: contradicts int8, whose products are others",
            None,
        ),
        (
            {"pack_weights": True, "backend": "flagembedding"},
            "model 'm': settings: pack_weights: backend 'flagembedding' does its own products",
            None,
        ),
        (
            {"optimization": {"enable_cache": True, "clear_cache_interval": 1000}},
            f"model 'm': settings: clear_cache_interval: refused: {REFUSED['clear_cache_interval']}",
            "remove the key",
        ),
        ({"cache_size": 0}, "model 'm': settings: cache_size: expected at least 1, got 0", None),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, JSON], message: str, hint: str | None) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_settings(config(settings), BgeM3Settings)
    assert (caught.value.message, caught.value.hint) == (message, hint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature: expected 0 (greedy) to 100, got -1"),
        ({"top_p": "0"}, "top_p: expected more than 0, at most 1, got 0"),
        ({"temperature": "warm"}, "temperature: expected a number, got 'warm'"),
        ({"stop": [""]}, "stop: expected a list of non-empty strings, got a list"),
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_4bit: contradicts load_in_8bit, choose one"),
    ],
)
def test_wrong_generation_settings(settings: dict[str, JSON], message: str) -> None:
    with pytest.raises(AdapterError) as caught:
        parse_settings(config(settings), CausalLmSettings)
    assert caught.value.message == f"model 'm': settings: {message}"


def test_an_accelerator_that_is_not_here_is_refused(bert: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(config({"device": "mps"}, "sentence-transformer", bert))
    assert caught.value.message == "model 'm': settings: device: 'mps' isn't available on this host"


def test_defaults_have_no_hidden_batch_limit() -> None:
    assert parse_settings(config({}), SentenceTransformerSettings) == SentenceTransformerSettings()
