"""Generators against transformers' own ``generate`` and its tokenizers."""

import importlib.util
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from manifests.errors import AdapterError
from manifests.modelsettings import REFUSED
from runtime.adapters import load_adapter
from runtime.adapters.base import (
    JSON,
    ContextTooLongError,
    GenerationError,
    GenerationParams,
    Generator,
    Message,
    ModelConfig,
    RequestError,
)
from runtime.adapters.causal_lm import CausalLmAdapter, HcxAdapter, HCXOfflineAdapter
from runtime.adapters.decoding import KNOWN_STOP_TOKENS, Sampler
from runtime.adapters.prompts import rag_question
from runtime.adapters.reading import AnswerReader, Vocabulary
from runtime.adapters.rows import CachedNetwork
from tests.factories_models import write_json

pytestmark = pytest.mark.models
HELLO = [Message(role="user", content="the cat sleeps")]


def load(directory: Path, adapter: str = "causal-lm", **settings: JSON) -> Any:  # noqa: ANN401 - any adapter
    written = {"dtype": "float32", **settings}
    return load_adapter(ModelConfig(name="m", adapter=adapter, directory=directory, settings=written))


def reference(directory: Path, ids: list[int], **options: object) -> list[int]:
    """Return the new tokens of transformers' own greedy search."""
    network = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32).eval()
    inputs = torch.tensor([ids])
    with torch.inference_mode():
        found = network.generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False, **options)
    return [int(token) for token in found[0, len(ids) :]]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("name", ["llama", "hyperclovax"])
def test_greedy_is_what_transformers_generates(
    name: str, penalty: float, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    folder: Path = request.getfixturevalue(name)
    adapter = load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for prompt in ("the quick brown", "대한민국의 수도는", "a"):
        ids = tokenizer(prompt)["input_ids"]
        stop = sorted(adapter.stop_ids)
        options = {"max_new_tokens": 24, "repetition_penalty": penalty, "eos_token_id": stop, "pad_token_id": 0}
        expected = reference(folder, ids, **options)
        result = adapter.generate(prompt, GenerationParams(max_new_tokens=24, repetition_penalty=penalty))
        assert result.text == tokenizer.decode(expected, skip_special_tokens=True)
        assert (result.prompt_tokens, result.completion_tokens) == (len(ids), len(expected))
        assert result.finish_reason == ("stop" if expected[-1] in stop else "length")
    assert "deprecated" not in caplog.text


def test_conversations_go_through_the_chat_template(chat: CausalLmAdapter, llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama, local_files_only=True)
    text = "<|im_start|>user\nthe cat sleeps<|im_end|>\n<|im_start|>assistant\n"
    result = chat.generate(HELLO, GenerationParams(max_new_tokens=5))
    assert result.prompt_tokens == len(tokenizer(text)["input_ids"])
    assert result == chat.generate(text, GenerationParams(max_new_tokens=5))
    assert "chat template: the folder's own" in chat.info.notes
    assert chat.get_model_info()["prompt"] == "chat template"


def test_without_a_template_the_korean_prompt_is_used_and_said(hyperclovax: Path) -> None:
    adapter = load(hyperclovax, "hcx")
    assert isinstance(adapter, HcxAdapter)
    assert isinstance(adapter, Generator)
    params = GenerationParams(max_new_tokens=6)
    assert adapter.generate(HELLO, params) == adapter.generate("the cat sleeps\n\n답변: ", params)
    assert "chat template: none, plain Korean prompt" in adapter.info.notes
    info = adapter.get_model_info()
    expected = {"model_name": "m", "device": "cpu", "max_length": 256, "temperature": 0.0, "top_p": 1.0}
    assert {key: info[key] for key in expected} == expected
    assert info["prompt"] == "plain Korean prompt"


def test_stop_ids_are_collected_from_everywhere(llama: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama, local_files_only=True)
    named = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endofturn|>", "<|stop|>")}
    assert load(llama).stop_ids == named | {0}
    folder = shutil.copytree(llama, tmp_path / "model")
    write_json(folder / "generation_config.json", {"eos_token_id": [7, 9]})
    assert load(folder).stop_ids == named | {0, 7, 9}
    assert "<|im_start|>" not in KNOWN_STOP_TOKENS


def test_pieces_join_to_the_whole_and_the_last_has_the_reason(chat: CausalLmAdapter) -> None:
    params = GenerationParams(max_new_tokens=40, temperature=1.0, seed=11)
    pieces = list(chat.stream("the quick", params))
    whole = chat.generate("the quick", params)
    assert "".join(piece.text for piece in pieces) == whole.text
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].finish_reason, pieces[-1].completion_tokens) == (whole.finish_reason, whole.completion_tokens)
    assert len(pieces) > 3


