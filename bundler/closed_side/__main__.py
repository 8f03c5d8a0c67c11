"""``python -m bundler.closed_side``: its part as JSON on stdin, events as JSON lines on stdout."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from bundler.closed_side import Stage, StepFailed, play, require_closed
from manifests.errors import SealiftError


def main() -> int:
    """Play; return the exit code of the step that failed, or 0."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        part = json.load(sys.stdin)
    except ValueError:
        return 130  # whoever started this was stopped before it could say what to play
    paths = {name: Path(part["stage"][name]) for name in ("bundle", "pyz", "trust", "prefix", "home")}
    try:
        if part["closed"]:
            require_closed()
        volumes = tuple(Path(folder) for folder in part["stage"].get("volumes", ()))
        play(Stage(**paths, volumes=volumes), part["questions"], part["port"], _tell)
    except StepFailed as failed:
        _tell({"event": "failed", "step": failed.step, "code": failed.code, "text": failed.words})
        return failed.code
    except SealiftError as error:
        _tell({"event": "failed", "step": "closed side", "code": error.exit_code, "text": error.message})
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _tell(event: Mapping[str, object]) -> None:
    print(json.dumps(event), flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
