"""``python -m runtime.server.bulk``: embed a file with a model of an installed release; runtime embed executes it."""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from manifests.errors import DiskError, SealiftError, UsageError
from runtime.seal import guard_installed, seal_process
from runtime.server.memory import prepare_memory

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from runtime.adapters.base import ModelConfig
    from runtime.server.bulk.rayteam import RayTeam
    from runtime.server.bulk.run import BulkRequest, MakeTeam

_EMBEDDERS = frozenset({"bge-m3", "sentence-transformer"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; the one place of this package that prints."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    signal.signal(signal.SIGTERM, _interrupt)
    prepare_memory(os.environ)
    if not guard_installed():
        seal_process(cache=Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")))
    try:
        return _work(arguments) if arguments.worker else _run(arguments)
    except SealiftError as error:
        print(error.render(), file=sys.stderr)
        return error.exit_code
    except OSError as error:
        from manifests.files import disk_error  # noqa: PLC0415 - rarely needed

        print(disk_error(error, f"use {error.filename or arguments.output}").render(), file=sys.stderr)
        return DiskError.exit_code
    except KeyboardInterrupt:
        print("stopped: what is done is kept; run the same command again to go on", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    from runtime.host import usable_cores  # noqa: PLC0415 - after the seal
    from runtime.server.bulk.rows import RowFields  # noqa: PLC0415 - after the seal
    from runtime.server.bulk.run import BulkRequest, run_bulk  # noqa: PLC0415 - after the seal

    request = BulkRequest(
        model=_model(arguments),
        input=arguments.input,
        output=arguments.output,
        fields=RowFields(text=arguments.field, id=arguments.id_field),
        shard_rows=arguments.shard_rows,
        processes=arguments.processes,
        cores=usable_cores(),
        threads=arguments.threads,
        skip_bad=arguments.skip_bad,
    )
    command = partial(_worker_command, arguments, request.model.name)
    summary = run_bulk(request, command, _say, team=_ray_team(arguments, request))
    if arguments.json:
        print(json.dumps(summary, indent=2, sort_keys=True), flush=True)
    else:
        print(_told(summary, arguments.output), flush=True)
    return 0


def _ray_team(arguments: argparse.Namespace, request: "BulkRequest") -> "MakeTeam | None":
    """Return what starts actors on Ray; None for processes.

    Raises:
        AdapterError: The release doesn't carry Ray.
    """
    if arguments.engine != "ray":
        return None
    from runtime.adapters.fingerprint import fingerprint  # noqa: PLC0415 - after the seal
    from runtime.server.bulk.rayteam import ray_team  # noqa: PLC0415 - after the seal
    from runtime.server.rayserve.cluster import prefix_of, prepare_ray  # noqa: PLC0415 - after the seal

    prefix = prefix_of(arguments.release)
    prepare_ray(prefix, os.environ, joins=arguments.ray_address is not None)

    def make(threads: int, size: int) -> "AbstractContextManager[RayTeam]":
        return ray_team(
            prefix,
            arguments.ray_address,
            model=request.model,
            model_sha256=fingerprint(request.model.directory),
            threads=threads,
            size=size,
            input=request.input,
            fields=request.fields,
            output=request.output,
        )

    return make


def _model(arguments: argparse.Namespace) -> "ModelConfig":
    """Return the model that is asked for, or the only one that embeds.

    Raises:
        UsageError: There is no such model, none that embeds, or more than one.
    """
    from runtime.server.models import choose_models, load_models  # noqa: PLC0415 - after the seal

    models = load_models(arguments.release)
    if arguments.model:
        return choose_models(models, [arguments.model])[0]
    found = [model for model in models if model.adapter in _EMBEDDERS]
    if len(found) == 1:
        return found[0]
    if not found:
        raise UsageError("this release has no model that gives vectors")
    names = ", ".join(model.name for model in found)
    raise UsageError(f"this release has {len(found)} models that give vectors", hint=f"--model, one of: {names}")


def _worker_command(arguments: argparse.Namespace, model: str, threads: int) -> list[str]:
    """Return the command of a worker: this interpreter as it was started, for the same work."""
    flags = ["-I"] if sys.flags.isolated else []
    flags += ["-X", f"pycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else []
    options = ["--release", str(arguments.release), "--output", str(arguments.output), f"--model={model}"]
    options += [f"--field={arguments.field}", "--threads", str(threads), "--worker"]
    options += [f"--id-field={arguments.id_field}"] if arguments.id_field is not None else []
    return [sys.executable, *flags, "-m", "runtime.server.bulk", *options, "--", str(arguments.input)]


def _work(arguments: argparse.Namespace) -> int:
    # Whatever a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Unbuffered: a thread that waits in a buffered read stops the interpreter from ending.
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415 - after the seal

    from runtime.server.bulk.rows import RowFields  # noqa: PLC0415 - after the seal
    from runtime.server.bulk.worker import Work, serve_shards  # noqa: PLC0415 - imports torch, after the seal

    transformers_logging.disable_progress_bar()
    work = Work(
        model=_model(arguments),
        input=arguments.input,
        fields=RowFields(text=arguments.field, id=arguments.id_field),
        output=arguments.output,
        threads=arguments.threads,
    )
    with answers:
        serve_shards(work, requests, answers)
    return 0


def _told(summary: Mapping[str, Any], output: Path) -> str:
    computed = summary["computed"]
    return (
        f"{summary['texts']} texts in {len(summary['shards'])} shards, {computed['dimension']} numbers each, "
        f"{summary['truncated']} truncated to {computed['limit']} tokens, {summary['skipped']} lines skipped: {output}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m runtime.server.bulk", description="Embed a file of texts.")
    add = parser.add_argument
    add("input", type=Path, metavar="INPUT")
    add("--release", type=Path, required=True, help="the release's folder, with manifest.json in it")
    add("--output", type=Path, required=True, metavar="DIR")
    add("--model", metavar="NAME")
    add("--field", default="text", metavar="NAME")
    add("--id-field", metavar="NAME")
    add("--processes", type=int, default=1, metavar="N")
    add("--threads", type=int, metavar="N")
    add("--shard-rows", type=int, default=1024, metavar="N")
    add("--skip-bad", action="store_true")
    add("--json", action="store_true")
    add("--engine", choices=("process", "ray"), default="process")
    add("--ray-address", metavar="HOST:PORT")
    add("--worker", action="store_true", help="take shards from stdin")
    return parser


if __name__ == "__main__":
    sys.exit(main())