def test_seeds_repeat_and_differ_and_ignore_the_global_one(chat: CausalLmAdapter) -> None:
    texts = []
    for seed, noise in ((1, 5), (1, 6), (2, 5)):
        torch.manual_seed(noise)
        texts.append(chat.generate("the", GenerationParams(max_new_tokens=30, temperature=1.0, seed=seed)).text)
    assert texts[0] == texts[1] != texts[2]


def test_settings_are_defaults_and_requests_override_them(llama: Path, chat: CausalLmAdapter) -> None:
    warm = load(llama, temperature="1.0", seed=3, max_new_tokens=7)
    assert warm.generate("the") == chat.generate("the", GenerationParams(max_new_tokens=7, temperature=1.0, seed=3))
    cold = GenerationParams(max_new_tokens=9, temperature=0.0)
    assert warm.generate("the", cold) == chat.generate("the", cold)


def test_stop_strings_end_the_text_and_are_not_in_it(llama: Path, chat: CausalLmAdapter) -> None:
    params = GenerationParams(max_new_tokens=60, temperature=1.0, seed=4)
    whole = chat.generate("the quick", params).text
    stop = whole[10:13]
    result = chat.generate("the quick", GenerationParams(max_new_tokens=60, temperature=1.0, seed=4, stop=(stop,)))
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"
    assert load(llama, stop=[stop]).generate("the quick", params).text == result.text


def test_reader_holds_back_halves_of_characters_and_of_stop_strings(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama, local_files_only=True)
    text = "끝 END서울 EN"
    for stop, expected in (((), text), (("END",), "끝 "), (("ENX",), text), (("울 EN",), "끝 END서")):
        reader = AnswerReader(Vocabulary(tokenizer=tokenizer), stop=stop)
        pieces = []
        for token in tokenizer(text)["input_ids"]:
            pieces.append(reader.push(token).text)
            if reader.stopped:
                break
        pieces.append(reader.finish().text)
        assert "".join(pieces) == expected
        assert not any("\ufffd" in piece for piece in pieces)
        assert all(expected.startswith("".join(pieces[:count])) for count in range(len(pieces)))


def test_reader_gives_up_what_never_becomes_a_character(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama, local_files_only=True)
    first_byte = tokenizer("갛", add_special_tokens=False)["input_ids"][0]
    reader = AnswerReader(Vocabulary(tokenizer=tokenizer))
    assert reader.push(first_byte).text == ""
    assert reader.finish().text == "\ufffd"


