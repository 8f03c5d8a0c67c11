"""The command that embeds a file of texts: embed."""

import argparse
import sys
from pathlib import Path

from runtime.cli.shared import Commands, add_command, add_prefix, positive, say


def add_bulk_command(commands: Commands) -> None:
    """Add ``embed`` to the parser."""
    text = "Embed a file of texts with the live release's model; stopped, the same command goes on where it was."
    parser = add_command(commands, "embed", text)
    add = parser.add_argument
    add("input", type=Path, metavar="INPUT", help=".jsonl: one JSON object a line; .parquet where the release reads it")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the vectors: new, or one to go on with")
    add_prefix(parser)
    add("--model", metavar="NAME", help="which model (default: the only one that gives vectors)")
    add("--field", default="text", metavar="NAME", help="the field that holds the text (default: %(default)s)")
    add("--id-field", metavar="NAME", help="a field to copy beside each vector: text or a whole number")
    text = "processes, each with the whole model in memory (default: 1)"
    add("--processes", type=positive, default=1, metavar="N", help=text)
    add("--threads", type=positive, metavar="N", help="CPU threads of each process (default: the cores, divided)")
    text = "texts in each file of vectors; what a kill loses at most, for each process (default: 1024)"
    add("--shard-rows", type=positive, default=1024, metavar="N", help=text)
    text = "processes of this host, or actors on Ray where the release carries ray[serve] (default: process)"
    add("--engine", choices=("process", "ray"), default="process", help=text)
    text = "with --engine ray: the running cluster to use (without: one of its own on this host)"
    add("--ray-address", metavar="HOST:PORT", help=text)
    add("--skip-bad", action="store_true", help="leave lines without a usable text out and list them in skipped.jsonl")
    parser.set_defaults(command=_embed)


def _embed(arguments: argparse.Namespace) -> int:
    from runtime.embed import EmbedRequest, embed
    from runtime.layout import Prefix

    request = EmbedRequest(
        input=arguments.input.absolute(),
        output=arguments.output.absolute(),
        model=arguments.model,
        field=arguments.field,
        id_field=arguments.id_field,
        processes=arguments.processes,
        threads=arguments.threads,
        shard_rows=arguments.shard_rows,
        skip_bad=arguments.skip_bad,
        as_json=arguments.json,
        engine=arguments.engine,
        ray_address=arguments.ray_address,
    )
    sys.stdout.flush()
    embed(Prefix(path=arguments.prefix.absolute()), request, report=lambda note: say(f"note: {note}"))
    return 0
