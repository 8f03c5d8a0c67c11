"""The numbers of the bge-m3 adapter are FlagEmbedding's own, checked in an environment that has FlagEmbedding."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.factories_langchain import flagembedding_venv
from tests.factories_models import make_xlmr
from tests.oracle_flagembedding import kinds

pytestmark = [pytest.mark.slow, pytest.mark.models]


def test_both_backends_give_flagembeddings_numbers(tmp_path: Path) -> None:
    folder, report = make_xlmr(tmp_path / "xlmr"), tmp_path / "report.json"
    for name in ("sparse_linear", "colbert_linear"):  # FlagEmbedding reads heads from pickles only
        torch.save(load_file(folder / f"{name}.safetensors"), folder / f"{name}.pt")
    flagembedding_venv().run("-m", "tests.oracle_flagembedding", folder, report)
    found = json.loads(report.read_text(encoding="utf-8"))
    assert set(found) == {"transformers", "flagembedding"}
    for backend, by_kind in found.items():
        assert set(kinds()) - set(by_kind) == ({"many"} if backend == "flagembedding" else set())
        worst = {kind: difference for kind, parts in by_kind.items() if (difference := max(parts.values())) > 1e-5}
        assert worst == {}, backend


def test_converted_heads_reach_flagembedding(tmp_path: Path) -> None:
    """Left alone, FlagEmbedding would give a folder without pickled heads random ones."""
    folder = make_xlmr(tmp_path / "xlmr")
    code = (
        "import sys, numpy as np\n"
        "from pathlib import Path\n"
        "from runtime.adapters import load_adapter\n"
        "from runtime.adapters.base import ModelConfig, RequestError\n"
        "def load(**s): return load_adapter(ModelConfig(name='m', adapter='bge-m3', directory=Path(sys.argv[1]),"
        " settings=s))\n"
        "texts = ['the cat', 'a ship']\n"
        "a, b = load(), load(backend='flagembedding')\n"
        "x, y = (m.embed_multi(texts, sparse=True, colbert=True) for m in (a, b))\n"
        "assert all(np.abs(p - q).max() < 1e-5 for p, q in zip(x.colbert, y.colbert))\n"
        "assert x.sparse[0].keys() == y.sparse[0].keys()\n"
        "assert (x.token_counts, x.truncated) == (y.token_counts, y.truncated)\n"
        "try: b.embed([[0, 5, 2]])\n"
        "except RequestError as error: print(error.message)\n"
    )
    done = flagembedding_venv().run("-c", code, folder)
    assert done.stdout.strip() == "input 0: backend 'flagembedding' takes texts, not tokens"
