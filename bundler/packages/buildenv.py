"""The isolated environment of one build: a venv of pinned wheels, no network, nothing of the caller's environment."""

import json
import os
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from uv import find_uv_bin

from bundler.packages.fetch import fetch_pins
from bundler.packages.pipconfig import redact
from bundler.packages.requirements import check_requirement
from bundler.packages.resolver import Pin, Resolver
from bundler.process import Finished, run_program
from bundler.rehearsal.sandbox import find_isolation
from bundler.spec import host_target
from bundler.store import Store
from manifests.digests import sha256_hex
from manifests.errors import SourceError

_EPOCH: Final = "315532800"  # 1980, the first year that a zip can name
_LEGACY: Final = ("setuptools.build_meta:__legacy__", ["setuptools>=40.8.0"])
_UMASK: Final = ("sh", "-c", 'umask 022; exec "$@"', "sh")
_HOOK: Final = """
import importlib, json, os, sys
backend, paths, answer = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]  # setuptools changes argv
sys.path[:0] = [os.path.abspath(path) for path in paths]
name, _, attribute = backend.partition(":")
found = importlib.import_module(name)
for part in filter(None, attribute.split(".")):
    found = getattr(found, part)
hook = getattr(found, "get_requires_for_build_wheel", None)
asked = list(hook({})) if hook else []
with open(answer, "w", encoding="utf-8") as stream:
    json.dump(asked, stream)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEnvironment:
    """A venv, and the pins that it was made of, sorted by name."""

    python: Path
    home: Path
    pins: tuple[Pin, ...]

    @property
    def requirements(self) -> tuple[str, ...]:
        """The pins as ``NAME==VERSION``."""
        return tuple(f"{pin.name}=={pin.version}" for pin in self.pins)

    @property
    def digest(self) -> str:
        """The sha256 over all pins' digests."""
        return sha256_hex("".join(f"{pin.sha256}\n" for pin in self.pins).encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backend:
    name: str
    paths: tuple[str, ...]
    requires: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Supply:
    """Where build requirements come from; ``keep`` are versions of an earlier build, kept where they satisfy."""

    store: Store
    resolver: Resolver
    keep: Mapping[str, str]


def make_environment(root: Path, folder: Path, label: str, supply: Supply) -> BuildEnvironment:
    """Make the environment in which a project can be built.

    Args:
        root: The unpacked project.
        folder: An empty place; the venv is made below it.
        label: The project's name in messages.
        supply: Pins and holds the build requirements, which must have wheels.

    Raises:
        SourceError: ``pyproject.toml`` is malformed, a requirement can't be had, or the backend fails.
    """
    backend = _read_backend(root, label)
    asked = [*backend.requires]
    environment = _install(asked, folder / "first", label, supply)
    more = [text for text in _ask(environment, backend, root, folder, label) if text not in asked]
    if not more:
        return environment
    return _install([*asked, *more], folder / "second", label, supply)


def run_build(environment: BuildEnvironment, root: Path, output: Path, label: str) -> Path:
    """Build the wheel of an unpacked project, and return its path.

    Raises:
        SourceError: The backend fails; its last words are in the message.
    """
    command = [
        *(find_uv_bin(), "build", "--wheel", "--no-build-isolation", "--force-pep517", "--no-config", "--offline"),
        *("--python", str(environment.python), "--no-python-downloads", "--out-dir", str(output), str(root)),
    ]
    done = _run([*find_isolation().prefix, *_UMASK, *command], environment.home, root)
    wheels = sorted(output.glob("*.whl")) if done.status == 0 else []
    if len(wheels) != 1:
        raise SourceError(f"{label}: can't be built: {_last_words(done)}", hint="builds have no network here")
    return wheels[0]


def _read_backend(root: Path, label: str) -> _Backend:
    path = root / "pyproject.toml"
    if not path.is_file():
        return _Backend(name=_LEGACY[0], paths=(), requires=tuple(_LEGACY[1]))
    try:
        system = tomllib.loads(path.read_text(encoding="utf-8")).get("build-system", {})
        requires = system.get("requires", _LEGACY[1] if "build-backend" not in system else None)
        texts = [system.get("build-backend", _LEGACY[0]), *requires, *system.get("backend-path", [])]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"{label}: its pyproject.toml has no usable [build-system]: {error}") from None
    if not all(isinstance(text, str) for text in texts):
        raise SourceError(f"{label}: its pyproject.toml has no usable [build-system]: expected texts")
    for text in requires:
        check_requirement(text, f"{label}: build-system.requires")
    return _Backend(name=texts[0], paths=tuple(system.get("backend-path", [])), requires=tuple(requires))


def _install(requirements: Sequence[str], folder: Path, label: str, supply: Supply) -> BuildEnvironment:
    try:
        resolution = supply.resolver.resolve(requirements, host_target(), supply.keep) if requirements else None
    except SourceError as error:
        raise SourceError(f"{label}: build requirements: {error.message}", hint=error.hint) from None
    pins = resolution.pins if resolution else ()
    fetch_pins(pins, supply.store, host_target())
    wheels = folder / "wheels"
    wheels.mkdir(parents=True)
    for pin in pins:
        (wheels / pin.filename).symlink_to(supply.store.path(pin.sha256).absolute())
    lines = (f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n" for pin in pins)
    (folder / "requirements.txt").write_text("".join(lines), encoding="utf-8")
    venv, uv = folder / "venv", find_uv_bin()
    offline = ("--no-config", "--offline", "--no-python-downloads")
    commands = [[uv, "venv", *offline, "--python", sys.executable, str(venv)]]
    if pins:
        flags = ["--no-index", "--find-links", str(wheels), "--no-deps", "--require-hashes", "--python", str(venv)]
        commands.append([uv, "pip", "install", *offline, *flags, "-r", str(folder / "requirements.txt")])
    for command in commands:
        if (done := _run(command, folder, folder)).status != 0:
            raise SourceError(f"{label}: its build environment can't be made: {_last_words(done)}")
    return BuildEnvironment(python=venv / "bin" / "python", home=folder, pins=pins)


def _ask(environment: BuildEnvironment, backend: _Backend, root: Path, folder: Path, label: str) -> list[str]:
    """Return what the backend's ``get_requires_for_build_wheel`` asks for."""
    script, answer = folder / "hook.py", folder / "asked.json"
    script.write_text(_HOOK, encoding="utf-8")
    command = [str(environment.python), "-P", str(script), backend.name, json.dumps(backend.paths), str(answer)]
    done = _run([*find_isolation().prefix, *_UMASK, *command], environment.home, root)
    if done.status != 0:
        raise SourceError(f"{label}: its build backend {backend.name} fails: {_last_words(done)}")
    asked = [str(text) for text in json.loads(answer.read_text(encoding="utf-8"))]
    for text in asked:
        check_requirement(text, f"{label}: its build backend asks")
    return asked


def _run(command: Sequence[str], home: Path, cwd: Path) -> Finished:
    own = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "TMPDIR": str(home),
        "UV_CACHE_DIR": str(home / "uv"),
        "SOURCE_DATE_EPOCH": _EPOCH,
        "PYTHONHASHSEED": "0",
    }
    return run_program(command, env={**dict.fromkeys(os.environ, ""), **own}, cwd=cwd)


def _last_words(done: Finished) -> str:
    lines = [line.strip() for line in redact(done.errors or done.output).splitlines() if line.strip()]
    return " / ".join(lines[-6:])[-900:]
