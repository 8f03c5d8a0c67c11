"""The ``bge-m3`` adapter: dense, lexical and ColBERT vectors from one forward pass.

The numbers are FlagEmbedding's (``BGEM3FlagModel.encode``) for the same folder; the paper is arXiv:2402.03216.
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from manifests.modelsettings import BgeM3Settings, parse_settings
from runtime.adapters.base import JSON, AdapterInfo, EmbeddingInput, ModelConfig, MultiEmbeddings, RequestError
from runtime.adapters.embedder import LocalEmbedder, Progress, warn_of_truncation
from runtime.adapters.encoder import TokenReader
from runtime.adapters.fingerprint import fingerprint
from runtime.adapters.folder import architecture, open_folder
from runtime.adapters.hardware import choose_device, choose_dtype, choose_int8
from runtime.adapters.m3_engine import Engine, TransformersEngine, read_heads
from runtime.adapters.similarity import Dense, Lexical, PerToken, similarity
from runtime.adapters.stored import MODES, Mode
from runtime.adapters.textcache import open_cache


class BgeM3Adapter(LocalEmbedder):
    """BGE-M3, or any XLM-R folder with its two heads.

    Args:
        model_path: The folder.
        device: auto (cuda, then mps, then cpu), cpu, cuda, cuda:N or mps.
        use_fp16: float16 on an accelerator; no effect on a CPU.
        max_length: Longer inputs are cut at so many tokens, and counted; a folder that allows fewer sets the limit.
        batch_size: Texts of a batch at most; None leaves it to the token budget, which is faster for short texts.
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
        max_length: int | None = 8192,
        batch_size: int | None = 12,
        normalize_embeddings: bool = True,  # noqa: FBT001, FBT002, RUF100 - as use_fp16
        **settings: JSON,
    ) -> None:
        named: dict[str, JSON] = {"device": device, "use_fp16": use_fp16 and not settings.get("int8")}
        named |= {"batch_size": batch_size, "normalize_embeddings": normalize_embeddings}
        path = Path(model_path)
        config = ModelConfig(name=path.name, adapter="bge-m3", directory=path, settings={**named, **settings})
        self._load(config, at_most=max_length)

    @classmethod
    def from_config(cls, config: ModelConfig) -> "BgeM3Adapter":
        """Load a model; what :func:`runtime.adapters.load_adapter` calls.

        Raises:
            AdapterError: As the constructor.
        """
        adapter = cls.__new__(cls)
        adapter._load(config)  # noqa: SLF001 - its own class
        return adapter

    def _load(self, config: ModelConfig, at_most: int | None = None) -> None:
        self._settings: BgeM3Settings = parse_settings(config, BgeM3Settings)
        self._lock = threading.RLock()
        directory, document = open_folder(config)
        device, device_note = choose_device(self._settings, model=config.name)
        dtype, dtype_note = choose_dtype(self._settings, device, generator=False)
        int8_notes = choose_int8(self._settings, device, model=config.name)
        heads = read_heads(directory, self._settings, model=config.name)
        self._reader = TokenReader(directory, model=config.name, asked=self._settings.max_length, declared=at_most)
        self._engine = self._make_engine(directory, heads, device, dtype)
        products = self._engine.encoder.notes if isinstance(self._engine, TransformersEngine) else ()
        self._features: tuple[Mode, ...] = tuple(mode for mode in MODES if mode == "dense" or f"{mode}_linear" in heads)
        self._cache, cache_note = open_cache(
            self._settings, lambda: self._identity(fingerprint(directory), str(device), str(dtype)), model=config.name
        )
        self._info = AdapterInfo(
            name=config.name,
            adapter=config.adapter,
            kind="embedder",
            architecture=architecture(document),
            directory=str(directory),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            limit=self._reader.limit,
            dimension=self.dimension,
            features=self._features,
            notes=(device_note, dtype_note, *int8_notes, *products, f"backend {self._settings.backend}", cache_note),
        )

    def _make_engine(
        self,
        directory: Path,
        heads: Mapping[str, Mapping[str, torch.Tensor]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Engine:
        if self._settings.backend == "flagembedding":
            from runtime.adapters.m3_flagembedding import FlagEmbeddingEngine  # noqa: PLC0415 - 70 wheels, optional

            return FlagEmbeddingEngine(
                directory, reader=self._reader, heads=heads, device=device, settings=self._settings
            )
        return TransformersEngine(
            directory, reader=self._reader, heads=heads, device=device, dtype=dtype, settings=self._settings
        )

    def _identity(self, files: str, device: str, dtype: str) -> Mapping[str, object]:
        """Return everything that the numbers depend on, for the cache."""
        settings = self._settings
        ways = {"backend": settings.backend, "int8": settings.int8, "normalize": settings.normalize_embeddings}
        return {"files": files, "device": device, "dtype": dtype, "limit": self._reader.limit, **ways}

    @property
    def dimension(self) -> int:
        """The length of a dense vector, from the folder's config."""
        return self._engine.width

    def embed_multi(
        self, texts: Sequence[EmbeddingInput], *, dense: bool = True, sparse: bool = False, colbert: bool = False
    ) -> MultiEmbeddings:
        """Return dense, lexical and ColBERT vectors, whichever are asked for, from one forward pass.

        Raises:
            RequestError: As :meth:`embed`; nothing is asked for; or the settings left out a head that is.
            AdapterError: Out of memory on a single input.
        """
        asked = {"dense": dense, "sparse": sparse, "colbert": colbert}
        modes = tuple(mode for mode in MODES if asked[mode])
        self._check_asked(modes)
        return self._run(texts, modes)

    def get_multi_embeddings(
        self,
        texts: Sequence[str],
        return_dense: bool = True,  # noqa: FBT001, FBT002, RUF100 - the position is part of the interface that users have
        return_sparse: bool = False,  # noqa: FBT001, FBT002, RUF100 - as return_dense
        return_colbert_vecs: bool = False,  # noqa: FBT001, FBT002, RUF100 - as return_dense
        *,
        token_strings: bool = False,
    ) -> dict[str, object]:
        """Return FlagEmbedding's keys ``dense_vecs``, ``lexical_weights``, ``colbert_vecs``; None if not asked for.

        ``dense_vecs`` is float32 of shape (texts, dimension), ``colbert_vecs`` a list of (tokens - 1, dimension).
        Lexical weights are dicts of token id as text, or of the token itself with ``token_strings``, to plain floats,
        so that they are JSON as they stand. ``truncated`` has one flag per text.

        Raises:
            RequestError: As :meth:`embed_multi`.
        """
        result = self.embed_multi(texts, dense=return_dense, sparse=return_sparse, colbert=return_colbert_vecs)
        warn_of_truncation(self._info, result.truncated_count, len(texts))
        sparse = result.sparse
        name = self.token_strings if token_strings else _id_strings
        return {
            "dense_vecs": result.dense,
            "lexical_weights": None if sparse is None else [name(row) for row in sparse],
            "colbert_vecs": None if result.colbert is None else list(result.colbert),
            "truncated": list(result.truncated),
        }

    def token_strings(self, weights: Mapping[int, float]) -> dict[str, float]:
        """Return lexical weights by token instead of by id; a leading ``\u2581`` marks the begin of a word."""
        tokens = self._reader.tokenizer.convert_ids_to_tokens(list(weights))
        return dict(zip(tokens, weights.values(), strict=True))

    def compute_similarity(
        self,
        query_embedding: Dense | Lexical | PerToken,
        doc_embeddings: Sequence[Dense | Lexical | PerToken],
    ) -> list[float]:
        """Return the score of a query with each document, all of one kind.

        Dense vectors give cosines, lexical weights the sum of products over shared tokens, ColBERT vectors the mean
        over the query's tokens of the best product.

        Raises:
            RequestError: Kinds or shapes differ, numbers aren't finite, or a dense vector is zero.
        """
        return similarity(query_embedding, doc_embeddings)

    def _compute(
        self, inputs: Sequence[EmbeddingInput], modes: Sequence[Mode], progress: Progress | None
    ) -> MultiEmbeddings:
        return self._engine.compute(inputs, modes, progress)

    def _check_asked(self, modes: Sequence[Mode]) -> None:
        if not modes:
            raise RequestError("nothing asked for: choose dense, sparse or colbert")
        missing = next((mode for mode in modes if mode not in self._features), None)
        if missing:
            key = {"sparse": "return_sparse", "colbert": "return_colbert_vecs"}[missing]
            msg = f"model {self._info.name!r} was loaded without its {missing} head"
            raise RequestError(msg, param=missing, hint=f"set {key}: true in the model's settings")


BGEM3OfflineAdapter = BgeM3Adapter
"""The name that the guide for RAGTrace gives it."""


def _id_strings(weights: Mapping[int, float]) -> dict[str, float]:
    return {str(token): weight for token, weight in weights.items()}
