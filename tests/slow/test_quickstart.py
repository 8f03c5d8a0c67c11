"""The quickstart as a newcomer sees it: a fresh home, the real models, twice, stopped, without namespaces."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.factories_cli import ROOT, interrupt, wait_until_gone
from tests.factories_closed import program

pytestmark = [pytest.mark.slow, pytest.mark.models]
STEPS = (
    *("spec and key", "lock", "record answers", "rehearse and sign", "inspect", "verify bundle"),
    *("install", "verify release", "launch", "embed", "chat"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Newcomer:
    """Someone with an empty home and the tester's own way to an index."""

    home: Path
    sealift: Path

    def environment(self, **variables: str) -> dict[str, str]:
        """Return what the commands get: the tester's pip configuration, but neither cache nor settings."""
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "COV", "SSL_"))}
        fresh = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "PYTHONPATH": str(self.sealift)}
        return {key: value for key, value in {**kept, **fresh, **variables}.items() if value}

    def start(self, **variables: str) -> "subprocess.Popen[str]":
        """Start the quickstart as in a terminal of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "bundler.cli", "quickstart", "--directory", "demo"],
            cwd=self.home,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def quickstart(self, **variables: str) -> str:
        """Run it to its end, which has to be a good one; return what it printed."""
        process = self.start(**variables)
        told, errors = process.communicate(timeout=900)
        assert process.returncode == 0, told + errors
        wait_until_gone(process.pid)
        return told


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    """See :class:`Newcomer`; a copy of Sealift, since a lock pins it and the checkout may be worked on meanwhile."""
    folder = tmp_path_factory.mktemp("newcomer")
    for name in ("bundler", "manifests", "runtime", "templates"):
        shutil.copytree(ROOT / name, folder / "sealift" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "home").mkdir()
    return Newcomer(home=folder / "home", sealift=folder / "sealift")


@pytest.fixture(scope="module")
def first(newcomer: Newcomer) -> str:
    """What the first run printed."""
    return newcomer.quickstart()


def check_story(told: str) -> None:
    """Require every step once and in order, each with a duration, and answers that make sense."""
    lines = re.findall(r"^  ([a-z][a-z ]*?) +([0-9.]+ s|[0-9]+ min.*?)   (.*)$", told, re.MULTILINE)
    assert tuple(name for name, _, _ in lines) == STEPS
    details = {name: detail for name, _, detail in lines}
    alike, different = re.findall(r"-?[0-9]\.[0-9]{3}", details["embed"])
    assert float(alike) > float(different) + 0.2
    assert "Paris" in details["chat"]
    assert re.search(r"[0-9]+ wheels, 2 models, [0-9.]+ MB", details["lock"])
    assert re.search(r"\.bundle\.tar, [0-9.]+ MB", details["rehearse and sign"])
    assert re.search(r"^done in ", told, re.MULTILINE)


def test_the_first_run_tells_the_whole_story(newcomer: Newcomer, first: str) -> None:
    check_story(first)
    assert "closed side: network namespace" in first
    for name in ("bundle", "kit", "prefix"):
        (place,) = re.findall(rf"^{name} +(\S+)$", first, re.MULTILINE)
        assert (newcomer.home / place).exists()


def test_the_bundle_is_signed_for_stock_tools(newcomer: Newcomer, first: str, tmp_path: Path) -> None:
    (place,) = re.findall(r"^bundle +(\S+)$", first, re.MULTILINE)
    (kit,) = re.findall(r"^kit +(\S+)$", first, re.MULTILINE)
    tar = [program("tar"), "-xf", str(newcomer.home / place), "-C", str(tmp_path), "manifest.json", "manifest.json.sig"]
    subprocess.run(tar, check=True)
    words = ("-f", str(newcomer.home / kit / "allowed_signers"), "-I", "quickstart@example.com")
    verify = [program("ssh-keygen"), "-Y", "verify", *words, "-n", "sealift-bundle-v1"]
    with (tmp_path / "manifest.json").open("rb") as manifest:
        done = subprocess.run(
            [*verify, "-s", str(tmp_path / "manifest.json.sig")], stdin=manifest, capture_output=True, check=False
        )
    assert done.returncode == 0, done.stderr


def next_commands(told: str) -> list[str]:
    """Return the three commands that are to be tried next, as a person would type them."""
    lines = told.partition("try next:\n")[2].splitlines()
    # python3 of a terminal may be anything; here it has to be one that is new enough.
    return [line.strip().replace("python3 ", f"{sys.executable} ", 1) for line in lines]


def test_the_three_commands_work_as_they_are_printed(newcomer: Newcomer, first: str) -> None:
    status, launch, show_key = next_commands(first)
    run = {"cwd": newcomer.home, "env": newcomer.environment(), "text": True}
    shown = subprocess.run([program("sh"), "-c", status], capture_output=True, check=False, **run)  # type: ignore[call-overload] # a dict of mixed values
    assert re.fullmatch(r"live +1\.0\.0-[0-9a-f]{12}\n", shown.stdout), shown.stderr
    printed = subprocess.run([program("sh"), "-c", show_key], capture_output=True, check=False, **run)  # type: ignore[call-overload] # as above
    assert printed.stdout.startswith("256 SHA256:"), printed.stderr
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    server = subprocess.Popen(  # type: ignore[call-overload] # as above
        [program("sh"), "-c", f"exec {launch.replace('8000', str(port))}"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        **run,
    )
    try:
        names = ask_when_ready(f"http://127.0.0.1:{port}", server)
        assert names == ["minilm", "smollm2"]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
    wait_until_gone(server.pid)


def ask_when_ready(address: str, server: "subprocess.Popen[str]") -> list[str]:
    deadline = time.monotonic() + 180
    while True:
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server isn't ready"
        try:
            with urllib.request.urlopen(f"{address}/ready", timeout=5):  # noqa: S310 # a loopback address of our own
                break
        except OSError:
            time.sleep(0.2)
    with urllib.request.urlopen(f"{address}/v1/models", timeout=5) as answer:  # noqa: S310 # as above
        return sorted(model["id"] for model in json.load(answer)["data"])


def test_a_second_run_fetches_nothing(newcomer: Newcomer, first: str) -> None:
    lock = (newcomer.home / "demo/quickstart.lock").read_bytes()
    (bundle,) = (newcomer.home / "demo/out").glob("*.bundle.tar")
    with bundle.open("rb") as stream:
        before = stream.read(1 << 20)
    dead = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": ""}
    started = time.monotonic()
    check_story(newcomer.quickstart(**dead))
    assert time.monotonic() - started < 300
    assert (newcomer.home / "demo/quickstart.lock").read_bytes() == lock
    with bundle.open("rb") as stream:
        assert stream.read(1 << 20) == before, "the same key and the same lock give the same head, signature included"
    assert "done in" in first


@pytest.mark.parametrize(
    ("number", "begin"),
    [
        pytest.param(signal.SIGTERM, "... rehearse in ", id="rehearsal"),
        pytest.param(signal.SIGINT, "... install: link", id="install"),
        pytest.param(signal.SIGINT, "... launch: ", id="launch-interrupted"),
        pytest.param(signal.SIGTERM, "... launch: ", id="launch-terminated"),
    ],
)
@pytest.mark.usefixtures("first")
def test_a_signal_leaves_nothing_running(newcomer: Newcomer, number: int, begin: str) -> None:
    process = newcomer.start()
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.strip().startswith(begin):
            break
    else:
        process.communicate()
        pytest.fail(f"it never said {begin!r}:\n{''.join(said)}")
    time.sleep(1)
    words = interrupt(process, number)
    assert process.returncode == 130, words
    assert "Traceback" not in words
    wait_until_gone(process.pid)
    assert not list((newcomer.home / "demo").rglob("*.partial"))


@pytest.mark.usefixtures("first")
def test_a_host_without_namespaces_is_told_so(newcomer: Newcomer, tmp_path: Path) -> None:
    for name in ("ssh-keygen", "sh", "uname", "ldd", "getconf"):
        if (path := shutil.which(name)) is not None:
            (tmp_path / name).symlink_to(path)
    told = newcomer.quickstart(PATH=str(tmp_path))
    assert "closed side: socket guard only (this host has neither unshare nor bubblewrap)" in told
    check_story(told)
