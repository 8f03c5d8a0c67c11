"""Runs inside the converter's own venv, as a script: one weights file, or a folder of pickles, becomes safetensors.

``python __main__.py gguf FILE OUTPUT`` or ``python __main__.py pickle FOLDER OUTPUT``. Nothing of Sealift is
imported. Pickles are read with ``weights_only``, so they can't run code. Every tensor is read back and compared.
"""

import json
import sys
from pathlib import Path
from typing import Any


def convert_gguf(source: Path, output: Path) -> None:
    """Write the model, tokenizer and chat template that a GGUF file holds, dequantised to bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    options: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16, **options
    )
    tokenizer = AutoTokenizer.from_pretrained(source.parent, **options)
    tokenizer.save_pretrained(output)
    model.save_pretrained(output)
    written = AutoModelForCausalLM.from_pretrained(output, dtype=torch.bfloat16, local_files_only=True)
    require_equal(model.state_dict(), written.state_dict(), source)


def convert_pickles(source: Path, output: Path) -> None:
    """Write every ``.bin`` and ``.pt`` of a folder as safetensors, and the index of shards if there is one."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in sorted([*source.rglob("*.bin"), *source.rglob("*.pt")]):
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors = tensors.get("state_dict", tensors)
        # Clones, since two names may share memory, which safetensors refuses.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        target = output / safetensors_name(path.relative_to(source).as_posix())
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, target, metadata={"format": "pt"})
        require_equal(tensors, load_file(target), path)
    for path in sorted(source.rglob("*.bin.index.json")):
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


def require_equal(before: Any, after: Any, path: Path) -> None:  # noqa: ANN401 # mappings of torch tensors
    """Exit unless every tensor that was written is the one that was read."""
    import torch

    for name, tensor in before.items():
        if name in after and not torch.equal(tensor, after[name]):
            sys.exit(f"{path}: tensor {name} changed while it was converted")


def main() -> None:
    """Convert as the arguments say."""
    mode, source, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    output.mkdir(parents=True, exist_ok=True)
    {"gguf": convert_gguf, "pickle": convert_pickles}[mode](source, output)


if __name__ == "__main__":
    main()
