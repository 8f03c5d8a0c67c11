"""The part that all embedders share: texts to token rows, token rows to batches, batches to hidden states."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from manifests.errors import AdapterError
from manifests.modelsettings import EmbedderSettings
from runtime.adapters.base import EmbeddingInput, RequestError
from runtime.adapters.batching import plan_batches
from runtime.adapters.hardware import choose_products, is_out_of_memory
from runtime.adapters.packing import PACKED, can_pack, forward_packed
from runtime.adapters.quantize import quantize_linears

_NO_LIMIT: Final = 1 << 20  # tokenizers without a limit say 10**30


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One input as the model sees it, and whether it was cut to fit."""

    ids: tuple[int, ...]
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenStates:
    """The last hidden states of one batch.

    Attributes:
        rows: Which inputs these are, by index.
        ids: int64, shape (batch, length).
        states: Shape (batch, length, width).
        mask: int64, shape (batch, length), 0 where padded; None when nothing is.
    """

    rows: tuple[int, ...]
    ids: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor | None

    def lengths(self) -> list[int]:
        """Return the number of real tokens of each row."""
        if self.mask is None:
            return [self.ids.shape[1]] * len(self.rows)
        return [int(count) for count in self.mask.sum(dim=1).tolist()]


class TokenReader:
    """A folder's own tokenizer and its limit: texts to token rows, each text read once.

    Args:
        directory: The folder of config and tokenizer.
        model: The model's name, for messages.
        asked: The longest input in tokens that the settings ask for.
        declared: The longest input in tokens, special ones included, as the folder declares it beside its config.

    Attributes:
        limit: The longest input in tokens, special ones included; longer ones are cut.

    Raises:
        AdapterError: transformers can't load the folder, or ``asked`` is beyond its positions.
    """

    def __init__(self, directory: Path, *, model: str, asked: int | None, declared: int | None = None) -> None:
        self.name = model
        self.config = config = load_pretrained(AutoConfig.from_pretrained, directory, model=model)
        self.tokenizer = load_pretrained(AutoTokenizer.from_pretrained, directory, model=model)
        self.pad_id = int(self.tokenizer.pad_token_id or 0)
        self.vocabulary = int(config.vocab_size)
        longest = int(self.tokenizer.model_max_length)
        self.limit = resolve_limit(config, longest, declared=declared, asked=asked, model=model)

    def read(self, inputs: Sequence[EmbeddingInput]) -> list[TokenRow]:
        """Turn inputs into token rows of at most ``limit`` tokens, in order.

        Raises:
            RequestError: Not valid Unicode, no token at all, or a token id that isn't in the vocabulary.
        """
        texts = [check_text(item, index) for index, item in enumerate(inputs) if isinstance(item, str)]
        rows = iter(self._read_texts(texts))
        return [
            next(rows) if isinstance(item, str) else self._check_ids(item, index) for index, item in enumerate(inputs)
        ]

    def _read_texts(self, texts: list[str]) -> list[TokenRow]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return [self._read_slowly(text) for text in texts]
        backend.no_padding()
        backend.enable_truncation(max_length=self.limit)
        found = backend.encode_batch_fast(texts)
        return [TokenRow(ids=tuple(item.ids), truncated=bool(item.overflowing)) for item in found]

    def _read_slowly(self, text: str) -> TokenRow:
        """Read with a tokenizer that is Python, and so can't say whether it cut."""
        whole = self.tokenizer(text, truncation=False, verbose=False)["input_ids"]
        ids = self.tokenizer(text, truncation=True, max_length=self.limit)["input_ids"]
        return TokenRow(ids=tuple(ids), truncated=len(ids) < len(whole))

    def _check_ids(self, ids: Sequence[int], index: int) -> TokenRow:
        if not ids:
            raise RequestError(f"input {index}: an empty list of tokens", param="input")
        wrong = next((token for token in ids if not 0 <= token < self.vocabulary), None)
        if wrong is not None:
            msg = f"input {index}: token {wrong} is not in the vocabulary of {self.name!r} (0 to {self.vocabulary - 1})"
            raise RequestError(
                msg, param="input", hint="tokens must come from this model's own tokenizer; or send text"
            )
        return TokenRow(ids=tuple(ids[: self.limit]), truncated=len(ids) > self.limit)


