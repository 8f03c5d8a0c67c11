"""Small real bundles for the closed side: real wheels, the real uv and runtime.pyz, run as an operator runs them."""

import functools
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bundler.contents.render import SUMS_PATH, Subject, render_payload, sums_text
from bundler.rehearsal.sandbox import find_isolation
from bundler.sealing.kit import write_kit
from bundler.selfpack import WHEEL_NAME, runtime_pyz, runtime_wheel
from manifests.digests import CHUNK_SIZE
from manifests.files import locked
from manifests.manifest import Manifest, ModelEntry, Target
from tests.factories import Content, Key, is_root, make_bundle, make_entry, make_manifest

PYTHON: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"
HOST_TARGET: Final = Target(platform=f"{platform.machine()}-manylinux_2_28", python=PYTHON, accelerator="cpu")
SIX: Final = "six==1.17.0"
CLICK: Final = "click==8.3.1"
BIG_PATH: Final = "models/big/weights.bin"
BIG_SIZE: Final = CHUNK_SIZE + 3 * 1024 * 1024 + 7
NOBODY: Final = 65534


def cache_folder() -> Path:
    """Return where downloads and roots are kept between runs, outside of the clone."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sealift-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@functools.cache
def fetch_wheels() -> Mapping[str, bytes]:
    """Return the wheels that the bundles are made of, file name to content; fetched once, by the ordinary client."""
    wanted = [SIX, CLICK, f"uv=={version('uv')}"]
    folder = cache_folder() / "wheels"
    folder.mkdir(exist_ok=True)
    with locked(folder.with_name("wheels.lock")):
        found = _find_wheels(folder, wanted)
        if len(found) < len(wanted):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
            subprocess.run([*command, "--dest", str(folder), *wanted], check=True, capture_output=True)
            found = _find_wheels(folder, wanted)
    return {path.name: path.read_bytes() for path in found}


def _find_wheels(folder: Path, wanted: Sequence[str]) -> list[Path]:
    stems = [requirement.replace("==", "-") for requirement in wanted]
    return [path for stem in stems for path in sorted(folder.glob(f"{stem}-*.whl"))[:1]]


def wheel_named(project: str) -> tuple[str, bytes]:
    """Return file name and content of the wheel of ``project``."""
    return next((name, data) for name, data in fetch_wheels().items() if name.startswith(f"{project}-"))


def closed_files(
    *projects: str,
    extra: Mapping[str, Content] | None = None,
    models: tuple[ModelEntry, ...] = (),
    target: Target = HOST_TARGET,
    version: str = "1.0.0",
) -> dict[str, Content]:
    """Return the payload of a bundle: rendered files, runtime.pyz, uv, our own wheel, the wheels of ``projects``."""
    uv_name, uv = wheel_named("uv")
    files: dict[str, Content] = {
        **render_payload(Subject(name="demo", version=version, target=target, models=models)),
        "bootstrap/runtime.pyz": runtime_pyz(),
        f"bootstrap/{uv_name}": uv,
        f"wheels/{WHEEL_NAME}": runtime_wheel(),
    }
    for project in projects:
        name, data = wheel_named(project)
        files[f"wheels/{name}"] = data
    files |= extra or {}
    files[SUMS_PATH] = sums_text(make_entry(path, content) for path, content in sorted(files.items()))
    return files


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedBundle:
    """A bundle as it is carried: tar, kit, the kit's digest, and its manifest."""

    tar: Path
    kit: Path
    kit_digest: str
    manifest: Manifest

    @property
    def pyz(self) -> Path:
        """The kit's verifier."""
        return self.kit / "runtime.pyz"

    @property
    def trust(self) -> Path:
        """The kit's trust file."""
        return self.kit / "allowed_signers"


