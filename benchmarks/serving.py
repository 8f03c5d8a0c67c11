"""Serving on a CPU: many clients against one at a time, decoding against transformers, start and memory of servers."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.embedding_worker import texts
from benchmarks.measure import Bench, BenchmarkError, Command
from benchmarks.sections import Section, Sections
from benchmarks.serving_worker import PROMPT
from benchmarks.table import Row, duration, megabytes

CLIENTS: Final = (1, 8, 32)
DECODERS: Final = (1, 4, 8)
_GOALS: Final[Mapping[str, float]] = {"rps-1": 0.8, "rps-8": 1.0, "rps-32": 1.0, "tps-1": 0.9, "tps-4": 1.5, "tps-8": 2}
_SERVERS: Final = 4
_START_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is asked: requests for vectors, and tokens of an answer."""

    shape: str
    requests: int
    tokens: int


REAL: Final = Size(shape="real", requests=64, tokens=48)
TINY: Final = Size(shape="tiny", requests=8, tokens=6)


def serving(sections: Sections) -> Iterator[Row]:
    """Requests a second, tokens a second, time to ready, memory; nothing for a tiny payload."""
    if sections.work.size.model:
        yield from rows_of(sections.bench, sections.work.folder, REAL, sections.rounds)


def rows_of(bench: Bench, folder: Path, size: Size, rounds: int) -> Iterator[Row]:
    """Write the models where they aren't there yet, and measure all of it."""
    release = make_release(bench, folder, size)
    yield from _throughput(bench, release, size, rounds)
    yield from _starts(bench, release)


