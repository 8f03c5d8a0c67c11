"""Embedding a file with the live release's model: the command of the worker, run by the release's own interpreter."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from manifests.errors import UsageError
from runtime.launch import check_models, execute, hold_live, server_command
from runtime.layout import Prefix

BULK_MODULE: Final = "runtime.server.bulk"
SHARD_ROWS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedRequest:
    """What to embed and how.

    Attributes:
        input: A ``.jsonl`` file of one object a line, or ``.parquet``.
        output: The folder to write.
        model: A model of the release; None takes the one that gives vectors.
        field: Which field holds the text.
        id_field: Which field is copied beside the vectors, if any.
        processes: How many load the model and work at once.
        threads: CPU threads of each; None divides the cores.
        shard_rows: Texts in each file of vectors.
        skip_bad: Leave lines without a usable text out, instead of refusing the input.
        as_json: Print the summary as JSON.
        engine: ``process``, or ``ray`` where the release carries it.
        ray_address: The running cluster to use; None for a Ray of its own on this host.
    """

    input: Path
    output: Path
    model: str | None = None
    field: str = "text"
    id_field: str | None = None
    processes: int = 1
    threads: int | None = None
    shard_rows: int = SHARD_ROWS
    skip_bad: bool = False
    as_json: bool = False
    engine: str = "process"
    ray_address: str | None = None

    def options(self) -> list[str]:
        """Return the worker's command line."""
        words = ["--output", str(self.output.absolute()), f"--field={self.field}"]
        words += ["--processes", str(self.processes), "--shard-rows", str(self.shard_rows)]
        words += [f"--model={self.model}"] if self.model is not None else []
        words += [f"--id-field={self.id_field}"] if self.id_field is not None else []
        words += ["--threads", str(self.threads)] if self.threads is not None else []
        words += ["--skip-bad"] if self.skip_bad else []
        words += ["--json"] if self.as_json else []
        words += [f"--engine={self.engine}"] if self.engine != "process" else []
        words += [f"--ray-address={self.ray_address}"] if self.ray_address is not None else []
        return [*words, "--", str(self.input.absolute())]


def embed(prefix: Prefix, request: EmbedRequest, report: Callable[[str], None] = lambda _: None) -> None:
    """Replace this process by the one that embeds. Returns only by raising.

    ``report`` is told which of the operator's own variables have no effect.

    Raises:
        UsageError: Nothing is installed, or there is no such input or model.
        AdapterError: The release has no models.
        PolicyError: The signed policy refuses a file of a model.
    """
    if request.ray_address is not None and request.engine != "ray":
        raise UsageError("--ray-address is for --engine ray", hint="runtime embed --engine ray --ray-address ...")
    if not request.input.is_file():
        raise UsageError(f"{request.input}: no such file", hint="give a .jsonl file: one JSON object a line")
    release = hold_live(prefix)
    check_models(release.manifest(), [request.model] if request.model is not None else [])
    command = server_command(prefix, release, BULK_MODULE, request.options())
    for note in command.notes:
        report(note)
    execute(prefix, command)
