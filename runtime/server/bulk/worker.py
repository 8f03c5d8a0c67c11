"""A process that embeds shards: one JSON line in for each, one out, until there are no more or nobody asks any more."""

import importlib.metadata
import json
import os
import queue
import signal
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import torch

from manifests.errors import AdapterError, SealiftError, UsageError
from manifests.modelsettings import flat_settings
from runtime.adapters import load_adapter
from runtime.adapters.base import JSON, Embedder, ModelConfig
from runtime.server.bulk.output import write_shard
from runtime.server.bulk.rows import RowFields
from runtime.server.bulk.sources import Shard, Source, open_source


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a worker needs to know: the model, the input and what is read of it, the output, CPU threads."""

    model: ModelConfig
    input: Path
    fields: RowFields
    output: Path
    threads: int


def serve_shards(work: Work, requests: BinaryIO, answers: TextIO) -> None:
    """Load the model, say what was loaded, then embed what is asked for.

    Returns after an error only: the process is killed when its work is done, and kills itself when the one that asks
    has gone. A shard that is begun then isn't written.
    """
    wanted: queue.Queue[bytes] = queue.Queue()
    threading.Thread(target=_listen, args=(requests, wanted), daemon=True).start()
    try:
        torch.set_num_threads(work.threads)
        embedder = load_embedder(work.model)
        source = open_source(work.input, work.fields)
        _say(answers, {"ready": describe(embedder, work.threads)})
        while True:
            shard = Shard.from_json(json.loads(wanted.get()))
            _say(answers, {"done": embed_shard(work, embedder, source, shard)})
    except SealiftError as error:
        _say(answers, {"error": error.message, "hint": error.hint, "code": error.exit_code})


def load_embedder(config: ModelConfig) -> Embedder:
    """Load a model without its cache: what was computed in another company of texts may differ in the last bit.

    Weights are packed only where the settings say so: batches of many tokens gain next to nothing, and workers share
    what isn't packed.

    Raises:
        AdapterError: It can't be loaded.
        UsageError: It generates text.
    """
    settings: dict[str, JSON] = {"pack_weights": False, **dict(flat_settings(config.settings)), "enable_cache": False}
    if config.adapter in {"causal-lm", "hcx"}:
        raise UsageError(f"model {config.name!r} generates text, it gives no vectors", hint="--model NAME")
    adapter = load_adapter(replace(config, settings=settings))
    if not isinstance(adapter, Embedder):
        raise UsageError(f"model {config.name!r} gives no vectors", hint="--model NAME")
    return adapter


def describe(embedder: Embedder, threads: int) -> dict[str, Any]:
    """Return what decides the numbers besides the model's files and settings."""
    info = embedder.info
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    own = {"device": info.device, "dtype": info.dtype, "dimension": embedder.dimension, "limit": info.limit}
    return {**own, **versions, "threads": threads}


def embed_shard(work: Work, embedder: Embedder, source: Source, shard: Shard) -> Mapping[str, Any]:
    """Embed one shard and write it.

    Raises:
        AdapterError: The model fails on it.
        IntegrityError: The input has changed.
        DiskError: It can't be written.
    """
    rows = source.rows(shard)
    try:
        embedded = embedder.embed([row.text for row in rows])
    except AdapterError as error:
        where = f"lines {rows[0].line} to {rows[-1].line}"
        raise AdapterError(f"{work.input}: {where}: {error.message}", hint=error.hint) from error
    return asdict(write_shard(work.output, shard, rows, embedded, with_ids=work.fields.id is not None))


def _listen(requests: BinaryIO, wanted: "queue.Queue[bytes]") -> None:
    for line in requests:
        wanted.put(line)
    os.kill(os.getpid(), signal.SIGKILL)  # whoever asked is gone: nobody waits for the answer


def _say(answers: TextIO, document: Mapping[str, Any]) -> None:
    answers.write(json.dumps(document) + "\n")
    answers.flush()
