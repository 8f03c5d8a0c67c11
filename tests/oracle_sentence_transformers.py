"""Run inside an environment with sentence-transformers: our numbers beside its own for the same folders.

``python -m tests.oracle_sentence_transformers REPORT FOLDER...`` writes, by folder, the largest absolute differences.
"""

import json
import sys
from pathlib import Path

import numpy as np

from runtime.adapters import load_adapter
from runtime.adapters.base import ModelConfig
from runtime.adapters.sentence_transformer import SentenceTransformerAdapter
from tests.factories_models import CORPUS

TEXTS = ["", " ", "fox", "  the cat  ", "서울 🎉", *CORPUS, "the quick brown fox " * 40]


def compare(folder: Path) -> dict[str, float]:
    """Return what is computed -> the largest difference."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - only its own environment has it

    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    ours = load_adapter(ModelConfig(name="m", adapter="sentence-transformer", directory=folder))
    assert isinstance(ours, SentenceTransformerAdapter)
    pairs = {
        "encode": (theirs.encode(TEXTS), ours.embed(TEXTS).vectors),
        "encode_query": (theirs.encode_query(TEXTS), np.asarray([ours.embed_query(text) for text in TEXTS])),
        "encode_document": (theirs.encode_document(TEXTS), np.asarray(ours.embed_documents(TEXTS))),
    }
    return {name: float(np.abs(first - second).max()) for name, (first, second) in pairs.items()}


if __name__ == "__main__":
    found = {name: compare(Path(name)) for name in sys.argv[2:]}
    Path(sys.argv[1]).write_text(json.dumps(found), encoding="utf-8")