def test_nucleus_keeps_the_token_that_crosses_the_bound() -> None:
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    for top_p, allowed in ((0.5, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        sampler = Sampler(temperature=1.0, top_p=top_p, repetition_penalty=1.0, seed=0)
        assert {sampler.choose(logits, []) for _ in range(400)} == allowed


def test_contexts_are_cut_from_the_end_and_the_question_never(
    chat: CausalLmAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    contexts = ["the cat sleeps in the warm sun", "a ship carries goods " * 20, "서울이다 " * 30]
    params = GenerationParams(max_new_tokens=16)
    fitted = chat.fit("수도는?", contexts, params)
    assert fitted.texts[0] == contexts[0]
    assert len(fitted.texts) == 2
    assert contexts[1].startswith(fitted.texts[1])
    assert fitted.shortened
    assert fitted.dropped == 1
    with caplog.at_level(logging.WARNING):
        result = chat.answer("수도는?", contexts, params)
    assert "of 3 contexts 1 were dropped and 1 shortened to fit" in caplog.text
    assert 236 <= result.prompt_tokens <= 240
    asked = [Message(role="user", content=rag_question("수도는?", fitted.texts))]
    assert result == chat.generate(asked, params)
    reported = chat.answer_from("수도는?", contexts, params)
    assert (reported.generation, reported.contexts) == (result, fitted)
    assert fitted.report() == "of 3 contexts 1 were dropped and 1 shortened to fit"


def test_generate_answer_is_the_text_alone(chat: CausalLmAdapter) -> None:
    asked = [Message(role="user", content=rag_question("수도는?", ["서울이다"]))]
    assert chat.generate_answer("수도는?", ["서울이다"]) == chat.generate(asked).text.strip()


def test_a_question_that_does_not_fit_is_an_error(chat: CausalLmAdapter) -> None:
    with pytest.raises(
        ContextTooLongError, match=r"^prompt of \d+ tokens and answer of 1 don't fit into the context of 256$"
    ):
        chat.generate_answer("수도는? " * 200, ["서울이다"])
    with pytest.raises(ContextTooLongError, match=r"and answer of 255 don't fit into the context of 256$"):
        chat.generate(HELLO, GenerationParams(max_new_tokens=255))


def test_the_context_ends_an_answer_without_a_limit(chat: CausalLmAdapter) -> None:
    tokens = [piece.completion_tokens for piece in chat.stream("the", GenerationParams(temperature=2.0, seed=1))]
    assert tokens[-1] <= 255


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (GenerationParams(temperature=-0.1), "temperature: expected 0 (greedy) to 100, got -0.1"),
        (GenerationParams(top_p=0.0), "top_p: expected more than 0, at most 1, got 0"),
        (GenerationParams(repetition_penalty=0.0), "repetition_penalty: expected more than 0, at most 100, got 0"),
        (GenerationParams(max_new_tokens=0), "max_tokens: expected at least 1, got 0"),
    ],
)
def test_parameters_out_of_range(chat: CausalLmAdapter, params: GenerationParams, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat.generate(HELLO, params)
    assert (caught.value.message, caught.value.param) == (message, message.partition(":")[0])


def test_a_template_that_refuses_is_the_requests_fault(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}", encoding="utf-8")
    with pytest.raises(RequestError, match=r"^the chat template of 'm' refuses: roles must alternate$"):
        load(folder).generate(HELLO)


def test_template_arguments_and_system_prompt_have_an_effect(
    llama: Path, tmp_path: Path, chat: CausalLmAdapter
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    template = (
        "{% if skip_reasoning %}skip {% endif %}{% for m in messages %}{{ m['role'] }}={{ m['content'] }};{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    params = GenerationParams(max_new_tokens=4)
    adapter = load(folder, chat_template_kwargs={"skip_reasoning": True}, system_prompt="sun")
    assert adapter.generate(HELLO, params) == chat.generate("skip system=sun;user=the cat sleeps;", params)
    own = [Message(role="system", content="ship"), *HELLO]
    assert adapter.generate(own, params) == chat.generate("skip system=ship;user=the cat sleeps;", params)


def test_scores_that_are_not_numbers_are_an_error_and_no_answer(llama: Path) -> None:
    adapter = load(llama)
    with torch.no_grad():
        adapter._network.model.norm.weight.fill_(float("nan"))
    with pytest.raises(
        GenerationError, match=r"^model 'm': generation failed: the model's scores are not numbers \(NaN\)$"
    ):
        adapter.generate("the")


def test_constructor_of_the_guide(llama: Path) -> None:
    adapter = HCXOfflineAdapter(model_path=str(llama), device="cpu", max_length=64, temperature=0.7, top_p=0.9)
    assert (adapter.info.adapter, adapter.info.limit, adapter.info.name) == ("hcx", 64, "llama")
    assert adapter.get_model_info()["temperature"] == 0.7
    with pytest.raises(AdapterError, match=r"settings: max_lenght: adapter 'hcx' has no such setting"):
        HcxAdapter(str(llama), max_lenght=3)


def test_quantised_loading_needs_cuda(llama: Path) -> None:
    wanted: list[tuple[str, dict[str, JSON]]] = [(key, {key: True}) for key in ("load_in_8bit", "load_in_4bit")]
    for key, asked in wanted:
        with pytest.raises(AdapterError, match=rf"^model 'm': settings: {key}: needs CUDA$") as caught:
            load(llama, "causal-lm", **asked)
        assert caught.value.hint == "int8: true quantises on a CPU"


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"int8": True, "device": "cuda"}, "int8: for a CPU only, contradicts device 'cuda'; load_in_8bit is for CUDA"),
        ({"int8": True, "dtype": "bfloat16"}, "int8: true contradicts dtype 'bfloat16'"),
        (
            {"int8": True, "load_in_4bit": True},
            "int8: for a CPU, contradicts load_in_8bit and load_in_4bit, which are for CUDA",
        ),
        ({"load_in_8bit": True, "load_in_4bit": True}, "load_in_4bit: contradicts load_in_8bit, choose one"),
        ({"max_batch_size": 0}, "max_batch_size: expected at least 1, got 0"),
        (
            {"optimization": {"gradient_checkpointing": True}},
            "gradient_checkpointing: refused: it is a training option and has no effect on inference",
        ),
        ({"generation": {"do_sample": True}}, "do_sample: refused: temperature decides: 0 is greedy, above 0 samples"),
        (
            {"trust_remote_code": True},
            f"trust_remote_code: refused: {REFUSED['trust_remote_code']}",
        ),
        ({"generation": {"top_k": 5}}, "top_k: adapter 'causal-lm' has no such setting"),
    ],
)
def test_settings_without_effect_are_refused_by_name(llama: Path, written: dict[str, JSON], message: str) -> None:
    with pytest.raises(AdapterError) as caught:
        load_adapter(ModelConfig(name="m", adapter="causal-lm", directory=llama, settings=written))
    assert caught.value.message == f"model 'm': settings: {message}"


