"""The ``bge-m3`` adapter: dense, lexical and ColBERT vectors from one forward pass.

The numbers are FlagEmbedding's (``BGEM3FlagModel.encode``) for the same folder; the paper is arXiv:2402.03216.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import torch
from safetensors.torch import load_file

from manifests.errors import AdapterError
from runtime.adapters.base import (
    JSON,
    AdapterInfo,
    EmbeddingInput,
    Embeddings,
    ModelConfig,
    MultiEmbeddings,
    RequestError,
    Vectors,
)
from runtime.adapters.encoder import HiddenStates, TextEncoder, TokenRow
from runtime.adapters.folder import architecture, open_folder
from runtime.adapters.hardware import choose_device, choose_dtype
from runtime.adapters.settings import BgeM3Settings, parse_settings

T = TypeVar("T")
_SILENT_TOKENS: Final = ("cls_token", "eos_token", "pad_token", "unk_token")


class BgeM3Adapter:
    """BGE-M3, or any XLM-R folder with its two heads.

    Args:
        model_path: The folder.
        device: auto (cuda, then mps, then cpu), cpu, cuda, cuda:N or mps.
        use_fp16: float16 on an accelerator; no effect on a CPU.
        max_length: Longer inputs are cut at so many tokens, and counted; None takes what the folder allows (8,192).
        batch_size: Texts of a batch at most; None leaves it to the token budget.
        normalize_embeddings: Whether dense and ColBERT vectors get length 1.
        settings: Any other setting by its name in a settings file.

    Raises:
        AdapterError: No such folder, no heads in it, an unknown setting.
    """

    def __init__(  # noqa: PLR0917 - the positions are part of the interface that users have
        self,
        model_path: str | Path,
        device: str = "auto",
        use_fp16: bool = True,  # noqa: FBT001, FBT002, RUF100 - the position is part of the interface that users have
        max_length: int | None = None,
        batch_size: int | None = None,
        normalize_embeddings: bool = True,  # noqa: FBT001, FBT002, RUF100 - as use_fp16
        **settings: JSON,
    ) -> None:
        named: dict[str, JSON] = {"device": device, "use_fp16": use_fp16, "max_length": max_length}
        named |= {"batch_size": batch_size, "normalize_embeddings": normalize_embeddings}
        path = Path(model_path)
        self._load(ModelConfig(name=path.name, adapter="bge-m3", directory=path, settings={**named, **settings}))

    @classmethod
    def from_config(cls, config: ModelConfig) -> "BgeM3Adapter":
        """Load a model; what :func:`runtime.adapters.load_adapter` calls.

        Raises:
            AdapterError: As the constructor.
        """
        adapter = cls.__new__(cls)
        adapter._load(config)  # noqa: SLF001 - its own class
        return adapter

    def _load(self, config: ModelConfig) -> None:
        self._settings = settings = parse_settings(config, BgeM3Settings)
        directory, document = open_folder(config)
        device, device_note = choose_device(settings, model=config.name)
        dtype, dtype_note = choose_dtype(settings, device, generator=False)
        wanted = {"sparse_linear": settings.return_sparse, "colbert_linear": settings.return_colbert_vecs}
        states = {name: _read_head(directory, name, config.name) for name, asked in wanted.items() if asked}
        self._encoder = TextEncoder(directory, model=config.name, device=device, dtype=dtype, settings=settings)
        width = self._encoder.width
        heads = {name: _make_head(state, name, width, model=config.name) for name, state in states.items()}
        self._heads = {name: head.to(device=device, dtype=dtype) for name, head in heads.items()}
        self._silent_ids = _silent_ids(self._encoder)
        features = ("dense", *(name.removesuffix("_linear") for name in self._heads))
        self._info = AdapterInfo(
            name=config.name,
            adapter=config.adapter,
            kind="embedder",
            architecture=architecture(document),
            directory=str(directory),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            limit=self._encoder.limit,
            dimension=width,
            features=features,
            notes=(device_note, dtype_note),
        )

    @property
    def info(self) -> AdapterInfo:
        """What was loaded."""
        return self._info

    @property
    def dimension(self) -> int:
        """The length of a dense vector."""
        return self._encoder.width

    def embed(self, texts: Sequence[EmbeddingInput]) -> Embeddings:
        """Return one dense float32 vector per input, in order.

        Raises:
            RequestError: An input isn't valid Unicode, is no token of this model, or is an empty token list.
            AdapterError: Out of memory on a single input.
        """
        result = self.embed_multi(texts)
        if result.dense is None:
            raise AssertionError("embed_multi computes dense vectors unless told otherwise")
        return Embeddings(vectors=result.dense, token_counts=result.token_counts, truncated=result.truncated)

    def embed_multi(
        self, texts: Sequence[EmbeddingInput], *, dense: bool = True, sparse: bool = False, colbert: bool = False
    ) -> MultiEmbeddings:
        """Return dense, lexical and ColBERT vectors, whichever are asked for, from one forward pass.

        Raises:
            RequestError: As :meth:`embed`; nothing is asked for; or the settings left out a head that is.
            AdapterError: Out of memory on a single input.
        """
        self._check_asked(dense=dense, sparse=sparse, colbert=colbert)
        rows = self._encoder.tokenize(texts)
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        weights: list[Mapping[int, float]] = [{} for _ in rows]
        per_token: list[Vectors] = [np.empty((0, self.dimension), dtype=np.float32) for _ in rows]
        with torch.inference_mode():
            for batch in self._encoder.forward(rows):
                if dense:
                    vectors[list(batch.rows)] = self._dense(batch)
                if sparse:
                    _spread(self._sparse(batch, rows), batch.rows, weights)
                if colbert:
                    _spread(self._colbert(batch), batch.rows, per_token)
        return MultiEmbeddings(
            dense=vectors if dense else None,
            sparse=tuple(weights) if sparse else None,
            colbert=tuple(per_token) if colbert else None,
            token_counts=tuple(len(row.ids) for row in rows),
            truncated=tuple(row.truncated for row in rows),
        )

    def embed_documents(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one dense vector per text, as LangChain's ``Embeddings`` asks."""
        vectors: list[list[float]] = self.embed(texts).vectors.tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """Return the dense vector of one query; BGE-M3 has no separate query instruction."""
        return self.embed_documents([text])[0]

    def get_multi_embeddings(
        self,
        texts: Sequence[str],
        return_dense: bool = True,  # noqa: FBT001, FBT002, RUF100 - the position is part of the interface that users have
        return_sparse: bool = False,  # noqa: FBT001, FBT002, RUF100 - as return_dense
        return_colbert_vecs: bool = False,  # noqa: FBT001, FBT002, RUF100 - as return_dense
    ) -> dict[str, object]:
        """Return FlagEmbedding's keys ``dense_vecs``, ``lexical_weights``, ``colbert_vecs``; None if not asked for.

        Lexical weights are dicts of token id as text -> plain float, so that they are JSON as they stand.
        """
        result = self.embed_multi(texts, dense=return_dense, sparse=return_sparse, colbert=return_colbert_vecs)
        sparse = result.sparse
        return {
            "dense_vecs": result.dense,
            "lexical_weights": sparse and [{str(token): weight for token, weight in row.items()} for row in sparse],
            "colbert_vecs": None if result.colbert is None else list(result.colbert),
        }

    def compute_similarity(
        self, query_embedding: Sequence[float], doc_embeddings: Sequence[Sequence[float]]
    ) -> list[float]:
        """Return the cosine of a dense query vector with each of the documents'.

        Raises:
            RequestError: Shapes differ, or a vector is zero, which has no direction.
        """
        query = np.asarray(query_embedding, dtype=np.float64)
        if not len(doc_embeddings):
            return []
        widths = {len(document) for document in doc_embeddings}
        if query.ndim != 1 or widths != {len(query)}:
            msg = f"compute_similarity: a query of shape {query.shape}, documents of length {sorted(widths)}"
            raise RequestError(msg)
        documents = np.asarray(doc_embeddings, dtype=np.float64)
        norms = np.linalg.norm(documents, axis=1) * np.linalg.norm(query)
        if not np.all(norms > 0):
            raise RequestError("compute_similarity: a zero vector has no direction")
        similarities: list[float] = (documents @ query / norms).tolist()
        return similarities

    def get_embedding_dimension(self) -> int:
        """Return the length of a dense vector, from the folder's config."""
        return self.dimension

    def get_model_info(self) -> dict[str, object]:
        """Return what was loaded as a plain dict."""
        settings = self._settings
        own = {
            "model_path": self._info.directory,
            "embedding_dimension": self.dimension,
            "max_length": self._info.limit,
        }
        return {**asdict(self._info), **own, "batch_size": settings.batch_size, "use_fp16": settings.use_fp16}

    def _check_asked(self, *, dense: bool, sparse: bool, colbert: bool) -> None:
        if not (dense or sparse or colbert):
            raise RequestError("nothing asked for: choose dense, sparse or colbert")
        for name, asked, key in (("sparse", sparse, "return_sparse"), ("colbert", colbert, "return_colbert_vecs")):
            if asked and f"{name}_linear" not in self._heads:
                msg = f"model {self._info.name!r} was loaded without its {name} head"
                raise RequestError(msg, param=name, hint=f"set {key}: true in the model's settings")

    def _dense(self, batch: HiddenStates) -> Vectors:
        return _to_numpy(self._normalized(batch.states[:, 0]))

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
        if not self._settings.normalize_embeddings:
            return vectors
        return torch.nn.functional.normalize(vectors, dim=-1)


def _spread(items: Sequence[T], rows: tuple[int, ...], into: list[T]) -> None:
    for index, item in zip(rows, items, strict=True):
        into[index] = item


def _to_numpy(tensor: torch.Tensor) -> Vectors:
    array: Vectors = tensor.float().cpu().numpy()
    return array


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


def _silent_ids(encoder: TextEncoder) -> frozenset[int]:
    tokens = (getattr(encoder.tokenizer, name, None) for name in _SILENT_TOKENS)
    return frozenset(int(encoder.tokenizer.convert_tokens_to_ids(token)) for token in tokens if token is not None)
