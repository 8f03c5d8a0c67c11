"""Building wheels here, from source distributions and project folders, each source once.

A build runs code of the package, so only what a spec names is built. It runs without a network, in a venv of pinned
wheels alone (``build-system.requires`` and what the backend asks for on top, PEP 517), with a fixed time, hash seed and
umask. The pins, the digest of the source and that of the wheel go into the lock.
"""

import hashlib
import re
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, cast

from packaging.utils import canonicalize_name, parse_wheel_filename

from bundler.lock import LockedBuild, LockedFile
from bundler.packages.buildenv import BuildEnvironment, Supply, make_environment, run_build
from bundler.packages.fetch import run_pip_download
from bundler.packages.resolver import Pin, Resolver
from bundler.packages.wheelcheck import check_stored_wheel
from bundler.packages.wheeltags import tag_rank
from bundler.spec import host_target
from bundler.store import Store
from manifests.digests import sha256_hex
from manifests.errors import IntegrityError, SourceError
from manifests.manifest import Target

_RECORD_KIND: Final = "build"
_LEFT_OUT: Final = frozenset({".git", ".hg", ".tox", ".venv", "__pycache__", ".mypy_cache", ".pytest_cache"})
_GLIBC: Final = re.compile(rb"GLIBC_2\.([0-9]{1,3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSource:
    """What a wheel is built from.

    ``label`` is what the lock calls it; ``unpack`` writes it into an empty folder and returns the project's root there.
    ``name`` and ``version`` are what the wheel must have, empty where any will do.
    """

    label: str
    sha256: str
    unpack: Callable[[Path], Path]
    name: str = ""
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Builds for a target; ``known`` are builds of an earlier lock, which are taken as they are."""

    store: Store
    resolver: Resolver
    target: Target
    known: tuple[LockedBuild, ...] = ()

    def build(self, source: BuildSource) -> LockedBuild:
        """Return the build of a source, whose wheel is in the store afterwards and has passed every check.

        Raises:
            SourceError: It can't be built, a build requirement has no wheel, or the wheel doesn't fit the target.
            IntegrityError: The wheel contradicts itself.
        """
        for build in self.known:
            same = (build.source, build.source_sha256) == (source.label, source.sha256)
            if same and build.wheel_sha256 in self.store:
                _check_fit(self.store.path(build.wheel_sha256), build.wheel, source, self.target)
                return build
        with tempfile.TemporaryDirectory(prefix="sealift-") as name:
            folder = Path(name)
            root = source.unpack(folder / "source")
            supply = Supply(store=self.store, resolver=self.resolver, keep=self._kept(source))
            environment = make_environment(root, folder, source.label, supply)
            build = self._recorded(source, environment) or self._build(source, environment, root, folder / "out")
        _check_fit(self.store.path(build.wheel_sha256), build.wheel, source, self.target)
        check_stored_wheel(self.store, build.wheel_sha256, build.wheel)
        return build

    def _kept(self, source: BuildSource) -> Mapping[str, str]:
        builds = (build for build in self.known if build.source_sha256 == source.sha256)
        pins = (pin.partition("==") for build in builds for pin in build.requirements)
        return {name: version for name, _, version in pins}

    def _recorded(self, source: BuildSource, environment: BuildEnvironment) -> LockedBuild | None:
        found = self.store.record(_RECORD_KIND, _key(source, environment))
        wheel, sha256 = cast("tuple[str, str]", found) if isinstance(found, list) else ("", "")
        return _locked(source, environment, wheel, sha256) if wheel and sha256 in self.store else None

    def _build(self, source: BuildSource, environment: BuildEnvironment, root: Path, output: Path) -> LockedBuild:
        wheel = run_build(environment, root, output, source.label)
        if source.name:
            _check_name(wheel.name, source)
        digest = self.store.add_file(wheel)
        self.store.write_record(_RECORD_KIND, _key(source, environment), [wheel.name, digest.sha256])
        return _locked(source, environment, wheel.name, digest.sha256)


def fetch_sdist(pin: Pin, store: Store) -> BuildSource:
    """Have a source distribution in the store, and return it as something to build.

    Raises:
        SourceError: It can't be had.
        IntegrityError: It has another digest than what was resolved.
    """
    if pin.sha256 not in store:
        with tempfile.TemporaryDirectory(prefix="sealift-") as name:
            folder = Path(name)
            # What is bound to an index must not be asked of another one.
            wanted = f"{pin.name} @ {pin.url}" if pin.index and not pin.is_local else f"{pin.name}=={pin.version}"
            line = f"{wanted} --hash=sha256:{pin.sha256}\n"
            (folder / "requirements.txt").write_text(line, encoding="utf-8")
            run_pip_download(["--require-hashes", "--no-binary", pin.name, "-r", folder / "requirements.txt"], folder)
            with (folder / pin.filename).open("rb") as stream:
                store.add_stream(stream, expected_sha256=pin.sha256, what=pin.filename)
    return BuildSource(
        label=pin.filename,
        sha256=pin.sha256,
        unpack=lambda folder: _unpack(store.path(pin.sha256), folder, pin.filename),
        name=pin.name,
        version=pin.version,
    )


def project_source(name: str, folder: Path, files: Sequence[tuple[str, Path]]) -> BuildSource:
    """Return a project's folder as something to build; caches and version control are no part of it.

    Args:
        name: What messages and the lock call it.
        folder: The project's root.
        files: Relative name and path of each file in it.

    Raises:
        SourceError: There is neither pyproject.toml nor setup.py.
    """
    taken = [(path, real) for path, real in files if not _LEFT_OUT.intersection(PurePosixPath(path).parts)]
    if not {"pyproject.toml", "setup.py"}.intersection(path for path, _ in taken):
        msg = f"project {name}: {folder} has neither pyproject.toml nor setup.py"
        raise SourceError(msg, hint="plain files travel with source = 'dir:FOLDER'")
    listing = "".join(f"{_file_digest(real)} {_mode(real):o} {path}\n" for path, real in sorted(taken))

    def unpack(target: Path) -> Path:
        for path, real in taken:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(real, target / path)
            (target / path).chmod(_mode(real))
        return target

    return BuildSource(label=f"project {name}", sha256=sha256_hex(listing.encode()), unpack=unpack)


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise SourceError(f"can't read {path}: {error.strerror or error}") from error


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o111 else 0o644


def built_file(build: LockedBuild, store: Store) -> LockedFile:
    """Return a built wheel as a file of the bundle."""
    digest = store.digest(build.wheel_sha256)
    name, version, _, _ = parse_wheel_filename(build.wheel)
    return LockedFile(
        path=f"wheels/{build.wheel}",
        size=digest.size,
        sha256=digest.sha256,
        chunks=digest.chunks,
        origin=f"pkg:pypi/{name}@{str(version).replace('+', '%2B')}",
        source=f"built {build.source}",
        origin_sha256=build.source_sha256,
    )


def _key(source: BuildSource, environment: BuildEnvironment) -> str:
    return f"{source.sha256} {sys.version_info.major}.{sys.version_info.minor} {environment.digest}"


def _locked(source: BuildSource, environment: BuildEnvironment, wheel: str, sha256: str) -> LockedBuild:
    return LockedBuild(
        wheel=wheel,
        wheel_sha256=sha256,
        source=source.label,
        source_sha256=source.sha256,
        requirements=environment.requirements,
    )


def _unpack(archive: Path, folder: Path, label: str) -> Path:
    """Unpack a source distribution, of which nothing may leave the folder, and return its one top folder."""
    try:
        if label.endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(folder)  # noqa: S202 # zipfile keeps members in the folder
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")  # it was named in the spec to be run
    except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"{label}: can't be unpacked: {error}") from None
    tops = sorted(folder.iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise IntegrityError(f"{label}: holds {len(tops)} things at its top, expected one folder")
    return tops[0]


def _check_name(wheel: str, source: BuildSource) -> None:
    name, version, _, _ = parse_wheel_filename(wheel)
    if (name, str(version)) != (canonicalize_name(source.name), source.version):
        raise SourceError(f"{source.label}: its build gives {wheel}, expected {source.name} {source.version}")


def _check_fit(path: Path, wheel: str, source: BuildSource, target: Target) -> None:
    """Require that a wheel which was built on this host runs on the target."""
    tags = parse_wheel_filename(wheel)[3]
    if all(tag.platform == "any" for tag in tags):
        if tag_rank(wheel, target) is None:
            raise SourceError(f"{source.label}: its build gives {wheel}, which Python {target.python} can't use")
        return
    hint = "build it on such a machine, put the wheel into a folder, and name that: pip config set global.find-links"
    host = host_target()
    here = f"{host.platform.partition('-')[0]} {host.platform.partition('-')[2].partition('_')[0]}"
    there = f"{target.platform.partition('-')[0]} {target.platform.partition('-')[2].partition('_')[0]}"
    if (here, host.python) != (there, target.python):
        msg = f"{source.label}: its build gives {wheel}, machine code for this host ({here}, Python {host.python}), and"
        raise SourceError(f"{msg} the target is {there}, Python {target.python}", hint=hint)
    level = re.search(r"manylinux_2_([0-9]+)", target.platform)
    if level and (needed := _glibc(path)) > int(level[1]):
        msg = f"{source.label}: its build gives {wheel}, which needs glibc 2.{needed}; the target has 2.{level[1]}"
        raise SourceError(msg, hint=f"target a newer system, or {hint}")


def _glibc(path: Path) -> int:
    """Return the newest minor version of glibc 2 whose symbols a wheel's libraries ask for."""
    with zipfile.ZipFile(path) as archive:
        libraries = [name for name in archive.namelist() if re.search(r"\.so(?:\.[0-9.]+)?$", name)]
        found = (int(match[1]) for name in libraries for match in _GLIBC.finditer(archive.read(name)))
        return max(found, default=0)
