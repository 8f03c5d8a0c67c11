"""Every command that reads a bundle, run in this process as its console script runs it."""

import contextlib
import io
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundler.cli import main as bundler_main
from runtime.cli import main as runtime_main
from tests.hostile.lab import Attack, Hostile, Outcome, Stage

READERS: Final = ("verify", "install", "rehearse", "inspect", "preflight", "manifest", "diff", "sign")
"""``sign`` is the last, since it may write."""

FITS: Final[Mapping[str, Outcome]] = {
    "verify": Outcome(code=0, words="good: demo-1.0.0-"),
    "install": Outcome(code=6, words="the bundle carries no uv"),
    "rehearse": Outcome(code=6, words="the bundle carries no uv"),
    "inspect": Outcome(code=0, words="manifest digest "),
    "preflight": Outcome(code=0, words="ok       python"),
    "manifest": Outcome(code=0, words='"_type":"urn:sealift:bundle-manifest:1"'),
    "diff": Outcome(code=0, words="a delta carries "),
    "sign": Outcome(code=0, words=" signatures"),
}
"""How each command ends when it has nothing to object to; the small bundle has no uv, which is noticed last of all."""

CHECKING: Final = ("verify", "install", "rehearse")
REFUSING: Final[Mapping[Stage, tuple[str, ...]]] = {
    Stage.OPEN: READERS,
    Stage.SIGNATURE: CHECKING,
    Stage.MANIFEST: READERS,
    Stage.LAYOUT: (*CHECKING, "inspect"),
    Stage.CONTENT: CHECKING,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What a command did: its exit status, and everything that it said."""

    code: int
    said: str


def expected(attack: Attack, command: str) -> Outcome:
    """Return how ``command`` has to end."""
    if command in attack.others:
        return attack.others[command]
    if command in REFUSING[attack.stage]:
        return Outcome(code=attack.code, words=attack.words)
    return FITS[command]


def arguments(command: str, hostile: Hostile, *, prefix: Path, key: Path) -> tuple[str, list[str]]:
    """Return the program and its words."""
    trust = ("--trust", hostile.trust)
    words: dict[str, tuple[str | Path, ...]] = {
        "verify": (*trust, *hostile.options),
        "install": ("--prefix", prefix, *trust, *hostile.options),
        "preflight": ("--prefix", prefix),
        "rehearse": trust,
        "diff": (hostile.path,),
        "sign": ("--key", key),
    }
    program = "runtime" if command in {"verify", "install", "preflight"} else "bundler"
    return program, [command, str(hostile.path), *map(str, words.get(command, ()))]


def run(program: str, words: list[str]) -> Ended:
    """Run a command of ``runtime`` or ``bundler``; an exception that isn't an answer is the test's failure."""
    with _captured() as (stdout, stderr):
        try:
            code = runtime_main(words) if program == "runtime" else _bundler(words)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
    said = stdout.buffer.getvalue() + stderr.buffer.getvalue()
    return Ended(code=code, said=said.decode("utf-8", "replace"))


def _bundler(words: list[str]) -> int:
    code = bundler_main.main(words, prog_name="bundler", standalone_mode=False)
    return code if isinstance(code, int) else 0


class _Text(io.TextIOWrapper):
    buffer: io.BytesIO

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)


@contextlib.contextmanager
def _captured() -> Iterator[tuple[_Text, _Text]]:
    stdout, stderr, handler = _Text(), _Text(), signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        assert sys.stdout is stdout
        try:
            yield stdout, stderr
        finally:
            signal.signal(signal.SIGTERM, handler)
