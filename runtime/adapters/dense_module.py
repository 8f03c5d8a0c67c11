"""The Dense module of sentence-transformers: a linear layer and an activation after the pooling."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file

from manifests.errors import AdapterError
from runtime.adapters.folder import optional_json

_ACTIVATIONS: Final[Mapping[str, type[torch.nn.Module]]] = {
    "Identity": torch.nn.Identity,
    "Tanh": torch.nn.Tanh,
    "ReLU": torch.nn.ReLU,
    "GELU": torch.nn.GELU,
    "Sigmoid": torch.nn.Sigmoid,
}


class DenseModule(torch.nn.Module):
    """``activation(linear(vector))``.

    Args:
        weight: Shape (rows, columns).
        bias: Shape (rows,), or None.
        activation: What comes after.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, activation: torch.nn.Module) -> None:
        super().__init__()
        self.width = int(weight.shape[0])
        self.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
        self.bias = None if bias is None else torch.nn.Parameter(bias.float(), requires_grad=False)
        self.activation = activation

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return vectors of shape (batch, rows) for those of shape (batch, columns)."""
        result: torch.Tensor = self.activation(torch.nn.functional.linear(vectors, self.weight, self.bias))
        return result


def read_dense(directory: Path, columns: int, *, model: str) -> DenseModule:
    """Read one Dense module's folder; ``columns`` is the width of what comes before.

    Raises:
        AdapterError: Weights are missing, unreadable or of another shape, or the module does what this one can't.
    """
    config = optional_json(directory / "config.json", model=model)
    named = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = _ACTIVATIONS.get(named.rpartition(".")[2]) if named.startswith("torch.nn.") else None
    plain = config.get("module_input_name", "sentence_embedding") == "sentence_embedding"
    plain = plain and config.get("module_output_name") in {None, "sentence_embedding"}
    if activation is None or config.get("use_residual") or not plain:
        msg = f"model {model!r}: {directory / 'config.json'}: activation {named}, or a residual or other inputs"
        raise AdapterError(msg, hint=f"this adapter has Dense with {', '.join(_ACTIVATIONS)} on the sentence's vector")
    state = _read_weights(directory, model)
    weight, bias = state.get("linear.weight"), state.get("linear.bias")
    if (
        weight is None
        or weight.ndim != 2
        or weight.shape[1] != columns
        or state.keys() - {"linear.weight", "linear.bias"}
    ):
        found = {key: tuple(value.shape) for key, value in state.items()}
        raise AdapterError(f"model {model!r}: {directory} has {found}, expected linear.weight of (any, {columns})")
    return DenseModule(weight, bias, activation()).eval()


def _read_weights(directory: Path, model: str) -> dict[str, torch.Tensor]:
    safe, pickled = directory / "model.safetensors", directory / "pytorch_model.bin"
    path = safe if safe.exists() else pickled
    if not path.exists():
        raise AdapterError(f"model {model!r}: {directory} has neither {safe.name} nor {pickled.name}")
    try:
        state = load_file(safe) if path == safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise AdapterError(f"model {model!r}: {path} can't be read: {error}") from error
    return dict(state)
