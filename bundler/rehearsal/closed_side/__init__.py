"""The closed side's part of a quickstart or a rehearsal: runtime.pyz as a subprocess, in a namespace without network.

Runs as ``python -m bundler.rehearsal.closed_side`` inside the namespace and tells what happens as JSON lines on stdout.
"""

import contextlib
import errno
import fcntl
import json
import math
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from bundler.rehearsal.sandbox import empty_environment
from manifests.errors import AdapterError, InstallError

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_READY_TIMEOUT: Final = 300.0
_END_TIMEOUT: Final = 60.0

Tell: TypeAlias = Callable[[Mapping[str, object]], None]
"""Gets every event as it happens."""


class StepFailed(Exception):  # noqa: N818 # carries the exit code of the runtime through the pipe
    """A runtime command ended with another status than 0."""

    def __init__(self, step: str, code: int, words: str) -> None:
        super().__init__(words)
        self.step, self.code, self.words = step, code, words


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Where the play happens: the bundle, the verifier, the trust file, a prefix, an empty home, more volumes.

    ``python`` runs the verifier; ``user`` is the number of the user who does, None for whoever runs this.
    """

    bundle: Path
    pyz: Path
    trust: Path
    prefix: Path
    home: Path
    volumes: tuple[Path, ...] = ()
    python: str = sys.executable
    user: int | None = None

    @property
    def more(self) -> list[str]:
        """The options that name the other folders with volumes."""
        return [word for folder in self.volumes for word in ("--volumes", str(folder))]

    def runtime(self, *arguments: str) -> list[str]:
        """Return a command line of the runtime as an operator would type it."""
        return [self.python, "-I", "-S", str(self.pyz), *arguments]

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a runtime command, as the stage's user; Ctrl-C doesn't reach it, whoever started it tells it once."""
        as_user: dict[str, Any] = {"user": self.user, "group": self.user, "extra_groups": []} if self.user else {}
        return subprocess.Popen(
            self.runtime(*arguments),
            env=empty_environment(str(self.home)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.home,
            process_group=0,
            **as_user,
        )


def raise_loopback() -> None:
    """Bring ``lo`` up; a new network namespace has it down. Needs no program of the host's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14s", b"lo", 0, b"")
        flags = struct.unpack("16sH14s", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        if not flags & _IFF_UP:
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | _IFF_UP, b""))


def run_step(stage: Stage, name: str, arguments: Sequence[str], tell: Tell) -> None:
    """Run one runtime command, telling its lines of progress and its duration.

    Raises:
        StepFailed: It ended with another status than 0.
    """
    start = time.monotonic()
    lines = []
    with stage.start(*arguments) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                tell({"event": "line", "step": name, "text": lines[-1]})
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise StepFailed(name, process.returncode, "\n".join(lines[-30:]))
    tell(
        {
            "event": "done",
            "step": name,
            "seconds": f"{time.monotonic() - start:.1f}",
            "text": lines[-1] if lines else "",
        }
    )


def _end(process: "subprocess.Popen[str]") -> None:
    """Have a process clean up and end. Popen's own ``with`` waits only a quarter of a second after Ctrl-C."""
    process.terminate()
    try:
        process.communicate(timeout=_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def serving(stage: Stage, port: int, tell: Tell) -> Iterator[str]:
    """Launch the server, wait until it is ready, yield its address, and stop it in every case.

    Raises:
        StepFailed: It ended before it was ready.
    """
    start = time.monotonic()
    tell({"event": "begin", "step": "launch", "text": "models are being loaded"})
    log = stage.home / "launch.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            stage.runtime("launch", "--prefix", str(stage.prefix), "--port", str(port)),
            env=empty_environment(str(stage.home)),
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_ready(process, address, log)
        tell({"event": "done", "step": "launch", "seconds": f"{time.monotonic() - start:.1f}", "text": address})
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            words = log.read_text(encoding="utf-8", errors="replace").strip()[-3000:]
            raise StepFailed("launch", process.returncode, words)
        try:
            with urllib.request.urlopen(f"{address}/ready", timeout=5):  # noqa: S310 # a loopback address of our own
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise StepFailed("launch", AdapterError.exit_code, f"not ready after {_READY_TIMEOUT:.0f} seconds")


def ask(address: str, path: str, document: Mapping[str, object]) -> Any:  # noqa: ANN401 # the parsed JSON answer
    """Post a JSON document and return the parsed answer.

    Raises:
        StepFailed: The server answers with an error, or not at all.
    """
    request = urllib.request.Request(  # noqa: S310 # a loopback address of our own
        f"{address}{path}", data=json.dumps(document).encode(), headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:  # noqa: S310 # as above
            return json.load(answer)
    except urllib.error.HTTPError as error:
        words = error.read().decode("utf-8", "replace")[-3000:]
        raise StepFailed(f"ask {path}", AdapterError.exit_code, f"HTTP {error.code}: {words}") from None
    except OSError as error:
        raise StepFailed(f"ask {path}", AdapterError.exit_code, f"no answer: {error}") from None


def cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the cosine of two vectors."""
    dot = sum(a * b for a, b in zip(left, right, strict=True))
    return dot / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


def network_is_closed() -> bool:
    """Whether there is no route to an address outside; a refusal, which somebody must have sent, is not enough."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.settimeout(2)
        try:
            sock.connect(("192.0.2.1", 9))  # TEST-NET-1 of RFC 5737: never anybody's address
        except TimeoutError:
            return False
        except OSError as error:
            return error.errno == errno.ENETUNREACH
    return False


def require_closed() -> None:
    """Bring loopback up and require that nothing else is there.

    Raises:
        InstallError: The network isn't closed although it should be.
    """
    raise_loopback()
    if not network_is_closed():
        raise InstallError("the namespace has a route to the outside")


def play(stage: Stage, questions: Mapping[str, Any], port: int, tell: Tell) -> None:
    """Verify the bundle, install it, verify the release, launch it and ask it.

    Args:
        stage: Where.
        questions: ``embedding``: model and three sentences (two alike, one not); ``chat``: model and a question.
        port: A free port of the namespace.
        tell: Gets every event.

    Raises:
        StepFailed: A command or a request failed.
    """
    bundle, prefix, trust = str(stage.bundle), str(stage.prefix), str(stage.trust)
    run_step(stage, "verify bundle", ["verify", bundle, "--trust", trust, *stage.more], tell)
    run_step(stage, "install", ["install", bundle, "--prefix", prefix, "--trust", trust, *stage.more], tell)
    run_step(stage, "verify release", ["verify", "--prefix", prefix, "--trust", trust], tell)
    if questions:
        with serving(stage, port, tell) as address:
            _ask_all(address, questions, tell)


def _ask_all(address: str, questions: Mapping[str, Any], tell: Tell) -> None:
    if embedding := questions.get("embedding"):
        start = time.monotonic()
        answer = ask(address, "/v1/embeddings", {"model": embedding["model"], "input": embedding["inputs"]})
        one, alike, other = (item["embedding"] for item in answer["data"])
        text = f"cosine {cosine(one, alike):.3f} (alike), {cosine(one, other):.3f} (different)"
        tell({"event": "done", "step": "embed", "seconds": f"{time.monotonic() - start:.1f}", "text": text})
    if chat := questions.get("chat"):
        start = time.monotonic()
        messages = [{"role": "user", "content": chat["question"]}]
        request = {"model": chat["model"], "messages": messages, "max_tokens": 48}
        text = ask(address, "/v1/chat/completions", request)["choices"][0]["message"]["content"].strip()
        tell({"event": "done", "step": "chat", "seconds": f"{time.monotonic() - start:.1f}", "text": text})