def test_every_key_of_the_guides_yaml_has_its_effect(llama: Path) -> None:
    sections: dict[str, JSON] = {
        "generation": {"max_length": 128, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
        "optimization": {"use_flash_attention": False, "load_in_8bit": False, "load_in_4bit": False},
        "batch_processing": {"max_batch_size": 4, "enable_batching": True},
    }
    config = ModelConfig(name="m", adapter="hcx", directory=llama, settings={"device": "auto", **sections})
    adapter = load_adapter(config)
    assert isinstance(adapter, HcxAdapter)
    info = adapter.get_model_info()
    expected = {"max_length": 128, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1, "max_batch_size": 4}
    assert {key: info[key] for key in expected} == expected


def test_int8_is_close_and_said(llama: Path) -> None:
    adapter, exact = load(llama, dtype="auto", int8=True), load(llama)
    ids = [adapter.token_ids("the quick brown fox jumps over the lazy dog")]
    found, _ = CachedNetwork(adapter._network, torch.device("cpu")).forward(ids, None, [0])
    expected, _ = CachedNetwork(exact._network, torch.device("cpu")).forward(ids, None, [0])
    assert torch.nn.functional.cosine_similarity(found, expected).item() > 0.99
    assert not torch.equal(found, expected)
    assert adapter.get_model_info()["dtype"] == "int8"


def test_flash_attention_falls_back_with_a_warning(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        adapter = load(llama, device="cpu", use_flash_attention=True)
    note = "attention: SDPA, because use_flash_attention can't be honoured: the device is cpu"
    assert note in caplog.text
    assert note in adapter.info.notes


def test_langchain_is_needed_for_its_models_alone(chat: CausalLmAdapter) -> None:
    if importlib.util.find_spec("langchain_core"):
        assert chat.get_llm().model == "chat"
        return
    for call in (chat.get_llm, chat.get_chat_model):
        with pytest.raises(AdapterError) as caught:
            call()
        assert (
            caught.value.message == "model 'chat': a LangChain model needs langchain_core, which isn't installed here"
        )
        assert caught.value.hint == "add langchain-core to the spec's requirements"


def test_a_folder_without_its_tokenizer_is_refused(llama: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(AdapterError, match="can't be loaded: Couldn't instantiate the backend tokenizer"):
        load(folder)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"})
    with pytest.raises(AdapterError) as caught:
        load(folder)
    assert caught.value.message == f"model 'm': {folder}: the tokenizer knows no text: its vocabulary has 1 tokens"
    assert caught.value.hint == "tokenizer.json is missing from the folder; another model's doesn't fit"
