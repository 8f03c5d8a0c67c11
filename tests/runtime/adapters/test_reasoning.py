"""Reasoning apart from the answer: both ways of marking it, from whole text, in pieces of any size, and from tokens."""

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from manifests.errors import AdapterError
from runtime.adapters import load_adapter
from runtime.adapters.base import GenerationError, GenerationParams, Message, ModelConfig, Prompt, RequestError
from runtime.adapters.causal_lm import CausalLmAdapter
from runtime.adapters.reading import AnswerReader, Vocabulary
from runtime.adapters.reasoning import Parts, ReasoningSplitter, Style, find_markers, find_style
from runtime.adapters.templating import PromptEncoder

pytestmark = pytest.mark.models
HCX_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% if force_reasoning %}/think\n"
    "{% elif skip_reasoning %}{{ '\n' }}{% endif %}{% endif %}"
)
HELLO: Final = [Message(role="user", content="the cat")]
CASES: Final[list[tuple[Style, str, str, str, str]]] = [
    ("hcx", "<|im_start|>assistant/think\n", "걷자.<|im_end|>\n<|im_start|>assistant\n네\n둘", "걷자.", "네\n둘"),
    ("hcx", "<|im_start|>assistant", "/think\nwalk\n<|im_end|>\n<|im_start|>assistant\n네", "walk", "네"),
    ("hcx", "<|im_start|>assistant", "\n네, /think 아님", "", "네, /think 아님"),
    ("hcx", "<|im_start|>assistant", "네", "", "네"),
    ("hcx", "<|im_start|>assistant\n", " 네", "", " 네"),
    ("hcx", "<|im_start|>assistant/think\n", "walk<|im_end|>네", "walk", "네"),
    ("hcx", "<|im_start|>assistant/think\n", "walk on", "walk on", ""),
    ("tags", "<|im_start|>assistant\n<think>\n", "walk\n\non\n</think>\n\nyes </think>", "walk\n\non", "yes </think>"),
    ("tags", "<|im_start|>assistant\n", "\n<think>walk</think>yes", "walk", "yes"),
    ("tags", "<|im_start|>assistant\n", " yes <think> no", "", " yes <think> no"),
    ("tags", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "yes", "", "yes"),
    ("tags", "<|im_start|>assistant\n", "<thi", "", "<thi"),
    ("tags", "<think>", "walk </thin", "walk </thin", ""),
]


def divide(style: Style, prompt: str, pieces: list[str]) -> Parts:
    splitter = ReasoningSplitter(style, prompt)
    parts = Parts()
    for piece in pieces:
        parts += splitter.push(piece)
    return parts + splitter.finish()


