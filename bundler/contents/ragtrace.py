"""What RAGTrace, as an application of a bundle, needs in order to use the bundle's models.

It is recognised by its layout. Its factories decide by name in closed ``if``/``elif`` chains, so there is no place to
plug in: the kit has adapter modules for its folders, and a patch made against the very files that travel. Where those
aren't as expected, the kit says what to change instead. Nothing of RAGTrace is imported, here or on the closed side.
"""

import ast
import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, TypeGuard

from bundler.contents.render import OFFLINE_VARIABLES, Subject, model_context, render_template
from bundler.lock import LockedApp, LockedFile
from bundler.store import Store
from manifests.manifest import ModelEntry

PORTS: Final = "src/application/ports/llm.py"
LLM_FOLDER: Final = "src/infrastructure/llm/"
EMBEDDING_FOLDER: Final = "src/infrastructure/embedding/"
LLM_TYPE: Final = "hcx_offline"
EMBEDDING_TYPE: Final = "bge_m3_offline"

_CONFIG: Final = "src/config.py"
_CONTAINER: Final = "src/container/configuration_container.py"
_FACTORIES: Final = "src/container/providers"
_GENERATORS: Final = ("hcx", "causal-lm")
_EMBEDDERS: Final = ("bge-m3", "sentence-transformer")
_MAX_SOURCE: Final = 1 << 20
_SETTINGS: Final = (
    'SEALIFT_MODE: str = "http"\n'
    'SEALIFT_BASE_URL: str = "http://127.0.0.1:8000/v1"\n'
    "SEALIFT_API_KEY: Optional[str] = None\n"
)


class _UnexpectedError(Exception):
    """A file of the application isn't as a step expects; the text says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One change of one file: ``where`` and ``code`` for a person, ``apply`` on the file's text."""

    path: str
    where: str
    code: str
    apply: Callable[[str], str]


def is_ragtrace(app: LockedApp) -> bool:
    """Whether an application is RAGTrace, by its layout."""
    names = set(_names(app))
    folders = (LLM_FOLDER, EMBEDDING_FOLDER)
    return PORTS in names and all(any(name.startswith(folder) for name in names) for folder in folders)


def ragtrace_kit(apps: tuple[LockedApp, ...], subject: Subject, store: Store) -> dict[str, bytes]:
    """Return the kit of each application that is RAGTrace: bundle path below ``config/APP-kit/`` to content.

    Empty without such an application, or where the bundle has neither a generator nor an embedder.
    """
    found: dict[str, bytes] = {}
    llm = _chosen(subject.models, _GENERATORS, LLM_TYPE)
    embedder = _chosen(subject.models, _EMBEDDERS, EMBEDDING_TYPE)
    for app in filter(is_ragtrace, apps):
        if llm or embedder:
            found |= _kit(app, subject, store, llm, embedder)
    return found


def _kit(
    app: LockedApp,
    subject: Subject,
    store: Store,
    llm: Mapping[str, str] | None,
    embedder: Mapping[str, str] | None,
) -> dict[str, bytes]:
    steps = list(_steps(llm, embedder))
    sources = {path: _source(app, path, store) for path in dict.fromkeys(step.path for step in steps)}
    patch, problems = _patch(steps, sources)
    folder = f"config/{app.entry.name}-kit"
    context = {
        "name": subject.name,
        "stem": subject.stem,
        "folder": folder,
        "app_path": app.entry.path,
        "llm": llm,
        "embedder": embedder,
        "offline": OFFLINE_VARIABLES,
        "matched": not problems,
        "problems": problems,
        "steps": steps,
    }
    wanted = {"INTEGRATION.md": "INTEGRATION.md", ".env.offline": "env.offline"}
    wanted["src/infrastructure/sealift_client.py"] = "sealift_client.py"
    if llm:
        wanted[f"{LLM_FOLDER}sealift_hcx_adapter.py"] = "sealift_hcx_adapter.py"
    if embedder:
        wanted[f"{EMBEDDING_FOLDER}sealift_bge_m3_adapter.py"] = "sealift_bge_m3_adapter.py"
    files = {f"{folder}/{path}": render_template(f"ragtrace/{name}.j2", context) for path, name in wanted.items()}
    return files if problems else files | {f"{folder}/ragtrace.patch": patch.encode("utf-8")}


