"""The server as a client sees it: a real process, real HTTP, tiny models."""

import base64
import json
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from runtime.adapters import load_adapter
from runtime.adapters.base import GenerationParams as Params
from runtime.adapters.base import Generator, Message, ModelConfig
from runtime.adapters.bge_m3 import BgeM3Adapter
from tests.factories_models import CORPUS
from tests.runtime.server.conftest import ServerProcess, events_of

pytestmark = pytest.mark.models


@pytest.fixture(scope="module")
def m3(release: Path) -> BgeM3Adapter:
    folder = release / "models" / "bge-m3"
    adapter = load_adapter(ModelConfig(name="x", adapter="bge-m3", directory=folder, settings={"max_length": 64}))
    assert isinstance(adapter, BgeM3Adapter)
    return adapter


@pytest.fixture(scope="module")
def llama(release: Path) -> Generator:
    folder = release / "models" / "llama"
    settings = {"dtype": "float32"}
    adapter = load_adapter(ModelConfig(name="x", adapter="causal-lm", directory=folder, settings=settings))
    assert isinstance(adapter, Generator)
    return adapter


def post(client: httpx.Client, path: str, **body: object) -> Any:  # noqa: ANN401 - JSON
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def error_of(response: httpx.Response) -> Mapping[str, object]:
    error: Mapping[str, object] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def metric(client: httpx.Client, line: str) -> float:
    found = [text.rpartition(" ")[2] for text in client.get("/metrics").text.splitlines() if text.startswith(line)]
    return float(found[0]) if found else 0.0


def wait_for_metric(client: httpx.Client, line: str, value: float) -> float:
    deadline = time.monotonic() + 20
    while (found := metric(client, line)) < value and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def test_ready_line_names_url_and_models(server: ServerProcess) -> None:
    assert server.ready["event"] == "ready"
    assert server.ready["models"] == ["bge-m3", "llama", "hcx", "endless"]
    assert str(server.ready["url"]).startswith("http://127.0.0.1:")


def test_health_ready_and_models(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    ready = {"status": "ready", "loaded": ["bge-m3", "llama", "hcx", "endless"], "loading": []}
    assert client.get("/ready").json() == ready
    models = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == ["bge-m3", "llama", "hcx", "endless"]
    assert models[0]["sealift"]["dimension"] == 32
    assert client.get("/v1/models/llama").json() == models[1]
    assert "directory" not in models[0]["sealift"]
    assert client.get("/v1/models/none").status_code == 404


def test_embeddings_are_the_adapters_numbers(client: httpx.Client, m3: BgeM3Adapter) -> None:
    texts = [*CORPUS, "", "fox " * 200]
    expected = m3.embed(texts)
    reply = post(client, "/v1/embeddings", model="bge-m3", input=texts)
    assert [item["index"] for item in reply["data"]] == list(range(len(texts)))
    np.testing.assert_allclose([item["embedding"] for item in reply["data"]], expected.vectors, atol=2e-6)
    assert reply["usage"] == {"prompt_tokens": sum(expected.token_counts), "total_tokens": sum(expected.token_counts)}
    assert reply["truncated"] == 1
    packed = post(client, "/v1/embeddings", model="bge-m3", input=texts, encoding_format="base64")
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), dtype="<f4") for item in packed["data"]]
    np.testing.assert_allclose(rows, expected.vectors, atol=2e-6)


def test_token_lists(client: httpx.Client, m3: BgeM3Adapter) -> None:
    ids = list(m3._reader.read(["the cat"])[0].ids)
    for given in (ids, [ids]):
        reply = post(client, "/v1/embeddings", model="bge-m3", input=given)
        np.testing.assert_allclose(reply["data"][0]["embedding"], m3.embed(["the cat"]).vectors[0], atol=2e-6)
    refused = client.post("/v1/embeddings", json={"model": "bge-m3", "input": [[10**9]]})
    assert refused.status_code == 400
    assert str(error_of(refused)["message"]).startswith(
        "input 0: token 1000000000 is not in the vocabulary of 'bge-m3'"
    )


