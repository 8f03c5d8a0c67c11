"""Conversion to safetensors, in a throw-away venv made from pinned requirements; each result is kept by digest."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import uv

from bundler.packages.pipconfig import PipConfig, redact
from bundler.process import run_program
from bundler.store import Store
from manifests.digests import sha256_hex
from manifests.errors import SourceError
from manifests.files import locked

_FOLDER: Final = Path(__file__).parent / "converter"
_REQUIREMENTS: Final = _FOLDER / "requirements.txt"
_PYTHON: Final = "3.11"


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a conversion gave: path -> (sha256, size) of files that are in the store, and the converter's digest."""

    files: Mapping[str, tuple[str, int]]
    converter: str


def converter_digest() -> str:
    """Return the digest of what a conversion depends on: its script and its requirements."""
    return sha256_hex((_FOLDER / "__main__.py").read_bytes() + _REQUIREMENTS.read_bytes())


def convert(
    mode: Literal["gguf", "pickle", "cast"],
    inputs: Mapping[str, Path],
    key: str,
    store: Store,
    config: PipConfig,
    *,
    dtype: str = "",
) -> Converted:
    """Convert weights, unless that was done before.

    Args:
        mode: ``gguf``: one file that holds a whole model; ``pickle``: ``.bin`` and ``.pt`` files and their index;
            ``cast``: safetensors files and their index, which get another ``dtype``.
        inputs: Relative name -> where the content lies.
        key: The digest of the inputs' contents and names.
        store: Keeps the result.
        config: Where the converter's requirements come from.
        dtype: torch's name of the type that floating-point tensors get; empty leaves them as they are.

    Raises:
        SourceError: The converter can't be installed, or refuses the weights; its own words are in the message.
    """
    converter = converter_digest()
    name = f"{key}-{converter[:16]}{dtype and '-'}{dtype}"
    record = store.record("conversion", name)
    if isinstance(record, dict) and all(sha256 in store for sha256, _ in record.values()):
        return Converted(files={path: (sha256, size) for path, (sha256, size) in record.items()}, converter=converter)
    python = _converter_python(store, config)
    with tempfile.TemporaryDirectory(prefix="convert-", dir=_made(store.root / "incoming")) as folder:
        source, output = Path(folder) / "source", Path(folder) / "output"
        for relative, path in inputs.items():
            _made((source / relative).parent)
            (source / relative).symlink_to(path.absolute())
        argument = source / next(iter(inputs)) if mode == "gguf" else source
        script = [str(python), "-I", str(_FOLDER / "__main__.py")]
        _run([*script, mode, str(argument), str(output), dtype], Path(folder))
        files = {}
        for path in sorted(output.rglob("*")):
            if path.is_file():
                digest = store.add_file(path)
                files[path.relative_to(output).as_posix()] = (digest.sha256, digest.size)
    store.write_record("conversion", name, files)
    return Converted(files=files, converter=converter)


def _converter_python(store: Store, config: PipConfig) -> Path:
    """Return the interpreter of the converter's venv, made on first use."""
    venv = store.root / "venvs" / sha256_hex(_REQUIREMENTS.read_bytes())[:16]
    python, done = venv / "bin" / "python", venv / "complete"
    _made(venv.parent)
    with locked(venv.with_name(f"{venv.name}.lock")):
        if done.exists():
            return python
        if venv.exists():
            shutil.rmtree(venv)
        # Not the user's constraints: uv takes none without hashes here, and every version is pinned anyway.
        index = ["--no-index"] if config.no_index else ["--index-strategy", "unsafe-best-match"]
        backend = [] if config.find_links else ["--torch-backend", "cpu"]
        common = ["--quiet", "--no-progress", "--no-config"]
        _uv(["venv", *common, "--python", _PYTHON, str(venv)], config)
        install = ["pip", "install", *common, "--python", str(python), *backend, "--require-hashes", "--no-deps"]
        _uv([*install, *index, "-r", str(_REQUIREMENTS)], config)
        done.touch()
    return python


def _uv(arguments: list[str], config: PipConfig) -> None:
    done = run_program([uv.find_uv_bin(), *arguments], env=config.uv_environment)
    if done.status:
        msg = f"the converter's environment can't be made: {redact(done.errors).strip()[-1500:]}"
        raise SourceError(msg, hint="converting GGUF or pickled weights needs PyTorch and transformers from the index")


def _run(command: list[str], folder: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name in {"PATH", "LANG", "LC_ALL", "TMPDIR"}}
    environment = kept | {
        "HOME": str(folder),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HOME": str(folder),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        words = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise SourceError(f"the weights can't be converted to safetensors:\n{words}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
