"""Device and dtype choices, from files and settings alone."""

from pathlib import Path

import pytest
import torch

from manifests.modelsettings import CausalLmSettings, EmbedderSettings
from runtime.adapters.hardware import choose_dtype, cpu_flags, is_out_of_memory, usable_cores

pytestmark = pytest.mark.models


def test_cpu_flags_of_x86_and_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512_bf16 amx_bf16\n", encoding="utf-8")
    assert cpu_flags(tmp_path / "cpuinfo") == {"fpu", "avx512_bf16", "amx_bf16"}
    assert cpu_flags(tmp_path / "missing") == frozenset()


def test_dtype_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert choose_dtype(EmbedderSettings(use_fp16=True), cpu, generator=False)[0] == torch.float32
    assert choose_dtype(EmbedderSettings(dtype="bfloat16"), cpu, generator=False)[0] == torch.bfloat16
    fast = cpu_flags() & {"amx_bf16", "avx512_bf16"}
    dtype, reason = choose_dtype(CausalLmSettings(), cpu, generator=True)
    assert dtype == torch.float32
    better = f"the same answers on every CPU; with {min(fast)} here, dtype bfloat16 would be faster" if fast else ""
    assert reason == f"dtype float32: {better or 'this CPU has neither amx_bf16 nor avx512_bf16'}"
    half = choose_dtype(CausalLmSettings(dtype="float16"), cpu, generator=True)
    assert half == (torch.float16, "dtype float16: asked for by the settings; on a CPU it is slower than float32")
    _, slow = choose_dtype(CausalLmSettings(dtype="bfloat16"), cpu, generator=True)
    told = "" if fast else "; slower than float32, this CPU has neither amx_bf16 nor avx512_bf16"
    assert slow == f"dtype bfloat16: asked for by the settings{told}"
    assert choose_dtype(EmbedderSettings(use_fp16=True), torch.device("cuda"), generator=False)[0] == torch.float16


@pytest.mark.parametrize(("text", "most"), [("max 100000\n", 10**6), ("100000 100000\n", 1), ("50000 100000\n", 1)])
def test_cores_respect_the_quota(tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text, encoding="ascii")
    assert 1 <= usable_cores(tmp_path / "cpu.max") <= most


def test_out_of_memory_is_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
