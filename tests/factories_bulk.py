"""Runs of the bulk embedder: with a worker without a model, and with a prefix of tiny models."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.canonical import Json
from manifests.manifest import ModelEntry, manifest_digest
from tests.factories import make_manifest
from tests.factories_models import make_bert, make_llama

PROJECT: Final = Path(__file__).parents[1]

# A worker without a model: three numbers of each text. It stands where the real one does, behind the same protocol.
STUB: Final = """
import hashlib, json, os, signal, sys
from pathlib import Path
import numpy as np
from dataclasses import asdict
from runtime.adapters.base import Embeddings
from runtime.server.bulk.output import write_shard
from runtime.server.bulk.rows import RowFields
from runtime.server.bulk.sources import Shard, open_source

source, folder = open_source(Path(sys.argv[1]), RowFields(text="text")), Path(sys.argv[2])
print(json.dumps({"ready": {"dimension": 3, "limit": 9, "threads": int(sys.argv[3])}}), flush=True)
for line in sys.stdin.buffer:
    shard = Shard.from_json(json.loads(line))
    rows = source.rows(shard)
    digests = [hashlib.sha256(row.text.encode()).digest() for row in rows]
    vectors = np.array([[digest[0], digest[1], digest[2]] for digest in digests], dtype=np.float32)
    lengths = tuple(len(row.text) for row in rows)
    cut = tuple(length > 9 for length in lengths)
    embedded = Embeddings(vectors=vectors, token_counts=lengths, truncated=cut)
    done = write_shard(folder, shard, rows, embedded, with_ids=False)
    print(json.dumps({"done": asdict(done)}), flush=True)
"""
_RUN: Final = """
import json, sys
from pathlib import Path
from manifests.errors import SealiftError
from runtime.adapters.base import ModelConfig
from runtime.server.bulk.rows import RowFields
from runtime.server.bulk.run import BulkRequest, run_bulk

source, output, model = map(Path, sys.argv[1:4])
stub, processes = sys.argv[4], int(sys.argv[5])
request = BulkRequest(model=ModelConfig(name="m", adapter="bge-m3", directory=model), input=source, output=output,
    fields=RowFields(text="text"), shard_rows=4, processes=processes, cores=2, threads=1)
command = lambda threads: [sys.executable, stub, str(source), str(output), str(threads)]
try:
    run_bulk(request, command, lambda text: print(text, file=sys.stderr, flush=True))
except SealiftError as error:
    print(error.render(), file=sys.stderr)
    sys.exit(error.exit_code)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """A folder with an input of 90 texts, a model's folder, and the two programs above."""

    folder: Path

    @property
    def input(self) -> Path:
        return self.folder / "in.jsonl"

    def start(self, output: Path, *, processes: int = 2) -> "subprocess.Popen[str]":
        words = [self.input, output, self.folder / "model", self.folder / "stub.py", str(processes)]
        return start([sys.executable, str(self.folder / "run.py"), *map(str, words)])

    def run(self, output: Path, *, processes: int = 2) -> tuple[int, str]:
        return end(self.start(output, processes=processes))


def start(command: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(
        command, cwd=PROJECT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    words, _ = process.communicate(timeout=120)
    return process.returncode, words


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "id": f"t{n}"}) + "\n" for n, text in enumerate(texts)))
    return path


def tree(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def make_lab(folder: Path) -> Lab:
    """Write the lab's files."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "stub.py").write_text(STUB)
    (folder / "run.py").write_text(_RUN)
    write_texts(folder / "in.jsonl", [f"text {n} " + "x" * (n % 7) for n in range(90)])
    return Lab(folder=folder)


def make_prefix(prefix: Path) -> Path:
    """Write a prefix whose live release has two tiny models; its venv is the one that runs the tests."""
    models = prefix / "models"
    make_bert(models / "mini")
    make_llama(models / "chat")
    adapters = {"mini": "sentence-transformer", "chat": "causal-lm"}
    files = {
        f"models/{path.relative_to(models).as_posix()}": path.read_bytes()
        for path in models.rglob("*")
        if path.is_file()
    }
    settings: Mapping[str, Json] = {"device": "cpu", "enable_cache": True}
    entries = tuple(
        ModelEntry(
            name=name,
            adapter=adapter,
            path=f"models/{name}",
            format="safetensors",
            origin="",
            settings=settings if name == "mini" else {},
        )
        for name, adapter in adapters.items()
    )
    data = make_manifest(files, models=entries).encode()
    release = prefix / "releases" / f"1.0.0-{manifest_digest(data)[:12]}"
    release.mkdir(parents=True)
    models.rename(release / "models")
    (release / "manifest.json").write_bytes(data)
    (release / "receipt.json").write_text("{}")
    (release / "venv").symlink_to(sys.prefix)
    (prefix / "var" / "run").mkdir(parents=True)
    (prefix / "current").symlink_to(release)
    return prefix


def embed(prefix: Path, source: Path, output: Path, *options: str) -> "subprocess.Popen[str]":
    words = ["embed", str(source), "--output", str(output), "--prefix", str(prefix), *options]
    return start([sys.executable, "-m", "runtime.cli", *words])
