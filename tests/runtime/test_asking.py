"""Asking a release's models: a bug in one model's code is that model's finding, and never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from manifests.errors import AdapterError
from manifests.manifest import ModelEntry, Probe
from runtime.adapters.base import Adapter, ModelConfig
from runtime.layout import Prefix, Release
from runtime.probe import ask_probes
from runtime.server.asking import ask_all
from tests.factories import make_manifest, make_release_folder
from tests.factories_cli import ROOT

MODELS = tuple(
    ModelEntry(name=name, adapter="hcx", path=f"models/{name}", format="safetensors", origin="dir")
    for name in ("one", "two", "three")
)
FILES = {f"{model.path}/config.json": b"{}\n" for model in MODELS}


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A release of three models, of which nothing but the manifest is there."""
    return Release(path=make_release_folder(tmp_path / "releases", make_manifest(FILES, models=MODELS)))


def loader(config: ModelConfig) -> Adapter:
    """A stand-in for the adapters: each model fails in another way."""
    if config.name == "one":
        raise KeyError("hidden_size")
    if config.name == "two":
        raise AdapterError(f"model {config.name!r}: no such folder")
    raise RuntimeError("CUDA error\ndevice-side assert")


def test_whatever_one_model_raises_the_others_are_asked(release: Release) -> None:
    assert list(ask_all(release.path, loader)) == [
        {"model": "one", "error": "model 'one': KeyError: 'hidden_size'"},
        {"model": "two", "error": "model 'two': no such folder"},
        {"model": "three", "error": "model 'three': RuntimeError: CUDA error\ndevice-side assert"},
        {"attempts": []},
    ]


def test_the_probing_process_ends_with_a_line_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "runtime.server.probe", "--release", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)},
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr == (f"FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/manifest.json'\n")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'ValueError: no' >&2; exit 9", "at model 'two': ValueError: no"),
        ("kill -KILL $$", "at model 'two': killed by SIGKILL, perhaps for want of memory"),
        ("kill -SEGV $$", "at model 'two': killed by SIGSEGV"),
        ("exit 3", "at model 'two': no message, status 3"),
    ],
)
def test_a_probing_process_that_dies(tmp_path: Path, release: Release, script: str, words: str) -> None:
    answers = json.dumps({"model": "one", "answers": []})
    python = release.python
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\necho '{answers}'\n{script}\n")
    python.chmod(0o755)
    (tmp_path / "var").mkdir()
    manifest = make_manifest(FILES, models=MODELS, probes=(Probe(model="one", kind="chat", inputs=("x",)),))
    with pytest.raises(AdapterError) as caught:
        ask_probes(Prefix(path=tmp_path), release, manifest)
    assert caught.value.message == f"the models could not be asked, {words}"
