"""Loading one model for the server: weights, probes, and the thread that will work for it."""

import contextlib
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

import numpy as np

from manifests.canonical import Json
from manifests.errors import AdapterError, list_problems
from manifests.manifest import Probe
from runtime.adapters import load_adapter
from runtime.adapters.base import Adapter, AdapterInfo, Embedder, GenerationParams, ModelConfig
from runtime.adapters.engine import DecodeEngine
from runtime.probe import judge_answer
from runtime.server.asking import ask
from runtime.server.embedding import EmbeddingWorker
from runtime.server.generation import GenerationWorker
from runtime.server.metrics import Metrics

_BUILDING: Final = threading.Lock()
"""Held while a model is built: transformers sets torch's default dtype meanwhile, which all threads share."""


@runtime_checkable
class Decoding(Protocol):
    """A generator whose answers can be decoded together."""

    @property
    def engine(self) -> DecodeEngine:
        """What decodes."""


@runtime_checkable
class Caching(Protocol):
    """An embedder that keeps answers, and can be told not to."""

    def without_cache(self) -> AbstractContextManager[None]:
        """Have the model itself answer within the block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that is loaded and has answered, and the thread that works for it.

    ``probed`` says what the probes found, ``seconds`` how long all of it took.
    """

    config: ModelConfig
    info: AdapterInfo
    worker: EmbeddingWorker | GenerationWorker
    probed: str
    seconds: float


def serve_model(config: ModelConfig, probes: Sequence[Probe], *, depth: int, metrics: Metrics) -> Served:
    """Load a model, ask its probes, and start its thread.

    Several may be loaded at once: files are read ahead and probes asked side by side, the building itself takes turns.

    Raises:
        AdapterError: It can't be loaded, fails, or doesn't give its recorded answers again.
    """
    start = time.monotonic()
    _read_ahead(config.directory)
    with _BUILDING:
        adapter = load_adapter(config)
    with adapter.without_cache() if isinstance(adapter, Caching) else contextlib.nullcontext():
        probed = check_probes(adapter, probes)
    worker = _make_worker(config.name, adapter, depth, metrics)
    worker.start()
    seconds = time.monotonic() - start
    return Served(config=config, info=adapter.info, worker=worker, probed=probed, seconds=seconds)


def check_probes(adapter: Adapter, probes: Sequence[Probe]) -> str:
    """Have a model answer: its probes, or where it has none a word; return what was found.

    Recorded answers must come again where numbers are comparable: in float32, for generators on a CPU. Elsewhere a
    difference is only told.

    Raises:
        AdapterError: It fails, its numbers aren't finite or are all zero, or a recorded answer doesn't come again.
    """
    if not probes:
        _smoke(adapter)
        return "no probes; it answers"
    answers = [ask(adapter, probe) for probe in probes]
    problems = [problem for given, probe in zip(answers, probes, strict=True) for problem in judge_answer(given, probe)]
    recorded = sum(isinstance(probe.expect, Mapping) for probe in probes)
    told = f"{len(probes)} probes asked, {recorded} recorded answers came again"
    if not problems:
        return told
    info = adapter.info
    if info.dtype == "float32" and (isinstance(adapter, Embedder) or info.device == "cpu"):
        hint = "runtime verify names damaged files; settings below PREFIX/etc change answers too"
        raise AdapterError(list_problems(f"model {info.name!r}: the probes", problems), hint=hint)
    return f"{len(probes)} probes asked; with {info.dtype} on {info.device} not comparable: {'; '.join(problems)}"


def _smoke(adapter: Adapter) -> None:
    if not isinstance(adapter, Embedder):
        adapter.generate("ready?", GenerationParams(max_new_tokens=1))
        return
    vector = adapter.embed(["ready?"]).vectors[0]
    if not np.isfinite(vector).all() or not vector.any():
        msg = f"model {adapter.info.name!r}: the smoke inference gave a vector that is zero or not finite"
        raise AdapterError(msg, hint="runtime verify compares the weights with the signed manifest")


def _make_worker(name: str, adapter: Adapter, depth: int, metrics: Metrics) -> EmbeddingWorker | GenerationWorker:
    if isinstance(adapter, Embedder):
        return EmbeddingWorker(name, adapter, depth=depth, metrics=metrics)
    if isinstance(adapter, Decoding):
        return GenerationWorker(name, adapter.engine, depth=depth)
    raise AdapterError(f"model {name!r}: adapter {adapter.info.adapter!r} can't be served")


def _read_ahead(directory: Path) -> None:
    """Have the kernel fetch the weights while other models are built."""
    for path in sorted(directory.glob("*.safetensors")) if hasattr(os, "posix_fadvise") else ():
        with contextlib.suppress(OSError), path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def describe(served: Served | None) -> Mapping[str, Json]:
    """Return what is told of a loaded model; its folder isn't."""
    if served is None:
        return {}
    info = served.info
    return {
        "adapter": info.adapter,
        "kind": info.kind,
        "architecture": info.architecture,
        "device": info.device,
        "dtype": info.dtype,
        "limit": info.limit,
        "dimension": info.dimension,
        "features": list(info.features),
        "notes": list(info.notes),
        "probes": served.probed,
        "load_seconds": f"{served.seconds:.1f}",
    }
