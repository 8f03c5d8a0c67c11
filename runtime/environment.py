"""Making a release's environment so that what goes live was verified: built, compared with the signed wheels, asked."""

import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import InstallError, IntegrityError, list_problems
from manifests.manifest import Manifest
from runtime.carried import release_interpreter
from runtime.interpreter import Interpreter
from runtime.layout import Prefix, Release
from runtime.smoke import smoke_test
from runtime.steps import Checkpoint, go_on
from runtime.venv import build_venv
from runtime.venv_check import check_venv


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """An environment that is going to be made.

    ``python`` is the interpreter that the operator named, None for the bundle's own or else one of the host; ``smoke``
    asks for the smoke test; ``checkpoint`` is called after each of :data:`runtime.steps.ENVIRONMENT_STEPS`, and
    ``report`` is told what goes on.
    """

    prefix: Prefix
    release: Release
    manifest: Manifest
    python: Path | None = None
    smoke: bool = True
    checkpoint: Checkpoint = go_on
    report: Callable[[str], None] = go_on

    def make(self, stop: threading.Event | None = None) -> Interpreter:
        """Build the virtual environment, and require that it is what the wheels' RECORDs say, both ways.

        uv's cache is shared by releases through hard links and checked by nobody, so where the first try is not what
        the wheels say, the second one is made without it.

        Returns:
            The interpreter that it is made from.

        Raises:
            InstallError: uv refuses, the environment is not what the wheels say, or doesn't import what it must.
            DiskError: The disk is full or fails.
            HostError: There is no interpreter, or the bundle's uv does not run here.
            Stopped: ``stop`` was set.
        """
        interpreter = release_interpreter(self.prefix, self.release, self.manifest, self.python)
        had_cache = (self.prefix.var / "cache" / "uv").exists()
        problems = self._build(interpreter, stop)
        if problems and had_cache:
            drop_uv_cache(self.prefix)
            problems = self._build(interpreter, stop)
        if problems:
            drop_uv_cache(self.prefix)
            what = "the new virtual environment is not what its signed wheels say"
            hint = "a wheel may contradict itself, or the disk is failing; what was live stays live"
            raise InstallError(list_problems(what, problems), hint=hint)
        self.checkpoint("venv checked")
        if self.smoke:
            self.report("smoke test")
            smoke_test(self.prefix, self.release, self.manifest, stop)
            self.checkpoint("smoke tested")
        return interpreter

    def _build(self, interpreter: Interpreter, stop: threading.Event | None) -> list[str]:
        try:
            build_venv(self.prefix, self.release, self.manifest, interpreter, stop)
            self.checkpoint("venv made")
            return check_venv(self.release, self.manifest, python=str(interpreter.executable), stop=stop)
        except IntegrityError as error:  # a wheel that was signed so: no medium is to blame
            return [error.message]


def drop_uv_cache(prefix: Prefix) -> None:
    """Remove uv's cache of unpacked wheels; it comes again with the next environment."""
    cache = prefix.var / "cache" / "uv"
    if cache.exists():
        shutil.rmtree(cache)