def think_folder(llama: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(llama, tmp_path / "think")
    (folder / "chat_template.jinja").write_text(HCX_TEMPLATE, encoding="utf-8")
    return folder


def load(folder: Path, **options: Any) -> CausalLmAdapter:  # noqa: ANN401 - settings of any type
    config = ModelConfig(name="m", adapter="hcx", directory=folder, settings={"dtype": "float32", **options})
    adapter = load_adapter(config)
    assert isinstance(adapter, CausalLmAdapter)
    return adapter


def read(adapter: CausalLmAdapter, prompt: Prompt, text: str, **options: Any) -> tuple[Parts, list[Parts], bool]:  # noqa: ANN401 - as above
    """Return what the adapter's own reader makes of an answer: the whole, its pieces, and whether it stopped."""
    params = GenerationParams(**options)
    reader = adapter._make_reader(adapter._encoder.encode(prompt, params.chat_template_kwargs), params)
    pieces, whole = [], Parts()
    for token in adapter.token_ids(text):
        pieces.append(reader.push(token))
        if reader.stopped:
            break
    pieces.append(reader.finish())
    for piece in pieces:
        whole += piece
    return whole, pieces, reader.stopped


@pytest.mark.parametrize(("style", "prompt", "said", "reasoning", "text"), CASES)
def test_whole_answers(style: Style, prompt: str, said: str, reasoning: str, text: str) -> None:
    assert divide(style, prompt, [said]) == Parts(reasoning=reasoning, text=text)


@given(case=st.sampled_from(CASES), cuts=st.lists(st.integers(0, 80), max_size=12))
def test_the_size_of_the_pieces_makes_no_difference(case: tuple[Style, str, str, str, str], cuts: list[int]) -> None:
    style, prompt, said, reasoning, text = case
    places = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
    pieces = [said[start:stop] for start, stop in pairwise(places)]
    assert divide(style, prompt, pieces) == Parts(reasoning=reasoning, text=text)
    assert divide(style, prompt, list(said)) == Parts(reasoning=reasoning, text=text)


def test_styles_are_found_by_template_and_tokens() -> None:
    assert find_style(HCX_TEMPLATE, ()) == "hcx"
    assert find_style("<|im_start|>{{ '</think>' }}", ()) == "tags"
    assert find_style("<|im_start|>assistant", ("<think>", "</think>")) == "tags"
    assert find_style("<|im_start|>assistant\n", ("<think>",)) is None
    assert find_markers("hcx", {"<|im_end|>": 2, "<|im_start|>": 1, "</think>": 5}) == {
        1: "<|im_start|>",
        2: "<|im_end|>",
    }
    assert find_markers(None, {"<|im_end|>": 2}) == {}


def test_the_end_of_the_reasoning_turn_does_not_end_the_answer(llama: Path, tmp_path: Path) -> None:
    adapter = load(think_folder(llama, tmp_path))
    said = "the cat.<|im_end|>\n<|im_start|>assistant\n서울이다<|im_end|>more"
    options = {"chat_template_kwargs": {"force_reasoning": True}}
    whole, pieces, stopped = read(adapter, HELLO, said, **options)
    assert (whole, stopped) == (Parts(reasoning="the cat.", text="서울이다"), True)
    assert sum(bool(piece) for piece in pieces) > 4
    skipped, _, stopped = read(adapter, HELLO, said, chat_template_kwargs={"skip_reasoning": True})
    assert (skipped, stopped) == (Parts(text="the cat."), True)
    assert read(adapter, HELLO, f"the<|endofturn|>{said}", **options)[0] == Parts(reasoning="the")
    assert read(adapter, "the cat", said)[0] == Parts(text="the cat.")


def test_stop_strings_are_looked_for_in_the_answer_only(llama: Path, tmp_path: Path) -> None:
    adapter = load(think_folder(llama, tmp_path))
    said = "the END cat<|im_end|>\n<|im_start|>assistant\nsun END moon"
    whole, _, stopped = read(adapter, HELLO, said, chat_template_kwargs={"force_reasoning": True}, stop=("END",))
    assert (whole, stopped) == (Parts(reasoning="the END cat", text="sun "), True)


def test_think_tags_that_are_tokens_of_their_own(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama, local_files_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    added = tokenizer.get_added_vocab()
    style = find_style("", added)
    assert style == "tags"
    reader = AnswerReader(
        Vocabulary(tokenizer=tokenizer, markers=find_markers(style, added)), splitter=ReasoningSplitter(style, "")
    )
    whole = Parts()
    for token in tokenizer("<think>\nwalk</think>\n\nyes", add_special_tokens=False)["input_ids"]:
        whole += reader.push(token)
    assert whole + reader.finish() == Parts(reasoning="walk", text="yes")


def test_generation_streams_reasoning_and_says_what_it_is(llama: Path, tmp_path: Path) -> None:
    folder = think_folder(llama, tmp_path)
    adapter = load(folder, chat_template_kwargs={"force_reasoning": True}, max_new_tokens=12)
    assert "reasoning" in adapter.info.features
    assert "reasoning: told apart by HyperCLOVA X's assistant/think turns" in adapter.info.notes
    params = GenerationParams(temperature=1.0, seed=1)
    result = adapter.generate(HELLO, params)
    assert (result.text, result.finish_reason) == ("", "length")
    plain = GenerationParams(temperature=1.0, seed=1, max_new_tokens=12)
    rendered = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant/think\n"
    assert result.reasoning == adapter.generate(rendered, plain).text.strip()
    pieces = list(adapter.stream(HELLO, params))
    assert "".join(piece.reasoning for piece in pieces) == result.reasoning
    assert sum(bool(piece.reasoning) for piece in pieces) > 2


def test_an_answer_that_was_all_reasoning_is_an_error(llama: Path, tmp_path: Path) -> None:
    options = {"temperature": 1.0, "seed": 1, "max_new_tokens": 12}
    adapter = load(think_folder(llama, tmp_path), chat_template_kwargs={"force_reasoning": True}, **options)
    with pytest.raises(
        GenerationError, match=r"^model 'm': the 12 tokens for the answer were all reasoning$"
    ) as caught:
        adapter.generate_answer("수도는?", [])
    assert caught.value.hint == "raise max_new_tokens, or set chat_template_kwargs: {skip_reasoning: true}"


def test_template_arguments_of_a_request(llama: Path, hyperclovax: Path, tmp_path: Path) -> None:
    adapter = load(think_folder(llama, tmp_path), chat_template_kwargs={"force_reasoning": True})
    encoder = adapter._encoder
    assert encoder.encode(HELLO).text.endswith("assistant/think\n")
    off = {"force_reasoning": False, "skip_reasoning": True}
    assert encoder.encode(HELLO, off).text.endswith("assistant\n")
    message = r"^chat_template_kwargs: a text goes to the model as it is$"
    with pytest.raises(RequestError, match=message):
        adapter.generate("the", GenerationParams(chat_template_kwargs={"skip_reasoning": True}))
    with pytest.raises(RequestError, match=r"^chat_template_kwargs: this model has no chat template$"):
        load(hyperclovax).generate(HELLO, GenerationParams(chat_template_kwargs={"skip_reasoning": True}))


def test_a_template_chosen_by_name_counts_too(llama: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama, local_files_only=True)
    tokenizer.chat_template = {"default": "x", "rag": HCX_TEMPLATE}
    assert find_style(PromptEncoder(tokenizer, model="m").template, ()) == "hcx"
    assert json.dumps(PromptEncoder(tokenizer, model="m").encode(HELLO).text) == '"x"'
    assert issubclass(RequestError, AdapterError)
