"""The whole story on a small real bundle: keygen, lock, build, then the closed side in a namespace without network."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bundler.sandbox import Isolation
from manifests.errors import SealiftError
from manifests.progress import format_duration

QUESTIONS: Final[Mapping[str, Any]] = {
    "embedding": {
        "model": "minilm",
        "inputs": [
            "The disk is carried across the gap by hand.",
            "Somebody takes the drive over the air gap in person.",
            "Fresh bread smells best early in the morning.",
        ],
    },
    "chat": {"model": "smollm2", "question": "What is the capital of France? Answer in one sentence."},
}


class ClosedSideError(SealiftError):
    """A step on the closed side failed; the exit code is the runtime's own."""

    def __init__(self, step: str, code: int, words: str) -> None:
        super().__init__(f"{step} failed with exit code {code}:\n{words}")
        self.exit_code = code  # type: ignore[misc] # the one class whose code is known only when it is raised


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Folders and files of the closed side's part."""

    folder: Path
    bundle: Path
    kit: Path

    @property
    def prefix(self) -> Path:
        """Where the release is installed."""
        return self.folder / "closed" / "prefix"


def play_closed_side(
    scene: Scene, questions: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None], isolation: Isolation
) -> None:
    """Run :mod:`bundler.closed_side` without network and pass its events on.

    Args:
        scene: Where.
        questions: As :func:`bundler.closed_side.play` takes them; empty for a bundle without models.
        tell: Gets every event.
        isolation: How the network is closed.

    Raises:
        ClosedSideError: A step failed; the message holds its last lines.
    """
    home = scene.folder / "closed" / "home"
    home.mkdir(parents=True, exist_ok=True)
    stage = {
        "bundle": str(scene.bundle),
        "pyz": str(scene.kit / "runtime.pyz"),
        "trust": str(scene.kit / "allowed_signers"),
        "prefix": str(scene.prefix),
        "home": str(home),
    }
    part = {"stage": stage, "questions": questions, "port": _free_port(), "closed": isolation.is_namespace}
    failed: Mapping[str, Any] | None = None
    with _closed_process(isolation) as process:
        if process.stdin is None or process.stdout is None:
            raise AssertionError("both are pipes")
        with process.stdin as stdin:
            json.dump(part, stdin)
        for line in process.stdout:
            event = json.loads(line)
            failed = event if event["event"] == "failed" else failed
            tell(event)
    if failed is not None:
        raise ClosedSideError(failed["step"], failed["code"], failed["text"])
    if process.returncode:
        raise ClosedSideError("closed side", process.returncode, "it ended without a word")


@contextmanager
def _closed_process(isolation: Isolation) -> Iterator["subprocess.Popen[str]"]:
    command = [*isolation.prefix, sys.executable, "-m", "bundler.closed_side"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
        process.wait()
    finally:
        if process.poll() is None:
            # SIGTERM makes it stop its own server first; nothing may be left running.
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def fresh_folder(path: Path) -> None:
    """Remove what an earlier run left of the closed side, so that every run installs anew."""
    if path.exists():
        shutil.rmtree(path)


class StepClock:
    """Prints nothing; measures steps and hands lines to whoever prints."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is put into the yielded list becomes its detail."""
        start, detail = time.monotonic(), list[str]()
        yield detail
        self.line(name, time.monotonic() - start, " ".join(detail))

    def line(self, name: str, seconds: float, detail: str) -> None:
        """Hand over one line."""
        self._say(f"  {name:16} {format_duration(seconds):>9}   {detail}".rstrip())
