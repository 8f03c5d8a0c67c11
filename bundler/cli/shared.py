"""What the commands of the builder's side share: the group, options, and the two ways to say something."""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import click

from manifests import __version__
from manifests.errors import SealiftError

PATH: Final = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout.")
volumes_option = click.option(
    "--volumes", type=PATH, multiple=True, metavar="DIR", help="Another folder with volumes; may be given again."
)
evidence_option = click.option(
    "--evidence",
    type=PATH,
    metavar="FILE",
    help="The evidence of its rehearsal. [default: what lies beside the bundle]",
)
target_option = click.option(
    "--target",
    "platform",
    metavar="PLATFORM",
    help="Take the place of the spec's platform, such as aarch64-manylinux_2_28.",
)


class Boundary(click.Group):
    """The only place where an error becomes an exit status and a message becomes text."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 # click's own signature
        """Run a command; what Sealift reports is printed, a bug keeps its traceback."""
        try:
            return super().invoke(ctx)
        except SealiftError as error:
            say(error.render())
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            say("stopped: nothing half-made was left; run the same command again to go on")
            ctx.exit(130)
        except OSError as error:
            from manifests.files import disk_error

            if isinstance(error, BrokenPipeError):
                raise
            wrapped = disk_error(error, f"use {error.filename}" if error.filename else "go on")
            say(wrapped.render())
            ctx.exit(wrapped.exit_code)


@click.group(cls=Boundary, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="bundler")
def main() -> None:
    """Seal Python wheels and models into a signed bundle for a closed network."""
    signal.signal(signal.SIGTERM, _interrupt)


def command(name: str) -> Callable[[Callable[..., None]], click.Command]:
    """Register a command that also knows ``--version``."""

    def decorate(function: Callable[..., None]) -> click.Command:
        return main.command(name)(click.version_option(__version__, prog_name="bundler")(function))

    return decorate


@cache
def pip_config() -> Any:  # noqa: ANN401 # a PipConfig, imported late
    """Return the user's PipConfig."""
    from bundler.packages.pipconfig import load_pip_config

    return load_pip_config()


def identity_of(key: str | None, signer: Any) -> str:  # noqa: ANN401 # bundler.sealing.keys.Signer, imported late
    """Return the comment of KEY.pub, or the agent's: the name that the kit's allowed_signers gives the signer."""
    from bundler.sealing.keys import check_identity
    from manifests.errors import UsageError

    if key is None:
        return "builder"
    public = Path(f"{key}.pub")
    fields = public.read_text(encoding="utf-8").split(None, 2) if public.is_file() else []
    comment: str = getattr(signer, "comment", fields[2].strip() if len(fields) == 3 else "")
    try:
        check_identity(comment)
    except UsageError:
        return "builder"
    return comment


def progress(label: str) -> Callable[[int], Any]:
    """Return what opens a progress bar on stderr for a number of bytes."""
    from manifests.progress import ProgressBar

    return lambda total: ProgressBar(label, total, sys.stderr)


def size_text(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    from manifests.progress import format_size

    return format_size(count)


def step(text: str) -> None:
    """Say that a step begins."""
    say(f"... {text}")


def read_signer(key: str) -> Any:  # noqa: ANN401 # bundler.sealing.keys.Signer, imported late
    """Return the Signer for a key file, whose passphrase is asked for once, or for agent:FINGERPRINT."""
    from bundler.sealing.agent import AGENT_PREFIX, load_agent_signer
    from bundler.sealing.keys import load_signer

    if key.startswith(AGENT_PREFIX):
        return load_agent_signer(key)
    return load_signer(Path(key), lambda: click.prompt(f"Passphrase of {key}", hide_input=True, err=True))


def answer(document: Mapping[str, object], text: str, *, as_json: bool) -> None:
    """Print what a command found, on stdout: text for a person, or one JSON document."""
    click.echo(json.dumps(document, indent=2, sort_keys=True) if as_json else text)


def say(text: str) -> None:
    """Print what goes on, on stderr."""
    click.echo(text, err=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
