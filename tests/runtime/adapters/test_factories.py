"""The tiny models themselves: the same seed gives the same bytes, another one other weights, and they stay small."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.factories_models import make_bert, make_hyperclovax, make_llama, make_xlmr

pytestmark = pytest.mark.models


@pytest.mark.parametrize("make", [make_bert, make_hyperclovax, make_llama, make_xlmr])
def test_bytes_depend_on_the_seed_alone(make: Callable[..., Path], tmp_path: Path) -> None:
    trees = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        folder = make(tmp_path / name, seed=seed)
        files = [path for path in folder.rglob("*") if path.is_file()]
        trees.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert trees[0] == trees[1]
    assert {name for name in trees[0] if trees[0][name] != trees[2][name]} >= {"model.safetensors"}
    assert sum(map(len, trees[0].values())) < 2_000_000
