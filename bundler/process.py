"""Running other programs: uv, pip and the converter; their failures become typed errors where they are called."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import SealiftError


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended: exit status, and what it wrote."""

    status: int
    output: str
    errors: str


def run_program(
    command: Sequence[str | Path], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Finished:
    """Run a program to its end, with ``env`` added to the environment (an empty value removes a variable).

    The program is killed when this process is interrupted.

    Raises:
        SealiftError: It can't be started.
    """
    merged = {key: value for key, value in {**os.environ, **(env or {})}.items() if value or key not in (env or {})}
    try:
        done = subprocess.run(
            [str(part) for part in command],
            env=merged,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise SealiftError(f"can't start {command[0]}: {error.strerror or error}") from error
    return Finished(status=done.returncode, output=done.stdout, errors=done.stderr)
