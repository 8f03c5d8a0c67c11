"""BGE-M3's sums: dense, lexical and ColBERT vectors from one forward pass of an XLM-R and its two heads.

The numbers are FlagEmbedding's (``BGEM3FlagModel.encode``) for the same folder; the paper is arXiv:2402.03216.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file

from manifests.errors import AdapterError
from manifests.modelsettings import BgeM3Settings
from runtime.adapters.base import EmbeddingInput, MultiEmbeddings, Vectors
from runtime.adapters.embedder import Progress
from runtime.adapters.encoder import HiddenStates, TextEncoder, TokenReader, TokenRow
from runtime.adapters.stored import Mode

T = TypeVar("T")
_SILENT_TOKENS: Final = ("cls_token", "eos_token", "pad_token", "unk_token")


class Engine(Protocol):
    """What does the sums of a BGE-M3 folder."""

    @property
    def width(self) -> int:
        """The length of a dense vector."""

    def compute(
        self, inputs: Sequence[EmbeddingInput], modes: Sequence[Mode], progress: Progress | None
    ) -> MultiEmbeddings:
        """Return what is asked for, in the order of the inputs."""


class TransformersEngine:
    """The sums with transformers and torch alone.

    Args:
        directory: The folder.
        reader: Its tokenizer.
        heads: What :func:`read_heads` found.
        device: Where to compute.
        dtype: What to compute in; the heads stay in float32 where the network multiplies in 8 bits.
        settings: The model's settings.

    Raises:
        AdapterError: The folder can't be loaded, or a head is another model's.
    """

    def __init__(
        self,
        directory: Path,
        *,
        reader: TokenReader,
        heads: Mapping[str, Mapping[str, torch.Tensor]],
        device: torch.device,
        dtype: torch.dtype,
        settings: BgeM3Settings,
    ) -> None:
        self._reader = reader
        self._normalize = settings.normalize_embeddings
        self.encoder = TextEncoder(directory, reader=reader, device=device, dtype=dtype, settings=settings)
        made = {name: _make_head(state, name, self.width, model=reader.name) for name, state in heads.items()}
        self._heads = {name: head.to(device=device, dtype=dtype) for name, head in made.items()}
        self._silent_ids = _silent_ids(reader)

    @property
    def width(self) -> int:
        """The length of a dense vector."""
        return self.encoder.width

    def compute(
        self, inputs: Sequence[EmbeddingInput], modes: Sequence[Mode], progress: Progress | None
    ) -> MultiEmbeddings:
        """Return what is asked for, from one forward pass of each batch.

        Raises:
            RequestError: An input is no token of this model, or is an empty token list.
            AdapterError: Out of memory on a single input.
        """
        rows = self._reader.read(inputs)
        vectors = np.empty((len(rows), self.width), dtype=np.float32)
        weights: list[Mapping[int, float]] = [{} for _ in rows]
        per_token: list[Vectors] = [np.empty((0, self.width), dtype=np.float32) for _ in rows]
        with torch.inference_mode():
            for batch in self.encoder.forward(rows, progress):
                if "dense" in modes:
                    vectors[list(batch.rows)] = _to_numpy(self._normalized(batch.states[:, 0]))
                if "sparse" in modes:
                    _spread(self._sparse(batch, rows), batch.rows, weights)
                if "colbert" in modes:
                    _spread(self._colbert(batch), batch.rows, per_token)
        return MultiEmbeddings(
            dense=vectors if "dense" in modes else None,
            sparse=tuple(weights) if "sparse" in modes else None,
            colbert=tuple(per_token) if "colbert" in modes else None,
            token_counts=tuple(len(row.ids) for row in rows),
            truncated=tuple(row.truncated for row in rows),
        )

    def _sparse(self, batch: HiddenStates, rows: Sequence[TokenRow]) -> list[Mapping[int, float]]:
        found = torch.relu(self._heads["sparse_linear"](batch.states)).squeeze(-1).float().cpu().tolist()
        return [self._lexical(rows[index].ids, weights) for index, weights in zip(batch.rows, found, strict=True)]

    def _lexical(self, ids: Sequence[int], weights: Sequence[float]) -> Mapping[int, float]:
        largest: dict[int, float] = {}
        for token, weight in zip(ids, weights, strict=False):  # the weights go on over the padding
            if weight > largest.get(token, 0.0) and token not in self._silent_ids:
                largest[token] = weight
        return largest

    def _colbert(self, batch: HiddenStates) -> list[Vectors]:
        found = _to_numpy(self._normalized(self._heads["colbert_linear"](batch.states[:, 1:])))
        return [row[: length - 1].copy() for row, length in zip(found, batch.lengths(), strict=True)]

    def _normalized(self, vectors: torch.Tensor) -> torch.Tensor:
        if not self._normalize:
            return vectors
        return torch.nn.functional.normalize(vectors, dim=-1)


def _spread(items: Sequence[T], rows: tuple[int, ...], into: list[T]) -> None:
    for index, item in zip(rows, items, strict=True):
        into[index] = item


def _to_numpy(tensor: torch.Tensor) -> Vectors:
    array: Vectors = tensor.float().cpu().numpy()
    return array


def read_heads(directory: Path, settings: BgeM3Settings, *, model: str) -> dict[str, dict[str, torch.Tensor]]:
    """Return weight and bias of the heads that the settings ask for, by name; a pickle is read as data alone.

    Raises:
        AdapterError: A head is missing, or its file isn't one.
    """
    wanted = {"sparse_linear": settings.return_sparse, "colbert_linear": settings.return_colbert_vecs}
    return {name: _read_head(directory, name, model) for name, asked in wanted.items() if asked}


def _read_head(directory: Path, name: str, model: str) -> dict[str, torch.Tensor]:
    safe, pickled = directory / f"{name}.safetensors", directory / f"{name}.pt"
    path = safe if safe.exists() else pickled
    if not path.exists():
        key = {"sparse_linear": "return_sparse", "colbert_linear": "return_colbert_vecs"}[name]
        msg = f"model {model!r}: {directory} has neither {safe.name} nor {pickled.name}, a head of BGE-M3"
        raise AdapterError(msg, hint=f"fetch the whole folder, or set {key}: false to do without")
    try:
        state = load_file(safe) if path == safe else torch.load(pickled, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AdapterError(f"model {model!r}: {path} can't be read: {error}") from error
    return dict(state)


def _make_head(state: Mapping[str, torch.Tensor], name: str, width: int, *, model: str) -> torch.nn.Linear:
    weight, bias = state.get("weight"), state.get("bias")
    rows = 1 if name == "sparse_linear" else width
    if weight is None or bias is None or tuple(weight.shape) != (rows, width) or tuple(bias.shape) != (rows,):
        found = {key: tuple(value.shape) for key, value in state.items()}
        msg = f"model {model!r}: {name} has {found}, expected weight ({rows}, {width}) and bias ({rows},)"
        raise AdapterError(msg, hint="the head belongs to another model")
    head = torch.nn.Linear(width, rows, device="meta")
    head.load_state_dict({"weight": weight, "bias": bias}, assign=True)
    return head.eval().requires_grad_(requires_grad=False)


def _silent_ids(reader: TokenReader) -> frozenset[int]:
    tokens = (getattr(reader.tokenizer, name, None) for name in _SILENT_TOKENS)
    return frozenset(int(reader.tokenizer.convert_tokens_to_ids(token)) for token in tokens if token is not None)
