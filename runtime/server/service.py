"""The models of one server: loading, the smoke inference, and the way from a name in a request to a worker."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from manifests.errors import AdapterError
from runtime.adapters import load_adapter
from runtime.adapters.base import Adapter, AdapterInfo, Embedder, GenerationParams, ModelConfig
from runtime.seal import attempt_count
from runtime.server.metrics import Metrics, resident_bytes
from runtime.server.requests import ApiError
from runtime.server.workers import EmbeddingWorker, GenerationWorker

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model that is loaded, and the thread that works for it."""

    info: AdapterInfo
    worker: EmbeddingWorker | GenerationWorker


class Service:
    """Loads models and hands out their workers.

    Args:
        configs: What to load, in this order.
        depth: Requests that may wait for each model.
        on_ready: Called on the loader's thread when every model is loaded and has answered.
        on_failure: Called on the loader's thread when one can't; loading ends there.
    """

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        *,
        depth: int,
        on_ready: Callable[[], None],
        on_failure: Callable[[Exception], None],
    ) -> None:
        self.names = tuple(config.name for config in configs)
        self.metrics = Metrics()
        self.ready = False
        self._configs = tuple(configs)
        self._depth = depth
        self._served: dict[str, Served] = {}
        self._on_ready = on_ready
        self._on_failure = on_failure
        self.metrics.watch("sealift_resident_bytes", resident_bytes)
        self.metrics.watch("sealift_network_attempts_total", attempt_count)
        for name in self.names:
            self.metrics.watch("sealift_model_ready", partial(self._is_loaded, name), model=name)
            self.metrics.watch("sealift_queue_depth", partial(self.waiting, name), model=name)

    def start(self) -> None:
        """Begin to load on a thread of its own, so that ``/health`` answers meanwhile."""
        threading.Thread(target=self._load_all, name="loader", daemon=True).start()

    def stop(self) -> None:
        """Let every worker finish what it has, then end it."""
        self.ready = False
        for served in list(self._served.values()):
            served.worker.stop()

    def waiting(self, name: str) -> int:
        """Return how many requests wait for a model."""
        served = self._served.get(name)
        return served.worker.waiting if served else 0

    def _is_loaded(self, name: str) -> bool:
        return name in self._served

    def loaded(self) -> list[AdapterInfo]:
        """Return what is loaded so far, in the order of loading."""
        return [served.info for served in list(self._served.values())]

    def embedding_worker(self, name: str) -> EmbeddingWorker:
        """Return the worker of an embedder.

        Raises:
            ApiError: No such model, not loaded yet, or it is a generator.
        """
        worker = self._find(name).worker
        if not isinstance(worker, EmbeddingWorker):
            raise _wrong_kind(name, "generates text", "/v1/chat/completions")
        return worker

    def generation_worker(self, name: str) -> GenerationWorker:
        """Return the worker of a generator.

        Raises:
            ApiError: No such model, not loaded yet, or it is an embedder.
        """
        worker = self._find(name).worker
        if not isinstance(worker, GenerationWorker):
            raise _wrong_kind(name, "embeds text", "/v1/embeddings")
        return worker

    def _find(self, name: str) -> Served:
        if name not in self.names:
            msg = f"model: there is no model {name[:80]!r} here; there is {', '.join(self.names)}"
            raise ApiError(msg, status=404, param="model", code="model_not_found")
        served = self._served.get(name)
        if served is None:
            raise ApiError(f"model {name!r} is still loading", status=503, kind="server_error", code="not_ready")
        return served

    def _load_all(self) -> None:
        try:
            for config in self._configs:
                self._load_one(config)
        except Exception as error:  # noqa: BLE001 - whoever started the server decides what a failed load means
            self._on_failure(error)
            return
        self.ready = True
        self._on_ready()

    def _load_one(self, config: ModelConfig) -> None:
        adapter = load_adapter(config)
        smoke(adapter)
        worker = self._make_worker(config.name, adapter)
        worker.start()
        self._served[config.name] = Served(info=adapter.info, worker=worker)
        _LOG.info("model %s is loaded: %s", config.name, "; ".join(adapter.info.notes))

    def _make_worker(self, name: str, adapter: Adapter) -> EmbeddingWorker | GenerationWorker:
        if isinstance(adapter, Embedder):
            return EmbeddingWorker(name, adapter, depth=self._depth, metrics=self.metrics)
        return GenerationWorker(name, adapter, depth=self._depth)


def smoke(adapter: Adapter) -> None:
    """Have a model answer once.

    Raises:
        AdapterError: It fails, or its numbers aren't finite or are all zero.
    """
    if not isinstance(adapter, Embedder):
        adapter.generate("ready?", GenerationParams(max_new_tokens=1))
        return
    vector = adapter.embed(["ready?"]).vectors[0]
    if not np.isfinite(vector).all() or not vector.any():
        msg = f"model {adapter.info.name!r}: the smoke inference gave a vector that is zero or not finite"
        raise AdapterError(msg, hint="runtime verify compares the weights with the signed manifest")


def _wrong_kind(name: str, does: str, route: str) -> ApiError:
    return ApiError(f"model: {name!r} {does}; use it with {route}", param="model", code="wrong_model_kind")
