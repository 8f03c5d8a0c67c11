"""Recording what models answer: once into the lock, the same bytes after, compared by every rehearsal and verify."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.factories import Key, make_key
from tests.factories_cli import ROOT, write_spec
from tests.factories_models import make_llama, make_xlmr

pytestmark = [pytest.mark.slow, pytest.mark.models]
MODELS = """
[[model]]
name = "xlmr"
source = "dir:xlmr"
adapter = "bge-m3"

[[model]]
name = "llama"
source = "dir:llama"
adapter = "causal-lm"

[[model]]
name = "quick"
source = "dir:xlmr"
adapter = "bge-m3"
[model.settings]
int8 = true

[[probe]]
model = "xlmr"
inputs = ["a ship carries sealed goods", "대한민국의 수도는 서울이다"]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """Where spec, lock and models are, a key, and what ``lock --record`` and the build said."""

    folder: Path
    key: Key
    recorded: dict[str, Any]
    built: dict[str, Any]

    @property
    def lock(self) -> dict[str, Any]:
        """The lock as it was written."""
        document: dict[str, Any] = json.loads((self.folder / "demo.lock").read_text())
        return document


def run(folder: Path, *words: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run a bundler command with the tester's own indexes and cache, since PyTorch is large."""
    return subprocess.run(
        [sys.executable, "-m", "bundler.cli", *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def answer(folder: Path, *words: str | Path) -> dict[str, Any]:
    done = run(folder, *words, "--json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """See :class:`Recorded`; never write to it."""
    folder = tmp_path_factory.mktemp("record")
    make_xlmr(folder / "xlmr")
    make_llama(folder / "llama")
    write_spec(folder / "demo.toml", "torch==2.13.0", more=MODELS)
    key = make_key(folder / "release", seed=b"Q" * 32)
    told = answer(folder, "lock", "demo.toml", "--record")
    built = answer(folder, "build", "demo.toml", "--output", "out", "--key", key.path)
    return Recorded(folder=folder, key=key, recorded=told, built=built)


def test_what_is_recorded(recorded: Recorded) -> None:
    assert (recorded.recorded["probes"], recorded.recorded["recorded"]) == (3, 3)
    xlmr, llama, quick = recorded.lock["probes"]
    assert (xlmr["model"], llama["model"], llama["kind"]) == ("xlmr", "llama", "chat")
    assert (quick["model"], quick["kind"]) == ("quick", "embedding")
    assert llama["inputs"] == ["Is anyone there?", "거기 누구 있나요?"], "a model without a probe gets one"
    assert set(xlmr["expect"]) == {"sparse", "vectors", "versions"}
    assert len(xlmr["expect"]["vectors"]) == len(xlmr["expect"]["sparse"]) == 2
    assert all(row["tokens"] == sorted(row["tokens"]) for row in xlmr["expect"]["sparse"])
    assert any(row["tokens"] for row in xlmr["expect"]["sparse"])
    assert set(llama["expect"]) == {"texts", "versions"}
    versions = llama["expect"]["versions"]
    assert set(versions) == {"adapter", "cpu", "device", "dtype", "sealift", "torch", "transformers"}
    assert (versions["adapter"], versions["device"], versions["dtype"]) == ("causal-lm", "cpu", "float32")
    assert versions["torch"].startswith("2.13.0")
    assert not list(recorded.folder.glob(".*record*")), "the throw-away bundle is gone"


def test_how_far_8_bit_vectors_are_from_exact_ones_is_recorded_and_reported(recorded: Recorded, tmp_path: Path) -> None:
    assert list(recorded.lock["rehearsal"]["agreement"]) == ["quick"], "the others are exact"
    measured = recorded.lock["rehearsal"]["agreement"]["quick"]
    assert (measured["texts"], measured["top"], measured["overlap"]) == (2, 1, "1.0000")
    assert 0.99 < float(measured["cosine_min"]) <= float(measured["cosine_mean"]) < 1
    bundle = recorded.folder / recorded.built["bundle"]
    answer(recorded.folder, "report", bundle, "--output", tmp_path)
    models = {model["name"]: model for model in json.loads((tmp_path / "report.json").read_text())["models"]}
    assert models["quick"]["int8"]["measured"] == measured
    assert models["xlmr"]["int8"] is None
    evidence = json.loads((recorded.folder / recorded.built["evidence"][0]).read_bytes())
    assert evidence["agreement"] == {}, "what is recorded isn't measured again"


def test_the_rehearsal_compared(recorded: Recorded) -> None:
    evidence, signature = (recorded.folder / path for path in recorded.built["evidence"])
    document = json.loads(evidence.read_bytes())
    assert [(model["name"], model["probes"], model["compared"]) for model in document["models"]] == [
        ("xlmr", 1, 1),
        ("llama", 1, 1),
        ("quick", 1, 1),
    ]
    assert document["attempts"] == []
    assert "torch" in document["imports"]
    assert not [words for words in document["not_rehearsed"] if "answers" in words]
    assert document["versions"]["torch"].startswith("2.13.0")
    assert signature.read_text().startswith("-----BEGIN SSH SIGNATURE-----\n")


def test_builds_are_the_same_bytes_and_locking_again_keeps_the_answers(recorded: Recorded, tmp_path: Path) -> None:
    before = (recorded.folder / "demo.lock").read_bytes()
    answer(recorded.folder, "lock", "demo.toml")
    assert (recorded.folder / "demo.lock").read_bytes() == before
    again = answer(
        recorded.folder, "build", "demo.toml", "--output", tmp_path, "--key", recorded.key.path, "--no-rehearsal"
    )
    assert Path(again["bundle"]).read_bytes() == (recorded.folder / recorded.built["bundle"]).read_bytes()


def changed(recorded: Recorded, folder: Path, model: str, key: str) -> Path:
    """Return a copy of the spec's folder whose lock expects another answer of a model."""
    folder.mkdir()
    for name in ("demo.toml", "demo.lock"):
        shutil.copy(recorded.folder / name, folder)
    lock = json.loads((folder / "demo.lock").read_text())
    probe = next(probe for probe in lock["probes"] if probe["model"] == model)
    probe["expect"][key] = list(reversed(probe["expect"][key]))
    (folder / "demo.lock").write_text(json.dumps(lock, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return folder


def test_a_wrong_answer_is_not_signed(recorded: Recorded, tmp_path: Path) -> None:
    folder = changed(recorded, tmp_path / "home", "xlmr", "vectors")
    done = run(folder, "build", "demo.toml", "--output", "out", "--key", recorded.key.path)
    assert done.returncode == 9, done.stderr
    assert "error: the rehearsal's models: " in done.stderr
    assert "model xlmr: a vector that differs by " in done.stderr
    assert done.stderr.endswith("hint: if the new answers are right: bundler lock SPEC --record\n")
    assert list((folder / "out").iterdir()) == []


def test_a_missing_model_file_is_named(tmp_path: Path, recorded: Recorded) -> None:
    make_llama(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").unlink()
    model = '[[model]]\nname = "llama"\nsource = "dir:llama"\nadapter = "causal-lm"\n'
    write_spec(tmp_path / "demo.toml", "torch==2.13.0", more=model)
    done = run(tmp_path, "build", "demo.toml", "--output", "out", "--key", recorded.key.path)
    assert done.returncode == 9, done.stderr
    assert "the rehearsal's models: 1 problem:\n  model 'llama': " in done.stderr
    assert "tokenizer" in done.stderr
    assert "hint: include and exclude of the [[model]] decide which of its files travel" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
