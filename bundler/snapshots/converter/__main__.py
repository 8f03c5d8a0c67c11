"""Runs inside the converter's own venv, as a script: one weights file, or a folder of them, becomes safetensors.

``python __main__.py MODE SOURCE OUTPUT [DTYPE]`` with MODE ``gguf`` (SOURCE is a file), ``pickle`` or ``cast`` (a
folder). Nothing of Sealift is imported. Pickles are read with ``weights_only``, so they can't run code, and mapped, so
that no more than one tensor at a time is copied. Every tensor is read back and compared with what it was made from.
"""

import contextlib
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

PIECE = 16 * 1024 * 1024
NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
"""torch's names of types -> those of the safetensors format."""


def convert_gguf(source: Path, output: Path, dtype: str) -> None:
    """Write the model, tokenizer and chat template that a GGUF file holds, dequantised to bfloat16 by default."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        quantization_config=GgufConfig(dequantize=True),
        dtype=getattr(torch, dtype or "bfloat16"),
        **options,
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)
    expected = model.state_dict()
    for path in sorted(output.glob("*.safetensors")):
        require_equal(path, lambda name: expected[name], source)


def convert_pickles(source: Path, output: Path, dtype: str) -> None:
    """Write every ``.bin`` and ``.pt`` of a folder as safetensors, and the index of shards if there is one."""
    for path in sorted([*source.rglob("*.bin"), *source.rglob("*.pt")]):
        tensors = load_pickle(path)
        write_tensors(output / safetensors_name(path.relative_to(source).as_posix()), tensors, dtype, path)
    write_indices(source, output, "*.bin.index.json")


def convert_dtype(source: Path, output: Path, dtype: str) -> None:
    """Write every safetensors file of a folder with its floating-point tensors in another type."""
    from safetensors import safe_open

    for path in sorted(source.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
            tensors = Lazy(names, opened.get_tensor)
            write_tensors(output / path.relative_to(source), tensors, dtype, path)
    write_indices(source, output, "*.safetensors.index.json")


class Lazy(Mapping[str, Any]):
    """Tensors that are read when they are asked for."""

    def __init__(self, names: list[str], read: Callable[[str], Any]) -> None:
        self._names, self._read = names, read

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 # a torch tensor
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def load_pickle(path: Path) -> Mapping[str, Any]:
    """Return the tensors of a pickle by name; mapped where it is torch's zip, in memory where it is older."""
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict):
        sys.exit(f"{path.name}: holds a {type(loaded).__name__}, expected tensors by name")
    if odd := sorted(str(name) for name, tensor in loaded.items() if not isinstance(tensor, torch.Tensor)):
        sys.exit(
            f"{path.name}: {', '.join(odd[:5])} are not tensors; it is a training checkpoint, not a model's weights"
        )
    return loaded


def write_tensors(target: Path, tensors: Mapping[str, Any], dtype: str, source: Path) -> None:
    """Write one safetensors file, one tensor after the other, and compare what is there with what should be."""
    target.parent.mkdir(parents=True, exist_ok=True)
    layout = {name: described(tensors[name], dtype, source) for name in tensors}
    # Wide types first, so that every tensor starts at a multiple of its own width; then by name.
    order = sorted(layout, key=lambda name: (-layout[name]["width"], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        size = layout[name]["size"]
        header[name] = {
            "dtype": layout[name]["dtype"],
            "shape": layout[name]["shape"],
            "data_offsets": [position, position + size],
        }
        position += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with target.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            stream.write(raw_bytes(cast(tensors[name], dtype)))
    require_equal(target, lambda name: cast(tensors[name], dtype), source)


def described(tensor: Any, dtype: str, source: Path) -> dict[str, Any]:  # noqa: ANN401 # a torch tensor
    """Return type, shape, size and width in bytes of a tensor as it will be written."""
    written = dtype if dtype and tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    if written not in NAMES:
        sys.exit(f"{source.name}: safetensors has no type {written}")
    import torch

    width = getattr(torch, written).itemsize
    return {"dtype": NAMES[written], "shape": list(tensor.shape), "size": tensor.numel() * width, "width": width}


def cast(tensor: Any, dtype: str) -> Any:  # noqa: ANN401 # torch tensors
    """Return the tensor as it shall be written; only floating-point ones are cast."""
    import torch

    return tensor.to(getattr(torch, dtype)) if dtype and tensor.is_floating_point() else tensor


def raw_bytes(tensor: Any) -> memoryview:  # noqa: ANN401 # a torch tensor
    """Return the bytes of a tensor, row by row; a copy only where its rows don't lie one after the other."""
    import torch

    flat = tensor.detach().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def require_equal(path: Path, expected: Callable[[str], Any], source: Path) -> None:
    """Exit unless every tensor of ``path`` has the bytes that ``expected`` gives for it."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        for name, item in header.items():
            if name == "__metadata__":
                continue
            start, end = item["data_offsets"]
            stream.seek(8 + length + start)
            wanted = raw_bytes(expected(name))
            same = len(wanted) == end - start
            # In pieces, since the largest tensor of a model may be half of it.
            pieces = range(0, len(wanted), PIECE)
            if not same or any(stream.read(PIECE)[: end - start - at] != wanted[at : at + PIECE] for at in pieces):
                sys.exit(f"{source.name}: tensor {name} changed while it was converted")
        with contextlib.suppress(OSError):
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_indices(source: Path, output: Path, pattern: str) -> None:
    """Write the indices of shards for the new names."""
    for path in sorted(source.rglob(pattern)):
        index = json.loads(path.read_text(encoding="utf-8"))
        index["weight_map"] = {name: safetensors_name(shard) for name, shard in index["weight_map"].items()}
        target = output / safetensors_name(path.relative_to(source).as_posix().removesuffix(".index.json"))
        text = json.dumps(index, indent=2, sort_keys=True)
        target.with_name(f"{target.name}.index.json").write_text(f"{text}\n", encoding="utf-8")


def safetensors_name(name: str) -> str:
    """Return the name that transformers looks for: ``pytorch_model`` becomes ``model``, the ending changes."""
    folder, _, file = name.rpartition("/")
    stem = file.rsplit(".", 1)[0].replace("pytorch_model", "model")
    return f"{folder}/{stem}.safetensors" if folder else f"{stem}.safetensors"


def main() -> None:
    """Convert as the arguments say."""
    mode, source, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    dtype = sys.argv[4] if len(sys.argv) > 4 else ""
    output.mkdir(parents=True, exist_ok=True)
    {"gguf": convert_gguf, "pickle": convert_pickles, "cast": convert_dtype}[mode](source, output, dtype)


if __name__ == "__main__":
    main()
