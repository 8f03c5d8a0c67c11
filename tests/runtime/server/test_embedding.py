"""The embedding thread: batches by token budget over many requests, slices of large ones, faults that stay alone."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from runtime.adapters.base import (
    AdapterInfo,
    Embedder,
    EmbeddingInput,
    Embeddings,
    MultiEmbeddings,
    RequestError,
)
from runtime.server.embedding import EmbeddingJob, EmbeddingWorker, MultiJob, estimate_tokens
from runtime.server.metrics import Metrics
from runtime.server.slices import cut, join
from runtime.server.workers import BusyError, ClosedError


class Lengths:
    """An embedder whose vectors are the lengths of the texts; it refuses ``bad``, and waits where it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[EmbeddingInput]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    @property
    def info(self) -> AdapterInfo:
        own = {"name": "m", "adapter": "x", "architecture": "x", "directory": "/", "device": "cpu", "dtype": "float32"}
        return AdapterInfo(kind="embedder", limit=512, **own)  # type: ignore[arg-type] # all of them are strings

    @property
    def dimension(self) -> int:
        return 1

    def embed(self, texts: Sequence[EmbeddingInput]) -> Embeddings:
        self.batches.append(list(texts))
        self.entered.set()
        assert self.gate.wait(30)
        for index, text in enumerate(texts):
            if text == "bad":
                raise RequestError(f"input {index}: refused", param="input")
        lengths = tuple(len(text) for text in texts)
        vectors = np.array(lengths, dtype=np.float32)[:, None]
        return Embeddings(vectors=vectors, token_counts=lengths, truncated=tuple(length > 512 for length in lengths))

    def embed_multi(
        self, texts: Sequence[EmbeddingInput], *, dense: bool = True, sparse: bool = False, colbert: bool = False
    ) -> MultiEmbeddings:
        whole = self.embed(texts)
        return MultiEmbeddings(
            dense=whole.vectors if dense else None,
            sparse=tuple({len(text): 1.0} for text in texts) if sparse else None,
            colbert=tuple(np.ones((2, 1), dtype=np.float32) for _ in texts) if colbert else None,
            token_counts=whole.token_counts,
            truncated=whole.truncated,
        )


@pytest.fixture
def model() -> Lengths:
    return Lengths()


def worker_of(model: Embedder, *, depth: int = 16, batch_tokens: int = 64) -> EmbeddingWorker:
    return EmbeddingWorker("m", model, depth=depth, metrics=Metrics(), batch_tokens=batch_tokens)


def lengths_of(job: EmbeddingJob) -> list[float]:
    return [float(row[0]) for row in job.result.result(30).vectors]


def test_waiting_requests_share_batches_within_the_budget(model: Lengths) -> None:
    worker = worker_of(model)
    jobs = [EmbeddingJob(texts=["a" * 20, "b" * index]) for index in range(1, 9)]
    for job in jobs:
        worker.submit(job)
    worker.start()
    assert [lengths_of(job) for job in jobs] == [[20.0, float(index)] for index in range(1, 9)]
    worker.stop()
    assert [sum(estimate_tokens(text, 512) for text in batch) <= 64 + 14 for batch in model.batches] == [True] * 3
    assert (worker.waiting, worker.active, worker.alive) == (0, 0, False)


def test_a_large_request_is_cut_and_a_small_one_doesn_t_wait_for_its_end(model: Lengths) -> None:
    worker = worker_of(model)
    model.gate.clear()
    large = EmbeddingJob(texts=["x" * 60] * 20)
    worker.submit(large)
    worker.start()
    assert model.entered.wait(30)
    small = EmbeddingJob(texts=["y"])
    worker.submit(small)
    order: list[str] = []
    small.result.add_done_callback(lambda _: order.append("small"))
    large.result.add_done_callback(lambda _: order.append("large"))
    model.gate.set()
    assert lengths_of(large) == [60.0] * 20
    worker.stop()
    assert order == ["small", "large"]
    assert all(len(batch) <= 3 for batch in model.batches)


