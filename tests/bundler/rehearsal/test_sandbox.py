"""The network is really closed where the sandbox says so, and nothing of the caller's environment goes along."""

import subprocess
import sys

import pytest

from bundler.rehearsal.sandbox import Isolation, empty_environment, find_isolation

CONNECT = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=5)"
NAMES = "import socket; print([name for _, name in socket.if_nameindex()])"


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    """The way of this host; the tests need one that the kernel enforces."""
    found = find_isolation()
    assert found.is_namespace, "the tests need unshare or bubblewrap"
    return found


def run(isolation: Isolation, code: str) -> "subprocess.CompletedProcess[str]":
    words = [*isolation.prefix, sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def test_only_loopback_is_there(isolation: Isolation) -> None:
    assert run(isolation, NAMES).stdout == "['lo']\n"


def test_a_connect_fails_at_once(isolation: Isolation) -> None:
    done = run(isolation, CONNECT)
    assert done.returncode == 1
    assert "OSError: [Errno 101] Network is unreachable" in done.stderr


def test_the_exit_status_comes_through(isolation: Isolation) -> None:
    assert run(isolation, "raise SystemExit(7)").returncode == 7


def test_the_search_is_done_once() -> None:
    assert find_isolation() is find_isolation()


def test_without_a_namespace_it_says_so() -> None:
    assert not Isolation(name="socket guard only", prefix=()).is_namespace


def test_nothing_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PIP_INDEX_URL", "x")
    monkeypatch.setenv("PATH", "/bin")
    assert empty_environment("/home/x") == {
        "HOME": "/home/x",
        "LANG": "C.UTF-8",
        "PATH": "/bin",
        "PIP_CONFIG_FILE": "/dev/null",
    }
