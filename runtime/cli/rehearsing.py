"""The command by which a builder rehearses a bundle: imports, models, and every attempt at the network, as JSON."""

import argparse
from pathlib import Path

from runtime.cli.shared import Commands, add_command, add_prefix, answer, say


def add_rehearsing_command(commands: Commands) -> None:
    """Add it to the parser."""
    text = "Import what the live release declares, ask its models, and write down all that happened (for builders)."
    parser = add_command(commands, "rehearse", text)
    add_prefix(parser)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="where the JSON is written")
    parser.set_defaults(command=_rehearse)


def _rehearse(arguments: argparse.Namespace) -> int:
    import json

    from manifests.files import write_atomic
    from runtime.layout import Prefix
    from runtime.rehearsal import rehearse

    prefix = Prefix(path=arguments.prefix.absolute())
    release = prefix.require_live()
    with release.used():
        found = rehearse(prefix, release, lambda step: say(f"... {step}"))
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
