"""What uv is given to compile: a list of requirements, or a small project where packages are bound to an index."""

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from bundler.packages.pipconfig import PipConfig
from bundler.spec import IndexSpec
from manifests.manifest import Target

_PROJECT: Final = "sealift-spec"
ANNOTATED: Final = "annotated.txt"
"""The file that :data:`ANNOTATING_FLAGS` make uv write, for :func:`annotated_packages`."""
ANNOTATING_FLAGS: Final = (
    *("--format", "requirements.txt", "--annotation-style", "split", "--output-file", ANNOTATED),
)


def write_list(folder: Path, requirements: Sequence[str]) -> str:
    """Write a plain list and return the file's name."""
    (folder / "requirements.in").write_text("".join(f"{item}\n" for item in requirements), encoding="utf-8")
    return "requirements.in"


def write_project(folder: Path, requirements: Sequence[str], indexes: Sequence[IndexSpec], target: Target) -> str:
    """Write a project whose ``tool.uv.sources`` bind packages to one index each, and return the file's name.

    uv follows the binding of a direct dependency only, so ``requirements`` must name every package that is bound.
    """
    lines = [f'[project]\nname = "{_PROJECT}"\nversion = "0"\nrequires-python = "=={target.python}.*"']
    lines.append(f"dependencies = {json.dumps(list(requirements))}\n[tool.uv.sources]")
    for number, index in enumerate(indexes):
        lines += [f'{canonicalize_name(name)} = {{ index = "{_index_name(number)}" }}' for name in index.packages]
    for number, index in enumerate(indexes):
        lines.append(f'[[tool.uv.index]]\nname = "{_index_name(number)}"\nurl = {json.dumps(index.url)}')
        lines.append("explicit = true")
    (folder / "pyproject.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return "pyproject.toml"


def bound_packages(indexes: Iterable[IndexSpec]) -> dict[str, str]:
    """Return canonical name -> the url of the only index that it may come from."""
    return {str(canonicalize_name(name)): index.url for index in indexes for name in index.packages}


def login_variables(config: PipConfig, indexes: Iterable[IndexSpec]) -> dict[str, str]:
    """Return uv's variables with the logins for indexes that the user's pip has a login for."""
    found: dict[str, str] = {}
    for number, index in enumerate(indexes):
        found |= config.login_variables(index.url, _index_name(number))
    return found


def requirement_names(requirements: Iterable[str]) -> set[str]:
    """Return the canonical names of requirements; what isn't one is left out, since uv will say so."""
    found = set()
    for text in requirements:
        with contextlib.suppress(InvalidRequirement):
            found.add(str(canonicalize_name(Requirement(text).name)))
    return found


def annotated_packages(text: str) -> dict[str, bool]:
    """Return the packages of uv's annotated output, and whether another package asks for each, or the project alone."""
    found: dict[str, bool] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r"([a-z0-9-]+)==", line):
            name = match[1]
            found[name] = False
        asking = line.removeprefix("    #").strip().removeprefix("via").strip() if line.startswith("    #") else ""
        if asking and not asking.startswith((f"{_PROJECT} ", "-c ")):
            found[name] = True
    return found


def _index_name(number: int) -> str:
    return f"bound-{number}"
