"""The documents: the commands that they show exist, their links lead somewhere, no path of ours is in them."""

import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PROGRAMS: Final = {"bundler": "bundler.cli", "runtime": "runtime.cli"}
LINK: Final = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
# Written in pieces, so that this file doesn't find itself.
HOSTS: Final = [
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "download." + "pytorch.org",
    "conda" + ".anaconda.org",
    "huggingface" + ".co/",
    "registry." + "npmjs",
]
PATHS: Final = ["/" + "work/", "/opt/" + "wheels", "/opt/" + "pypi", "/root" + "/", "/home/" + "user"]


def tracked() -> list[Path]:
    """Return the files of the repository; those of a source distribution without git are all."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],  # noqa: S607 # whatever git there is
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    paths = [ROOT / name for name in done.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


FILES: Final = tracked()
# Decisions and the changelog speak of what was and of what will be.
PAGES: Final = sorted(
    path
    for path in FILES
    if path.suffix in {".md", ".j2"} and path.parent.name != "adr" and path.name != "CHANGELOG.md"
)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(text: str) -> Iterator[str]:
    """Yield the lines of commands in a page: those of fenced blocks without a language, or of shell's."""
    for block in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if block[1] in {"", "sh", "bash", "console"}:
            yield from block[2].splitlines()


def inline(text: str) -> Iterator[str]:
    """Yield what stands between backticks outside of blocks."""
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def commands_of(page: Path) -> list[tuple[str, str, list[str]]]:
    """Return program, command and options of every command that a page shows."""
    text = page.read_text(encoding="utf-8")
    found = []
    for line in (*fenced(text), *inline(text)):
        plain = re.sub(r"^(?:\$ )?(?:python3? -I -S \S*runtime\.pyz)", "runtime", line.strip()).split(" #")[0]
        match = re.match(r"(bundler|runtime) (trust [a-z]+|[a-z-]+)(?: .*)?$", plain)
        if match and "|" not in plain:
            options = re.findall(r"(?<=\s)--[a-z][a-z-]*", plain)
            found.append((match[1], match[2], options))
    return found


@functools.cache
def help_of(program: str, command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", PROGRAMS[program], *command.split(), "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for program, command, options in commands_of(page):
        helped = help_of(program, command)
        assert helped, f"{name_of(page)}: there is no `{program} {command}`"
        for option in options:
            assert re.search(rf"{option}\b(?!-)", helped), f"{name_of(page)}: `{program} {command}` has no {option}"


def test_the_pages_show_commands_at_all() -> None:
    shown = {(program, command) for page in PAGES for program, command, _ in commands_of(page)}
    assert {("bundler", name) for name in ("init", "check", "lock", "build", "keygen", "sign", "inspect")} <= shown
    assert {("runtime", name) for name in ("preflight", "install", "verify", "launch", "status", "rollback")} <= shown


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as they are made on the web: small letters, hyphens for the rest."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [path for path in FILES if path.suffix == ".md"], ids=name_of)
def test_relative_links_resolve(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path) if path else page
        assert there.exists(), f"{name_of(page)}: {target} leads nowhere"
        assert not anchor or anchor in anchors_of(there), f"{name_of(page)}: {target} has no such heading"


def test_every_exit_code_is_explained() -> None:
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    table = text.partition("## Exit codes")[2].partition("\n## ")[0]
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == [*range(11), 130]


def test_no_registry_s_host_and_no_path_of_ours() -> None:
    found = []
    for path in FILES:
        data = path.read_bytes()
        found += [f"{name_of(path)}: {word}" for word in (*HOSTS, *PATHS) if word.encode() in data]
    assert found == []
