"""The command that compares 8-bit with exact vectors: of the models that are named, on the texts of their probes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manifests.manifest import ModelEntry, Probe
from manifests.rehearsal import RecordedAgreement, parse_agreement
from runtime.adapters.agreement import measure_agreement
from runtime.adapters.base import ModelConfig
from tests.factories import make_manifest
from tests.factories_models import CORPUS

pytestmark = pytest.mark.models
QUICK = ModelEntry(
    name="quick",
    adapter="bge-m3",
    path="models/quick",
    format="safetensors",
    origin="dir",
    settings={"performance": {"int8": True}},
)
LLAMA = replace(QUICK, name="llama", path="models/llama", adapter="causal-lm")
PROBES = (
    Probe(model="quick", kind="embedding", inputs=tuple(CORPUS[:2])),
    Probe(model="llama", kind="chat", inputs=("Who?",)),
    Probe(model="quick", kind="embedding", inputs=tuple(CORPUS[2:])),
)


def release_of(folder: Path, probes: tuple[Probe, ...], *entries: ModelEntry, **models: Path) -> Path:
    """Lay out the models of a release."""
    manifest = make_manifest(
        {f"{entry.path}/config.json": b"{}" for entry in entries}, models=tuple(entries), probes=probes
    )
    (folder / "models").mkdir(parents=True)
    (folder / "manifest.json").write_bytes(manifest.encode())
    for name, source in models.items():
        (folder / "models" / name).symlink_to(source)
    return folder


def measure(release: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    words = [word for name in names for word in ("--model", name)]
    command = [sys.executable, "-m", "runtime.adapters.agreeing", "--release", str(release), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])


@pytest.mark.slow
def test_the_models_that_are_named_on_the_texts_of_their_probes(tmp_path: Path, xlmr: Path, llama: Path) -> None:
    done = measure(release_of(tmp_path / "release", PROBES, QUICK, LLAMA, quick=xlmr, llama=llama), "quick")
    assert done.returncode == 0, done.stderr
    line, network = (json.loads(text) for text in done.stdout.splitlines())
    assert (line["model"], network) == ("quick", {"network": []})
    found = parse_agreement(line["agreement"], "x")
    config = ModelConfig(name="quick", adapter="bge-m3", directory=xlmr, settings=QUICK.settings)
    expected: Any = measure_agreement(config, CORPUS).to_json()
    assert found == RecordedAgreement(**expected)
    assert (found.texts, found.top) == (len(CORPUS), len(CORPUS) - 1)


@pytest.mark.slow
def test_what_can_not_be_measured_is_an_error_in_one_line(tmp_path: Path, llama: Path) -> None:
    release = release_of(tmp_path / "release", PROBES[1:2], LLAMA, llama=llama)
    done = measure(release, "llama")
    assert done.returncode == 9
    words = "AdapterError: model 'llama': an agreement report is for embedders, this one generates text"
    assert done.stderr.splitlines()[-1] == words
    done = measure(release, "quick")
    assert done.returncode == 9
    assert done.stderr == "UsageError: this release has no model 'quick'\n"