def test_one_bad_request_fails_alone_and_its_input_is_numbered_as_it_was_sent(model: Lengths) -> None:
    worker = worker_of(model)
    texts = ["x" * 60] * 7
    jobs = [EmbeddingJob(texts=["good"]), EmbeddingJob(texts=[*texts, "bad"]), EmbeddingJob(texts=["also good"])]
    for job in jobs:
        worker.submit(job)
    worker.start()
    assert (lengths_of(jobs[0]), lengths_of(jobs[2])) == ([4.0], [9.0])
    with pytest.raises(RequestError, match=r"^input 7: refused$"):
        jobs[1].result.result(30)
    worker.stop()


def test_a_request_whose_client_left_ends_between_two_slices(model: Lengths) -> None:
    worker = worker_of(model)
    model.gate.clear()
    large = EmbeddingJob(texts=["x" * 60] * 100)
    worker.submit(large)
    worker.start()
    assert model.entered.wait(30)
    assert large.result.cancel()
    model.gate.set()
    worker.stop()
    assert len(model.batches) == 1


def model_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "model-m"]


def test_the_thread_that_computes_ends_when_nothing_waits_and_the_next_request_gets_another(model: Lengths) -> None:
    worker = worker_of(model)
    worker.start()
    for _ in range(2):
        model.gate.clear()
        model.entered.clear()
        job = EmbeddingJob(texts=["x"])
        worker.submit(job)
        assert model.entered.wait(30)
        assert model_threads() == ["model-m"]
        model.gate.set()
        assert lengths_of(job) == [1.0]
        deadline = time.monotonic() + 30
        while model_threads():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert worker.alive
    worker.stop()
    assert not worker.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_whose_thread_breaks_is_not_alive(model: Lengths, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = worker_of(model)

    def broken() -> bool:
        raise AssertionError("a defect")

    monkeypatch.setattr(worker, "_gather", broken)
    worker.start()
    worker.submit(EmbeddingJob(texts=["x"]))
    worker._thread.join(30)
    assert not worker.alive
    worker.stop()


def test_kinds_of_vectors_take_turns(model: Lengths) -> None:
    worker = worker_of(model)
    multi = MultiJob(texts=["m" * 60] * 4, dense=True, sparse=True, colbert=True)
    dense = EmbeddingJob(texts=["d" * 60] * 4)
    worker.submit(multi)
    worker.submit(dense)
    worker.start()
    result = multi.result.result(30)
    assert lengths_of(dense) == [60.0] * 4
    worker.stop()
    assert result.dense is not None
    assert result.dense.tolist() == [[60.0]] * 4
    assert result.sparse == ({60: 1.0},) * 4
    assert [rows.shape for rows in result.colbert or ()] == [(2, 1)] * 4
    assert [batch[0][0] for batch in map(list, model.batches)][:2] == ["m", "d"]


def test_the_queue_is_bounded_and_closes(model: Lengths) -> None:
    worker = worker_of(model, depth=2)
    first, second = EmbeddingJob(texts=["a"]), EmbeddingJob(texts=["bb"])
    worker.submit(first)
    worker.submit(second)
    with pytest.raises(BusyError, match=r"^model 'm' has 2 requests waiting already$"):
        worker.submit(EmbeddingJob(texts=["c"]))
    worker.start()
    worker.stop()
    assert (lengths_of(first), lengths_of(second)) == ([1.0], [2.0])
    with pytest.raises(ClosedError, match=r"^model 'm' is being unloaded$"):
        worker.submit(EmbeddingJob(texts=["d"]))


def test_parts_go_together_again(model: Lengths) -> None:
    whole = model.embed(["a", "b" * 600, "ccc"])
    parts = [cut(whole, 0, 1), cut(whole, 1, 3)]
    again = join(parts)
    assert isinstance(again, Embeddings)
    np.testing.assert_array_equal(again.vectors, whole.vectors)
    assert (again.token_counts, again.truncated) == (whole.token_counts, whole.truncated)
    assert not np.shares_memory(parts[0].vectors, whole.vectors)  # type: ignore[union-attr] # Embeddings
    nothing = model.embed_multi(["a", "b"], dense=False, sparse=True)
    joined = join([cut(nothing, 0, 1), cut(nothing, 1, 2)])
    assert isinstance(joined, MultiEmbeddings)
    assert (joined.dense, joined.sparse, joined.colbert) == (None, ({1: 1.0}, {1: 1.0}), None)
