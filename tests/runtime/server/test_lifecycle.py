"""Starting and stopping: readiness, drain, and the ends that have an exit code."""

import asyncio
import shutil
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from runtime.server.listening import bind
from tests.runtime.server.conftest import events_of, run_server, start_server, write_release

pytestmark = pytest.mark.models
MARKED_PROMPT = "zebra-prompt-4711"


@pytest.mark.slow
def test_sigterm_drains_and_no_prompt_is_in_the_log(release: Path, tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    running = start_server(
        release, log, "--model", "endless", "--model", "hcx", "--log-level", "debug", "--grace", "300"
    )
    running.wait_ready()
    assert running.ready["models"] == ["hcx", "endless"]
    texts: list[str] = []

    def stream() -> None:
        body = {"model": "endless", "prompt": MARKED_PROMPT, "stream": True, "max_tokens": 800}
        with (
            httpx.Client(base_url=running.url, trust_env=False, timeout=300) as own,
            own.stream("POST", "/v1/completions", json=body) as response,
        ):
            for text in response.iter_text():
                texts.append(text)
                begun.set()

    begun = threading.Event()
    thread = threading.Thread(target=stream)
    thread.start()
    assert begun.wait(30)
    assert running.stop() == 0
    thread.join(30)
    events = events_of("".join(texts))
    assert events[-1]["choices"][0]["finish_reason"] == "length"
    written = log.read_text(encoding="utf-8")
    assert "model endless is loaded" in written
    assert MARKED_PROMPT not in written


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_replies_do_not_wait_for_acknowledgements(host: str) -> None:
    """Nagle's algorithm would hold the body of each reply back until the client's kernel acknowledged the head."""

    async def accepted() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def see(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = bind(host, 0)
        async with await asyncio.start_server(see, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
            try:
                return await asyncio.wait_for(found, 30)
            finally:
                writer.close()

    assert asyncio.run(accepted()) == 1


@pytest.mark.slow
def test_a_stream_that_outlasts_the_grace_is_broken_off(release: Path, tmp_path: Path) -> None:
    running = start_server(release, tmp_path / "stderr.log", "--model", "endless", "--grace", "1")
    running.wait_ready()
    with (
        httpx.Client(base_url=running.url, trust_env=False, timeout=60) as own,
        own.stream("POST", "/v1/completions", json={"model": "endless", "prompt": "a", "stream": True}) as response,
    ):
        next(response.iter_text())
        started = time.monotonic()
        assert running.stop() == 0
        assert time.monotonic() - started < 15


@pytest.mark.slow
def test_not_ready_while_loading(release: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    running = start_server(release, tmp_path / "stderr.log", "--port", str(port))
    seen: set[tuple[int, int]] = set()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as own:
        while running.lines.empty() and running.process.poll() is None:
            try:
                seen.add((own.get("/health").status_code, own.get("/ready").status_code))
            except httpx.TransportError:
                time.sleep(0.02)
        running.wait_ready()
        assert own.get("/ready").status_code == 200
    assert (200, 503) in seen
    assert running.stop() == 0


@pytest.mark.parametrize(
    ("host", "port", "reason", "hint"),
    [
        ("127.0.0.1", "99999", "a port is a number from 0 to 65535", "choose another with --port"),
        ("192.0.2.1", "0", "Cannot assign requested address", "give an address of this host with --host"),
    ],
)
def test_where_nobody_can_listen(release: Path, host: str, port: str, reason: str, hint: str) -> None:
    done = run_server(release, "--host", host, "--port", port)
    told = f"error: can't listen on {host} port {port}: {reason}\nhint: {hint}\n"
    assert (done.returncode, done.stderr) == (9, told)


def test_a_taken_port_is_exit_9_before_models_load(release: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        started = time.monotonic()
        done = run_server(release, "--port", str(port))
        elapsed = time.monotonic() - started
    assert done.returncode == 9
    expected = (
        f"error: can't listen on 127.0.0.1 port {port}: Address already in use\nhint: choose another with --port\n"
    )
    assert done.stderr == expected
    assert done.stdout == ""
    assert elapsed < 3  # torch alone takes longer to import and load


def test_an_unknown_model_is_a_usage_error(release: Path) -> None:
    done = run_server(release, "--port", "0", "--model", "lama")
    assert (done.returncode, done.stderr) == (
        2,
        "error: this release has no model 'lama'\nhint: did you mean 'llama'?\n",
    )


@pytest.mark.slow
def test_a_model_that_cannot_load_ends_the_server(release: Path, tmp_path: Path) -> None:
    broken = tmp_path / "release"
    shutil.copytree(release / "models" / "hcx", broken / "models" / "hcx")
    write_release(broken, {"hcx": ("hcx", {"top_k": 5})})
    done = run_server(broken, "--port", "0")
    assert done.returncode == 9
    assert (
        "error: model 'hcx': settings: top_k: adapter 'hcx' has no such setting\nhint: did you mean 'top_p'?"
        in done.stderr
    )
    assert done.stdout == ""
