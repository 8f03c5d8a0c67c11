"""Settings of models: every key has an effect or is refused by name, with the reason.

The builder checks those of a spec, before anything is fetched; an adapter those that it is loaded with.
"""

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

from manifests.errors import AdapterError
from manifests.fields import nearest_hint, shown, type_name

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"

SECTIONS: Final = frozenset({"generation", "optimization", "batch_processing", "performance", "multi_functionality"})
"""Headings that a settings file may group its keys under; they carry no meaning of their own."""

REFUSED: Final[Mapping[str, str]] = {
    "gradient_checkpointing": "it is a training option and has no effect on inference",
    "trust_remote_code": "code from a model folder is never run; the architecture must be one that transformers has",
    "enable_cache": "embeddings have a cache, generated text has none",
    "cache_size": "embeddings have a cache, generated text has none",
    "clear_cache_interval": "the cache makes room whenever vectors are stored; cache_size and cache_bytes limit it",
    "enable_batching": "it is for generators; embeddings are always batched",
    "max_batch_size": "it is for generators; batch_size and batch_tokens limit a batch of texts to embed",
    "attn_implementation": "SDPA is always used; use_flash_attention asks for flash attention on CUDA",
    "do_sample": "temperature decides: 0 is greedy, above 0 samples",
    "tokenizer": "the tokenizer is the folder's own, never a substitute",
}

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
S = TypeVar("S", bound="CommonSettings")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings:
    """Settings that every adapter has.

    ``device`` is auto (cuda, then mps, then cpu), cpu, cuda, cuda:N or mps. ``pack_weights`` copies the float32 weights
    of linear layers into the order in which an x86 CPU's oneDNN reads them: few tokens are multiplied half as fast
    again, for as much memory as those weights have, which processes no longer share. None: embedders do, generators
    don't. ``int8`` multiplies 8-bit integers on a CPU: faster, not exact.
    """

    device: str = "auto"
    dtype: Dtype = "auto"
    int8: bool = False
    pack_weights: bool | None = None

    def check(self) -> None:
        """Raise ``ValueError`` with key and reason where a value is out of range."""
        if self.device not in {"auto", "cpu", "cuda", "mps"} and not _is_cuda_index(self.device):
            raise ValueError(f"device: expected auto, cpu, cuda, cuda:N or mps, got {self.device!r}")
        if self.pack_weights and not (self.device in {"auto", "cpu"} and self.dtype in {"auto", "float32"}):
            which = f"device {self.device!r}" if self.device not in {"auto", "cpu"} else f"dtype {self.dtype!r}"
            raise ValueError(f"pack_weights: for float32 on a CPU only, contradicts {which}")
        if self.int8 and self.dtype not in {"auto", "float32"}:
            raise ValueError(f"int8: true contradicts dtype {self.dtype!r}")
        if self.int8 and self.pack_weights:
            raise ValueError("pack_weights: contradicts int8, whose products are others")


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSettings(CommonSettings):
    """Settings of an embedder.

    ``max_length`` cuts inputs at so many tokens (None: the folder's own limit). A batch holds at most ``batch_size``
    texts (None: no limit) and ``batch_tokens`` tokens (None: 1,024 on a CPU; 16,384, padding included, elsewhere).
    ``use_fp16`` is FlagEmbedding's: float16 on an accelerator, no effect on a CPU. How far off
    ``int8`` is, :mod:`runtime.adapters.agreement` says.

    ``enable_cache`` keeps vectors on disk: None does as the variable ENABLE_MODEL_CACHE says, and nothing without it.
    The file lies in ``cache_dir`` (None: CACHE_DIR, else the user's cache folder) and holds at most ``cache_bytes``
    bytes and ``cache_size`` vectors (None: any number); what was used least recently makes room.
    """

    use_fp16: bool = False
    max_length: int | None = None
    batch_size: int | None = None
    batch_tokens: int | None = None
    enable_cache: bool | None = None
    cache_dir: str | None = None
    cache_bytes: int = 1 << 30
    cache_size: int | None = None

    def check(self) -> None:
        """Raise ``ValueError`` with key and reason where a value is out of range."""
        CommonSettings.check(self)
        for key in ("max_length", "batch_size", "batch_tokens", "cache_bytes", "cache_size"):
            _at_least(key, getattr(self, key), 1)
        if self.use_fp16 and self.dtype not in {"auto", "float16"}:
            raise ValueError(f"use_fp16: true contradicts dtype {self.dtype!r}")
        if self.int8 and self.device not in {"auto", "cpu"}:
            raise ValueError(f"int8: for a CPU only, contradicts device {self.device!r}; use_fp16 is for accelerators")


