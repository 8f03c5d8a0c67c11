"""The ``sentence-transformer`` adapter: any folder that declares its pooling in modules.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias, cast, get_args

import numpy as np
import torch

from manifests.errors import AdapterError
from runtime.adapters.base import JSON, AdapterInfo, EmbeddingInput, Embeddings, ModelConfig, Vectors
from runtime.adapters.encoder import HiddenStates, TextEncoder, TokenRow
from runtime.adapters.folder import architecture, integer, open_folder, optional_json, read_json
from runtime.adapters.hardware import choose_device, choose_dtype
from runtime.adapters.settings import SentenceTransformerSettings, parse_settings

Pooling: TypeAlias = Literal["cls", "mean", "max"]
_POOLING_KEYS: Final[Mapping[str, Pooling | None]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": None,
    "pooling_mode_lasttoken": None,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What a folder's modules.json and the files beside it say.

    ``prefix`` is the default prompt of config_sentence_transformers.json, put before every text.
    """

    pooling: Pooling
    normalize: bool
    max_seq_length: int | None
    lower_case: bool
    prefix: str


class SentenceTransformerAdapter:
    """Dense vectors as sentence-transformers computes them for the same folder."""

    def __init__(self, config: ModelConfig) -> None:
        settings = parse_settings(config, SentenceTransformerSettings)
        directory, document = open_folder(config)
        self._declared = read_declaration(directory, model=config.name)
        asked = settings.normalize_embeddings
        self._normalize = self._declared.normalize if asked is None else asked
        device, device_note = choose_device(settings, model=config.name)
        dtype, dtype_note = choose_dtype(settings, device, generator=False)
        self._encoder = TextEncoder(
            directory,
            model=config.name,
            device=device,
            dtype=dtype,
            settings=settings,
            declared=self._declared.max_seq_length,
        )
        self._info = AdapterInfo(
            name=config.name,
            adapter=config.adapter,
            kind="embedder",
            architecture=architecture(document),
            directory=str(directory),
            device=str(device),
            dtype=str(dtype).removeprefix("torch."),
            limit=self._encoder.limit,
            dimension=self._encoder.width,
            features=("dense",),
            notes=(device_note, dtype_note, f"pooling {self._declared.pooling}, normalised: {self._normalize}"),
        )

    @classmethod
    def from_config(cls, config: ModelConfig) -> "SentenceTransformerAdapter":
        """Load a model; what :func:`runtime.adapters.load_adapter` calls.

        Raises:
            AdapterError: No modules.json, a module that isn't known, or a folder that can't be loaded.
        """
        return cls(config)

    @property
    def info(self) -> AdapterInfo:
        """What was loaded."""
        return self._info

    @property
    def dimension(self) -> int:
        """The length of a vector."""
        return self._encoder.width

    def embed(self, texts: Sequence[EmbeddingInput]) -> Embeddings:
        """Return one float32 vector per input, in order.

        Raises:
            RequestError: An input isn't valid Unicode, is no token of this model, or is an empty token list.
            AdapterError: Out of memory on a single input.
        """
        rows = self._encoder.tokenize([self._prepare(text) for text in texts])
        return Embeddings(
            vectors=self._pool_all(rows),
            token_counts=tuple(len(row.ids) for row in rows),
            truncated=tuple(row.truncated for row in rows),
        )

    @torch.inference_mode()
    def _pool_all(self, rows: Sequence[TokenRow]) -> Vectors:
        vectors = np.empty((len(rows), self.dimension), dtype=np.float32)
        for batch in self._encoder.forward(rows):
            pooled = pool(batch, self._declared.pooling)
            pooled = torch.nn.functional.normalize(pooled, dim=-1) if self._normalize else pooled
            vectors[list(batch.rows)] = pooled.float().cpu().numpy()
        return vectors

    def _prepare(self, text: EmbeddingInput) -> EmbeddingInput:
        if not isinstance(text, str):
            return text
        whole = self._declared.prefix + text
        return whole.strip().lower() if self._declared.lower_case else whole.strip()


