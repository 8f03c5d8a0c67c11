"""The kit at work, with RAGTrace's own langchain-core: through the patched factories, over HTTP and in-process."""

import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from manifests.canonical import Json
from tests.factories_langchain import langchain_venv
from tests.factories_models import make_hyperclovax, make_xlmr
from tests.factories_ragtrace import integrate, make_kit, write_checkout
from tests.runtime.server.conftest import ServerProcess, start_server, write_release

pytestmark = [pytest.mark.slow, pytest.mark.models]
TEXTS: Final = [f"문서 {number}" for number in range(70)]  # more than one request
SETTINGS: Final[Mapping[str, Mapping[str, Json]]] = {
    "hcx": {"dtype": "float32", "max_new_tokens": 12, "temperature": "0.0"},
    "m3": {"dtype": "float32", "normalize_embeddings": True},
}
ADAPTERS: Final = {"hcx": "hcx", "m3": "bge-m3"}
SCRIPT: Final = """
import json, os, sys
checkout, report, settings, texts = sys.argv[1:]
sys.path.insert(0, checkout)
os.environ.update(json.loads(settings))
from src.application.ports.llm import LlmPort
from src.container.configuration_container import ConfigurationContainer
from src.container.providers.embedding_provider_factory import EmbeddingProviderFactory
from src.container.providers.llm_provider_factory import LlmProviderFactory
from langchain_core.embeddings import Embeddings
from langchain_core.prompt_values import StringPromptValue
container = ConfigurationContainer()
llm = LlmProviderFactory(container).create_provider("hcx_offline")
embeddings = EmbeddingProviderFactory(container).create_provider("bge_m3_offline")
def asked(function):
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
ragas = llm.get_llm()
ragas.set_run_config("config")
found = {
    "port": isinstance(llm, LlmPort) and isinstance(embeddings, Embeddings),
    "model": ragas.model,
    "run_config": ragas.run_config,
    "answer": asked(lambda: llm.generate_answer("수도는?", ["서울이다"])),
    "said": asked(lambda: ragas.generate_prompt([StringPromptValue(text="서울")]).generations[0][0].text),
    "alone": asked(lambda: ragas.generate_prompt("서울").generations[0][0].text),
    "texts": asked(lambda: ragas.generate(["서울"]).generations[0][0].text),
    "stopped": asked(lambda: ragas.generate(["서울"], stop=["zzz"]).generations[0][0].text),
    "documents": asked(lambda: embeddings.embed_documents(json.loads(texts))),
    "query": asked(lambda: embeddings.embed_query("문서 3")),
}
open(report, "w", encoding="utf-8").write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of two tiny models."""
    folder = tmp_path_factory.mktemp("ragtrace-release")
    make_xlmr(folder / "models" / "m3")
    make_hyperclovax(folder / "models" / "hcx")
    return write_release(folder, {"m3": ("bge-m3", SETTINGS["m3"]), "hcx": ("hcx", SETTINGS["hcx"])})


@pytest.fixture(scope="module")
def server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = start_server(release, tmp_path_factory.mktemp("ragtrace-server") / "stderr.log")
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An application of RAGTrace's shape with the kit in it."""
    folder = tmp_path_factory.mktemp("ragtrace-checkout")
    checkout = write_checkout(folder / "ragtrace")
    integrate(make_kit(folder, checkout, ADAPTERS, SETTINGS), checkout)
    return checkout


