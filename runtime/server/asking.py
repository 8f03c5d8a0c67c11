"""Asking a release's models: each is loaded by itself, answers its probes, and is let go again.

Comparing answers with the recorded ones is the caller's business (:mod:`runtime.probe`).
"""

import base64
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.canonical import Json
from manifests.errors import AdapterError, SealiftError
from manifests.manifest import MANIFEST_NAME, Probe, parse_manifest
from runtime.adapters import load_adapter
from runtime.adapters.base import Adapter, Embedder, GenerationParams, Generator, Message, ModelConfig, MultiEmbedder
from runtime.seal import attempts
from runtime.server.models import load_models


def ask_all(release: Path, load: Callable[[ModelConfig], Adapter] = load_adapter) -> Iterator[Mapping[str, Json]]:
    """Yield the answers of every model of a release, and last the refused network attempts.

    Whatever one model's code raises is that model's error; the others are asked all the same.
    """
    probes = parse_manifest((release / MANIFEST_NAME).read_bytes()).probes
    for config in load_models(release):
        start = time.monotonic()
        adapter: Adapter | None = None
        asked = [probe for probe in probes if probe.model == config.name]
        try:
            adapter = load(config)
            answers = [ask(adapter, probe) for probe in asked or [_default_probe(config.name)]]
        except SealiftError as error:
            yield {"model": config.name, "error": error.message}
        except Exception as error:  # noqa: BLE001 # a bug in one model's code is that model's finding
            yield {"model": config.name, "error": unexpected(config.name, error).message}
        else:
            told = {"device": adapter.info.device, "dtype": adapter.info.dtype}
            yield {"model": config.name, "answers": answers, "seconds": f"{time.monotonic() - start:.1f}", **told}
        adapter = None
        gc.collect()
    yield {"attempts": [f"{attempt.event} {attempt.address}" for attempt in attempts()]}


def unexpected(model: str, error: Exception) -> AdapterError:
    """Return the typed error for one that no adapter foresaw: whose model, the exception's type and words."""
    return AdapterError(f"model {model!r}: {type(error).__name__}: {error}")


def _default_probe(model: str) -> Probe:
    return Probe(model=model, kind="any", inputs=("Is anyone there?",))


def ask(adapter: Adapter, probe: Probe) -> Mapping[str, Json]:
    """Return a model's answer to a probe: ``texts``, or ``vectors`` (base64 little-endian float32).

    With the vectors comes ``sparse`` where the model has lexical weights: per input ``tokens``, ascending ids, and
    their ``weights`` as a vector is written.

    Raises:
        AdapterError: The model fails, or the probe is of another kind.
    """
    if isinstance(adapter, MultiEmbedder) and probe.kind != "chat" and "sparse" in adapter.info.features:
        both = adapter.embed_multi(list(probe.inputs), dense=True, sparse=True)
        dense = both.dense if both.dense is not None else ()
        return {"vectors": [_base64(row) for row in dense], "sparse": [_lexical(row) for row in both.sparse or ()]}
    if isinstance(adapter, Embedder) and probe.kind != "chat":
        return {"vectors": [_base64(row) for row in adapter.embed(list(probe.inputs)).vectors]}
    if isinstance(adapter, Generator) and probe.kind != "embedding":
        params = GenerationParams(max_new_tokens=24, temperature=0.0)
        texts = [adapter.generate([Message(role="user", content=text)], params).text for text in probe.inputs]
        return {"texts": texts}
    raise AdapterError(f"model {probe.model!r}: a probe of kind {probe.kind!r} does not fit its adapter")


def _lexical(weights: Mapping[int, float]) -> Mapping[str, Json]:
    tokens = sorted(weights)
    return {"tokens": tokens, "weights": _base64(np.array([weights[token] for token in tokens], np.float32))}


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
