"""One side of the embedding rows, in a process of its own: loads a model, embeds, and says how long each call took.

``python -m benchmarks.embedding_worker make FOLDER SHAPE`` writes one with random weights; ``... export FOLDER`` adds
it as ONNX, for onnxruntime; ``... run SIDE FOLDER THREADS ROUNDS REPORT`` measures one side of it.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.workload import write_model

WORDS: Final = 5_000
SHAPES: Final[Mapping[str, Mapping[str, int]]] = {
    "real": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    "tiny": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
}
_VOCABULARY: Final = 250_002
_SPECIAL: Final = ("<s>", "<pad>", "</s>", "<unk>")
_PAD: Final = _SPECIAL.index("<pad>")
_LONGEST: Final = 8192
_ONNX: Final = Path("onnx", "model.onnx")
_ONNX_BATCH: Final = 16

Encode: Any = Callable[[list[str]], Any]  # Any: four libraries' own forms
Load: TypeAlias = Callable[[Path], Encode]
_Vectors: TypeAlias = npt.NDArray[np.float32]


class _Session(Protocol):
    """What is used of onnxruntime's ``InferenceSession``, which has no types of its own here."""

    def run(self, outputs: None, inputs: Mapping[str, npt.NDArray[np.int64]]) -> Sequence[_Vectors]: ...


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


def export(folder: Path) -> None:
    """Add a folder's model as ONNX: float32, any batch and length, weights in a file beside it, as 2 GB need."""
    import torch  # noqa: PLC0415 # as above
    from transformers import XLMRobertaModel  # noqa: PLC0415 # as above

    model = XLMRobertaModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    ids = torch.full((2, 8), len(_SPECIAL))
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=_LONGEST)}
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    (folder / _ONNX).parent.mkdir()
    torch.onnx.export(
        model,
        kwargs=given,
        f=folder / _ONNX,
        input_names=list(given),
        dynamic_shapes=dict.fromkeys(given, sizes),
        opset_version=23,  # the first with attention as one operator
        external_data=True,
        dynamo=True,
    )


def run(side: str, folder: Path, threads: int, rounds: int) -> dict[str, object]:
    """Return, for each number of texts, the seconds of each call, and the first vector of one of them."""
    encode = SIDES[side](folder, threads)
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


def _onnxruntime(folder: Path, threads: int) -> Encode:
    import onnxruntime  # noqa: PLC0415 # only its own environment has it
    from tokenizers import Tokenizer  # noqa: PLC0415 # as above

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(folder / _ONNX, options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(_LONGEST)
    return lambda asked: _by_length(session, [one.ids for one in tokenizer.encode_batch_fast(asked)])


def _by_length(session: _Session, ids: Sequence[Sequence[int]]) -> _Vectors:
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    batches = [order[start : start + _ONNX_BATCH] for start in range(0, len(order), _ONNX_BATCH)]
    found = np.concatenate([_first_states(session, [ids[index] for index in batch]) for batch in batches])
    vectors = np.empty_like(found)
    vectors[order] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return vectors


def _first_states(session: _Session, ids: Sequence[Sequence[int]]) -> _Vectors:
    padded = np.full((len(ids), max(map(len, ids))), _PAD, dtype=np.int64)
    for row, one in zip(padded, ids, strict=True):
        row[: len(one)] = one
    mask = (padded != _PAD).astype(np.int64)
    return session.run(None, {"input_ids": padded, "attention_mask": mask})[0][:, 0]


def _by_torch(load: Load) -> Callable[[Path, int], Encode]:
    def loaded(folder: Path, threads: int) -> Encode:
        import torch  # noqa: PLC0415 # as above

        torch.set_num_threads(threads)
        return load(folder)

    return loaded


SIDES: Final[Mapping[str, Callable[[Path, int], Encode]]] = {
    "ours": _by_torch(_ours),
    "int8": _by_torch(_int8),
    "cached": _by_torch(_cached),
    "flagembedding": _by_torch(_flagembedding),
    "sentence-transformers": _by_torch(_sentence_transformers),
    "onnxruntime": _onnxruntime,
}
"""Name of a side -> what loads it, given the folder and the number of threads."""


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
    elif sys.argv[1] == "export":
        export(Path(sys.argv[2]))
    else:
        found = run(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
        Path(sys.argv[6]).write_text(json.dumps(found), encoding="utf-8")
