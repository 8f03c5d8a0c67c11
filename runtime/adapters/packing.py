"""Texts of different lengths in one row of tokens, without padding: attention alone is told where each text ends.

Everything else in a transformer encoder works token by token, so on a CPU, where every token costs its full price,
padding is work for nothing. transformers has this for flash attention on accelerators; here it is for SDPA.
"""

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final

import torch

PACKED: Final = "sealift_packed"
"""The name under which transformers finds :func:`packed_attention`."""

_ROBERTAS: Final = frozenset({"camembert", "roberta", "xlm-roberta"})
_KINDS: Final = frozenset({"bert", *_ROBERTAS})
_TOLERANCE: Final = 1e-5
_STEPS: Final = ((32, 4), (128, 8), (512, 16))
_LARGEST_STEP: Final = 32


def can_pack(config: Any) -> bool:  # noqa: ANN401 - transformers is untyped
    """Whether this version of transformers packs this kind of model: a tiny one of random weights is tried.

    Args:
        config: The model's config; it isn't changed.
    """
    if config.model_type not in _KINDS or getattr(config, "is_decoder", False):
        return False
    try:
        return _agrees(_miniature(config))
    except (AttributeError, ImportError, KeyError, RuntimeError, TypeError, ValueError):
        return False


def forward_packed(network: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:  # noqa: ANN401 - transformers is untyped
    """Return the last hidden states of each row, of shape (its length, width), from one forward pass.

    Args:
        network: An encoder whose attention is :data:`PACKED`.
        rows: Token ids, longest row first.
    """
    total = sum(map(len, rows))
    filler = [int(network.config.pad_token_id or 0)] * (round_up(total) - total)
    texts = [*rows, filler] if filler else list(rows)
    lengths = [len(row) for row in texts]
    ids = [torch.tensor(row, dtype=torch.int64, device=network.device) for row in texts]
    flat = torch.cat(ids).unsqueeze(0)
    states = network(
        input_ids=flat,
        position_ids=torch.cat([_positions(row, network.config) for row in ids]).unsqueeze(0),
        token_type_ids=torch.zeros_like(flat),
        packed_lengths=lengths,
    ).last_hidden_state
    return list(states[0].split(lengths))[: len(rows)]


def round_up(tokens: int) -> int:
    """Return how many tokens are computed for so many: oneDNN compiles and keeps a product for each number it meets.

    A batch is one of 60 numbers up to 1,024, for 2 to 3 % more tokens; it saves 70 MB already with a small model.
    """
    step = next((step for limit, step in _STEPS if tokens <= limit), _LARGEST_STEP)
    return -(-tokens // step) * step


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    packed_lengths: Sequence[int] = (),
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attend within each text alone; the signature and what comes back are those of transformers' attentions.

    Args:
        module: The layer, not used.
        query: Shape (1, heads, tokens of all texts, head width), as are ``key`` and ``value``.
        key: As ``query``.
        value: As ``query``.
        attention_mask: None, since nothing is padded.
        scaling: What the products are multiplied by; None for torch's own.
        packed_lengths: Tokens of each text, in their order.

    Raises:
        ValueError: There is a mask, or the lengths aren't those of the tokens.
    """
    del module
    if attention_mask is not None or sum(packed_lengths) != query.shape[2] or query.shape[0] != 1:
        raise ValueError("packed attention takes one row of tokens, the length of each text in it, and no mask")
    outputs = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    start = 0
    for length, group in groupby(packed_lengths):
        count = len(list(group))
        end = start + count * length
        queries, keys, values = (_unpack(tensor, start, count, length) for tensor in (query, key, value))
        found = torch.nn.functional.scaled_dot_product_attention(queries, keys, values, scale=scaling)
        outputs[:, start:end] = found.transpose(1, 2).reshape(1, count * length, *outputs.shape[2:])
        start = end
    return outputs, None


def _unpack(tensor: torch.Tensor, start: int, count: int, length: int) -> torch.Tensor:
    """Return so many texts of one length as a batch of their own: shape (count, heads, length, head width), a view."""
    part = tensor[0, :, start : start + count * length]
    return part.view(part.shape[0], count, length, part.shape[2]).transpose(0, 1)


def _positions(row: torch.Tensor, config: Any) -> torch.Tensor:  # noqa: ANN401 - transformers is untyped
    if config.model_type not in _ROBERTAS:
        return torch.arange(len(row), device=row.device)
    real = row.ne(config.pad_token_id).long()  # a padding token that stands in a text has no place of its own
    return real.cumsum(0) * real + int(config.pad_token_id)


def _miniature(config: Any) -> Any:  # noqa: ANN401 - transformers is untyped
    from transformers import AttentionInterface, AutoModel  # noqa: PLC0415 # older ones have no such interface

    AttentionInterface.register(PACKED, packed_attention)
    pad = int(config.pad_token_id or 0)
    sizes = {"vocab_size": pad + 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2}
    more = {
        "max_position_embeddings": pad + 8,
        "type_vocab_size": 1,
        "num_attention_heads": 2,
        "initializer_range": 1.0,
    }
    kept = {key: value for key, value in config.to_dict().items() if key not in {"dtype", "torch_dtype"}}
    small = type(config)(**{**kept, **sizes, **more})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModel.from_config(small, attn_implementation=PACKED).eval()


@torch.inference_mode()
def _agrees(network: Any) -> bool:  # noqa: ANN401 - transformers is untyped
    pad = int(network.config.pad_token_id or 0)
    rows = [[pad + 1, pad + 2, pad, pad + 3, pad + 4], [pad + 5, pad + 6, pad + 7], [pad + 7, pad + 1, pad + 2]]
    found = forward_packed(network, rows)
    network.set_attn_implementation("sdpa")
    alone = [network(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]
    gaps = [float((mine - theirs).abs().max()) for mine, theirs in zip(found, alone, strict=True)]
    return all(math.isfinite(gap) and gap <= _TOLERANCE for gap in gaps)
