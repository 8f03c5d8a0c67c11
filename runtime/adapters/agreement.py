"""How far 8-bit numbers are from the exact ones, on texts that matter: measured, never assumed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from manifests.canonical import Json
from manifests.errors import AdapterError
from manifests.modelsettings import flat_settings
from runtime.adapters import load_adapter
from runtime.adapters.base import JSON, Embedder, ModelConfig, Vectors

_TOP: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How two sets of vectors for the same texts agree.

    Attributes:
        texts: How many there were.
        cosine_min: The smallest cosine of a text's two vectors.
        cosine_mean: Their mean.
        top: How many neighbours were compared per text: 10, or all others where there are fewer.
        overlap: Mean share of those neighbours that both sets have in common; None for fewer than two texts.
    """

    texts: int
    cosine_min: float
    cosine_mean: float
    top: int
    overlap: float | None

    def to_json(self) -> Mapping[str, Json]:
        """Return it as a manifest or a lock writes it: numbers that aren't integers are decimal strings."""
        return {
            "texts": self.texts,
            "cosine_min": f"{self.cosine_min:.6f}",
            "cosine_mean": f"{self.cosine_mean:.6f}",
            "top": self.top,
            "overlap": None if self.overlap is None else f"{self.overlap:.4f}",
        }


def measure_agreement(config: ModelConfig, texts: Sequence[str]) -> Agreement:
    """Load a model twice, exact and with ``int8``, one after the other, and compare their vectors for ``texts``.

    Raises:
        AdapterError: There are no texts, the model isn't an embedder or can't be loaded, or a vector is zero.
    """
    if not texts:
        raise AdapterError(f"model {config.name!r}: an agreement report needs texts", hint="add probes for the model")
    exact = _vectors(config, texts, int8=False)
    return compare(exact, _vectors(config, texts, int8=True))


def compare(exact: Vectors, other: Vectors) -> Agreement:
    """Compare two arrays of shape (texts, dimension), row by row.

    Raises:
        AdapterError: Shapes differ, there are no rows, or a vector is zero or not finite.
    """
    if exact.shape != other.shape or exact.ndim != 2 or not len(exact):
        raise AdapterError(f"agreement: vectors of shape {exact.shape} against {other.shape}")
    first, second = _unit(exact), _unit(other)
    cosines = np.clip((first * second).sum(axis=1), -1.0, 1.0)
    top = min(_TOP, len(exact) - 1)
    return Agreement(
        texts=len(exact),
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
        top=top,
        overlap=_overlap(_neighbours(first, top), _neighbours(second, top)) if top else None,
    )


def _vectors(config: ModelConfig, texts: Sequence[str], *, int8: bool) -> Vectors:
    own: dict[str, JSON] = {"device": "cpu", "int8": int8, "pack_weights": False}  # memory matters here, not speed
    written = {key: value for key, value in flat_settings(config.settings) if key != "use_fp16"}  # for accelerators
    settings = {**written, **own}
    adapter = load_adapter(dataclasses.replace(config, settings=settings))
    if not isinstance(adapter, Embedder):
        raise AdapterError(f"model {config.name!r}: an agreement report is for embedders, this one generates text")
    return adapter.embed(list(texts)).vectors


def _unit(vectors: Vectors) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(wide).all() or not norms.all():
        raise AdapterError("agreement: a vector is zero or not finite")
    return np.asarray(wide / norms)


def _neighbours(vectors: NDArray[np.float64], top: int) -> NDArray[np.int64]:
    """Return for each text the indices of the ``top`` others that are nearest; ties go to the lower index."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return np.argsort(-scores, axis=1, kind="stable")[:, :top]


def _overlap(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    shares = [len(set(a) & set(b)) / len(a) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    return float(np.mean(shares))
