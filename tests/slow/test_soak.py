"""Thousands of mixed requests from many clients that come and go: no wrong answer, nothing left over, flat memory.

``SOAK_REQUESTS`` (10,000 unless told otherwise) and ``SOAK_CLIENTS`` (32) scale it.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import httpx
import pytest

from manifests.canonical import Json
from tests.factories_models import make_llama, make_xlmr
from tests.factories_soak import make_questions, soak
from tests.runtime.server.conftest import start_server, write_release

pytestmark = [pytest.mark.slow, pytest.mark.models]
REQUESTS: Final = int(os.environ.get("SOAK_REQUESTS", "10000"))
CLIENTS: Final = int(os.environ.get("SOAK_CLIENTS", "32"))
GROWTH: Final = 48 << 20
"""Bytes by which the heap may still grow after the first fifth of the requests: noise of allocators, not a leak."""


def gauges(url: str) -> dict[str, float]:
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def leftovers(url: str) -> dict[str, float]:
    """Return what is still in work; the request that asks is one of the open ones."""
    kinds = ("sealift_queue_depth", "sealift_active_requests", "sealift_open_requests")
    return {name: value for name, value in gauges(url).items() if name.startswith(kinds)}


def test_no_wrong_answer_no_leak_and_flat_memory(tmp_path: Path) -> None:
    make_xlmr(tmp_path / "models" / "bge-m3")
    make_llama(tmp_path / "models" / "llama")
    models: dict[str, tuple[str, Mapping[str, Json]]] = {
        "bge-m3": ("bge-m3", {"max_length": 64}),
        "llama": ("causal-lm", {"dtype": "float32"}),
    }
    release = write_release(tmp_path, models)
    questions = make_questions(release)
    server = start_server(release, tmp_path / "stderr.log", "--queue", "16", "--log-level", "warning")
    try:
        server.wait_ready()
        warm = soak(server.url, questions, requests=REQUESTS // 5, clients=CLIENTS, seed=1000)
        before = gauges(server.url)
        tally = soak(server.url, questions, requests=REQUESTS - REQUESTS // 5, clients=CLIENTS)
        deadline = time.monotonic() + 30
        while sum(leftovers(server.url).values()) > 1 and time.monotonic() < deadline:
            time.sleep(0.1)
        left, after = leftovers(server.url), gauges(server.url)
    finally:
        code = server.stop()
    assert code == 0
    assert [*warm.wrong, *tally.wrong] == []
    assert tally.ends["200"] > REQUESTS // 3
    assert tally.ends["400"] > 0
    assert tally.ends["left before"] > 0
    assert tally.ends["left within"] > 0
    assert left.pop("sealift_open_requests") == 1  # the one that asks
    assert set(left.values()) == {0}
    assert after["sealift_threads"] <= before["sealift_threads"] + 8  # the loop's pool may grow to its size
    assert after["sealift_resident_bytes"] - before["sealift_resident_bytes"] < GROWTH
    assert after["sealift_network_attempts_total"] == 0
    assert (tmp_path / "stderr.log").read_text(encoding="utf-8") == ""
