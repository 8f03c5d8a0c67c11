"""Device and dtype choices, from files and settings alone."""

from pathlib import Path

import pytest
import torch

from runtime.adapters.hardware import choose_dtype, cpu_flags, is_out_of_memory, usable_cores
from runtime.adapters.settings import CausalLmSettings, EmbedderSettings

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
    assert dtype == (torch.bfloat16 if fast else torch.float32)
    assert "bf16" in reason
    assert choose_dtype(EmbedderSettings(use_fp16=True), torch.device("cuda"), generator=False)[0] == torch.float16


@pytest.mark.parametrize(("text", "most"), [("max 100000\n", 10**6), ("100000 100000\n", 1), ("50000 100000\n", 1)])
def test_cores_respect_the_quota(tmp_path: Path, text: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(text, encoding="ascii")
    assert 1 <= usable_cores(tmp_path / "cpu.max") <= most


def test_out_of_memory_is_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
