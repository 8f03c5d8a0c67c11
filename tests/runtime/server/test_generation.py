"""The generating thread: rows of many requests, each with its own end."""

import queue
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from runtime.adapters import load_adapter
from runtime.adapters.base import JSON, ContextTooLongError, GenerationError, GenerationParams, ModelConfig, Piece
from runtime.adapters.causal_lm import CausalLmAdapter
from runtime.server.generation import GenerationJob, GenerationWorker
from tests.factories_models import make_llama

pytestmark = pytest.mark.models


class Listener:
    """What a request hears of its jobs: the text and the end of each."""

    def __init__(self) -> None:
        self.heard: queue.Queue[tuple[int, Piece | Exception | None]] = queue.Queue()
        self.cancelled = threading.Event()

    def job(self, prompt: str, *, tokens: int = 6, index: int = 0) -> GenerationJob:
        params = GenerationParams(max_new_tokens=tokens)
        send = partial(self._hear, index)
        return GenerationJob(prompt=prompt, params=params, send=send, cancelled=self.cancelled)

    def _hear(self, index: int, item: Piece | Exception | None) -> None:
        self.heard.put((index, item))

    def end(self, jobs: int = 1) -> tuple[dict[int, str], list[Exception | None]]:
        """Wait for the ends of so many jobs."""
        texts: dict[int, str] = {}
        ends: list[Exception | None] = []
        while len(ends) < jobs:
            index, item = self.heard.get(timeout=60)
            if isinstance(item, Piece):
                texts[index] = texts.get(index, "") + item.text
            else:
                ends.append(item)
        return texts, ends


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> CausalLmAdapter:
    folder: Path = make_llama(tmp_path_factory.mktemp("llama"))
    settings: Mapping[str, JSON] = {"dtype": "float32", "max_batch_size": 3}
    adapter = load_adapter(ModelConfig(name="llama", adapter="causal-lm", directory=folder, settings=settings))
    assert isinstance(adapter, CausalLmAdapter)
    return adapter


@pytest.fixture
def worker(llama: CausalLmAdapter) -> Iterator[GenerationWorker]:
    worker = GenerationWorker("llama", llama.engine, depth=8)
    yield worker
    worker.stop()


def expected(llama: CausalLmAdapter, prompt: str) -> str:
    return llama.generate(prompt, GenerationParams(max_new_tokens=6)).text


def test_more_rows_than_fit_and_a_bad_one_among_them(llama: CausalLmAdapter, worker: GenerationWorker) -> None:
    prompts = ["the", "a ship", "서울", "go", "fox"]
    listeners = [Listener() for _ in prompts]
    bad = Listener()
    for index, (listener, prompt) in enumerate(zip(listeners, prompts, strict=True)):
        worker.submit([listener.job(prompt)])
        if index == 1:
            worker.submit([bad.job("a " * 900)])
    worker.start()
    for listener, prompt in zip(listeners, prompts, strict=True):
        assert listener.end() == ({0: expected(llama, prompt)}, [None])
    texts, (error,) = bad.end()
    assert texts == {}
    assert isinstance(error, ContextTooLongError)


def test_one_request_of_many_choices_takes_one_place_in_the_queue(
    llama: CausalLmAdapter, worker: GenerationWorker
) -> None:
    prompts = ["the", "a ship", "서울", "go", "fox"]
    listener = Listener()
    worker.submit([listener.job(prompt, index=index) for index, prompt in enumerate(prompts)])
    assert worker.waiting == 1
    worker.start()
    texts, ends = listener.end(len(prompts))
    assert texts == {index: expected(llama, prompt) for index, prompt in enumerate(prompts)}
    assert ends == [None] * 5


def test_a_client_that_left_frees_its_rows_before_and_after_they_began(
    llama: CausalLmAdapter, worker: GenerationWorker
) -> None:
    gone, leaving, staying = Listener(), Listener(), Listener()
    gone.cancelled.set()
    worker.submit([gone.job("the")])
    worker.submit([leaving.job("the", tokens=200), leaving.job("서울", tokens=200, index=1)])
    worker.submit([staying.job("a ship")])
    worker.start()
    leaving.heard.get(timeout=60)
    leaving.cancelled.set()
    assert gone.end() == ({}, [None])
    assert leaving.end(2)[1] == [None, None]
    assert staying.end() == ({0: expected(llama, "a ship")}, [None])
    worker.stop()
    assert (worker.active, worker.waiting, llama.engine.active, llama.engine.waiting) == (0, 0, 0, 0)


def test_an_engine_that_breaks_ends_what_runs_and_the_thread_goes_on(
    llama: CausalLmAdapter, worker: GenerationWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, failures = llama.engine.step, [RuntimeError("driver lost")]

    def breaking() -> object:
        if failures:
            raise failures.pop()
        return step()

    monkeypatch.setattr(llama.engine, "step", breaking)
    first, second = Listener(), Listener()
    worker.submit([first.job("the")])
    worker.start()
    _, (error,) = first.end()
    assert isinstance(error, GenerationError)
    assert error.message == "model 'llama': driver lost"
    worker.submit([second.job("서울")])
    assert second.end() == ({0: expected(llama, "서울")}, [None])


def test_another_thread_that_steps_the_same_engine_takes_nothing_away(
    llama: CausalLmAdapter, worker: GenerationWorker
) -> None:
    """A probe asks the adapter itself while clients are served: its steps bring news of their rows, too."""
    stop = threading.Event()

    def step() -> None:
        while not stop.is_set():
            llama.engine.step()

    told = expected(llama, "a ship")
    worker.start()
    stepping = threading.Thread(target=step)
    stepping.start()
    try:
        for _ in range(5):
            listener = Listener()
            worker.submit([listener.job("a ship")])
            assert listener.end() == ({0: told}, [None])
    finally:
        stop.set()
        stepping.join()