def test_multi_gives_sparse_and_colbert(client: httpx.Client, m3: BgeM3Adapter) -> None:
    expected = m3.embed_multi(["a ship", "the lazy dog"], sparse=True, colbert=True)
    assert expected.sparse is not None
    assert expected.colbert is not None
    flags = {"return_dense": False, "return_sparse": True, "return_colbert_vecs": True}
    reply = post(client, "/v1/embeddings/multi", model="bge-m3", input=["a ship", "the lazy dog"], **flags)
    for item, sparse, colbert in zip(reply["data"], expected.sparse, expected.colbert, strict=True):
        assert set(item) == {"object", "index", "sparse", "colbert"}
        assert item["sparse"] == pytest.approx({str(token): weight for token, weight in sparse.items()}, abs=1e-4)
        np.testing.assert_allclose(item["colbert"], colbert, atol=5e-6)


def test_one_bad_request_does_not_hurt_its_neighbours(server: ServerProcess, m3: BgeM3Adapter) -> None:
    expected = m3.embed(CORPUS).vectors

    def ask(index: int) -> tuple[int, int, Any]:
        bad = index % 3 == 0
        body = {"model": "bge-m3", "input": [[10**9]] if bad else list(CORPUS)}
        with httpx.Client(base_url=server.url, trust_env=False, timeout=60) as own:
            while (response := own.post("/v1/embeddings", json=body)).status_code == 429:
                time.sleep(0.02)
        return index, response.status_code, response.json()

    with ThreadPoolExecutor(8) as pool:
        for index, status, body in pool.map(ask, range(24)):
            assert status == (400 if index % 3 == 0 else 200)
            if status == 200:
                np.testing.assert_allclose([item["embedding"] for item in body["data"]], expected, atol=2e-6)


def test_chat_is_the_adapters_answer(client: httpx.Client, llama: Generator) -> None:
    messages = [{"role": "user", "content": "the quick brown fox"}]
    asked = [Message(role="user", content="the quick brown fox")]
    for options, params in (
        ({"max_tokens": 12}, Params(max_new_tokens=12)),
        (
            {"max_completion_tokens": 30, "temperature": 1.5, "top_p": 0.9, "seed": 5},
            Params(max_new_tokens=30, temperature=1.5, top_p=0.9, seed=5),
        ),
    ):
        expected = llama.generate(asked, params)
        reply = post(client, "/v1/chat/completions", model="llama", messages=messages, **options)
        choice = reply["choices"][0]
        assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
        assert choice["finish_reason"] == expected.finish_reason
        total = expected.prompt_tokens + expected.completion_tokens
        counts = {"prompt_tokens": expected.prompt_tokens, "completion_tokens": expected.completion_tokens}
        assert reply["usage"] == {**counts, "total_tokens": total}
        assert reply["object"] == "chat.completion"


