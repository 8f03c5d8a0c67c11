"""The distribution: what the wheel holds, and that it works from a clean environment, away from the checkout."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from uv import find_uv_bin

from bundler.packages.pipconfig import load_pip_config
from bundler.selfpack import runtime_pyz, runtime_wheel, self_digests
from manifests import __version__
from tests.factories_cli import ROOT, Builder, wheel_links, write_spec

# The versions that the tests run with, so that they come out of uv's cache.
REQUIREMENTS = ("cffi", "click", "cryptography", "jinja2", "markupsafe", "packaging", "pip", "pycparser", "uv")
DIGESTS = "import json; from bundler.selfpack import self_digests; print(json.dumps(dict(self_digests())))"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel and source distribution, built from the checkout by its own build backend."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A clean environment with the wheel in it, and nothing of the checkout."""

    python: Path
    folder: Path

    def run(self, *words: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
        """Run one of its programs somewhere else."""
        builder = Builder(folder=self.folder, links=(wheel_links(),), variables={"PYTHONPATH": "", **variables})
        program, *arguments = words
        return subprocess.run(
            [str(self.python.with_name(str(program))), *map(str, arguments)],
            env=builder.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory, distributions: dict[str, Path]) -> Installation:
    """See :class:`Installation`."""
    folder = tmp_path_factory.mktemp("clean")
    python, config = folder / "venv/bin/python", load_pip_config()
    environment = {**os.environ, **config.uv_environment}
    pins = [f"{name}=={version(name)}" for name in REQUIREMENTS]
    uv = [find_uv_bin(), "--quiet", "--no-config"]
    install = ["pip", "install", "--python", str(python), *config.uv_flags, *pins]
    for words in (
        ["venv", "--python", sys.executable, str(python.parents[1])],
        [*install, f"sealift[bundler] @ {distributions['wheel'].as_uri()}"],
    ):
        done = subprocess.run([*uv, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    (folder / "elsewhere").mkdir()
    return Installation(python=python, folder=folder / "elsewhere")


def test_what_the_wheel_holds(distributions: dict[str, Path]) -> None:
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        names = set(archive.namelist())
    tops = {name.split("/")[0] for name in names}
    assert tops == {"bundler", "manifests", "runtime", "templates", f"sealift-{__version__}.dist-info"}
    for top, pattern in (
        ("templates", "*"),
        ("manifests/bundles", "*.toml"),
        ("bundler/packages", "*.txt"),
        ("bundler/snapshots/converter", "*.txt"),
    ):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / top).glob(pattern) if path.is_file()}
        assert files
        assert files <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".pyc", ".lock"))]
    sources = {
        path.relative_to(ROOT).as_posix() for top in tops if "." not in top for path in (ROOT / top).rglob("*.py")
    }
    assert sources <= names


def test_what_the_source_distribution_holds(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "bundler/cli/__init__.py", "templates/install.sh.j2"} <= names
    assert not [name for name in names if name.startswith(("benchmarks/", ".venv/", ".ci/"))]


def test_the_commands_are_there(installation: Installation) -> None:
    assert installation.run("bundler", "--version").stdout == f"bundler, version {__version__}\n"
    assert installation.run("runtime", "--version").stdout == f"runtime {__version__}\n"
    helped = installation.run("bundler", "quickstart", "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("Usage: bundler quickstart [OPTIONS]\n")


def test_the_checkout_is_not_involved(installation: Installation) -> None:
    asked = installation.run("python", "-c", "import bundler, manifests; print(bundler.__file__, manifests.__file__)")
    paths = [Path(item) for item in asked.stdout.split()]
    assert len(paths) == 2
    assert all(path.is_relative_to(installation.python.parents[1]) for path in paths)


def test_what_a_bundle_takes_of_sealift_is_the_same_from_wheel_and_checkout(
    installation: Installation, tmp_path: Path
) -> None:
    code = "import sys; from bundler.selfpack import *; sys.stdout.buffer.write({}())"
    for name, expected in (("runtime_pyz", runtime_pyz()), ("runtime_wheel", runtime_wheel())):
        script = code.format(name)
        done = subprocess.run([str(installation.python), "-c", script], cwd=tmp_path, capture_output=True, check=True)
        assert done.stdout == expected
    asked = installation.run("python", "-c", DIGESTS)
    assert asked.stdout.strip() == json.dumps(dict(self_digests()))


def test_a_build_from_there(installation: Installation) -> None:
    assert installation.run("bundler", "init", "demo.toml").returncode == 0
    checked = installation.run("bundler", "check", "demo.toml")
    assert checked.stdout.startswith("demo.toml: good (demo 0.1.0 for "), checked.stderr
    write_spec(installation.folder / "demo.toml", "six==1.17.0")
    made = installation.run("bundler", "keygen", "release", "--identity", "release@example.com")
    assert made.returncode == 0, made.stderr
    built = installation.run("bundler", "build", "demo.toml", "--output", "out", "--key", "release")
    assert built.returncode == 0, built.stderr
    assert "... rehearse in a " in built.stderr
    (tar,) = (installation.folder / "out").glob("*.bundle.tar")
    (kit,) = (installation.folder / "out").glob("*.kit")
    assert (kit / "runtime.pyz").read_bytes() == runtime_pyz()
    verified = installation.run("runtime", "verify", tar, "--trust", kit / "allowed_signers")
    assert verified.returncode == 0, verified.stderr
    assert verified.stdout.startswith("good: demo-1.0.0-")
