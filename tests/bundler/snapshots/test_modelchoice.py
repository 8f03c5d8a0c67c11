"""Which files travel: known layouts, one format of weights, and remarks with sizes."""

import pytest

from bundler.snapshots.modelchoice import check_choice, choose_files
from manifests.errors import SpecError

BGE_M3 = {
    **dict.fromkeys(("config.json", "modules.json", "1_Pooling/config.json", "tokenizer.json", "README.md"), 10),
    "pytorch_model.bin": 2_271_145_830,
    "colbert_linear.pt": 2_100_674,
    "sparse_linear.pt": 3516,
    "onnx/model.onnx": 724_923,
    "onnx/model.onnx_data": 2_266_820_608,
    "imgs/bm25.jpg": 131_000,
    "long.jpg": 485_000,
    ".gitattributes": 1627,
}


def test_bge_m3_without_what_nothing_reads() -> None:
    choice = choose_files(BGE_M3, (), (), only_useful=True)
    left = {"onnx/model.onnx", "onnx/model.onnx_data", "imgs/bm25.jpg", "long.jpg", ".gitattributes"}
    assert choice.names == tuple(sorted(set(BGE_M3) - left))
    sizes = "onnx/ (2.3 GB), long.jpg (485.0 kB), imgs/ (131.0 kB), .gitattributes (1.6 kB)"
    assert choice.remarks == (f"left out, nothing here reads it: {sizes}",)


def test_globs_of_the_spec_replace_the_useful_set() -> None:
    assert "onnx/model.onnx" in choose_files(BGE_M3, (), ("imgs/*",), only_useful=True).names
    assert choose_files(BGE_M3, ("*.json",), ("1_*",), only_useful=True).names == (
        "config.json",
        "modules.json",
        "tokenizer.json",
    )
    assert choose_files(BGE_M3, (), ()).names == tuple(sorted(BGE_M3))


def test_other_frameworks_stay_behind_and_the_list_is_short() -> None:
    names = ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "openvino/m.xml", "coreml/x", "a.tflite", "b.png"]
    sizes = {"config.json": 1, "model.safetensors": 1} | dict.fromkeys(names, 1000)
    choice = choose_files(sizes, (), (), only_useful=True)
    assert choice.names == ("config.json", "model.safetensors")
    (remark,) = choice.remarks
    assert remark.endswith("openvino/ (1.0 kB), rust_model.ot (1.0 kB), 1 more (1.0 kB)")


@pytest.mark.parametrize(
    ("names", "left"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (
            [
                "model-1-of-2.safetensors",
                "model.safetensors.index.json",
                "pytorch_model-1-of-1.bin",
                "pytorch_model.bin.index.json",
                "consolidated.00.pth",
            ],
            ["consolidated.00.pth", "pytorch_model-1-of-1.bin", "pytorch_model.bin.index.json"],
        ),
        (["model-1-of-1.safetensors", "consolidated.safetensors"], ["consolidated.safetensors"]),
        (["consolidated.safetensors"], []),
        (["model.safetensors", "m.gguf", "gguf/q4.gguf"], ["gguf/q4.gguf", "m.gguf"]),
        (["pytorch_model.bin", "m.gguf"], ["m.gguf"]),
        (["model.safetensors", "colbert_linear.pt"], []),
        (["colbert_linear.safetensors", "colbert_linear.pt", "pytorch_model.bin"], ["colbert_linear.pt"]),
        (["adapter_model.safetensors", "adapter_model.bin"], ["adapter_model.bin"]),
        (["model.safetensors", "2_Dense/pytorch_model.bin"], []),
        (
            ["2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "pytorch_model.bin"],
            ["2_Dense/pytorch_model.bin"],
        ),
    ],
)
def test_one_format_of_weights(names: list[str], left: list[str]) -> None:
    sizes = dict.fromkeys(["config.json", *names], 1)
    choice = choose_files(sizes, (), ())
    assert sorted(set(sizes) - set(choice.names)) == left
    assert len(choice.remarks) == bool(left)


def test_the_remark_names_the_format() -> None:
    sizes = {"config.json": 2, "model.safetensors": 5, "pytorch_model.bin": 2_000_000}
    assert choose_files(sizes, (), ()).remarks == (
        "weights: safetensors taken; left out, the same in another format: pytorch_model.bin (2.0 MB)",
    )
    sizes = {"config.json": 2, "pytorch_model.bin": 5, "m.gguf": 7}
    assert choose_files(sizes, (), ()).remarks == (
        "weights: PyTorch's .bin taken; left out, the same in another format: m.gguf (7 B)",
    )


def test_included_gguf_is_not_second_guessed_but_pickled_twins_are() -> None:
    sizes = dict.fromkeys(["config.json", "model.safetensors", "pytorch_model.bin", "m.gguf"], 1)
    assert choose_files(sizes, ("*",), ()).names == ("config.json", "m.gguf", "model.safetensors")


def test_what_is_no_model() -> None:
    for names, words, hint in (
        ([], "x holds no files", "check include and exclude"),
        (["a.bin"], "x has no config.json", "name the folder that holds the weights"),
        (
            ["q4.gguf", "q8.gguf"],
            "x holds 2 GGUF files and no config.json: q4.gguf (1.0 kB), q8.gguf (1.0 kB)",
            "choose one: include = ['q4.gguf']",
        ),
    ):
        with pytest.raises(SpecError) as caught:
            check_choice(names, dict.fromkeys(names, 1000), "x")
        assert (caught.value.message, caught.value.hint) == (words, hint)
    check_choice(["q4.gguf"], {"q4.gguf": 1}, "x")
    check_choice(["config.json"], {"config.json": 1}, "x")
