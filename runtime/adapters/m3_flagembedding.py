"""``backend: flagembedding``: FlagEmbedding does the sums, for whoever wants its own code in the release."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import transformers

from manifests.errors import AdapterError
from manifests.modelsettings import BgeM3Settings
from runtime.adapters.base import EmbeddingInput, MultiEmbeddings, RequestError
from runtime.adapters.embedder import Progress
from runtime.adapters.encoder import TokenReader
from runtime.adapters.stored import Mode

_BATCH_SIZE: Final = 12
_HINT: Final = (
    "remove backend, the numbers are the same; or carry FlagEmbedding>=1.4.2 with transformers<5.24, which dropped the "
    "module modeling_attn_mask_utils that FlagEmbedding 1.4.2 imports"
)


class FlagEmbeddingEngine:
    """``BGEM3FlagModel`` on one device, with the heads that were read and checked here.

    FlagEmbedding itself leaves heads that it doesn't find random, and knows only pickled ones.

    Args:
        directory: The folder.
        reader: Its tokenizer, for counts and limit.
        heads: What :func:`runtime.adapters.m3_engine.read_heads` found.
        device: Where to compute.
        settings: The model's settings.

    Raises:
        AdapterError: FlagEmbedding isn't there, doesn't go with this transformers, or can't load the folder.
    """

    def __init__(
        self,
        directory: Path,
        *,
        reader: TokenReader,
        heads: Mapping[str, Mapping[str, torch.Tensor]],
        device: torch.device,
        settings: BgeM3Settings,
    ) -> None:
        self._reader = reader
        model_class = _import(reader.name)
        try:
            self._model = model_class(
                str(directory),
                normalize_embeddings=settings.normalize_embeddings,
                use_fp16=settings.use_fp16 and device.type != "cpu",
                devices=[str(device)],
                batch_size=settings.batch_size or _BATCH_SIZE,
                query_max_length=reader.limit,
                passage_max_length=reader.limit,
            )
            for name, state in heads.items():
                getattr(self._model.model, name).load_state_dict(dict(state))
        except (OSError, ValueError, RuntimeError) as error:
            raise AdapterError(f"model {reader.name!r}: FlagEmbedding can't load {directory}: {error}") from error

    @property
    def width(self) -> int:
        """The length of a dense vector."""
        return int(self._model.model.model.config.hidden_size)

    def compute(
        self, inputs: Sequence[EmbeddingInput], modes: Sequence[Mode], progress: Progress | None
    ) -> MultiEmbeddings:
        """Return what is asked for, in the order of the inputs.

        Raises:
            RequestError: An input is a list of tokens, which FlagEmbedding doesn't take.
            AdapterError: FlagEmbedding fails.
        """
        wrong = next((index for index, item in enumerate(inputs) if not isinstance(item, str)), None)
        if wrong is not None:
            raise RequestError(f"input {wrong}: backend 'flagembedding' takes texts, not tokens", param="input")
        rows = self._reader.read(inputs)
        found = self._encode(inputs, modes) if inputs else {}
        if progress:
            progress(len(rows), len(rows))
        sparse = [{int(token): float(weight) for token, weight in row.items()} for row in found.get("sparse") or ()]
        empty = torch.empty((0, self.width)).numpy()
        return MultiEmbeddings(
            dense=found.get("dense", empty) if "dense" in modes else None,
            sparse=tuple(sparse) if "sparse" in modes else None,
            colbert=tuple(found.get("colbert") or ()) if "colbert" in modes else None,
            token_counts=tuple(len(row.ids) for row in rows),
            truncated=tuple(row.truncated for row in rows),
        )

    def _encode(self, texts: Sequence[EmbeddingInput], modes: Sequence[Mode]) -> dict[str, Any]:  # Any: untyped library
        try:
            found = self._model.encode(
                list(texts),
                return_dense="dense" in modes,
                return_sparse="sparse" in modes,
                return_colbert_vecs="colbert" in modes,
            )
        except RuntimeError as error:
            raise AdapterError(f"model {self._reader.name!r}: FlagEmbedding failed: {error}") from error
        return {"dense": found["dense_vecs"], "sparse": found["lexical_weights"], "colbert": found["colbert_vecs"]}


def _import(model: str) -> Any:  # noqa: ANN401 - FlagEmbedding is untyped
    try:
        from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 - 70 wheels, optional
    except ImportError as error:
        msg = (
            f"model {model!r}: settings: backend: FlagEmbedding can't be imported beside transformers "
            f"{transformers.__version__}: {error}"
        )
        raise AdapterError(msg, hint=_HINT) from error
    return BGEM3FlagModel
