"""Run inside FlagEmbedding's own environment: our numbers beside those of ``BGEM3FlagModel`` for the same folder.

``python -m tests.oracle_flagembedding FOLDER REPORT`` writes, for each kind of texts, the largest absolute differences.
"""

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from runtime.adapters import load_adapter
from runtime.adapters.base import JSON, ModelConfig, MultiEmbeddings
from runtime.adapters.bge_m3 import BgeM3Adapter
from tests.factories_models import CORPUS

WORDS: Final = " ".join(CORPUS).split()
LIMIT: Final = 128  # of the tiny model


def kinds() -> Mapping[str, Sequence[str]]:
    """Return the texts, by kind."""
    chance = random.Random(11)  # noqa: S311 - a test's texts
    many = [" ".join(chance.choices(WORDS, k=chance.randint(0, 40))) for _ in range(10_000)]
    return {
        "short": ["fox", "the cat", "a"],
        "long": [" ".join(chance.choices(WORDS, k=size)) for size in (60, 100, 126, 127, 128, 500)],
        "empty": ["", "", ""],
        "whitespace": [" ", "\n\t ", "\u3000", "  the cat  "],
        "emoji": ["🎉", "🎉 ship 🚢🚢", "👩‍👩‍👧‍👦"],
        "korean": ["서울", "대한민국의 수도는 서울이다", "각각각"],
        "mixed": ["the 서울 🎉 cat", "", "x" * 300, *CORPUS, "\ufeffthe\u200bcat", "<s> </s> <unk>"],
        "single": ["a ship carries sealed goods"],
        "many": many,
    }


def differences(theirs: Mapping[str, Any], ours: MultiEmbeddings) -> dict[str, float]:
    """Return the largest absolute difference of each kind of vector; infinite where shapes or tokens differ."""
    assert ours.dense is not None
    assert ours.sparse is not None
    assert ours.colbert is not None
    sparse = [
        _lexical({int(token): float(weight) for token, weight in row.items()}, own)
        for row, own in zip(theirs["lexical_weights"], ours.sparse, strict=True)
    ]
    colbert = [_largest(row, own) for row, own in zip(theirs["colbert_vecs"], ours.colbert, strict=True)]
    return {"dense": _largest(theirs["dense_vecs"], ours.dense), "sparse": max(sparse), "colbert": max(colbert)}


def _lexical(theirs: Mapping[int, float], ours: Mapping[int, float]) -> float:
    """A weight that is rounding away from 0 may be missing on one side."""
    tokens = theirs.keys() | ours.keys()
    return max((abs(theirs.get(token, 0.0) - ours.get(token, 0.0)) for token in tokens), default=0.0)


def _largest(theirs: Any, ours: Any) -> float:  # noqa: ANN401 - arrays of any shape
    if theirs.shape != ours.shape:
        return float("inf")
    return float(np.abs(theirs - ours).max()) if theirs.size else 0.0


def compare(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Return backend -> kind of texts -> differences."""
    from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 - only its own environment has it

    oracle = BGEM3FlagModel(str(folder), use_fp16=False, devices=["cpu"], passage_max_length=LIMIT, batch_size=64)
    found: dict[str, dict[str, dict[str, float]]] = {}
    adapters = {name: _load(folder, backend=name) for name in ("transformers", "flagembedding")}
    for kind, texts in kinds().items():
        theirs = oracle.encode(list(texts), return_dense=True, return_sparse=True, return_colbert_vecs=True)
        for name, adapter in adapters.items():
            if (name, kind) == ("flagembedding", "many"):
                continue  # the same code as the oracle's: a minute for nothing new
            ours = adapter.embed_multi(texts, dense=True, sparse=True, colbert=True)
            found.setdefault(name, {})[kind] = differences(theirs, ours)
    assert adapters["flagembedding"].embed([]).vectors.shape == (0, 32)
    return found


def _load(folder: Path, **settings: JSON) -> BgeM3Adapter:
    adapter = load_adapter(ModelConfig(name="m3", adapter="bge-m3", directory=folder, settings=settings))
    assert isinstance(adapter, BgeM3Adapter)
    return adapter


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(compare(Path(sys.argv[1]))), encoding="utf-8")
