"""The whole story on a small real bundle: keygen, lock, build, then the closed side in a namespace without network."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Final

from bundler.lock import Lock, load_lock, write_lock
from bundler.packages.pipconfig import PipConfig
from bundler.packages.resolver import Resolver
from bundler.rehearsal.sandbox import Isolation, find_isolation
from bundler.relock import lock_spec
from bundler.review.summary import inspect_bundle
from bundler.sealing.keys import load_signer, write_key
from bundler.selfpack import self_digests
from bundler.spec import Spec
from bundler.specfile import load_spec
from bundler.store import Store
from manifests.errors import SealiftError
from manifests.files import disk_error, write_atomic
from manifests.pieces import Progress
from manifests.progress import format_duration, format_size

IDENTITY: Final = "quickstart@example.com"

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
    volumes: tuple[Path, ...] = ()

    @property
    def prefix(self) -> Path:
        """Where the release is installed."""
        return self.folder / "closed" / "prefix"


def play_closed_side(
    scene: Scene,
    questions: Mapping[str, Any],
    tell: Callable[[Mapping[str, Any]], None],
    isolation: Isolation,
    *,
    rehearsal: Mapping[str, Any] | None = None,
) -> None:
    """Run :mod:`bundler.rehearsal.closed_side` without network and pass its events on.

    Args:
        scene: Where.
        questions: As :func:`bundler.rehearsal.closed_side.play` takes them; empty for a bundle without models.
        tell: Gets every event.
        isolation: How the network is closed.
        rehearsal: Asks for :func:`bundler.rehearsal.closed_side.rehearsal.rehearse` instead: ``runs_here``.

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
        "volumes": [str(folder) for folder in scene.volumes],
    }
    part = {"stage": stage, "questions": questions, "port": _free_port(), "closed": isolation.is_namespace}
    part |= {"rehearsal": rehearsal} if rehearsal is not None else {}
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
    command = [*isolation.prefix, sys.executable, "-m", "bundler.rehearsal.closed_side"]
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
        if process.stdout is not None:
            process.stdout.close()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port


def run_quickstart(
    folder: Path,
    *,
    resolver: Resolver,
    config: PipConfig,
    progress: Callable[[int], AbstractContextManager[Progress]],
    say: Callable[[str], None],
    now: Callable[[str], None] = lambda _: None,
) -> None:
    """Do everything that Sealift is for, in ``folder``, and say what happens, a line a step.

    Args:
        folder: Everything lies here.
        resolver: Resolves the wheels.
        config: The user's pip configuration.
        progress: Opens a progress display for a number of bytes.
        say: Gets the lines for a person.
        now: Told what is going on within a step.

    Raises:
        SealiftError: The step that failed, with its own exit code.
    """
    # The builder imports this module for the rehearsal, so what needs the builder is imported here.
    from bundler.rehearsal.record import record_answers  # noqa: PLC0415
    from bundler.sealing.build import BuildOptions, build_bundle  # noqa: PLC0415

    clock, store, start = StepClock(say, now), Store(), time.monotonic()
    say(f"Sealift quickstart in {folder.absolute()}")
    spec_path, key = _write_inputs(folder, clock)
    spec = load_spec(spec_path)
    lock = _locked(spec, store, resolver, config, clock)
    with clock.step("record answers") as detail:
        if any(probe.expect is None for probe in lock.probes):
            lock = record_answers(spec, lock, store, progress=progress, report=now)
            write_lock(spec.lock_path, lock)
        detail.append(f"{len(lock.probes)} probes, their answers are in the lock")
    with clock.step("rehearse and sign") as detail:
        options = BuildOptions(output=folder / "out", signer=load_signer(key), identity=IDENTITY)
        built = build_bundle(spec, lock, store, options, progress=progress, report=now)
        detail.append(f"{built.bundle.name}, {format_size(built.size)}")
    with clock.step("inspect") as detail:
        document = inspect_bundle(built.bundle)
        detail.append(f"manifest digest {document['digest']}")
    isolation = find_isolation()
    say(f"  closed side: {isolation.name}")
    scene = Scene(folder=folder, bundle=built.bundle, kit=built.kit)
    fresh_folder(scene.folder / "closed")

    def tell(event: Mapping[str, Any]) -> None:
        if event["event"] == "done":
            now("")
            clock.line(event["step"], float(event["seconds"]), event["text"])
        elif event["event"] in {"line", "begin"}:
            now(f"{event['step']}: {event['text'].removeprefix('... ')}")

    play_closed_side(scene, QUESTIONS, tell, isolation)
    say(f"done in {format_duration(time.monotonic() - start)}\n")
    for line in _closing_words(scene):
        say(line)


def _write_inputs(folder: Path, clock: "StepClock") -> tuple[Path, Path]:
    """Write spec and throw-away key, unless they are there from an earlier run."""
    spec, key = folder / "quickstart.toml", folder / "keys" / "release"
    text = resources.files("manifests").joinpath("bundles", "quickstart.toml").read_text(encoding="utf-8")
    with clock.step("spec and key") as detail:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, f"create {folder}") from error
        write_atomic(spec, text.encode())
        signer = load_signer(key) if key.exists() else write_key(key, IDENTITY)
        detail.append(f"{spec.name}, throw-away key {signer.key.fingerprint}")
    return spec, key


def _locked(spec: Spec, store: Store, resolver: Resolver, config: PipConfig, clock: "StepClock") -> Lock:
    """Lock, unless an earlier run's lock still fits."""
    with clock.step("lock") as detail:
        lock = load_lock(spec.lock_path) if spec.lock_path.exists() else None
        if lock is None or not lock_is_current(lock, spec, store):
            lock = lock_spec(spec, store, resolver, config, previous=lock, report=clock.now)
            write_lock(spec.lock_path, lock)
        size = sum(file.size for file in lock.all_files())
        detail.append(f"{len(lock.wheels)} wheels, {len(lock.models)} models, {format_size(size)}")
    return lock


def lock_is_current(lock: Lock, spec: Spec, store: Store) -> bool:
    """Whether a lock fits the spec and this Sealift, and the store still has all of it."""
    same = lock.spec_digest == spec.digest and dict(lock.sealift) == dict(self_digests())
    return same and all(file.sha256 in store for file in lock.all_files())


def _closing_words(scene: Scene) -> Iterator[str]:
    runtime = f"python3 -I -S {scene.kit / 'runtime.pyz'}"
    yield f"bundle   {scene.bundle}"
    yield f"kit      {scene.kit}"
    yield f"prefix   {scene.prefix}"
    yield "try next:"
    yield f"  {runtime} status --prefix {scene.prefix}"
    yield f"  {runtime} launch --prefix {scene.prefix} --port 8000"
    yield f"  ssh-keygen -l -f {scene.folder / 'keys' / 'release.pub'}"


def fresh_folder(path: Path) -> None:
    """Remove what an earlier run left of the closed side, so that every run installs anew."""
    if path.exists():
        shutil.rmtree(path)


class StepClock:
    """Measures steps and hands a line for each to whoever prints."""

    def __init__(self, say: Callable[[str], None], now: Callable[[str], None] = lambda _: None) -> None:
        self._say, self.now = say, now

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time a step; what is put into the yielded list becomes its detail."""
        self.now(name)
        start, detail = time.monotonic(), list[str]()
        yield detail
        self.now("")
        self.line(name, time.monotonic() - start, " ".join(detail))

    def line(self, name: str, seconds: float, detail: str) -> None:
        """Hand over one line."""
        self._say(f"  {name:17} {format_duration(seconds):>9}   {detail}".rstrip())
