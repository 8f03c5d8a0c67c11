"""RAGTrace's ports: by their shape always, and by its own classes where RAGTRACE_CHECKOUT names a checkout."""

import importlib.util
import inspect
import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytest

from runtime.adapters.causal_lm import CausalLmAdapter, HcxAdapter

pytestmark = pytest.mark.models
QUESTION, CONTEXTS = "수도는?", ["대한민국의 수도는 서울이다"]


@runtime_checkable
class AnswerGeneratorPort(Protocol):
    """The shape of the port of this name in RAGTrace's src/application/ports/llm.py."""

    def generate_answer(self, question: str, contexts: list[str]) -> str: ...


@runtime_checkable
class RagasLlmProviderPort(Protocol):
    """As above."""

    def get_llm(self) -> Any: ...  # noqa: ANN401 - the port's own signature


@pytest.fixture
def ports() -> Any:  # noqa: ANN401 - a module
    """RAGTrace's own module of ports, by its file: its package imports libraries that adapters don't need."""
    checkout = os.environ.get("RAGTRACE_CHECKOUT")
    if not checkout:
        pytest.skip("RAGTRACE_CHECKOUT names no checkout of RAGTrace")
    spec = importlib.util.spec_from_file_location("ports", Path(checkout) / "src/application/ports/llm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_adapters_have_the_ports_shape(llama: Path) -> None:
    adapter = HcxAdapter(llama, "cpu", max_new_tokens=8)
    assert isinstance(adapter, AnswerGeneratorPort)
    assert isinstance(adapter, RagasLlmProviderPort)
    answer = adapter.generate_answer(question=QUESTION, contexts=CONTEXTS)
    assert isinstance(answer, str)
    assert answer == adapter.generate_answer(QUESTION, CONTEXTS)
    assert answer == adapter.answer(QUESTION, CONTEXTS).text.strip()


@pytest.mark.parametrize("name", ["AnswerGeneratorPort", "RagasLlmProviderPort", "LlmPort"])
def test_adapters_fill_ragtraces_own_ports(name: str, ports: Any, llama: Path) -> None:  # noqa: ANN401 - a module
    port = getattr(ports, name)
    for method in sorted(port.__abstractmethods__):
        expected = inspect.signature(getattr(port, method)).parameters
        assert list(inspect.signature(getattr(CausalLmAdapter, method)).parameters) == list(expected)
    filled = type("Filled", (HcxAdapter, port), {})(str(llama), "cpu", max_new_tokens=8)
    assert isinstance(filled, port)
    if hasattr(filled, "generate_answer"):
        assert filled.generate_answer(QUESTION, CONTEXTS) == HcxAdapter(llama, "cpu", max_new_tokens=8).generate_answer(
            QUESTION, CONTEXTS
        )
