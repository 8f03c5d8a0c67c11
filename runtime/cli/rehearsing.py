"""The command by which a builder rehearses a bundle: imports, models, and every attempt at the network, as JSON."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.cli.shared import Commands, add_command, add_prefix, answer, say

if TYPE_CHECKING:
    from runtime.rehearsal import Rehearsed


def add_rehearsing_command(commands: Commands) -> None:
    """Add it to the parser."""
    text = "Import what the live release declares, ask its models, and write down all that happened (for builders)."
    parser = add_command(commands, "rehearse", text)
    add_prefix(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the JSON is written")
    text = "a folder below --prefix, named as a release is, with a bundle's files: ask its models by another --python"
    parser.add_argument("--unpacked", type=Path, metavar="DIR", help=text)
    text = "whose libraries answer for the models of --unpacked, in place of the bundle's own"
    parser.add_argument("--python", type=Path, metavar="FILE", help=text)
    parser.set_defaults(command=_rehearse)


def _rehearse(arguments: argparse.Namespace) -> int:
    import json

    from manifests.files import write_atomic

    found = _rehearsed(arguments)
    document = found.to_json()
    write_atomic(arguments.output.absolute(), json.dumps(document, sort_keys=True).encode() + b"\n")
    problems = [problem for model in found.asked.models for problem in model.problems]
    lines = [
        *(f"import {item.module}: {item.words}" for item in found.failed),
        *problems,
        *(item.words for item in found.refused),
        f"{len(found.imports)} modules imported, {len(found.asked.models)} models asked",
    ]
    answer(arguments, {"output": str(arguments.output), "exit_code": found.exit_code, "problems": problems}, lines)
    return found.exit_code


def _rehearsed(arguments: argparse.Namespace) -> "Rehearsed":
    from manifests.errors import UsageError
    from runtime.layout import Prefix, Release
    from runtime.rehearsal import rehearse, rehearse_elsewhere

    prefix = Prefix(path=arguments.prefix.absolute())
    if (arguments.unpacked is None) != (arguments.python is None):
        raise UsageError("rehearse takes --unpacked and --python together, or neither", hint="runtime rehearse --help")
    if arguments.unpacked is not None:
        # Not resolved: a virtual environment's Python knows by its path whose libraries it has.
        folder, python = Release(path=arguments.unpacked.absolute()), arguments.python.absolute()
        return rehearse_elsewhere(prefix, folder, python, lambda step: say(f"... {step}"))
    release = prefix.require_live()
    with release.used():
        return rehearse(prefix, release, lambda step: say(f"... {step}"))
