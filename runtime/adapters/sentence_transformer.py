"""The ``sentence-transformer`` adapter: any folder that declares its pooling in modules.json."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np
import torch

from manifests.modelsettings import SentenceTransformerSettings, parse_settings
from runtime.adapters.base import AdapterInfo, EmbeddingInput, ModelConfig, MultiEmbeddings
from runtime.adapters.declaration import Pooling, read_declaration
from runtime.adapters.dense_module import DenseModule, read_dense
from runtime.adapters.embedder import LocalEmbedder, Progress
from runtime.adapters.encoder import HiddenStates, TextEncoder, TokenReader
from runtime.adapters.fingerprint import fingerprint
from runtime.adapters.folder import architecture, open_folder
from runtime.adapters.hardware import choose_device, choose_dtype, choose_int8
from runtime.adapters.stored import Mode
from runtime.adapters.textcache import open_cache


class SentenceTransformerAdapter(LocalEmbedder):
    """Dense vectors as sentence-transformers computes them for the same folder.

    :meth:`embed` is its ``encode``, :meth:`embed_query` and :meth:`embed_documents` its ``encode_query`` and
    ``encode_document``, which differ where the folder declares prompts for them.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._settings: SentenceTransformerSettings = parse_settings(config, SentenceTransformerSettings)
        self._lock = threading.RLock()
        directory, document = open_folder(config)
        self._declared = read_declaration(directory, model=config.name, prompt_name=self._settings.prompt_name)
        asked = self._settings.normalize_embeddings
        self._normalize = self._declared.normalize if asked is None else asked
        device, device_note = choose_device(self._settings, model=config.name)
        dtype, dtype_note = choose_dtype(self._settings, device, generator=False)
        int8_notes = choose_int8(self._settings, device, model=config.name)
        declared, longest = self._declared.max_seq_length, self._settings.max_length
        self._reader = TokenReader(directory, model=config.name, asked=longest, declared=declared)
        self._encoder = TextEncoder(directory, reader=self._reader, device=device, dtype=dtype, settings=self._settings)
        self._modules = self._read_modules(config, device, dtype)
        self._cache, cache_note = open_cache(
            self._settings, lambda: self._identity(fingerprint(directory), str(device), str(dtype)), model=config.name
        )
        pooling_note = f"pooling {self._declared.pooling}, normalised: {self._normalize}"
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
            features=("dense",),
            notes=(
                device_note,
                dtype_note,
                *int8_notes,
                *self._encoder.notes,
                pooling_note,
                *self._prompt_notes(),
                cache_note,
            ),
        )

    @classmethod
    def from_config(cls, config: ModelConfig) -> "SentenceTransformerAdapter":
        """Load a model; what :func:`runtime.adapters.load_adapter` calls.

        Raises:
            AdapterError: No modules.json, a module that isn't known, or a folder that can't be loaded.
        """
        return cls(config)

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._modules[-1].width if self._modules else self._encoder.width

    @property
    def _query_prefix(self) -> str | None:
        return self._declared.prompts.query

    @property
    def _document_prefix(self) -> str | None:
        return self._declared.prompts.document

    def _prepare(self, text: EmbeddingInput, prefix: str | None) -> EmbeddingInput:
        if not isinstance(text, str):
            return text
        whole = (self._declared.prompts.default if prefix is None else prefix) + text
        return whole.strip().lower() if self._declared.lower_case else whole.strip()

    @torch.inference_mode()
    def _compute(
        self, inputs: Sequence[EmbeddingInput], modes: Sequence[Mode], progress: Progress | None
    ) -> MultiEmbeddings:
        rows = self._reader.read(inputs)
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        for batch in self._encoder.forward(rows, progress):
            pooled = pool(batch, self._declared.pooling)
            for module in self._modules:
                pooled = module(pooled)
            pooled = torch.nn.functional.normalize(pooled, dim=-1) if self._normalize else pooled
            vectors[list(batch.rows)] = pooled.float().cpu().numpy()
        return MultiEmbeddings(
            dense=vectors if "dense" in modes else None,
            sparse=None,
            colbert=None,
            token_counts=tuple(len(row.ids) for row in rows),
            truncated=tuple(row.truncated for row in rows),
        )

    def _read_modules(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> list[DenseModule]:
        modules: list[DenseModule] = []
        width = self._encoder.width
        for path in self._declared.dense:
            module = read_dense(config.directory.expanduser().absolute() / path, width, model=config.name)
            modules.append(module.to(device=device, dtype=dtype))
            width = module.width
        return modules

    def _prompt_notes(self) -> tuple[str, ...]:
        found = {name: text for name, text in asdict(self._declared.prompts).items() if text}
        return tuple(f"prompt for {name} texts: {text!r}" for name, text in found.items())

    def _identity(self, files: str, device: str, dtype: str) -> Mapping[str, object]:
        """Return everything that the numbers depend on, for the cache; prompts are part of the text there."""
        ways = {"int8": self._settings.int8, "normalize": self._normalize}
        return {"files": files, "device": device, "dtype": dtype, "limit": self._reader.limit, **ways}


def pool(batch: HiddenStates, how: Pooling) -> torch.Tensor:
    """Return one vector per row, shape (batch, width).

    That is the first token's, the mean or maximum over the real tokens, or their sum over the root of their number.
    """
    states = batch.states
    if how == "cls":
        return states[:, 0]
    if batch.mask is None:
        return states.amax(dim=1) if how == "max" else states.sum(dim=1) / _divisor(states.shape[1], how)
    real = batch.mask.unsqueeze(-1)
    if how == "max":
        return states.masked_fill(real == 0, -torch.inf).amax(dim=1)
    counts = real.sum(dim=1)
    return (states * real).sum(dim=1) / (counts if how == "mean" else counts.sqrt())


def _divisor(length: int, how: Pooling) -> float:
    return length if how == "mean" else length**0.5
