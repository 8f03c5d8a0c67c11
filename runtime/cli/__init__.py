"""The command line of the closed side: options in, one library call, one answer out; imports are late, for speed."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import NoReturn

from manifests import __version__
from manifests.errors import DiskError, SealiftError
from runtime.cli.auditing import run_audited
from runtime.cli.bulk import add_bulk_command
from runtime.cli.bundles import add_bundle_commands
from runtime.cli.evidence import add_evidence_commands
from runtime.cli.mirroring import add_mirror_command
from runtime.cli.rehearsing import add_rehearsing_command
from runtime.cli.releases import add_release_commands
from runtime.cli.serving import add_serving_commands
from runtime.cli.shared import say
from runtime.cli.trusting import add_trust_commands


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status (design: 0 fine, 2 usage, 4 trust, 5 integrity, 6 host, 7 disk, ...)."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        arguments = build_parser().parse_args(argv)
        command: Callable[[argparse.Namespace], int] = arguments.command
        return run_audited(arguments, command)
    except SealiftError as error:
        say(error.render())
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped: what was live stays live; run the same command again to go on")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        from manifests.files import disk_error

        wrapped = disk_error(error, f"use {error.filename}" if error.filename else "go on")
        say(wrapped.render())
        return DiskError.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of every command."""
    parser = argparse.ArgumentParser(
        prog="runtime", description="Verify, install and launch a Sealift bundle on a closed network."
    )
    parser.add_argument("--version", action="version", version=f"runtime {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="event")
    add_bundle_commands(commands)
    add_release_commands(commands)
    add_mirror_command(commands)
    add_trust_commands(commands)
    add_evidence_commands(commands)
    add_serving_commands(commands)
    add_rehearsing_command(commands)
    add_bulk_command(commands)
    return parser


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
