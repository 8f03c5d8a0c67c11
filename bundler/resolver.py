"""Resolution: from requirements to one wheel per package, for the target and not for this host.

The resolver is uv (``uv pip compile``), behind a Protocol, so that another can give a second opinion.
"""

import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name
from uv import find_uv_bin

from bundler.accelerator import check_closure, cpu_constraints, torch_backend
from bundler.pipconfig import PipConfig
from bundler.process import Finished, run_program
from bundler.wheeltags import MACOS_VERSION, best_wheel
from manifests.errors import SourceError
from manifests.manifest import Target

_PYTORCH_PATH: Final = "/whl/"  # of PyTorch's own indexes, which uv asks for a torch backend


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One package of a resolution, and the one wheel of it that the target likes best.

    ``url`` is where the resolver found it, https: or file:. ``sha256`` is the index's own number for the wheel,
    ``size`` its bytes, 0 where the index doesn't say.
    """

    name: str
    version: str
    filename: str
    url: str
    sha256: str
    size: int = 0

    @property
    def purl(self) -> str:
        """The package url, with a local version's plus escaped."""
        return f"pkg:pypi/{self.name}@{self.version.replace('+', '%2B')}"

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

    def resolve(self, requirements: Sequence[str], target: Target, keep: Mapping[str, str]) -> Resolution:
        """Return the closure.

        Args:
            requirements: PEP 508.
            target: What the wheels must fit; the accelerator decides where torch comes from.
            keep: Name -> version to keep where it still satisfies everything.

        Raises:
            SourceError: A package or a wheel for the target doesn't exist, or an index can't be reached.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class UvResolver:
    """Resolution by ``uv pip compile``, with the indexes and find-links of the user's pip."""

    config: PipConfig

    def resolve(self, requirements: Sequence[str], target: Target, keep: Mapping[str, str]) -> Resolution:
        """Return the closure; see :class:`Resolver`."""
        with tempfile.TemporaryDirectory(prefix="sealift-") as name:
            folder = Path(name)
            (folder / "requirements.in").write_text("".join(f"{item}\n" for item in requirements), encoding="utf-8")
            _write_preferences(folder / "pylock.toml", keep)
            self._compile(folder, target, cpu_constraints(requirements, target, self.config.folders))
            pins = tuple(_read_pins((folder / "pylock.toml").read_text(encoding="utf-8"), target))
        check_closure([pin.name for pin in pins], target)
        return Resolution(pins=pins, resolver=f"uv {version('uv')}")

    def _compile(self, folder: Path, target: Target, constraints: tuple[str, ...]) -> None:
        """Try the user's own CPU wheels of torch first, then PyTorch's index."""
        if constraints:
            path = folder / "constraints.txt"
            path.write_text("".join(f"{item}\n" for item in constraints), encoding="utf-8")
            done = self._run(folder, target, ("--constraints", str(path)))
            if done.status == 0:
                return
            if "torch" not in done.errors:
                raise self._error(done, target)
        backend = torch_backend(target)
        done = self._run(folder, target, ("--torch-backend", backend) if backend else ())
        if done.status != 0:
            raise self._error(done, target)

    def _run(self, folder: Path, target: Target, flags: tuple[str, ...]) -> Finished:
        platform = target.platform
        command: list[str | Path] = [
            *(find_uv_bin(), "pip", "compile", "--no-config", "--quiet", "--no-header", "--format", "pylock.toml"),
            *("--python-platform", platform, "--python-version", target.python, "--only-binary", ":all:"),
            *self.config.uv_flags,
            *flags,
            *("requirements.in", "--output-file", "pylock.toml"),
        ]
        env = self.config.uv_environment
        if platform.endswith("apple-darwin"):
            env["MACOSX_DEPLOYMENT_TARGET"] = ".".join(map(str, MACOS_VERSION))
        return run_program(command, env=env, cwd=folder)

    def _error(self, done: Finished, target: Target) -> SourceError:
        text = self.config.redact(done.errors)
        reason = short_reason(text)
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


def _write_preferences(path: Path, preferences: Mapping[str, str]) -> None:
    """Write what uv takes for an earlier output of its own, whose versions it keeps."""
    if not preferences:
        return
    packages = (f'\n[[packages]]\nname = "{name}"\nversion = "{number}"\n' for name, number in preferences.items())
    path.write_text('lock-version = "1.0"\ncreated-by = "sealift"\n' + "".join(packages), encoding="utf-8")


def _read_pins(text: str, target: Target) -> Iterator[Pin]:
    for package in tomllib.loads(text).get("packages", ()):
        yield _read_pin(package, target)


def _read_pin(package: Mapping[str, Any], target: Target) -> Pin:  # Any: uv's own output, each value is checked here
    name, number = canonicalize_name(str(package["name"])), str(package.get("version", ""))
    wheels = {_filename(wheel): wheel for wheel in package.get("wheels", ())}
    chosen = best_wheel(tuple(wheels), target)
    if chosen is None:
        there = ", ".join(sorted(wheels)) or "only a source distribution, or a folder"
        raise SourceError(f"{name} {number}: no wheel fits {target.label}; there is: {there}")
    sha256 = wheels[chosen].get("hashes", {}).get("sha256")
    if not sha256:
        raise SourceError(f"{name} {number}: the index publishes no sha256 for {chosen}")
    url = wheels[chosen].get("url") or Path(wheels[chosen]["path"]).absolute().as_uri()
    size = int(wheels[chosen].get("size") or 0)
    return Pin(name=name, version=number, filename=chosen, url=str(url), sha256=str(sha256), size=size)


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
