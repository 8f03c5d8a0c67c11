"""Request bodies: what is taken, and what is refused by name."""

import pytest

from runtime.adapters.base import GenerationParams, Message
from runtime.server.requests import (
    ApiError,
    parse_body,
    parse_chat,
    parse_completion,
    parse_embeddings,
    parse_multi,
)

HI = [{"role": "user", "content": "hi"}]


def test_a_full_chat_request() -> None:
    body = {
        "model": "m",
        "messages": [
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": None},
        ],
        "max_completion_tokens": 5,
        "temperature": 0.5,
        "top_p": 1,
        "seed": 7,
        "stop": "END",
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "presence_penalty": 0.0,
        "logprobs": False,
        "tools": [],
        "user": "someone",
        "logit_bias": None,
    }
    asked = parse_chat(body)
    assert asked.prompts == ((Message(role="system", content="be brief"), Message(role="user", content="ab")),)
    assert asked.params == GenerationParams(max_new_tokens=5, temperature=0.5, top_p=1.0, seed=7, stop=("END",))
    assert (asked.stream, asked.include_usage) == (True, True)


def test_older_and_newer_name_of_the_limit() -> None:
    assert parse_chat({"model": "m", "messages": HI, "max_tokens": 3}).params.max_new_tokens == 3
    with pytest.raises(ApiError, match=r"^max_tokens: 3 contradicts max_completion_tokens 4$"):
        parse_chat({"model": "m", "messages": HI, "max_tokens": 3, "max_completion_tokens": 4})


@pytest.mark.parametrize(
    ("extra", "message", "param"),
    [
        ({"n": 17}, "n: 17 answers to 1 prompts, at most 16 and 64 in all", "n"),
        ({"n": 0}, "n: expected an integer of at least 1, got 0", "n"),
        ({"best_of": 2}, "best_of: every answer that is made is returned; n asks for several", "best_of"),
        ({"top_k": 5}, "top_k: not supported; top_p and temperature are", "top_k"),
        ({"reasoning_effort": "low"}, "reasoning_effort: not supported; chat_template_kwargs", "reasoning_effort"),
        ({"chat_template_kwargs": 1}, "chat_template_kwargs: expected an object", "chat_template_kwargs"),
        ({"tools": [{}]}, "tools: tool calls are not supported", "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: not supported; repetition_penalty is", "frequency_penalty"),
        ({"temprature": 1}, "temprature: unknown or not supported here; did you mean 'temperature'?", "temprature"),
        ({"temperature": 3}, "temperature: expected a number from 0 to 2, got 3", "temperature"),
        ({"top_p": 0}, "top_p: expected a number above 0 to 1, got 0", "top_p"),
        ({"seed": 1.5}, "seed: expected an integer of at least 0, got 1.5", "seed"),
        ({"max_tokens": 0}, "max_tokens: expected an integer of at least 1, got 0", "max_tokens"),
        ({"stop": [""]}, "stop: expected a non-empty string or a list of them", "stop"),
        ({"stream": "yes"}, "stream: expected a boolean, got a string", "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options: only with stream: true", "stream_options"),
        ({"response_format": {"type": "json_object"}}, "response_format: only {'type': 'text'} is ", "response_format"),
        ({"messages": []}, "messages: expected a list with at least one message", "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role: expected one of ", "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content: only parts of type 'text' are supported",
            "messages[0].content",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
            "messages[0].tool_calls: not supported",
            "messages[0].tool_calls",
        ),
        ({"model": None}, "model: expected a string, got nothing", "model"),
    ],
)
def test_refused_chat_parameters(extra: dict[str, object], message: str, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_chat({"model": "m", "messages": HI, **extra})
    assert caught.value.message.startswith(message)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_embedding_inputs() -> None:
    assert parse_embeddings({"model": "m", "input": "a"}).inputs == ("a",)
    assert parse_embeddings({"model": "m", "input": ["a", "b"]}).inputs == ("a", "b")
    assert parse_embeddings({"model": "m", "input": [5, 6]}).inputs == ([5, 6],)
    assert parse_embeddings({"model": "m", "input": [[5, 6], [7]]}).inputs == ([5, 6], [7])
    assert parse_embeddings({"model": "m", "input": "a", "encoding_format": "base64"}).base64
    multi = parse_multi({"model": "m", "input": "a", "return_sparse": True, "return_dense": False})
    assert (multi.dense, multi.sparse, multi.colbert) == (False, True, False)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            {"dimensions": 64},
            "dimensions: the model's vectors have one length; cutting them would change ",
        ),
        ({"input": []}, "input: expected a string, a list of strings, or token lists"),
        ({"input": None}, "input: expected a string, a list of strings, or token lists"),
        ({"input": ["a", 5]}, "input[1]: expected a string or a list of token ids, got an integer"),
        ({"input": [True]}, "input[0]: expected a string or a list of token ids, got a boolean"),
        ({"input": ["a"] * 2049}, "input: 2049 inputs, at most 2048 in one request"),
        ({"encoding_format": "int8"}, "encoding_format: expected 'float' or 'base64', got 'int8'"),
    ],
)
def test_refused_embedding_parameters(extra: dict[str, object], message: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_embeddings({"model": "m", "input": "a", **extra})
    assert caught.value.message.startswith(message)


def test_completions_take_strings_only() -> None:
    assert parse_completion({"model": "m", "prompt": ["a", "b"]}).prompts == ("a", "b")
    with pytest.raises(ApiError, match=r"^prompt: expected a string or a list of strings$"):
        parse_completion({"model": "m", "prompt": [1, 2]})
    with pytest.raises(ApiError, match=r"^n: 16 answers to 5 prompts, at most 16 and 64 in all$"):
        parse_completion({"model": "m", "prompt": ["a"] * 5, "n": 16})
    with pytest.raises(ApiError, match=r"^suffix: text is only continued, not filled in$"):
        parse_completion({"model": "m", "prompt": "a", "suffix": "b"})


def test_rows_have_seeds_of_their_own() -> None:
    asked = parse_completion({"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 7})
    assert [(prompt, params.seed) for prompt, params in asked.rows()] == [("a", 7), ("a", 8), ("b", 7), ("b", 8)]
    unseeded = parse_completion({"model": "m", "prompt": "a", "n": 2}).rows()
    assert [params.seed for _, params in unseeded] == [None, None]


@pytest.mark.parametrize("extra", [{"tool_choice": "auto"}, {"tools": []}, {"service_tier": "auto"}, {"user": "x"}])
def test_what_asks_for_nothing_is_taken(extra: dict[str, object]) -> None:
    assert parse_chat({"model": "m", "messages": HI, **extra}) == parse_chat({"model": "m", "messages": HI})


def test_multi_asks_for_something_and_not_too_much() -> None:
    with pytest.raises(ApiError, match=r"^return_dense: nothing is asked for"):
        parse_multi({"model": "m", "input": "a", "return_dense": False})
    with pytest.raises(ApiError, match=r"^input: 65 inputs, at most 64 with return_colbert_vecs$"):
        parse_multi({"model": "m", "input": ["a"] * 65, "return_colbert_vecs": True})


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b'{"a": NaN}', b"[" * 100_000])
def test_bodies_that_are_not_json(data: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse_body(data)
    assert caught.value.code == "invalid_json"
    assert caught.value.message.startswith("the body is not JSON: ")


def test_a_body_that_is_no_object() -> None:
    with pytest.raises(ApiError, match=r"^the body is a list, expected an object$"):
        parse_body(b"[]")
