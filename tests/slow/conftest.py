"""One bundle of four tiny models, for every slow test that serves."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file

from tests.factories import make_key
from tests.factories_cli import ROOT, write_spec
from tests.factories_models import make_bert, make_hyperclovax, make_llama, make_xlmr

ADAPTERS: Final = {"xlmr": "bge-m3", "bert": "sentence-transformer", "llama": "causal-lm", "hcx": "hcx"}
HEADS: Final = ("sparse_linear", "colbert_linear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A bundle of the four models, and the folder where it was made."""

    folder: Path
    bundle: Path
    kit: Path

    @property
    def lock(self) -> dict[str, Any]:
        """The lock as it was written."""
        document: dict[str, Any] = json.loads((self.folder / "demo.lock").read_text())
        return document


def pickle_heads(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Turn BGE-M3's heads into what its authors publish; return the tensors."""
    heads = {}
    for name in HEADS:
        heads[name] = load_file(folder / f"{name}.safetensors")
        torch.save(heads[name], folder / f"{name}.pt")
        (folder / f"{name}.safetensors").unlink()
    return heads


def bundler(folder: Path, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a command with the tester's own indexes and cache, since PyTorch is large."""
    done = subprocess.run(
        [sys.executable, "-m", "bundler.cli", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """See :class:`Built`; the build rehearsed it; never write to it."""
    folder = tmp_path_factory.mktemp("models")
    pickle_heads(make_xlmr(folder / "xlmr"))
    make_bert(folder / "bert")
    make_llama(folder / "llama")
    make_hyperclovax(folder / "hcx")
    models = "".join(
        f'[[model]]\nname = "{name}"\nsource = "dir:{name}"\nadapter = "{adapter}"\n'
        for name, adapter in ADAPTERS.items()
    )
    write_spec(folder / "demo.toml", "torch==2.13.0", more=models)
    key = make_key(folder / "release", seed=b"M" * 32)
    bundler(folder, "lock", "demo.toml")
    done = bundler(folder, "build", "demo.toml", "--output", "out", "--key", key.path, "--json")
    assert "... rehearse in a " in done.stderr
    document = json.loads(done.stdout)
    return Built(folder=folder, bundle=folder / document["bundle"], kit=folder / document["kit"])
