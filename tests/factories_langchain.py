"""Throw-away environments with libraries that our own has not: made once by uv, kept outside of the clone.

They see this environment's packages too, behind their own, by a ``.pth`` file: torch and transformers are there, and
lie on the disk once. Where one brings its own transformers, that one is found first.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from uv import find_uv_bin

from manifests.files import locked
from tests.factories_closed import cache_folder

ROOT: Final = Path(__file__).parent.parent
LANGCHAIN: Final = {
    "0.3": ("langchain-core==0.3.65", "ragas==0.2.15"),  # RAGTrace's own pins
    "1": ("langchain-core>=1,<2", "ragas>=0.4,<0.5", "langchain-community==0.4.1"),  # ragas 0.4 imports what 0.4.2 lost
}
FLAGEMBEDDING: Final = ("FlagEmbedding==1.4.2", "transformers==5.23.0")
ONNXRUNTIME: Final = ("onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.32.0")
_SHARED: Final = ("torch",)  # never installed a second time


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """A virtual environment, and how to run Python in it, from the root of the clone, without a network's proxies."""

    python: Path

    def run(self, *words: str | Path, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run ``python WORDS...`` and return what it wrote; fails the test with its last lines."""
        offline = {"HF_HUB_OFFLINE": "1", "RAGAS_DO_NOT_TRACK": "true", "LANGSMITH_TRACING": "false"}
        done = subprocess.run(
            [self.python, *words],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            env={**os.environ, **offline},
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done


def langchain_venv(version: Literal["0.3", "1"]) -> Environment:
    """Return an environment with that langchain-core and the ragas that goes with it."""
    return peer_venv(f"langchain-{version}", LANGCHAIN[version])


def flagembedding_venv() -> Environment:
    """Return an environment with FlagEmbedding and the newest transformers that it can be imported beside."""
    return peer_venv("flagembedding", FLAGEMBEDDING)


def onnxruntime_venv() -> Environment:
    """Return an environment with onnxruntime, and with what torch needs to export a model for it."""
    return peer_venv("onnxruntime", ONNXRUNTIME)


def peer_venv(name: str, requirements: Sequence[str]) -> Environment:
    """Return an environment with ``requirements`` in front of this one's packages; made if it isn't there yet."""
    ours = Path(sysconfig.get_path("purelib"))
    key = hashlib.sha256("\n".join([*requirements, *_SHARED, str(ours), str(ROOT), sys.version]).encode()).hexdigest()
    folder = cache_folder() / "venvs" / f"{name}-{key[:12]}"
    folder.parent.mkdir(exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        if not (folder / "ready").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, requirements, ours)
            (folder / "ready").touch()
    return Environment(python=folder / "bin" / "python")


def _make(folder: Path, requirements: Sequence[str], ours: Path) -> None:
    python = folder / "bin" / "python"
    _uv("venv", "--python", sys.executable, str(folder))
    site = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (site / "shared.pth").write_text(f"{ours}\n{ROOT}\n", encoding="utf-8")
    never = folder / "never.txt"
    never.write_text("".join(f"{project} ; python_version < '3'\n" for project in _SHARED), encoding="utf-8")
    _uv("pip", "install", "--python", str(python), "--overrides", str(never), *requirements)


def _uv(*words: str) -> None:
    links = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False
    )
    found = links.stdout.strip() or os.environ.get("PIP_FIND_LINKS", "")
    environment = {**os.environ, "UV_FIND_LINKS": found} if found else dict(os.environ)
    done = subprocess.run(
        [find_uv_bin(), "--quiet", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