def make_release(bench: Bench, folder: Path, size: Size) -> Path:
    """Write a release of an embedder and a generator, without an environment of its own."""
    from tests.factories import make_manifest  # noqa: PLC0415 # the benchmark runs from the clone

    bench.report(f"write the {size.shape} models to serve")
    release = folder / "served"
    models = {"embedder": "bge-m3", "generator": "causal-lm"}
    for name, worker in (("embedder", "embedding_worker"), ("generator", "serving_worker")):
        bench.run((sys.executable, "-m", f"benchmarks.{worker}", "make", release / "models" / name, size.shape))
    from manifests.manifest import ModelEntry  # noqa: PLC0415 # as above

    entries = tuple(
        ModelEntry(name=name, adapter=adapter, path=f"models/{name}", format="safetensors", origin="bench")
        for name, adapter in models.items()
    )
    files = {f"models/{name}/config.json": (release / "models" / name / "config.json").read_bytes() for name in models}
    (release / "manifest.json").write_bytes(make_manifest(files, models=entries).encode())
    return release


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that is ready: its process, its URL, and the seconds from start to ``/ready``."""

    pid: int
    url: str
    seconds: float


@contextmanager
def running(bench: Bench, release: Path) -> Iterator[Running]:
    """Start a server and stop it again.

    Raises:
        BenchmarkError: It doesn't get ready.
    """
    command = [sys.executable, "-m", "runtime.server", "--release", str(release), "--port", "0"]
    start = time.perf_counter()
    with (bench.folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--log-level", "warning"], stdout=subprocess.PIPE, stderr=log, text=True, env=bench.environment
        )
    try:
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            words = (bench.folder / "server.log").read_text(encoding="utf-8", errors="replace")[-2000:]
            raise BenchmarkError(f"the server doesn't start:\n{words}")
        yield Running(pid=process.pid, url=json.loads(line)["url"], seconds=time.perf_counter() - start)
    finally:
        process.terminate()
        process.communicate(timeout=_START_SECONDS)


def _throughput(bench: Bench, release: Path, size: Size, rounds: int) -> Iterator[Row]:
    alone = _peer(bench, "embed", release / "models" / "embedder", size.requests)
    theirs = _peer(bench, "generate", release / "models" / "generator", 2, size.tokens)
    with running(bench, release) as server:
        bodies: list[Mapping[str, object]] = [{"model": "embedder", "input": t} for t in texts(size.requests)]
        ask(server.url, "/v1/embeddings", bodies[:1], 1)
        for clients in CLIENTS:
            seconds, _ = _typical(rounds, lambda count=clients: ask(server.url, "/v1/embeddings", bodies, count))  # type: ignore[misc]
            bench.report(f"{clients} clients: {size.requests / seconds:.1f} requests/s")
            yield _rate(f"rps-{clients}", size.requests / seconds, size.requests / alone["seconds"], _EMBED, clients)
        for clients in DECODERS:
            bodies = [{"model": "generator", "prompt": PROMPT, "max_tokens": size.tokens} for _ in range(clients)]
            seconds, made = _typical(rounds, lambda b=bodies: ask(server.url, "/v1/completions", b, len(b)))  # type: ignore[misc]
            bench.report(f"{clients} clients: {made / seconds:.1f} tokens/s")
            rate = theirs["tokens"] / theirs["seconds"]
            yield _rate(f"tps-{clients}", made / seconds, rate, "transformers generate, one at a time", clients)


_EMBED: Final = "the adapter alone, one text at a time"


def _peer(bench: Bench, action: str, folder: Path, *numbers: int) -> Mapping[str, float]:
    report = bench.folder / "serving.json"
    words: Command = (sys.executable, "-m", "benchmarks.serving_worker", action, folder, report, *map(str, numbers))
    bench.run(words)
    found: dict[str, float] = json.loads(report.read_bytes())
    bench.report(f"{action}, one at a time: {found['seconds']:.2f} s")
    return found


def _typical(rounds: int, once: Callable[[], tuple[float, int]]) -> tuple[float, int]:
    runs = [once() for _ in range(rounds)]
    return median(seconds for seconds, _ in runs), runs[0][1]


def ask(url: str, path: str, bodies: Sequence[Mapping[str, object]], clients: int) -> tuple[float, int]:
    """Have so many clients send all requests; return the seconds, and the tokens that were made.

    Raises:
        BenchmarkError: A request is refused.
    """
    import httpx  # noqa: PLC0415 # not needed by the other sections

    shares = [bodies[index::clients] for index in range(clients)]

    def client(share: Sequence[Mapping[str, object]]) -> int:
        made = 0
        with httpx.Client(base_url=url, timeout=600, trust_env=False) as session:
            for body in share:
                response = session.post(path, json=body)
                if response.status_code != httpx.codes.OK:
                    raise BenchmarkError(f"{path}: status {response.status_code}: {response.text[:200]}")
                document: dict[str, Any] = response.json()
                made += document["usage"].get("completion_tokens", 0)
        return made

    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        tokens = sum(pool.map(client, shares))
        return time.perf_counter() - start, tokens


def _starts(bench: Bench, release: Path) -> Iterator[Row]:
    """Measure one server, and then more beside it, whose weights the kernel holds once."""
    imports = bench.run((sys.executable, "-c", "import torch, transformers, starlette, uvicorn")).seconds
    with ExitStack() as stack:
        first = stack.enter_context(running(bench, release))
        alone = memory_of(first.pid)
        others = [stack.enter_context(running(bench, release)) for _ in range(_SERVERS - 1)]
        together = sum(memory_of(server.pid) for server in (first, *others))
    ready = Row(
        name="serve-ready",
        ours=duration(first.seconds),
        against="importing torch, transformers, starlette",
        peer=duration(imports),
        value=first.seconds,
        unit="s",
        sense="at most",
        goal=15,
        note="from the start of the process to /ready, both models loaded and asked; files in the page cache",
    )
    yield ready
    yield replace(
        ready,
        name=f"serve-memory-{_SERVERS}",
        ours=megabytes(together),
        against="one server",
        peer=megabytes(alone),
        value=together / alone,
        unit="x",
        goal=_SERVERS,
        note=f"{_SERVERS} servers over one release; shared pages are counted once (Pss)",
    )


def memory_of(pid: int) -> int:
    """Return a process's proportional share of memory (Pss) in bytes: what it shares is divided by who shares it.

    Raises:
        BenchmarkError: The system doesn't say.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError as error:
        raise BenchmarkError(f"/proc/{pid}/smaps_rollup: {error.strerror}") from error
    match = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    if match is None:
        raise BenchmarkError(f"/proc/{pid}/smaps_rollup: no Pss")
    return int(match[1]) * 1024


def _rate(name: str, mine: float, theirs: float, against: str, clients: int) -> Row:
    unit = "requests/s" if name.startswith("rps") else "tokens/s"
    return Row(
        name=f"serve-{name}",
        ours=f"{mine:.3g} {unit}",
        against=against,
        peer=f"{theirs:.3g} {unit}",
        value=mine / theirs,
        unit="x",
        sense="at least",
        goal=_GOALS[name],
        note="the clients are threads of the benchmark, on the same cores as the server" if clients == 1 else "",
    )


SERVING: Final[Mapping[str, Section]] = {"serving": serving}
"""Name -> section."""
