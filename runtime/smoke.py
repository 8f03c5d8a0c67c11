"""The smoke test: the new venv is asked what it holds, and imports what serving needs, with the network guarded."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from manifests.errors import InstallError, list_problems
from manifests.manifest import Manifest
from manifests.rehearsal import RehearsalPlan, plan_of
from runtime.layout import Prefix, Release
from runtime.programs import run_program
from runtime.venv import parse_wheel_path

_QUESTION: Final = """
import atexit, importlib, importlib.metadata, json, os, re, sys, traceback
found = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in importlib.metadata.distributions()}
failed, attempts, seal = {}, [], None
if "sealift" in found:
    from runtime import seal
    os.environ.update(seal.OFFLINE_VARIABLES)
    seal.install_guard()
def collect(module):
    new = seal.attempts()[len(attempts):] if seal else ()
    attempts.extend({**attempt.to_json(), "module": module} for attempt in new)
def answer():
    collect("")
    print("\\n" + json.dumps({"found": found, "failed": failed, "attempts": attempts}), flush=True)
atexit.register(answer)  # registered first, so it comes last, after what the modules do at the end
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except BaseException as error:
        frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
        importer = next((path for path in reversed(frames) if "site-packages" in path), "")
        failed[name] = {
            "words": f"{type(error).__name__}: {error}"[:2000],
            "missing": (error.name or "") if isinstance(error, ModuleNotFoundError) else "",
            "importer": importer.rpartition("site-packages")[2].lstrip("/"),
        }
    collect(name)
"""
_SERVING: Final = ("torch", "transformers", "safetensors", "numpy", "yaml", "starlette", "uvicorn")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportFailure:
    """A module that doesn't import: the exception's words, the module that is not there, the file that wanted it.

    ``missing`` is empty where the exception is another one; ``importer`` is a path as seen from site-packages.
    """

    module: str
    words: str
    missing: str = ""
    importer: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportAttempt:
    """A try to reach the network that the guard refused while ``module`` was imported; empty: at the process's end."""

    module: str
    event: str
    address: str
    callers: tuple[str, ...]

    @property
    def words(self) -> str:
        """One line for a person."""
        callers = " < ".join(self.callers) or "unknown"
        return (
            f"import {self.module or 'of all'}: tried to reach the network: {self.event} {self.address}, by {callers}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What came of importing: distributions of the venv with their versions, failures, and attempts at the network."""

    found: Mapping[str, str]
    failed: tuple[ImportFailure, ...]
    attempts: tuple[ImportAttempt, ...]


def smoke_test(prefix: Prefix, release: Release, manifest: Manifest, stop: threading.Event | None = None) -> None:
    """Require exactly the manifest's distributions in the venv, and that what serves models can be imported.

    An import that tries to reach the network is a problem too, unless the signed manifest says why it may.

    Raises:
        InstallError: Lists every difference.
        Stopped: ``stop`` was set.
    """
    expected = dict(parse_wheel_path(entry.path) for entry in manifest.of_kind("wheel"))
    distribution = {"yaml": "pyyaml"}
    imports = [name for name in _SERVING if manifest.models and distribution.get(name, name) in expected]
    if "sealift" in expected:
        imports.append("runtime.layout")
    answer = import_modules(prefix, release, imports, stop)
    found = answer.found
    problems = [f"{name} {version} is not there" for name, version in expected.items() if name not in found]
    problems += [f"{name} {version} is not in the manifest" for name, version in found.items() if name not in expected]
    problems += [
        f"{name}: version {found[name]}, expected {version}"
        for name, version in expected.items()
        if name in found and found[name] != version
    ]
    problems += [f"import {failure.module}: {failure.words}" for failure in answer.failed]
    problems += [attempt.words for attempt in unexcused(answer.attempts, plan_of(manifest.launch))]
    if problems:
        raise InstallError(list_problems("the new virtual environment", problems))


def unexcused(attempts: Iterable[ImportAttempt], plan: RehearsalPlan) -> Iterator[ImportAttempt]:
    """Yield the attempts at the network that the builder didn't allow."""
    return (attempt for attempt in attempts if not plan.reason_for(attempt.address, attempt.callers))


def import_modules(
    prefix: Prefix, release: Release, modules: Sequence[str], stop: threading.Event | None = None
) -> Imported:
    """Import modules in one new process of the release's venv, which sees nothing of the caller's environment.

    Raises:
        InstallError: The process itself ends otherwise than by giving its answer.
        Stopped: ``stop`` was set.
    """
    command = [str(release.python), "-I", "-X", "faulthandler", "-X"]
    command += [f"pycache_prefix={bytecode_folder(prefix, release)}", "-c", _QUESTION, json.dumps(list(modules))]
    done = run_program(prefix, command, stop=stop)
    last = done.stdout.splitlines()[-1:]
    if done.returncode or not last:
        raise InstallError(f"the new virtual environment does not run:\n{done.stderr.strip()[-2000:]}")
    answer = json.loads(last[0])
    return Imported(
        found=answer["found"],
        failed=tuple(ImportFailure(module=module, **told) for module, told in answer["failed"].items()),
        attempts=tuple(ImportAttempt(**{**told, "callers": tuple(told["callers"])}) for told in answer["attempts"]),
    )


def bytecode_folder(prefix: Prefix, release: Release) -> str:
    """Return where bytecode of a release is cached: outside the release, whose files stay what was verified."""
    return str(prefix.var / "cache" / "bytecode" / release.name)
