"""Reading and checking the TOML file in which a person writes a spec, and writing a first one."""

import hashlib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from jinja2 import Environment, StrictUndefined

from bundler.contents.apps import check_app
from bundler.packages.requirements import check_requirement, collect_requirements, input_files
from bundler.sealing.rotation import check_next_signers
from bundler.selfpack import template_root
from bundler.snapshots.modelfiles import folder_files
from bundler.spec import ModelSpec, Spec, host_target
from bundler.specparse import parse_spec, parse_target
from manifests.errors import SealiftError, SourceError, SpecError
from manifests.files import write_atomic
from manifests.manifest import Target
from manifests.modelsettings import flat_settings

_DEPTH: Final = 8  # of specs that extend each other
_TOML_HINT: Final = "text stands in straight quotes, true and false are in small letters, a backslash is written twice"


def load_spec(path: Path, *, platform: str | None = None) -> Spec:
    """Read a spec; ``platform`` takes the place of its target's platform, as ``--target`` does.

    Raises:
        SpecError: It can't be read, isn't TOML (with the line), or breaks a rule (with the key path).
    """
    data = _load_toml(path, ())
    spec = parse_spec(data, path)
    if platform is not None and platform != spec.target.platform:
        target = parse_target({**_target_table(spec.target), "platform": platform}, "--target: ")
        spec = replace(spec, target=target, is_retargeted=True)
    for model in spec.models:
        _check_device(model, spec)
    return replace(spec, input_digests=_input_digests(spec))


def _check_device(model: ModelSpec, spec: Spec) -> None:
    """Refuse an accelerator that the target hasn't: the model wouldn't load there."""
    device = str(dict(flat_settings(model.settings)).get("device", "auto"))
    kind, accelerator = device.partition(":")[0], spec.target.accelerator
    if kind in {"cuda", "mps"} and not accelerator.startswith(kind):
        where = f"{spec.path}: model {model.name!r}: settings.device"
        msg = f"{where}: {device!r} doesn't fit the target's accelerator, {accelerator}"
        raise SpecError(msg, hint='leave device out: "auto" takes the best that is there; or change target.accelerator')


def _target_table(target: Target) -> dict[str, object]:
    return {"python": target.python, "accelerator": target.accelerator}


def _load_toml(path: Path, above: tuple[Path, ...]) -> dict[str, object]:
    """Return the tables of a spec laid over those of the spec that it extends."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        own = f"`bundler init {path}` writes a commented spec" if not path.exists() else "give the path of a spec"
        hint = own if not above else f"{above[-1]} extends it"
        raise SpecError(f"{path}: {reason}", hint=hint) from None
    try:
        data: dict[str, object] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: {_with_line(error)}", hint=_TOML_HINT) from None
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str) or not base:
        raise SpecError(f"{path}: extends: expected the name of another spec", hint='extends = "common.toml"')
    if path.resolve() in above or len(above) >= _DEPTH:
        raise SpecError(f"{path}: extends: {base} leads back here, or through more than {_DEPTH} specs")
    return _overlaid(_load_toml(path.parent / base, (*above, path.resolve())), data)


def _overlaid(base: Mapping[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """Return ``base`` with ``over`` laid on: tables key by key, lists of named tables by name, the rest replaced."""
    merged = dict(base)
    for key, value in over.items():
        below = base.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = _overlaid(below, value)
        elif _are_named(value) and _are_named(below):
            merged[key] = list({item["name"]: item for item in (*below, *value)}.values())  # type: ignore[misc] # both are lists of tables
        else:
            merged[key] = value
    return merged


def _are_named(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, Mapping) and "name" in item for item in value)


def _input_digests(spec: Spec) -> dict[str, str]:
    """Return the sha256 of every file that has a say in what is asked for, by its path from the spec's folder."""
    top = spec.resolve_folder(".")
    try:
        return {
            Path(os.path.relpath(path, top)).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in input_files(spec)
        }
    except OSError as error:
        hint = "paths start at the spec's folder"
        raise SpecError(f"{spec.path}: packages: {error.filename}: {error.strerror}", hint=hint) from None
    except SpecError as error:
        raise SpecError(f"{spec.path}: packages: {error.message}", hint=error.hint) from None


def check_spec(spec: Spec) -> None:
    """Check what can be checked without a network: requirements, and the folders of models and applications.

    Raises:
        SpecError: With every problem that was found.
    """
    problems: list[SealiftError] = []
    for index, text in enumerate(spec.packages.requirements):
        where = f"{spec.path}: packages.requirements[{index}]"
        problems += _problems_of(partial(check_requirement, text, where))
    problems = problems or _problems_of(partial(collect_requirements, spec))
    for model in (model for model in spec.models if model.scheme == "dir"):
        where = f"{spec.path}: model {model.name!r}"
        problems += _problems_of(partial(folder_files, spec.resolve_folder(model.location), model, where))
    for app in spec.apps:
        problems += _problems_of(partial(check_app, app, spec))
    if spec.next_signers:
        problems += _problems_of(partial(check_next_signers, spec))
    if problems:
        message = "\n".join(error.message for error in problems)
        raise SpecError(message, hint=problems[0].hint if len(problems) == 1 else None)


def _problems_of(action: Callable[[], object]) -> list[SealiftError]:
    try:
        action()
    except (SpecError, SourceError) as error:
        return [error]
    return []


def init_spec(path: Path) -> None:
    """Write a commented spec, for this host's own kind of target.

    Raises:
        SpecError: There is a file already, which stays as it is.
        DiskError: No space, no permission.
    """
    if path.exists() or path.is_symlink():
        raise SpecError(f"{path}: exists already", hint="choose another name; it is never overwritten")
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:64] or "bundle"
    template = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=True)  # noqa: S701 - TOML
    text = (template_root() / "spec.toml.j2").read_text(encoding="utf-8")
    write_atomic(path, template.from_string(text).render(name=name, target=host_target()).encode())


def _with_line(error: tomllib.TOMLDecodeError) -> str:
    match = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", str(error))
    return f"line {match[2]}, column {match[3]}: {match[1]}" if match else str(error)