@dataclass(frozen=True, slots=True, kw_only=True)
class SentenceTransformerSettings(EmbedderSettings):
    """``normalize_embeddings`` None does as modules.json declares; true adds, false leaves out the step.

    ``prompt_name`` chooses one of the folder's prompts to be put before every text; None does as the folder declares.
    """

    normalize_embeddings: bool | None = None
    prompt_name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BgeM3Settings(EmbedderSettings):
    """``return_*`` say what the model may be asked for; with both heads off, a folder without heads loads.

    ``backend`` flagembedding has FlagEmbedding do the sums, where the release has it installed.
    """

    normalize_embeddings: bool = True
    return_dense: bool = True
    return_sparse: bool = True
    return_colbert_vecs: bool = True
    backend: Literal["transformers", "flagembedding"] = "transformers"

    def check(self) -> None:
        """Raise ``ValueError`` with key and reason where a value is out of range."""
        EmbedderSettings.check(self)
        if not self.return_dense:
            raise ValueError("return_dense: false leaves /v1/embeddings nothing to answer with")
        if self.backend == "flagembedding":
            self._check_flagembedding()

    def _check_flagembedding(self) -> None:
        if self.batch_tokens is not None:
            raise ValueError("batch_tokens: backend 'flagembedding' counts texts, use batch_size")
        if self.int8:
            raise ValueError("int8: backend 'flagembedding' has none")
        if self.pack_weights:
            raise ValueError("pack_weights: backend 'flagembedding' does its own products")
        if self.dtype not in {"auto", "float32"}:
            raise ValueError(f"dtype: backend 'flagembedding' has no {self.dtype!r}, use_fp16 chooses float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalLmSettings(CommonSettings):
    """Settings of a generator; the sampling ones are defaults that a request may override.

    ``max_length`` limits the context, prompt and answer together, below what the folder's config allows.
    ``chat_template_kwargs`` are passed to the chat template, such as ``skip_reasoning`` of HyperCLOVA X Think.
    ``max_batch_size`` answers are made together at most, with ``max_batch_tokens`` tokens in their caches (None: 16,384
    on a CPU, 131,072 elsewhere); ``enable_batching`` false makes them one by one.
    """

    max_length: int | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    system_prompt: str = ""
    chat_template_kwargs: Mapping[str, object] = field(default_factory=dict)
    use_flash_attention: bool = False
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    enable_batching: bool = True
    max_batch_size: int = 8
    max_batch_tokens: int | None = None

    def check(self) -> None:
        """Raise ``ValueError`` with key and reason where a value is out of range."""
        CommonSettings.check(self)
        _at_least("max_length", self.max_length, 2)
        for key in ("max_new_tokens", "max_batch_size", "max_batch_tokens"):
            _at_least(key, getattr(self, key), 1)
        check_sampling(self.temperature, self.top_p, self.repetition_penalty)
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("load_in_4bit: contradicts load_in_8bit, choose one")
        if self.int8 and (self.load_in_8bit or self.load_in_4bit):
            raise ValueError("int8: for a CPU, contradicts load_in_8bit and load_in_4bit, which are for CUDA")
        if self.int8 and self.device not in {"auto", "cpu"}:
            raise ValueError(f"int8: for a CPU only, contradicts device {self.device!r}; load_in_8bit is for CUDA")


def check_sampling(temperature: float, top_p: float, repetition_penalty: float) -> None:
    """Raise ``ValueError`` that begins with the name of the number that is out of range."""
    if not 0 <= temperature <= 100:
        raise ValueError(f"temperature: expected 0 (greedy) to 100, got {temperature:g}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected more than 0, at most 1, got {top_p:g}")
    if not 0 < repetition_penalty <= 100:
        raise ValueError(f"repetition_penalty: expected more than 0, at most 100, got {repetition_penalty:g}")


KINDS: Final[Mapping[str, type[CommonSettings]]] = {
    "bge-m3": BgeM3Settings,
    "causal-lm": CausalLmSettings,
    "hcx": CausalLmSettings,
    "sentence-transformer": SentenceTransformerSettings,
}
"""Adapter name -> its settings."""


class Configured(Protocol):
    """A model whose settings are read: a :class:`runtime.adapters.base.ModelConfig`."""

    @property
    def name(self) -> str:
        """Its id in the API."""

    @property
    def adapter(self) -> str:
        """Its adapter's name."""

    @property
    def settings(self) -> Mapping[str, JSON]:
        """Its settings as they were written."""


class SettingsError(ValueError):
    """A setting that can't be; the text begins with its key.

    Args:
        text: What is wrong.
        hint: What to do about it.
    """

    def __init__(self, text: str, *, hint: str | None = None) -> None:
        super().__init__(text)
        self.hint = hint


def parse_settings(config: Configured, kind: type[S]) -> S:
    """Read a model's settings.

    Raises:
        AdapterError: As :func:`read_settings`.
    """
    try:
        return read_settings(config.adapter, config.settings, kind)
    except SettingsError as error:
        raise AdapterError(f"model {config.name!r}: settings: {error}", hint=error.hint) from None


def read_settings(adapter: str, written: Mapping[str, JSON], kind: type[S]) -> S:
    """Read settings as they are written; numbers may be decimal strings, as the manifest has them.

    Raises:
        SettingsError: An unknown key (with the nearest), a refused one (with the reason), a wrong type or value.
    """
    hints = get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    values: dict[str, Any] = {}  # Any: each value was coerced to its field's own type
    for key, value in flat_settings(written):
        if key not in hints:
            raise _unknown(adapter, key, known)
        if key in values:
            raise SettingsError(f"{key}: written twice")
        try:
            values[key] = _coerce(value, hints[key])
        except ValueError as error:
            raise SettingsError(f"{key}: {error}") from None
    settings = kind(**values)
    try:
        settings.check()
    except ValueError as error:
        raise SettingsError(str(error)) from None
    return settings


def flat_settings(written: Mapping[str, JSON]) -> Iterator[tuple[str, JSON]]:
    """Yield a model's settings as they are written, without the headings that group them."""
    for key, value in written.items():
        if key in SECTIONS and isinstance(value, Mapping):
            yield from value.items()
        else:
            yield key, value


def _unknown(adapter: str, key: str, known: list[str]) -> SettingsError:
    if key in REFUSED:
        return SettingsError(f"{key}: refused: {REFUSED[key]}", hint="remove the key")
    hint = nearest_hint(key[:80], sorted(known))
    return SettingsError(f"{shown(key)}: adapter {adapter!r} has no such setting", hint=hint)


def _coerce(value: JSON, hint: Any) -> object:  # noqa: ANN401 - a type hint has no better type
    if isinstance(hint, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return None if value is None else _coerce(value, options[0])
    if get_origin(hint) is Literal:
        return _coerce_choice(value, get_args(hint))
    if hint is float:
        return _coerce_float(value)
    if get_origin(hint) is tuple:
        return _coerce_texts(value)
    if get_origin(hint) is Mapping:
        if isinstance(value, Mapping):
            return value
        raise ValueError(f"expected a table, got {type_name(value)}")
    if type(value) is not hint:
        raise ValueError(f"expected {type_name(hint())}, got {type_name(value)}")
    return value


def _coerce_choice(value: JSON, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"expected {' or '.join(choices)}, got {value!r}")
    return str(value)


def _coerce_float(value: JSON) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number, got {type_name(value)}")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"expected a number, got {value!r}") from None


def _coerce_texts(value: JSON) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) and item for item in items):
        raise ValueError(f"expected a list of non-empty strings, got {type_name(value)}")
    return tuple(str(item) for item in items)


def _at_least(key: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise ValueError(f"{key}: expected at least {least}, got {value}")


def _is_cuda_index(device: str) -> bool:
    return device.startswith("cuda:") and device[5:].isdecimal()
