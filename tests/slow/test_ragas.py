"""Generators as LangChain's LLM and chat model, and ragas over them, with both versions that users have; no network."""

import json
from pathlib import Path
from typing import Final, Literal

import pytest

from tests.factories_langchain import langchain_venv
from tests.factories_models import make_bert, make_llama
from tests.factories_ragas import make_parrot, run_offline

pytestmark = [pytest.mark.slow, pytest.mark.models]
BOTH: Final = pytest.mark.parametrize("version", ["0.3", "1"])
RAGAS: Final = {"0.3": "0.2.15", "1": "0.4."}
SAID: Final = {
    "question": "대한민국의 수도는?",
    "noncommittal": 0,
    "reason": "the context says so",
    "verdict": 1,
    "classifications": [{"statement": "서울이다", "reason": "the context says so", "attributed": 1}],
}
"""What the metrics under test ask for, in one object: each reads the keys it knows."""


@BOTH
def test_generators_are_langchains_models(version: Literal["0.3", "1"], tmp_path: Path) -> None:
    llama, report = make_llama(tmp_path / "llama"), tmp_path / "report.json"
    run_offline(langchain_venv(version), "-m", "tests.langchain_llm_contract", llama, report, home=tmp_path)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["version"].startswith(f"{version}.")
    llm, chat = found["llm"], found["chat"]
    takes = "a call takes max_tokens, temperature, top_p, repetition_penalty, seed, n, chat_template_kwargs and stop"
    assert llm.pop("unknown") == f"RequestError: top_k: not supported; {takes}"
    assert llm.pop("too_long").startswith("ContextTooLongError: prompt of ")
    assert (llm.pop("several"), llm.pop("reasons")) == (3, ["length", "stop"])
    assert chat.pop("picture") == "RequestError: messages: content of type 'image_url': only text is supported"
    assert chat.pop("tools") == f"RequestError: tools: not supported; {takes}"
    assert (llm.pop("n"), chat.pop("n")) == ([3, 3], 2)
    assert chat.pop("bad_n") == "RequestError: n: expected an integer of at least 1, got -1"
    for facts in (llm, chat, found["async"]):
        assert {name for name, true in facts.items() if true is not True} == set()
    assert found["models"] == ["llama", "HCX-llama", "HCX-005"]


@BOTH
def test_ragas_evaluates_with_nothing_but_our_adapters(version: Literal["0.3", "1"], tmp_path: Path) -> None:
    parrot = make_parrot(tmp_path / "parrot", json.dumps(SAID, ensure_ascii=False))
    bert, report = make_bert(tmp_path / "bert"), tmp_path / "report.json"
    run_offline(langchain_venv(version), "-m", "tests.ragas_contract", parrot, bert, report, home=tmp_path)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["version"].startswith(RAGAS[version])
    assert found["model"] == "HCX-seed-0.5b"
    assert found["error"] == "ContextTooLongError"
    assert found["run_config"] is True
    assert found["llm"] == found["chat"]
    scores = found["llm"]
    assert scores["context_precision"] == pytest.approx([1.0, 1.0])
    assert scores["context_recall"] == [1.0, 1.0]
    same, other = scores["answer_relevancy"]
    assert same == pytest.approx(1.0)
    assert 0 < other < 0.999
