"""Fetching a model from a hub on the loopback: our downloads against huggingface_hub's own command."""

import random
import shutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from benchmarks.measure import Side, memory_of
from benchmarks.sections import Section, Sections, ratio_row, remove_folder
from benchmarks.table import Row, megabytes
from tests.factories_hub import LoopbackHub, loopback_hub

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
    with loopback_hub() as hub:
        hub.add(_REPO, _model(size), refs=("main",))
        yield from _compare(sections, hub)


def _compare(sections: Sections, hub: LoopbackHub) -> Iterator[Row]:
    store, folder = sections.work.folder / "hub-store", sections.work.folder / "hub-folder"
    asked = ("env", f"HF_ENDPOINT={hub.endpoint}", "HF_HUB_DISABLE_XET=1", "HF_HUB_DISABLE_TELEMETRY=1")
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
