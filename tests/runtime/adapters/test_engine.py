"""Batched decoding: what a row answers alone it answers in company, whoever joins, leaves, fails or is cancelled."""

import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from runtime.adapters import load_adapter
from runtime.adapters.base import (
    JSON,
    ContextTooLongError,
    Generation,
    GenerationError,
    GenerationParams,
    Message,
    ModelConfig,
    Piece,
    RequestError,
)
from runtime.adapters.causal_lm import CausalLmAdapter
from runtime.adapters.decoding import Sampler
from runtime.adapters.engine import DecodeEngine, DecodeHandle, Row
from runtime.adapters.rows import CachedNetwork, RowGroup

pytestmark = pytest.mark.models
PROMPTS = ("the quick brown", "a", "대한민국의 수도는 서울이다", "retrieval augmented generation needs", "0123", "바다")
GREEDY = GenerationParams(max_new_tokens=20)
Fails: TypeAlias = Callable[[int, int], Exception | None]


def load(directory: Path, **options: JSON) -> CausalLmAdapter:
    config = ModelConfig(name="m", adapter="causal-lm", directory=directory, settings={"dtype": "float32", **options})
    adapter = load_adapter(config)
    assert isinstance(adapter, CausalLmAdapter)
    return adapter


def mixed_params() -> list[GenerationParams]:
    """Return one request per prompt, no two alike: greedy, sampled, penalised, short, long."""
    return [
        GenerationParams(max_new_tokens=25),
        GenerationParams(max_new_tokens=3, temperature=1.0, seed=1),
        GenerationParams(max_new_tokens=40, temperature=0.8, top_p=0.9, seed=2),
        GenerationParams(max_new_tokens=12, repetition_penalty=1.3),
        GenerationParams(max_new_tokens=30, temperature=1.5, seed=3),
        GenerationParams(max_new_tokens=18, temperature=1.0, top_p=0.5, repetition_penalty=1.1, seed=4),
    ]


def drain(engine: DecodeEngine, handles: list[DecodeHandle]) -> list[Generation | Exception | None]:
    """Step until nothing is left; return each handle's answer, error, or None where it was cancelled."""
    pieces: list[list[Piece]] = [[] for _ in handles]
    while engine.busy:
        engine.step()
        for found, handle in zip(pieces, handles, strict=True):
            found.extend(handle.take())
    return [whole(found) or handle.error for found, handle in zip(pieces, handles, strict=True)]


def whole(pieces: list[Piece]) -> Generation | None:
    if not pieces:
        return None
    text, last = "".join(piece.text for piece in pieces), pieces[-1]
    if last.finish_reason is None:
        return None
    asked, made = last.prompt_tokens, last.completion_tokens
    return Generation(text=text, finish_reason=last.finish_reason, prompt_tokens=asked, completion_tokens=made)


class FailingNetwork(CachedNetwork):
    """The real network, which fails where ``fails`` says so, after the layers have begun to grow."""

    def __init__(self, network: Any, fails: Fails) -> None:  # noqa: ANN401 - untyped
        super().__init__(network, torch.device("cpu"))
        self.fails = fails
        self.passes: list[int] = []

    def forward(self, ids: Any, cache: Any, lengths: Any) -> tuple[torch.Tensor, Any]:  # noqa: ANN401 - as its base
        self.passes.append(len(ids))
        result = super().forward(ids, cache, lengths)
        if error := self.fails(len(ids), len(self.passes)):
            raise error
        return result


MakeFailing: TypeAlias = Callable[[Fails], tuple[CausalLmAdapter, DecodeEngine, FailingNetwork]]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny products only lose time by being shared between threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["llama", "hyperclovax"])
def generator(request: pytest.FixtureRequest) -> CausalLmAdapter:
    return load(request.getfixturevalue(request.param))


@pytest.fixture
def failing(llama: Path) -> MakeFailing:
    def make(fails: Fails) -> tuple[CausalLmAdapter, DecodeEngine, FailingNetwork]:
        adapter = load(llama)
        network = FailingNetwork(adapter._network, fails)
        engine = DecodeEngine(network, adapter._prepare, model="m", max_rows=8, max_tokens=10**6)
        return adapter, engine, network

    return make


