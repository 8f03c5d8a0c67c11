"""Completion: made from the parser, asked of a real bash."""

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.cli import build_parser
from runtime.cli.completion import bash_script, zsh_script
from tests.factories_closed import ClosedBundle, Host, program

ASK = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_runtime_completion
printf '%s\\n' "${COMPREPLY[@]}"
"""


def commands() -> set[str]:
    actions = build_parser()._actions
    return {name for action in actions if isinstance(action, argparse._SubParsersAction) for name in action.choices}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["runtime", "veri"], {"verify"}),
        (["runtime", "trust", "re"], {"remove"}),
        (["runtime", "trust", "init", "--finger"], {"--fingerprint"}),
        (["runtime", "verify", "--rep"], {"--report"}),
        (["runtime", "completion", "z"], {"zsh"}),
        (["runtime", "install", "--prefix", "some"], {"somewhere"}),
        (["runtime", "install", "some"], {"somewhere"}),
    ],
)
def test_bash(tmp_path: Path, words: list[str], expected: set[str]) -> None:
    (tmp_path / "script").write_text(bash_script(build_parser()))
    (tmp_path / "somewhere").mkdir()
    done = subprocess.run(
        [program("bash"), "-c", ASK, "bash", "./script", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


def test_every_command_is_completed() -> None:
    for script in (bash_script(build_parser()), zsh_script(build_parser())):
        for name in commands():
            assert f'"{name}") candidates=' in script


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_zsh_reads_it(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(zsh_script(build_parser()))
    subprocess.run([program("zsh"), "-n", str(tmp_path / "script")], check=True)


def test_the_command_prints_it(host: Host, first: ClosedBundle) -> None:
    done = host.runtime(first.pyz, "completion", "bash")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0,
        "complete -o filenames -F _runtime_completion runtime",
    )
    assert host.runtime(first.pyz, "completion", "fish").returncode == 2
