"""Linear layers on an x86 CPU by oneDNN instead of MKL: float32, the same numbers within rounding, and faster.

MKL multiplies few rows by one thread alone, so that a generator's next token gains most: twice as fast on two cores.

Weights stay where they are, mapped from the file and shared between processes, unless they are packed: copied, once,
into the order in which oneDNN reads them. That is worth another half for up to 16 tokens and nothing for hundreds.
"""

import platform
from typing import Any, Final

import torch

_X86: Final = frozenset({"x86_64", "amd64"})
_USUAL_ROWS: Final = 32


class OneDnnLinear(torch.nn.Linear):
    """A linear layer whose product is oneDNN's; it differs from MKL's by rounding alone."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, shape (..., rows), for input of shape (..., columns)."""
        return _product(values, self.weight, self.bias)


class PackedLinear(torch.nn.Linear):
    """As :class:`OneDnnLinear`, from a copy of the weights in oneDNN's own order."""

    packed: torch.Tensor

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, shape (..., rows), for input of shape (..., columns)."""
        return _product(values, self.packed, self.bias)


def use_onednn(network: torch.nn.Module, *, pack: bool = False) -> str:
    """Have oneDNN do the products of every float32 linear layer inside ``network``, in place.

    Args:
        network: The network; names, hooks and weights stay as they are.
        pack: Copy the weights into oneDNN's own order.

    Returns:
        What was done, for a person; empty where nothing was: this torch or this CPU can't, or gives other numbers than
        torch itself.
    """
    if not _works(pack=pack):
        return ""
    size = 0
    for module in network.modules():
        if type(module) is not torch.nn.Linear or module.weight.dtype != torch.float32:
            continue
        module.__class__ = PackedLinear if pack else OneDnnLinear
        if pack:
            module.packed = _pack(module.weight)
            size += module.weight.nbytes
    return "products: oneDNN" + (f", weights packed: {size / 1e6:.0f} MB more memory" if pack else "")


def _works(*, pack: bool) -> bool:
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if platform.machine().lower() not in _X86 or not available:
        return False
    generator = torch.Generator().manual_seed(0)
    values, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 3, 16), (8, 16), (8,)))
    expected = torch.nn.functional.linear(values, weight, bias)
    try:
        found = _product(values, _pack(weight) if pack else weight, bias)
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
    return found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def _pack(weight: torch.Tensor) -> torch.Tensor:
    operator: Any = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001 - as below
    result: torch.Tensor = operator(weight.detach(), _USUAL_ROWS)
    return result


def _product(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    operator: Any = torch.ops.mkldnn._linear_pointwise  # noqa: SLF001 - torch has no public way to choose the library
    result: torch.Tensor = operator(values, weight, bias, "none", [], "")
    return result