def _chosen(models: tuple[ModelEntry, ...], adapters: tuple[str, ...], kind: str) -> Mapping[str, str] | None:
    """Return the first model, by the order of ``adapters``, as the templates know it."""
    fitting = [model for adapter in adapters for model in models if model.adapter == adapter]
    if not fitting:
        return None
    name = fitting[0].name
    label = f"HCX-{name}" if fitting[0].adapter == "hcx" and "HCX" not in name else name
    settings = json.dumps(dict(fitting[0].settings), ensure_ascii=False, sort_keys=True)
    return {**model_context(fitting[0]), "type": kind, "label": label, "settings": settings}


def _steps(llm: Mapping[str, str] | None, embedder: Mapping[str, str] | None) -> Iterator[_Step]:
    models = [model for model in (llm, embedder) if model]
    fields = _SETTINGS + "".join(f"{model['variable']}: Optional[str] = None\n" for model in models)
    known = {name for name in ("BGE_M3_MODEL_PATH",) if any(model["variable"] == name for model in models)}
    yield _Step(
        path=_CONFIG,
        where=f"in the class Settings, without those that it has already ({', '.join(sorted(known)) or 'none'})",
        code=fields,
        apply=lambda text: _add_fields(text, fields),
    )
    for model, kind in ((llm, "llm"), (embedder, "embedding")):
        if model:
            yield from _registering(model, kind)
            yield from _choosing(model, kind)


def _registering(model: Mapping[str, str], kind: str) -> Iterator[_Step]:
    added = {
        f"SUPPORTED_{kind.upper()}_TYPES": f'SUPPORTED_{kind.upper()}_TYPES.append("{model["type"]}")\n',
        f"{kind.upper()}_DISPLAY_NAMES": (
            f'{kind.upper()}_DISPLAY_NAMES["{model["type"]}"] = "{model["name"]} (Sealift)"\n'
        ),
    }
    for name, code in added.items():
        yield _Step(path=_CONFIG, where=f"after {name}", code=code, apply=_after_assignment(name, code))


def _choosing(model: Mapping[str, str], kind: str) -> Iterator[_Step]:
    folder, module = ("llm", "sealift_hcx_adapter") if kind == "llm" else ("embedding", "sealift_bge_m3_adapter")
    create = f"create_{'llm' if kind == 'llm' else 'embeddings'}"
    settings = (
        "return {\n"
        '    "mode": self.config.SEALIFT_MODE,\n'
        '    "base_url": self.config.SEALIFT_BASE_URL,\n'
        '    "api_key": self.config.SEALIFT_API_KEY,\n'
        f'    "model_path": self.config.{model["variable"]},\n'
        "}\n"
    )
    instance = f"from src.infrastructure.{folder}.{module} import {create}\n\ninstance = {create}(config)\n"
    for path, function, code in (
        (_CONTAINER, f"get_{kind}_config", settings),
        (f"{_FACTORIES}/{kind}_provider_factory.py", "create_provider", instance),
    ):
        yield _Step(
            path=path,
            where=f"in {function}, as the first branch of the chain over {kind}_type",
            code=f'if {kind}_type == "{model["type"]}":\n' + _indented(code, 4),
            apply=_first_branch(function, f"{kind}_type", model["type"], code),
        )


def _add_fields(text: str, fields: str) -> str:
    tree = _parsed(text)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Settings"]
    members = [node for node in classes[0].body if isinstance(node, ast.AnnAssign)] if len(classes) == 1 else []
    if not members:
        raise _UnexpectedError("there is no class Settings with fields")
    if not any(isinstance(node, ast.ImportFrom) and "Optional" in _imported(node) for node in tree.body):
        raise _UnexpectedError("Optional isn't imported from typing")
    has = {ast.unparse(member.target) for member in members}
    new = [line for line in fields.splitlines(keepends=True) if line.partition(":")[0] not in has]
    return _insert(text, members[-1].end_lineno, _indented("".join(new), members[-1].col_offset))


