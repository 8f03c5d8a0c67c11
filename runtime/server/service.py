"""The models of one server: which are loaded, loading more of them, replacing them, and letting them go."""

import gc
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import torch

from manifests.errors import AdapterError, SealiftError
from manifests.manifest import Probe
from runtime.adapters.base import ModelConfig
from runtime.seal import attempt_count
from runtime.server.embedding import EmbeddingWorker, Job
from runtime.server.generation import GenerationWorker, Jobs
from runtime.server.loading import Served, serve_model
from runtime.server.memory import return_memory
from runtime.server.metrics import Metrics, watch_process
from runtime.server.requests import ApiError
from runtime.server.workers import ClosedError

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a server offers.

    Attributes:
        configs: Every model that may be asked for.
        preload: Names of those that are loaded at the start.
        most: How many may be loaded at once; where that is fewer than ``configs``, a model that is asked for and isn't
            loaded takes the place of the one that was used least recently.
        depth: Requests that may wait for each model.
        probes: The manifest's.
    """

    configs: Sequence[ModelConfig]
    preload: Sequence[str]
    most: int
    depth: int
    probes: Sequence[Probe] = ()


@dataclass(slots=True, kw_only=True)
class _Place:
    """One model: its settings, and if it is loaded what serves it."""

    config: ModelConfig
    served: Served | None = None
    used: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)  # whoever loads, replaces or unloads it


class Service:
    """Loads models and passes requests to their threads. Every method may be called from any thread.

    Args:
        offer: The models.
        on_ready: Called on the loader's thread when every model of ``preload`` is loaded and has answered.
        on_failure: Called on the loader's thread when one can't; loading ends there.
    """

    def __init__(self, offer: Offer, *, on_ready: Callable[[], None], on_failure: Callable[[Exception], None]) -> None:
        self.names = tuple(config.name for config in offer.configs)
        self.metrics = Metrics()
        self.ready = False
        self._offer = offer
        self._places = {config.name: _Place(config=config) for config in offer.configs}
        self._room = threading.Lock()  # whoever makes room for a model that is asked for
        self._on_ready = on_ready
        self._on_failure = on_failure
        watch_process(self.metrics)
        self.metrics.watch("sealift_network_attempts_total", attempt_count)
        self.metrics.watch("sealift_compute_threads", torch.get_num_threads)
        for name in self.names:
            for gauge, read in (
                ("sealift_model_ready", self._is_loaded),
                ("sealift_queue_depth", self.waiting),
                ("sealift_active_requests", self.active),
            ):
                self.metrics.watch(gauge, partial(read, name), model=name)

    def start(self) -> None:
        """Begin to load on threads of their own, so that ``/health`` answers meanwhile."""
        threading.Thread(target=self._preload, name="loader", daemon=True).start()

    def stop(self) -> None:
        """Let every worker finish what it has, then end it."""
        self.ready = False
        for place in self._places.values():
            if place.served:
                place.served.worker.stop()

    @property
    def healthy(self) -> bool:
        """Whether the thread of every loaded model runs."""
        return all(place.served.worker.alive for place in list(self._places.values()) if place.served)

    def waiting(self, name: str) -> int:
        """Return how many requests wait for a model."""
        served = self._places[name].served
        return served.worker.waiting if served else 0

    def active(self, name: str) -> int:
        """Return how many a model is working on."""
        served = self._places[name].served
        return served.worker.active if served else 0

    def _is_loaded(self, name: str) -> bool:
        return self._places[name].served is not None

    def served(self, name: str) -> Served | None:
        """Return a model that is loaded, or None."""
        return self._places[name].served

    def loaded(self) -> Mapping[str, Served]:
        """Return what is loaded now, in the order of the release."""
        return {name: place.served for name, place in self._places.items() if place.served}

    def must_load(self, name: str) -> bool:
        """Whether :meth:`load` has to be called before the model can be asked.

        Raises:
            ApiError: No such model, or it is one of those that still load at the start.
        """
        if name not in self._places:
            msg = f"model: there is no model {name[:80]!r} here; there is {', '.join(self.names)}"
            raise ApiError(msg, status=404, param="model", code="model_not_found")
        if self._is_loaded(name):
            return False
        if not self.ready:
            raise ApiError(f"model {name!r} is still loading", status=503, kind="server_error", code="not_ready")
        return True

    def load(self, name: str) -> None:
        """Load a model that was asked for, in the place of another one if there is no room.

        Raises:
            AdapterError: It can't be loaded.
        """
        with self._room:
            if self._is_loaded(name):
                return
            while len(loaded := self.loaded()) >= self._offer.most:
                self._unload(min(loaded, key=lambda other: self._places[other].used))
            self._load(name)

    def submit_embedding(self, name: str, job: Job) -> None:
        """Queue texts.

        Raises:
            ApiError: Not loaded, or it is a generator.
            BusyError: Its queue is full.
        """
        self._submit(name, EmbeddingWorker, job, ("generates text", "/v1/chat/completions"))

    def submit_generation(self, name: str, jobs: Jobs) -> None:
        """Queue prompts.

        Raises:
            ApiError: Not loaded, or it is an embedder.
            BusyError: Its queue is full.
        """
        self._submit(name, GenerationWorker, jobs, ("embeds text", "/v1/embeddings"))

    def _submit(self, name: str, kind: type, work: Job | Jobs, other: tuple[str, str]) -> None:
        while True:
            place = self._places[name]
            served = place.served
            if served is None:
                raise ApiError(f"model {name!r} was unloaded", status=503, kind="server_error", code="not_ready")
            if not isinstance(served.worker, kind):
                does, route = other
                raise ApiError(f"model: {name!r} {does}; use it with {route}", param="model", code="wrong_model_kind")
            place.used = time.monotonic()
            try:
                served.worker.submit(work)  # type: ignore[arg-type] # `kind` was just checked
            except ClosedError:
                if place.served is served:
                    raise
            else:
                return

    def reload(self, configs: Sequence[ModelConfig]) -> None:
        """Load every loaded model again whose settings have changed; requests go on meanwhile.

        A model that can't be loaded with its new settings stays as it was, and the log says why.
        """
        for config in configs:
            place = self._places.get(config.name)
            if place is None or config == place.config:
                continue
            old, place.config = place.config, config
            try:
                if self._is_loaded(config.name):
                    self._load(config.name)
            except SealiftError as error:
                place.config = old
                _LOG.error("model %s keeps its old settings: %s", config.name, error.message)

    def _preload(self) -> None:
        try:
            with ThreadPoolExecutor(max(1, len(self._offer.preload)), thread_name_prefix="load") as executor:
                for done in [executor.submit(self._load, name) for name in self._offer.preload]:
                    done.result()
        except Exception as error:  # noqa: BLE001 - whoever started the server decides what a failed load means
            self._on_failure(error)
            return
        self.ready = True
        self._on_ready()

    def _load(self, name: str) -> None:
        place = self._places[name]
        probes = [probe for probe in self._offer.probes if probe.model == name]
        with place.lock:
            before = place.served
            place.served = served = self._serve(place.config, probes)
            place.used = time.monotonic()
        notes = "; ".join((*served.info.notes, served.probed))
        _LOG.info("model %s is loaded in %.1f s: %s", name, served.seconds, notes)
        if before is not None:
            before.worker.stop()
            del before
            self._forget()

    def _serve(self, config: ModelConfig, probes: Sequence[Probe]) -> Served:
        try:
            return serve_model(config, probes, depth=self._offer.depth, metrics=self.metrics)
        except SealiftError:
            raise
        except Exception as error:
            msg = f"model {config.name!r}: {type(error).__name__}: {error}"
            raise AdapterError(msg, hint="runtime verify compares the files with the signed manifest") from error

    def _unload(self, name: str) -> None:
        place = self._places[name]
        with place.lock:
            served, place.served = place.served, None
        if served is not None:
            served.worker.stop()
            _LOG.info("model %s is unloaded", name)
            del served
            self._forget()

    @staticmethod
    def _forget() -> None:
        gc.collect()
        return_memory()
