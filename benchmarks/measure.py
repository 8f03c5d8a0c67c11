"""Running command lines and measuring them: wall time, peak memory, peak disk; peers take turns."""

import os
import resource
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, Self, TypeAlias

from manifests.errors import SealiftError

Command: TypeAlias = Sequence[str | Path]

_POLL_SECONDS: Final = 0.2


class BenchmarkError(SealiftError):
    """A measured command failed, so there is nothing to compare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one side: wall time in seconds, and the largest resident set of any of its processes in bytes."""

    seconds: float
    memory: int


def _nothing() -> None:
    """The preparation of a side that needs none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One way to do a piece of work.

    ``commands`` are timed as one, in order. ``prepare`` runs untimed before them. ``once`` marks a side that takes
    minutes: it is measured in the first round only.
    """

    label: str
    commands: tuple[Command, ...]
    prepare: Callable[[], None] = _nothing
    once: bool = False


Samples: TypeAlias = Mapping[str, list[Sample]]
"""Label of a side -> its runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where commands run (``folder``), with which environment, and who is told of each measured run."""

    folder: Path
    environment: Mapping[str, str]
    report: Callable[[str], None]

    def run(self, command: Command) -> Sample:
        """Run one command and measure it.

        The memory is ``ru_maxrss`` of the child and of the children it waited for, as ``/usr/bin/time -v`` prints it.

        Raises:
            BenchmarkError: It failed, or isn't there; its last lines are in the message.
        """
        with tempfile.TemporaryFile(dir=self.folder) as log:
            start = time.perf_counter()
            try:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, cwd=self.folder
                )
            except OSError as error:
                raise BenchmarkError(f"{command[0]} can't be run: {error.strerror}") from error
            status, usage = _wait(process)
            seconds = time.perf_counter() - start
            if status:
                log.seek(0)
                words = log.read().decode(errors="replace").strip()[-2000:]
                raise BenchmarkError(f"{' '.join(map(str, command))}: exit status {status}\n{words}")
        return Sample(seconds=seconds, memory=usage.ru_maxrss * 1024)

    def measure(self, side: Side) -> Sample:
        """Prepare a side, let earlier writes reach the disk, then run its commands and measure them as one."""
        side.prepare()
        os.sync()
        samples = [self.run(command) for command in side.commands]
        sample = Sample(seconds=sum(s.seconds for s in samples), memory=max(s.memory for s in samples))
        self.report(f"{side.label}: {sample.seconds:.3f} s, {sample.memory / 1e6:.0f} MB")
        return sample

    def compare(self, sides: Sequence[Side], rounds: int) -> Samples:
        """Measure every side in every round, every second one in reverse, so that none always follows the same one."""
        found: dict[str, list[Sample]] = {side.label: [] for side in sides}
        for number in range(rounds):
            for side in sides if number % 2 == 0 else reversed(sides):
                if number == 0 or not side.once:
                    found[side.label].append(self.measure(side))
        return found


def _wait(process: "subprocess.Popen[bytes]") -> tuple[int, resource.struct_rusage]:
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.terminate()  # so that it can stop children of its own
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage


def seconds_of(samples: Sequence[Sample]) -> float:
    """Return the median wall time."""
    return median(sample.seconds for sample in samples)


def memory_of(samples: Sequence[Sample]) -> int:
    """Return the highest peak of memory, in bytes."""
    return max(sample.memory for sample in samples)


def disk_usage(folder: Path) -> int:
    """Return the bytes that a folder's files and folders take on the disk; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    pending = [folder]
    while pending:
        current = pending.pop()
        try:
            with os.scandir(current) as scan:
                for entry in scan:
                    status = entry.stat(follow_symlinks=False)
                    seen[status.st_dev, status.st_ino] = status.st_blocks * 512
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(Path(entry.path))
        except FileNotFoundError:  # removed while we look, as temporary files are
            continue
    return sum(seen.values())


class DiskWatch(threading.Thread):
    """Follows how much a folder takes on the disk, every 0.2 s, from a thread, until the ``with`` block ends.

    ``peak`` is the most that was seen, in bytes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(name="disk-watch", daemon=True)
        self.peak = 0
        self._folder = folder
        self._stop_asked = threading.Event()

    def run(self) -> None:
        """Look, until told to stop."""
        while not self._stop_asked.wait(_POLL_SECONDS):
            self._look()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_asked.set()
        self.join()
        self._look()

    def _look(self) -> None:
        self.peak = max(self.peak, disk_usage(self._folder))
