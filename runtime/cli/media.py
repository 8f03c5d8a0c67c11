"""Where a bundle's bytes come from: the pipe, more folders with volumes, and whoever puts in the next medium."""

import argparse
import select
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from manifests.errors import UsageError
from manifests.interrupts import interrupted
from runtime.cli.shared import say

if TYPE_CHECKING:
    from manifests.bundle import TrustedBundle
    from manifests.sources import Stream, Supply

_TICK = 0.2


def add_volumes(parser: argparse.ArgumentParser, *, waits: bool = True) -> None:
    """Add ``--volumes``, and ``--wait-volumes`` where volumes may come one after the other."""
    text = "another folder with volumes of the bundle; may be given again"
    parser.add_argument("--volumes", type=Path, action="append", default=[], metavar="DIR", help=text)
    if waits:
        text = "wait this long for each volume that isn't there yet, without asking; for scripts"
        parser.add_argument("--wait-volumes", type=_seconds, metavar="SECONDS", help=text)


def supply_of(arguments: argparse.Namespace) -> "Supply":
    """Return where the rest of a bundle is had from, as the command line says.

    On a terminal whoever sits there is asked for the volumes that aren't there; elsewhere nobody is.
    """
    from manifests.sources import Supply

    folders = tuple(arguments.volumes)
    if str(arguments.bundle) == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("- reads the bundle from standard input, and nothing is piped in", hint="cat BUNDLE | ...")
        return Supply(stream=cast("Stream", sys.stdin.buffer))
    if arguments.wait_volumes is not None:
        return Supply(folders=folders, feed=Waiting(arguments.wait_volumes, interrupted()))
    if sys.stdin is not None and sys.stdin.isatty():
        return Supply(folders=folders, feed=Asking(interrupted()))
    return Supply(folders=folders)


class Asking:
    """Asks whoever sits at the terminal for the next medium."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped

    def __call__(self, wanted: str, folders: Sequence[Path], problem: str) -> Path | None:
        if problem:
            say(f"\n{problem}")
        say(f"\nput in the medium with {wanted} and press Enter; or type the folder it is in; q gives up")
        while not self._stopped.is_set():
            if select.select([sys.stdin], [], [], _TICK)[0]:
                line = sys.stdin.readline()
                words = line.strip()
                return None if not line or words == "q" else Path(words) if words else folders[0]
        return None


class Waiting:
    """Waits for the next medium, for at most ``seconds`` each."""

    def __init__(self, seconds: float, stopped: threading.Event) -> None:
        self._seconds, self._stopped = seconds, stopped
        self._wanted, self._until = "", 0.0

    def __call__(self, wanted: str, folders: Sequence[Path], problem: str) -> Path | None:
        if wanted != self._wanted:
            self._wanted, self._until = wanted, time.monotonic() + self._seconds
            say(f"\nwaiting for {wanted} in {', '.join(map(str, folders))}")
        while time.monotonic() < self._until and not self._stopped.wait(_TICK):
            if problem or any((folder / wanted).exists() for folder in folders):
                return folders[0]
        return None


def delta_lines(bundle: "TrustedBundle") -> tuple[dict[str, object], list[str]]:
    """Return what is to be said of a delta that was verified on its medium: a part of the document, and lines."""
    from manifests.progress import format_size

    delta = bundle.medium.delta
    if delta is None:
        return {}, []
    left_out = [entry for entry in bundle.manifest.files if not bundle.medium.carries(entry)]
    size = sum(entry.size for entry in left_out)
    document = {"base": delta.base, "base_version": delta.base_version, "left_out": len(left_out), "size": size}
    line = f"a delta: {len(left_out)} files, {format_size(size)}, were not looked at, since it doesn't carry them"
    return {"delta": document}, [line, f"they must be installed already, by {delta.base_label}"]


def _seconds(text: str) -> float:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return float(text)
