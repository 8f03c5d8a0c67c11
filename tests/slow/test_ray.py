"""Ray for real, without a network: two hosts, one of which loses its power; answers and files are those without Ray."""

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.factories_bulk import embed, end, tree, write_texts
from tests.factories_closed import program
from tests.factories_ray import ADDRESSES, RayLab, ray_lab

pytestmark = [pytest.mark.slow, pytest.mark.models]
CLUSTER: Final = f"{ADDRESSES['a']}:6379"
OPTIONS: Final = ("--shard-rows", "6", "--threads", "1")
ASKED: Final = 800
# Four clients that ask one thing after another, each again until it is answered; a line on stdout for each answer.
CLIENT: Final = """
import json, sys, threading, time, urllib.request
url, count = sys.argv[1], int(sys.argv[2])
lock, answers, again = threading.Lock(), {}, [0]
def ask(number):
    route, body = (
        ("chat/completions",
         {"model": "chat", "messages": [{"role": "user", "content": f"hi {number}"}], "max_tokens": 8})
        if number % 2 else ("embeddings", {"model": "mini", "input": f"text {number}", "encoding_format": "base64"}))
    request = urllib.request.Request(f"{url}/v1/{route}", json.dumps(body).encode())
    for _ in range(200):
        try:
            with urllib.request.urlopen(request, timeout=20) as reply:
                document = json.load(reply)
            return document["choices"][0]["message"]["content"] if number % 2 else document["data"][0]["embedding"]
        except OSError:
            again[0] += 1
            time.sleep(0.2)
def work(first):
    for number in range(first, count, 4):
        found = ask(number)
        with lock:
            answers[number] = found
            print(number, file=sys.stderr, flush=True)
threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(json.dumps({"answers": answers, "again": again[0]}))
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[RayLab]:
    with ray_lab() as found:
        yield found


def client(lab: RayLab, url: str) -> "subprocess.Popen[str]":
    command = [program("nsenter"), f"--net=/run/netns/{lab.spaces['a']}", sys.executable, "-I", "-c", CLIENT]
    return subprocess.Popen(
        [*command, url, str(ASKED)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={}
    )


def answers_of(process: "subprocess.Popen[str]") -> Any:  # noqa: ANN401 - JSON
    words, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(words)


def journal_lines(output: Path) -> int:
    journal = output / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def vector(text: str) -> Any:  # noqa: ANN401 - an array
    return np.frombuffer(base64.b64decode(text), dtype="<f4")


def test_a_killed_run_goes_on_and_a_lost_host_changes_no_byte(lab: RayLab, tmp_path: Path) -> None:
    texts = write_texts(
        tmp_path / "in.jsonl", [f"the quick fox number {n} jumps over the lazy dog" for n in range(1500)]
    )
    code, words = end(embed(lab.prefix, texts, tmp_path / "one", *OPTIONS))
    assert code == 0, words
    output = tmp_path / "killed"
    words_of = ["embed", str(texts), "--output", str(output), *OPTIONS, "--engine", "ray"]
    run = lab.start("a", "killed", *words_of)
    lab.until(lambda: journal_lines(output) >= 5, "killed", run)
    run.kill()
    run.wait()
    assert not (output / "summary.json").exists()
    done = journal_lines(output)
    assert 5 <= done < 250
    lab.lose("a")  # what Ray left of its own
    lab.start_node("a", "head")
    lab.start_node("b", "node")
    run = lab.start("a", "resumed", *words_of, "--ray-address", CLUSTER, "--processes", "2")
    lab.until(lambda: journal_lines(output) >= done + 10 and bool(lab.named("b", "ray::ShardActor")), "resumed", run)
    lab.lose("b")
    assert run.wait(timeout=300) == 0, lab.log("resumed")[-4000:]
    assert f"{250 - done} of 250 shards to do" in lab.log("resumed")
    assert tree(output) == tree(tmp_path / "one")


def test_a_lost_host_costs_no_request(lab: RayLab) -> None:
    plain = lab.start("a", "plain", "launch", "--port", "8001")
    lab.wait("plain", '"event": "ready"', plain)
    expected = answers_of(client(lab, "http://127.0.0.1:8001"))["answers"]
    plain.send_signal(signal.SIGTERM)
    plain.wait()
    lab.lose("a")
    lab.start_node("a", "head again")
    lab.start_node("b", "node again")
    words = ["--engine", "ray", "--ray-address", CLUSTER, "--replicas", "2", "--host", ADDRESSES["a"]]
    served = lab.start("a", "served", "launch", *words)
    lab.wait("served", '"event": "ready"', served)
    replicas = {host: lab.named(host, "ray::ServeReplica:sealift:replica") for host in ADDRESSES}
    assert {host: len(pids) for host, pids in replicas.items()} == {"a": 1, "b": 1}
    for pid in (*replicas["a"], *replicas["b"]):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        assert {b"HF_HUB_OFFLINE=1", b"RAY_USAGE_STATS_ENABLED=0", b"RAY_AUTH_MODE=token"} <= set(environment)
        assert not [line for line in environment if line.startswith(b"HF_TOKEN")]
    asking = client(lab, f"http://{ADDRESSES['a']}:8000")
    assert asking.stderr is not None
    for _ in range(ASKED // 4):
        assert asking.stderr.readline()
    lab.lose("b")
    assert asking.poll() is None, "all was answered before the host was lost"
    found = answers_of(asking)
    assert sorted(found["answers"], key=int) == [str(number) for number in range(ASKED)]
    for number, answer in found["answers"].items():
        if int(number) % 2:
            assert answer == expected[number]
        else:
            np.testing.assert_allclose(vector(answer), vector(expected[number]), atol=2e-6)
    served.send_signal(signal.SIGTERM)
    assert served.wait(timeout=120) == 0, lab.log("served")[-4000:]
