"""One side of the embedding rows, in a process of its own: loads a model, embeds, and says how long each call took.

``python -m benchmarks.embedding_worker make FOLDER SHAPE`` writes a model with random weights; ``... run SIDE FOLDER
THREADS ROUNDS REPORT`` measures one side of it.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.workload import write_model

WORDS: Final = 5_000
SHAPES: Final[Mapping[str, Mapping[str, int]]] = {
    "real": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
}
_VOCABULARY: Final = 250_002
_SPECIAL: Final = ("<s>", "<pad>", "</s>", "<unk>")

Encode: Any = Callable[[list[str]], Any]  # Any: three libraries' own forms


def texts(count: int) -> list[str]:
    """Return that many texts of 3 to 120 words, most of them short; the same ones each time."""
    chance = random.Random(count)  # noqa: S311 # texts, not secrets
    lengths = [min(120, 3 + int(chance.expovariate(1 / 25))) for _ in range(count)]
    return [" ".join(f"w{chance.randrange(WORDS)}" for _ in range(length)) for length in lengths]


def make(folder: Path, shape: str) -> None:
    """Write a folder that FlagEmbedding, sentence-transformers and Sealift load."""
    import torch  # noqa: PLC0415 # seconds, and only here
    from transformers import XLMRobertaConfig, XLMRobertaModel  # noqa: PLC0415 # as above

    folder.mkdir(parents=True)
    _write_tokenizer(folder)
    sizes = {"vocab_size": _VOCABULARY, "max_position_embeddings": 8194, "type_vocab_size": 1}
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = XLMRobertaConfig(**SHAPES[shape], **sizes, **tokens)
    config.architectures = ["XLMRobertaModel"]
    if shape == "real":
        config.save_pretrained(folder)
        write_model(folder / "model.safetensors")
    else:
        XLMRobertaModel(config).save_pretrained(folder)
    width = SHAPES[shape]["hidden_size"]
    for name, rows in (("sparse_linear", 1), ("colbert_linear", width)):
        torch.save({"weight": torch.randn(rows, width) * 0.02, "bias": torch.zeros(rows)}, folder / f"{name}.pt")
    _write_modules(folder, width)


def run(side: str, folder: Path, threads: int, rounds: int) -> dict[str, object]:
    """Return, for each number of texts, the seconds of each call, and the first vector of one of them."""
    import torch  # noqa: PLC0415 # as above

    torch.set_num_threads(threads)
    encode = SIDES[side](folder)
    encode(texts(2))
    seconds: dict[str, list[float]] = {}
    for count in (1, 24, 500):
        asked = texts(count)
        if side == "cached":
            encode(asked)
        for _ in range(rounds if count < 500 else 1):
            start = time.perf_counter()
            encode(asked)
            seconds.setdefault(str(count), []).append(time.perf_counter() - start)
    return {"seconds": seconds, "vectors": [[float(item) for item in row] for row in encode(texts(24))]}


def _ours(folder: Path, **settings: bool | str) -> Encode:
    from runtime.adapters import load_adapter  # noqa: PLC0415 # as above
    from runtime.adapters.base import Embedder, ModelConfig  # noqa: PLC0415 # as above

    config = ModelConfig(name="bench", adapter="bge-m3", directory=folder, settings={"device": "cpu", **settings})
    adapter = load_adapter(config)
    assert isinstance(adapter, Embedder)
    return lambda asked: adapter.embed(asked).vectors


def _cached(folder: Path) -> Encode:
    return _ours(folder, enable_cache=True, cache_dir=str(folder / "cache"))


def _int8(folder: Path) -> Encode:
    return _ours(folder, int8=True)


def _flagembedding(folder: Path) -> Encode:
    from FlagEmbedding import BGEM3FlagModel  # noqa: PLC0415 # only its own environment has it

    model = BGEM3FlagModel(str(folder), use_fp16=False, devices=["cpu"], batch_size=12, passage_max_length=8192)
    return lambda asked: model.encode(asked)["dense_vecs"]


def _sentence_transformers(folder: Path) -> Encode:
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 # only its own environment has it

    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return model.encode


SIDES: Final[Mapping[str, Callable[[Path], Encode]]] = {
    "ours": _ours,
    "int8": _int8,
    "cached": _cached,
    "flagembedding": _flagembedding,
    "sentence-transformers": _sentence_transformers,
}
"""Name of a side -> what loads it."""


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: PLC0415 # as above

    pieces = [*((token, 0.0) for token in _SPECIAL), *((f"▁w{number}", -5.0) for number in range(WORDS))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    document = {"tokenizer_class": "XLMRobertaTokenizer", "model_max_length": 8192, "pad_token": "<pad>", **names}
    _write_json(folder / "tokenizer_config.json", {**document, "unk_token": "<unk>"})


def _write_modules(folder: Path, width: int) -> None:
    kinds: Sequence[tuple[str, str]] = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds)
    ]
    _write_json(folder / "modules.json", modules)
    pooling = {"word_embedding_dimension": width, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    _write_json(folder / "1_Pooling" / "config.json", pooling)


def _write_json(path: Path, document: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), sys.argv[3])
    else:
        found = run(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        Path(sys.argv[6]).write_text(json.dumps(found), encoding="utf-8")
