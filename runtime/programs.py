"""Running the programs of a release while it is made: a closed environment, and an end when somebody calls it off."""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from manifests.pieces import Stopped
from runtime.layout import Prefix

_LOOK_EVERY: Final = 0.1
_PR_SET_PDEATHSIG: Final = 1


def clean_environment(prefix: Prefix) -> Mapping[str, str]:
    """Return the environment for programs of the bundle: nothing of the caller's but PATH and locale."""
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "LC_ALL", "TZ"}}
    kept.setdefault("PATH", os.defpath)
    folder = prefix.var / "run"
    return kept | {"HOME": str(folder), "TMPDIR": str(folder), "UV_NO_MODIFY_PATH": "1", "NO_COLOR": "1"}


def run_program(
    prefix: Prefix, command: Sequence[str], *, stop: threading.Event | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end, in the prefix; it ends with this process, however that ends.

    Args:
        prefix: Where; also decides its environment.
        command: Program and arguments.
        stop: Kills it when somebody sets it.

    Raises:
        OSError: It can't be started.
        Stopped: ``stop`` was set.
    """
    with _started(prefix, command) as process:
        while True:
            try:
                out, err = process.communicate(timeout=_LOOK_EVERY)
            except subprocess.TimeoutExpired:
                if stop is not None and stop.is_set():
                    raise Stopped from None
            else:
                return subprocess.CompletedProcess(list(command), process.returncode, out, err)


@contextlib.contextmanager
def _started(prefix: Prefix, command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        cwd=prefix.path,
        env=dict(clean_environment(prefix)),
        preexec_fn=_end_with_parent(),  # noqa: PLW1509 # one system call, looked up before the fork
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _end_with_parent() -> Callable[[], object] | None:
    """Return what has a child killed with its parent: else a killed installer's uv would go on writing (prctl(2))."""
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import ctypes  # noqa: PLC0415 # a Python may lack it

        prctl = ctypes.CDLL(None).prctl
        return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    return None
