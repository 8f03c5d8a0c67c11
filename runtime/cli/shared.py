"""What every command of the closed side shares: options, the trust file, and the two ways to say something."""

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from manifests import __version__
from manifests.errors import TrustError, UsageError

if TYPE_CHECKING:
    from manifests.trust import TrustRoot

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 # argparse gives it no public name


def add_command(commands: Commands, name: str, text: str) -> argparse.ArgumentParser:
    """Add a command, with the options that all of them have."""
    parser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--version", action="version", version=f"runtime {__version__}")
    parser.add_argument("--json", action="store_true", help="print one JSON document on stdout")
    return parser


def add_prefix(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add ``--prefix``."""
    parser.add_argument("--prefix", type=Path, required=required, metavar="DIR", help="where releases are installed")


def add_trust(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Add ``--trust`` and what belongs to it; ``otherwise`` says who is trusted without."""
    text = f"OpenSSH allowed_signers file, which reached you by another way than the bundle (without: {otherwise})"
    parser.add_argument("--trust", type=Path, metavar="ALLOWED_SIGNERS", help=text)
    parser.add_argument(
        "--revoked", type=Path, metavar="FILE", help="public keys that are no longer trusted, one a line"
    )
    text = "judge the signers' validity at this time instead of now: YYYYMMDD[HHMM[SS]][Z]; it is logged"
    parser.add_argument("--verify-time", type=moment, metavar="TIME", help=text)
    parser.add_argument(
        "--signatures", type=positive, default=1, metavar="N", help="distinct keys that must have signed"
    )


def moment(text: str) -> datetime:
    """Parse a time as OpenSSH writes it; local unless it ends in Z. Returns UTC."""
    from manifests.trust import parse_time

    try:
        return parse_time(text)
    except TrustError as error:
        raise argparse.ArgumentTypeError(error.message) from None


def positive(text: str) -> int:
    """Parse a number that is at least 1."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def read_trust(path: Path) -> str:
    """Return the text of an ``allowed_signers`` file.

    Raises:
        UsageError: There is none.
        TrustError: It isn't text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(
            f"{path}: no such allowed_signers file", hint="it came with the kit: kit/allowed_signers"
        ) from None
    except UnicodeDecodeError:
        hint = "give the allowed_signers file of the kit: kit/allowed_signers"
        raise TrustError(f"{path}: not an allowed_signers file: it isn't text", hint=hint) from None


def parse_trust(text: str, path: Path) -> "TrustRoot":
    """Parse it; messages call it ``path``."""
    from manifests.trust import parse_allowed_signers

    return parse_allowed_signers(text, where=str(path))


def answer(arguments: argparse.Namespace, document: dict[str, object], lines: Sequence[str]) -> None:
    """Print what a command found, on stdout: lines for a person, or one JSON document."""
    print(json.dumps(document, indent=2, sort_keys=True) if arguments.json else "\n".join(lines), flush=True)


def say(text: str) -> None:
    """Print what goes on, on stderr."""
    print(text, file=sys.stderr, flush=True)
