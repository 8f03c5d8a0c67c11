"""Actors on Ray in the place of processes: texts go to them, vectors come back, and only the run itself writes."""

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from manifests.errors import AdapterError, IntegrityError, SealiftError
from runtime.adapters.base import Embeddings, ModelConfig
from runtime.server.bulk.output import Done, write_shard
from runtime.server.bulk.rows import RowFields
from runtime.server.bulk.sources import Shard, Source, open_source
from runtime.server.rayserve.cluster import cluster, prepare_ray

_AGAIN: Final = 3
"""How often an actor that died is started again, on whichever node has room, and its shard done again."""


class ShardActor:
    """What runs on a node: one loaded model that embeds texts; errors come back as values, with their kind."""

    def __init__(self, model: ModelConfig, model_sha256: str, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self._model, self._digest, self._threads = model, model_sha256, threads
        self._embedder: Any = None  # loaded by the first call: what a constructor raises arrives without its kind

    def ready(self) -> Mapping[str, Any]:
        """Return what was loaded, as a process says it."""
        return self._guarded(lambda: {"ready": self._load()})

    def embed(self, texts: Sequence[str]) -> Mapping[str, Any]:
        """Return the vectors of texts, and what computed them."""

        def work() -> Mapping[str, Any]:
            ready = self._load()
            found = self._embedder.embed(texts)
            return {"ready": ready, "vectors": found.vectors, "tokens": found.token_counts, "cut": found.truncated}

        return self._guarded(work)

    def _load(self) -> Mapping[str, Any]:
        import torch  # noqa: PLC0415 - after the number of threads

        from runtime.adapters.fingerprint import fingerprint  # noqa: PLC0415 - as above
        from runtime.server.bulk.worker import describe, load_embedder  # noqa: PLC0415 - as above

        if self._embedder is None:
            torch.set_num_threads(self._threads)
            if fingerprint(self._model.directory) != self._digest:
                msg = f"{self._model.directory}: not the same files as where the run was started"
                raise IntegrityError(msg, hint="install the same bundle into the same prefix on every node")
            self._embedder = load_embedder(self._model)
        return describe(self._embedder, self._threads)

    @staticmethod
    def _guarded(work: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        try:
            return work()
        except SealiftError as error:
            return {"error": error.message, "hint": error.hint, "kind": type(error)}


@dataclass(slots=True, kw_only=True)
class RayTeam:
    """Actors for one run, as :class:`~runtime.server.bulk.team.Team` is of processes.

    Args:
        ray: Ray, connected.
        model: What they load.
        model_sha256: Its fingerprint where the run is.
        threads: CPU threads of each.
        size: How many.
        input: The file, which only the run reads.
        fields: What is read of it.
        output: The folder, into which only the run writes.
    """

    ray: Any
    model: ModelConfig
    model_sha256: str
    threads: int
    size: int
    input: Path
    fields: RowFields
    output: Path
    _actors: list[Any] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)
    _results: "queue.Queue[Done | Exception]" = field(default_factory=queue.Queue)
    _shards: "queue.Queue[Shard]" = field(default_factory=queue.Queue)
    _loaded: Mapping[str, Any] = field(default_factory=dict)

    def ready(self) -> Mapping[str, Any]:
        """Wait for all, and return what they loaded.

        Raises:
            AdapterError: One can't be started or load, or they didn't load the same.
        """
        # Calls are tried until the actor is dead for good: a lost node is noticed seconds after calls begin to fail.
        kind = self.ray.remote(ShardActor).options(
            num_cpus=self.threads, max_restarts=_AGAIN, max_task_retries=-1, scheduling_strategy="SPREAD"
        )
        self._actors = [kind.remote(self.model, self.model_sha256, self.threads) for _ in range(self.size)]
        loaded = [self._result(actor.ready.remote())["ready"] for actor in self._actors]
        if any(one != loaded[0] for one in loaded):
            raise AdapterError(f"the processes loaded the model differently: {loaded}")
        self._loaded = loaded[0]
        return self._loaded

    def start(self, shards: Sequence[Shard]) -> None:
        """Have them work on shards, in this order."""
        for shard in shards:
            self._shards.put(shard)
        self._threads = [threading.Thread(target=self._feed, args=(actor,), daemon=True) for actor in self._actors]
        for thread in self._threads:
            thread.start()

    def next_done(self) -> Done:
        """Wait for the next shard, in any order.

        Raises:
            AdapterError: An actor died too often, or the model failed.
            DiskError: Nothing can be written.
            IntegrityError: The input changed.
        """
        result = self._results.get()
        if isinstance(result, Exception):
            raise result
        return result

    def end(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self.ray.kill(actor)

    def _feed(self, actor: Any) -> None:  # noqa: ANN401 - Ray's handle
        source = open_source(self.input, self.fields)
        try:
            while True:
                self._results.put(self._embed(actor, source, self._shards.get_nowait()))
        except queue.Empty:
            self.ray.kill(actor)  # its cores may be what another needs to start again
        except Exception as error:  # noqa: BLE001 - raised again by next_done, in the thread that waits
            self._results.put(error)

    def _embed(self, actor: Any, source: Source, shard: Shard) -> Done:  # noqa: ANN401 - Ray's handle
        rows = source.rows(shard)
        answer = self._result(actor.embed.remote([row.text for row in rows]))
        if answer["ready"] != self._loaded:
            raise AdapterError(f"the processes loaded the model differently: {[self._loaded, answer['ready']]}")
        embedded = Embeddings(vectors=answer["vectors"], token_counts=answer["tokens"], truncated=answer["cut"])
        return write_shard(self.output, shard, rows, embedded, with_ids=self.fields.id is not None)

    def _result(self, reference: Any) -> Mapping[str, Any]:  # noqa: ANN401 - Ray's reference
        try:
            answer: Mapping[str, Any] = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            hint = "what is done is kept: run the same command again; often it is memory: fewer --processes"
            raise AdapterError(f"an embedding actor on Ray failed: {error}", hint=hint) from error
        if "error" in answer:
            raise answer["kind"](answer["error"], hint=answer["hint"])
        return answer


@contextlib.contextmanager
def ray_team(prefix: Path, address: str | None, **asked: Any) -> Iterator[RayTeam]:  # noqa: ANN401 - RayTeam's own
    """Yield a team on the cluster at ``address``, or on a Ray of its own; leaving the context ends the actors.

    Raises:
        AdapterError: The release has no Ray, or it can't be started, or joined.
    """
    prepare_ray(prefix, os.environ, joins=address is not None)
    cpus = asked["threads"] * asked["size"]
    with cluster(prefix, address, cpus=cpus) as ray:
        team = RayTeam(ray=ray, **asked)
        try:
            yield team
        finally:
            team.end()
