"""The closed side's part: the real commands in a real namespace, told as events; every failure with its own code."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bundler.rehearsal.closed_side import StepFailed, ask, cosine
from bundler.rehearsal.sandbox import find_isolation
from bundler.selfpack import template_root
from tests.factories import Key, make_key
from tests.factories_closed import ClosedBundle, make_closed_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, key: Key) -> ClosedBundle:
    """A bundle with our own wheel and no models."""
    return make_closed_bundle(tmp_path_factory.mktemp("bundle"), key)


def part(bundle: ClosedBundle, folder: Path, trust: Path | None = None) -> str:
    (folder / "home").mkdir()
    stage = {
        "bundle": str(bundle.tar),
        "pyz": str(bundle.pyz),
        "trust": str(trust or bundle.trust),
        "prefix": str(folder / "prefix"),
        "home": str(folder / "home"),
    }
    return json.dumps({"stage": stage, "questions": {}, "port": 8000, "closed": True})


def command(*before: str) -> list[str]:
    return [*find_isolation().prefix, *before, sys.executable, "-m", "bundler.rehearsal.closed_side"]


def play(words: list[str], text: str) -> tuple[int, list[Mapping[str, str]]]:
    done = subprocess.run(
        words, input=text, cwd=template_root().parent, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_whole_part(bundle: ClosedBundle, tmp_path: Path) -> None:
    code, events = play(command(), part(bundle, tmp_path))
    assert code == 0
    assert [event["step"] for event in events if event["event"] == "done"] == [
        "verify bundle",
        "install",
        "verify release",
    ]
    assert {event["event"] for event in events} == {"line", "done"}
    assert (tmp_path / "prefix/current").is_symlink()


def test_a_step_that_fails_ends_it_with_its_own_code(bundle: ClosedBundle, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    code, events = play(command(), part(bundle, tmp_path, stranger.allowed_signers))
    assert code == 4
    assert events[-1]["event"] == "failed"
    assert events[-1]["step"] == "verify bundle"
    assert "is not among the allowed signers" in events[-1]["text"]
    assert not (tmp_path / "prefix").exists()


def test_a_namespace_with_a_way_out_is_refused(bundle: ClosedBundle, tmp_path: Path) -> None:
    if shutil.which("ip") is None:
        pytest.skip("needs ip (iproute2)")
    links = "ip link add v0 type veth peer name v1 && ip link set v0 up && ip link set v1 up"
    route = f'{links} && ip route add default dev v0 && exec "$@"'
    code, events = play(command("sh", "-c", route, "sh"), part(bundle, tmp_path))
    assert code == 8
    assert events == [
        {
            "event": "failed",
            "step": "closed side",
            "code": 8,
            "text": "the namespace has a route to the outside",
        }
    ]
    assert not (tmp_path / "prefix").exists()


def test_a_signal_stops_the_running_step(bundle: ClosedBundle, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=template_root().parent
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(part(bundle, tmp_path))
        process.stdin.close()
        for line in process.stdout:
            if "virtual environment" in line:
                break
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 130
    assert not (tmp_path / "prefix/current").exists()
    assert not list((tmp_path / "prefix/releases").iterdir()), "the installer had the time to clean up"


class Teapot(BaseHTTPRequestHandler):
    """Answers everything with an error, as a server with a broken model does."""

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(503)
        self.end_headers()
        self.wfile.write(b'{"error": "loading"}')

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 # the base class's own name
        """Say nothing."""


@pytest.fixture
def teapot() -> Iterator[str]:
    """The address of such a server."""
    with HTTPServer(("127.0.0.1", 0), Teapot) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_error_of_the_server_fails_the_step(teapot: str) -> None:
    with pytest.raises(StepFailed) as caught:
        ask(teapot, "/v1/embeddings", {})
    assert (caught.value.step, caught.value.code) == ("ask /v1/embeddings", 9)
    assert caught.value.words == 'HTTP 503: {"error": "loading"}'


def test_no_server_fails_the_step() -> None:
    with pytest.raises(StepFailed, match=r"no answer: .*refused"):
        ask("http://127.0.0.1:1", "/v1/embeddings", {})


def test_cosine() -> None:
    assert cosine([1.0, 0.0], [2.0, 0.0]) == 1.0
    assert cosine([1.0, 0.0], [0.0, 3.0]) == 0.0
