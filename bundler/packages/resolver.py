"""Resolution: from requirements to one wheel per package, for the target and not for this host.

The resolver is uv (``uv pip compile``), behind a Protocol, so that another can give a second opinion.
"""

import re
import sys
import tempfile
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name
from uv import find_uv_bin

from bundler.packages.accelerator import TORCH_FAMILY, ClosurePackage, check_closure, cpu_constraints, torch_backend
from bundler.packages.pipconfig import PipConfig
from bundler.packages.uvinput import (
    ANNOTATED,
    ANNOTATING_FLAGS,
    annotated_packages,
    bound_packages,
    login_variables,
    requirement_names,
    write_list,
    write_project,
)
from bundler.packages.wheeltags import MACOS_VERSION, best_wheel, tag_rank
from bundler.process import Finished, run_program
from bundler.spec import IndexSpec
from manifests.errors import DiskError, SealiftError, SourceError
from manifests.manifest import Target

_PYTORCH_PATH: Final = "/whl/"  # of PyTorch's own indexes, which uv asks for a torch backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package of a resolution, and the one wheel of it that the target likes best, or a source distribution.

    ``url`` is where the resolver found it, https: or file:. ``sha256`` is the index's own number for the wheel,
    ``size`` its bytes, 0 where the index doesn't say. ``index`` is the only index that it may come from, if the spec
    says so. ``alternatives`` are the other wheels of this version that fit the target: file name -> sha256.
    """

    name: str
    version: str
    filename: str
    url: str
    sha256: str
    size: int = 0
    index: str = ""
    alternatives: Mapping[str, str] = field(default_factory=dict)

    @property
    def purl(self) -> str:
        """The package url, with a local version's plus escaped."""
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"

    @property
    def is_source(self) -> bool:
        """Whether it is a source distribution, of which a wheel has yet to be built."""
        return not self.filename.endswith(".whl")

    @property
    def is_local(self) -> bool:
        """Whether it comes from a folder of this machine."""
        return urlsplit(self.url).scheme == "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Pins sorted by name, and what found them, such as ``uv 0.13.9``."""

    pins: tuple[Pin, ...]
    resolver: str