def make_closed_bundle(
    folder: Path,
    key: Key,
    *projects: str,
    extra: Mapping[str, Content] | None = None,
    files: Mapping[str, Content] | None = None,
    **overrides: object,
) -> ClosedBundle:
    """Write a signed bundle and its kit below ``folder``.

    Args:
        folder: Where; made if it is missing.
        key: The signer, whom the kit's trust file lists.
        projects: Which of the fetched wheels go into the venv.
        extra: More files.
        files: The whole payload instead.
        overrides: Fields of the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    overrides = {"target": HOST_TARGET, **overrides}
    target = overrides["target"]
    assert isinstance(target, Target)
    payload = files if files is not None else closed_files(*projects, extra=extra, target=target)
    executable = ["bootstrap/install.sh"]
    tar = make_bundle(folder, payload, key=key, executable=executable, **overrides)
    manifest = make_manifest(payload, executable=executable, **overrides)
    bootstrap = {
        name: data for name in ("install.sh", "runtime.pyz") if isinstance(data := payload[f"bootstrap/{name}"], bytes)
    }
    kit = folder / f"{manifest.stem}.kit"
    digest = write_kit(kit, manifest, bootstrap, key.allowed_signers.read_text())
    return ClosedBundle(tar=tar, kit=kit, kit_digest=digest, manifest=manifest)


def system_python(version: str = PYTHON) -> Path | None:
    """Return a Python of ``version`` that any user can run, or None."""
    candidates = [Path(path) for name in ("/usr/bin", "/usr/local/bin") for path in [f"{name}/python{version}"]]
    return next((path for path in candidates if path.exists()), None)


@functools.cache
def pyenv_python(version: str) -> Path | None:
    """Return another Python of this machine by its ``3.N``, from PATH or pyenv's folder, or None."""
    roots = [Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"]
    found = [path for root in roots for path in sorted(root.glob(f"{version}.*/bin/python{version}"))]
    on_path = shutil.which(f"python{version}")
    return next(iter(found), None) or (Path(on_path) if on_path and "shims" not in on_path else None)


def program(name: str) -> str:
    """Return the absolute path of a program that the tests need."""
    path = shutil.which(name)
    assert path is not None, f"the tests need {name}"
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """A host without network to run commands on.

    ``home`` is also TMPDIR; ``user`` None is the tester's own; ``path`` is PATH; ``umask`` for the process.
    """

    home: Path
    python: Path
    user: int | None = None
    path: str = os.defpath
    tmp: Path | None = None
    umask: int = 0o022
    wrap: tuple[str, ...] = ()

    def command(self, *words: str | Path) -> list[str]:
        """Return ``words`` wrapped so that there is no network, as the host's user."""
        switch = [program("setpriv"), f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", "--"]
        first, *options = find_isolation().prefix
        isolation = [program(first), *options]
        return [*isolation, *self.wrap, *(switch if self.user is not None else []), *map(str, words)]

    @property
    def environment(self) -> dict[str, str]:
        """All that a process gets, as ``env -i`` would give it."""
        return {"PATH": self.path, "HOME": str(self.home), "TMPDIR": str(self.tmp or self.home), "LANG": "C.UTF-8"}

    def run(self, *words: str | Path, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            self.command(*words),
            env=self.environment,
            cwd=self.home,
            umask=self.umask,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )

    def start(self, *words: str | Path) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            self.command(*words),
            env=self.environment,
            cwd=self.home,
            umask=self.umask,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def runtime_words(self, pyz: Path, *words: str | Path) -> list[str | Path]:
        """Return the command line of a runtime command."""
        return [self.python, "-I", "-S", pyz, *words]

    def runtime(self, pyz: Path, *words: str | Path) -> "subprocess.CompletedProcess[str]":
        """Run ``runtime.pyz`` to its end."""
        return self.run(*self.runtime_words(pyz, *words))


def make_host(home: Path, **options: object) -> Host:
    """Return a host of the tester's own user with the Python that runs the tests."""
    home.mkdir(parents=True, exist_ok=True)
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    defaults: dict[str, object] = {"home": home, "python": base, "path": f"{base.parent}:{os.defpath}"}
    return Host(**(defaults | options))  # type: ignore[arg-type] # each test gives the field's own type


def give_to_nobody(folder: Path) -> None:
    """Let the ordinary user of the tests own ``folder``, and reach it."""
    if is_root():
        os.chown(folder, NOBODY, NOBODY)


def leftovers(prefix: Path) -> list[str]:
    """Return what lies below a prefix that is neither a folder, nor a verified blob, nor a lock, nor the settings."""
    own = ("var/install.lock", "var/use.lock", "var/cache/", "var/logs/", "var/audit.jsonl")
    allowed = ("store/sha256/", "etc/", *own)
    paths = (path for path in prefix.rglob("*") if path.is_symlink() or not path.is_dir())
    names = (path.relative_to(prefix).as_posix() for path in paths)
    return sorted(name for name in names if name.endswith(".partial") or not name.startswith(allowed))


def flip_bit(path: Path, offset: int) -> None:
    """Flip one bit of a file in place."""
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 1]))


def copy_of(tar: Path, folder: Path) -> Path:
    """Return a copy of a bundle that a test may damage; holes stay holes."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / tar.name
    subprocess.run([program("cp"), "--sparse=always", str(tar), str(target)], check=True)
    return target
