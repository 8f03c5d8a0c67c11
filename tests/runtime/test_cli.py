"""The command line: help and version of every command, JSON, exit codes, old Pythons."""

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from manifests import __version__
from tests.factories_closed import ClosedBundle, Host, pyenv_python

COMMANDS = ("preflight", "install", "verify", "launch", "status", "rollback")
OLD = [version for version in ("2.7", "3.6", "3.7", "3.8", "3.9", "3.10") if pyenv_python(version)]
NEW = [version for version in ("3.12", "3.13", "3.14") if pyenv_python(version)]
WORDS = (
    "error: runtime.pyz needs Python 3.11 or newer, this is Python {version} ({path})\n"
    "hint: run it with another interpreter, such as python3.11 runtime.pyz ...\n"
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_version_of_every_command(host: Host, first: ClosedBundle, command: str) -> None:
    helped = host.runtime(first.pyz, command, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"usage: runtime {command} ")
    assert "--json" in helped.stdout
    version = host.runtime(first.pyz, command, "--version")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"runtime {__version__}\n", "")


def test_help_lists_every_command(host: Host, first: ClosedBundle) -> None:
    helped = host.runtime(first.pyz, "--help")
    assert helped.returncode == 0
    listed = {line.split()[0] for line in helped.stdout.splitlines() if line.startswith("    ") and line[4] != " "}
    assert set(COMMANDS) <= listed
    assert host.runtime(first.pyz, "--version").stdout == f"runtime {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["instal"], "invalid choice: 'instal'"),
        (["status"], "the following arguments are required: --prefix"),
        (["verify", "--quick", "--deep"], "not allowed with argument"),
        (["install", "b", "--prefix", "p", "--trust", "t", "--signatures", "0"], "must be at least 1"),
        (["install", "b", "--prefix", "p", "--trust", "t", "--signatures", "x"], "--signatures: must be a number"),
    ],
)
def test_usage_errors(host: Host, first: ClosedBundle, words: list[str], message: str) -> None:
    done = host.runtime(first.pyz, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_status_of_nothing(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    done = host.runtime(first.pyz, "status", "--prefix", tmp_path / "none")
    assert (done.returncode, done.stdout) == (0, f"nothing is installed in {tmp_path}/none\n")
    document = json.loads(host.runtime(first.pyz, "status", "--prefix", tmp_path / "none", "--json").stdout)
    assert document == {"live": None, "prefix": f"{tmp_path}/none", "releases": {}}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("command", ["rollback", "launch", "verify"])
def test_commands_on_an_empty_prefix(tmp_path: Path, host: Host, first: ClosedBundle, command: str) -> None:
    done = host.runtime(first.pyz, command, "--prefix", tmp_path / "none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {tmp_path}/none: nothing is installed here\n"
        f"hint: runtime install BUNDLE --prefix {tmp_path}/none --trust ALLOWED_SIGNERS\n"
    )
    assert not (tmp_path / "none").exists()


def test_launch_without_models(installed: Path, host: Host, first: ClosedBundle) -> None:
    done = host.runtime(first.pyz, "launch", "--prefix", installed)
    assert (done.returncode, done.stderr) == (9, "error: the release has no models to launch\n")


def test_a_damaged_state_is_named(tmp_path: Path, host: Host, first: ClosedBundle) -> None:
    (tmp_path / "state.json").write_text("{")
    done = host.runtime(first.pyz, "install", first.tar, "--prefix", tmp_path, "--trust", first.trust)
    assert done.returncode == 5
    assert f"error: {tmp_path}/state.json: not JSON: " in done.stderr


def test_a_reader_that_goes_away_is_no_error(installed: Path, host: Host, first: ClosedBundle) -> None:
    words = host.runtime_words(first.pyz, "status", "--prefix", installed)
    script = 'sleep 0.1; exec "$@"'
    process = host.start("sh", "-c", script, "sh", *words)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=30) == 0
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.mark.parametrize("version", OLD)
def test_a_really_old_python_gets_one_line_and_a_hint(first: ClosedBundle, version: str) -> None:
    python = pyenv_python(version)
    done = subprocess.run(
        [str(python), str(first.pyz), "install", "x"], capture_output=True, text=True, check=False, env={}
    )
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == WORDS.format(version=version, path=python)


def test_a_python_that_says_it_is_old(first: ClosedBundle) -> None:
    code = (
        "import runpy, sys; sys.version_info = (3, 9, 0, 'final', 0); "
        f"runpy.run_path({str(first.pyz)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (6, WORDS.format(version="3.9", path=sys.executable))


def test_the_entry_parses_for_old_pythons(first: ClosedBundle) -> None:
    with zipfile.ZipFile(first.pyz) as archive:
        source = archive.read("__main__.py").decode("ascii")
    ast.parse(source, feature_version=(3, 6))


@pytest.mark.parametrize("version", NEW)
def test_newer_pythons_verify_too(first: ClosedBundle, installed: Path, version: str) -> None:
    python = str(pyenv_python(version))
    done = subprocess.run(
        [python, "-W", "error", "-I", "-S", str(first.pyz), "verify", "--prefix", str(installed)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