def test_streamed_chat_joins_to_the_same_answer(client: httpx.Client) -> None:
    body = {"model": "llama", "messages": [{"role": "user", "content": "서울"}], "max_tokens": 30, "seed": 2}
    body |= {"temperature": 1.0}
    whole = post(client, "/v1/chat/completions", **body)
    response = client.post(
        "/v1/chat/completions", json={**body, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert response.headers["content-type"].startswith("text/event-stream")
    events = events_of(response.text)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}
    assert len({event["id"] for event in events}) == 1
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert events[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert (events[-1]["choices"], events[-1]["usage"]) == ([], whole["usage"])


def test_completions_and_stop(client: httpx.Client) -> None:
    whole = post(client, "/v1/completions", model="hcx", prompt=["a", "the"], max_tokens=10)
    assert [choice["index"] for choice in whole["choices"]] == [0, 1]
    assert whole["object"] == "text_completion"
    text = whole["choices"][1]["text"]
    stopped = post(client, "/v1/completions", model="hcx", prompt="the", max_tokens=10, stop=[text[4:6]])
    assert stopped["choices"][0]["text"] == text[: text.index(text[4:6])]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    body = {"model": "hcx", "prompt": "the", "max_tokens": 10, "stream": True}
    events = events_of(client.post("/v1/completions", json=body).text)
    assert "".join(event["choices"][0]["text"] for event in events) == text


@pytest.mark.parametrize(
    ("path", "body", "status", "code", "message"),
    [
        (
            "/v1/embeddings",
            {"model": "bge", "input": "a"},
            404,
            "model_not_found",
            "model: there is no model 'bge' here; there is bge-m3, llama, hcx, endless",
        ),
        (
            "/v1/embeddings",
            {"model": "llama", "input": "a"},
            400,
            "wrong_model_kind",
            "model: 'llama' generates text; use it with /v1/chat/completions",
        ),
        (
            "/v1/completions",
            {"model": "bge-m3", "prompt": "a"},
            400,
            "wrong_model_kind",
            "model: 'bge-m3' embeds text; use it with /v1/embeddings",
        ),
        (
            "/v1/embeddings",
            {"model": "bge-m3", "input": "a\ud800"},
            400,
            None,
            "input 0: not valid Unicode: a lone surrogate at character 1",
        ),
        (
            "/v1/chat/completions",
            {"model": "llama", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1000},
            400,
            "context_length_exceeded",
            "prompt of ",
        ),
        (
            "/v1/chat/completions",
            {"model": "llama", "messages": [{"role": "user", "content": "a " * 900}], "stream": True},
            400,
            "context_length_exceeded",
            "prompt of ",
        ),
    ],
)
def test_errors_have_openais_shape(  # noqa: PLR0917 - parameters of one table
    client: httpx.Client, path: str, body: dict[str, object], status: int, code: str | None, message: str
) -> None:
    response = client.post(path, content=json.dumps(body))
    error = error_of(response)
    assert (response.status_code, error["code"], error["type"]) == (status, code, "invalid_request_error")
    assert str(error["message"]).startswith(message)


def test_unknown_routes_methods_and_large_bodies(client: httpx.Client) -> None:
    missing = client.get("/v1/nothing")
    assert (missing.status_code, error_of(missing)["message"]) == (404, "GET /v1/nothing: Not Found")
    assert client.get("/v1/embeddings").status_code == 405
    large = client.post("/v1/embeddings", content=b" " * ((8 << 20) + 1))
    assert (large.status_code, error_of(large)["code"]) == (413, "request_too_large")
    assert error_of(client.post("/v1/embeddings", content=b"{"))["code"] == "invalid_json"


def test_a_full_queue_is_429_with_retry_after(server: ServerProcess, client: httpx.Client) -> None:
    body = {"model": "llama", "messages": [{"role": "user", "content": "go"}], "temperature": 1, "max_tokens": 200}

    def ask(seed: int) -> httpx.Response:
        with httpx.Client(base_url=server.url, trust_env=False, timeout=120) as own:
            return own.post("/v1/chat/completions", json={**body, "seed": seed})

    with ThreadPoolExecutor(32) as pool:
        responses = list(pool.map(ask, range(32)))
    busy = [response for response in responses if response.status_code == 429]
    assert {response.status_code for response in responses} == {200, 429}
    assert len(responses) - len(busy) >= 5  # those that run, and four that wait
    assert busy[0].headers["retry-after"] == "1"
    error = error_of(busy[0])
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")
    assert error["message"] == "model 'llama' has 4 requests waiting already (try again in a second)"
    assert metric(client, 'sealift_queue_depth{model="llama"}') == 0


def test_a_client_that_leaves_ends_its_generation(client: httpx.Client) -> None:
    line = 'sealift_cancelled_total{route="stream"}'
    before = metric(client, line)
    body = {"model": "endless", "prompt": "a", "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        assert next(response.iter_text()).startswith("data: ")
    assert wait_for_metric(client, line, before + 1) == before + 1
    started = time.monotonic()
    assert post(client, "/v1/completions", model="endless", prompt="b", max_tokens=2)["usage"]["completion_tokens"] == 2
    assert time.monotonic() - started < 10  # 90,000 tokens take minutes


def test_a_client_that_leaves_before_the_answer_ends_it_too(client: httpx.Client) -> None:
    line = 'sealift_cancelled_total{route="/v1/completions"}'
    before = metric(client, line)
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json={"model": "endless", "prompt": "a"}, timeout=0.5)
    assert wait_for_metric(client, line, before + 1) == before + 1
    assert post(client, "/v1/completions", model="endless", prompt="b", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_metrics_count_tokens_and_no_network(client: httpx.Client) -> None:
    tokens = 'sealift_prompt_tokens_total{model="bge-m3"}'
    before = metric(client, tokens)
    used = post(client, "/v1/embeddings", model="bge-m3", input="the cat")["usage"]["prompt_tokens"]
    assert metric(client, tokens) == before + used
    assert metric(client, "sealift_network_attempts_total") == 0
    assert metric(client, 'sealift_model_ready{model="hcx"}') == 1
    assert metric(client, "sealift_resident_bytes") > 50 << 20
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
