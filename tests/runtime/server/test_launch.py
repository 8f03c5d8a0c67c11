"""``runtime launch`` from end to end: the options reach the server, the log rotates in its place, health finds it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from manifests.errors import UsageError
from manifests.manifest import MANIFEST_NAME, manifest_digest
from runtime.health import check_health
from runtime.launch import _log_options
from runtime.layout import RECEIPT_NAME, Prefix
from tests.factories_models import make_bert
from tests.runtime.server.conftest import PROJECT, ServerProcess, write_release

KEY = "a-key-that-is-long-enough"


@pytest.fixture
def prefix(tmp_path: Path) -> Prefix:
    """A prefix with a live release of one model, in the tester's own environment."""
    staged = tmp_path / "releases" / "staged"
    make_bert(staged / "models" / "bert")
    write_release(staged, {"bert": ("sentence-transformer", {})})
    (staged / "config").mkdir()
    variables = "LOG_LEVEL=info\nLOG_FILE=${PREFIX}/var/logs/sealift.log\nLOG_JSON=true\n"
    (staged / "config" / "offline.env").write_text(variables, encoding="utf-8")
    (staged / "venv").symlink_to(sys.prefix)
    (staged / RECEIPT_NAME).write_text("{}")
    release = staged.rename(staged.with_name(f"1.0.0-{manifest_digest((staged / MANIFEST_NAME).read_bytes())[:12]}"))
    (tmp_path / "current").symlink_to(release)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "keys").write_text(f"{KEY}\n", encoding="utf-8")
    return Prefix(path=tmp_path)


@pytest.fixture
def launched(prefix: Prefix) -> Iterator[ServerProcess]:
    words = ("launch", "bert", "--prefix", str(prefix.path), "--port", "0", "--api-keys", "etc/keys", "--queue", "3")
    with (prefix.path / "stderr.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "runtime.cli", *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=prefix.path,
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
        )
    running = ServerProcess(process)
    running.wait_ready()
    yield running
    if process.poll() is None:
        running.stop()


@pytest.mark.models
@pytest.mark.slow
def test_launch_keys_log_and_health(prefix: Prefix, launched: ServerProcess) -> None:
    assert httpx.get(f"{launched.url}/v1/models", trust_env=False).status_code == 401
    answer = httpx.post(
        f"{launched.url}/v1/embeddings",
        json={"model": "bert", "input": "zebra-prompt-4711"},
        headers={"Authorization": f"Bearer {KEY}"},
        trust_env=False,
    )
    assert answer.status_code == 200
    health = {check.name: check for check in check_health(prefix)}
    assert health["server 0"].found == f"{launched.url} is ready, process {launched.process.pid}"
    assert health["server 0 bert"].found.startswith("no probes; it answers; device cpu: ")
    lines = [json.loads(line) for line in (prefix.var / "logs/server.log").read_text(encoding="utf-8").splitlines()]
    assert lines[-1]["message"].startswith("POST /v1/embeddings 200 in ")
    assert not any("zebra" in line["message"] for line in lines)
    assert launched.stop() == 0
    assert list((prefix.var / "run").glob("server-*.json")) == []
    assert {check.name: check.found for check in check_health(prefix)}["server"] == "none runs from this prefix"


@pytest.mark.models
@pytest.mark.slow
def test_health_knows_a_server_that_was_killed(prefix: Prefix, launched: ServerProcess) -> None:
    launched.process.send_signal(signal.SIGKILL)
    launched.process.wait(30)
    launched.reader.join(10)
    if launched.process.stdout is not None:
        launched.process.stdout.close()
    failed = [check.found for check in check_health(prefix) if check.verdict == "failed"]
    assert failed == [f"process {launched.process.pid} has ended without a farewell"]


def test_the_log_s_variables() -> None:
    assert _log_options({}) == []
    given = {"LOG_LEVEL": "WARNING", "LOG_FILE": "/srv/var/logs/sealift.log", "LOG_JSON": "TRUE"}
    assert _log_options(given) == ["--log-level", "warning", "--log-file", "/srv/var/logs/server.log", "--log-json"]
    assert _log_options({"LOG_FILE": "", "LOG_JSON": "false"}) == []
    with pytest.raises(UsageError, match=r"^LOG_JSON: expected true or false, got 'perhaps'$"):
        _log_options({"LOG_JSON": "perhaps"})
