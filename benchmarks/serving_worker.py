"""The serving rows' models, and what their peers do with them, in processes of their own.

``python -m benchmarks.serving_worker make FOLDER SHAPE`` writes a generator with random weights; ``... embed FOLDER
REPORT REQUESTS`` has the embedding adapter answer one request after the other; ``... generate FOLDER REPORT ANSWERS
TOKENS`` has transformers' own ``generate`` do so.
"""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from benchmarks.embedding_worker import texts

SHAPES: Final[Mapping[str, Mapping[str, int]]] = {
    "real": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
"""Of SmolLM2 135M, and next to nothing."""
PROMPT: Final = "a ship carries sealed goods across the water and lifts them on the other side"


def make(folder: Path, shape: str) -> None:
    """Write a Llama with random weights and a small tokenizer; the same bytes each time."""
    import torch  # noqa: PLC0415 # seconds, and only here
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 # as above

    from tests.factories_models import make_llama  # noqa: PLC0415 # as above

    make_llama(folder)
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = LlamaConfig(**SHAPES[shape], **ends, max_position_embeddings=2048, tie_word_embeddings=True)
    LlamaForCausalLM(config).save_pretrained(folder)


def embed(folder: Path, requests: int) -> dict[str, float]:
    """Return the seconds that the adapter takes for that many requests of one text, one after the other."""
    from runtime.adapters import load_adapter  # noqa: PLC0415 # as above
    from runtime.adapters.base import Embedder, ModelConfig  # noqa: PLC0415 # as above

    adapter = load_adapter(ModelConfig(name="bench", adapter="bge-m3", directory=folder, settings={"device": "cpu"}))
    if not isinstance(adapter, Embedder):
        raise AssertionError("an embedder was asked for")
    adapter.embed(texts(2))
    start = time.perf_counter()
    for text in texts(requests):
        adapter.embed([text])
    return {"seconds": time.perf_counter() - start}


def generate(folder: Path, answers: int, tokens: int) -> dict[str, float]:
    """Return the seconds that transformers takes for that many greedy answers, one after the other, and the tokens."""
    import torch  # noqa: PLC0415 # as above
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 # as above

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    network = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    options = {"do_sample": False, "min_new_tokens": tokens, "pad_token_id": 0}
    made = 0
    with torch.inference_mode():
        network.generate(**ids, max_new_tokens=4, **{**options, "min_new_tokens": 4})
        start = time.perf_counter()
        for _ in range(answers):
            made += network.generate(**ids, max_new_tokens=tokens, **options).shape[1] - ids["input_ids"].shape[1]
    return {"seconds": time.perf_counter() - start, "tokens": made}


def main(action: str, folder: str, *words: str) -> None:
    """Do one of the three."""
    if action == "make":
        make(Path(folder), words[0])
        return
    report, numbers = Path(words[0]), [int(word) for word in words[1:]]
    found = embed(Path(folder), *numbers) if action == "embed" else generate(Path(folder), *numbers)
    report.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
