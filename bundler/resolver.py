"""Resolving requirements for the target: which version of what, and which one wheel of each."""

import re
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlparse

import uv
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from bundler.pipconfig import PipConfig, redact
from bundler.tags import MACOS, target_tags
from manifests.errors import SourceError
from manifests.manifest import Target

_TORCH_FAMILY: Final = frozenset({"torch", "torchvision", "torchaudio"})
_CUDA_NAMES: Final = re.compile(r"nvidia-.*|cuda-.*|triton|pytorch-triton.*|cupy.*")
_UNREACHABLE: Final = re.compile(
    r"error sending request|dns error|failed to fetch|could not connect|connection refused|timed out|tls", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package of a closure and the wheel that was chosen for it.

    ``size`` is in bytes, 0 where the index doesn't say; ``local`` means find-links rather than an index.
    """

    name: str
    version: str
    filename: str
    sha256: str
    size: int = 0
    local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A closure for one target, by name, and who resolved it."""

    pins: tuple[Pin, ...]
    resolver: str


class Resolver(Protocol):
    """The seam to the package indexes."""

    def resolve(self, requirements: Sequence[str], target: Target, keep: Mapping[str, str]) -> Resolution:
        """Return the closure of ``requirements`` for ``target``.

        Args:
            requirements: PEP 508 requirements.
            target: What the wheels must run on; the accelerator decides where torch comes from.
            keep: Versions to keep where they still satisfy: name -> version.

        Raises:
            SourceError: A requirement doesn't exist, has no wheel for the target, or an index can't be reached.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class UvResolver:
    """Resolution by ``uv pip compile``, with the indexes and find-links of the user's pip."""

    config: PipConfig

    def resolve(self, requirements: Sequence[str], target: Target, keep: Mapping[str, str]) -> Resolution:
        cpu_linux = target.accelerator == "cpu" and "manylinux" in target.platform
        constraints = [f"{name}=={version}" for name, version in keep.items()]
        found = self._local_torch(requirements, target) if cpu_linux else None
        if found is not None:
            constraints = [line for line in constraints if not line.startswith("torch==")] + [f"torch=={found}"]
        try:
            packages = self._compile(requirements, target, constraints, torch_backend=cpu_linux and found is None)
        except SourceError:
            if not keep:
                raise
            return self.resolve(requirements, target, {})  # what was kept no longer fits
        pins = tuple(_choose(package, target) for package in packages)
        if target.accelerator == "cpu":
            _refuse_cuda(pins, target)
        return Resolution(pins=pins, resolver=f"uv {_uv_version()}")

    def _local_torch(self, requirements: Sequence[str], target: Target) -> str | None:
        """Return the best CPU torch of the user's find-links that fits target and requirements, as a version."""
        specifiers = [
            parsed.specifier
            for text in requirements
            if canonicalize_name((parsed := Requirement(text)).name) == "torch"
        ]
        tags = target_tags(target)
        versions = [
            version
            for name, version, wheel_tags in _local_wheels(self.config.find_links)
            if name == "torch"
            and (version.local or "").startswith("cpu")
            and any(tag in tags for tag in wheel_tags)
            and all(specifier.contains(version, prereleases=True) for specifier in specifiers)
        ]
        return str(max(versions)) if versions else None

    def _compile(
        self, requirements: Sequence[str], target: Target, constraints: Sequence[str], *, torch_backend: bool
    ) -> list[Mapping[str, Any]]:
        """Run uv; where torch could only come from a CUDA index, ask again with PyTorch's own CPU index."""
        packages = self._run(requirements, target, constraints, backend=None)
        names = {package["name"] for package in packages}
        if not (torch_backend and names & _TORCH_FAMILY):
            return packages
        try:
            return self._run(requirements, target, constraints, backend="cpu")
        except SourceError as error:
            msg = (
                "accelerator cpu: the user's find-links hold no CPU wheel of torch for "
                f"{target.label}, and PyTorch's own CPU index could not serve one: {error.message}"
            )
            raise SourceError(
                msg, hint="put a torch +cpu wheel into a folder and name it in pip's find-links"
            ) from None

    def _run(
        self, requirements: Sequence[str], target: Target, constraints: Sequence[str], *, backend: str | None
    ) -> list[Mapping[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="sealift-resolve-") as folder:
            work = Path(folder)
            (work / "requirements.in").write_text("".join(f"{line}\n" for line in requirements), encoding="utf-8")
            (work / "constraints.txt").write_text("".join(f"{line}\n" for line in constraints), encoding="utf-8")
            command = [
                *(uv.find_uv_bin(), "pip", "compile", "--quiet", "--no-progress", "--color", "never", "--no-config"),
                *("--format", "pylock.toml", "--output-file", "pylock.toml", "--only-binary", ":all:"),
                *("--python-platform", target.platform, "--python-version", target.python),
                *(("--torch-backend", backend) if backend else ()),
                *("--constraints", "constraints.txt", "requirements.in"),
            ]
            environment = self.config.for_uv() | {"MACOSX_DEPLOYMENT_TARGET": ".".join(map(str, MACOS))}
            done = subprocess.run(
                command,
                cwd=work,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                stdin=subprocess.DEVNULL,
            )
            if done.returncode:
                raise explain_failure(done.stderr, target)
            data = tomllib.loads((work / "pylock.toml").read_text(encoding="utf-8"))
        packages: list[Mapping[str, Any]] = data.get("packages", [])
        return packages


def explain_failure(text: str, target: Target) -> SourceError:
    """Return the error for what uv said: its own words without ornaments and secrets, and what to do."""
    words = re.sub(r"^[\s×╰─▶│├╴]+", "", redact(text).strip(), flags=re.MULTILINE)
    words = re.sub(r"\s*\n\s*", " ", words)[:1500] or "uv gave no reason"
    if _UNREACHABLE.search(words):
        return SourceError(f"an index can't be reached: {words}", hint="check the network, proxy and pip's index-url")
    if "was not found in" in words:
        return SourceError(f"a requirement doesn't exist: {words}", hint="check its name, and pip's index-url")
    if "no wheels" in words or "matching platform" in words or "no usable wheels" in words:
        return SourceError(
            f"no wheel for {target.label}: {words}", hint="choose a version that has wheels for the target"
        )
    return SourceError(f"the requirements can't be resolved for {target.label}: {words}")


def parse_requirement(text: str) -> Requirement:
    """Parse a PEP 508 requirement.

    Raises:
        ValueError: It isn't one; the message says why.
    """
    try:
        return Requirement(text)
    except InvalidRequirement as error:
        raise ValueError(f"{text!r} is not a requirement: {str(error).splitlines()[0]}") from None


def _choose(package: Mapping[str, Any], target: Target) -> Pin:
    """Return the one wheel of a package that ranks best on the target."""
    tags = target_tags(target)
    name, version = str(package["name"]), str(package["version"])
    ranked = []
    for wheel in package.get("wheels", ()):
        filename = _filename(wheel)
        ranks = [tags[tag] for tag in parse_wheel_filename(filename)[3] if tag in tags]
        if ranks and "sha256" in wheel.get("hashes", {}):
            ranked.append((min(ranks), filename, wheel))
    if not ranked:
        there = ", ".join(sorted(_filename(wheel) for wheel in package.get("wheels", ()))) or "only a source archive"
        raise SourceError(f"{name} {version}: no wheel for {target.label}; what exists: {there}")
    _, filename, best = min(ranked, key=lambda item: (item[0], item[1]))
    return Pin(
        name=canonicalize_name(name),
        version=version,
        filename=filename,
        sha256=best["hashes"]["sha256"],
        size=int(best.get("size", 0)),
        local="path" in best or urlparse(best.get("url", "")).scheme in {"", "file"},
    )


def _filename(wheel: Mapping[str, Any]) -> str:
    where = wheel.get("name") or wheel.get("path") or urlparse(wheel["url"]).path
    return unquote(str(where)).rsplit("/", 1)[-1]


def _refuse_cuda(pins: Sequence[Pin], target: Target) -> None:
    unexpected = [pin for pin in pins if _CUDA_NAMES.fullmatch(pin.name)]
    if unexpected:
        names = ", ".join(f"{pin.name} {pin.version} ({pin.size} bytes)" for pin in unexpected)
        msg = f"accelerator cpu, but the closure for {target.label} holds {len(unexpected)} CUDA packages: {names}"
        raise SourceError(msg, hint="pin torch to a version that has a CPU wheel, or set target.accelerator")


def _local_wheels(find_links: Sequence[str]) -> Iterator[tuple[str, Version, frozenset[Any]]]:
    """Yield name, version and tags of the wheels in those find-links that are folders."""
    for location in find_links:
        folder = Path(unquote(urlparse(location).path) if location.startswith("file:") else location)
        if folder.is_dir():
            for path in folder.glob("*.whl"):
                try:
                    name, version, _, tags = parse_wheel_filename(path.name)
                except InvalidWheelFilename:
                    continue
                yield name, version, tags


def _uv_version() -> str:
    from importlib.metadata import version  # noqa: PLC0415 # only needed once, and slow to import

    return version("uv")
