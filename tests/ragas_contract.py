"""Run inside a peer's environment: ragas evaluates with our adapters alone. Writes a report for the test outside."""

import asyncio
import importlib
import importlib.metadata
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from runtime.adapters import load_adapter
from runtime.adapters.base import ModelConfig
from runtime.adapters.causal_lm import HcxAdapter
from runtime.adapters.sentence_transformer import SentenceTransformerAdapter
from tests.factories_ragas import write_report

METRICS = ("answer_relevancy", "context_precision", "context_recall")
ROWS = {
    "question": ["대한민국의 수도는?", "what does a ship carry"],
    "contexts": [["대한민국의 수도는 서울이다"], ["a ship carries sealed goods", "the cat sleeps"]],
    "answer": ["서울이다", "sealed goods"],
    "ground_truth": ["서울이다", "sealed goods"],
}


def main(parrot: Path, embedder: Path, report: Path) -> None:
    """Evaluate, once with the LLM and once with the chat model."""
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    warnings.simplefilter("ignore")  # ragas' own
    adapter = load_adapter(ModelConfig(name="seed-0.5b", adapter="hcx", directory=parrot))
    vectors = load_adapter(ModelConfig(name="bert", adapter="sentence-transformer", directory=embedder))
    assert isinstance(adapter, HcxAdapter)
    assert isinstance(vectors, SentenceTransformerAdapter)
    models = {"llm": adapter.get_llm(), "chat": adapter.get_chat_model()}
    found: dict[str, Any] = {name: scores(model, vectors) for name, model in models.items()}
    found["model"] = models["llm"].model
    found["run_config"] = takes_run_config(models["llm"])
    found["error"] = error_of(models["llm"])
    found["version"] = importlib.metadata.version("ragas")
    write_report(report, found)


def scores(model: Any, vectors: SentenceTransformerAdapter) -> dict[str, list[float]]:  # noqa: ANN401 - one of two classes
    """Return the scores of each metric, row by row."""
    ragas, metrics = importlib.import_module("ragas"), importlib.import_module("ragas.metrics")
    result = ragas.evaluate(
        importlib.import_module("datasets").Dataset.from_dict(ROWS),
        metrics=[getattr(metrics, name) for name in METRICS],
        llm=model,
        embeddings=vectors.as_langchain(),
        run_config=ragas.RunConfig(timeout=300, max_retries=1, max_workers=4),
        raise_exceptions=True,
        show_progress=False,
    )
    return {name: [float(row[name]) for row in result.scores] for name in METRICS}


def takes_run_config(llm: Any) -> bool:  # noqa: ANN401 - our own class, seen from outside
    """Return whether ragas' wrapper takes the model, and the model a run configuration, as RAGTrace gives it one."""
    config = importlib.import_module("ragas").RunConfig(timeout=7)
    importlib.import_module("ragas.llms").LangchainLLMWrapper(llm, run_config=config)
    llm.set_run_config(config)
    return bool(llm.run_config.timeout == 7)


def error_of(llm: Any) -> str:  # noqa: ANN401 - our own class, seen from outside
    """Return what ragas' caller gets for a prompt that doesn't fit: an error, never an apology as an answer."""
    try:
        asyncio.run(llm.agenerate_prompt("the " * 40000))
    except Exception as error:  # noqa: BLE001 - its class is what is asked for
        return type(error).__name__
    return "no error"


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
