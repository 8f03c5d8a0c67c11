"""A real server process over a small release of tiny models, on a free port of the loopback interface."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from manifests.canonical import Json
from manifests.manifest import ModelEntry
from tests.factories import make_manifest
from tests.factories_models import make_hyperclovax, make_llama, make_xlmr, write_json

PROJECT = Path(__file__).parents[3]
START_SECONDS = 120.0


@dataclass
class ServerProcess:
    """A running ``python -m runtime.server``; ``ready`` is the document it printed when it was."""

    process: subprocess.Popen[str]
    lines: "queue.Queue[str]" = field(default_factory=queue.Queue)
    ready: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read_lines, daemon=True)
        self.reader.start()

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    def wait_ready(self) -> None:
        self.ready = json.loads(self.lines.get(timeout=START_SECONDS))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=300)
        self.reader.join(timeout=10)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def _read_lines(self) -> None:
        for line in self.process.stdout or ():
            self.lines.put(line)


def write_release(release: Path, models: Mapping[str, tuple[str, Mapping[str, Json]]]) -> Path:
    """Write the manifest of a release whose model folders are there already; name -> (adapter, settings)."""
    files = {f"models/{name}/config.json": (release / "models" / name / "config.json").read_bytes() for name in models}
    entries = tuple(
        ModelEntry(
            name=name, adapter=adapter, path=f"models/{name}", format="safetensors", origin="", settings=settings
        )
        for name, (adapter, settings) in models.items()
    )
    (release / "manifest.json").write_bytes(make_manifest(files, models=entries).encode())
    return release


def lengthen(folder: Path) -> Path:
    """Give a tiny model a context so long that an answer which never stops takes minutes."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"max_position_embeddings": 100_000})
    return folder


def start_server(
    release: Path, log: Path, *options: str, environment: Mapping[str, str] | None = None
) -> ServerProcess:
    """Start a server on a free port; its stderr goes to ``log``."""
    command = [sys.executable, "-m", "runtime.server", "--release", str(release), "--port", "0", *options]
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "XDG_CACHE_HOME": str(log.parent / "cache"), **(environment or {})},
        )
    return ServerProcess(process)


def run_server(release: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a server that is expected to end by itself."""
    command = [sys.executable, "-m", "runtime.server", "--release", str(release), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=START_SECONDS, check=False)


def events_of(text: str) -> list[Any]:
    """Return the documents of a finished event stream."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    make_xlmr(folder / "models" / "bge-m3")
    make_llama(folder / "models" / "llama")
    make_hyperclovax(folder / "models" / "hcx")
    lengthen(make_hyperclovax(folder / "models" / "endless"))
    models: dict[str, tuple[str, Mapping[str, Json]]] = {
        "bge-m3": ("bge-m3", {"max_length": 64}),
        "llama": ("causal-lm", {"dtype": "float32"}),
        "hcx": ("hcx", {"dtype": "float32", "temperature": "0.0"}),
        "endless": ("hcx", {"dtype": "float32", "max_new_tokens": 90_000}),
    }
    return write_release(folder, models)


@pytest.fixture(scope="session")
def server(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("server") / "stderr.log"
    running = start_server(release, log, "--queue", "4")
    try:
        running.wait_ready()
        yield running
    finally:
        code = running.stop()
    assert code == 0, log.read_text(encoding="utf-8")


@pytest.fixture
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as session:
        yield session
