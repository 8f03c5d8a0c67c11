"""Fetching a model from a hub on the loopback: our downloads against huggingface_hub's own command.

``python -m benchmarks.fetching BYTES`` is that hub: it prints its address, and ends with its standard input.
"""

import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.measure import BenchmarkError, Side, memory_of
from benchmarks.sections import Section, Sections, ratio_row, remove_folder
from benchmarks.table import Row, megabytes
from tests.factories_hub import loopback_hub

_REPO: Final = "bench/model"
_FILES: Final = 4
_OURS: Final = """
import sys
from pathlib import Path
from bundler.snapshots.hub import Hub
from bundler.store import Store
store, hub = Store(Path(sys.argv[1])), Hub()
snapshot = hub.snapshot(sys.argv[2], "main", store)
hub.fetch(snapshot, snapshot.files, store)
"""


def fetch_model(sections: Sections) -> Iterator[Row]:
    """A model of four files, each in LFS, into a fresh store, against `hf download` into a fresh folder."""
    size = 256_000_000 if sections.work.size.model else 1_000_000
    with _hub(sections, size) as endpoint:
        yield from _compare(sections, endpoint)


@contextmanager
def _hub(sections: Sections, size: int) -> Iterator[str]:
    """Yield the address of a hub in another process: what this one holds would count as its children's memory."""
    command = [sys.executable, "-m", "benchmarks.fetching", str(size)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=sections.bench.environment
    ) as hub:
        line = hub.stdout.readline() if hub.stdout else ""
        if not line:
            raise BenchmarkError("the hub on the loopback doesn't start")
        yield line.strip()
        if hub.stdin:
            hub.stdin.close()


def serve(size: int) -> None:
    """Serve the model, each of its files of ``size`` bytes, until standard input ends."""
    with loopback_hub() as hub:
        hub.add(_REPO, _model(size), refs=("main",))
        print(hub.endpoint, flush=True)
        sys.stdin.read()


def _compare(sections: Sections, endpoint: str) -> Iterator[Row]:
    store, folder = sections.work.folder / "hub-store", sections.work.folder / "hub-folder"
    asked = ("env", f"HF_ENDPOINT={endpoint}", "HF_HUB_DISABLE_XET=1", "HF_HUB_DISABLE_TELEMETRY=1")
    hf = Path(sysconfig.get_path("scripts")) / "hf"

    def prepare() -> None:
        remove_folder(store)
        remove_folder(folder)

    ours = Side(
        label="fetch-model", commands=((*asked, sys.executable, "-c", _OURS, store, _REPO), ("sync",)), prepare=prepare
    )
    peer = Side(
        label="fetch-model: hf download",
        commands=((*asked, hf, "download", "--quiet", _REPO, "--local-dir", folder), ("sync",)),
        prepare=prepare,
    )
    if not hf.exists() or shutil.which("env") is None:
        return
    found = sections.compare("fetch-model", [ours, peer])
    prepare()
    yield ratio_row("fetch-model", found, ours=ours, peer=peer, goal=1.0)
    peak = memory_of(found[ours.label])
    yield Row(
        name="memory-fetch",
        ours=megabytes(peak),
        against="-",
        peer=megabytes(memory_of(found[peer.label])),
        value=peak / 1e6,
        unit="MB",
        sense="at most",
        goal=200,
    )


def _model(size: int) -> dict[str, bytes]:
    chance = random.Random(0)  # noqa: S311 # weights, not secrets
    files = {f"model-{number:05}-of-{_FILES:05}.safetensors": chance.randbytes(size) for number in range(_FILES)}
    return {"config.json": b'{"model_type": "bert"}\n', **files}


FETCHING: Final[Mapping[str, Section]] = {"fetch-model": fetch_model}
"""Name -> section."""

if __name__ == "__main__":
    serve(int(sys.argv[1]))