def ask(checkout: Path, folder: Path, **settings: str) -> dict[str, Any]:
    report = folder / "report.json"
    langchain_venv("0.3").run("-c", SCRIPT, checkout, report, json.dumps(settings), json.dumps(TEXTS))
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def test_over_http(server: ServerProcess, checkout: Path, tmp_path: Path) -> None:
    found = ask(checkout, tmp_path, SEALIFT_BASE_URL=f"{server.url}/v1")
    assert (found["port"], found["model"], found["run_config"]) == (True, "HCX-hcx", "config")
    with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        message = {"role": "user", "content": "서울"}
        reply = client.post("/v1/chat/completions", json={"model": "hcx", "messages": [message]}).json()
        vectors = client.post("/v1/embeddings", json={"model": "m3", "input": TEXTS[:4]}).json()
    said = reply["choices"][0]["message"]["content"]
    assert said
    assert {found[key] for key in ("said", "alone", "texts", "stopped")} == {said}
    assert len(found["documents"]) == len(TEXTS)
    for row, made in zip(vectors["data"], found["documents"][:4], strict=True):
        assert made == pytest.approx(row["embedding"], abs=1e-5)
    assert found["query"] == pytest.approx(found["documents"][3], abs=1e-5)
    assert found["query"] != pytest.approx(found["documents"][4], abs=1e-3)


def test_in_process_gives_what_http_gives(server: ServerProcess, release: Path, checkout: Path, tmp_path: Path) -> None:
    paths = {"HCX_MODEL_PATH": str(release / "models/hcx"), "BGE_M3_MODEL_PATH": str(release / "models/m3")}
    found = ask(checkout, tmp_path, SEALIFT_MODE="in-process", **paths)
    served = ask(checkout, tmp_path, SEALIFT_BASE_URL=f"{server.url}/v1")
    assert (found["port"], found["model"]) == (True, "HCX-hcx")
    assert served["answer"]
    assert found["answer"] == served["answer"], "the same prompt, and the settings of the spec"
    assert found["query"] == pytest.approx(served["query"], abs=1e-5)


def test_no_server_is_an_error_and_no_answer(checkout: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        found = ask(checkout, tmp_path, SEALIFT_BASE_URL=url, http_proxy="http://192.0.2.1:1")
    reason = (
        "no server there ([Errno 111] Connection refused); is it running? `runtime launch --prefix PREFIX` starts it"
    )
    assert found["answer"].startswith(f"SealiftError: {url}/chat/completions: {reason}")
    assert found["query"].startswith(f"SealiftError: {url}/embeddings: {reason}")


CONTAINER: Final = """
import json, sys, types
sys.path.insert(0, sys.argv[1])
for folder, name, classes in (
    ("llm", "gemini_adapter", ["GeminiAdapter"]), ("llm", "hcx_adapter", ["HcxAdapter"]),
    ("embedding", "gemini_http_adapter", ["GeminiHttpEmbeddingAdapter"]),
    ("embedding", "hcx_adapter", ["HcxEmbeddingAdapter"]), ("embedding", "bge_m3_adapter", ["BgeM3EmbeddingAdapter"]),
):
    module = types.ModuleType(f"src.infrastructure.{folder}.{name}")
    vars(module).update({cls: None for cls in classes})
    sys.modules[module.__name__] = module
import os
os.chdir(sys.argv[1])
"""


@pytest.mark.skipif(not os.environ.get("RAGTRACE_CHECKOUT"), reason="RAGTRACE_CHECKOUT names no checkout of RAGTrace")
def test_ragtraces_own_factories(server: ServerProcess, tmp_path: Path) -> None:
    source, checkout = Path(os.environ["RAGTRACE_CHECKOUT"]), tmp_path / "ragtrace"
    for path in source.glob("src/**/*.py"):
        target = checkout / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    # Its packages import every cloud client; only the modules that the patch touches are run here.
    (checkout / "src/container/__init__.py").write_text("")
    (checkout / "src/container/providers/__init__.py").write_text("")
    (checkout / "src/infrastructure/llm/__init__.py").write_text("")
    kit = make_kit(tmp_path, checkout, ADAPTERS)
    integrate(kit, checkout)
    settings = {"SEALIFT_BASE_URL": f"{server.url}/v1", "GEMINI_API_KEY": "offline-unused"}
    report = tmp_path / "report.json"
    langchain_venv("0.3").run("-c", CONTAINER + SCRIPT, checkout, report, json.dumps(settings), json.dumps(TEXTS[:2]))
    found = json.loads(report.read_text(encoding="utf-8"))
    assert (found["port"], found["model"]) == (True, "HCX-hcx")
    assert found["said"]
    assert len(found["documents"]) == 2
