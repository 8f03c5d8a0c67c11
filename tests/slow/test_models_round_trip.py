"""Tiny models of every architecture that is served, from folders into one bundle, and asked where no network is."""

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bundler.rehearsal.sandbox import find_isolation
from tests.factories_cli import ROOT
from tests.factories_models import make_xlmr
from tests.slow.conftest import HEADS, Built

pytestmark = [pytest.mark.slow, pytest.mark.models]
PLAY = """
import json, sys
from pathlib import Path
from bundler.rehearsal.closed_side import Stage, ask, require_closed, run_step, serving

part = json.load(sys.stdin)
stage = Stage(**{name: Path(value) for name, value in part["stage"].items()})
require_closed()
told = []
run_step(stage, "install", ["install", str(stage.bundle), "--prefix", str(stage.prefix), "--trust", str(stage.trust)],
         told.append)
run_step(stage, "verify", ["verify", "--prefix", str(stage.prefix), "--trust", str(stage.trust), "--deep"], told.append)
with serving(stage, 8000, told.append) as address:
    answers = {name: [ask(address, *each) for each in questions] for name, questions in part["questions"].items()}
print(json.dumps(answers))
"""
TEXTS = ["the quick brown fox", "a ship carries sealed goods"]


def test_pickled_heads_travel_as_safetensors_with_their_origin(built: Built) -> None:
    model = next(model for model in built.lock["models"] if model["name"] == "xlmr")
    files = {file["path"].removeprefix("models/xlmr/"): file for file in model["files"]}
    assert not [name for name in files if name.endswith(".pt")]
    for name in HEADS:
        assert files[f"{name}.safetensors"]["source"] == "converted"
        assert len(files[f"{name}.safetensors"]["origin_sha256"]) == 64
    assert len(model["converter"]) == 64
    assert files["model.safetensors"]["source"] == "folder"


def test_the_closure_is_the_cpu_s(built: Built) -> None:
    names = [wheel["path"].rpartition("/")[2] for wheel in built.lock["wheels"]]
    (wheel,) = [name for name in names if name.startswith("torch-")]
    assert wheel.startswith("torch-2.13.0+cpu-")
    assert not [name for name in names if name.startswith(("nvidia", "triton", "cuda"))]


@pytest.fixture(scope="module")
def answers(built: Built) -> dict[str, Any]:
    """What the models answered over HTTP, from a release that was installed in a namespace without network."""
    closed = built.folder / "closed"
    (closed / "home").mkdir(parents=True)
    stage = {
        "bundle": str(built.bundle),
        "pyz": str(built.kit / "runtime.pyz"),
        "trust": str(built.kit / "allowed_signers"),
        "prefix": str(closed / "prefix"),
        "home": str(closed / "home"),
    }
    embed = [["/v1/embeddings", {"model": name, "input": TEXTS}] for name in ("xlmr", "bert")]
    every = {"return_sparse": True, "return_colbert_vecs": True}
    multi = ["/v1/embeddings/multi", {"model": "xlmr", "input": TEXTS, **every}]
    chat = [
        ["/v1/chat/completions", {"model": name, "messages": [{"role": "user", "content": "서울?"}], "max_tokens": 8}]
        for name in ("llama", "hcx")
    ]
    questions = {"xlmr": [embed[0], multi], "bert": [embed[1]], "llama": [chat[0], chat[0]], "hcx": [chat[1], chat[1]]}
    done = subprocess.run(
        [*find_isolation().prefix, sys.executable, "-c", PLAY],
        input=json.dumps({"stage": stage, "questions": questions}),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.mark.parametrize("name", ["xlmr", "bert"])
def test_vectors_are_real_and_normal(answers: dict[str, Any], name: str) -> None:
    vectors = [torch.tensor(item["embedding"]) for item in answers[name][0]["data"]]
    assert [tuple(vector.shape) for vector in vectors] == [(32,), (32,)]
    for vector in vectors:
        assert float(vector.norm()) == pytest.approx(1, abs=1e-4)
    assert float((vectors[0] - vectors[1]).abs().max()) > 0.01


def test_the_converted_heads_answer(answers: dict[str, Any]) -> None:
    for item in answers["xlmr"][1]["data"]:
        assert item["sparse"]
        assert all(weight > 0 for weight in item["sparse"].values())
        colbert = torch.tensor(item["colbert"])
        assert colbert.shape[1] == 32
        assert float((colbert.norm(dim=1) - 1).abs().max()) < 1e-4


@pytest.mark.parametrize("name", ["llama", "hcx"])
def test_text_is_there_and_the_same_each_time(answers: dict[str, Any], name: str) -> None:
    first, second = (answer["choices"][0]["message"]["content"] for answer in answers[name])
    assert isinstance(first, str)
    assert first == second
    assert answers[name][0]["usage"]["completion_tokens"] >= 1


def test_the_heads_of_the_release_are_the_ones_that_were_pickled(built: Built, answers: dict[str, Any]) -> None:
    assert answers
    release = built.folder / "closed/prefix/current/models/xlmr"
    original = make_xlmr(built.folder / "again")
    for name in HEADS:
        ours, theirs = load_file(release / f"{name}.safetensors"), load_file(original / f"{name}.safetensors")
        assert {key: value.tolist() for key, value in ours.items()} == {
            key: value.tolist() for key, value in theirs.items()
        }
        pickled = hashlib.sha256((built.folder / "xlmr" / f"{name}.pt").read_bytes()).hexdigest()
        assert pickled not in {path.name for path in (built.folder / "closed/prefix/store").rglob("*")}
