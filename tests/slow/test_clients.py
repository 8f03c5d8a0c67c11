"""The clients that people use, unmodified, against a real server, each in a namespace without network."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from bundler.rehearsal.sandbox import find_isolation
from manifests.canonical import Json
from runtime.adapters import load_adapter
from runtime.adapters.base import Embedder, GenerationParams, Generator, Message, ModelConfig
from tests.clients_contract import PROMPT, TEXTS
from tests.factories_clients import client_venv
from tests.factories_langchain import ROOT
from tests.factories_models import make_bert, make_llama
from tests.factories_ragas import make_parrot
from tests.runtime.server.conftest import write_release
from tests.slow.test_ragas import SAID

pytestmark = [pytest.mark.slow, pytest.mark.models]
KEY: Final = "a-key-that-is-long-enough"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clients")
    make_bert(folder / "models" / "bert")
    make_llama(folder / "models" / "llama")
    make_parrot(folder / "models" / "parrot", json.dumps(SAID, ensure_ascii=False))
    models: dict[str, tuple[str, Mapping[str, Json]]] = {
        "bert": ("sentence-transformer", {}),
        "llama": ("causal-lm", {"dtype": "float32"}),
        "parrot": ("causal-lm", {"dtype": "float32"}),
    }
    return write_release(folder, models)


@pytest.fixture(scope="module")
def llama(release: Path) -> Generator:
    adapter = load_adapter(ModelConfig(name="x", adapter="causal-lm", directory=release / "models" / "llama"))
    assert isinstance(adapter, Generator)
    return adapter


@pytest.fixture(scope="module")
def vectors(release: Path) -> Any:  # noqa: ANN401 - an array
    adapter = load_adapter(ModelConfig(name="x", adapter="sentence-transformer", directory=release / "models" / "bert"))
    assert isinstance(adapter, Embedder)
    return adapter.embed(TEXTS).vectors


def found_by(client: str, release: Path, folder: Path, *options: str) -> Any:  # noqa: ANN401 - JSON
    """Run one client in a namespace without network and with an empty home; return what it reports."""
    isolation = find_isolation()
    assert isolation.is_namespace, isolation.name
    report = folder / "report.json"
    own = {"HOME": str(folder), "SERVER_PYTHON": sys.executable, "RIGHT_KEY": KEY, "PATH": os.environ["PATH"]}
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "RAGAS_DO_NOT_TRACK": "true", "LANG": "C.UTF-8"}
    words: list[str | Path] = [client_venv().python, "-m", "tests.clients_contract", client, release, report, *options]
    done = subprocess.run(
        [*isolation.prefix, *words], env={**own, **offline}, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(report.read_text(encoding="utf-8"))


def answer(llama: Generator) -> str:
    return llama.generate([Message(role="user", content=PROMPT)], GenerationParams(max_new_tokens=12)).text


def test_openai_sync_async_and_streamed(release: Path, llama: Generator, vectors: Any, tmp_path: Path) -> None:  # noqa: ANN401 - an array
    found = found_by("openai", release, tmp_path)
    expected = answer(llama)
    assert found["chat"] == found["streamed"] == expected
    assert found["async"][:2] == [expected, expected]
    assert found["async"][2] == pytest.approx(vectors[0][0], abs=2e-6)
    assert 0 < found["usage"] <= 12
    sampled = [GenerationParams(max_new_tokens=12, temperature=1.2, top_p=0.9, seed=5 + index) for index in range(2)]
    asked = [Message(role="user", content=PROMPT)]
    assert found["sampled"] == [llama.generate(asked, params).text for params in sampled]
    greedy = GenerationParams(max_new_tokens=12, stop=("zzz",))
    assert found["completion"] == [llama.generate(text, greedy).text for text in (PROMPT, "서울")]
    np.testing.assert_allclose(found["vectors"], vectors, atol=2e-6)
    np.testing.assert_allclose(found["floats"], vectors, atol=2e-6)
    assert found["truncated"] == 0
    assert (found["models"], found["model"]) == (["bert", "llama", "parrot"], "llama")
    assert found["errors"] == [
        ["BadRequestError", 400, "dimensions", "unsupported_parameter"],
        ["NotFoundError", 404, "model", "model_not_found"],
        ["BadRequestError", 400, "messages", "context_length_exceeded"],
    ]


def test_openai_with_keys(release: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# ours\n{KEY}\n", encoding="utf-8")
    found = found_by("keys", release, tmp_path, "--model", "bert", "--api-keys", str(keys))
    assert found["models"] == ["bert"]
    assert found["error"] == ["AuthenticationError", 401, None, "invalid_api_key"]


def test_langchain_openai(release: Path, llama: Generator, vectors: Any, tmp_path: Path) -> None:  # noqa: ANN401 - an array
    found = found_by("langchain-openai", release, tmp_path)
    expected = answer(llama)
    assert found["chat"] == found["streamed"] == found["async"] == expected
    assert found["batch"] == [expected, expected]
    assert 0 < found["usage"] <= 12
    assert found["completion"] == llama.generate(PROMPT, GenerationParams(max_new_tokens=12)).text
    np.testing.assert_allclose(found["vectors"], vectors, atol=2e-6)
    np.testing.assert_allclose(found["query"], vectors[0], atol=2e-6)


def test_litellm(release: Path, llama: Generator, vectors: Any, tmp_path: Path) -> None:  # noqa: ANN401 - an array
    found = found_by("litellm", release, tmp_path)
    assert found["chat"] == found["streamed"] == found["async"] == answer(llama)
    np.testing.assert_allclose(found["vectors"], vectors, atol=2e-6)


def test_ragas_over_the_server(release: Path, tmp_path: Path) -> None:
    found = found_by("ragas", release, tmp_path)
    assert found["version"].startswith("0.4.")
    assert found["context_precision"] == pytest.approx([1.0, 1.0])
    assert found["context_recall"] == [1.0, 1.0]
    same, other = found["answer_relevancy"]
    assert same == pytest.approx(1.0)
    assert 0 < other < 0.999
