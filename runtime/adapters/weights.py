"""Weights of a generator: loaded in the dtype, with the attention and the quantisation that the host can do."""

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM

from manifests.errors import AdapterError
from manifests.modelsettings import CausalLmSettings
from runtime.adapters.encoder import load_pretrained
from runtime.adapters.hardware import choose_device, choose_dtype, choose_products
from runtime.adapters.quantize import quantize_linears

_LOG: Final = logging.getLogger(__name__)
_DEFAULT_CONTEXT: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedGenerator:
    """A network in its place. ``notes`` are the choices made, each with its reason; ``limit`` is the context."""

    network: Any  # transformers is untyped
    device: torch.device
    dtype: str
    limit: int
    notes: tuple[str, ...]


def load_generator(directory: Path, settings: CausalLmSettings, *, model: str) -> LoadedGenerator:
    """Load a causal language model for inference.

    Raises:
        AdapterError: An accelerator or a package that the settings need isn't here, or the folder can't be loaded.
    """
    device, device_note = choose_device(settings, model=model)
    if settings.int8 and device.type != "cpu":
        msg = f"model {model!r}: settings: int8: for a CPU only, and the device is {device.type}"
        raise AdapterError(msg, hint="set device: cpu, or load_in_8bit: true for CUDA")
    dtype, dtype_note = _int8_dtype() if settings.int8 else choose_dtype(settings, device, generator=True)
    attention, attention_notes = _choose_attention(settings, device)
    options = {
        "dtype": dtype,
        "attn_implementation": attention,
        "use_safetensors": True,
        **_quantization(settings, device, model),
    }
    network = load_pretrained(AutoModelForCausalLM.from_pretrained, directory, model=model, **options)
    network = (network if "quantization_config" in options else network.to(device)).eval()
    products: tuple[str, ...] = ()
    if settings.int8:
        quantize_linears(network)
    elif "quantization_config" not in options:
        products = choose_products(settings, network, pack=False, model=model)
    return LoadedGenerator(
        network=network,
        device=device,
        dtype=_dtype_name(settings, dtype),
        limit=_context_limit(network.config, settings.max_length, model),
        notes=(device_note, dtype_note, *attention_notes, *products),
    )


def _int8_dtype() -> tuple[torch.dtype, str]:
    return torch.float32, "dtype int8: linear layers multiply 8-bit integers, asked for by the settings; not exact"


def _dtype_name(settings: CausalLmSettings, dtype: torch.dtype) -> str:
    names = {"int8": settings.int8 or settings.load_in_8bit, "int4": settings.load_in_4bit}
    return next((name for name, chosen in names.items() if chosen), str(dtype).removeprefix("torch."))


def _context_limit(config: Any, asked: int | None, model: str) -> int:  # noqa: ANN401 - transformers is untyped
    own = int(getattr(config.get_text_config(), "max_position_embeddings", 0) or _DEFAULT_CONTEXT)
    if asked is not None and asked > own:
        raise AdapterError(f"model {model!r}: settings: max_length: {asked} is more than the model's {own} positions")
    return asked or own


def _choose_attention(settings: CausalLmSettings, device: torch.device) -> tuple[str, tuple[str, ...]]:
    if not settings.use_flash_attention:
        return "sdpa", ()
    if device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        return "flash_attention_2", ("attention: flash_attention_2",)
    missing = "the flash_attn package isn't installed" if device.type == "cuda" else f"the device is {device.type}"
    note = f"attention: SDPA, because use_flash_attention can't be honoured: {missing}"
    _LOG.warning("%s", note)
    return "sdpa", (note,)


def _quantization(settings: CausalLmSettings, device: torch.device, model: str) -> dict[str, Any]:
    if not (settings.load_in_8bit or settings.load_in_4bit):
        return {}
    key = "load_in_8bit" if settings.load_in_8bit else "load_in_4bit"
    if device.type != "cuda" or not importlib.util.find_spec("bitsandbytes"):
        reason = "needs CUDA" if device.type != "cuda" else "needs the bitsandbytes package"
        hint = "int8: true quantises on a CPU" if device.type == "cpu" else f"set {key}: false"
        raise AdapterError(f"model {model!r}: settings: {key}: {reason}", hint=hint)
    from transformers import BitsAndBytesConfig  # noqa: PLC0415 - its import looks for the CUDA library

    config = BitsAndBytesConfig(load_in_8bit=settings.load_in_8bit, load_in_4bit=settings.load_in_4bit)
    return {"quantization_config": config, "device_map": {"": str(device)}}
