"""A soak: many clients ask one server at once, leave when they like, and check every answer they wait for."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from runtime.adapters import load_adapter
from runtime.adapters.base import GenerationParams, Generator, Message, ModelConfig
from runtime.adapters.bge_m3 import BgeM3Adapter
from tests.factories_models import CORPUS

TOLERANCE: Final = 5e-6
TEXTS: Final = (*CORPUS, "", "서울 " * 12, "the cat sleeps", "a ship " * 40)
PROMPTS: Final = ("the quick brown fox", "서울", "a ship carries", "go")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request that a client may send: whether the body of an answer is right, and whether it may be streamed."""

    path: str
    body: Mapping[str, object]
    is_right: Callable[[Any], bool]
    status: int = 200


@dataclass(slots=True, kw_only=True)
class Tally:
    """What happened: kinds of ends, and every wrong answer."""

    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, end: str, wrong: str | None = None) -> None:
        """Count one request."""
        with self.lock:
            self.ends[end] += 1
            if wrong is not None:
                self.wrong.append(wrong)


def make_questions(release: Path) -> list[Question]:
    """Return questions to the models ``bge-m3`` and ``llama`` of a release, with answers from the adapters alone."""
    models = release / "models"
    m3 = load_adapter(
        ModelConfig(name="m3", adapter="bge-m3", directory=models / "bge-m3", settings={"max_length": 64})
    )
    llama = load_adapter(ModelConfig(name="llama", adapter="causal-lm", directory=models / "llama"))
    assert isinstance(m3, BgeM3Adapter)
    assert isinstance(llama, Generator)
    found = [_embedding(m3, TEXTS[start : start + size]) for start in range(6) for size in (1, 4)]
    found += [_multi(m3, TEXTS[start : start + 2]) for start in range(0, 8, 2)]
    found += [
        _chat(llama, prompt, tokens, stream=stream) for prompt in PROMPTS for tokens, stream in ((4, False), (9, True))
    ]
    bad = {"model": "bge-m3", "input": [[10**9]]}
    found.append(Question(path="/v1/embeddings", body=bad, status=400, is_right=lambda body: "error" in body))
    long = {"model": "llama", "prompt": "a " * 900}
    return [*found, Question(path="/v1/completions", body=long, status=400, is_right=lambda body: "error" in body)]


def _embedding(m3: BgeM3Adapter, texts: Sequence[str]) -> Question:
    expected = m3.embed(texts).vectors

    def is_right(body: Any) -> bool:  # noqa: ANN401 - JSON
        return _close([item["embedding"] for item in body["data"]], expected)

    return Question(path="/v1/embeddings", body={"model": "bge-m3", "input": list(texts)}, is_right=is_right)


def _multi(m3: BgeM3Adapter, texts: Sequence[str]) -> Question:
    expected = m3.embed_multi(texts, sparse=True).sparse or ()
    body = {"model": "bge-m3", "input": list(texts), "return_dense": False, "return_sparse": True}

    def is_right(body: Any) -> bool:  # noqa: ANN401 - JSON
        return all(
            item["sparse"].keys() == {str(key) for key in wanted}
            and all(abs(item["sparse"][str(key)] - weight) < TOLERANCE * 20 for key, weight in wanted.items())
            for item, wanted in zip(body["data"], expected, strict=True)
        )

    return Question(path="/v1/embeddings/multi", body=body, is_right=is_right)


def _chat(llama: Generator, prompt: str, tokens: int, *, stream: bool) -> Question:
    params = GenerationParams(max_new_tokens=tokens, temperature=1.0, seed=tokens)
    expected = llama.generate([Message(role="user", content=prompt)], params).text
    messages = [{"role": "user", "content": prompt}]
    body = {"model": "llama", "messages": messages, "max_tokens": tokens, "temperature": 1.0, "seed": tokens}
    return Question(
        path="/v1/chat/completions",
        body={**body, "stream": stream},
        is_right=lambda body: body["choices"][0]["message"]["content"] == expected,
    )


def _close(given: object, expected: Any) -> bool:  # noqa: ANN401 - an array
    found = np.asarray(given, dtype=np.float32)
    return found.shape == expected.shape and bool(np.abs(found - expected).max() <= TOLERANCE)


def soak(url: str, questions: Sequence[Question], *, requests: int, clients: int, seed: int = 0) -> Tally:
    """Have ``clients`` threads send ``requests`` in all, about one in eight of them left before its answer is there."""
    tally = Tally()
    shares = [requests // clients + (index < requests % clients) for index in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        done = [
            pool.submit(_client, url, questions, share, random.Random(seed + index), tally)  # noqa: S311 - no secret
            for index, share in enumerate(shares)
        ]
        for future in done:
            future.result()
    return tally


def _client(url: str, questions: Sequence[Question], share: int, dice: random.Random, tally: Tally) -> None:
    with httpx.Client(base_url=url, trust_env=False, timeout=120) as session:
        for _ in range(share):
            question = dice.choice(questions)
            if dice.random() < 1 / 8:
                _leave(session, question, dice, tally)
            else:
                _ask(session, question, tally)


def _leave(session: httpx.Client, question: Question, dice: random.Random, tally: Tally) -> None:
    """Send a request and close the connection, before the answer or in the middle of it."""
    try:
        patience = dice.choice([0.002, 0.01, 0.05])
        timeout = httpx.Timeout(30, read=patience)
        with session.stream("POST", question.path, json=question.body, timeout=timeout) as response:
            next(response.iter_raw(), None)
    except httpx.TimeoutException:
        tally.count("left before")
    else:
        tally.count("left within")


def _ask(session: httpx.Client, question: Question, tally: Tally) -> None:
    while (response := session.post(question.path, json=question.body)).status_code == 429:
        tally.ends["busy"] += 1
        time.sleep(0.02)
    end = f"{response.status_code}"
    streamed = response.headers["content-type"].startswith("text/event-stream")
    body = _joined(response.text) if streamed else response.json()
    right = response.status_code == question.status and question.is_right(body)
    tally.count(end, None if right else f"{question.path} {json.dumps(question.body)[:200]}: {response.text[:300]}")


def _joined(text: str) -> Any:  # noqa: ANN401 - JSON
    """Return the document that a stream's events make, in the shape of a whole answer."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    if lines[-1] != "[DONE]":
        return {"choices": [{"message": {"content": None}}]}
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    return {"choices": [{"message": {"content": "".join(delta.get("content", "") for delta in deltas)}}]}