def _after_assignment(name: str, code: str) -> Callable[[str], str]:
    def apply(text: str) -> str:
        found = [
            node
            for node in _parsed(text).body
            if isinstance(node, ast.Assign)
            and isinstance(node.value, ast.List | ast.Dict)
            and [ast.unparse(target) for target in node.targets] == [name]
        ]
        if len(found) != 1:
            raise _UnexpectedError(f"there is no one list or dict {name}")
        return _insert(text, found[0].end_lineno, code)

    return apply


def _first_branch(function: str, variable: str, kind: str, code: str) -> Callable[[str], str]:
    def apply(text: str) -> str:
        functions = [
            node for node in ast.walk(_parsed(text)) if isinstance(node, ast.FunctionDef) and node.name == function
        ]
        chains = [node for outer in functions for node in ast.walk(outer) if _is_chain(node, variable)]
        if not chains:
            raise _UnexpectedError(f'{function} has no chain of {variable} == "..."')
        first = min(chains, key=lambda node: node.lineno)
        line = _lines(text)[first.lineno - 1]
        indent = first.col_offset
        if not line[indent:].startswith("if "):
            raise _UnexpectedError(f"{function} has its chain on an unexpected line")
        added = " " * indent + f'if {variable} == "{kind}":\n' + _indented(code, indent + 4)
        changed = " " * indent + "el" + line[indent:]
        return _replace_line(text, first.lineno, added + changed)

    return apply


def _is_chain(node: ast.AST, variable: str) -> TypeGuard[ast.If]:
    """Whether a node is ``if VARIABLE == "...": ... elif ...``: one that chooses, and none that only checks."""
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Compare)
        and ast.unparse(node.test.left) == variable
        and isinstance(node.test.ops[0], ast.Eq)
        and isinstance(node.test.comparators[0], ast.Constant)
        and bool(node.orelse)
    )


def _patch(steps: list[_Step], sources: Mapping[str, str | None]) -> tuple[str, list[str]]:
    """Return the unified diff of all steps, and what keeps it from being made."""
    changed = dict(sources)
    problems = []
    for step in steps:
        text = changed[step.path]
        try:
            if text is None:
                raise _UnexpectedError("it is missing, or no text with Unix line ends")
            changed[step.path] = step.apply(text)
        except _UnexpectedError as error:
            problems.append(f"`{step.path}`: {error}")
    diffs = (_diff(path, sources[path] or "", text or "") for path, text in changed.items())
    return "".join(diffs), list(dict.fromkeys(problems))


def _diff(path: str, old: str, new: str) -> str:
    lines = difflib.unified_diff(_lines(old), _lines(new), f"a/{path}", f"b/{path}")
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _source(app: LockedApp, path: str, store: Store) -> str | None:
    file = next((file for file, name in zip(app.files, _names(app), strict=True) if name == path), None)
    if file is None or file.size > _MAX_SOURCE:
        return None
    return _text(file, store)


def _text(file: LockedFile, store: Store) -> str | None:
    try:
        text = store.path(file.sha256).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return None if "\r" in text else text  # what applies a patch may drop them


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        raise _UnexpectedError("it is not Python") from None


def _imported(node: ast.ImportFrom) -> set[str]:
    return {alias.asname or alias.name for alias in node.names}


def _insert(text: str, after: int | None, code: str) -> str:
    lines = _lines(text)
    position = after or 0
    if lines[position - 1].endswith("\n"):
        return "".join([*lines[:position], code, *lines[position:]])
    return f"{text}\n{code}"


def _replace_line(text: str, number: int, code: str) -> str:
    lines = _lines(text)
    return "".join([*lines[: number - 1], code, *lines[number:]])


def _lines(text: str) -> list[str]:
    """Split as Python counts lines; str.splitlines knows more ends."""
    return re.findall(r"[^\n]*\n|[^\n]+", text)


def _indented(code: str, columns: int) -> str:
    return "".join(" " * columns + line if line.strip() else line for line in code.splitlines(keepends=True))


def _names(app: LockedApp) -> Iterator[str]:
    top = f"{app.entry.path}/"
    return (file.path.removeprefix(top) for file in app.files)
