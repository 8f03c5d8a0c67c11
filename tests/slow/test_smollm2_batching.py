"""Batched decoding with real weights: SmolLM2 135M, as the quickstart's bundle carries it."""

from pathlib import Path

import pytest

from bundler.packages.pipconfig import load_pip_config
from bundler.snapshots.models import lock_model
from bundler.specfile import load_spec
from bundler.store import Store, default_cache
from runtime.adapters.base import GenerationParams, Message, Prompt
from runtime.adapters.causal_lm import CausalLmAdapter

pytestmark = [pytest.mark.slow, pytest.mark.models]
QUICKSTART = Path(__file__).parents[2] / "manifests" / "bundles" / "quickstart.toml"
QUESTIONS = ("What is the capital of France?", "Name three colours.", "Who wrote Hamlet? Answer in one word.", "Hi!")


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> CausalLmAdapter:
    spec, store, folder = load_spec(QUICKSTART), Store(default_cache()), tmp_path_factory.mktemp("smollm2")
    for file in lock_model(spec.models[1], spec, store, load_pip_config()).files:
        (folder / Path(file.path).name).symlink_to(store.path(file.sha256))
    return CausalLmAdapter(folder, "cpu", max_new_tokens=16)


def test_real_answers_are_the_same_alone_and_together(smollm2: CausalLmAdapter) -> None:
    prompts: list[Prompt] = [[Message(role="user", content=text)] for text in QUESTIONS]
    prompts.append("The quick brown fox")
    greedy = [smollm2.generate(prompt) for prompt in prompts]
    assert "Paris" in greedy[0].text
    assert smollm2.generate_batch(prompts) == greedy
    params = [GenerationParams(temperature=0.9, top_p=0.95, seed=number) for number in range(len(prompts))]
    sampled = [smollm2.generate(prompt, each) for prompt, each in zip(prompts, params, strict=True)]
    assert smollm2.generate_batch(prompts, params) == sampled
    assert sampled != greedy
    assert "".join(piece.text for piece in smollm2.stream(prompts[0])) == greedy[0].text
