"""A second opinion: resolution by pip-tools, in an environment of its own, for this host's own kind of target.

``pip-compile`` decides the versions; which wheel of a version is taken is decided by pip, told the target's tags. pip
evaluates markers for the interpreter that it runs on, so other targets than this host's are refused.
"""

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name
from uv import find_uv_bin

from bundler.packages.accelerator import check_closure, cpu_constraints
from bundler.packages.fetch import target_flags
from bundler.packages.pipconfig import PipConfig
from bundler.packages.resolver import Pin, Resolution, closure_packages
from bundler.process import run_program
from bundler.spec import IndexSpec, host_target
from bundler.store import Store
from manifests.digests import sha256_hex
from manifests.errors import SourceError, UsageError
from manifests.files import locked
from manifests.manifest import Target

_REQUIREMENTS: Final = Path(__file__).with_name("piptools.txt")
_COMPILE: Final = (
    *("-m", "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header"),
    *("--no-annotate", "--no-emit-options", "--resolver", "backtracking", "--pip-args", "--only-binary=:all:"),
)
_CHOOSE: Final = (
    *("-m", "pip", "--no-input", "--quiet", "--disable-pip-version-check", "install", "--dry-run", "--no-deps"),
    *("--ignore-installed", "--report", "report.json", "--target", "nowhere"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PipToolsResolver:
    """Resolution by ``pip-compile`` with the user's own pip configuration; ``store`` keeps its environment."""

    config: PipConfig
    store: Store
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
        """Return the closure; see :class:`bundler.packages.resolver.Resolver`.

        Raises:
            UsageError: The target isn't this host's kind, a package is bound to an index or is to be built.
            SourceError: There is no solution, or an index can't be reached.
        """
        self._check_possible(target, sources)
        python = _environment(self.store, self.config)
        with tempfile.TemporaryDirectory(prefix="sealift-") as name:
            folder = Path(name)
            _write_lines(folder / "requirements.in", requirements)
            limits = cpu_constraints([*requirements, *constraints], target, self.config.folders)
            _write_lines(folder / "constraints.txt", [*constraints, *limits])
            _write_lines(folder / "pins.txt", [f"{item}=={number}" for item, number in keep.items()])
            cache = ("--cache-dir", self.store.root / "pip-tools")
            inputs = ("--constraint", "constraints.txt", "--output-file", "pins.txt", "requirements.in")
            self._run([python, *_COMPILE, *cache, *inputs], folder, target)
            allowed = _read_hashes((folder / "pins.txt").read_text(encoding="utf-8"))
            _write_lines(folder / "chosen.txt", list(allowed))
            self._run([python, *_CHOOSE, *target_flags(target), "-r", "chosen.txt"], folder, target)
            report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        pins = tuple(sorted(_read_report(report, allowed), key=lambda pin: pin.name))
        check_closure(closure_packages(pins), target)
        return Resolution(pins=pins, resolver=f"pip-tools {_version()}")

    def _check_possible(self, target: Target, sources: Sequence[str]) -> None:
        hint = "uv resolves that: leave out --resolver"
        host = host_target()
        if _kind(target) != _kind(host):
            msg = f"pip-tools resolves for this host's own kind only, {_kind(host)}; the target is {_kind(target)}"
            raise UsageError(msg, hint="uv resolves for any target: leave out --resolver")
        if self.indexes:
            names = ", ".join(name for index in self.indexes for name in index.packages)
            raise UsageError(
                f"pip-tools can't bind packages to an index, as [[packages.index]] does: {names}", hint=hint
            )
        if sources:
            raise UsageError(f"pip-tools is asked for wheels only, not to build {', '.join(sources)}", hint=hint)

    def _run(self, command: Sequence[str | Path], folder: Path, target: Target) -> None:
        done = run_program(command, env={"PIP_DISABLE_PIP_VERSION_CHECK": "1"}, cwd=folder)
        if done.status == 0:
            return
        errors = self.config.redact(done.errors)
        lines = [line.removeprefix("ERROR: ").strip() for line in errors.splitlines() if line.strip()]
        wanted = [line for line in lines if re.match(r"Could not find|No matching|Cannot install|Can.t|Conflict", line)]
        reason = " ".join((wanted or lines)[-3:])[-800:]
        hint = "check the network and `pip config list`; or leave it to uv: without --resolver"
        raise SourceError(f"pip-tools finds no solution for {target.label}: {reason}", hint=hint)


def _kind(target: Target) -> str:
    """Return what pip can't be told otherwise: machine and system, and the Python that it runs on."""
    return f"{target.platform.partition('_2_')[0]} with Python {target.python}"


def _environment(store: Store, config: PipConfig) -> Path:
    """Return the interpreter of pip-tools' own environment, made on first use from pinned requirements."""
    content = _REQUIREMENTS.read_bytes()
    venv = store.root / "venvs" / f"pip-tools-{sha256_hex(content + sys.version.encode())[:16]}"
    python, complete = venv / "bin" / "python", venv / "complete"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with locked(venv.with_name(f"{venv.name}.lock")):
        if complete.exists():
            return python
        shutil.rmtree(venv, ignore_errors=True)
        index = ["--no-index"] if config.no_index else ["--index-strategy", "unsafe-best-match"]
        common = ["--quiet", "--no-progress", "--no-config"]
        flags = ["--python", str(python), "--require-hashes", "--no-deps", *index]
        for command in (
            ["venv", *common, "--python", sys.executable, str(venv)],
            ["pip", "install", *common, *flags, "-r", str(_REQUIREMENTS)],
        ):
            done = run_program([find_uv_bin(), *command], env=config.uv_environment)
            if done.status != 0:
                reason = config.redact(done.errors).strip()[-800:]
                hint = f"--resolver pip-tools needs pip-tools {_version()} from your index"
                raise SourceError(f"the environment of pip-tools can't be made: {reason}", hint=hint)
        complete.touch()
    return python


def _version() -> str:
    match = re.search(r"^pip-tools==(\S+)", _REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE)
    return match[1] if match else "of unknown version"


def _read_hashes(text: str) -> dict[str, set[str]]:
    """Return ``NAME==VERSION`` -> the sha256 digests that pip-compile wrote for it."""
    found: dict[str, set[str]] = {}
    for entry in re.sub(r"\\\n", " ", text).splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+==[^\s;]+)", entry):
            found[match[1]] = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
    return found


def _read_report(report: Mapping[str, Any], allowed: Mapping[str, set[str]]) -> Iterator[Pin]:
    # Any: pip's own report, https://pip.pypa.io/en/stable/reference/installation-report/
    hashes = {_key(*requirement.split("==", 1)): digests for requirement, digests in allowed.items()}
    for item in report["install"]:
        name, number = canonicalize_name(str(item["metadata"]["name"])), str(item["metadata"]["version"])
        url = str(item["download_info"]["url"])
        filename = unquote(urlsplit(url).path.rpartition("/")[2])
        sha256 = str(item["download_info"]["archive_info"]["hashes"]["sha256"])
        if sha256 not in hashes.get(_key(name, number), ()):
            msg = f"{name} {number}: pip takes {filename} with sha256 {sha256}, which pip-compile didn't list"
            raise SourceError(msg, hint="the index changed meanwhile: run the same command again")
        yield Pin(name=name, version=number, filename=filename, url=url, sha256=sha256)


def _key(name: str, number: str) -> tuple[str, str]:
    return canonicalize_name(name), number


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
