"""Tiny models of the real architectures: seeded, deterministic, below 2 MB each, and loaded as the real ones are.

Each ``make_*`` writes into a folder (made if needed) and returns it.
"""

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    HyperCLOVAXConfig,
    HyperCLOVAXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    XLMRobertaConfig,
    XLMRobertaModel,
)

CORPUS: Final = (
    "the quick brown fox jumps over the lazy dog and the cat sleeps in the warm sun",
    "a ship carries sealed goods across the water and lifts them on the other side",
    "대한민국의 수도는 서울이다 그리고 부산은 바다가 있는 도시이다",
    "다음 참고자료를 바탕으로 질문에 대한 정확하고 유용한 답변을 제공해주세요",
    "retrieval augmented generation needs an embedding model and a language model",
    "0123456789 !?.,:;-_()[] system user assistant",
)
XLMR_SPECIAL: Final = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
BERT_SPECIAL: Final = {
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
CHAT_TEMPLATE: Final = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_xlmr(directory: Path, *, seed: int = 0) -> Path:
    """Write an XLM-R with BGE-M3's two heads, CLS pooling and normalisation declared; 130 positions, so 128 tokens."""
    tokenizer = _unigram()
    _write_tokenizer(
        directory,
        tokenizer,
        tokenizer_class="XLMRobertaTokenizer",
        model_max_length=128,
        **XLMR_SPECIAL,
    )
    config = XLMRobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=130,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    random = _write_network(directory, XLMRobertaModel, config, seed)
    _write_head(directory / "sparse_linear.safetensors", 1, random)
    _write_head(directory / "colbert_linear.safetensors", 32, random)
    write_modules(directory, pooling="cls", normalize=True)
    return directory


def make_bert(directory: Path, *, seed: int = 0) -> Path:
    """Write a BERT with mean pooling and normalisation declared, as all-MiniLM-L6-v2 has; at most 48 tokens."""
    tokenizer = _wordpiece()
    _write_tokenizer(
        directory,
        tokenizer,
        tokenizer_class="BertTokenizer",
        model_max_length=64,
        do_lower_case=True,
        **BERT_SPECIAL,
    )
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    _write_network(directory, BertModel, config, seed)
    write_modules(directory, pooling="mean", normalize=True, max_seq_length=48)
    return directory


def make_llama(directory: Path, *, seed: int = 0) -> Path:
    """Write a Llama with a byte-level BPE tokenizer and a ChatML template; context 256."""
    tokenizer = _write_byte_level(directory, chat_template=CHAT_TEMPLATE)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    _write_network(directory, LlamaForCausalLM, config, seed)
    return directory


def make_hyperclovax(directory: Path, *, seed: int = 0) -> Path:
    """Write a native HyperCLOVA X without a chat template; its config doesn't list its stop tokens. Context 256."""
    tokenizer = _write_byte_level(directory, chat_template=None)
    config = HyperCLOVAXConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=True,
    )
    _write_network(directory, HyperCLOVAXForCausalLM, config, seed)
    return directory


def write_modules(directory: Path, *, pooling: str, normalize: bool, max_seq_length: int | None = None) -> None:
    """Write what sentence-transformers writes beside the weights; ``pooling`` is cls, mean or max."""
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(kinds if normalize else kinds[:2])
    ]
    names = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    modes = {f"pooling_mode_{name}": key == pooling for key, name in names.items()}
    write_json(directory / "modules.json", modules)
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **modes})
    if max_seq_length:
        write_json(directory / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})


def write_dense(
    directory: Path, name: str, *, rows: int, columns: int, activation: str, normalize: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Add a Dense module to a folder that :func:`write_modules` wrote, and Normalize if asked; return its weights."""
    random = torch.Generator().manual_seed(seed)
    state = {"linear.weight": 0.3 * torch.randn(rows, columns, generator=random)}
    state["linear.bias"] = torch.randn(rows, generator=random)
    modules = json.loads((directory / "modules.json").read_text(encoding="utf-8"))
    kinds = [("Dense", name), *([("Normalize", "9_Normalize")] if normalize else [])]
    for kind, path in kinds:
        (directory / path).mkdir(exist_ok=True)
        index = len(modules)
        modules.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
    write_json(directory / "modules.json", modules)
    config = {"in_features": columns, "out_features": rows, "bias": True, "activation_function": activation}
    write_json(directory / name / "config.json", config)
    save_file(state, directory / name / "model.safetensors")
    return state


def write_json(path: Path, document: object) -> None:
    """Write one JSON file, its folder made if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=2), encoding="utf-8")


def _unigram() -> Tokenizer:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    characters = sorted({character for line in CORPUS for character in line if character != " "})
    words = sorted({f"▁{word}" for line in CORPUS for word in line.split()})
    pieces = [(token, 0.0) for token in special]
    pieces += [("▁", -3.0), *((word, -4.0) for word in words), *((character, -8.0) for character in characters)]
    pieces.append(("<mask>", 0.0))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*special, "<mask>"])
    return tokenizer


def _wordpiece() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = sorted({word for line in CORPUS for word in line.split()})
    letters = sorted({character for word in words for character in word})
    tokens = dict.fromkeys([*special, *letters, *(f"##{letter}" for letter in letters), *words])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=BERT_SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def _write_byte_level(directory: Path, *, chat_template: str | None) -> Tokenizer:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|endofturn|>", "<|stop|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    _write_tokenizer(
        directory,
        tokenizer,
        tokenizer_class="PreTrainedTokenizerFast",
        model_max_length=256,
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), special[0]),
        **({"chat_template": chat_template} if chat_template else {}),
    )
    return tokenizer


def _write_tokenizer(directory: Path, tokenizer: Tokenizer, **config: object) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", config)


def _write_network(directory: Path, kind: Any, config: Any, seed: int) -> torch.Generator:  # noqa: ANN401 - transformers is untyped
    """Write config and weights drawn from ``seed`` alone, whatever order transformers initialises in."""
    config.architectures = [kind.__name__]
    network = kind(config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(network.named_parameters()):
            drawn = torch.randn(parameter.shape, generator=random)
            parameter.copy_(1 + 0.1 * drawn if name.lower().endswith("norm.weight") else 0.3 * drawn)
    network.save_pretrained(directory)
    return random


def _write_head(path: Path, rows: int, random: torch.Generator) -> None:
    weight, bias = 0.5 * torch.randn(rows, 32, generator=random), torch.randn(rows, generator=random).abs()
    save_file({"weight": weight, "bias": bias}, path)