def test_a_batch_answers_what_each_prompt_answers_alone(generator: CausalLmAdapter) -> None:
    params = mixed_params()
    alone = [generator.generate(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    assert generator.generate_batch(PROMPTS, params) == alone
    assert len({result.text for result in alone}) == len(PROMPTS)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = generator.generate_batch([PROMPTS[index] for index in order], [params[index] for index in order])
    assert shuffled == [alone[index] for index in order]


def test_rows_really_share_forward_passes(failing: MakeFailing) -> None:
    adapter, engine, network = failing(lambda _rows, _count: None)
    handles = [engine.add(prompt, GREEDY) for prompt in PROMPTS]
    assert (engine.waiting, engine.active) == (6, 0)
    assert drain(engine, handles) == adapter.generate_batch(PROMPTS, GREEDY)
    assert max(network.passes) == 6
    assert len(network.passes) < 6 + 2 * 20


def test_conversations_and_stop_strings_in_one_batch(generator: CausalLmAdapter) -> None:
    hello = [Message(role="user", content="the cat sleeps")]
    params = GenerationParams(max_new_tokens=40, temperature=1.0, seed=4)
    text = generator.generate("the quick", params).text
    stop = text[8:11]
    stopped = GenerationParams(max_new_tokens=40, temperature=1.0, seed=4, stop=(stop,))
    results = generator.generate_batch(["the quick", hello, "the quick"], [stopped, params, params])
    assert results[0].text == text[: text.index(stop)]
    assert results[0].finish_reason == "stop"
    assert results[1] == generator.generate(hello, params)
    assert results[2].text == text


def test_end_tokens_end_their_own_row_only(llama: Path, tmp_path: Path) -> None:
    free = load(llama)
    greedy = [free.engine.add(prompt, GREEDY) for prompt in PROMPTS]
    texts = [result.text for result in drain(free.engine, greedy) if isinstance(result, Generation)]
    token = free.token_ids(max(texts, key=len))[4]
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [token]}), encoding="utf-8")
    adapter = load(folder)
    alone = [adapter.generate(prompt, GREEDY) for prompt in PROMPTS]
    assert adapter.generate_batch(PROMPTS, GREEDY) == alone
    assert {result.finish_reason for result in alone} == {"stop", "length"}
    assert len({result.completion_tokens for result in alone}) > 1


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6))
def test_rows_that_come_and_go_at_any_moment_change_nobody(chat: CausalLmAdapter, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - a schedule, no secret
    params = mixed_params()
    alone = [chat.generate(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    engine = DecodeEngine(
        CachedNetwork(chat._network, torch.device("cpu")),
        chat._prepare,
        model="m",
        max_rows=chance.choice([1, 2, 3, 8]),
        max_tokens=chance.choice([60, 200, 10**6]),
        prefill_tokens=chance.choice([1, 3, 512]),
    )
    waiting = [chance.randrange(6) for _ in range(9)]
    handles: list[tuple[int, DecodeHandle, list[Piece]]] = []
    while engine.busy or waiting:
        if waiting and chance.random() < 0.4:
            index = waiting.pop()
            handles.append((index, engine.add(PROMPTS[index], params[index]), []))
        if handles and chance.random() < 0.05:
            handles[chance.randrange(len(handles))][1].cancel()
        engine.step()
        assert engine.active <= engine.max_rows
        for _, handle, pieces in handles:
            pieces.extend(handle.take())
    for index, handle, pieces in handles:
        assert handle.done
        assert handle.error is None
        text = "".join(piece.text for piece in pieces)
        assert (
            (whole(pieces) == alone[index])
            if whole(pieces)
            else (handle.cancelled and alone[index].text.startswith(text))
        )


def test_cancelling_frees_the_row_and_keeps_the_others(chat: CausalLmAdapter) -> None:
    engine = chat.engine
    prompts = [prompt for prompt in PROMPTS if chat.generate(prompt, GREEDY).completion_tokens == 20][:3]
    handles = [engine.add(prompt, GREEDY) for prompt in prompts]
    for _ in range(5):
        engine.step()
    assert engine.active == 3
    engine.cancel(handles[1])
    assert (engine.active, handles[1].done, handles[1].error) == (2, True, None)
    found = drain(engine, [handles[0], handles[2]])
    assert found == [chat.generate(prompts[0], GREEDY), chat.generate(prompts[2], GREEDY)]
    assert engine.active == engine.waiting == 0


def test_a_request_that_can_not_be_answered_is_refused_at_once(chat: CausalLmAdapter) -> None:
    with pytest.raises(ContextTooLongError):
        chat.engine.add("the " * 300, GREEDY)
    with pytest.raises(RequestError, match="temperature: expected 0"):
        chat.generate_batch(["the", "a"], [GREEDY, GenerationParams(temperature=-1.0)])
    assert not chat.engine.busy or not drain(chat.engine, [])
    with pytest.raises(ValueError, match="zip"):
        chat.generate_batch(["the", "a"], [GREEDY])


def test_a_row_that_fails_fails_alone(failing: MakeFailing, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, engine, _ = failing(lambda _rows, _count: None)
    expected = [adapter.generate(prompt, GREEDY) for prompt in PROMPTS]
    choose = Sampler.choose

    def poisoned(self: Sampler, logits: torch.Tensor, seen: list[int]) -> int:
        bad = seen[: len(adapter.token_ids(PROMPTS[2]))] == adapter.token_ids(PROMPTS[2]) and len(seen) > 20
        return choose(self, logits * float("nan") if bad else logits, seen)

    monkeypatch.setattr(Sampler, "choose", poisoned)
    found = drain(engine, [engine.add(prompt, GREEDY) for prompt in PROMPTS])
    assert isinstance(found[2], GenerationError)
    assert found[2].message == "model 'm': generation failed: the model's scores are not numbers (NaN)"
    assert [*found[:2], *found[3:]] == [*expected[:2], *expected[3:]]


def test_out_of_memory_in_a_batch_goes_on_with_fewer_rows(failing: MakeFailing) -> None:
    memory = torch.OutOfMemoryError("out of memory")
    adapter, engine, network = failing(lambda rows, _count: memory if rows > 3 else None)
    found = drain(engine, [engine.add(prompt, GREEDY) for prompt in PROMPTS])
    assert found == [adapter.generate(prompt, GREEDY) for prompt in PROMPTS]
    assert sum(rows > 3 for rows in network.passes) == 1
    assert 3 in network.passes


def test_out_of_memory_alone_is_that_rows_error(failing: MakeFailing) -> None:
    memory = torch.OutOfMemoryError("out of memory")
    _, engine, _ = failing(lambda rows, _count: memory if rows > 0 else None)
    (found,) = drain(engine, [engine.add("the", GREEDY)])
    assert isinstance(found, GenerationError)
    assert found.message == "model 'm': generation failed: out of memory"
    assert not engine.busy


def test_a_pass_that_breaks_off_once_leaves_no_trace(failing: MakeFailing) -> None:
    adapter, engine, network = failing(lambda _rows, count: ValueError("once") if count == 12 else None)
    found = drain(engine, [engine.add(prompt, GREEDY) for prompt in PROMPTS])
    assert network.passes[11] > 1
    assert found == [adapter.generate(prompt, GREEDY) for prompt in PROMPTS]


def test_threads_share_the_batch(chat: CausalLmAdapter) -> None:
    params = mixed_params()
    alone = [chat.generate(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    found: dict[int, Generation] = {}

    def ask(number: int) -> None:
        found[number] = chat.generate(PROMPTS[number % 6], params[number % 6])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(18)] == alone * 3
    assert not chat.engine.busy


def test_clients_that_come_and_leave_from_many_threads_lose_nothing(chat: CausalLmAdapter) -> None:
    params = mixed_params()
    alone = [chat.generate(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    handles: list[list[tuple[int, DecodeHandle]]] = [[] for _ in range(4)]
    stay = threading.Event()

    def drive() -> None:
        while not stay.is_set() or chat.engine.busy:
            chat.engine.step()

    def ask(worker: int) -> None:
        chance = random.Random(worker)  # noqa: S311 - a schedule, no secret
        for _ in range(30):
            index = chance.randrange(6)
            handles[worker].append((index, chat.engine.add(PROMPTS[index], params[index])))
            if chance.random() < 0.5:
                chat.engine.cancel(chance.choice(handles[worker])[1])

    driver = threading.Thread(target=drive)
    clients = [threading.Thread(target=ask, args=(worker,)) for worker in range(4)]
    for thread in (driver, *clients):
        thread.start()
    for thread in clients:
        thread.join()
    stay.set()
    driver.join()
    everything = [pair for worker in handles for pair in worker]
    assert len(everything) == 120
    assert (chat.engine.active, chat.engine.waiting) == (0, 0)
    for index, handle in everything:
        answer = whole(handle.take())
        assert handle.done
        assert answer == alone[index] or (answer is None and handle.cancelled)


def test_no_memory_to_join_means_decoding_apart(chat: CausalLmAdapter, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: RowGroup[Row], _other: RowGroup[Row]) -> None:
        raise torch.OutOfMemoryError("out of memory")

    expected = [chat.generate(prompt, GREEDY) for prompt in PROMPTS]
    monkeypatch.setattr(RowGroup, "absorb", refuse)
    assert chat.generate_batch(PROMPTS, GREEDY) == expected


def test_a_stream_may_be_left_and_another_begun_inside_it(chat: CausalLmAdapter) -> None:
    stream = chat.stream(PROMPTS[0], GREEDY)
    first = next(stream)
    assert chat.generate(PROMPTS[1], GREEDY).completion_tokens == 20
    rest = list(stream)
    assert first.text + "".join(piece.text for piece in rest) == chat.generate(PROMPTS[0], GREEDY).text
    left = chat.stream(PROMPTS[0], GREEDY)
    next(left)
    left.close()
    assert not chat.engine.busy


def test_sliding_windows_decode_row_by_row(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    adapter_vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=adapter_vocabulary, intermediate_size=64, sliding_window=6, **sizes)
    (folder / "generation_config.json").unlink(missing_ok=True)
    MistralForCausalLM(config).save_pretrained(folder)
    adapter = load(folder)
    group: RowGroup[str] = CachedNetwork(adapter._network, torch.device("cpu")).start_group("row")
    group.prefill([1, 2, 3])
    assert not group.joinable
    params = mixed_params()
    alone = [adapter.generate(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    assert adapter.generate_batch(PROMPTS, params) == alone


def test_settings_limit_the_batch(llama: Path) -> None:
    assert load(llama).engine.max_rows == 8
    assert "batching: up to 8 answers at once" in load(llama).info.notes
    single = load(llama, batch_processing={"enable_batching": False, "max_batch_size": 4})
    assert single.engine.max_rows == 1
    assert "batching: off, one answer at a time" in single.info.notes
    assert load(llama, max_batch_size=4).get_model_info()["max_batch_size"] == 4
    small = load(llama, max_batch_tokens=30)
    for prompt in PROMPTS:
        small.engine.add(prompt, GREEDY)
    small.engine.step()
    assert small.engine.active == 1


def test_int8_answers_the_same_in_company(llama: Path) -> None:
    adapter = load(llama, dtype="auto", int8=True)
    assert adapter.info.dtype == "int8"
    params = mixed_params()
    alone = [adapter.generate(prompt, each) for prompt, each in zip(PROMPTS, params, strict=True)]
    assert adapter.generate_batch(PROMPTS, params) == alone
    assert (
        "dtype int8: linear layers multiply 8-bit integers, asked for by the settings; not exact" in adapter.info.notes
    )