class Resolver(Protocol):
    """Finds the closure of requirements."""

    def resolve(
        self,
        requirements: Sequence[str],
        target: Target,
        keep: Mapping[str, str],
        *,
        constraints: Sequence[str] = (),
        sources: Sequence[str] = (),
    ) -> Resolution:
        """Return the closure.

        Args:
            requirements: PEP 508.
            target: What the wheels must fit; the accelerator decides where torch comes from.
            keep: Name -> version to keep where it still satisfies everything.
            constraints: PEP 508, for what is in the closure anyway.
            sources: Packages whose pin may be a source distribution, where no wheel satisfies.

        Raises:
            SourceError: A package or a wheel for the target doesn't exist, or an index can't be reached.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class UvResolver:
    """Resolution by ``uv pip compile``, with the indexes and find-links of the user's pip.

    ``indexes`` bind packages to one index each: they come from there and from nowhere else, whoever asks for them.
    """

    config: PipConfig
    indexes: tuple[IndexSpec, ...] = ()

    def resolve(
        self,
        requirements: Sequence[str],
        target: Target,
        keep: Mapping[str, str],
        *,
        constraints: Sequence[str] = (),
        sources: Sequence[str] = (),
    ) -> Resolution:
        """Return the closure; see :class:`Resolver`."""
        with tempfile.TemporaryDirectory(prefix="sealift-") as name:
            folder = Path(name)
            _write_preferences(folder / "pylock.toml", keep)
            _write_lines(folder / "constraints-spec.txt", constraints)
            run = partial(self._run, folder, target, _source_flags(constraints, sources))
            source = self._write_input(folder, requirements, target, run)
            self._compile(folder, target, partial(run, source), [*requirements, *constraints])
            text = (folder / "pylock.toml").read_text(encoding="utf-8")
        bound = bound_packages(self.indexes)
        pins = tuple(replace(pin, index=bound.get(pin.name, "")) for pin in _read_pins(text, target, sources))
        check_closure(closure_packages(pins), target)
        return Resolution(pins=pins, resolver=f"uv {version('uv')}")

    @property
    def _binds_torch(self) -> bool:
        return any(name in TORCH_FAMILY for name in bound_packages(self.indexes))

    def _write_input(
        self, folder: Path, requirements: Sequence[str], target: Target, run: Callable[..., Finished]
    ) -> str:
        if not self.indexes:
            return write_list(folder, requirements)
        # All that are bound are asked for; those that nobody else asks for are then left out again.
        named = requirement_names(requirements)
        extra = [name for name in bound_packages(self.indexes) if name not in named]
        source = write_project(folder, [*requirements, *extra], self.indexes, target)
        if not extra:
            return source
        first = run(source, self._torch_flags(target), output=ANNOTATING_FLAGS)
        if first.status != 0:
            # One that isn't needed may have no wheel for this target.
            write_project(folder, requirements, self.indexes, target)
            self._checked(run(source, self._torch_flags(target), output=ANNOTATING_FLAGS), target)
        found = annotated_packages((folder / ANNOTATED).read_text(encoding="utf-8"))
        if first.status != 0 and not found.keys().isdisjoint(extra):
            raise self._error(first, target)
        needed = [name for name in extra if found.get(name)]
        return write_project(folder, [*requirements, *needed], self.indexes, target)

    def _torch_flags(self, target: Target) -> tuple[str, ...]:
        backend = None if self._binds_torch else torch_backend(target)
        return ("--torch-backend", backend) if backend else ()

    def _compile(self, folder: Path, target: Target, run: Callable[..., Finished], wanted: Sequence[str]) -> None:
        """Try the user's own CPU wheels of torch first, then PyTorch's index."""
        builds = () if self._binds_torch else cpu_constraints(wanted, target, self.config.folders)
        if builds:
            _write_lines(folder / "builds.txt", builds)
            done = run(("--constraints", "builds.txt"))
            if done.status == 0:
                return
            if "torch" not in done.errors:
                raise self._error(done, target)
        self._checked(run(self._torch_flags(target)), target)

    def _checked(self, done: Finished, target: Target) -> None:
        if done.status != 0:
            raise self._error(done, target)

    def _run(
        self,
        folder: Path,
        target: Target,
        common: tuple[str, ...],
        source: str,
        flags: tuple[str, ...],
        *,
        output: tuple[str, ...] = ("--format", "pylock.toml", "--output-file", "pylock.toml"),
    ) -> Finished:
        platform = target.platform
        command: list[str | Path] = [
            # Else uv searches for an interpreter of the target's version, through shims that take seconds.
            *(find_uv_bin(), "pip", "compile", "--no-config", "--quiet", "--no-header", "--python", sys.executable),
            *("--python-platform", platform, "--python-version", target.python, "--only-binary", ":all:"),
            *self.config.uv_flags,
            *common,
            *flags,
            *(source, *output),
        ]
        env = self.config.uv_environment | login_variables(self.config, self.indexes)
        if platform.endswith("apple-darwin"):
            env["MACOSX_DEPLOYMENT_TARGET"] = ".".join(map(str, MACOS_VERSION))
        return run_program(command, env=env, cwd=folder)

    def _error(self, done: Finished, target: Target) -> SealiftError:
        text = self.config.redact(done.errors)
        reason = short_reason(text)
        if "Failed to initialize cache" in text:
            hint = "name a folder that you may write: XDG_CACHE_HOME, for uv alone UV_CACHE_DIR"
            return DiskError(f"can't use uv's cache: {reason}", hint=hint)
        if "Failed to fetch" in text and _PYTORCH_PATH in text:
            message = f"torch for {target.label}: pip's find-links hold no wheel for it, and PyTorch's own index fails"
            hint = "put a matching wheel into a folder and name it: pip config set global.find-links FOLDER"
            return SourceError(f"{message}: {reason}", hint=hint)
        if match := re.search(
            r"Because (\S+) was not found in the (package registry|provided package locations)", text
        ):
            hint = "check the spelling, and `pip config list` for the index that has it"
            return SourceError(f"requirement {match[1]!r}: no index has a package of that name", hint=hint)
        if match := re.search(r"Failed to fetch:? `?([^\s`]+)", text):
            hint = "check the network, the proxy and `pip config list`"
            return SourceError(f"an index can't be reached: {match[1]}: {reason}", hint=hint)
        if re.search(r"has no (usable )?wheels", text):
            return SourceError(f"no wheel for {target.label}: {reason}", hint=_uv_hint(text))
        return SourceError(f"no solution for {target.label}: {reason}", hint=_uv_hint(text))


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _source_flags(constraints: Sequence[str], sources: Sequence[str]) -> tuple[str, ...]:
    flags = ["--constraints", "constraints-spec.txt"] if constraints else []
    for name in sources:
        flags += ["--no-binary", name]
    return tuple(flags)


def closure_packages(pins: Iterable[Pin]) -> Iterator[ClosurePackage]:
    """Yield pins as the checks of a closure take them; a file of this machine has the size that it has."""
    for pin in pins:
        yield ClosurePackage(name=pin.name, version=pin.version, size=pin.size or _local_size(pin))


def _local_size(pin: Pin) -> int:
    path = Path(unquote(urlsplit(pin.url).path))
    return path.stat().st_size if pin.is_local and path.is_file() else 0


def _write_preferences(path: Path, preferences: Mapping[str, str]) -> None:
    """Write what uv takes for an earlier output of its own, whose versions it keeps."""
    if not preferences:
        return
    packages = (f'\n[[packages]]\nname = "{name}"\nversion = "{number}"\n' for name, number in preferences.items())
    path.write_text('lock-version = "1.0"\ncreated-by = "sealift"\n' + "".join(packages), encoding="utf-8")


def _read_pins(text: str, target: Target, sources: Sequence[str]) -> Iterator[Pin]:
    names = {canonicalize_name(name) for name in sources}
    for package in tomllib.loads(text).get("packages", ()):
        yield _read_pin(package, target, names)


def _read_pin(  # Any: uv's own output, each value is checked here
    package: Mapping[str, Any], target: Target, sources: Collection[str]
) -> Pin:
    name, number = canonicalize_name(str(package["name"])), str(package.get("version", ""))
    wheels = {_filename(wheel): wheel for wheel in package.get("wheels", ())}
    chosen = best_wheel(tuple(wheels), target)
    if chosen is None and name in sources and (sdist := package.get("sdist")):
        chosen = _filename(sdist)
        wheels = {chosen: sdist}
    if chosen is None:
        there = ", ".join(sorted(wheels)) or "only a source distribution, or a folder"
        raise SourceError(f"{name} {number}: no wheel fits {target.label}; there is: {there}")
    sha256 = wheels[chosen].get("hashes", {}).get("sha256")
    if not sha256:
        raise SourceError(f"{name} {number}: the index publishes no sha256 for {chosen}")
    url = wheels[chosen].get("url") or Path(wheels[chosen]["path"]).absolute().as_uri()
    size = int(wheels[chosen].get("size") or 0)
    others = {other: str(wheel.get("hashes", {}).get("sha256", "")) for other, wheel in wheels.items()}
    fitting = {other: digest for other, digest in others.items() if digest and tag_rank(other, target) is not None}
    return Pin(
        name=name,
        version=number,
        filename=chosen,
        url=str(url),
        sha256=str(sha256),
        size=size,
        alternatives={other: fitting[other] for other in sorted(fitting) if other != chosen},
    )


def _filename(wheel: Mapping[str, Any]) -> str:
    return str(
        wheel.get("name") or unquote(urlsplit(str(wheel.get("url") or wheel.get("path"))).path.rpartition("/")[2])
    )


def short_reason(text: str) -> str:
    """Return the gist of uv's error: its first cause and, where the chain is longer, its last."""
    text = re.sub(r"(,| and) we can conclude that[^.]*\.", ".", " ".join(_unwrapped(text)))
    text = re.sub(r"^error: (No solution found when resolving dependencies\s*)?", "", text).partition("hint: ")[0]
    causes = [part.strip().rstrip(":") for part in text.split("cause: ") if part.strip()]
    picked = causes[:1] if len(causes) < 2 else [causes[0], causes[-1]]
    return ": ".join(picked)[:800]


def _unwrapped(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("warning:")]


def _uv_hint(text: str) -> str | None:
    hint = " ".join(" ".join(_unwrapped(text)).split("hint: ")[1:2]).strip()
    return hint[:500] or None