class TextEncoder:
    """A transformer encoder behind its :class:`TokenReader`.

    Args:
        directory: The folder of weights.
        reader: Its tokenizer and limit.
        device: Where to compute.
        dtype: What to compute in.
        settings: Batch sizes, and how to multiply.

    Attributes:
        packed: Whether texts of different lengths are computed without padding.
        notes: What was chosen, for a person.

    Raises:
        AdapterError: transformers can't load the folder.
    """

    def __init__(
        self,
        directory: Path,
        *,
        reader: TokenReader,
        device: torch.device,
        dtype: torch.dtype,
        settings: EmbedderSettings,
    ) -> None:
        self.name = reader.name
        self.device = device
        self.budget = settings.batch_tokens or (1024 if device.type == "cpu" else 16384)
        self.rows = settings.batch_size
        self.packed = device.type == "cpu" and can_pack(reader.config)
        network = load_pretrained(
            AutoModel.from_pretrained,
            directory,
            model=self.name,
            dtype=dtype,
            attn_implementation=PACKED if self.packed else "sdpa",
            use_safetensors=True,
        )
        self.network = network.to(device).eval()
        if self.packed:
            self.network.pooler = None  # nothing reads its vector
        if settings.int8:
            quantize_linears(self.network)
            self.notes: tuple[str, ...] = ()
        else:
            self.notes = choose_products(settings, self.network, pack=True, model=self.name)
        self.pad_id = reader.pad_id

    @property
    def width(self) -> int:
        """The length of a hidden state."""
        return int(self.network.config.hidden_size)

    def forward(
        self, rows: Sequence[TokenRow], progress: Callable[[int, int], None] | None = None
    ) -> Iterator[HiddenStates]:
        """Yield hidden states batch by batch, longest rows first; every row comes exactly once.

        ``progress`` is told after each batch how many rows are done, and of how many.

        Raises:
            AdapterError: One row alone doesn't fit into memory.
        """
        done = 0
        lengths = [len(row.ids) for row in rows]
        for planned in plan_batches(lengths, budget=self.budget, rows=self.rows, padded=not self.packed):
            for batch in self._forward_halving(rows, planned):
                yield batch
                done += len(batch.rows)
                if progress:
                    progress(done, len(rows))

    def _forward_halving(self, rows: Sequence[TokenRow], batch: tuple[int, ...]) -> Iterator[HiddenStates]:
        try:
            result = self._forward_one(rows, batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise AdapterError(f"model {self.name!r}: the forward pass failed: {error}") from error
            if len(batch) == 1:
                msg = f"model {self.name!r}: out of memory on one input of {len(rows[batch[0]].ids)} tokens"
                raise AdapterError(msg, hint="lower max_length in the model's settings") from error
        else:
            yield result
            return
        middle = len(batch) // 2
        yield from self._forward_halving(rows, batch[:middle])
        yield from self._forward_halving(rows, batch[middle:])

    @torch.inference_mode()
    def _forward_one(self, rows: Sequence[TokenRow], batch: tuple[int, ...]) -> HiddenStates:
        length = max(len(rows[index].ids) for index in batch)
        padded = [[*rows[index].ids, *([self.pad_id] * (length - len(rows[index].ids)))] for index in batch]
        ids = torch.tensor(padded, dtype=torch.int64, device=self.device)
        mask: torch.Tensor | None = None
        if any(len(rows[index].ids) < length for index in batch):
            ones = [[1] * len(rows[index].ids) + [0] * (length - len(rows[index].ids)) for index in batch]
            mask = torch.tensor(ones, dtype=torch.int64, device=self.device)
        if self.packed:
            alone = forward_packed(self.network, [rows[index].ids for index in batch])
            states = torch.nn.utils.rnn.pad_sequence(alone, batch_first=True)
        else:
            states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
        return HiddenStates(rows=batch, ids=ids, states=states, mask=mask)


def load_pretrained(factory: Callable[..., Any], directory: Path, *, model: str, **options: object) -> Any:  # noqa: ANN401 - transformers is untyped
    """Call one of transformers' ``from_pretrained`` for a local folder, never with code from it.

    Raises:
        AdapterError: transformers refuses the folder, with its own reason.
    """
    try:
        return factory(str(directory), local_files_only=True, trust_remote_code=False, **options)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = "runtime verify checks every file of the folder against the signed manifest"
        raise AdapterError(f"model {model!r}: {directory} can't be loaded: {reason}", hint=hint) from error


def check_text(text: str, index: int) -> str:
    """Return ``text``.

    Raises:
        RequestError: It holds lone surrogates, which no tokenizer takes.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        msg = f"input {index}: not valid Unicode: a lone surrogate at character {error.start}"
        raise RequestError(msg, param="input") from None
    return text


def resolve_limit(config: Any, tokenizer_limit: int, *, declared: int | None, asked: int | None, model: str) -> int:  # noqa: ANN401 - transformers is untyped
    """Return the longest input in tokens: what the settings ask, else the folder declares, else the tokenizer's.

    RoBERTa's family numbers positions from ``pad_token_id + 1`` on, so that many rows of its table are never used.

    Raises:
        AdapterError: More is asked than the model has positions for.
    """
    table = int(getattr(config, "max_position_embeddings", 0) or 0) or _NO_LIMIT
    if "roberta" in str(config.model_type):
        table -= int(config.pad_token_id or 0) + 1
    if asked is not None and asked > table:
        raise AdapterError(f"model {model!r}: settings: max_length: {asked} is more than the model's {table} positions")
    return asked or min(declared or tokenizer_limit, table, _NO_LIMIT)
