"""8-bit linear layers for a CPU: one scale for each row of the weights, one for each token.

Scales by token, not by batch, so that a text's numbers don't depend on what else is in its batch.
"""

import torch


class Int8Linear(torch.nn.Module):
    """A linear layer whose weights are int8, with activations rounded to int8 on the way in.

    Args:
        linear: The float32 layer it stands for; its weights are copied, rounded.
    """

    weight: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", torch.round(weight / scale.unsqueeze(1)).to(torch.int8).t())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, shape (..., rows), float32, for float32 input of shape (..., columns)."""
        flat = values.reshape(-1, values.shape[-1])
        scale = flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        product = torch._int_mm(torch.round(flat / scale).to(torch.int8), self.weight)  # noqa: SLF001 - torch's only int8 product outside of its deprecated quantised tensors
        result = product.float().mul_(scale).mul_(self.scale)
        result = result if self.bias is None else result.add_(self.bias)
        return result.reshape(*values.shape[:-1], self.weight.shape[1])


def quantize_linears(network: torch.nn.Module) -> int:
    """Replace every linear layer inside ``network``, in place; return how many there were."""
    count = 0
    for name, child in network.named_children():
        if isinstance(child, torch.nn.Linear):
            setattr(network, name, Int8Linear(child))
            count += 1
        else:
            count += quantize_linears(child)
    return count
