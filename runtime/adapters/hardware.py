"""Device, dtype and threads: chosen by what this host does well, each choice with its reason."""

import os
from pathlib import Path
from typing import Final

import torch

from manifests.errors import AdapterError
from manifests.modelsettings import CommonSettings, EmbedderSettings
from runtime.adapters.onednn import use_onednn

_FAST_INT8_FLAGS: Final = frozenset({"amx_int8", "asimddp", "avx512_vnni", "avx_vnni", "i8mm"})
_FAST_BF16_FLAGS: Final = frozenset({"amx_bf16", "avx512_bf16"})


def choose_device(settings: CommonSettings, *, model: str) -> tuple[torch.device, str]:
    """Return the device and why.

    Raises:
        AdapterError: The settings name an accelerator that isn't here.
    """
    if settings.device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), "device cuda: the first of cuda, mps, cpu that is here"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "device mps: no cuda here"
        return torch.device("cpu"), "device cpu: neither cuda nor mps here"
    kind = settings.device.partition(":")[0]
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(kind, True)
    if not here:
        msg = f"model {model!r}: settings: device: {settings.device!r} isn't available on this host"
        raise AdapterError(msg, hint="use device: auto, or check the driver with runtime preflight")
    return torch.device(settings.device), f"device {settings.device}: asked for by the settings"


def choose_dtype(settings: CommonSettings, device: torch.device, *, generator: bool) -> tuple[torch.dtype, str]:
    """Return the dtype to compute in and why.

    On a CPU that is float32 unless the settings say otherwise, so that answers are the same on every kind of CPU (ADR
    12). Embedders stay in float32 everywhere: their numbers are compared with an index made elsewhere. ``use_fp16`` is
    for them and has no effect on a CPU, as in FlagEmbedding.
    """
    if settings.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.dtype)
        return dtype, f"dtype {settings.dtype}: asked for by the settings{_slow_half(dtype, device)}"
    if isinstance(settings, EmbedderSettings) and settings.use_fp16 and device.type != "cpu":
        return torch.float16, f"dtype float16: use_fp16 on {device.type}"
    return _generator_dtype(device) if generator else (torch.float32, "dtype float32: exact numbers by default")


def choose_int8(settings: EmbedderSettings, device: torch.device, *, model: str) -> tuple[str, ...]:
    """Return what is to be said about 8-bit products, if the settings ask for them.

    Raises:
        AdapterError: They do, and the device isn't a CPU.
    """
    if not settings.int8:
        return ()
    if device.type != "cpu":
        msg = f"model {model!r}: settings: int8: for a CPU only, and the device is {device}"
        raise AdapterError(msg, hint="remove int8, or set device: cpu; use_fp16 is for accelerators")
    flags = sorted(cpu_flags() & _FAST_INT8_FLAGS)
    if flags:
        return (f"int8 linear layers: this CPU has {flags[0]}; the numbers are close, not exact",)
    return ("int8 linear layers: this CPU has no 8-bit products, float32 may be faster",)


def choose_products(settings: CommonSettings, network: torch.nn.Module, *, pack: bool, model: str) -> tuple[str, ...]:
    """Have oneDNN do a network's float32 products where the device is a CPU; return what is to be said about that.

    Args:
        settings: The model's.
        network: The network in its place; its linear layers change.
        pack: Whether its weights are packed where the settings don't say.
        model: Its name, for messages.

    Raises:
        AdapterError: The settings ask for packed weights, and there can be none.
    """
    first = next(network.parameters())
    reason = f"the device is {first.device}" if first.device.type != "cpu" else "this CPU or this torch has no oneDNN"
    asked = settings.pack_weights
    if first.device.type == "cpu" and first.dtype == torch.float32:
        note = use_onednn(network, pack=pack if asked is None else asked)
        if note:
            return (note,)
    if asked:
        msg = f"model {model!r}: settings: pack_weights: for float32 on an x86 CPU only, and {reason}"
        raise AdapterError(msg, hint="remove pack_weights")
    return ()


def _generator_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = torch.bfloat16 if fast else torch.float16
        return dtype, f"dtype {str(dtype).removeprefix('torch.')}: this card {'has' if fast else 'lacks'} bf16"
    if device.type == "mps":
        return torch.float16, "dtype float16: mps"
    if flags := sorted(cpu_flags() & _FAST_BF16_FLAGS):
        note = f"dtype float32: the same answers on every CPU; with {flags[0]} here, dtype bfloat16 would be faster"
        return torch.float32, note
    return torch.float32, "dtype float32: this CPU has neither amx_bf16 nor avx512_bf16"


def _slow_half(dtype: torch.dtype, device: torch.device) -> str:
    """Return a warning where a 16-bit type is slower than float32."""
    if device.type != "cpu" or dtype == torch.float32:
        return ""
    if dtype == torch.float16:
        return "; on a CPU it is slower than float32"
    fast = cpu_flags() & _FAST_BF16_FLAGS
    return "" if fast else "; slower than float32, this CPU has neither amx_bf16 nor avx512_bf16"


def cpu_flags(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Return the CPU's feature flags; empty where the system has no such file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    lines = (line.partition(":") for line in text.splitlines())
    return next(
        (frozenset(value.split()) for key, _, value in lines if key.strip() in {"flags", "Features"}), frozenset()
    )


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return how many cores this process may really use: its affinity, limited by the cgroup's quota (v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit, period = quota.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if limit == "max" else max(1, min(cores, int(limit) // int(period)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch says that memory ran out, on an accelerator or in the CPU's allocator."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
