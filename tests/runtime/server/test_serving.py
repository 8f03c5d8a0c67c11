"""What an operator switches on: keys, models on demand, reload, limits; and what a person sees at ``/``."""

import asyncio
import html.parser
import json
import re
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from manifests.canonical import Json
from manifests.errors import AdapterError, UsageError
from manifests.manifest import Probe, parse_manifest
from runtime.adapters import load_adapter
from runtime.adapters.base import Adapter, Embedder, ModelConfig
from runtime.adapters.sentence_transformer import SentenceTransformerAdapter
from runtime.server.asking import ask
from runtime.server.loading import check_probes, serve_model
from runtime.server.metrics import Metrics
from runtime.server.models import plan_offer
from tests.factories_models import make_bert, make_llama
from tests.runtime.server.conftest import ServerProcess, events_of, run_server, start_server, write_release

pytestmark = pytest.mark.models
KEY: Final = "a-key-that-is-long-enough"
MODELS: Final[Mapping[str, tuple[str, Mapping[str, Json]]]] = {
    "bert": ("sentence-transformer", {}),
    "llama": ("causal-lm", {"dtype": "float32"}),
}
CHAT: Final = {"model": "llama", "messages": [{"role": "user", "content": "go"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prefix with one release of two models; its ``etc/`` may be written."""
    prefix = tmp_path_factory.mktemp("prefix")
    release = prefix / "releases" / "1.0.0-abc"
    make_bert(release / "models" / "bert")
    make_llama(release / "models" / "llama")
    write_release(release, MODELS)
    (prefix / "etc").mkdir()
    return prefix


@pytest.fixture(scope="module")
def log(prefix: Path) -> Path:
    return prefix / "var" / "logs" / "server.log"


@pytest.fixture(scope="module")
def guarded(prefix: Path, log: Path) -> Iterator[ServerProcess]:
    """A server with keys, a log of JSON lines, and room for one model at a time."""
    keys = prefix / "etc" / "keys"
    keys.write_text(f"{KEY}\n", encoding="utf-8")
    options = ("--api-keys", str(keys), "--on-demand", "--max-loaded", "1", "--log-file", str(log), "--log-json")
    running = start_server(prefix / "releases" / "1.0.0-abc", prefix / "stderr.log", *options)
    try:
        running.wait_ready()
        yield running
    finally:
        code = running.stop()
    assert code == 0


@pytest.fixture
def keyed(guarded: ServerProcess) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=guarded.url, timeout=60, trust_env=False, headers=headers) as session:
        yield session


def logged(log: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def wait_for_log(log: Path, text: str, times: int) -> None:
    """Wait until ``text`` stands in the log so many times."""
    deadline = time.monotonic() + 30
    while log.read_text(encoding="utf-8").count(text) < times:
        assert time.monotonic() < deadline, log.read_text(encoding="utf-8")
        time.sleep(0.05)


def test_nothing_but_health_without_a_key(guarded: ServerProcess) -> None:
    with httpx.Client(base_url=guarded.url, trust_env=False) as session:
        assert session.get("/health").json() == {"status": "ok"}
        assert session.get("/ready").status_code == 200
        for path in ("/", "/v1/models", "/metrics"):
            refused = session.get(path, headers={"Authorization": "Bearer wrong-but-long-enough"})
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"].startswith("Basic realm=")
            assert refused.json()["error"]["code"] == "invalid_api_key"
        assert session.post("/v1/chat/completions", json=CHAT).status_code == 401
        assert session.get("/", auth=("anyone", KEY)).status_code == 200


def test_models_are_swapped_by_request(keyed: httpx.Client) -> None:
    def loaded() -> list[str]:
        names: list[str] = keyed.get("/ready").json()["loaded"]
        return names

    embedding = {"model": "bert", "input": "the cat"}
    first = keyed.post("/v1/embeddings", json=embedding).json()["data"][0]["embedding"]
    assert loaded() == ["bert"]
    answer = keyed.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"]
    assert loaded() == ["llama"]
    again = keyed.post("/v1/embeddings", json=embedding).json()["data"][0]["embedding"]
    assert again == first
    assert keyed.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"] == answer
    assert [model["ready"] for model in keyed.get("/v1/models").json()["data"]] == [False, True]
    page = keyed.get("/").text
    assert "not loaded; it is when it is asked for" in page


def test_many_may_wait_for_a_model_that_is_being_loaded(guarded: ServerProcess, keyed: httpx.Client) -> None:
    keyed.post("/v1/embeddings", json={"model": "bert", "input": "the cat"})
    assert keyed.get("/ready").json()["loaded"] == ["bert"]

    async def ask_all() -> list[int]:
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=guarded.url, trust_env=False, timeout=60, headers=headers) as session:
            asked = [session.post("/v1/chat/completions", json=CHAT) for _ in range(12)]
            answers = await asyncio.gather(*asked, session.get("/health"))
        return [answer.status_code for answer in answers]

    assert asyncio.run(ask_all()) == [200] * 13
    assert keyed.get("/ready").json()["loaded"] == ["llama"]


def test_settings_and_keys_are_read_again_without_a_restart(
    guarded: ServerProcess, keyed: httpx.Client, prefix: Path, log: Path
) -> None:
    own, keys = prefix / "etc" / "bert.yaml", prefix / "etc" / "keys"
    text = {"model": "bert", "input": "the cat sleeps " * 4}
    assert keyed.post("/v1/embeddings", json=text).json()["truncated"] == 0
    own.write_text("max_length: 8\n", encoding="utf-8")
    keys.write_text(f"{KEY}\nanother-key-of-ours\n", encoding="utf-8")
    guarded.process.send_signal(signal.SIGHUP)
    wait_for_log(log, '"message": "reloaded"', 1)
    assert keyed.post("/v1/embeddings", json=text).json()["truncated"] == 1
    assert keyed.get("/v1/models", headers={"Authorization": "Bearer another-key-of-ours"}).status_code == 200
    own.write_text("max_lenght: 4\n", encoding="utf-8")
    guarded.process.send_signal(signal.SIGHUP)
    wait_for_log(log, '"message": "reloaded"', 2)
    assert keyed.post("/v1/embeddings", json=text).json()["truncated"] == 1
    errors = [line["message"] for line in logged(log) if line["level"] == "error"]
    told = "settings: max_lenght: adapter 'sentence-transformer' has no such setting"
    assert errors == [f"model bert keeps its old settings: model 'bert': {told}"]
    keys.write_text("short\n", encoding="utf-8")
    own.unlink()
    guarded.process.send_signal(signal.SIGHUP)
    wait_for_log(log, "nothing was reloaded: ", 1)
    assert keyed.get("/v1/models").status_code == 200
    keys.write_text(f"{KEY}\n", encoding="utf-8")


def test_the_log_has_requests_and_nothing_of_what_was_asked(keyed: httpx.Client, log: Path) -> None:
    keyed.post("/v1/embeddings", json={"model": "bert", "input": "zebra-prompt-4711"})
    keyed.post("/v1/embeddings", json={"model": "bert", "input": [["zebra-prompt-4712"]]})
    messages = [line["message"] for line in logged(log)]
    assert re.fullmatch(r"POST /v1/embeddings 400 in \d+\.\d{3} s", messages[-1])
    assert re.fullmatch(r"POST /v1/embeddings 200 in \d+\.\d{3} s", messages[-2])
    assert "zebra" not in log.read_text(encoding="utf-8")
    assert KEY not in log.read_text(encoding="utf-8")


class Page(html.parser.HTMLParser):
    """What a browser would do with a page: the tags, and whatever leads somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.places: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.places += [value or "" for key, value in attrs if key in {"src", "href", "action", "data", "srcset"}]


def test_the_page_is_for_people_and_fetches_nothing(client: httpx.Client) -> None:
    response = client.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'none'; ")
    page = Page()
    page.feed(response.text)
    assert page.places == []
    assert not page.tags & {"script", "link", "img", "iframe", "form", "table"}
    assert 'name="viewport" content="width=device-width, initial-scale=1"' in response.text
    assert "url(" not in response.text
    for words in (">ready<", ">bge-m3<", ">/v1/embeddings<", "dtype float32: ", "0 refused tries to reach it"):
        assert words in response.text


def test_several_answers_whole_and_streamed(client: httpx.Client) -> None:
    body = {"model": "llama", "prompt": ["the", "서울"], "n": 2, "temperature": 1.0, "seed": 3, "max_tokens": 8}
    whole = client.post("/v1/completions", json=body).json()
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
    texts = [choice["text"] for choice in whole["choices"]]
    alone = client.post("/v1/completions", json={**body, "prompt": "서울", "n": 1, "seed": 4}).json()
    assert texts[3] == alone["choices"][0]["text"]
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    events = events_of(client.post("/v1/completions", json=streamed).text)
    joined = ["", "", "", ""]
    for event in events[:-1]:
        joined[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert joined == texts
    assert events[-1]["usage"] == whole["usage"]
    single = client.post("/v1/completions", json={**body, "n": 1}).json()
    assert single["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


def test_answers_are_decoded_together_and_each_is_what_it_is_alone(server: ServerProcess, client: httpx.Client) -> None:
    bodies = [{**CHAT, "seed": seed, "temperature": 1.0, "max_tokens": 24} for seed in range(4)]  # as many as may wait
    alone = [client.post("/v1/chat/completions", json=body).json()["choices"] for body in bodies]

    async def ask_all() -> list[Any]:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=60) as session:
            answers = await asyncio.gather(*[session.post("/v1/chat/completions", json=body) for body in bodies])
        return [answer.json()["choices"] for answer in answers]

    assert asyncio.run(ask_all()) == alone


@pytest.mark.slow
def test_a_request_that_takes_too_long_and_one_that_asks_for_too_much(release: Path, tmp_path: Path) -> None:
    options = ("--model", "endless", "--timeout", "1", "--max-answer-tokens", "50000")
    running = start_server(release, tmp_path / "stderr.log", *options)
    running.wait_ready()
    with httpx.Client(base_url=running.url, trust_env=False, timeout=60) as session:
        body = {"model": "endless", "prompt": "a", "max_tokens": 50000}
        late = session.post("/v1/completions", json=body)
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
        events = events_of(session.post("/v1/completions", json={**body, "stream": True}).text)
        assert events[-1]["error"]["code"] == "timeout"
        large = session.post("/v1/completions", json={**body, "max_tokens": 50001})
        assert large.json()["error"]["message"] == "max_tokens: at most 50000 here, got 50001"
        deadline = time.monotonic() + 20
        while 'sealift_active_requests{model="endless"} 0' not in (text := session.get("/metrics").text):
            assert time.monotonic() < deadline
        assert 'sealift_timeouts_total{route="/v1/completions"} 1' in text
    assert running.stop() == 0


@pytest.mark.slow
def test_an_address_beyond_this_host_without_keys_is_warned_of(release: Path, tmp_path: Path) -> None:
    log = tmp_path / "stderr.log"
    running = start_server(release, log, "--model", "hcx", "--host", "0.0.0.0")  # noqa: S104 - that it is everywhere is the point
    running.wait_ready()
    assert running.stop() == 0
    expected = "listening beyond this host without API keys: whoever reaches the port may ask; see --api-keys"
    assert expected in log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def bert(prefix: Path) -> Adapter:
    folder = prefix / "releases" / "1.0.0-abc" / "models" / "bert"
    return load_adapter(ModelConfig(name="bert", adapter="sentence-transformer", directory=folder))


def test_probes_must_give_their_recorded_answers(bert: Adapter) -> None:
    probe = Probe(model="bert", kind="embedding", inputs=("the cat", "서울"))
    recorded = Probe(model="bert", kind="embedding", inputs=probe.inputs, expect=dict(ask(bert, probe)))
    assert check_probes(bert, []) == "no probes; it answers"
    assert check_probes(bert, [probe, recorded]) == "2 probes asked, 1 recorded answers came again"
    other = Probe(model="bert", kind="embedding", inputs=("the cat", "the dog"), expect=recorded.expect)
    with pytest.raises(AdapterError, match=r"^model 'bert': the probes: 1 problem:\n  a vector that differs by "):
        check_probes(bert, [other])


def test_probes_ask_the_model_and_not_its_cache(
    prefix: Path, tmp_path: Path, bert: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While probes are asked, the cache is neither read nor written."""
    monkeypatch.setenv("ENABLE_MODEL_CACHE", "true")
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    folder = prefix / "releases" / "1.0.0-abc" / "models" / "bert"
    config = ModelConfig(name="bert", adapter="sentence-transformer", directory=folder)
    adapter = load_adapter(config)
    assert isinstance(adapter, SentenceTransformerAdapter)
    adapter.embed(["the cat"])
    kept = adapter.cache_statistics()
    with adapter.without_cache():
        assert adapter.cache_statistics() is None
        np.testing.assert_allclose(adapter.embed(["the cat"]).vectors, ask_vector(bert), atol=1e-6)
    assert adapter.cache_statistics() == kept
    served = serve_model(config, [Probe(model="bert", kind="any", inputs=("the cat",))], depth=1, metrics=Metrics())
    served.worker.stop()
    assert served.probed == "1 probes asked, 0 recorded answers came again"


def ask_vector(bert: Adapter) -> Any:  # noqa: ANN401 - an array
    assert isinstance(bert, Embedder)
    return bert.embed(["the cat"]).vectors


@pytest.mark.slow
def test_a_server_whose_model_answers_otherwise_never_gets_ready(prefix: Path, tmp_path: Path, bert: Adapter) -> None:
    assert isinstance(bert, Embedder)
    release = tmp_path / "release"
    make_bert(release / "models" / "bert", seed=1)
    write_release(release, {"bert": ("sentence-transformer", {})})
    probe = Probe(model="bert", kind="embedding", inputs=("the cat",))
    manifest = parse_manifest((release / "manifest.json").read_bytes())
    recorded = Probe(model="bert", kind="embedding", inputs=probe.inputs, expect=dict(ask(bert, probe)))
    (release / "manifest.json").write_bytes(replace(manifest, probes=(recorded,)).encode())
    done = run_server(release, "--port", "0")
    assert (done.returncode, done.stdout) == (9, "")
    assert "error: model 'bert': the probes: 1 problem:\n  a vector that differs by " in done.stderr
    np.testing.assert_allclose(np.linalg.norm(bert.embed(["the cat"]).vectors), 1, atol=1e-5)
    assert prefix.is_dir()


def test_what_is_offered_and_what_is_loaded_at_the_start() -> None:
    models = [ModelConfig(name=name, adapter="x", directory=Path("/")) for name in ("a", "b", "c")]

    def plan(*names: str, on_demand: bool = False, most: int | None = None) -> tuple[str, str, int]:
        made = plan_offer(models, names, on_demand=on_demand, most=most)
        return "".join(config.name for config in made.configs), "".join(made.preload), made.most

    assert plan() == ("abc", "abc", 3)
    assert plan("b") == ("b", "b", 1)
    assert plan("b", on_demand=True) == ("abc", "b", 3)
    assert plan(on_demand=True, most=2) == ("abc", "ab", 2)
    with pytest.raises(UsageError, match=r"^3 models are to be loaded at the start, and at most 2 may be loaded at "):
        plan(most=2)
    with pytest.raises(UsageError, match=r"^2 models are to be loaded at the start, and at most 1 may be loaded at "):
        plan("a", "c", on_demand=True, most=1)
