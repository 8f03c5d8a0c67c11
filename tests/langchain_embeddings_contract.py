"""Run inside an environment with LangChain: an embedder as its ``Embeddings``, alone and in a retriever.

``python -m tests.langchain_embeddings_contract M3 SENTENCE_TRANSFORMER REPORT`` writes what it saw.
"""

import asyncio
import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from runtime.adapters import load_adapter
from runtime.adapters.base import ModelConfig
from runtime.adapters.embedder import LocalEmbedder

TEXTS = ["the cat sleeps", "a ship carries sealed goods", "대한민국의 수도는 서울이다"]


def load(adapter: str, folder: Path) -> LocalEmbedder:
    """Load one model."""
    loaded = load_adapter(ModelConfig(name="m", adapter=adapter, directory=folder))
    assert isinstance(loaded, LocalEmbedder)
    return loaded


async def ask(embeddings: Any, texts: list[str]) -> dict[str, object]:  # noqa: ANN401 - LangChain isn't here where types are checked
    """Return what the async methods give, many at once."""
    many = await asyncio.gather(*(embeddings.aembed_query(text) for text in texts * 5))
    return {"documents": await embeddings.aembed_documents(texts), "queries": many}


def retrieve(embeddings: Any) -> list[str]:  # noqa: ANN401 - as above
    """Return what LangChain's own vector store finds for the third text."""
    store = importlib.import_module("langchain_core.vectorstores").InMemoryVectorStore(embeddings)
    store.add_texts(TEXTS)
    return [document.page_content for document in store.similarity_search(TEXTS[2], k=1)]


def report(adapter: LocalEmbedder) -> dict[str, object]:
    """Check one adapter, and return what the test can't see from outside."""
    base = importlib.import_module("langchain_core.embeddings").Embeddings
    embeddings: Any = adapter.as_langchain()
    direct = adapter.embed_documents(TEXTS)
    again = asyncio.run(ask(embeddings, TEXTS))
    queries = [adapter.embed_query(text) for text in TEXTS]
    return {
        "is_embeddings": isinstance(embeddings, base),
        "model": embeddings.model,
        "documents": embeddings.embed_documents(TEXTS) == direct == again["documents"],
        "queries": again["queries"] == queries * 5,
        "retrieved": retrieve(embeddings),
        "nothing": embeddings.embed_documents([]),
        "truncation": _warnings(lambda: embeddings.embed_documents(["the cat " * 200, "fox"])),
        "error": _error(lambda: embeddings.embed_query("a\ud800")),
    }


def _warnings(act: Any) -> list[str]:  # noqa: ANN401 - a call of any kind
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]  # shorter than a class
    logging.getLogger("runtime.adapters.embedder").addHandler(handler)
    act()
    logging.getLogger("runtime.adapters.embedder").removeHandler(handler)
    return seen


def _error(act: Any) -> str:  # noqa: ANN401 - a call of any kind
    try:
        act()
    except Exception as error:  # noqa: BLE001 - whichever it is belongs into the report
        return f"{type(error).__name__}: {error}"
    return "none"


if __name__ == "__main__":
    folders = {"bge-m3": Path(sys.argv[1]), "sentence-transformer": Path(sys.argv[2])}
    found: dict[str, object] = {name: report(load(name, folder)) for name, folder in folders.items()}
    found["version"] = importlib.import_module("langchain_core").__version__
    Path(sys.argv[3]).write_text(json.dumps(found), encoding="utf-8")
