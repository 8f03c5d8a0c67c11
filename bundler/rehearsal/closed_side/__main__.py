"""``python -m bundler.rehearsal.closed_side``: its part as JSON on stdin, events as JSON lines on stdout."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from bundler.rehearsal.closed_side import Stage, StepFailed, play, require_closed
from bundler.rehearsal.closed_side.rehearsal import rehearse
from manifests.errors import SealiftError


def main() -> int:
    """Play; return the exit code of the step that failed, or 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        part = json.load(sys.stdin)
    except ValueError:
        return 130  # whoever started this was stopped before it could say what to play
    except KeyboardInterrupt:
        return 130
    try:
        if part["closed"]:
            require_closed()
        _play(part)
    except StepFailed as failed:
        _tell({"event": "failed", "step": failed.step, "code": failed.code, "text": failed.words})
        return failed.code
    except SealiftError as error:
        _tell({"event": "failed", "step": "closed side", "code": error.exit_code, "text": error.message})
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _play(part: Mapping[str, Any]) -> None:
    # Absolute, since the commands run in the empty home.
    paths = {name: Path(path).absolute() for name, path in part["stage"].items() if name != "volumes"}
    stage = Stage(
        bundle=paths["bundle"],
        pyz=paths["pyz"],
        trust=paths["trust"],
        prefix=paths["prefix"],
        home=paths["home"],
        volumes=tuple(Path(folder).absolute() for folder in part["stage"].get("volumes", ())),
    )
    if (rehearsal := part.get("rehearsal")) is not None:
        unpacked = Path(rehearsal["unpacked"]).absolute() if rehearsal.get("unpacked") else None
        rehearse(stage, _tell, runs_here=rehearsal["runs_here"], closed=part["closed"], unpacked=unpacked)
    else:
        play(stage, part["questions"], part["port"], _tell)


def _tell(event: Mapping[str, object]) -> None:
    print(json.dumps(event), flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    # Once: a second one would interrupt the cleaning up. Not SIG_IGN: one that is under way would be complained about.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _unheard)
    raise KeyboardInterrupt


def _unheard(_number: int, _frame: FrameType | None) -> None: ...


if __name__ == "__main__":
    sys.exit(main())
