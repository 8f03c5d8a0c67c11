"""What a folder of sentence-transformers declares: modules.json and the files that it names. Nothing is guessed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias, cast, get_args

from manifests.errors import AdapterError
from runtime.adapters.base import JSON
from runtime.adapters.folder import integer, optional_json, read_json

Pooling: TypeAlias = Literal["cls", "mean", "max", "mean_sqrt_len_tokens"]
_POOLING_KEYS: Final[Mapping[str, Pooling | None]] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": None,
    "pooling_mode_lasttoken": None,
}
_PROMPTS_FILE: Final = "config_sentence_transformers.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """What is put before texts: any text (the folder's default prompt), a query, a document."""

    default: str = ""
    query: str = ""
    document: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """What a folder's modules.json and the files beside it say.

    ``dense`` are the folders of the Dense modules, in order; ``normalize`` is whether Normalize comes last.
    """

    pooling: Pooling
    dense: tuple[str, ...]
    normalize: bool
    max_seq_length: int | None
    lower_case: bool
    prompts: Prompts = field(default_factory=Prompts)


def read_declaration(directory: Path, *, model: str, prompt_name: str | None = None) -> Declaration:
    """Read modules.json and what it points at; ``prompt_name`` chooses the prompt for every text.

    Raises:
        AdapterError: It is missing, or declares a module, a pooling or a prompt that this adapter doesn't have.
    """
    if not (directory / "modules.json").exists():
        msg = f"model {model!r}: {directory} has no modules.json, so its pooling and normalisation are unknown"
        raise AdapterError(
            msg, hint="fetch the whole folder of the model; nothing is guessed (mean pooling may be wrong)"
        )
    modules = _read_modules(directory, model)
    kinds = [kind for kind, _ in modules]
    steps = kinds[2:-1] if kinds[-1:] == ["Normalize"] else kinds[2:]
    if kinds[:2] != ["Transformer", "Pooling"] or any(kind != "Dense" for kind in steps):
        msg = f"model {model!r}: modules.json declares {', '.join(kinds) or 'nothing'}"
        raise AdapterError(msg, hint="this adapter knows Transformer, Pooling, then Dense, and at most one Normalize")
    if modules[0][1]:
        raise AdapterError(f"model {model!r}: modules.json: the Transformer lies in {modules[0][1]!r}, expected ''")
    sentence = optional_json(directory / "sentence_bert_config.json", model=model)
    prompts = _read_prompts(directory, model, prompt_name)
    return Declaration(
        pooling=_read_pooling(directory / modules[1][1] / "config.json", model, prompts),
        dense=tuple(path for kind, path in modules if kind == "Dense"),
        normalize="Normalize" in kinds,
        max_seq_length=integer(sentence, "max_seq_length"),
        lower_case=sentence.get("do_lower_case") is True,
        prompts=prompts,
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


def _read_pooling(path: Path, model: str, prompts: Prompts) -> Pooling:
    document = read_json(path, model=model)
    if not isinstance(document, Mapping):
        raise AdapterError(f"model {model!r}: {path}: expected an object")
    if document.get("include_prompt") is False and any((prompts.default, prompts.query, prompts.document)):
        msg = f"model {model!r}: {path}: include_prompt: false isn't something this adapter has"
        raise AdapterError(msg, hint="it pools over the prompt's tokens too")
    named = document.get("pooling_mode")
    if isinstance(named, str) and named in get_args(Pooling):
        return cast("Pooling", named)
    chosen = [key for key in _POOLING_KEYS if document.get(key) is True]
    pooling = _POOLING_KEYS[chosen[0]] if len(chosen) == 1 and named is None else None
    if pooling is None:
        msg = f"model {model!r}: {path}: pooling {named or ' + '.join(chosen) or 'unknown'} isn't one this adapter has"
        raise AdapterError(msg, hint="it has cls, mean, max and mean_sqrt_len_tokens, one at a time")
    return pooling


def _read_prompts(directory: Path, model: str, prompt_name: str | None) -> Prompts:
    """Return the prompts as sentence-transformers' encode, encode_query and encode_document choose them.

    The last two never fall back to the default prompt, nor to one named ``passage``: it has ``document``, if empty.
    """
    document = optional_json(directory / _PROMPTS_FILE, model=model)
    table = document.get("prompts") or {}
    if not isinstance(table, Mapping) or not all(isinstance(text, str | None) for text in table.values()):
        raise AdapterError(f"model {model!r}: {_PROMPTS_FILE}: prompts: expected a table of texts")
    prompts = {name: str(text or "") for name, text in table.items()}
    name = prompt_name if prompt_name is not None else document.get("default_prompt_name")
    if name is not None and str(name) not in prompts:
        msg = f"model {model!r}: {_PROMPTS_FILE}: no prompt named {name!r}"
        raise AdapterError(msg, hint=f"it has {', '.join(sorted(prompts)) or 'none'}")
    default = "" if name is None else prompts[str(name)]
    if prompt_name is not None:
        return Prompts(default=default, query=default, document=default)
    return Prompts(default=default, query=prompts.get("query", ""), document=prompts.get("document", ""))