def pool(batch: HiddenStates, how: Pooling) -> torch.Tensor:
    """Return one vector per row, shape (batch, width): the first token's, or mean or maximum over the real tokens."""
    states = batch.states
    if how == "cls":
        return states[:, 0]
    if batch.mask is None:
        return states.mean(dim=1) if how == "mean" else states.amax(dim=1)
    real = batch.mask.unsqueeze(-1)
    if how == "max":
        return states.masked_fill(real == 0, -torch.inf).amax(dim=1)
    return (states * real).sum(dim=1) / real.sum(dim=1)


def read_declaration(directory: Path, *, model: str) -> Declaration:
    """Read modules.json and what it points at.

    Raises:
        AdapterError: It is missing, or declares a module or a pooling that this adapter doesn't have.
    """
    if not (directory / "modules.json").exists():
        msg = f"model {model!r}: {directory} has no modules.json, so its pooling and normalisation are unknown"
        raise AdapterError(
            msg, hint="fetch the whole folder of the model; nothing is guessed (mean pooling may be wrong)"
        )
    modules = _read_modules(directory, model)
    kinds = [kind for kind, _ in modules]
    if kinds[:2] != ["Transformer", "Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        msg = f"model {model!r}: modules.json declares {', '.join(kinds) or 'nothing'}"
        raise AdapterError(msg, hint="this adapter knows Transformer, Pooling and then at most Normalize")
    if modules[0][1]:
        raise AdapterError(f"model {model!r}: modules.json: the Transformer lies in {modules[0][1]!r}, expected ''")
    sentence = optional_json(directory / "sentence_bert_config.json", model=model)
    return Declaration(
        pooling=_read_pooling(directory / modules[1][1] / "config.json", model),
        normalize="Normalize" in kinds,
        max_seq_length=integer(sentence, "max_seq_length"),
        lower_case=sentence.get("do_lower_case") is True,
        prefix=_read_prefix(directory, model),
    )


def _read_modules(directory: Path, model: str) -> list[tuple[str, str]]:
    document = read_json(directory / "modules.json", model=model)
    if not isinstance(document, list) or not all(isinstance(item, Mapping) for item in document):
        raise AdapterError(f"model {model!r}: {directory / 'modules.json'}: expected a list of objects")
    items = cast("list[Mapping[str, JSON]]", document)
    modules = [(str(item.get("type", "")).rpartition(".")[2], str(item.get("path", ""))) for item in items]
    outside = next((path for _, path in modules if path.startswith("/") or ".." in path.split("/")), None)
    if outside is not None:
        raise AdapterError(f"model {model!r}: modules.json: path {outside!r} leaves the folder")
    return modules


def _read_pooling(path: Path, model: str) -> Pooling:
    document = read_json(path, model=model)
    if not isinstance(document, Mapping):
        raise AdapterError(f"model {model!r}: {path}: expected an object")
    named = document.get("pooling_mode")
    if isinstance(named, str) and named in get_args(Pooling):
        return cast("Pooling", named)
    chosen = [key for key in _POOLING_KEYS if document.get(key) is True]
    pooling = _POOLING_KEYS[chosen[0]] if len(chosen) == 1 and named is None else None
    if pooling is None:
        msg = f"model {model!r}: {path}: pooling {named or ' + '.join(chosen) or 'unknown'} isn't one this adapter has"
        raise AdapterError(msg, hint="it has cls, mean and max, one at a time")
    return pooling


def _read_prefix(directory: Path, model: str) -> str:
    document = optional_json(directory / "config_sentence_transformers.json", model=model)
    name, prompts = document.get("default_prompt_name"), document.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(str(name)) if isinstance(prompts, Mapping) else None
    if not isinstance(prompt, str):
        raise AdapterError(f"model {model!r}: config_sentence_transformers.json: no prompt named {name!r}")
    return prompt
