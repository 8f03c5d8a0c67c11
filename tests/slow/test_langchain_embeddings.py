"""Embedders as LangChain's ``Embeddings``, with both versions of langchain-core that users have."""

import json
from pathlib import Path
from typing import Literal

import pytest

from tests.factories_langchain import langchain_venv
from tests.factories_models import make_bert, make_xlmr
from tests.langchain_embeddings_contract import TEXTS

pytestmark = [pytest.mark.slow, pytest.mark.models]


@pytest.mark.parametrize("version", ["0.3", "1"])
def test_embedders_are_langchains(version: Literal["0.3", "1"], tmp_path: Path) -> None:
    m3, bert, report = make_xlmr(tmp_path / "m3"), make_bert(tmp_path / "bert"), tmp_path / "report.json"
    langchain_venv(version).run("-m", "tests.langchain_embeddings_contract", m3, bert, report)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found.pop("version").startswith(f"{version}.")
    for adapter, limit in (("bge-m3", 128), ("sentence-transformer", 48)):
        assert found[adapter] == {
            "is_embeddings": True,
            "model": "m",
            "documents": True,
            "queries": True,
            "retrieved": [TEXTS[2]],
            "nothing": [],
            "truncation": [f"model m: 1 of 2 texts were cut to {limit} tokens"],
            "error": "RequestError: input 0: not valid Unicode: a lone surrogate at character 1",
        }
