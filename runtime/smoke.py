"""The smoke test: the new venv is asked what it holds, and imports what serving needs."""

import json
import threading
from typing import Final

from manifests.errors import InstallError, list_problems
from manifests.manifest import Manifest
from runtime.layout import Prefix, Release
from runtime.programs import run_program
from runtime.venv import parse_wheel_path

_QUESTION: Final = """
import importlib, importlib.metadata, json, re, sys
found = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in importlib.metadata.distributions()}
failed = {}
for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
print(json.dumps({"found": found, "failed": failed}))
"""
_SERVING: Final = ("torch", "transformers", "safetensors", "numpy", "yaml", "starlette", "uvicorn")


def smoke_test(prefix: Prefix, release: Release, manifest: Manifest, stop: threading.Event | None = None) -> None:
    """Require exactly the manifest's distributions in the venv, and that what serves models can be imported.

    Raises:
        InstallError: Lists every difference.
        Stopped: ``stop`` was set.
    """
    expected = dict(parse_wheel_path(entry.path) for entry in manifest.of_kind("wheel"))
    distribution = {"yaml": "pyyaml"}
    imports = [name for name in _SERVING if manifest.models and distribution.get(name, name) in expected]
    if "sealift" in expected:
        imports.append("runtime.layout")
    answer = _ask(prefix, release, imports, stop)
    found = answer["found"]
    problems = [f"{name} {version} is not there" for name, version in expected.items() if name not in found]
    problems += [f"{name} {version} is not in the manifest" for name, version in found.items() if name not in expected]
    problems += [
        f"{name}: version {found[name]}, expected {version}"
        for name, version in expected.items()
        if name in found and found[name] != version
    ]
    problems += [f"import {name}: {words}" for name, words in answer["failed"].items()]
    if problems:
        raise InstallError(list_problems("the new virtual environment", problems))


def _ask(
    prefix: Prefix, release: Release, imports: list[str], stop: threading.Event | None
) -> dict[str, dict[str, str]]:
    command = [str(release.python), "-I", "-X", f"pycache_prefix={bytecode_folder(prefix, release)}"]
    command += ["-c", _QUESTION, json.dumps(imports)]
    done = run_program(prefix, command, stop=stop)
    if done.returncode:
        raise InstallError(f"the new virtual environment does not run:\n{done.stderr.strip()[-2000:]}")
    answer: dict[str, dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def bytecode_folder(prefix: Prefix, release: Release) -> str:
    """Return where bytecode of a release is cached: outside the release, whose files stay what was verified."""
    return str(prefix.var / "cache" / "bytecode" / release.name)
